"""The one way bytes leave for a backend over HTTP, and the one way they come back.

A `Wire` is an httpx2 transport for one origin. It connects to checked addresses only (connecting.py), never uses a
proxy of the environment, never follows a redirect, keeps no cookies, counts bytes before and after decompression, and
keeps the exchange's deadline beside the idle one, because a peer that sends a byte now and then re-arms every idle
timeout. Whatever goes wrong leaves it as `Cut`, with the BrokerError that tells the caller the truth about the effect:
nothing left (Unavailable), nobody can say (TimedOut, Broken), it was done (AnswerWithheld).

What must not live here: what a status or a body means.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from typing import cast

import anyio
import httpcore2
import httpx2

from broker import __version__
from broker.backends.address import Origin
from broker.backends.connecting import CheckedNetwork, reason_of
from broker.backends.decoding import ACCEPT_ENCODING, BadEncodingError, Inflater
from broker.backends.exchange import EXCHANGE, Cut, Exchange
from broker.errors import AnswerWithheld, Broken, BrokerError, TimedOut, Unavailable

USER_AGENT = f"broker/{__version__}"
KEEP_IDLE_S = 30.0
STREAM_BYTES_PER_S = 4 * 1024 * 1024  # what an endless event stream may send in the long run

# These log URLs, headers or messages, and with them arguments.
_TALKATIVE = ("httpx2", "httpcore2")


def quiet() -> None:
    """Keep the HTTP libraries' own logs (URLs with arguments, headers) out of ours, whatever level is asked for."""
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)


class _Bounded(httpx2.AsyncByteStream):
    """A response body: inflated, counted, within the exchange's deadline. An event stream has no total, but a rate."""

    def __init__(self, wire: Wire, raw: AsyncIterable[bytes], inflater: Inflater, *, endless: bool) -> None:
        self._wire = wire
        self._raw = raw
        self._inflater = inflater
        self._endless = endless
        self._exchange = EXCHANGE.get()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        taken = given = 0
        begun = anyio.current_time()
        try:
            async for chunk in self._raw:
                taken += len(chunk)
                self._check(taken)
                for piece in self._inflater.feed(chunk):
                    given += len(piece)
                    self._check(given)
                    yield piece
                if self._endless:
                    ahead = given - self._wire.cap - STREAM_BYTES_PER_S * (anyio.current_time() - begun)
                    if ahead > 0:
                        await anyio.sleep(ahead / STREAM_BYTES_PER_S)  # the peer's own stream waits, nobody else
            self._inflater.finish()
        except BadEncodingError as error:
            raise self._cut(self._withheld(f"cannot be read: {error}")) from None
        except httpcore2.TimeoutException:
            raise self._cut(TimedOut(f"{self._wire.subject} stopped in the middle of its answer.")) from None
        except (httpcore2.NetworkError, httpcore2.ProtocolError):
            raise self._cut(
                Broken(
                    f"{self._wire.subject} broke off in the middle of its answer.",
                    next_step="Check before you try again.",
                )
            ) from None

    def _check(self, size: int) -> None:
        if not self._endless and size > self._wire.cap:
            raise self._cut(
                self._withheld(f"is larger than {self._wire.cap} bytes, the backend's limit `response_bytes`")
            )
        exchange = self._exchange
        if exchange is not None and anyio.current_time() > exchange.deadline + 1.0:
            raise self._cut(TimedOut(f"{self._wire.subject} did not end its answer in time."))

    def _withheld(self, why: str) -> BrokerError:
        return AnswerWithheld(f"{self._wire.subject} answered, but its answer {why}.")

    def _cut(self, error: BrokerError) -> Cut:
        if self._exchange is not None and isinstance(error, AnswerWithheld) and self._exchange.status >= 400:
            error = Broken(error.message)
        if self._exchange is not None:
            self._exchange.fail(error)
        return Cut(error)

    async def aclose(self) -> None:
        close = getattr(self._raw, "aclose", None)
        if close is not None:
            await close()


