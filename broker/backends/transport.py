"""The one way bytes leave through a library's client (the MCP SDK's, Authlib's): httpx2 on our own connections.

A `Wire` is an httpx2 transport over an `Upstream`, which keeps every rule of containment; what is added here is what
these libraries would get wrong with an answer: they must see no cookie, no redirect and no encoding.

What must not live here: what a status or a body means; any rule about connections (upstream.py).
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import cast

import httpx2

from broker.backends.address import Origin
from broker.backends.credential import Outbound
from broker.backends.exchange import EXCHANGE, Cut
from broker.backends.upstream import USER_AGENT, Response, Upstream
from broker.errors import Unavailable

__all__ = ["USER_AGENT", "Wire", "quiet"]

# These log URLs, headers or messages, and with them arguments.
_TALKATIVE = ("httpx2", "httpcore2")

_OURS = frozenset({b"host", b"connection", b"content-length", b"transfer-encoding"})

# Set-Cookie: a broker keeps no cookies, so that no caller's state can reach another's. Location: a redirect is an
# answer, and nobody above (the SDK would) may follow it. The others describe the body before inflating.
_KEPT_BACK = frozenset({b"set-cookie", b"location", b"content-encoding", b"content-length", b"transfer-encoding"})


def quiet() -> None:
    """Keep the HTTP libraries' own logs (URLs with arguments, headers) out of ours, whatever level is asked for."""
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)


class _Severed(Cut, httpx2.StreamError):
    """A `Cut` that these libraries take for one of their own."""


class Signed(httpx2.Auth):
    """An `Outbound` for a client of the library."""

    def __init__(self, outbound: Outbound) -> None:
        self._outbound = outbound

    async def async_auth_flow(self, request: httpx2.Request) -> AsyncGenerator[httpx2.Request, httpx2.Response]:
        """See httpx2.Auth. Raises Unavailable."""
        name, value = await self._outbound.header()
        request.headers[name] = value
        response = yield request
        if response.status_code == 401 and (again := await self._outbound.renewed(value)) is not None:
            request.headers[again[0]] = again[1]
            yield request


class _Body(httpx2.AsyncByteStream):
    def __init__(self, response: Response) -> None:
        self._response = response
        self._pieces = _severed(response.pieces())

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._pieces

    async def aclose(self) -> None:
        await self._pieces.aclose()
        self._response.close()


async def _severed(pieces: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    async with aclosing(pieces):
        try:
            async for piece in pieces:
                yield piece
        except Cut as cut:
            raise _Severed(cut.error) from cut


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
        self._origin = origin
        self.upstream = Upstream(
            subject or f"Backend {backend!r}",
            origin,
            allow_private=allow_private,
            cap=cap,
            connections=connections,
            connect_s=connect_s,
            tls=tls,
        )

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        url = request.url
        port = url.port or (80 if url.scheme == "http" else 443)
        if (url.scheme, url.host.strip("[]"), port) != (self._origin.scheme, self._origin.host, self._origin.port):
            raise _Severed(
                Unavailable(f"{self.upstream.subject} may only be asked at its own origin. Nothing was sent.")
            )
        framed = {name.lower() for name, _ in request.headers.raw}
        body = b"".join([part async for part in cast("httpx2.AsyncByteStream", request.stream)])
        has_body = bool(body) or b"content-length" in framed or b"transfer-encoding" in framed
        try:
            response = await self.upstream.ask(
                request.method,
                url.raw_path.decode("ascii"),
                [(name, value) for name, value in request.headers.raw if name.lower() not in _OURS],
                body if has_body else None,
                EXCHANGE.get(),
            )
        except Cut as cut:
            raise _Severed(cut.error) from cut
        headers = [(name, value) for name, value in response.raw_headers if name not in _KEPT_BACK]
        return httpx2.Response(response.status, headers=headers, stream=_Body(response))

    async def aclose(self) -> None:
        await self.upstream.aclose()
