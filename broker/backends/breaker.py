"""Stop asking a backend that cannot be connected to; ask again with one call after a pause.

Only failures to connect count: a backend that answers, even with errors, is there. The state is this process's own:
each broker finds out for itself, in a handful of calls.

    closed --(5 failures in a row)--> open --(pause is over, one call may try)--> closed, or open for twice as long
"""

from __future__ import annotations

from collections.abc import Callable

from broker.errors import Unavailable

FAILURES = 5
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0


class Breaker:
    """now: monotonic seconds."""

    def __init__(self, backend: str, now: Callable[[], float]) -> None:
        self._backend = backend
        self._now = now
        self.failures = 0  # in a row
        self._pause_s = FIRST_PAUSE_S
        self._opens_again_at = 0.0
        self._probing = False
        self.reason = ""  # why it is open, in the words of the last failure; "" while it is closed

    def enter(self) -> None:
        """Ask whether a call may be tried. Raises Unavailable while open. Then tell `succeeded`, `failed` or `left`."""
        if not self.reason:
            return
        wait_s = self._opens_again_at - self._now()
        if wait_s > 0 or self._probing:
            raise Unavailable(
                f"Backend {self._backend!r} could not be reached {self.failures} times in a row ({self.reason}) and "
                "is not asked for a moment. Nothing was sent.",
                next_step="Try again shortly.",
                retry_after_ms=max(1, round(wait_s * 1000)),
            )
        self._probing = True

    def succeeded(self) -> None:
        """It answered, whatever it said."""
        self.failures, self._pause_s, self._probing, self.reason = 0, FIRST_PAUSE_S, False, ""

    def failed(self, reason: str) -> None:
        """No connection could be made."""
        self.failures += 1
        if self._probing:
            self._pause_s = min(self._pause_s * 2, LONGEST_PAUSE_S)
        if self._probing or self.failures >= FAILURES:
            self.reason = reason
            self._opens_again_at = self._now() + self._pause_s
        self._probing = False

    def left(self) -> None:
        """The call ended without saying anything about the connection (cancelled, refused before it was tried)."""
        self._probing = False
