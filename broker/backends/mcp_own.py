"""Connections that belong to one agent: for calls during which a server of a handshake era may ask or log.

What such a server may ask is declared when a connection begins, and what it says belongs to the connection; so an agent
that can be asked has one of its own, and never hears what another's call caused. Everything else shares one.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

from anyio.abc import TaskGroup

from broker.backends.mcp_link import Link
from broker.errors import Overloaded
from broker.model.back import AgentSession


class Own:
    """make: builds a link that declares these capabilities. most: links at once (`sessions`); beyond it the one unused
    for longest is ended, and when all are in use there is no further one.
    """

    def __init__(self, backend: str, make: Callable[[Mapping[str, Any]], Link], tasks: TaskGroup, *, most: int) -> None:
        self._backend = backend
        self._make = make
        self._tasks = tasks
        self._most = most
        self._links: dict[Hashable, Link] = {}  # the one used last at the end

    def __len__(self) -> int:
        return len(self._links)

    def link(self, of: Hashable, declared: Mapping[str, Any], session: AgentSession | None) -> Link:
        """The link of this agent, begun when there is none. Raises Overloaded."""
        link = self._links.pop(of, None)
        if link is None:
            self._make_room()
            link = self._make(declared)
            self._tasks.start_soon(link.run)
            if session is not None:
                session.holders.add(self)
        self._links[of] = link
        return link

    def drop(self, of: Hashable) -> None:
        """End it, in the background. Unknown ones are none."""
        if link := self._links.pop(of, None):
            self._tasks.start_soon(link.stop)

    def ended(self, session: AgentSession) -> None:
        """See Holder."""
        self.drop(session)

    def roots_changed(self, session: AgentSession) -> None:
        """See Holder."""
        if link := self._links.get(session):
            link.roots_changed()

    def _make_room(self) -> None:
        if len(self._links) < self._most:
            return
        unused = next((of for of, link in self._links.items() if link.is_idle), None)
        if unused is None:
            raise Overloaded(
                f"Refused: {self._most} agents have a session with backend {self._backend!r} (its limit `sessions`), "
                "all of them in use. Nothing was sent.",
                next_step="Try again shortly.",
                limit="sessions",
            )
        self.drop(unused)

    async def aclose(self) -> None:
        links, self._links = list(self._links.values()), {}
        for link in links:
            await link.stop()