class Wire(httpx2.AsyncBaseTransport):
    """The connections to one origin. cap: largest answer in bytes, compressed and not. Raises only `Cut`."""

    def __init__(
        self,
        backend: str,
        origin: Origin,
        *,
        allow_private: bool,
        cap: int,
        connections: int,
        connect_s: float,
        tls: ssl.SSLContext | None,
        subject: str = "",
    ) -> None:
        self.subject = subject or f"Backend {backend!r}"
        self.cap = cap
        self._origin = origin
        self._connect_s = connect_s
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=tls,
            max_connections=connections,
            max_keepalive_connections=connections,
            keepalive_expiry=KEEP_IDLE_S,
            network_backend=CheckedNetwork(allow_private=allow_private, plain=origin.scheme == "http"),
        )

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        exchange = EXCHANGE.get()
        url = request.url
        port = url.port or (80 if url.scheme == "http" else 443)
        if (url.scheme, url.host.strip("[]"), port) != (self._origin.scheme, self._origin.host, self._origin.port):
            raise Cut(Unavailable(f"{self.subject} may only be asked at its own origin. Nothing was sent."))
        outgoing = httpcore2.Request(
            method=request.method,
            url=httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
            headers=request.headers.raw,
            content=cast("AsyncIterable[bytes]", request.stream),
            extensions={"timeout": self._timeouts(exchange)},
        )
        try:
            incoming = await self._pool.handle_async_request(outgoing)
        except (
            httpcore2.ConnectError,
            httpcore2.ConnectTimeout,
            httpcore2.PoolTimeout,
            httpcore2.UnsupportedProtocol,
        ) as error:
            reason = "not connected in time" if isinstance(error, httpcore2.TimeoutException) else reason_of(error)
            unsent = Exchange(0.0).unanswered(f"{self.subject} cannot be reached", reason)
            raise self._cut(exchange, unsent) from None
        except httpcore2.TimeoutException:
            late = TimedOut(f"{self.subject} did not answer in time; whether it was done is unknown.")
            raise self._cut(exchange, late) from None
        except (httpcore2.NetworkError, httpcore2.ProtocolError) as error:
            known = exchange or Exchange(0.0, left=True)
            raise self._cut(exchange, known.unanswered(f"{self.subject} broke off", _broken(error))) from None
        return await self._response(incoming, exchange)

    async def _response(self, incoming: httpcore2.Response, exchange: Exchange | None) -> httpx2.Response:
        headers = httpx2.Headers(incoming.headers)
        if exchange is not None:
            exchange.status = incoming.status
            exchange.headers = headers
        endless = headers.get("content-type", "").partition(";")[0].strip().lower() == "text/event-stream"
        try:
            inflater = Inflater(headers.get("content-encoding", ""))
        except BadEncodingError as error:
            await incoming.aclose()
            refused = AnswerWithheld(f"{self.subject} answered, but its answer cannot be read: {error}.")
            raise self._cut(exchange, refused) from None
        # Set-Cookie: a broker keeps no cookies, so that no caller's state can reach another's. Location: a redirect is
        # an answer, and nobody above (the SDK would) may follow it. The others describe the body before inflating.
        for name in ("set-cookie", "location", "content-encoding", "content-length", "transfer-encoding"):
            headers.pop(name, None)
        body = _Bounded(self, cast("AsyncIterable[bytes]", incoming.stream), inflater, endless=endless)
        return httpx2.Response(incoming.status, headers=headers, stream=body)

    def _timeouts(self, exchange: Exchange | None) -> dict[str, float | None]:
        """Without an exchange it is a standing stream of events: it may be silent; the kernel watches it."""
        left_s = None if exchange is None else max(exchange.deadline - anyio.current_time(), 1.0)
        connect_s = self._connect_s if left_s is None else min(self._connect_s, left_s)
        # The caller's own deadline comes first and knows the better words; this one is for whoever has left already.
        grace_s = None if left_s is None else left_s + 0.5
        return {"connect": connect_s, "read": grace_s, "write": grace_s or 30.0, "pool": grace_s or 30.0}

    def _cut(self, exchange: Exchange | None, error: BrokerError) -> Cut:
        if exchange is not None:
            exchange.fail(error)
        return Cut(error)

    async def aclose(self) -> None:
        await self._pool.aclose()


def _broken(error: Exception) -> str:
    if isinstance(error, httpcore2.RemoteProtocolError):
        return "what it sent is not HTTP, or the connection ended before an answer"
    return "the connection was lost"


def client(
    wire: Wire, *, auth: httpx2.Auth | None = None, headers: Mapping[str, str] | None = None
) -> httpx2.AsyncClient:
    """An httpx2 client on this wire: no environment, no redirects, no defaults. Closing it closes the wire."""
    own = {"User-Agent": USER_AGENT, "Accept": "*/*", "Accept-Encoding": ACCEPT_ENCODING, **(headers or {})}
    return httpx2.AsyncClient(
        transport=wire,
        auth=auth,
        headers=[(name.encode(), value.encode("latin-1")) for name, value in own.items()],
        trust_env=False,
        follow_redirects=False,
        timeout=None,  # the wire keeps the deadlines
    )
