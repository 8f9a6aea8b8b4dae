"""The agents' server: everything before the first line of the SDK runs, and the SDK behind it once it is needed.

Most of what modern agents send is answered from the gate's own parse (`direct`). The SDK (`server`) is a third of a
broker's memory and half of its start, so it is imported when the first request goes on to it: in a thread, and that
request waits.

What must not live here: what the SDK's handlers do, decisions about calls.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from importlib import import_module
from secrets import token_bytes
from time import time
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from broker.faces.mcp.direct import Direct
from broker.faces.mcp.gate import METHODS, Gate
from broker.faces.mcp.headers import Places
from broker.faces.mcp.ports import Authenticate, Challenge, Clock, House, Listed, Pipeline, Refused, Remembered
from broker.faces.mcp.request import App, Receive, Scope, Send
from broker.faces.mcp.rounds import Rounds
from broker.faces.mcp.sealing import Keys
from broker.faces.mcp.sessions import Audience
from broker.faces.mcp.shortcut import Shortcut
from broker.faces.mcp.standing import Standing
from broker.faces.mcp.tasks import Tasks
from broker.model.principal import Principal
from broker.settings import Settings

if TYPE_CHECKING:
    from broker.faces.mcp import stdio
    from broker.faces.mcp.server import SdkServer

NAME = "broker"
TITLE = "Governed MCP broker"
_SDK = "broker.faces.mcp.server"
_OWN_KEY = token_bytes(32)
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


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
        on_listed: Listed = lambda _principal, _shown: None,
        state_keys: Keys = lambda: [_OWN_KEY],
        task_keys: Keys = lambda: [_OWN_KEY],
        remembered: Remembered = lambda _mark: None,
    ) -> None:
        """instructions: what a model is told about the whole server. base_url: where clients reach it; asked when a
        request comes, so that a port taken at start is known by then. on_refused: told the kind of each request that
        never became a call. on_listed: told how many tools a caller was shown. state_keys: seal `requestState`
        (`rounds`), task_keys the ids of tasks; without them a key of this process does. remembered: without it every
        call is authenticated anew.
        """
        clock = clock or _SystemClock()
        self._house = House(
            pipeline,
            authenticate,
            remembered,
            challenge,
            base_url,
            settings.limits,
            clock,
            on_refused,
            on_listed,
            Rounds(state_keys, clock),
            Tasks(pipeline, task_keys),
        )
        self._instructions = instructions
        self._server_info = {"name": NAME, "title": TITLE, "version": version}
        self._audience = Audience(pipeline, most=settings.limits.sessions)
        self._direct = Direct(self._house, server_info=self._server_info)
        self._standing = Standing(authenticate)
        self.places = Places(
            loopback=settings.listen.host in _LOOPBACK,
            public=base_url,
            hosts=settings.allowed_hosts,
            origins=settings.allowed_origins,
        )
        self._gate = Gate(
            dict.fromkeys(METHODS, self._go_on),
            self._house,
            direct=self._direct,
            standing=self._standing,
            places=self.places,
            sessions=lambda: self._sdk.sessions if self._sdk else 0,
        )
        self._sdk: SdkServer | None = None
        self._making = anyio.Lock()
        self._tasks: TaskGroup | None = None
        self._leave = anyio.Event()

    # ------------------------------------------------------------------------------------------------ what it serves

    paths = frozenset(METHODS)

    @property
    def app(self) -> App:
        """ASGI for the paths of `paths`, matched exactly by whoever routes to it."""
        return self._gate

    @property
    def shortcut(self) -> Shortcut:
        """For the connections `app` is served on."""
        return self._gate.shortcut

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
        async with anyio.create_task_group() as sessions, anyio.create_task_group() as tasks:
            self._tasks = sessions
            tasks.start_soon(self._audience.announcing)
            tasks.start_soon(self._direct.keep_alive)
            try:
                yield
            finally:
                self._tasks = None
                tasks.cancel_scope.cancel()
                self._leave.set()

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
        self._gate.close()
        self._audience.end()
        with anyio.move_on_after(min(0.2, seconds)):
            await anyio.sleep(0.05)  # listen streams say goodbye themselves
        self._standing.end(answers=False)
        if self._sdk is not None:
            with anyio.move_on_after(seconds):
                await self._sdk.streams_idle()
        self._standing.end(answers=True)

    async def serve_stdio(self, principal: Principal) -> None:
        """Serve one client over this process's standard input and output, to the end of input."""
        await (await self._made()).serve_stdio(principal)

    async def serve_wire(self, read: stdio.Read, write: stdio.Write, principal: Principal) -> None:
        """As `serve_stdio`, over any pair of byte streams. Needs no `running()`."""
        await (await self._made()).serve_wire(read, write, principal)

    # ------------------------------------------------------------------------------------------------------- the SDK

    async def _go_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        sdk = self._sdk or await self._made(sessions=True)
        await sdk.apps[scope["path"]](scope, receive, send)

    async def _made(self, *, sessions: bool = False) -> SdkServer:
        """The SDK's part, made the first time. sessions: with its sessions running, for HTTP."""
        async with self._making:
            if self._sdk is None:
                with anyio.CancelScope(shield=True):  # whoever asked first may leave; the next one needs it too
                    self._sdk = await self._make(sessions=sessions)
        assert self._sdk is not None, "just made"  # noqa: S101
        return self._sdk

    async def _make(self, *, sessions: bool) -> SdkServer:
        kind: type[SdkServer] = (await anyio.to_thread.run_sync(import_module, _SDK)).SdkServer
        made = kind(
            self._house, self._audience, self._direct, server_info=self._server_info, instructions=self._instructions
        )
        if sessions:
            if self._tasks is None:
                raise RuntimeError("AgentServer.running() is not entered")
            await self._tasks.start(made.run, self._leave)
        return made
