"""The downstream half of the MCP SDK, as far as the broker uses it, and every private touch of it.

Pinned to mcp 2.3.0. Private: `ClientSession._stamp` (the era's `_meta` and headers on a raw request),
`ClientSession._x_mcp_header_maps` (which arguments the 2026-07-28 wire mirrors into headers; the SDK fills it only in
its own typed tools/list, which a raw relay does not use), `ClientSession._build_capabilities` (what a session declares
is what the agent behind it declared, not which callbacks we have). `tests/stories/test_backend_mcp.py` and
`tests/stories/test_asking_back.py` fail when an upgrade moves them.

A relayed request is a plain dictionary on the way out and back: typed forwarding loses fields the SDK does not know.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import Any, Literal, Self, cast

import anyio
import httpx2
import mcp_types as types
from mcp.client.session import ClientSession
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client
from mcp.client.subscriptions import listen
from mcp.shared.dispatcher import CallOptions, ProgressFnT
from mcp.shared.exceptions import MCPError
from mcp.shared.inbound import find_invalid_x_mcp_header, x_mcp_header_map
from mcp.shared.jsonrpc_dispatcher import JSONRPCDispatcher
from mcp.shared.message import SessionMessage
from mcp.shared.subscriptions import ResourceUpdated
from mcp_types import SERVER_INFO_META_KEY, jsonrpc_message_adapter
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS, LATEST_MODERN_VERSION, MODERN_PROTOCOL_VERSIONS
from pydantic import ValidationError

from broker import __version__
from broker.backends.pace import Pace
from broker.model.back import ASKABLE, Declined

__all__ = [
    "SERVER_INFO_META_KEY",
    "MCPError",
    "Session",
    "SessionMessage",
    "Streams",
    "http_streams",
    "jsonrpc_message_adapter",
    "sse_streams",
    "types",
    "what_happened",
]

Streams = tuple[Any, Any]
"""(read, write): the SDK's message streams of one connection."""

_LIST_CHANGED = (
    types.ToolListChangedNotification,
    types.ResourceListChangedNotification,
    types.PromptListChangedNotification,
)

# Request ids are the process's, never a session's: an MRTR retry over a new session must not meet its old id.
_ids = itertools.count(1)


def quiet() -> None:
    """Keep the SDK's own logs (whole messages, foreign text) out of ours, whatever level is asked for."""
    for name in ("client", "mcp.client", "mcp.shared"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)


def next_request_id() -> int:
    return next(_ids)


class _Inlet:
    """What comes in, with notifications slowed to a rate: a flood waits in its own pipe instead of filling ours."""

    def __init__(self, inner: Any, pace: Pace) -> None:
        self._inner = inner
        self._pace = pace

    @property
    def last_context(self) -> Any:
        return getattr(self._inner, "last_context", None)

    async def receive(self) -> SessionMessage | Exception:
        item = await self._inner.receive()
        if isinstance(item, SessionMessage) and isinstance(item.message, types.JSONRPCNotification):
            await self._pace.spend(1)
        return item

    def __aiter__(self) -> _Inlet:
        return self

    async def __anext__(self) -> SessionMessage | Exception:
        try:
            return await self.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        await self.aclose()


TOLD = ("notifications/message", "notifications/elicitation/complete")
_HEARD = frozenset(
    {
        "notifications/tools/list_changed",
        "notifications/resources/list_changed",
        "notifications/prompts/list_changed",
        "notifications/resources/updated",
    }
)  # besides: what `Session._heard` is for

Asked = Callable[[str, Mapping[str, Any]], Awaitable[dict[str, Any]]]
"""(method of ASKABLE, params) → the result. Raises Declined. Runs in the context of the request it came with, where the
transport knows that."""
Told = Callable[[str, Mapping[str, Any]], Awaitable[None]]
"""(method of TOLD, params), likewise."""


