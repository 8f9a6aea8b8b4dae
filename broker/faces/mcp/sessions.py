"""Who is told when tools, resources or prompts change: handshake-era sessions on any transport, and
`subscriptions/listen` streams.

Each is told only when its own list has changed since it was last shown: the list of others is not its business, and a
reload that changes nothing for it costs it nothing. Announcements are gathered, so a burst of reloads is one message.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, Protocol

import anyio

from broker.catalog.catalog import PartsListed
from broker.data import dataclass, field
from broker.faces.mcp.ports import Pipeline
from broker.model.call import Call
from broker.model.principal import Principal

if TYPE_CHECKING:
    from collections.abc import Generator

TELL_WITHIN_S = 5.0

Listing = tuple[Mapping[str, Any], ...]
Changing = Literal["tools", "resources", "prompts"]


class Member(Protocol):
    """A handshake-era connection (`mcp.server.connection.Connection`)."""

    async def send_tool_list_changed(self) -> None: ...

    async def send_resource_list_changed(self) -> None: ...

    async def send_prompt_list_changed(self) -> None: ...

    async def send_resource_updated(self, uri: str) -> None: ...


@dataclass(slots=True, eq=False)
class Shown:
    """What one listener was last shown, and whether it has to be told of a change, or of the end. news: of what."""

    principal: Principal
    listing: Listing
    parts: PartsListed
    changed: anyio.Event
    ending: bool = False
    news: set[Changing] = field(default_factory=set[Changing])
    follows: dict[str, Callable[[], None]] = field(default_factory=dict[str, "Callable[[], None]"])  # URI: how to stop
    updated: set[str] = field(default_factory=set[str])

    def keep(self, uri: str, call: Call) -> None:
        """From now on it is told of the resource this call was about; twice is once."""
        self.unfollow(uri)
        if call.release is not None:
            self.follows[uri] = call.release

    def unfollow(self, uri: str) -> None:
        if release := self.follows.pop(uri, None):
            release()

    def leave(self) -> None:
        for uri in tuple(self.follows):
            self.unfollow(uri)


class Audience:
    """most: listen streams open at once."""

    def __init__(self, pipeline: Pipeline, *, most: int) -> None:
        self._pipeline = pipeline
        self._most = most
        self._members: dict[Member, Shown] = {}
        self._streams: set[Shown] = set()
        self._news = anyio.Event()
        self._ending = False

    def __len__(self) -> int:
        return len(self._members) + len(self._streams)

    def join(self, member: Member, principal: Principal) -> None:
        """A handshake-era session is initialised and may be notified from now on."""
        self._members[member] = self._shown(principal)

    def leave(self, member: Member) -> None:
        if shown := self._members.pop(member, None):
            shown.leave()

    def member(self, member: Member) -> Shown | None:
        return self._members.get(member)

    def was_shown(self, member: Member, principal: Principal, listing: Listing) -> None:
        """A session has just been given its list, perhaps with another token than before."""
        shown = self._members.get(member)
        if shown is not None:
            shown.principal, shown.listing = principal, listing

    def was_shown_parts(self, member: Member, principal: Principal, parts: PartsListed) -> None:
        """The same for its resources, templates or prompts."""
        shown = self._members.get(member)
        if shown is not None:
            shown.principal, shown.parts = principal, parts

    @contextmanager
    def listening(self, principal: Principal) -> Generator[Shown | None]:
        """One listen stream for as long as it is open; None when there are too many."""
        if len(self._streams) >= self._most:
            yield None
            return
        shown = self._shown(principal)
        shown.ending = self._ending
        self._streams.add(shown)
        try:
            yield shown
        finally:
            self._streams.discard(shown)
            shown.leave()

    def announce(self) -> None:
        """The catalog may have changed. Returns at once; `announcing` tells whom it concerns."""
        self._news.set()

    def updated(self, backend: str, natural: str) -> None:
        """A resource changed at its server. Returns at once; whoever follows it, and still may, is told soon."""
        for shown in (*self._members.values(), *self._streams):
            for uri in shown.follows:
                if self._pipeline.is_told(uri, shown.principal, backend, natural):
                    shown.updated.add(uri)
                    self._news.set()

    def end(self) -> None:
        """Let listen streams end in good order."""
        self._ending = True
        for shown in self._streams:
            shown.ending = True
            shown.changed.set()

    async def announcing(self) -> None:
        """Pass on announcements, for ever. Runs in one task per broker."""
        while True:
            await self._news.wait()
            self._news = anyio.Event()
            for shown in list(self._streams):
                if news := self._news_for(shown):
                    shown.news |= news
                    shown.changed.set()
                if shown.updated:
                    shown.changed.set()
            async with anyio.create_task_group() as telling:
                for member, shown in list(self._members.items()):
                    news, updated = self._news_for(shown), shown.updated
                    shown.updated = set()
                    if news or updated:
                        telling.start_soon(_tell, member, news, updated)

    def _shown(self, principal: Principal) -> Shown:
        return Shown(principal, self._pipeline.listing(principal), self._pipeline.parts(principal), anyio.Event())

    def _news_for(self, shown: Shown) -> set[Changing]:
        """Which of its lists differ from what it was last shown; from now on it counts as told."""
        news: set[Changing] = set()
        listing, parts, known = (
            self._pipeline.listing(shown.principal),
            self._pipeline.parts(shown.principal),
            shown.parts,
        )
        if listing is not shown.listing and listing != shown.listing:
            news.add("tools")
        if parts is not known:
            if (parts.resources, parts.templates) != (known.resources, known.templates):
                news.add("resources")
            if parts.prompts != known.prompts:
                news.add("prompts")
        shown.listing, shown.parts = listing, parts
        return news


async def _tell(member: Member, news: set[Changing], updated: set[str]) -> None:
    with anyio.move_on_after(TELL_WITHIN_S):  # a client that does not read must not delay the others for long
        if "tools" in news:
            await member.send_tool_list_changed()
        if "resources" in news:
            await member.send_resource_list_changed()
        if "prompts" in news:
            await member.send_prompt_list_changed()
        for uri in sorted(updated):
            await member.send_resource_updated(uri)
