"""Making connections: names resolved, addresses judged, TLS verified.

The address that was checked is the address connected to: nothing is resolved a second time in between.

What must not live here: HTTP.
"""

from __future__ import annotations

import asyncio
import functools
import os
import socket
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar, cast

import anyio

from broker.backends.address import Origin, fault_of, is_public
from broker.backends.spec import Tls

P = TypeVar("P", bound=asyncio.BaseProtocol)


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
    context.set_alpn_protocols(["http/1.1"])
    return context


def tls_of(spec: Tls, directory: str) -> ssl.SSLContext:
    """The context for a manifest's `tls`, with its files relative to `directory`."""
    files = [str(Path(directory) / name) if name else "" for name in (spec.ca_file, spec.client_cert, spec.client_key)]
    stamps = tuple(Path(name).stat().st_mtime_ns for name in files if name)
    return tls_context(files[0], files[1], files[2], stamps)


class UnreachableError(Exception):
    """No connection could be made. reason: why, in a few words without addresses."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


async def connect(
    origin: Origin, protocol: Callable[[], P], *, allow_private: bool, tls: ssl.SSLContext | None, within_s: float
) -> P:
    """A protocol on a connection to this origin: TCP to a checked address, then TLS when `tls` is given.

    Only addresses that may be connected to are, and exactly the ones that were checked. Raises UnreachableError.
    """
    try:
        with anyio.fail_after(within_s):
            addresses = await _resolved(origin, allow_private=allow_private)
            return await _connected(origin, addresses, protocol, tls)
    except TimeoutError:
        raise UnreachableError("not connected in time") from None


async def _connected(
    origin: Origin, addresses: Sequence[str], protocol: Callable[[], P], tls: ssl.SSLContext | None
) -> P:
    last: Exception | None = None
    loop = asyncio.get_running_loop()
    for address in addresses:
        try:
            transport, made = await loop.create_connection(
                protocol, address, origin.port, ssl=tls, server_hostname=origin.host if tls else None
            )
        except OSError as error:  # ssl.SSLError is one
            last = error
            continue
        if (connection := transport.get_extra_info("socket")) is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return made
    raise UnreachableError(reason_of(last) if last else "its name has no address")


async def _resolved(origin: Origin, *, allow_private: bool) -> list[str]:
    """The addresses of this name that may be connected to, in the resolver's order, at least one."""
    try:
        found = await anyio.getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise UnreachableError("its name cannot be resolved") from None
    allowed: list[str] = []
    fault = ""
    for entry in found:
        address = str(entry[4][0])
        why = fault_of(address, allow_private=allow_private)
        if not why and origin.scheme == "http" and is_public(address):
            why = "is public, and http is for private addresses only"
        if why:
            fault = why
        elif address not in allowed:
            allowed.append(address)
    if not allowed:
        raise UnreachableError(f"its address {fault}" if fault else "its name has no address")
    return allowed


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
