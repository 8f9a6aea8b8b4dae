"""A real downstream server whose tools ask, log, report and wait; in the handshake eras, the modern one or both."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Literal

import anyio
import mcp_types as types
from mcp.server.lowlevel.server import NotificationOptions, Server
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler, ToolsListChanged
from mcp.shared.exceptions import MCPDeprecationWarning, MCPError
from starlette.responses import JSONResponse

Speaks = Literal["handshake", "modern", "both"]
MODERN = "2026-07-28"
STATE = "the server's own state"

FORM: dict[str, Any] = {
    "mode": "form",
    "message": "Who are you?",
    "requestedSchema": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
}
URL: dict[str, Any] = {"mode": "url", "message": "Sign here", "url": "https://sign.example/7", "elicitationId": "e7"}
PROMPT: dict[str, Any] = {
    "messages": [{"role": "user", "content": {"type": "text", "text": "Why?"}}],
    "maxTokens": 9,
    "x-unknown": 1,
}
QUESTIONS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "name": ("elicitation/create", FORM),
    "sign": ("elicitation/create", URL),
    "sample": ("sampling/createMessage", PROMPT),
    "roots": ("roots/list", {}),
}
NAMES = [*QUESTIONS, "progress", "wait", "log", "able"]


class Asking:
    """speaks: which eras it answers in. asked: (tool, era) of each call. seen: what clients gave as answers."""

    def __init__(self, speaks: Speaks = "both") -> None:
        self.speaks = speaks
        self.asked: list[tuple[str, str]] = []
        self.seen: list[Any] = []
        self.declared: list[Any] = []
        self.levels: list[str] = []
        self.names = [*NAMES]
        self.entered = anyio.Event()
        self.cancelled = anyio.Event()
        self.bus = InMemorySubscriptionBus()
        self.sessions: list[Any] = []

        class Announcing(Server[Any]):
            def create_initialization_options(self, notification_options: Any = None, *rest: Any, **named: Any) -> Any:
                return super().create_initialization_options(NotificationOptions(tools_changed=True), *rest, **named)

        self.server = Announcing(
            "asking",
            version="1",
            on_list_tools=self.listed,
            on_call_tool=self.called,
            on_subscriptions_listen=ListenHandler(self.bus),
        )
        self.server.add_request_handler("logging/setLevel", types.SetLevelRequestParams, self.set_level)

    async def listed(self, ctx: Any, _params: Any) -> types.ListToolsResult:
        self.sessions.append(ctx.session)
        return types.ListToolsResult(
            tools=[types.Tool(name=name, input_schema={"type": "object"}) for name in self.names]
        )

    async def set_level(self, _ctx: Any, params: types.SetLevelRequestParams) -> dict[str, Any]:
        self.levels.append(params.level)
        return {}

    async def called(self, ctx: Any, params: types.CallToolRequestParams) -> Any:
        modern = ctx.protocol_version == MODERN
        self.asked.append((params.name, "modern" if modern else "handshake"))
        declared = ctx.session.client_capabilities
        self.declared.append(declared.model_dump(by_alias=True, exclude_none=True) if declared else {})
        if params.name in QUESTIONS:
            return await (self._answer(ctx, params.name) if modern else self._ask(ctx, params.name))
        return await getattr(self, params.name)(ctx)

    async def _ask(self, ctx: Any, name: str) -> dict[str, Any]:
        method, asked = QUESTIONS[name]
        answer = await ctx.session._request_outbound.send_raw_request(method, asked)
        self.seen.append(answer)
        return said(name, answer)

    async def _answer(self, ctx: Any, name: str) -> dict[str, Any]:
        given: dict[str, Any] = ctx.params or {}
        responses: dict[str, Any] = given.get("inputResponses") or {}
        if name not in responses:
            method, asked = QUESTIONS[name]
            question = {"method": method, "params": {k: v for k, v in asked.items() if k != "elicitationId"}}
            return {"resultType": "input_required", "inputRequests": {name: question}, "requestState": STATE}
        if given.get("requestState") != STATE:
            raise MCPError(-32602, "a state of somebody else")
        self.seen.append(responses[name])
        return said(name, responses[name]) | {"resultType": "complete"}

    async def progress(self, ctx: Any) -> types.CallToolResult:
        await ctx.session.report_progress(1, 2, "half")
        return types.CallToolResult(content=[])

    async def wait(self, _ctx: Any) -> types.CallToolResult:
        self.entered.set()
        try:
            await anyio.sleep(30)
        except anyio.get_cancelled_exc_class():
            self.cancelled.set()
            raise
        return types.CallToolResult(content=[])

    async def log(self, ctx: Any) -> types.CallToolResult:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MCPDeprecationWarning)
            for level in ("debug", "info", "error"):
                await ctx.session.send_log_message(level, f"an {level}", "here", ctx.request_id)
        return types.CallToolResult(content=[])

    async def able(self, ctx: Any) -> types.CallToolResult:
        if "sampling" not in self.declared[-1]:
            raise MCPError(-32021, "needs a client that samples", {"requiredCapabilities": {"sampling": {}}})
        return types.CallToolResult(content=[])

    async def grow(self, name: str) -> None:
        """A further tool, announced to whoever listens."""
        self.names.append(name)
        if self.speaks == "handshake":
            for session in self.sessions:
                await session.send_tool_list_changed()
        else:
            await self.bus.publish(ToolsListChanged())

    def app(self) -> Any:
        inner: Any = self.server.streamable_http_app()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            headers = dict(scope["headers"]) if scope["type"] == "http" else {}
            is_modern = headers.get(b"mcp-protocol-version") == MODERN.encode()
            if scope["type"] == "http" and self.speaks not in ("both", "modern" if is_modern else "handshake"):
                error: dict[str, Any] = {"code": -32600, "message": "Bad Request"}
                if self.speaks == "modern":
                    error = {"code": -32022, "message": "no", "data": {"supported": [MODERN], "requested": "older"}}
                await JSONResponse({"jsonrpc": "2.0", "id": 1, "error": error}, 400)(scope, receive, send)
            else:
                await inner(scope, receive, send)

        return app


def said(name: str, answer: Any) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": f"{name}: {answer}"}]}


MANIFEST = """
kind: import
name: asking
backend: library
effect: read
take: ['*']
"""
CALLER = "ann"


async def elicited(_context: Any, params: Any) -> types.ElicitResult:
    content: Any = {"name": "Ann"} if getattr(params, "mode", "form") == "form" else None
    return types.ElicitResult(action="accept", content=content)


async def sampled(_context: Any, _params: Any) -> types.CreateMessageResult:
    return types.CreateMessageResult(
        role="assistant", content=types.TextContent(type="text", text="Because."), model="m", stop_reason="endTurn"
    )


async def rooted(_context: Any) -> types.ListRootsResult:
    return types.ListRootsResult(roots=[types.Root(uri="file:///home/ann")])  # pyright: ignore[reportArgumentType]


ABLE: dict[str, Any] = {
    "elicitation_callback": elicited,
    "sampling_callback": sampled,
    "list_roots_callback": rooted,
}
