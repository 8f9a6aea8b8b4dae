"""The other side for tests: a house for backends, real HTTP servers on a port, raw sockets that misbehave."""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pkgutil import resolve_name
from typing import Any

import anyio
import uvicorn
from anyio.abc import SocketStream, TaskGroup
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from broker.backends import BACKENDS
from broker.model.answer import Answer
from broker.model.call import Call, Progress
from broker.model.principal import Principal
from broker.model.tool import Tool, ToolEffect
from broker.ports import Backend, BackendKind, Clock, Secrets


def kind_of(name: str) -> BackendKind:
    return resolve_name(BACKENDS[name])


class House:
    """A BackendContext: a clock that stands, secrets from a dict, an event for every change."""

    def __init__(self, tasks: TaskGroup, directory: str = ".") -> None:
        self.tasks = tasks
        self.directory = directory
        self.values: dict[str, str] = {}
        self.updated: list[tuple[str, str]] = []
        self.now = 1_800_000_000_000
        self._changed = anyio.Event()
        self.clock: Clock = self
        self.secrets: Secrets = self

    def now_ms(self) -> int:
        return self.now

    def resolve(self, reference: str) -> str:
        try:
            return self.values[reference]
        except KeyError:
            raise LookupError(f"{reference} is not set") from None

    def resource_updated(self, backend: str, uri: str) -> None:
        self.updated.append((backend, uri))
        self.offer_changed(backend)

    def offer_changed(self, backend: str) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    async def until(self, met: Callable[[], bool], within_s: float = 20) -> None:
        with anyio.fail_after(within_s):
            while not met():
                await self._changed.wait()

    async def until_settled(self, backend: Backend) -> None:
        await self.until(lambda: backend.health.state != "starting")


@asynccontextmanager
async def house(directory: str = ".") -> AsyncGenerator[House]:
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            yield House(tasks, directory)


@asynccontextmanager
async def opened(where: House, kind: str, spec: Mapping[str, Any], name: str = "orders") -> AsyncGenerator[Backend]:
    """A backend as the house builds it, closed at the end."""
    row = kind_of(kind)
    backend = row.build(name, row.Spec.model_validate(spec), where)
    await backend.open()
    try:
        yield backend
    finally:
        with anyio.CancelScope(shield=True):
            await backend.aclose()


def tool_with(action: object, *, effect: ToolEffect = "write", idempotent: bool = False, timeout_s: float = 10) -> Tool:
    return Tool(
        name="tool",
        version="1",
        owner="",
        title="",
        description="",
        effect=effect,
        scopes=frozenset(),
        backend="orders",
        input_schema={},
        output_schema=None,
        listed={},
        definition="",
        action=action,
        idempotent=idempotent,
        timeout_s=timeout_s,
    )


def http_tool(action: Mapping[str, Any], schema: Mapping[str, Any] | None = None, *inject: str, **more: Any) -> Tool:
    row = kind_of("http")
    assert row.Action is not None
    properties = schema or {}
    compiled = row.compile(
        row.Action.model_validate(action),
        {"type": "object", "properties": properties, "required": [*properties]},
        inject,
    )
    return tool_with(compiled, **more)


def a_call(call_id: str = "0199-call", progress: Progress | None = None, **more: Any) -> Call:
    return Call(
        id=call_id,
        name="tool",
        arguments={},
        principal=Principal("bot"),
        face="test",
        received_at_ms=0,
        progress=progress,
        **more,
    )


async def ask(backend: Backend, tool: Tool, call: Call | None = None, **arguments: Any) -> Answer:
    with anyio.fail_after(20):
        return await backend.call(tool, arguments, call or a_call())


def text_of(answer: Answer) -> str:
    return "".join(str(block.get("text", "")) for block in answer.content)


def listener(port: int = 0) -> socket.socket:
    """A listening socket. With its protocol named, or asyncio leaves Nagle's algorithm on for what it accepts."""
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(("127.0.0.1", port))
    bound.listen(128)
    return bound


class _Quick(uvicorn.Server):
    """A uvicorn that ends at once, as a process does that is killed; its own way out takes 0.2 s."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ended = anyio.Event()

    async def main_loop(self) -> None:
        await self.ended.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
            connection.transport.close()
        for task in list(self.server_state.tasks):
            task.cancel()
        with anyio.move_on_after(2):
            while self.server_state.tasks or self.server_state.connections:
                await anyio.sleep(0.001)
        await self.lifespan.shutdown()


@asynccontextmanager
async def serving(app: Any, port: int = 0) -> AsyncGenerator[str]:
    """An ASGI app on loopback; gives its base URL."""
    bound = listener(port)
    config = uvicorn.Config(app, log_level="critical", ws="none")
    server = _Quick(config)
    config.load()
    async with AsyncExitStack() as stack:
        stack.callback(bound.close)
        tasks = await stack.enter_async_context(anyio.create_task_group())
        tasks.start_soon(server.serve, [bound])
        try:
            yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        finally:
            server.ended.set()


@asynccontextmanager
async def answering(
    *answers: Response | Callable[[Request], Awaitable[Response]],
) -> AsyncGenerator[tuple[str, list[Any]]]:
    """An API that gives these answers in turn, the last one for ever; and what it was asked: (request, body)."""
    asked: list[tuple[Request, bytes]] = []

    async def answer(request: Request) -> Response:
        asked.append((request, await request.body()))
        given = answers[min(len(asked), len(answers)) - 1]
        return given if isinstance(given, Response) else await given(request)

    methods = ["GET", "POST", "PUT", "PATCH", "DELETE"]
    async with serving(Starlette(routes=[Route("/{path:path}", answer, methods=methods)])) as url:
        yield url, asked


@asynccontextmanager
async def raw(handle: Callable[[SocketStream], Awaitable[None]]) -> AsyncGenerator[str]:
    """A server of bytes: `handle` gets each connection after its request has been read; gives the base URL."""

    async def connected(stream: SocketStream) -> None:
        async with stream:
            try:
                received = b""
                while b"\r\n\r\n" not in received:
                    received += await stream.receive()
                await handle(stream)
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                return

    async with AsyncExitStack() as stack:
        served = await stack.enter_async_context(await anyio.create_tcp_listener(local_host="127.0.0.1"))
        tasks = await stack.enter_async_context(anyio.create_task_group())
        tasks.start_soon(served.serve, connected)
        try:
            yield f"http://127.0.0.1:{served.listeners[0].extra(anyio.abc.SocketAttribute.local_port)}"
        finally:
            tasks.cancel_scope.cancel()
