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
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from broker.faces.line import ANSWER, HANGUP, PIECE, UNASKED, Hangup, Line, Shortcut

if TYPE_CHECKING:
    from broker.settings import Limits

# What a connection that is turned away is told, by the limit it met.
_TOLD: Mapping[str, tuple[bytes, bytes]] = {
    "connections": (b"503 Service Unavailable", b"all connections are taken"),
    "header_s": (b"408 Request Timeout", b"the headers did not come in time"),
    "body_s": (b"408 Request Timeout", b"the body did not come in time"),
    "header_bytes": (b"431 Request Header Fields Too Large", b"the headers are too long"),
}

_BODIED = (b"content-length", b"transfer-encoding")
_UPGRADE = "Refused: a body cannot follow an upgrade to another protocol. Send it without the Upgrade header."


def protocol_class(limits: Limits, shortcut: Shortcut) -> type[HttpToolsProtocol]:
    """The protocol for one server: its connections share one queue of those that nothing is being done for."""
    waiting: dict[Connection, None] = {}  # oldest first

    class Bound(Connection):
        def __init__(self, *args: Any, **named: Any) -> None:
            super().__init__(*args, **named)
            self.bind(limits, waiting, shortcut)

    return Bound


class Connection(HttpToolsProtocol):
    def bind(self, limits: Limits, waiting: dict[Connection, None], shortcut: Shortcut) -> None:
        self._limits = limits
        self._waiting = waiting
        self._shortcut = shortcut
        self._unfed = True  # the parser has seen nothing yet
        self._piece = b""  # that the parser is at, when the request in it came on a connection at rest
        self._held = b""  # the beginning of a request that takes the shortcut when it is whole
        self._hangup = Hangup()
        self._line: Line | None = None
        self._timer: TimerHandle | None = None  # of what is due
        self._due = ""  # the limit that counts: header_s, body_s, or none
        self._changes = self._armed_at = 0  # how often that changed, and when the timer was last set
        self._idle_from = 0.0
        self._drain_timer: TimerHandle | None = None
        self._head_bytes = 0  # read while the head was not whole
        self._line_bytes = 0  # of the header lines themselves
        self._in_head = True
        self._upgrades = False  # asks for another protocol, which nobody speaks here

    # ------------------------------------------------------------------------------------------- asyncio.Protocol

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._limits.connections and not self._make_room():
            transport.write(_refusal("connections"))
            transport.close()
            return
        self._waiting[self] = None
        self._is_due("header_s")
        self._keep_time()

    def data_received(self, data: bytes) -> None:
        cycle: Any = self.cycle
        # Nothing is under way, and the parser in the middle of nothing.
        at_rest = (self._unfed or not self._due) and (cycle is None or (cycle.response_complete and not self.pipeline))
        if at_rest or self._held:
            data = self._let_go() + data if self._held else data
            way = self._shortcut(data, self.server)
            if isinstance(way, int):
                if self._shortcut.hold(len(data)):
                    self._hold(data)
                    return
            elif way is not None:
                self._take(way)
                return
            self._piece = data
        if self._in_head:
            self._head_bytes += len(data)
        self._unfed = False
        super().data_received(data)
        self._piece = b""
        self._keep_time()
        # Still no whole head after all these bytes; a head that came complete was counted line by line.
        if self._in_head and self._head_bytes > self._limits.header_bytes:
            self._close("header_bytes")

    def _hold(self, data: bytes) -> None:
        """Wait for the rest of a body, within its time."""
        self._held = data
        if self._due != "body_s":
            self._waiting.pop(self, None)
            self._is_due("body_s")
            self._keep_time()

    def _let_go(self) -> bytes:
        held, self._held = self._held, b""
        self._shortcut.let_go(len(held))
        return held

    def _take(self, taken: object) -> None:
        """Begin a request whose head and body are read already."""
        self._waiting.pop(self, None)
        if self._due:
            self._is_due("")
            self._disarm()
        line = self._line
        if line is None:
            line = self._line = Line(self._hangup, self.loop, broke=self.broke, usual=self.as_usual)
            line.answer = partial(self.answer, line)
            line.task = self.loop.create_task(self._shortcut.work(line, taken))
            self.tasks.add(line.task)  # which ends when the connection does, and what it is at then
            line.task.add_done_callback(self.tasks.discard)
        else:
            line.take(taken)
        self.cycle = line  # type: ignore[assignment]

    def broke(self, line: Line, fault: BaseException) -> None:
        """As uvicorn ends a request: a fault of ours is logged, and whoever has no answer yet is told 500."""
        self.logger.error("Exception in ASGI application", exc_info=fault)
        if not self.transport.is_closing():
            if not line.response_started:
                self.transport.write(_response(b"500 Internal Server Error", b'{"error":"the broker failed"}'))
            self.transport.close()

    def as_usual(self, line: Line) -> RequestResponseCycle:
        """uvicorn's own cycle for the request of this line, to answer in more than one write, or to close after it."""
        cycle = RequestResponseCycle(
            scope={"type": "http", "method": "POST", "path": "/mcp", "extensions": {}},  # type: ignore[typeddict-item]
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=UNASKED,
            expect_100_continue=False,
            keep_alive=line.keep_alive,
            on_response=self.on_response_complete,
        )
        line.response_started = True
        line.end()
        cycle.disconnected = line.disconnected
        if self._line is line:
            self._line = None
        if self.cycle is line:  # pyright: ignore[reportUnnecessaryComparison]  # as `_take` has it
            self.cycle = cycle
        return cycle

    def connection_lost(self, exc: Exception | None) -> None:
        self._let_go()
        self._disarm()
        self._waiting.pop(self, None)
        if self._drain_timer is not None:
            self._drain_timer.cancel()
            self._drain_timer = None
        super().connection_lost(exc)
        if self.timeout_keep_alive_task is not None:  # or a reset connection waits for its end, and with it all it held
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None
        self._hangup.tell()
        # What knows one another would wait for the collector, which seldom looks.
        cycle: Any = self.cycle
        if cycle and cycle is not self._line:
            cycle.scope["extensions"].pop(ANSWER, None)
        if self._line is not None:
            self._line.disconnected = True
            self._line.end()
        self.cycle = self.scope = self._line = None  # type: ignore[assignment]

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
        if not self._due:  # a further request on a kept connection
            self._waiting[self] = None
            self._is_due("header_s")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._line_bytes += len(name) + len(value)
        if self._line_bytes > self._limits.header_bytes:
            raise ValueError("too many header bytes")  # httptools turns it into a parser error
        if not self._in_head:
            return  # a trailer: nobody in front has seen it, and it comes before or after the request is looked at
        # White space around a value is no part of it (RFC 9110 section 5.5); httptools leaves what comes after it.
        name, value = name.lower(), value.rstrip(b" \t")
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._in_head, self._head_bytes = False, 0
        self._waiting.pop(self, None)
        self._is_due("body_s")
        extensions: dict[Any, Any] = {HANGUP: self._hangup, PIECE: self._piece}
        self._piece = b""  # a second request in it is none that came at rest
        self.scope["extensions"] = extensions  # type: ignore[typeddict-item]
        if not self.url.startswith(b"/"):
            self._be_called()
        parser: Any = self.parser
        self._upgrades = parser.should_upgrade()
        if self._upgrades and any(name in _BODIED and value != b"0" for name, value in self.headers):
            raise ValueError(_UPGRADE)  # its body would be taken for the beginning of the other protocol
        super().on_headers_complete()
        if self._upgrades:
            self.cycle.keep_alive = False
        extensions[ANSWER] = partial(self.answer, self.cycle)

    def _be_called(self) -> None:
        """By what a target in absolute form names, whatever the Host header says (RFC 9112 section 3.2.2)."""
        _, absolute, rest = self.url.partition(b"://")
        if absolute:
            self.headers[:] = [line for line in self.headers if line[0] != b"host"]
            self.headers.append((b"host", rest.split(b"/")[0].split(b"?")[0]))

    def on_message_complete(self) -> None:
        self._is_due("")
        super().on_message_complete()

    # ---------------------------------------------------------------------------------------------------- responses

    def answer(self, cycle: RequestResponseCycle | Line, head: bytes, body: bytes) -> bool:
        """Send a whole response of status 200: one write, and no judging of headers that are our own.

        head: further header lines. False when it has to go the usual way: something of it is sent, the client does not
        read, or the connection is to be closed.
        """
        if cycle.response_started or cycle.disconnected or self.flow.write_paused or not cycle.keep_alive:
            return False
        cycle.response_started = cycle.response_complete = True
        of, lines = _lines
        headers = self.server_state.default_headers
        self.transport.write(
            b"HTTP/1.1 200 OK\r\n%s%scontent-length: %d\r\n\r\n%s"
            % (lines if of is headers else _default_lines(headers), head, len(body), body)
        )
        if isinstance(cycle, RequestResponseCycle):
            cycle.message_event.set()
            cycle.scope["extensions"].pop(ANSWER, None)  # type: ignore[typeddict-item]
        self.on_response_complete()
        return True

    def on_response_complete(self) -> None:
        """As uvicorn does it, but the timer that ends idle connections is left to run: setting and cancelling one for
        each request costs more than looking again when it goes off."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self.flow.read_paused:
            self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
        else:
            self._idle_from = self.loop.time()
            if self.timeout_keep_alive_task is None:
                self._look_after(self.timeout_keep_alive)
        if self.cycle is not None and self.cycle.response_complete:  # pyright: ignore[reportUnnecessaryComparison]
            self._waiting[self] = None

    def _unset_keepalive_if_required(self) -> None:
        """Left to run, see above."""

    def _look_after(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def timeout_keep_alive_handler(self) -> None:
        self.timeout_keep_alive_task = None
        if self._due or not self.cycle.response_complete:
            return  # at work; when it is done the timer is set again
        left_s = self._idle_from + self.timeout_keep_alive - self.loop.time()
        if left_s > 0:
            self._look_after(left_s)
        else:
            super().timeout_keep_alive_handler()

    def send_400_response(self, msg: str) -> None:
        """For what the parser refuses, its callbacks included."""
        if self._line_bytes > self._limits.header_bytes:
            self._close("header_bytes")
        else:
            super().send_400_response(_UPGRADE if self._upgrades else msg)

    # ------------------------------------------------------------------------------------------------- deadlines

    def _is_due(self, limit: str) -> None:
        self._due = limit
        self._changes += 1

    def _keep_time(self) -> None:
        """Set the timer of what is due now. A request that comes in one piece, as most do, never needs one."""
        if not self._due:
            self._disarm()
        elif self._armed_at != self._changes:
            self._disarm()
            self._armed_at = self._changes
            self._timer = self.loop.call_later(getattr(self._limits, self._due), self._close, self._due)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close(self, limit: str) -> None:
        """Tell the limit, where no answer has begun, and close."""
        self._disarm()
        if self.transport.is_closing():
            return
        unanswered = self.cycle is not None and not self.cycle.response_started  # type: ignore[redundant-expr]
        if self._in_head or self._held or unanswered:
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


_lines: tuple[Any, bytes] = (None, b"")


def _default_lines(headers: list[tuple[bytes, bytes]]) -> bytes:
    """uvicorn's own header lines (the date), which it makes anew every second."""
    global _lines  # noqa: PLW0603 – a memory of one
    if _lines[0] is not headers:
        _lines = (headers, b"".join([b"%s: %s\r\n" % line for line in headers]))
    return _lines[1]


def _refusal(limit: str) -> bytes:
    status, why = _TOLD[limit]
    return _response(status, b'{"error":"Refused: %s (limit: %s)."}' % (why, limit.encode()))


def _response(status: bytes, body: bytes) -> bytes:
    """After which the connection is closed."""
    return (
        b"HTTP/1.1 %s\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
        % (status, len(body), body)
    )  # fmt: skip
