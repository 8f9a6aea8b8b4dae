"""The connections to one origin, and what a request over them may cost: the containment every backend over HTTP has.

One small client of ours instead of a library's, because the library's cost more than the whole rest of a call; and one
client for all, so that the rules are in one place. It connects to checked addresses only (connecting.py), uses no proxy
of the environment, follows no redirect, keeps no cookies, asks for no encoding it cannot bound, counts bytes before and
after decompression, and keeps the exchange's total deadline itself, because a peer that sends a byte now and then
re-arms every idle timeout.

Whatever goes wrong leaves it as `Cut`, with the BrokerError that tells the caller the truth about the effect: nothing
left (Unavailable), nobody can say (TimedOut, Broken), it was done (AnswerWithheld). A kept connection may have been
ended by the peer while the request was on its way: then, and only when no byte of an answer came and the tool is
idempotent, the request goes out once more on a fresh one.

What must not live here: what a status or a body means.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections import deque
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import NamedTuple, Self
from urllib.parse import urlsplit

import anyio
import anyio.lowlevel

from broker import __version__
from broker.backends.address import Origin
from broker.backends.connecting import UnreachableError, connect
from broker.backends.decoding import BadEncodingError, Inflater
from broker.backends.exchange import Cut, Exchange
from broker.backends.http1 import Fault, Heads, Http1
from broker.errors import AnswerWithheld, Broken, BrokerError, TimedOut, Unavailable

USER_AGENT = f"broker/{__version__}"
KEEP_IDLE_S = 30.0
LOOK_AFTER_S = 0.5  # a connection idle for longer is looked at before it is used again
GRACE_S = 0.5
LONGEST_WAIT_S = 30.0  # of a standing stream for a free connection
STREAM_BYTES_PER_S = 4 * 1024 * 1024  # what an endless event stream may send in the long run

Header = tuple[bytes, bytes]


class Lines(NamedTuple):
    """Header lines as they go out, and how many they are meant to be."""

    text: bytes
    number: int

    @classmethod
    def of(cls, headers: Iterable[Header]) -> Self:
        lines = [b"%s: %s\r\n" % header for header in headers]
        return cls(b"".join(lines), len(lines))


_TARGET = re.compile(rb"/[!-~]*")
_KEEP_ALIVE = re.compile(rb"(?i)(?:^|[,\s])timeout=(\d{1,6})")


class Said(NamedTuple):
    """What the headers of an answer say of its body and connection; "" and None for nothing."""

    media_type: str
    coding: str
    is_endless: bool
    keep_s: float | None

    @classmethod
    def of(cls, headers: Iterable[Header]) -> Self:
        kind = coding = kept = b""
        for name, value in headers:
            if name == b"content-type":
                kind = kind + b", " + value if kind else value
            elif name == b"content-encoding":
                coding = coding + b"," + value if coding else value
            elif name == b"keep-alive":
                kept = value
        is_endless = kind[:17].lower() == b"text/event-stream" and kind[17:].lstrip(b" \t")[:1] in (b"", b";")
        hint = _KEEP_ALIVE.search(kept)
        keep_s = min(KEEP_IDLE_S, max(int(hint[1]) - 1.0, 0.0)) if hint else None
        return cls(kind.decode("latin-1"), coding.decode("latin-1"), is_endless, keep_s)


class Response:
    """An answer whose head is here. Read it to its end or close it.

    media_type: its Content-Type, "" when there is none. raw_headers: as they came, names in lower case.
    """

    __slots__ = (
        "_connection",
        "_endless",
        "_exchange",
        "_inflater",
        "_upstream",
        "media_type",
        "raw_headers",
        "status",
    )

    def __init__(self, upstream: Upstream, connection: Http1, exchange: Exchange | None) -> None:
        """Raises Cut for a Content-Encoding we did not ask for."""
        self._upstream = upstream
        self._connection: Http1 | None = connection
        self._exchange = exchange
        self._inflater: Inflater | None = None
        self.status = connection.status
        self.raw_headers = connection.headers
        if exchange is not None:
            exchange.status = self.status
        said = upstream.said(self.raw_headers)
        self.media_type, self._endless = said.media_type, said.is_endless
        if said.keep_s is not None:
            connection.keep_s = said.keep_s
        if said.coding:
            try:
                self._inflater = Inflater(said.coding)
            except BadEncodingError as error:
                raise self._cut(self._withheld(f"cannot be read: {error}")) from None

    def header(self, name: bytes) -> str:
        """The value of this header (lower case), of several all with commas; "" when there is none."""
        values = [value for key, value in self.raw_headers if key == name]
        return b", ".join(values).decode("latin-1") if values else ""

    async def read(self) -> bytes:
        """The whole body, inflated, within the cap. Raises Cut. The answer is closed afterwards."""
        body = self.whole()
        if body is not None:
            return body
        self._endless = False
        async with aclosing(self.pieces()) as pieces:
            return b"".join([piece async for piece in pieces])

    def whole(self) -> bytes | None:
        """As `read`, when the answer came whole and plain, as it mostly does in the piece that has its head; else None:
        it has to be waited for or unpacked. Raises Cut."""
        connection = self._connection
        if connection is None or self._inflater is not None or (body := connection.whole()) is None:
            return None
        self._endless = False
        if len(body) > self._upstream.cap:
            self._check(len(body))
        self._connection = None
        self._upstream.done_with(connection)
        return body

    async def pieces(self) -> AsyncGenerator[bytes]:
        """The body as it comes, inflated, within the cap; an event stream has no total, but a rate. Raises Cut."""
        taken = given = 0
        begun = anyio.current_time()
        try:
            while (connection := self._connection) is not None and (chunks := await connection.take()):
                for chunk in chunks:
                    taken += len(chunk)
                    self._check(taken)
                    for piece in (chunk,) if self._inflater is None else self._inflater.feed(chunk):
                        given += len(piece)
                        self._check(given)
                        yield piece
                    if self._endless:
                        ahead = given - self._upstream.cap - STREAM_BYTES_PER_S * (anyio.current_time() - begun)
                        if ahead > 0:
                            await anyio.sleep(ahead / STREAM_BYTES_PER_S)  # the peer's own stream waits, nobody else
            if self._inflater is not None:
                self._inflater.finish()
        except BadEncodingError as error:
            raise self._cut(self._withheld(f"cannot be read: {error}")) from None
        except Fault as fault:
            raise self._broken(fault) from None
        finally:
            self.close()

    def close(self) -> None:
        """Give the connection back, or end it when the answer has not come to its end. Twice is harmless."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._upstream.done_with(connection)

    def _check(self, size: int) -> None:
        if size > self._upstream.cap and not self._endless:
            raise self._cut(
                self._withheld(f"is larger than {self._upstream.cap} bytes, the backend's limit `response_bytes`")
            )

    def _withheld(self, why: str) -> BrokerError:
        return AnswerWithheld(f"{self._upstream.subject} answered, but its answer {why}.")

    def _broken(self, fault: Fault) -> Cut:
        subject = self._upstream.subject
        if fault.kind == "late":
            return self._cut(TimedOut(f"{subject} stopped in the middle of its answer."))
        return self._cut(
            Broken(f"{subject} broke off in the middle of its answer.", next_step="Check before you try again.")
        )

    def _cut(self, error: BrokerError) -> Cut:
        if isinstance(error, AnswerWithheld) and self.status >= 400:
            error = Broken(error.message)
        self.close()
        return _told(self._exchange, error)


