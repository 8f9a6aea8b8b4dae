"""What streams of handshake-era sessions said lately, so that a client whose connection broke can ask for the rest.

One store for all sessions, bounded in events and bytes, the oldest going first; a session sees its own events only,
whatever id it names. In memory: a session lives in one process, and its streams do not outlive it.
"""

from __future__ import annotations

from collections import OrderedDict

from mcp.server.streamable_http import EventCallback, EventMessage, EventStore
from mcp_types import JSONRPCMessage

from broker.data import dataclass

EVENTS, EVENT_BYTES = 10_000, 16_777_216
RETRY_MS = 1000  # how long a client is asked to wait before it comes back


@dataclass(frozen=True, slots=True)
class _Event:
    session: EventStore
    stream: str
    message: JSONRPCMessage | None
    size_bytes: int


class Events:
    def __init__(self) -> None:
        self._kept: OrderedDict[int, _Event] = OrderedDict()
        self._last = 0
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def of_session(self) -> EventStore:
        """The events of one further session."""
        return _OfSession(self)

    def keep(self, session: EventStore, stream: str, message: JSONRPCMessage | None) -> str:
        size = len(message.model_dump_json(by_alias=True, exclude_unset=True)) if message is not None else 0
        self._last += 1
        if size <= EVENT_BYTES:
            self._kept[self._last] = _Event(session, stream, message, size)
            self.size_bytes += size
        while len(self._kept) > EVENTS or self.size_bytes > EVENT_BYTES:
            self.size_bytes -= self._kept.popitem(last=False)[1].size_bytes
        return str(self._last)

    def after(self, session: EventStore, event_id: str) -> tuple[str, list[tuple[str, JSONRPCMessage]]] | None:
        """The stream of this event and what it said later; None when the session has no such event (any more)."""
        number = int(event_id) if event_id.isascii() and event_id.isdigit() and len(event_id) < 19 else 0
        known = self._kept.get(number)
        if known is None or known.session is not session:
            return None
        later = [
            (str(place), event.message)
            for place, event in self._kept.items()
            if place > number and event.session is session and event.stream == known.stream and event.message
        ]
        return known.stream, later


class _OfSession(EventStore):
    def __init__(self, events: Events) -> None:
        self._events = events

    async def store_event(self, stream_id: str, message: JSONRPCMessage | None) -> str:
        return self._events.keep(self, stream_id, message)

    async def replay_events_after(self, last_event_id: str, send_callback: EventCallback) -> str | None:
        found = self._events.after(self, last_event_id)
        if found is None:
            return None
        stream, later = found
        for event_id, message in later:
            await send_callback(EventMessage(message, event_id))
        return stream
