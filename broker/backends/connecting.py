"""Making connections: names resolved, addresses judged, TLS verified.

The address that was checked is the address connected to: nothing is resolved a second time in between.

What must not live here: HTTP.
"""

from __future__ import annotations

import functools
import os
import socket
import ssl
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import anyio
import httpcore2

from broker.backends.address import fault_of, is_public
from broker.backends.exchange import EXCHANGE
from broker.backends.spec import Tls

_KEEPALIVE = ((socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),)


@functools.lru_cache(maxsize=64)
def tls_context(ca_file: str, client_cert: str, client_key: str, stamps: tuple[int, ...] = ()) -> ssl.SSLContext:  # noqa: ARG001
    """One context for each TLS configuration of the process, because reading the trust store takes 20 ms.

    stamps: when the files were changed; a renewed certificate is another configuration.

    TLS 1.2 at least, names and certificates verified. Raises OSError or ssl.SSLError for files that cannot be used.
    """
    context = ssl.create_default_context(cafile=ca_file or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if client_cert:
        context.load_cert_chain(client_cert, client_key or None)
    return context


def tls_of(spec: Tls, directory: str) -> ssl.SSLContext:
    """The context for a manifest's `tls`, with its files relative to `directory`."""
    files = [str(Path(directory) / name) if name else "" for name in (spec.ca_file, spec.client_cert, spec.client_key)]
    stamps = tuple(Path(name).stat().st_mtime_ns for name in files if name)
    return tls_context(files[0], files[1], files[2], stamps)


class _Counted(httpcore2.AsyncNetworkStream):
    """A connection that marks the exchange whose bytes it writes."""

    def __init__(self, inner: httpcore2.AsyncNetworkStream) -> None:
        self._inner = inner

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return await self._inner.read(max_bytes, timeout)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        exchange = EXCHANGE.get()
        if exchange is not None and buffer:
            exchange.left = True
        await self._inner.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.AsyncNetworkStream:
        try:
            return _Counted(await self._inner.start_tls(ssl_context, server_hostname, timeout))
        except ssl.SSLError as error:  # certificate errors are not mapped by the library
            raise httpcore2.ConnectError(reason_of(error)) from error

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class CheckedNetwork(httpcore2.AsyncNetworkBackend):
    """Connects only to addresses that may be connected to, and to exactly the ones that were checked."""

    def __init__(self, *, allow_private: bool, plain: bool) -> None:
        self._allow_private = allow_private
        self._plain = plain
        self._network = cast("httpcore2.AsyncNetworkBackend", httpcore2.AnyIOBackend())

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        try:
            with anyio.fail_after(timeout):
                addresses = await self._resolve(host, port)
        except TimeoutError:
            raise httpcore2.ConnectTimeout("its name was not resolved in time") from None
        last: Exception | None = None
        for address in addresses:
            try:
                return _Counted(
                    await self._network.connect_tcp(address, port, timeout, local_address, socket_options or _KEEPALIVE)
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                last = error
        raise last or httpcore2.ConnectError("its name has no address")

    async def _resolve(self, host: str, port: int) -> list[str]:
        """The addresses of this name that may be connected to, in the resolver's order. Raises ConnectError if none."""
        try:
            found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise httpcore2.ConnectError("its name cannot be resolved") from error
        allowed: list[str] = []
        fault = ""
        for entry in found:
            address = str(entry[4][0])
            why = fault_of(address, allow_private=self._allow_private)
            if not why and self._plain and is_public(address):
                why = "is public, and http is for private addresses only"
            if why:
                fault = why
            elif address not in allowed:
                allowed.append(address)
        if not allowed:
            raise httpcore2.ConnectError(f"its address {fault}" if fault else "its name has no address")
        return allowed

    async def connect_unix_socket(self, *_: Any, **__: Any) -> httpcore2.AsyncNetworkStream:
        raise httpcore2.ConnectError("unix sockets are not used")

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)


def reason_of(error: BaseException) -> str:
    """Why connecting failed, in a few words without addresses."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is refused: {cause.verify_message}"
        if isinstance(cause, ssl.SSLError):
            return f"TLS failed: {(cause.reason or 'handshake').replace('_', ' ').lower()}"
        if isinstance(cause, OSError) and cause.errno:
            return os.strerror(cause.errno).lower()  # asyncio's own text has the address in it
        if isinstance(cause, BaseExceptionGroup):
            group = cast("BaseExceptionGroup[BaseException]", cause)
            cause = group.exceptions[0]
            continue
        cause = cause.__cause__ or cause.__context__
    return str(error) or type(error).__name__
