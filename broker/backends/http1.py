"""One HTTP/1.1 connection as a client: a request out, its answer in, parsed in C, judged here.

    idle ──send──> head ──(1xx: again)──> body ──> done ──rest──> idle
      └──(bytes nobody asked for, the peer's end)───┴──────────> dead

The parser reads the grammar (RFC 9112); what it lets through and we do not is judged where it appears: both framings at
once, a length twice, a transfer coding other than chunked, a switch of protocols, headers or chunk framing without
measure. What is left over after an answer, or comes while nothing was asked, ends the connection, because nobody can
say whose answer it is.

A server says nearly the same with each answer. When an answer has come whole in one piece, its head and what the parser
and we made of it are kept (`Heads`); the next one that begins with those very bytes, and has exactly as many after them
as they announce, is not parsed again.

Why an `asyncio.Protocol` and not a stream: the usual answer comes in one piece, and with a protocol it is one callback
and one wake-up. Body bytes wait here until they are taken; with more than HELD_BYTES of them the socket is not read.

What must not live here: addresses, deadlines, decompression, what a status means.
"""

from __future__ import annotations

import asyncio
import select
from typing import Literal, NamedTuple, cast

import httptools

HEAD_BYTES = 65_536  # status line and headers, interim answers included
HEAD_LINES = 256
HELD_BYTES = 262_144
FRAMING_RATIO = 16  # chunk sizes, extensions and trailers: so many times the bytes they frame, beyond HEAD_BYTES

KEPT_HEADS, KEPT_HEAD_BYTES = 64, 2048

State = Literal["idle", "head", "body", "done", "dead"]
_BODILESS = (204, 304)  # RFC 9112 section 6.3: whatever their headers say


class Fault(Exception):
    """No answer, or no whole one. kind: lost (the connection ended), garbled (it is not HTTP), late (the deadline)."""

    def __init__(self, kind: Literal["lost", "garbled", "late"], reason: str) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason


class _Head(NamedTuple):
    """What came of a head that announced its length, on a connection that can carry another request."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body_bytes: int


class Heads:
    """Heads that have come before, byte for byte; of one server. Made for each `Upstream`."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[bytes, _Head] = {}

    def find(self, data: bytes) -> tuple[_Head, int] | None:
        """What is known of the head these bytes begin with, and where the body begins; None unless all of it is here
        and nothing else is."""
        begin = data.find(b"\r\n\r\n") + 4
        known = self._known.get(data[:begin])
        return (known, begin) if known is not None and len(data) - begin == known.body_bytes else None

    def keep(self, data: bytes, status: int, headers: list[tuple[bytes, bytes]], body_bytes: int) -> None:
        """data: a whole answer that was found right."""
        begin = len(data) - body_bytes
        if begin > KEPT_HEAD_BYTES or data.find(b"\r\n\r\n") + 4 != begin:  # interim answers come before it
            return
        if len(self._known) >= KEPT_HEADS:
            self._known.clear()
        self._known[data[:begin]] = _Head(status, headers, body_bytes)


