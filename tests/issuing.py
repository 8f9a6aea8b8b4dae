"""Callers for tests: a directory on disk, a clock one can move, an external issuer that signs whatever one wants."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import uvicorn
from joserfc.jwk import ECKey, Key
from joserfc.util import urlsafe_b64encode

from broker.auth import Context
from broker.auth.jwt import AccessTokens
from broker.auth.keys import public_keys
from broker.auth.memory import Memory
from broker.settings import Settings
from broker.stores.sqlite.directory import SqliteDirectory

BASE = "http://127.0.0.1:8750"
ISSUER = "https://issuer.example"
START_MS = 1_800_000_000_000


class MovableClock:
    def __init__(self, now_ms: int = START_MS) -> None:
        self.at_ms = now_ms

    def now_ms(self) -> int:
        return self.at_ms


class OneKey:
    """A KeySource that knows some keys and counts how often it was asked."""

    def __init__(self, *keys: Key) -> None:
        self.keys = public_keys({"keys": [key.as_dict(private=False) for key in keys]})
        self.asked = 0

    async def key(self, key_id: str) -> Key | None:
        self.asked += 1
        return self.keys.get(key_id)

    async def aclose(self) -> None: ...


@dataclass
class World:
    settings: Settings
    directory: SqliteDirectory
    clock: MovableClock
    base: str = BASE

    @property
    def context(self) -> Context:
        return Context(self.settings, self.directory, self.clock, lambda: self.base)


@contextmanager
def world_in(folder: Path, **auth: Any) -> Generator[World]:
    clock = MovableClock()
    directory = SqliteDirectory.open(folder / "broker.db", clock=clock)
    try:
        yield World(Settings.model_validate({"auth": auth}), directory, clock)
    finally:
        directory.close()


@dataclass
class ForeignIssuer:
    """signs: any header and claims, with its own P-256 key unless told otherwise."""

    key: ECKey = field(default_factory=lambda: ECKey.generate_key("P-256", auto_kid=True))
    issuer: str = ISSUER

    @property
    def settings(self) -> dict[str, Any]:
        return {"issuer": self.issuer, "jwks_uri": f"{self.issuer}/jwks"}

    def header(self, **changes: Any) -> dict[str, Any]:
        return changed({"alg": "ES256", "typ": "at+jwt", "kid": self.key.kid}, changes)

    def claims(self, **changes: Any) -> dict[str, Any]:
        now_s = START_MS // 1000
        whole = {
            "iss": self.issuer,
            "aud": f"{BASE}/mcp",
            "sub": "ann",
            "client_id": "desk",
            "jti": "t1",
            "iat": now_s,
            "exp": now_s + 600,
            "scope": "orders.read orders.refund",
            "tenant": "acme",
            "groups": ["support"],
        }
        return changed(whole, changes)

    def sign(self, header: Mapping[str, Any] | bytes, claims: Mapping[str, Any] | bytes) -> str:
        return signed(header, claims, lambda message: es256(self.key, message))

    def token(self, header: Mapping[str, Any] | None = None, **claims: Any) -> str:
        return self.sign(self.header(**(header or {})), self.claims(**claims))

    def judge(self, world: World) -> AccessTokens:
        return AccessTokens(world.context, source=lambda _issuer: OneKey(self.key))


GONE = object()
"""In changes: leave the field out."""


def changed(whole: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in {**whole, **changes}.items() if value is not GONE}


def part(value: Mapping[str, Any] | bytes) -> bytes:
    return urlsafe_b64encode(value if isinstance(value, bytes) else json.dumps(value).encode())


def signed(header: Mapping[str, Any] | bytes, claims: Mapping[str, Any] | bytes, sign: Callable[[bytes], bytes]) -> str:
    """A compact JWS over exactly these bytes; no library stands in the way of a bad one."""
    message = part(header) + b"." + part(claims)
    return (message + b"." + urlsafe_b64encode(sign(message))).decode()


def es256(key: ECKey, message: bytes) -> bytes:
    from joserfc.jws import JWSRegistry

    return JWSRegistry.algorithms["ES256"].sign(message, key)


def forget(judge: Any) -> None:
    """Let an authenticator or a gatekeeper see the directory as it is now, as after `memory.GENERATION_S`."""
    for authenticator in getattr(judge, "_authenticators", [judge]):
        memory = getattr(authenticator, "_memory", None)
        if isinstance(memory, Memory):
            memory.doubt()


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


@asynccontextmanager
async def http_serving(app: Any, bound: socket.socket | None = None) -> AsyncGenerator[str]:
    """A real HTTP server on a free port; its base URL."""
    listening = bound or socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, lifespan="off", log_config=None, access_log=False, timeout_graceful_shutdown=1)
    server = _Server(config)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: server.serve(sockets=[listening]))
        with anyio.fail_after(10):
            while not server.started:
                await anyio.sleep(0.005)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
