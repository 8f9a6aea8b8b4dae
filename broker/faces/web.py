"""The root of everything the broker serves over HTTP, and the server under it.

Paths are matched on the raw bytes of the request target, exactly: `//mcp`, `/mcp%2f`, `/MCP` and `/healthz/../mcp` are
other paths and lead nowhere. Agents' endpoints go to the gate, which authenticates; `/healthz` and `/readyz` answer any
prober and say nothing a stranger may not know; what else is handed in (OAuth, metadata, API, console) is behind
the same Host check and a small body cap.

What must not live here: identity, JSON-RPC, anything of a call.
"""

from __future__ import annotations

import gc
import math
import signal
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import anyio
import orjson
import structlog
from anyio import to_thread
from anyio.abc import TaskStatus
from uvicorn.config import Config
from uvicorn.server import Server

from broker.data import dataclass
from broker.faces import memory
from broker.faces.connection import protocol_class
from broker.faces.mcp.agents import AgentServer
from broker.faces.mcp.headers import content_length, read_headers
from broker.faces.mcp.replies import CLOSE, JSON_HEADERS
from broker.faces.mcp.request import RawHeaders, Receive, Scope, Send
from broker.settings import Settings

if TYPE_CHECKING:
    from starlette.routing import BaseRoute

FORM_BYTES = 65_536

log = structlog.get_logger("broker.web")


@dataclass(frozen=True, slots=True)
class Beside:
    """What is served beside the agents' endpoints. on_drain: told when a shutdown begins, to end what would not end by
    itself."""

    app: Callable[[Scope, Receive, Send], Awaitable[None]]
    routes: Sequence[BaseRoute] = ()
    on_drain: Callable[[], None] = lambda: None


