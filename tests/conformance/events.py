"""What a stream of a handshake-era session said, kept so that a client which lost it can ask for the rest."""

from __future__ import annotations

from mcp.server.streamable_http import EventCallback, EventMessage, EventStore
from mcp_types import JSONRPCMessage

MOST = 10_000


class Events(EventStore):
    """In memory, of all streams in one row. The id of an event is its place in it, so order is one comparison."""

    def __init__(self) -> None:
        self._row: list[tuple[str, JSONRPCMessage | None]] = []

    async def store_event(self, stream_id: str, message: JSONRPCMessage | None) -> str:
        if len(self._row) >= MOST:
            raise RuntimeError("this server is for one test run")
        self._row.append((stream_id, message))
        return str(len(self._row) - 1)

    async def replay_events_after(self, last_event_id: str, send_callback: EventCallback) -> str | None:
        if not last_event_id.isdigit() or int(last_event_id) >= len(self._row):
            return None
        place = int(last_event_id)
        stream = self._row[place][0]
        for later, (stream_id, message) in enumerate(self._row[place + 1 :], place + 1):
            if stream_id == stream and message is not None:
                await send_callback(EventMessage(message, str(later)))
        return stream