class _Dispatcher(JSONRPCDispatcher[Any]):
    """Says when the connection has ended; hands over raw what servers ask and tell, which the SDK's typed callbacks
    would lose fields of."""

    def __init__(
        self,
        streams: Streams,
        pace: Pace,
        *,
        on_end: Callable[[], None],
        on_asked: Asked,
        on_told: Told,
        hears: Callable[[str], bool],
    ) -> None:
        read, write = streams
        super().__init__(_Inlet(read, pace), write)
        self._on_end, self._on_asked, self._on_told, self._hears = on_end, on_asked, on_told, hears

    async def run(self, on_request: Any, on_notify: Any, on_notify_intercept: Any = None, **kwargs: Any) -> None:
        def taken(method: str, params: Mapping[str, Any] | None) -> bool:
            """What the SDK takes for itself, and what nobody would hear: that costs no task."""
            if on_notify_intercept is not None and on_notify_intercept(method, params):
                return True
            return not (self._hears(method) if method in TOLD else method in _HEARD)

        async def asked(context: Any, method: str, params: Mapping[str, Any] | None) -> dict[str, Any]:
            if method not in ASKABLE:
                return await on_request(context, method, params)
            try:
                return await self._on_asked(method, params or {})
            except Declined as refusal:
                raise MCPError(refusal.code, refusal.message, refusal.data) from None

        async def told(context: Any, method: str, params: Mapping[str, Any] | None) -> None:
            if method in TOLD:
                await self._on_told(method, params or {})
            else:
                await on_notify(context, method, params)

        try:
            await super().run(asked, told, taken, **kwargs)
        finally:
            self._on_end()


class _Session(ClientSession):
    """Declares what it is told to declare."""

    declared: Mapping[str, Any] = {}

    def _build_capabilities(self, version: str) -> types.ClientCapabilities:  # noqa: ARG002
        return types.ClientCapabilities.model_validate(dict(self.declared))


