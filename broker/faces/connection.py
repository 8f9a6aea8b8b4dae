"""One HTTP connection: uvicorn's, with the deadlines and caps it does not have.

A connection that has sent no whole head, or no whole body, in time is answered 408 and closed; so is one that does not
read what it is sent. When all places are taken, the connection that has kept its place longest without a request being
worked on gives it up, so that thousands of half-open or idle ones cannot keep an honest client out. A head has a
longest length. Whoever is turned away is told the limit by the name it has in the settings.

Why here: before the head is complete no ASGI application is called, so nothing behind could do it. Why by subclassing:
the methods used are those of `asyncio.Protocol` and of the httptools parser, which uvicorn implements by those names.

What must not live here: anything that looks into a request.
"""

from __future__ import annotations

from asyncio import TimerHandle, Transport
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

if TYPE_CHECKING:
    from broker.settings import Limits

# ASGI extension under which a request finds its `Hangup`.
HANGUP = "broker.hangup"

# What a connection that is turned away is told, by the limit it met.
_TOLD: Mapping[str, tuple[bytes, bytes]] = {
    "connections": (b"503 Service Unavailable", b"all connections are taken"),
    "header_s": (b"408 Request Timeout", b"the headers did not come in time"),
    "body_s": (b"408 Request Timeout", b"the body did not come in time"),
    "header_bytes": (b"431 Request Header Fields Too Large", b"the headers are too long"),
}


class Hangup:
    """Tells the request being worked on that its client went away, without a task per request."""

    __slots__ = ("gone", "notify")

    def __init__(self) -> None:
        self.gone = False
        self.notify: Callable[[], None] | None = None

    def tell(self) -> None:
        self.gone = True
        if self.notify is not None:
            self.notify()


def protocol_class(limits: Limits) -> type[HttpToolsProtocol]:
    """The protocol for one server: its connections share one queue of those that nothing is being done for."""
    waiting: dict[Connection, None] = {}  # oldest first

    class Bound(Connection):
        def __init__(self, *args: Any, **named: Any) -> None:
            super().__init__(*args, **named)
            self.bind(limits, waiting)

    return Bound


class Connection(HttpToolsProtocol):
    def bind(self, limits: Limits, waiting: dict[Connection, None]) -> None:
        self._limits = limits
        self._waiting = waiting
        self._hangup = Hangup()
        self._timer: TimerHandle | None = None
        self._drain_timer: TimerHandle | None = None
        self._head_bytes = 0  # read while the head was not whole
        self._line_bytes = 0  # of the header lines themselves
        self._in_head = True

    # ------------------------------------------------------------------------------------------- asyncio.Protocol

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._limits.connections and not self._make_room():
            transport.write(_refusal("connections"))
            transport.close()
            return
        self._waiting[self] = None
        self._arm(self._limits.header_s, "header_s")

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        # Still no whole head after all these bytes; a head that came complete was counted line by line.
        if self._in_head and self._head_bytes > self._limits.header_bytes:
            self._close("header_bytes")

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self._waiting.pop(self, None)
        if self._drain_timer is not None:
            self._drain_timer.cancel()
            self._drain_timer = None
        super().connection_lost(exc)
        self._unset_keepalive_if_required()  # uvicorn lets a reset connection wait for its end, and with it all it held
        self._hangup.tell()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._drain_timer = self.loop.call_later(self._limits.body_s, self.transport.abort)

    def resume_writing(self) -> None:
        if self._drain_timer is not None:
            self._drain_timer.cancel()
            self._drain_timer = None
        super().resume_writing()

    # ------------------------------------------------------------------------------------------------ httptools

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._line_bytes = True, 0
        self.scope["extensions"] = {HANGUP: self._hangup}  # type: ignore[typeddict-item]
        if self._timer is None:  # a further request on a kept connection
            self._waiting[self] = None
            self._arm(self._limits.header_s, "header_s")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._line_bytes += len(name) + len(value)
        if self._line_bytes > self._limits.header_bytes:
            raise ValueError("too many header bytes")  # httptools turns it into a parser error
        # White space around a value is no part of it (RFC 9110 section 5.5); httptools leaves what comes after it.
        super().on_header(name, value.rstrip(b" \t"))

    def on_headers_complete(self) -> None:
        self._in_head, self._head_bytes = False, 0
        self._waiting.pop(self, None)
        self._arm(self._limits.body_s, "body_s")
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._disarm()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle is not None and self.cycle.response_complete:  # pyright: ignore[reportUnnecessaryComparison]
            self._waiting[self] = None

    def send_400_response(self, msg: str) -> None:
        """For what the parser refuses, its callbacks included."""
        if self._line_bytes > self._limits.header_bytes:
            self._close("header_bytes")
        else:
            super().send_400_response(msg)

    # ------------------------------------------------------------------------------------------------- deadlines

    def _arm(self, seconds: float, limit: str) -> None:
        self._disarm()
        self._timer = self.loop.call_later(seconds, self._close, limit)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close(self, limit: str) -> None:
        """Tell the limit, where no answer has begun, and close."""
        self._disarm()
        if self.transport.is_closing():
            return
        if self._in_head or (self.cycle is not None and not self.cycle.response_started):  # type: ignore[redundant-expr]
            self.transport.write(_refusal(limit))
        self.transport.close()

    def _make_room(self) -> bool:
        """Close the connection for which nothing has been done longest; False when all are at work."""
        oldest = next(iter(self._waiting), None)
        if oldest is None:
            return False
        self._waiting.pop(oldest)
        oldest._close("connections")  # noqa: SLF001 – of this very class
        return True


def _refusal(limit: str) -> bytes:
    status, why = _TOLD[limit]
    body = b'{"error":"Refused: %s (limit: %s)."}' % (why, limit.encode())
    return (
        b"HTTP/1.1 %s\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
        % (status, len(body), body)
    )  # fmt: skip