class Web:
    """The ASGI root. `running()` must be entered while it serves."""

    def __init__(
        self,
        agents: AgentServer,
        beside: Mapping[str, Callable[[], Beside]],
        not_ready: Callable[[], Sequence[str]],
        version: str,
        *,
        home: str = "",
    ) -> None:
        self._agents = agents
        self._builders = beside
        self._beside: dict[str, Beside] = {}
        self._building = anyio.Lock()
        self._not_ready = not_ready
        self._version = version
        self._plain: Mapping[bytes, Callable[[], tuple[int, Any]]] = {
            b"/": self._about,
            b"/healthz": lambda: (200, {"status": "alive"}),
            b"/readyz": self._readiness,
        }
        self._agent_paths = {path.encode() for path in agents.paths}
        self._home = home
        self._draining = False
        self.shortcut = agents.shortcut

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"{scope['type']} is not served here")
        path: bytes = scope.get("raw_path") or scope["path"].encode()
        if path in self._agent_paths:
            await self._agents.app(scope, receive, send)
        elif path in self._plain and scope["method"] in ("GET", "HEAD"):
            if path == b"/" and self._home and _is_browser(scope):
                await _json(send, 303, {"see": self._home}, [(b"location", self._home.encode())])
            else:
                await _json(send, *self._plain[path]())
        else:
            await self._other(path, scope, receive, send)

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        async with self._agents.running():
            yield

    async def drain(self, seconds: float) -> None:
        """Begin to shut down: `/readyz` turns red, nothing new is taken, streams end in good order."""
        self._draining = True
        for beside in self._beside.values():
            beside.on_drain()
        await self._agents.drain(seconds)

    def _about(self) -> tuple[int, Any]:
        return 200, {"name": "broker", "version": self._version, "mcp": "/mcp", "sse": "/sse", "ready": "/readyz"}

    def _readiness(self) -> tuple[int, Any]:
        reasons = ["shutting down"] if self._draining else list(self._not_ready())
        return (503, {"status": "not ready", "reasons": reasons}) if reasons else (200, {"status": "ready"})

    async def _other(self, path: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        headers, twice = read_headers(scope["headers"])
        if twice or (status := self._agents.places.host_status(headers, scope.get("server"))) == 400:
            await _json(send, 400, {"error": "bad request"})
            return
        if status:
            await _json(send, 421, {"error": "this host name is not served here"})
            return
        if b"transfer-encoding" in headers or content_length(headers) > FORM_BYTES:
            await _json(send, 413, {"error": f"at most {FORM_BYTES} bytes, with a Content-Length"}, [CLOSE])
            return
        word = path[1:].partition(b"/")[0].decode("latin-1")
        word = word if word in self._builders else ""
        beside = self._beside.get(word) or await self.beside(word)
        from starlette.exceptions import HTTPException  # loaded by now: what is beside is made of it

        try:
            await beside.app(scope, receive, send)
        except HTTPException as refusal:
            await _json(send, refusal.status_code, {"error": refusal.detail})

    async def beside(self, word: str) -> Beside:
        """What is served below this first word of a path, built when it is first asked for."""
        async with self._building:
            if word not in self._beside:
                self._beside[word] = await to_thread.run_sync(self._builders[word])
        return self._beside[word]


async def not_found(_scope: Scope, _receive: Receive, send: Send) -> None:
    await _json(send, 404, {"error": "there is nothing here"})


NOTHING_BESIDE: Mapping[str, Callable[[], Beside]] = {"": lambda: Beside(not_found)}


def build(
    agents: AgentServer,
    *,
    beside: Mapping[str, Callable[[], Beside]] = NOTHING_BESIDE,
    not_ready: Callable[[], Sequence[str]] = lambda: (),
    version: str = "",
    home: str = "",
) -> Web:
    """The ASGI root. beside: whatever else is served (OAuth, metadata), by the first word of its paths ("" for all
    others); each is built in a thread when it is first asked for, and brings its own identity checks.

    not_ready: why calls cannot be served now, shown on `/readyz`; empty when they can. home: the path where people are
    sent who ask for `/`.
    """
    return Web(agents, beside, not_ready, version, home=home)


def bind(settings: Settings) -> socket.socket:
    """The listening socket, so that its port is known before anything is told. Raises OSError when it is taken."""
    host, port = settings.listen.host, settings.listen.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.create_server((host, port), family=family, backlog=2048)
    # Connections inherit it. Without, the second piece of an answer waits 40 ms for the client's acknowledgement of the
    # first; asyncio sets it for sockets that name their protocol, which these do not.
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return bound


def url_of(bound: socket.socket) -> str:
    """`http://127.0.0.1:8750` of a listening socket."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def serve(
    app: Web,
    settings: Settings,
    on_ready: Callable[[str], None],
    *,
    bound: socket.socket | None = None,
    stop: anyio.Event | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT (or `stop`), then let what runs end within `limits.drain_s`, and return.

    on_ready: told the URL once connections are accepted. bound: a socket of `bind`, closed here. Run it on a loop of
    uvloop (`anyio.run(..., backend_options={"use_uvloop": True})`). A second SIGINT does not wait.
    """
    listening = bound or bind(settings)
    server = _Server(_config(app, settings), lambda: on_ready(url_of(listening)))
    async with app.running(), anyio.create_task_group() as tasks:
        leave = stop or anyio.Event()
        if stop is None:
            await tasks.start(_signals, server, leave)  # before it is told to be ready: a signal may follow at once
        tasks.start_soon(_leave, server, app, leave, settings.limits.drain_s)
        tasks.start_soon(memory.give_back)
        try:
            await server.serve(sockets=[listening])
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await server.close(listening)
            raise
        tasks.cancel_scope.cancel()


def _config(app: Web, settings: Settings) -> Config:
    return Config(
        app,  # pyright: ignore[reportArgumentType]  # ASGI in our own, looser words
        http=protocol_class(settings.limits, app.shortcut),  # pyright: ignore[reportArgumentType]  # as above
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",  # a warning per bad request would let anybody fill the log
        access_log=False,  # a request line may carry what must not be kept
        server_header=False,
        proxy_headers=False,  # nothing here depends on where a request says it comes from
        timeout_keep_alive=settings.limits.keep_alive_s,  # pyright: ignore[reportArgumentType]  # a delay like any
        timeout_graceful_shutdown=max(1, math.ceil(settings.limits.drain_s)),
    )


class _Server(Server):
    """uvicorn's, told what to do when it listens, and leaving signals to `serve`: it would die of them again."""

    def __init__(self, config: Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()
        gc.freeze()  # what the process has built to stay need not be looked at again: see also `broker.__main__`

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield

    async def close(self, listening: socket.socket) -> None:
        """End at once, for a caller that is being cancelled."""
        self.force_exit = True
        if self.started:
            await self.shutdown([listening])
        listening.close()


async def _signals(server: _Server, leave: anyio.Event, *, task_status: TaskStatus[None]) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for number in signals:
            if leave.is_set() and number == signal.SIGINT:
                server.force_exit = True
            leave.set()


async def _leave(server: _Server, app: Web, leave: anyio.Event, drain_s: float) -> None:
    await leave.wait()
    log.info("shutting down", drain_s=drain_s)
    server.should_exit = True
    await app.drain(drain_s)


def _is_browser(scope: Scope) -> bool:
    """Whether somebody wants to look at a page: programs ask for anything, or for JSON."""
    return any(name == b"accept" and b"text/html" in value for name, value in scope["headers"])


async def _json(send: Send, status: int, value: Any, headers: RawHeaders = ()) -> None:
    body = orjson.dumps(value)
    lines = [*JSON_HEADERS, (b"content-length", b"%d" % len(body)), *headers]
    await send({"type": "http.response.start", "status": status, "headers": lines})
    await send({"type": "http.response.body", "body": body})