class Session:
    """One connection's session: negotiated once, then raw requests. Enter and leave it in one task.

    on_end: called when the peer closed the connection. on_changed: called when it says that one of its lists changed.
    on_updated: called with the URI of a resource that it says has changed. on_asked, on_told: what it asks and tells in
    the middle of a request. hears: whether somebody wants what a method of TOLD says. declared: the client capabilities
    of this connection. pace: of the server's notifications.
    """

    def __init__(
        self,
        streams: Streams,
        *,
        on_end: Callable[[], None],
        on_changed: Callable[[], None],
        on_updated: Callable[[str], None],
        on_asked: Asked,
        on_told: Told,
        hears: Callable[[str], bool],
        declared: Mapping[str, Any],
        pace: Pace,
    ) -> None:
        self._on_changed = on_changed
        self._on_updated = on_updated
        self._dispatcher = _Dispatcher(streams, pace, on_end=on_end, on_asked=on_asked, on_told=on_told, hears=hears)
        self._session = _Session(
            dispatcher=self._dispatcher,
            message_handler=self._heard,
            client_info=types.Implementation(name="broker", version=__version__),
        )
        self._session.declared = declared
        self._pace = pace
        self._stamps: dict[str, tuple[object, dict[str, Any], dict[str, str]]] = {}

    async def __aenter__(self) -> Self:
        await self._session.__aenter__()
        return self

    async def __aexit__(self, *exc_info: Any) -> bool | None:
        return await self._session.__aexit__(*exc_info)

    async def _heard(self, message: types.ServerNotification | Exception) -> None:
        if isinstance(message, _LIST_CHANGED):
            self._on_changed()
        elif isinstance(message, types.ResourceUpdatedNotification):
            self._on_updated(str(message.params.uri))

    # -------------------------------------------------------------------------------------------------------- eras

    async def shake_hands(self) -> None:
        """The handshake and nothing else. Raises MCPError, RuntimeError, ValidationError as `negotiate` does."""
        await self._session.initialize()

    async def negotiate(self, *, legacy_first: bool, probe_s: float, begin: Callable[[], Callable[[], bool]]) -> None:
        """Agree on a revision: the modern probe, then the handshake; the other way round when this server is known.

        begin: called before each request; the function it returns says whether that request failed for a reason that
        has nothing to do with the era (no connection, 401), so that asking again is useless.
        Raises MCPError (the peer's last word), RuntimeError (a revision nobody knows), ValidationError.
        """
        if not legacy_first and await self._discover(LATEST_MODERN_VERSION, probe_s, begin):
            return
        begin()
        try:
            await self._session.initialize()
        except MCPError as error:
            # -32022 names the versions it has: a slow modern server met our handshake after the probe timed out.
            mutual = _modern_in(error)
            if not mutual or not await self._discover(mutual, probe_s, begin):
                raise

    async def _discover(
        self, version: str, probe_s: float, begin: Callable[[], Callable[[], bool]], *, again: bool = True
    ) -> bool:
        """Whether the peer is modern. Raises MCPError when it shares no version with us, or when asking is useless."""
        useless = begin()
        raw: dict[str, Any] | None = None
        try:
            with anyio.move_on_after(probe_s):
                raw = await self._session.send_discover(version)
        except MCPError as error:
            mutual = _modern_in(error)
            if mutual and again:
                return await self._discover(mutual, probe_s, begin, again=False)
            if useless() or _modern_only(error):
                raise
        return raw is not None and self._adopted(raw)

    def _adopted(self, raw: dict[str, Any]) -> bool:
        try:
            result = types.DiscoverResult.model_validate(raw)
        except ValidationError:
            return False
        if not any(version in result.supported_versions for version in MODERN_PROTOCOL_VERSIONS):
            return False
        self._session.adopt(result)
        return True

    @property
    def is_modern(self) -> bool:
        return self.version in MODERN_PROTOCOL_VERSIONS

    @property
    def version(self) -> str:
        return self._session.protocol_version or ""

    @property
    def server(self) -> str:
        """Its self-asserted name and version, for display only."""
        info = self._session.server_info
        return f"{info.name} {info.version}".strip() if info else ""

    def offers(self, capability: str) -> bool:
        """Whether it has declared this capability. Of tools: False only when it declared its capabilities and tools are
        not among them."""
        capabilities = self._session.server_capabilities
        if capabilities is None:
            return capability == "tools"
        return getattr(capabilities, capability) is not None

    @property
    def tells_updates(self) -> bool:
        """Whether single resources can be followed."""
        declared = self._session.server_capabilities
        return bool(declared and declared.resources and declared.resources.subscribe)

    @property
    def announces_changes(self) -> bool:
        """Whether it tells when one of its lists changes."""
        return any(self._announces(capability) for capability in ("tools", "resources", "prompts"))

    def _announces(self, capability: str) -> bool:
        declared: Any = getattr(self._session.server_capabilities, capability, None)
        return bool(declared and declared.list_changed)

    # ---------------------------------------------------------------------------------------------------- requests

    @property
    def logs(self) -> bool:
        """Whether it takes `logging/setLevel` (handshake eras)."""
        declared = self._session.server_capabilities
        return bool(declared and declared.logging is not None)

    async def notify_roots_changed(self) -> None:
        await self._session.send_notification(types.RootsListChangedNotification())

    async def relay(
        self,
        method: str,
        params: dict[str, Any],
        request_id: int,
        on_progress: Callable[..., Awaitable[None]] | None,
        told: Mapping[str, Any],
    ) -> dict[str, Any]:
        """One raw request. told: as `stamp`. Raises MCPError (its error, or the connection closed). On cancel: the peer
        is told."""
        options = self.stamp(method, params, told)
        options["request_id"] = request_id
        self._pace.earn()
        if on_progress is not None:
            options["on_progress"] = cast("ProgressFnT", on_progress)
        return await self._dispatcher.send_raw_request(method, params, options)

    def stamp(self, method: str, params: dict[str, Any], told: Mapping[str, Any]) -> CallOptions:
        """Put what the era asks for into the params; its headers are `headers` of what is returned.

        told: reserved `_meta` of this request alone, where the era has it (capabilities, log level).
        """
        options: CallOptions = {}
        data = {"method": method, "params": params}
        self._session._stamp(data, options)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] – see the module's head
        if told and self.is_modern:
            params["_meta"].update(told)
        return options

    def stamp_call(self, params: dict[str, Any], told: Mapping[str, Any]) -> Mapping[str, str]:
        """As `stamp`, of a tools/call: its headers. What the SDK says of a tool it says each time, unless arguments are
        mirrored; so it is asked once for each."""
        stamp, name = self._session._stamp, params["name"]  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] – see the module's head
        if self._session._x_mcp_header_maps.get(name):  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] – the same
            return self.stamp("tools/call", params, told).get("headers", {})
        known = self._stamps.get(name)
        if known is None or known[0] is not stamp:  # another version has been agreed on
            blank: dict[str, Any] = {"name": name, "_meta": {}}
            headers = self.stamp("tools/call", blank, {}).get("headers", {})
            known = self._stamps[name] = stamp, blank["_meta"], headers
        params["_meta"].update(known[1])
        if told and self.is_modern:
            params["_meta"].update(told)
        return known[2]

    def mirror_headers(self, tools: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
        """Learn which arguments of these tools (name -> input schema) the modern wire mirrors into headers.

        Returns why a tool cannot be offered, by name: the revision forbids clients to use invalid annotations.
        """
        maps: dict[str, dict[tuple[str, ...], str]] = {}
        refused: dict[str, str] = {}
        for name, schema in tools.items():
            if self.is_modern and (reason := find_invalid_x_mcp_header(schema)) is not None:
                refused[name] = f"its x-mcp-header is invalid ({reason})"
            else:
                maps[name] = x_mcp_header_map(schema)
        self._stamps.clear()  # of tools that may be gone
        self._session._x_mcp_header_maps = maps  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] – see the module's head
        return refused

    async def hear_updates(self, uris: list[str], on_ack: Callable[[frozenset[str]], None]) -> None:
        """Follow these resources (modern only) until the stream ends; on_ack: which of them the server tells about."""
        try:
            async with listen(self._session, resource_subscriptions=uris) as events:
                on_ack(frozenset(events.honored.resource_subscriptions or ()))
                async for event in events:
                    if isinstance(event, ResourceUpdated):
                        self._on_updated(event.uri)
        except (MCPError, RuntimeError, TimeoutError):  # as in `hear_changes`
            return

    async def hear_changes(self, ack_s: float) -> None:
        """Follow `subscriptions/listen` (modern only) until it ends; each event is `on_changed`.

        Returns when the peer ended it or would not have it.
        """
        try:
            with anyio.move_on_after(ack_s) as waiting:
                async with listen(
                    self._session,
                    tools_list_changed=self._announces("tools"),
                    resources_list_changed=self._announces("resources"),
                    prompts_list_changed=self._announces("prompts"),
                ) as events:
                    waiting.deadline = float("inf")
                    async for _ in events:
                        self._on_changed()
        except (MCPError, RuntimeError, TimeoutError):  # SubscriptionLost and ListenNotSupportedError are RuntimeErrors
            return