class Upstream:
    """subject: what to call the peer in sentences. cap: largest answer in bytes, compressed and not. connections: at
    most so many at once; None where whoever asks sees to that. connect_s: to resolve, connect and shake hands. tls: for
    https. constant: headers of every request. Raises only `Cut`.
    """

    def __init__(
        self,
        subject: str,
        origin: Origin,
        *,
        allow_private: bool,
        cap: int,
        connections: int | None,
        connect_s: float,
        tls: ssl.SSLContext | None,
        constant: Iterable[Header] = (),
    ) -> None:
        self.subject = subject
        self.cap = cap
        self._origin = origin
        self._allow_private = allow_private
        self._connect_s = connect_s
        self._tls = tls if origin.scheme == "https" else None
        host = urlsplit(origin.url).netloc.encode()
        self._opening = Lines.of(((b"Host", host), (b"Connection", b"keep-alive"), *constant)).text
        self._room = anyio.Semaphore(connections) if connections else None
        self._idle: deque[Http1] = deque()
        self._open: set[Http1] = set()  # idle or not
        self._heads = Heads()
        self._said: tuple[list[Header], Said] = [], Said.of(())
        self._loop = loop = asyncio.get_running_loop()  # kept, because to ask for it is a system call
        self.now = loop.time
        self._sweeping: asyncio.TimerHandle | None = None
        self._closed = False

    async def ask(
        self, method: str, target: str, headers: Iterable[Header] | Lines, body: bytes | None, exchange: Exchange | None
    ) -> Response:
        """Send one request and wait for the head of its answer.

        target: path and query, encoded. headers: without framing. exchange: whose request it is; None for a standing
        stream, which may be silent. On cancel: the connection is ended, and with it, for the peer, the request.
        """
        lines = headers if isinstance(headers, Lines) else Lines.of(headers)
        request = self._request(method, target, lines, body, exchange)
        if self._room is not None:
            await self._enter(self._room, exchange)
        try:
            kept = connection = self._kept()
            while True:
                if connection is None:
                    connection = await self._connected(exchange)
                try:
                    if exchange is not None:  # its deadline goes on until the answer is taken
                        connection.keep_until(_until(exchange))
                        exchange.left = True
                    await connection.send(request, no_body=method == "HEAD")
                    if connection.fault is not None:
                        raise connection.fault
                    break
                except Fault as fault:
                    self._end(connection)
                    stale = kept is not None and fault.kind == "lost" and not connection.heard and not self._closed
                    if not (stale and exchange is not None and exchange.repeatable):
                        raise self._unanswered(fault, exchange) from None
                except BaseException:
                    self._end(connection)
                    raise
                kept = connection = None
        except BaseException:
            if self._room is not None:
                self._room.release()
            raise
        return Response(self, connection, exchange)

    def said(self, headers: list[Header]) -> Said:
        """`Said.of`; it remembers the last, because headers that are known (`Heads`) are the same object again."""
        of, said = self._said
        if of is not headers:
            said = Said.of(headers)
            self._said = headers, said
        return said

    def done_with(self, connection: Http1) -> None:
        """Keep the connection for another request when it can carry one. For `Response`, once."""
        if self._room is not None:
            self._room.release()
        if self._closed or not connection.rest():
            self._end(connection)
            return
        self._idle.append(connection)
        if self._sweeping is None:
            self._sweeping = self._loop.call_later(KEEP_IDLE_S, self._sweep)

    def _end(self, connection: Http1) -> None:
        self._open.discard(connection)
        connection.abort()

    async def aclose(self) -> None:
        """End every connection; who waits on one gets an error. Twice is harmless."""
        self._closed = True
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None
        for connection in self._open:
            connection.abort()
        self._open.clear()
        self._idle.clear()
        await anyio.lowlevel.checkpoint()  # the loop closes the sockets

    # ----------------------------------------------------------------------------------------------------- one request

    def _request(self, method: str, target: str, lines: Lines, body: bytes | None, exchange: Exchange | None) -> bytes:
        """The bytes of one request. Refuses what would be read as more than one, wherever it came from."""
        text = lines.text
        path = target.encode("utf-8", "surrogatepass")  # what is not ASCII does not match
        breaks = text.count(b"\n")
        if breaks != lines.number or text.count(b"\r") != breaks or b"\0" in text or not _TARGET.fullmatch(path):
            raise _told(exchange, Unavailable(f"{self.subject} cannot be asked like this. Nothing was sent."))
        if body is None:
            return b"%s %s HTTP/1.1\r\n%s%s\r\n" % (method.encode(), path, self._opening, text)
        size = len(body)
        return b"%s %s HTTP/1.1\r\n%s%sContent-Length: %d\r\n\r\n%s" % (
            method.encode(), path, self._opening, text, size, body,
        )  # fmt: skip

    async def _enter(self, room: anyio.Semaphore, exchange: Exchange | None) -> None:
        try:
            room.acquire_nowait()
        except anyio.WouldBlock:
            with anyio.move_on_after(LONGEST_WAIT_S if exchange is None else _left_s(exchange)) as waiting:
                await room.acquire()
            if waiting.cancelled_caught:
                raise self._unsent(exchange, "no connection came free in time") from None

    async def _connected(self, exchange: Exchange | None) -> Http1:
        """A fresh connection."""
        within_s = self._connect_s if exchange is None else min(self._connect_s, _left_s(exchange))
        try:
            connection = await connect(
                self._origin,
                lambda: Http1(self._loop, KEEP_IDLE_S, self._heads),
                allow_private=self._allow_private,
                tls=self._tls,
                within_s=within_s,
            )
        except UnreachableError as error:
            raise self._unsent(exchange, error.reason) from None
        if self._closed or not connection.is_open:
            connection.abort()
            raise self._unsent(exchange, "the connection was closed at once")
        self._open.add(connection)
        return connection

    # ----------------------------------------------------------------------------------------------- kept connections

    def _kept(self) -> Http1 | None:
        """The connection used last, so that the others may grow old; None when none is good for another request."""
        now = self.now()
        while self._idle:
            connection = self._idle.pop()
            idle_s = now - connection.idle_at
            good = connection.is_open and idle_s < connection.keep_s
            if good and (idle_s < LOOK_AFTER_S or not connection.has_news()):
                return connection
            self._end(connection)
        return None

    def _sweep(self) -> None:
        """End what nobody has used for too long."""
        self._sweeping = None
        for connection in list(self._idle):
            if not connection.is_open or self.now() - connection.idle_at >= connection.keep_s:
                self._idle.remove(connection)
                self._end(connection)
        if self._idle:
            self._sweeping = self._loop.call_later(KEEP_IDLE_S / 2, self._sweep)

    # ------------------------------------------------------------------------------------------------------- the errors

    def _unsent(self, exchange: Exchange | None, reason: str) -> Cut:
        return _told(exchange, Exchange(0.0).unanswered(f"{self.subject} cannot be reached", reason))

    def _unanswered(self, fault: Fault, exchange: Exchange | None) -> Cut:
        if fault.kind == "late":
            late = TimedOut(f"{self.subject} did not answer in time; whether it was done is unknown.")
            return _told(exchange, late)
        known = exchange or Exchange(0.0, left=True)
        return _told(exchange, known.unanswered(f"{self.subject} broke off", fault.reason))


def _until(exchange: Exchange) -> float:
    """Its deadline, and a little where the caller keeps one too, which then comes first and knows the better words."""
    return exchange.deadline if exchange.is_exact else exchange.deadline + GRACE_S


def _left_s(exchange: Exchange) -> float:
    return max(_until(exchange) - anyio.current_time(), 0.0)


def _told(exchange: Exchange | None, error: BrokerError) -> Cut:
    if exchange is not None:
        exchange.fail(error)
    return Cut(error)
