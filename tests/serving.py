"""An agents' server on a real port for tests: real HTTP server, real SDK, and small stand-ins behind it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio

from broker.auth.challenge import challenge, metadata_url
from broker.catalog.catalog import PartsListed
from broker.errors import Held, InsufficientScope, InvalidArguments, Unauthenticated, UnknownTool
from broker.faces import web
from broker.faces.mcp.agents import AgentServer
from broker.model.answer import Answer
from broker.model.call import Call
from broker.model.principal import Principal, fingerprint
from broker.settings import Settings

MODERN = "2026-07-28"


def tool(name: str, **schema: Any) -> dict[str, Any]:
    return {"name": name, "description": f"The tool {name}.", "inputSchema": {"type": "object", **schema}}


class Tools:
    """Stands in for the pipeline: a listing for everybody, scopes by tool, and what each call does; no tasks."""

    tasks: Any = None

    def __init__(self) -> None:
        self.tools: list[dict[str, Any]] = [tool("echo"), tool("progress"), tool("wait"), tool("hold"), tool("locked")]
        self.scopes: Mapping[str, frozenset[str]] = {"locked": frozenset({"vault.open"})}
        self.calls: list[Call] = []
        self.cancelled = anyio.Event()
        self.entered = anyio.Event()
        self.release = anyio.Event()

    def listing(self, principal: Principal) -> tuple[Mapping[str, Any], ...]:
        return tuple(entry for entry in self.tools if not self.missing_scopes(entry["name"], principal))

    def missing_scopes(self, name: str, principal: Principal) -> frozenset[str]:
        return self.scopes.get(name, frozenset[str]()) - principal.scopes

    def parts(self, principal: Principal) -> PartsListed:
        return PartsListed()

    def is_told(self, uri: str, principal: Principal, backend: str, natural: str) -> bool:
        return False

    def lacks_scopes(self, call: Call) -> bool:
        return False

    def input_schema(self, name: str) -> Mapping[str, Any] | None:
        return next((entry["inputSchema"] for entry in self.tools if entry["name"] == name), None)

    async def perform(self, call: Call) -> Answer:
        self.calls.append(call)
        if self.input_schema(call.name) is None:
            raise UnknownTool(f"Unknown tool: {call.name}")
        if "wrong" in call.arguments:
            raise InvalidArguments("Refused: $.wrong is not an argument of this tool.")
        if missing := self.missing_scopes(call.name, call.principal):
            raise InsufficientScope(f"Refused: {call.name} needs vault.open.", missing=sorted(missing))
        return await self._do(call)

    async def _do(self, call: Call) -> Answer:
        if call.name == "hold":
            raise Held("Held for approval.", hold_id=call.id)
        if call.name == "progress" and call.progress:
            await call.progress(1, 2, "half way")
        if call.name == "wait":
            self.entered.set()
            try:
                await self.release.wait()
            except anyio.get_cancelled_exc_class():
                self.cancelled.set()
                raise
        text = str(call.arguments.get("text", call.name))
        return Answer(content=({"type": "text", "text": text},), structured={"by": call.principal.agent, "text": text})


class Keys:
    """Stands in for the gatekeeper: the credential is the agent's name, followed by its scopes after dots."""

    def __init__(self, issuer: str = "test") -> None:
        self.issuer = issuer
        self.revoked: set[str] = set()
        self.asked = 0
        self._known: dict[bytes, tuple[str, Principal]] = {}

    def open(self) -> None:
        """Let in whoever brings no credential."""
        self._known[b""] = "nobody", Principal(agent="nobody", issuer=self.issuer)

    def remembered(self, mark: bytes) -> Principal | None:
        credential, principal = self._known.get(mark, ("", None))
        return None if credential in self.revoked else principal

    async def __call__(self, credential: str | None) -> Principal:
        self.asked += 1
        if credential is None and b"" in self._known:
            return self._known[b""][1]
        if not credential or credential in self.revoked or credential.startswith("bad"):
            raise Unauthenticated("Refused: this credential is not valid.", next_step="Get another one.")
        agent, *scopes = credential.split("~")
        principal = Principal(agent=agent, issuer=self.issuer, scopes=frozenset(scopes))
        self._known[fingerprint(credential)] = credential, principal
        return principal


@dataclass(slots=True)
class Served:
    url: str
    tools: Tools
    keys: Keys
    agents: AgentServer
    refused: list[str]
    stop: anyio.Event
    stopped: anyio.Event = field(default_factory=anyio.Event)


def challenged(base_url: str, path: str, *, error: str = "", description: str = "", scopes: Iterable[str] = ()) -> str:
    return challenge(
        resource_metadata=metadata_url(base_url, path), error=error, description=description, scopes=scopes
    )


def settings_with(**sections: Any) -> Settings:
    """Settings on a free loopback port, with a short way out."""
    limits = {"drain_s": 5.0, **sections.pop("limits", {})}
    return Settings.model_validate({"listen": {"port": 0}, "limits": limits, **sections})


def agents_with(
    tools: Tools, keys: Keys, settings: Settings, base_url: Callable[[], str], refused: list[str]
) -> AgentServer:
    return AgentServer(
        tools,
        keys,
        settings,
        version="1.2.3",
        instructions="Test instructions.",
        challenge=challenged,
        base_url=base_url,
        on_refused=refused.append,
        remembered=keys.remembered,
    )


@asynccontextmanager
async def served(**sections: Any) -> AsyncGenerator[Served]:
    """A server of its own on a free port. When this is left it is cut off, unless the test has asked it to stop."""
    settings = settings_with(**sections)
    bound = web.bind(settings)
    url, refused, ready = web.url_of(bound), list[str](), anyio.Event()
    tools, keys = Tools(), Keys()
    agents = agents_with(tools, keys, settings, lambda: url, refused)
    house = Served(url, tools, keys, agents, refused, anyio.Event())

    async def run() -> None:
        app = web.build(agents, version="1.2.3")
        await web.serve(app, settings, lambda _url: ready.set(), bound=bound, stop=house.stop)
        house.stopped.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        with anyio.fail_after(10):
            await ready.wait()
        yield house
        if house.stop.is_set():
            with anyio.fail_after(15):
                await house.stopped.wait()
        tasks.cancel_scope.cancel()


def modern_headers(method: str, name: str = "", *, token: str = "ann", **more: str) -> dict[str, str]:
    headers = {
        "Authorization": f"Bearer {token}",
        "Content-Type": "application/json",
        "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": MODERN,
        "Mcp-Method": method,
        **({"Mcp-Name": name} if name else {}),
    }
    headers.update({key.replace("_", "-"): value for key, value in more.items()})
    return headers


def modern_call(name: str, arguments: Any = None, *, request_id: Any = 1, **meta: Any) -> dict[str, Any]:
    return modern("tools/call", {"name": name, "arguments": arguments or {}}, request_id=request_id, **meta)


def modern(method: str, params: Mapping[str, Any] | None = None, *, request_id: Any = 1, **meta: Any) -> dict[str, Any]:
    envelope = {
        "io.modelcontextprotocol/protocolVersion": MODERN,
        "io.modelcontextprotocol/clientCapabilities": {},
        "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "0"},
        **meta,
    }
    return {"jsonrpc": "2.0", "id": request_id, "method": method, "params": {**(params or {}), "_meta": envelope}}
