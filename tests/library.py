"""A real downstream server with everything but tools, and a whole broker in front of it, for real clients in tests."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import anyio
import httpx2
import mcp_types as types
from mcp.client.client import Client
from mcp.client.sse import sse_client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp.server.lowlevel.server import NotificationOptions, Server
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler
from mcp.shared.exceptions import MCPError
from mcp.shared.subscriptions import ResourcesListChanged, ResourceUpdated
from starlette.responses import JSONResponse

from broker.assembly import Broker
from broker.faces import web
from broker.faces.mcp.agents import AgentServer
from tests.command import environment
from tests.downstream import serving
from tests.serving import Keys, challenged
from tests.world import settings_in


class Downstream(Protocol):
    """Anything that can be served behind the broker."""

    def app(self) -> Any: ...


class Library:
    """A server of the SDK in one era or both: books, a template of pages, prompts, completions. More books may come."""

    def __init__(self, *, legacy: bool = False, shelf: str = "main") -> None:
        self.legacy = legacy
        self.shelf = shelf
        self.books = ["book://emma", "book://ulysses", "book://secret/plan"]
        self.asked: list[tuple[str, Mapping[str, Any]]] = []
        self.sessions: list[Any] = []
        self.bus = InMemorySubscriptionBus()

        class Announcing(Server[Any]):
            def create_initialization_options(self, notification_options: Any = None, *rest: Any, **named: Any) -> Any:
                options = NotificationOptions(tools_changed=True, resources_changed=True, prompts_changed=True)
                return super().create_initialization_options(options, *rest, **named)

        self.server = Announcing(
            "library",
            version="3",
            on_list_resources=self.resources,
            on_list_resource_templates=self.templates,
            on_read_resource=self.read,
            on_list_prompts=self.prompts,
            on_get_prompt=self.prompt,
            on_completion=self.completion,
            on_subscriptions_listen=ListenHandler(self.bus),
            on_subscribe_resource=self.subscribe,
            on_unsubscribe_resource=self.subscribe,
        )

    def note(self, ctx: Any) -> None:
        self.asked.append((ctx.method, dict(ctx.params or {})))

    async def resources(self, ctx: Any, _params: Any) -> types.ListResourcesResult:
        self.sessions.append(ctx.session)
        return types.ListResourcesResult(
            resources=[
                types.Resource(uri=uri, name=uri.removeprefix("book://"), mime_type="text/plain", _meta={"x/y": 1})
                for uri in self.books
            ]
        )

    async def templates(self, _ctx: Any, _params: Any) -> types.ListResourceTemplatesResult:
        return types.ListResourceTemplatesResult(
            resource_templates=[types.ResourceTemplate(uri_template="page://{book}/{number}", name="page")]
        )

    async def read(self, ctx: Any, params: types.ReadResourceRequestParams) -> types.ReadResourceResult:
        self.note(ctx)
        if str(params.uri) == "page://emma/999":
            raise MCPError(-32002, "no such page", {"uri": str(params.uri)})
        return types.ReadResourceResult(
            contents=[
                types.TextResourceContents(uri=params.uri, text=f"{params.uri} of {self.shelf}", _meta={"x/z": 2})
            ],
            _meta={"dev.example/kept": True},
        )

    async def prompts(self, _ctx: Any, _params: Any) -> types.ListPromptsResult:
        arguments = [
            types.PromptArgument(name="book", required=True),
            types.PromptArgument(name="style", description="how"),
        ]
        return types.ListPromptsResult(
            prompts=[types.Prompt(name="review", arguments=arguments), types.Prompt(name="gossip")]
        )

    async def prompt(self, ctx: Any, params: types.GetPromptRequestParams) -> types.GetPromptResult:
        self.note(ctx)
        text = f"Review {params.arguments} for {self.shelf}"
        message = types.PromptMessage(role="user", content=types.TextContent(type="text", text=text))
        return types.GetPromptResult(description="a review", messages=[message])

    async def completion(self, ctx: Any, params: types.CompleteRequestParams) -> types.CompleteResult:
        self.note(ctx)
        known = params.context.arguments if params.context and params.context.arguments else {}
        values = [f"{params.argument.value}{end}" for end in ("a", "b")] + sorted(known.values())
        return types.CompleteResult(completion=types.Completion(values=values, total=2, has_more=False))

    async def gain(self, uri: str) -> None:
        """A new book, announced to whoever listens."""
        self.books.append(uri)
        if self.legacy:
            await self.sessions[-1].send_resource_list_changed()
        else:
            await self.bus.publish(ResourcesListChanged())

    async def subscribe(self, ctx: Any, params: Any) -> types.EmptyResult:
        self.note(ctx)
        return types.EmptyResult()

    async def update(self, uri: str) -> None:
        """A book changed."""
        if self.legacy:
            await self.sessions[-1].send_resource_updated(uri)
        else:
            await self.bus.publish(ResourceUpdated(uri=uri))

    def app(self) -> Any:
        inner: Any = self.server.streamable_http_app()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            headers = dict(scope["headers"]) if scope["type"] == "http" else {}
            if self.legacy and headers.get(b"mcp-protocol-version") == b"2026-07-28":
                refused = {"jsonrpc": "2.0", "id": None, "error": {"code": -32600, "message": "Bad Request"}}
                await JSONResponse(refused, 400)(scope, receive, send)
            else:
                await inner(scope, receive, send)

        return app


IMPORT = """
kind: import
name: library
backend: library
effect: read
scopes: [library.read]
resources: {take: ["book://*", "page://*"], drop: ["book://secret/*", "page://secret/*"]}
prompts: {take: [review]}
"""

READER = "ann~library.read"


def backend(name: str, url: str) -> str:
    return f"""
