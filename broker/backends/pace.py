"""How fast a peer may talk in the long run: who says more waits in its own pipe or socket, and nobody else does."""

from __future__ import annotations

import anyio


class Pace:
    """per_s: how much in a second, in any unit. burst: how much at once, at most, after a quiet time."""

    __slots__ = ("_burst", "_filled_at", "_left", "_per_s")

    def __init__(self, per_s: float, burst: float) -> None:
        self._per_s = per_s
        self._burst = self._left = burst
        self._filled_at = anyio.current_time()

    async def spend(self, amount: float) -> None:
        """Take so much, and wait as long as it is too much."""
        now = anyio.current_time()
        self._left = min(self._left + (now - self._filled_at) * self._per_s, self._burst) - amount
        self._filled_at = now
        if self._left < 0:
            await anyio.sleep(-self._left / self._per_s)