_UNREADABLE = ("Failed to parse", "Unexpected content type")
_CLOSED = "Connection closed"
_ENDED = ("SSE stream", _CLOSED, "server answered a request with 202")


def what_happened(error: MCPError) -> Literal["refused", "unreadable", "ended"]:
    """Who made this error: the peer, or the SDK about an answer it could not read or never got.

    The SDK tells them apart by words only. A peer that imitates the words makes its own answers less certain.
    """
    if error.error.message.startswith(_UNREADABLE):
        return "unreadable"
    return "ended" if error.error.message.startswith(_ENDED) else "refused"


def is_closed(error: MCPError) -> bool:
    """Whether not only this request but the whole connection has ended."""
    return error.error.message.startswith(_CLOSED)


def _modern_in(error: MCPError) -> str:
    """The newest modern version a -32022 error names; "" for none or another error."""
    supported = _supported(error)
    mutual = [version for version in MODERN_PROTOCOL_VERSIONS if version in supported]
    return mutual[-1] if mutual else ""


def _modern_only(error: MCPError) -> bool:
    supported = _supported(error)
    return bool(supported) and not any(version in HANDSHAKE_PROTOCOL_VERSIONS for version in supported)


def _supported(error: MCPError) -> list[str]:
    data: Any = error.error.data
    if error.code != types.UNSUPPORTED_PROTOCOL_VERSION or not isinstance(data, Mapping):
        return []
    named: Any = cast("Mapping[str, Any]", data).get("supported")
    return [str(version) for version in cast("list[Any]", named)] if isinstance(named, list) else []


# ---------------------------------------------------------------------------------------------------------- transports


def http_streams(url: str, client: httpx2.AsyncClient, event_bytes: int) -> AbstractAsyncContextManager[Streams]:
    """Streamable HTTP on a client of ours, which stays open."""
    return streamable_http_client(url, http_client=client, max_sse_event_size=event_bytes)


@asynccontextmanager
async def sse_streams(url: str, client: httpx2.AsyncClient) -> AsyncGenerator[Streams]:
    """HTTP+SSE of 2024-11-05 on a client of ours, which the SDK closes when it leaves."""

    def ours(
        headers: dict[str, str] | None = None,  # noqa: ARG001 – the SDK's signature; all three are set on our client
        timeout: httpx2.Timeout | None = None,  # noqa: ARG001
        auth: httpx2.Auth | None = None,  # noqa: ARG001
    ) -> httpx2.AsyncClient:
        return client

    async with sse_client(url, httpx_client_factory=ours) as streams:
        yield streams