kind: backend
name: {name}
mcp: {{url: "{url}/mcp", allow_private: true, start_timeout: 5s}}
"""


@dataclass(slots=True)
class Reading:
    """A broker in front of a library, over real HTTP. `folder` has its settings, for one over stdio."""

    broker: Broker
    agents: AgentServer
    url: str
    folder: Path


@asynccontextmanager
async def reading(
    folder: Path, *libraries: Downstream, manifests: str = IMPORT, issuer: str = "test", **keys: Any
) -> AsyncGenerator[Reading]:
    """libraries: the first is called `library`, the next `library2`, … issuer: of callers; a held call of one from
    "settings" can run, if it is the caller of `stdio`."""
    with anyio.fail_after(50):
        async with AsyncExitStack() as stack:
            documents = [manifests]
            for number, library in enumerate(libraries, 1):
                url = await stack.enter_async_context(serving(library.app()))
                documents.append(backend("library" + (str(number) if number > 1 else ""), url))
            settings = settings_in(folder, "---".join(documents), listen={"port": 0}, **keys)
            broker = await stack.enter_async_context(Broker.open(settings))
            bound = web.bind(settings)
            url, ready = web.url_of(bound), anyio.Event()
            agents = AgentServer(
                broker.pipeline,
                Keys(issuer),
                settings,
                version="1",
                instructions="",
                challenge=challenged,
                base_url=lambda: url,
                clock=broker.clock,
                task_keys=lambda: [broker.store.secret("task id")],
            )
            stack.callback(broker.shelf.subscribe(agents.announce_tools_changed))
            broker.reconciler.on_resource_updated.add(agents.resource_updated)
            tasks = await stack.enter_async_context(anyio.create_task_group())

            async def run() -> None:
                await web.serve(web.build(agents, version="1"), settings, lambda _url: ready.set(), bound=bound)

            tasks.start_soon(run)
            await ready.wait()
            yield Reading(broker, agents, url, folder)
            tasks.cancel_scope.cancel()


@asynccontextmanager
async def client_of(
    house: Reading, transport: str = "http", mode: Any = "auto", *, token: str = READER, **more: Any
) -> AsyncGenerator[Client]:
    """A client of the SDK. Over stdio it starts a broker of its own on the same settings; `stdio` says who calls."""
    bearer = {"Authorization": f"Bearer {token}"}
    if transport == "stdio":
        command = StdioServerParameters(
            command=sys.executable,
            args=["-m", "broker", "--config", str(house.folder / "broker.yaml"), "serve", "--stdio"],
            env=environment(house.folder),
        )
        async with Client(stdio_client(command), mode=mode, **more) as client:
            yield client
        return
    async with httpx2.AsyncClient(headers=bearer, timeout=20) as http:
        wire: Any = (
            streamable_http_client(f"{house.url}/mcp", http_client=http)
            if transport == "http"
            else sse_client(f"{house.url}/sse", headers=bearer)
        )
        async with Client(wire, mode=mode, **more) as client:
            yield client
