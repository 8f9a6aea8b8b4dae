"""Counting in sliding windows: how often somebody may try, and how often something was refused."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Awaitable, Callable, Mapping
from time import monotonic
from typing import Any

WINDOW_S = 60.0
REMEMBERED = 10_000
TALLY_S = 10.0

Key = tuple[str, str]


class Windows:
    """Attempts by key in the last WINDOW_S; bounded, the longest unused key is forgotten first."""

    def __init__(self) -> None:
        self._attempts: OrderedDict[Key, deque[float]] = OrderedDict()

    def wait_s(self, limits: Mapping[Key, int]) -> int:
        """Seconds until one more is allowed under every limit; 0: now, and it is counted for each key."""
        now = monotonic()
        waits = [self._wait_s(key, limit, now) for key, limit in limits.items()]
        if any(waits):
            return max(waits)
        for key in limits:
            self._attempts.setdefault(key, deque()).append(now)
            self._attempts.move_to_end(key)
        while len(self._attempts) > REMEMBERED:
            self._attempts.popitem(last=False)
        return 0

    def forget(self, key: Key) -> None:
        self._attempts.pop(key, None)

    def _wait_s(self, key: Key, limit: int, now: float) -> int:
        attempts = self._attempts.get(key, deque())
        while attempts and now - attempts[0] >= WINDOW_S:
            attempts.popleft()
        return 0 if len(attempts) < limit else int(WINDOW_S - (now - attempts[0])) + 1


class Tally:
    """Refusals, recorded in sum: the first at once, those of the next TALLY_S together with the first after them."""

    def __init__(self, kind: str, note: Callable[[str, Mapping[str, Any]], Awaitable[None]]) -> None:
        self._kind = kind
        self._note = note
        self._counted: Counter[str] = Counter()
        self._noted_at = float("-inf")

    async def add(self, what: str) -> None:
        self._counted[what] += 1
        if monotonic() - self._noted_at < TALLY_S:
            return
        counted, self._counted, self._noted_at = dict(self._counted), Counter(), monotonic()
        await self._note(self._kind, {"count": sum(counted.values()), "by": counted})
