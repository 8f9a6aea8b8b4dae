"""At most N calls at a time to one backend, so that a slow one takes its own callers' time and nobody else's."""

from __future__ import annotations

import math
from types import TracebackType

import anyio

from broker.errors import Unavailable


class Bulkhead:
    """backend: its name. places: how many calls at a time (`concurrent`). wait_s: how long to wait for one
    (`queue_timeout`).
    """

    def __init__(self, backend: str, *, places: int, wait_s: float) -> None:
        self._backend = backend
        self._places = places
        self._wait_s = wait_s
        self._free = anyio.Semaphore(places)

    def place(self, deadline: float = math.inf) -> _Place:
        """Hold one place for an `async with`. Raises Unavailable, naming limit and setting, when none comes free in
        time.

        deadline: of the call, in anyio's clock. On cancel: no place is taken.
        """
        return _Place(self, deadline)

    def take(self) -> bool:
        """As `place`, to be given back by `give_back`; False when no place is free now: `wait` for one."""
        try:
            self._free.acquire_nowait()
        except anyio.WouldBlock:
            return False
        return True

    def give_back(self) -> None:
        """After `take` or `wait`, whatever happened since."""
        self._free.release()

    async def wait(self, deadline: float) -> None:
        """Take a place when one comes free. Raises and is cancelled as `place` is."""
        try:
            with anyio.fail_after(min(self._wait_s, deadline - anyio.current_time())):
                await self._free.acquire()
        except TimeoutError:
            raise Unavailable(
                f"Backend {self._backend!r} is busy: {self._places} calls are under way (its limit `concurrent`) and "
                f"none ended within {self._wait_s:g} s (its `queue_timeout`). Nothing was sent.",
                next_step="Try again shortly.",
                limit="concurrent",
            ) from None

    async def drain(self) -> None:
        """Wait until no call is under way, and let no other in."""
        for _ in range(self._places):
            await self._free.acquire()


class _Place:
    """A class and not a generator: every call comes through here, and nearly always there is a free place."""

    __slots__ = ("_bulkhead", "_deadline")

    def __init__(self, bulkhead: Bulkhead, deadline: float) -> None:
        self._bulkhead = bulkhead
        self._deadline = deadline

    async def __aenter__(self) -> None:
        if not self._bulkhead.take():
            await self._bulkhead.wait(self._deadline)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bulkhead.give_back()
