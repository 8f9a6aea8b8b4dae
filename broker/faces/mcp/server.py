"""The agents' server: one SDK server for every transport and era, behind the gate, on the pipeline.

What the SDK owns: sessions, streams, dispatch, versions. What is ours: what the tools are, what a call does, who is
told of changes, and everything before the first of its lines runs (`gate`). Handlers take who calls from the request
that carries the message, never from the session: a session may see many tokens of its one principal.

What must not live here: private parts of the SDK (`sdk`), decisions about calls (the pipeline).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from time import time
from typing import Any

import anyio
import mcp_types
from mcp.server.caching import CacheHint
from mcp.server.context import ServerRequestContext
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.shared.exceptions import MCPError
from mcp.shared.message import SessionMessage
from mcp.shared.subscriptions import (
    SUBSCRIPTION_ID_META_KEY,
    PromptsListChanged,
    ResourcesListChanged,
    ResourceUpdated,
    ToolsListChanged,
    event_to_notification,
)

from broker.errors import InsufficientScope, Malformed, Unauthenticated, UnknownTool
from broker.faces.mcp import stdio
from broker.faces.mcp.agreement import INVALID_PARAMS
from broker.faces.mcp.calls import build_call, perform, unknown_tool
from broker.faces.mcp.direct import Direct
from broker.faces.mcp.gate import METHODS, Gate
from broker.faces.mcp.headers import Places
from broker.faces.mcp.ports import Authenticate, Challenge, Clock, House, Pipeline, Refused
from broker.faces.mcp.progress import Progress
from broker.faces.mcp.relay import CACHE_HINTS, Relay, complete, scope_of, trace_parent
from broker.faces.mcp.request import FACE, OUTCOME, PRINCIPAL, App, Receive, Scope, Send
from broker.faces.mcp.sdk import BrokerServer, connection_of, open_sessions, owner, silence
from broker.faces.mcp.sessions import Audience
from broker.faces.mcp.sse import SseEndpoint
from broker.faces.mcp.standing import Standing
from broker.faces.mcp.strict import INVALID_REQUEST
from broker.faces.refusal import as_result
from broker.model.principal import Principal
from broker.settings import Settings

NAME = "broker"
TITLE = "Governed MCP broker"
INTERNAL_ERROR = -32603
_CHANGED = {"tools": ToolsListChanged, "resources": ResourcesListChanged, "prompts": PromptsListChanged}
_LOOPBACK = ("127.0.0.1", "localhost", "::1")

Context = ServerRequestContext[Any, Any]

# Who calls, for the SDK's schema lookup, which is given no context: it runs in the task of the HTTP request.
_caller: ContextVar[Principal | None] = ContextVar("caller", default=None)


class _SystemClock:
    def now_ms(self) -> int:
        return int(time() * 1000)


class AgentServer:
    """All endpoints for agents. `app` serves /mcp, /sse and /messages/ while `running()` is entered."""

    def __init__(
        self,
        pipeline: Pipeline,
        authenticate: Authenticate,
        settings: Settings,
        *,
        version: str,
        instructions: str,
        challenge: Challenge,
        base_url: Callable[[], str],
        clock: Clock | None = None,
        on_refused: Refused = lambda _kind: None,
    ) -> None:
        """instructions: what a model is told about the whole server. base_url: where clients reach it; asked when a
        request comes, so that a port taken at start is known by then. on_refused: told the kind of each request that
        never became a call.
        """
        silence()
        self._house = House(
            pipeline, authenticate, challenge, base_url, settings.limits, clock or _SystemClock(), on_refused
        )
        self._settings = settings
        self._audience = Audience(pipeline, most=settings.limits.sessions)
        self._relay = Relay(self._house, self._audience, self._answering)
        self._server = self._make_server(version, instructions)
        self._streamable: StreamableHTTPSessionManager | None = None
        self._sse = SseEndpoint(self._server, settings.limits)
        self._direct = Direct(self._house, server_info={"name": NAME, "title": TITLE, "version": version})
        self._standing = Standing(authenticate)
        self.places = Places(
            loopback=settings.listen.host in _LOOPBACK,
            public=base_url,
            hosts=settings.allowed_hosts,
            origins=settings.allowed_origins,
        )
        apps: dict[str, App] = {
            "/mcp": self._streamable_http,
            "/sse": self._sse.stream,
            "/messages/": self._sse.message,
        }
        self._gate = Gate(
            apps,
            self._house,
            direct=self._direct,
            standing=self._standing,
            places=self.places,
            sessions=lambda: open_sessions(self._streamable) if self._streamable else 0,
        )
        self._on_streams = 0  # calls whose answers travel on an HTTP+SSE stream
        self._streams_idle = anyio.Event()

    # ------------------------------------------------------------------------------------------------ what it serves

    paths = frozenset(METHODS)

    @property
    def app(self) -> App:
        """ASGI for the paths of `paths`, matched exactly by whoever routes to it."""
        return self._gate

    @property
    def streams(self) -> int:
        """Standing streams open now: GET, HTTP+SSE and listen."""
        return len(self._standing)

    @property
    def listeners(self) -> int:
        """Sessions and listen streams that are told of changes."""
        return len(self._audience)

    @property
    def bytes_left(self) -> int:
        """How many bytes of request bodies may still be in flight."""
        return self._gate.budget.left

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Sessions, announcements and keep-alives live inside; leaving ends them all. Once per server."""
        limits = self._settings.limits
        manager = StreamableHTTPSessionManager(
            app=self._server,
            session_idle_timeout=limits.session_idle_s,
            max_sessions=limits.sessions,
            max_request_body_size=limits.body_bytes,
        )
        async with manager.run(), anyio.create_task_group() as tasks:
            self._streamable = manager
            tasks.start_soon(self._audience.announcing)
            tasks.start_soon(self._direct.keep_alive)
            try:
                yield
            finally:
                self._streamable = None
                tasks.cancel_scope.cancel()

    def announce_tools_changed(self) -> None:
        """The catalog may have changed: tell the clients whose own list did. Returns at once; call it on the loop."""
        self._audience.announce()

    def resource_updated(self, backend: str, uri: str) -> None:
        """A followed resource changed at its server: tell those who follow it. Returns at once; call it on the loop."""
        self._audience.updated(backend, uri)

    async def drain(self, seconds: float) -> None:
        """Begin to shut down: nothing new is taken, streams end, those that carry answers after their answers.

        At most `seconds` are waited. What is still being answered on its own request is the HTTP server's to wait for.
        """
        self._gate.closing = True
        self._audience.end()
        with anyio.move_on_after(min(0.2, seconds)):
            await anyio.sleep(0.05)  # listen streams say goodbye themselves
        self._standing.end(answers=False)
        with anyio.move_on_after(seconds):
            while self._on_streams:
                self._streams_idle = anyio.Event()
                await self._streams_idle.wait()
        self._standing.end(answers=True)

    async def serve_stdio(self, principal: Principal) -> None:
        """Serve one client over this process's standard input and output, to the end of input."""
        with stdio.claimed() as (source, sink):
            await self.serve_wire(stdio.reader(source), stdio.writer(sink), principal)

    async def serve_wire(self, read: stdio.Read, write: stdio.Write, principal: Principal) -> None:
        """As `serve_stdio`, over any pair of byte streams. Needs no `running()`."""
        wire = stdio.Wire(read, write, principal, self._house.limits, self._house.on_refused)
        inbox, messages = anyio.create_memory_object_stream[SessionMessage | Exception](0)
        answers, outbox = anyio.create_memory_object_stream[SessionMessage](0)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wire.receive, inbox)
            tasks.start_soon(wire.send, outbox)
            tasks.start_soon(self._audience.announcing)
            await self._server.run(messages, answers, self._server.create_initialization_options())
            tasks.cancel_scope.cancel()

    async def _streamable_http(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._streamable is None:
            raise RuntimeError("AgentServer.running() is not entered")
        principal: Principal = scope[PRINCIPAL]
        scope["user"] = owner(principal)
        _caller.set(principal)
        await self._streamable.handle_request(scope, receive, send)

    # ------------------------------------------------------------------------------------------------------ handlers

    def _make_server(self, version: str, instructions: str) -> BrokerServer:
        server = BrokerServer(
            NAME,
            version=version,
            title=TITLE,
            instructions=instructions,
            get_tool_input_schema=self._mirrored_schema,
            cache_hints={
                "tools/list": CacheHint(ttl_ms=0, scope="private"),
                "server/discover": CacheHint(ttl_ms=0, scope="private"),
                **CACHE_HINTS,
            },
        )
        server.add_request_handler("tools/list", mcp_types.PaginatedRequestParams, self._list_tools)
        server.add_request_handler("tools/call", mcp_types.CallToolRequestParams, self._call_tool)
        self._relay.register(server)
        server.add_request_handler("subscriptions/listen", mcp_types.SubscriptionsListenRequestParams, self._listen)
        server.add_notification_handler("notifications/initialized", mcp_types.NotificationParams, self._initialized)
        return server

    def _mirrored_schema(self, name: str) -> Mapping[str, Any] | None:
        """For the SDK's check of `Mcp-Param-*`: the schema of a tool this caller may see, None for all others."""
        principal = _caller.get()
        schema = self._house.pipeline.input_schema(name)
        if schema is None or principal is None or not self._direct.mirrors_arguments(name):
            return None
        listed = any(entry["name"] == name for entry in self._house.pipeline.listing(principal))
        return schema if listed or self._house.pipeline.missing_scopes(name, principal) else None

    async def _list_tools(self, context: Context, params: mcp_types.PaginatedRequestParams) -> dict[str, Any]:
        if params.cursor is not None:
            raise MCPError(INVALID_PARAMS, "There are no further pages; list without a cursor.")
        principal = _principal(context)
        listing = self._house.pipeline.listing(principal)
        self._audience.was_shown(connection_of(context), principal, listing)
        return complete(context, {"tools": [dict(entry) for entry in listing]})

    async def _call_tool(self, context: Context, _params: mcp_types.CallToolRequestParams) -> dict[str, Any]:
        """The raw params, not the typed ones: nothing that a client sent is lost or changed on the way."""
        scope = scope_of(context)
        outcome = scope.pop(OUTCOME, None)
        if isinstance(outcome, UnknownTool):
            raise MCPError(INVALID_PARAMS, unknown_tool(str((context.params or {}).get("name"))))
        if outcome is not None:
            return complete(context, outcome)
        with self._answering(scope):
            return await self._perform(context, scope)

    @contextmanager
    def _answering(self, scope: Mapping[str, Any]) -> Generator[None]:
        """While a call is answered: `drain` waits for those whose answers travel on an HTTP+SSE stream."""
        streamed = scope[FACE] == "mcp-sse"
        self._on_streams += streamed
        try:
            yield
        finally:
            self._on_streams -= streamed
            if not self._on_streams:
                self._streams_idle.set()

    async def _perform(self, context: Context, scope: Mapping[str, Any]) -> dict[str, Any]:
        capabilities = context.session.client_capabilities
        try:
            call = build_call(
                context.params or {},
                principal=scope[PRINCIPAL],
                face=scope[FACE],
                now_ms=self._house.clock.now_ms(),
                request_id=context.request_id,
                capabilities=capabilities.model_dump(by_alias=True, exclude_none=True) if capabilities else {},
                trace_parent=trace_parent(scope),
            )
        except Malformed as fault:
            raise MCPError(INVALID_PARAMS, fault.message) from None
        call.progress = Progress(context).report
        try:
            return complete(context, await perform(self._house.pipeline, call))
        except UnknownTool:
            raise MCPError(INVALID_PARAMS, unknown_tool(call.name)) from None
        except (InsufficientScope, Unauthenticated) as refusal:  # no status to give here: stdio, or an open stream
            return complete(context, as_result(refusal, call.id))

    async def _initialized(self, context: Context, _params: mcp_types.NotificationParams) -> None:
        connection = connection_of(context)
        self._audience.join(connection, _principal(context))
        connection.exit_stack.callback(self._audience.leave, connection)

    async def _listen(self, context: Context, params: mcp_types.SubscriptionsListenRequestParams) -> Any:
        """One listen stream: changes of lists, and updates of the resources its caller may follow."""
        subscription = context.request_id
        if subscription is None:
            raise MCPError(INVALID_REQUEST, "subscriptions/listen needs an id")
        meta: dict[str, Any] = {SUBSCRIPTION_ID_META_KEY: subscription}
        asked = params.notifications
        wanted = {
            "tools": bool(asked.tools_list_changed),
            "resources": bool(asked.resources_list_changed),
            "prompts": bool(asked.prompts_list_changed),
        }
        with self._audience.listening(_principal(context)) as shown:
            if shown is None:
                raise MCPError(INTERNAL_ERROR, "Refused: too many listen streams are open (limit: sessions).")
            followed = await self._relay.follow(context, shown, asked.resource_subscriptions or ())
            honoured = mcp_types.SubscriptionFilter(
                tools_list_changed=wanted["tools"] or None,
                resources_list_changed=wanted["resources"] or None,
                prompts_list_changed=wanted["prompts"] or None,
                resource_subscriptions=followed or None,
            )
            await context.session.send_notification(
                mcp_types.SubscriptionsAcknowledgedNotification(
                    params=mcp_types.SubscriptionsAcknowledgedNotificationParams(notifications=honoured, _meta=meta)
                ),
                related_request_id=subscription,
            )
            while not shown.ending:
                await shown.changed.wait()
                shown.changed = anyio.Event()
                news, shown.news = shown.news, set()
                updated, shown.updated = shown.updated, set()
                for uri in sorted(updated) if not shown.ending else ():
                    await context.session.send_notification(
                        event_to_notification(ResourceUpdated(uri=uri), meta), related_request_id=subscription
                    )
                for kind in sorted(news) if not shown.ending else ():
                    if wanted[kind]:
                        await context.session.send_notification(
                            event_to_notification(_CHANGED[kind](), meta), related_request_id=subscription
                        )
        return mcp_types.SubscriptionsListenResult(_meta=meta)


def _principal(context: Context) -> Principal:
    return scope_of(context)[PRINCIPAL]
