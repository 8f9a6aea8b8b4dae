"""How connections to one downstream server are made, from its manifest: a child process, or HTTP with a client of ours.

What lives as long as the backend (TLS, an OAuth token) is here; what lives as long as one connection is a Carrier.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import anyio

from broker.backends import sdk
from broker.backends.address import Origin
from broker.backends.connecting import tls_of
from broker.backends.credential import Outbound, outbound
from broker.backends.mcp import Spec
from broker.backends.mcp_carrier import Carrier, Reports
from broker.backends.mcp_child import Child, ChildError, environment
from broker.backends.mcp_http import McpClient
from broker.backends.mcp_modern import ModernCalls
from broker.backends.pace import Pace
from broker.backends.spec import filled_now, secrets_in
from broker.backends.transport import Wire, quiet
from broker.ports import BackendContext

CLOSING_S = 2.0
STANDING = 3  # connections beside the calls: the events' stream, and one being renewed


class Carriage(Protocol):
    """label: what operators call the server."""

    label: str

    async def carrier(self, reports: Reports) -> Carrier: ...

    async def aclose(self) -> None: ...


def carriage(name: str, spec: Spec, context: BackendContext) -> Carriage:
    """The way to this server."""
    sdk.quiet()
    quiet()
    return _Stdio(spec, context) if spec.command else _Http(name, spec, context)


class _Stdio:
    def __init__(self, spec: Spec, context: BackendContext) -> None:
        self.label = Path(spec.command[0]).name
        self._spec = spec
        self._context = context

    async def carrier(self, reports: Reports) -> Carrier:
        """Raises LookupError for a secret that cannot be read."""
        declared = {name: await filled_now(text, self._context.secrets) for name, text in self._spec.env.items()}
        masked = [secret for name, text in self._spec.env.items() for secret in secrets_in(text, declared[name])]
        return _ChildCarrier(
            Child(
                self._spec.command,
                env=environment(declared),
                cwd=Path(self._context.directory) / self._spec.cwd,
                cap=self._spec.response_bytes,
                masked=masked,
                most=self._spec.max_tools,
                on_unreadable=reports.unreadable,
            )
        )

    async def aclose(self) -> None:
        """Nothing outlives a connection."""


class _ChildCarrier:
    marks_left = True

    def __init__(self, child: Child) -> None:
        self._child = child

    def streams(self) -> AbstractAsyncContextManager[sdk.Streams]:
        return self._child.streams()

    def calls(self, pace: Pace) -> None:
        """Everything goes through the one pipe."""

    @property
    def words(self) -> str:
        return self._child.words

    async def last_words(self) -> str:
        return await self._child.last_words()


class _Http:
    def __init__(self, name: str, spec: Spec, context: BackendContext) -> None:
        self.label = spec.url
        self._name = name
        self._spec = spec
        self._context = context
        self._origin = Origin.parse(spec.url, allow_private=spec.allow_private)
        self._auth: Outbound | None = None
        self._tls: ssl.SSLContext | None = None

    async def carrier(self, reports: Reports) -> Carrier:
        """Raises ChildError for TLS files that cannot be used."""
        needs_tls = self._origin.scheme == "https" or (self._spec.credential and self._spec.credential.oauth)
        if self._tls is None and needs_tls:
            try:
                self._tls = await anyio.to_thread.run_sync(tls_of, self._spec.tls, self._context.directory)
            except OSError as error:  # ssl.SSLError is one
                raise ChildError(f"its TLS files cannot be used: {error.strerror or 'not PEM'}") from None
        if self._auth is None:
            self._auth = outbound(self._name, self._spec.credential, self._context.secrets, self._tls)
        return _HttpCarrier(self._name, self._spec, self._origin, self._context, self._auth, self._tls, reports)

    async def aclose(self) -> None:
        if self._auth is not None:
            await self._auth.aclose()


class _HttpCarrier:
    marks_left = False

    def __init__(  # noqa: PLR0917 – made in one place, of what a connection needs
        self,
        name: str,
        spec: Spec,
        origin: Origin,
        context: BackendContext,
        auth: Outbound | None,
        tls: ssl.SSLContext | None,
        reports: Reports,
    ) -> None:
        self._spec = spec
        wire = Wire(
            name,
            origin,
            allow_private=spec.allow_private,
            cap=spec.response_bytes,
            connections=spec.concurrent + STANDING,
            connect_s=spec.connect_timeout,
            tls=tls if origin.scheme == "https" else None,
        )
        target = urlsplit(spec.url).path or "/"
        self._calls = partial(ModernCalls, name, target, wire.upstream, auth, context.clock.now_ms)
        self._client = McpClient(
            name,
            wire,
            auth,
            sse=spec.transport == "sse",
            most=spec.max_tools,
            now_ms=context.clock.now_ms,
            on_lost=reports.lost,
        )

    def calls(self, pace: Pace) -> ModernCalls | None:
        return self._calls(pace=pace) if self._spec.transport == "streamable-http" else None

    @asynccontextmanager
    async def streams(self) -> AsyncGenerator[sdk.Streams]:
        try:
            if self._spec.transport == "sse":
                opened = sdk.sse_streams(self._spec.url, self._client)
            else:
                opened = sdk.http_streams(self._spec.url, self._client, self._spec.response_bytes)
            async with opened as streams:
                yield streams
        finally:
            with anyio.move_on_after(CLOSING_S, shield=True):
                await self._client.aclose()

    @property
    def words(self) -> str:
        return ""

    async def last_words(self) -> str:
        return ""