class Http1(asyncio.Protocol):
    """status, headers: of the answer, once its head is here; names in lower case. heard: whether a byte of an answer to
    the last request came. idle_at: loop time at which it last became idle; keep_s: how long the peer keeps it then.
    """

    __slots__ = (
        "_chunked", "_deadline", "_framing", "_given", "_heads", "_held", "_loop", "_no_body", "_parser", "_paused",
        "_pieces", "_reusable", "_state", "_timer", "_transport", "_until_close", "_waiter", "_with_length", "fault",
        "headers", "heard", "idle_at", "keep_s", "status",
    )  # fmt: skip

    def __init__(self, loop: asyncio.AbstractEventLoop, keep_s: float, heads: Heads) -> None:
        self._loop = loop
        self._heads = heads
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._state: State = "idle"
        self.fault: Fault | None = None
        self._reusable = True
        self._paused = False
        self.keep_s = keep_s
        self.idle_at = 0.0
        self._deadline: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.heard = self._no_body = self._chunked = self._with_length = self._until_close = False
        self._pieces: list[bytes] = []
        self._held = self._given = self._framing = 0

    # ----------------------------------------------------------------------------------------------------- the request

    @property
    def is_open(self) -> bool:
        """Whether a request may be sent."""
        return self._state == "idle" and self._transport is not None and not self._transport.is_closing()

    def has_news(self) -> bool:
        """Whether something lies in the socket of an idle connection that the loop has not got round to: its end."""
        socket = self._transport and self._transport.get_extra_info("socket")
        if not socket or not hasattr(select, "poll"):
            return False
        poll = select.poll()
        poll.register(socket.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def send(self, request: bytes, *, no_body: bool) -> asyncio.Future[None]:
        """Send one whole request on an open connection; await what it returns for status and headers, which may raise
        Fault. no_body: its answer has none whatever it says (HEAD)."""
        assert self._transport is not None  # noqa: S101 – `is_open`
        self.status = 0
        self.headers = []
        self.heard = self._chunked = self._with_length = self._until_close = False
        self._no_body = no_body
        self._pieces = []
        self._held = self._given = self._framing = 0
        self._state = "head"
        self._waiter = waiter = self._loop.create_future()
        self._transport.write(request)
        return waiter

    async def take(self) -> list[bytes]:
        """The body bytes that are there, in order; waits for some; none at the end. Raises Fault."""
        while not self._pieces and self._state == "body":
            self._waiter = self._loop.create_future()
            await self._waiter
        if self.fault is not None:
            raise self.fault
        pieces, self._pieces, self._held = self._pieces, [], 0
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return pieces

    def whole(self) -> bytes | None:
        """What is left of the body, when the whole answer is here; None when it is not."""
        if self._state != "done" or self.fault is not None:
            return None
        pieces, self._pieces, self._held = self._pieces, [], 0
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    @property
    def _is_done(self) -> bool:
        return self._state == "done"

    def rest(self) -> bool:
        """After a whole answer: become idle. False when the connection cannot carry another request; it is ended."""
        transport = self._transport
        if self._state != "done" or not self._reusable or transport is None or transport.is_closing():
            self.abort()
            return False
        if transport.get_write_buffer_size():  # it answered before it had read the request
            self.abort()
            return False
        if self._paused:
            self._paused = False
            transport.resume_reading()
        self._state = "idle"
        self._deadline = None
        self.idle_at = self._loop.time()
        return True

    def keep_until(self, deadline: float) -> None:
        """By when, in the loop's time, the request that is sent next has to be answered whole. The timer of an earlier
        request is left to run and looks again when it goes off, because setting and cancelling one costs each call
        more."""
        self._deadline = deadline
        if self._timer is None or self._timer.when() > deadline:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(deadline, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._deadline is None or self._state == "dead":
            return
        if self._loop.time() < self._deadline:
            self._timer = self._loop.call_at(self._deadline, self._look)
        else:
            self._fail("late", "it did not answer in time")

    def abort(self) -> None:
        """End the connection at once."""
        if self._state != "dead":
            self._fail("lost", "the connection was ended")

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is None or waiter.done():
            return
        if self.fault is None:
            waiter.set_result(None)
        else:
            waiter.set_exception(self.fault)

    def _fail(self, kind: Literal["lost", "garbled", "late"], reason: str) -> None:
        if self._state != "dead":
            self._state = "dead"
            self.fault = Fault(kind, reason)
            self._wake()
        if self._transport is not None:
            self._transport.abort()

    # ---------------------------------------------------------------------------------------------------- the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own class does not inherit it

    def data_received(self, data: bytes) -> None:
        if self._state not in ("head", "body"):
            self._surplus()
            return
        is_first = not self.heard and not self._no_body
        self.heard = True
        if is_first and (found := self._heads.find(data)) is not None:
            head, begin = found
            self.status, self.headers = head.status, head.headers
            self._pieces = [data[begin:]] if head.body_bytes else []
            self._state = "done"
            self._wake()
            return
        given = self._given
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._misread(error)
            return
        self._framing += len(data) - (self._given - given)
        if self._framing > HEAD_BYTES + FRAMING_RATIO * self._given:
            self._fail("garbled", f"its headers or its chunk framing are larger than {HEAD_BYTES} bytes")
        elif is_first and self._is_done and self._reusable and self._with_length:
            self._heads.keep(data, self.status, self.headers, self._given)

    def _misread(self, error: Exception) -> None:
        if self._state == "done":
            self._reusable = False  # what follows the answer is not HTTP
        else:
            judged = error.__context__
            self._fail("garbled", str(judged) if isinstance(judged, _BadError) else "what it sent is not HTTP")

    def _surplus(self) -> None:
        if self._state == "done":
            self._reusable = False
        else:
            self.abort()

    def eof_received(self) -> None:
        self._ended(clean=True)

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended(clean=exc is None)
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        # The parser holds our bound methods, and a cycle through C waits for the collector.
        del self._parser

    def _ended(self, *, clean: bool) -> None:
        self._reusable = False
        if self._state == "body" and self._until_close and clean:
            self._state = "done"
            self._wake()
        elif self._state != "done":
            self._fail("lost", "the connection ended before an answer" if self._state == "head" else "it ended early")

    # ------------------------------------------------------------------------------------------------------- the parser

    def on_message_begin(self) -> None:
        if self._state != "head":
            self._surplus()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._state != "head":
            return  # trailers: nothing here needs them
        name = name.lower()
        if name == b"content-length":
            if self._with_length or not value.strip().isdigit():
                raise _BadError("its Content-Length is there twice or is no number")
            self._with_length = True
        elif name == b"transfer-encoding":
            if self._chunked or value.strip().lower() != b"chunked":
                raise _BadError("its Transfer-Encoding is not chunked")
            self._chunked = True
        if len(self.headers) >= HEAD_LINES:
            raise _BadError(f"it has more than {HEAD_LINES} headers")
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self._state != "head":
            return
        self.status = status = self._parser.get_status_code()
        version = self._parser.get_http_version()
        if version not in ("1.1", "1.0"):
            raise _BadError("it is not HTTP/1.1")
        if self._chunked and (self._with_length or version == "1.0"):
            raise _BadError("its Transfer-Encoding contradicts its Content-Length or its version")
        if status < 200:
            if status == 101:
                raise _BadError("it switches to a protocol nobody asked for")
            return
        if not self._parser.should_keep_alive():
            self._reusable = False
        if self._no_body or status in _BODILESS:
            # The parser does not know about HEAD; a bodiless answer that announces a body may even send one.
            self._reusable = self._reusable and not (self._chunked or self._announces_bytes())
            self._state = "done"
        else:
            self._until_close = not (self._chunked or self._with_length)
            self._state = "body"
        self._wake()

    def _announces_bytes(self) -> bool:
        return any(name == b"content-length" and value.strip(b" \t0") for name, value in self.headers)

    def on_body(self, body: bytes) -> None:
        if self._state != "body":
            return
        self._pieces.append(body)
        self._given += len(body)
        self._held += len(body)
        if self._held > HELD_BYTES and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        if self._waiter is not None:
            self._wake()

    def on_message_complete(self) -> None:
        if self._state == "head":  # an interim answer: the next one counts (RFC 9110 section 15.2)
            self.headers = []
            self._chunked = self._with_length = False
        elif self._state == "body":
            self._state = "done"
            if self._waiter is not None:
                self._wake()


class _BadError(Exception):
    """What the parser let through and we do not, in words for people."""
