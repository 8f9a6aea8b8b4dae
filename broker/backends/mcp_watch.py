"""Resources of one server that somebody follows: counted, and kept subscribed over every connection to it.

Each era has its own way: a handshake-era server is sent resources/subscribe for each URI; a modern one has one listen
stream for all of them, and a new one before the old one ends whenever they change, so that nothing is missed between.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable

import anyio
from anyio.abc import TaskGroup

from broker.backends import sdk
from broker.errors import BrokerError, Overloaded, Rejected

WATCHED = 1000
ACK_S = 10.0
AGAIN_S = 5.0

Subscribe = Callable[[str, str], Awaitable[None]]
"""(method, uri); raises BrokerError."""


class Watched:
    def __init__(self, backend: str) -> None:
        self._backend = backend
        self._counts: Counter[str] = Counter()
        self._refused: dict[str, BrokerError] = {}
        self._heard: frozenset[str] = frozenset()
        self._turn = anyio.Event()

    async def add(self, uri: str) -> Callable[[], None]:
        """Follow one URI; returns, once the server knows, the way to stop. Raises BrokerError when it will not have it.

        On cancel: nobody follows it.
        """
        if len(self._counts) >= WATCHED and uri not in self._counts:
            raise Overloaded(f"Refused: {WATCHED} resources of backend {self._backend!r} are followed already.")
        self._counts[uri] += 1
        self._refused.pop(uri, None)
        self._stir()
        try:
            while uri not in self._heard:
                if error := self._refused.get(uri):
                    raise error
                await self._turn.wait()
        except BaseException:
            self._drop(uri)
            raise
        left = False

        def leave() -> None:
            nonlocal left
            if not left:
                left = True
                self._drop(uri)

        return leave

    def _drop(self, uri: str) -> None:
        self._counts[uri] -= 1
        if self._counts[uri] <= 0:
            del self._counts[uri]
            self._refused.pop(uri, None)
            self._stir()

    def _stir(self) -> None:
        self._turn.set()
        self._turn = anyio.Event()

    def has(self, uri: str) -> bool:
        return uri in self._counts

    @property
    def any(self) -> bool:
        return bool(self._counts)

    def _wanted(self) -> frozenset[str]:
        return frozenset(self._counts) - self._refused.keys()

    async def keep(self, session: sdk.Session, subscribe: Subscribe) -> None:
        """Keep this connection's server in step, until cancelled. One at a time."""
        self._heard = frozenset()
        self._refused.clear()
        try:
            async with anyio.create_task_group() as streams:
                stream: anyio.CancelScope | None = None
                while True:
                    wanted = self._wanted()
                    if wanted == self._heard:
                        await self._turn.wait()
                        continue
                    if session.is_modern:
                        stream = await self._restream(session, wanted, streams, stream)
                    else:
                        await self._resubscribe(wanted, subscribe)
                    self._stir()
        finally:
            self._heard = frozenset()

    async def _resubscribe(self, wanted: frozenset[str], subscribe: Subscribe) -> None:
        for uri in wanted - self._heard:
            try:
                await subscribe("resources/subscribe", uri)
                self._heard |= {uri}
            except BrokerError as error:
                self._refused[uri] = error
        for uri in self._heard - wanted:
            self._heard -= {uri}
            try:
                await subscribe("resources/unsubscribe", uri)
            except BrokerError:  # an update nobody follows is dropped
                continue

    async def _restream(
        self, session: sdk.Session, wanted: frozenset[str], streams: TaskGroup, before: anyio.CancelScope | None
    ) -> anyio.CancelScope | None:
        scope, known = anyio.CancelScope(), anyio.Event()
        honoured: frozenset[str] = frozenset()

        def acknowledged(uris: frozenset[str]) -> None:
            nonlocal honoured
            honoured = uris
            known.set()

        async def hear() -> None:
            with scope:
                await session.hear_updates(sorted(wanted), acknowledged)
                known.set()
                await anyio.sleep(AGAIN_S)  # it ended by itself: the server restarts, or will not have it
                if self._heard == honoured:
                    self._heard = frozenset()
                    self._stir()

        if wanted:
            streams.start_soon(hear)
            with anyio.move_on_after(ACK_S):
                await known.wait()
        if before is not None:
            before.cancel()
        for uri in wanted - honoured:
            self._refused[uri] = Rejected(f"Backend {self._backend!r} does not tell when this resource changes.")
        self._heard = honoured
        return scope if wanted else None
