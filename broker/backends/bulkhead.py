"""At most N calls at a time to one backend, so that a slow one takes its own callers' time and nobody else's."""

from __future__ import annotations

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

    def take(self) -> bool:
        """Hold one place, to be given back by `give_back`; False when none is free now: `wait` for one."""
        try:
            self._free.acquire_nowait()
        except anyio.WouldBlock:
            return False
        return True

    def give_back(self) -> None:
        """After `take` or `wait`, whatever happened since."""
        self._free.release()

    async def wait(self, deadline: float) -> None:
        """Take a place when one comes free. Raises Unavailable, naming limit and setting, when none does in time.

        deadline: of the call, in anyio's clock. On cancel: no place is taken.
        """
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
