"""The SDK's part of the agents' server: sessions, streams, dispatch and versions, for every transport and era.

What is ours here: what the tools are, what a call does, who is told of changes. Handlers take who calls from the
request that carries the message, never from the session: a session may see many tokens of its one principal.

It is imported when the first request needs it (`agents`), because the SDK is a third of a broker's memory and half of
its start. What must not live here: private parts of the SDK (`sdk`), decisions about calls (the pipeline).
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import anyio
import mcp_types
from anyio.abc import TaskStatus
from mcp.server.caching import CacheHint
from mcp.server.context import ServerRequestContext
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

from broker.errors import (
    BrokerError,
    InsufficientScope,
    Malformed,
    Unauthenticated,
    UnknownTool,
)
from broker.faces.mcp import stdio
from broker.faces.mcp.agreement import INVALID_PARAMS, MODERN
from broker.faces.mcp.asking import back_of, session_of
from broker.faces.mcp.calls import PROTOCOL_ERRORS, build_call, perform, protocol_error, unknown_tool
from broker.faces.mcp.direct import Direct
from broker.faces.mcp.events import RETRY_MS, Events
from broker.faces.mcp.inquiries import Inquiries
from broker.faces.mcp.ports import House
from broker.faces.mcp.progress import Progress
from broker.faces.mcp.relay import CACHE_HINTS, Relay, complete, scope_of, trace_parent
from broker.faces.mcp.request import FACE, OUTCOME, PRINCIPAL, App, Receive, Scope, Send
from broker.faces.mcp.sdk import BrokerServer, Sessions, connection_of, open_sessions, owner, silence, tell
from broker.faces.mcp.sessions import Audience, Shown
from broker.faces.mcp.sse import SseEndpoint
from broker.faces.mcp.strict import INVALID_REQUEST
from broker.faces.refusal import as_result
from broker.model.principal import Principal

INTERNAL_ERROR = -32603
_CHANGED = {"tools": ToolsListChanged, "resources": ResourcesListChanged, "prompts": PromptsListChanged}

Context = ServerRequestContext[Any, Any]

# Who calls, for the SDK's schema lookup, which is given no context: it runs in the task of the HTTP request.
_caller: ContextVar[Principal | None] = ContextVar("caller", default=None)


class SdkServer:
    """apps: ASGI by path; that of /mcp serves while `run` does. server_info: name, title, version of the broker."""

    def __init__(
        self, house: House, audience: Audience, direct: Direct, *, server_info: Mapping[str, str], instructions: str
    ) -> None:
        silence()
        self._house = house
        self._audience = audience
        self._direct = direct
        self._relay = Relay(house, audience, self._answering)
        self._inquiries = Inquiries(house)
        self._server = self._make_server(server_info, instructions)
        self._streamable: Sessions | None = None
        sse = SseEndpoint(self._server, house.limits)
        self.apps: Mapping[str, App] = {"/mcp": self._streamable_http, "/sse": sse.stream, "/messages/": sse.message}
        self._on_streams = 0  # calls whose answers travel on an HTTP+SSE stream
        self._streams_idle = anyio.Event()

    async def run(self, leave: anyio.Event, *, task_status: TaskStatus[None]) -> None:
        """Sessions live inside, until `leave` is set. Once per server."""
        limits = self._house.limits
        manager = Sessions(
            events=Events(),
            app=self._server,
            retry_interval=RETRY_MS,
            session_idle_timeout=limits.session_idle_s,
            max_sessions=limits.sessions,
            max_request_body_size=limits.body_bytes,
        )
        async with manager.run():
            self._streamable = manager
            task_status.started()
            try:
                await leave.wait()
            finally:
                self._streamable = None

    @property
    def sessions(self) -> int:
        """Handshake-era sessions open now."""
        return open_sessions(self._streamable) if self._streamable else 0

    async def streams_idle(self) -> None:
        """Wait until no call is under way whose answer travels on an HTTP+SSE stream."""
        while self._on_streams:
            self._streams_idle = anyio.Event()
            await self._streams_idle.wait()

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
            raise RuntimeError("SdkServer.run() is not under way")
        principal: Principal = scope[PRINCIPAL]
        scope["user"] = owner(principal)
        _caller.set(principal)
        await self._streamable.handle_request(scope, receive, send)

    # ------------------------------------------------------------------------------------------------------ handlers

    def _make_server(self, server_info: Mapping[str, str], instructions: str) -> BrokerServer:
        server = BrokerServer(
            server_info["name"],
            version=server_info["version"],
            title=server_info["title"],
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
        self._inquiries.register(server)
        server.add_request_handler("subscriptions/listen", mcp_types.SubscriptionsListenRequestParams, self._listen)
        server.add_request_handler("logging/setLevel", mcp_types.SetLevelRequestParams, self._set_level)
        server.add_notification_handler("notifications/initialized", mcp_types.NotificationParams, self._initialized)
        server.add_notification_handler("notifications/roots/list_changed", mcp_types.NotificationParams, self._rooted)
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
        self._house.on_listed(principal, len(listing))
        entries = [dict(entry) for entry in listing]
        if context.protocol_version not in MODERN:  # an output schema is of an object there
            for entry in entries:
                if "outputSchema" in entry and entry["outputSchema"].get("type") != "object":
                    del entry["outputSchema"]
        return complete(context, {"tools": entries})

    async def _call_tool(self, context: Context, _params: mcp_types.CallToolRequestParams) -> dict[str, Any]:
        """The raw params, not the typed ones: nothing that a client sent is lost or changed on the way."""
        scope = scope_of(context)
        outcome = scope.pop(OUTCOME, None)
        if isinstance(outcome, UnknownTool):
            raise MCPError(INVALID_PARAMS, unknown_tool(str((context.params or {}).get("name"))))
        if isinstance(outcome, BrokerError):
            raise MCPError(INVALID_PARAMS, outcome.sentence)
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
        capabilities, params = context.session.client_capabilities, context.params or {}
        try:
            call = build_call(
                params,
                principal=scope[PRINCIPAL],
                face=scope[FACE],
                now_ms=self._house.clock.now_ms(),
                request_id=context.request_id,
                capabilities=capabilities.model_dump(by_alias=True, exclude_none=True) if capabilities else {},
                trace_parent=trace_parent(scope),
                progress=Progress(context).report,
                back=back_of(context),
            )
            self._house.rounds.begin(call, params)
        except Malformed as fault:
            raise MCPError(INVALID_PARAMS, fault.message) from None
        try:
            return complete(context, await perform(self._house, call))
        except UnknownTool:
            raise MCPError(INVALID_PARAMS, unknown_tool(call.name)) from None
        except PROTOCOL_ERRORS as refusal:
            code, said, data = protocol_error(refusal, call) or (INVALID_PARAMS, refusal.sentence, None)
            raise MCPError(code, said, data) from None
        except (InsufficientScope, Unauthenticated) as refusal:  # no status to give here: stdio, or an open stream
            return complete(context, as_result(refusal, call.id))

    async def _initialized(self, context: Context, _params: mcp_types.NotificationParams) -> None:
        connection = connection_of(context)
        self._audience.join(connection, _principal(context))
        connection.exit_stack.callback(self._audience.leave, connection)

    async def _set_level(self, context: Context, params: mcp_types.SetLevelRequestParams) -> dict[str, Any]:
        """For this session from now on; the servers behind hear of it with the next call of theirs."""
        session_of(context).log_level = params.level
        return {}

    async def _rooted(self, context: Context, _params: mcp_types.NotificationParams) -> None:
        session_of(context).roots_changed()

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
            tasks = self._inquiries.followed(context, (asked.model_extra or {}).get("taskIds"))
            honoured = mcp_types.SubscriptionFilter(
                tools_list_changed=wanted["tools"] or None,
                resources_list_changed=wanted["resources"] or None,
                prompts_list_changed=wanted["prompts"] or None,
                resource_subscriptions=followed or None,
                **({"taskIds": tasks} if tasks else {}),
            )
            await context.session.send_notification(
                mcp_types.SubscriptionsAcknowledgedNotification(
                    params=mcp_types.SubscriptionsAcknowledgedNotificationParams(notifications=honoured, _meta=meta)
                ),
                related_request_id=subscription,
            )

            async def tell_task(told: Mapping[str, Any]) -> None:
                await tell(context, "notifications/tasks", {**told, "_meta": meta})

            if tasks:
                async with anyio.create_task_group() as following:
                    following.start_soon(self._inquiries.follow, context, tasks, tell_task)
                    await self._pass_on(context, shown, wanted, meta)
                    following.cancel_scope.cancel()
            else:
                await self._pass_on(context, shown, wanted, meta)
        return mcp_types.SubscriptionsListenResult(_meta=meta)

    async def _pass_on(self, context: Context, shown: Shown, wanted: Mapping[str, bool], meta: dict[str, Any]) -> None:
        """Tell of changes until the stream is to end. meta: of each notification."""
        while not shown.ending:
            await shown.changed.wait()
            shown.changed = anyio.Event()
            news, shown.news = shown.news, set()
            updated, shown.updated = shown.updated, set()
            for uri in sorted(updated) if not shown.ending else ():
                await context.session.send_notification(
                    event_to_notification(ResourceUpdated(uri=uri), meta), related_request_id=context.request_id
                )
            for kind in sorted(news) if not shown.ending else ():
                if wanted[kind]:
                    await context.session.send_notification(
                        event_to_notification(_CHANGED[kind](), meta), related_request_id=context.request_id
                    )


def _principal(context: Context) -> Principal:
    return scope_of(context)[PRINCIPAL]
