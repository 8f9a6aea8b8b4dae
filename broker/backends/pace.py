"""How fast a peer may talk in the long run: who says more waits in its own pipe or socket, and nobody else does."""

from __future__ import annotations

import anyio

MESSAGES_PER_S = 250.0  # that are no answers: each costs as much as a part of a call, and everybody pays for it
MESSAGES_BURST = 50.0
MESSAGES_A_CALL = 20.0  # more for each request: who is asked much has much to say
WAIT_S = 0.05  # the least that is waited for, since waiting costs more than a message


class Pace:
    """per_s: how much in a second, in any unit. burst: how much at once, at most, after a quiet time.

    One for each link to a server, whatever connections and requests it talks on.
    """

    __slots__ = ("_burst", "_filled_at", "_left", "_per_s")

    def __init__(self, per_s: float = MESSAGES_PER_S, burst: float = MESSAGES_BURST) -> None:
        self._per_s = per_s
        self._burst = self._left = burst
        self._filled_at = anyio.current_time()

    def earn(self, amount: float = MESSAGES_A_CALL) -> None:
        """It was asked something."""
        self._left = min(self._left + amount, self._burst)

    async def spend(self, amount: float) -> None:
        """Take so much, and wait as long as it is too much."""
        now = anyio.current_time()
        self._left = min(self._left + (now - self._filled_at) * self._per_s, self._burst) - amount
        self._filled_at = now
        if self._left < -self._per_s * WAIT_S:
            await anyio.sleep(-self._left / self._per_s)
