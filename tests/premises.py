"""A whole broker with every face it has over HTTP, on a free port, with people and agents who may sign in."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import anyio
import httpx2
from starlette.routing import BaseRoute

from broker.assembly import Broker
from broker.authserver.accounts import hashed
from broker.authserver.tokens import issue
from broker.errors import Held
from broker.faces import web
from broker.faces.cli.serving import BESIDE, application
from broker.model.directory import Account, Client
from tests.world import agent, perform, settings_in

PASSWORD = "correct horse battery"


@cache
def password_hash() -> str:
    return hashed(PASSWORD)


@dataclass
class House:
    url: str
    broker: Broker
    http: httpx2.AsyncClient
    routes: Sequence[BaseRoute] = ()  # beside those of agents

    def person(self, name: str, scopes: Iterable[str] = ("broker.review",), *, tenant: str = "") -> None:
        directory = self.broker.directory
        directory.add_account(Account(name, password_hash(), scopes=frozenset(scopes), tenant=tenant))

    def token(self, user: str) -> str:
        """An access token for this account, whose client is a program of its own."""
        client = f"{user}-tool"
        if self.broker.directory.client(client) is None:
            self.broker.directory.add_client(Client(client, scopes=None))
        return issue(self.broker.directory, self.broker.settings, self.url, client_id=client, user=user)

    async def get(self, path: str, user: str) -> httpx2.Response:
        return await self.http.get(path, headers={"Authorization": f"Bearer {self.token(user)}"})

    async def post(self, path: str, user: str, body: Any = None) -> httpx2.Response:
        return await self.http.post(path, json=body or {}, headers={"Authorization": f"Bearer {self.token(user)}"})

    async def held(
        self, tool: str = "note_write", arguments: Any = None, *, tenant: str = "", name: str = "bot"
    ) -> str:
        """The id of a call that an agent of this tenant made and that waits now. The settings vouch for it."""
        caller = agent(name, user="ann", scopes=["notes.write"], issuer="settings", tenant=tenant)
        try:
            await perform(self.broker, tool, arguments or {"amount": 500}, caller, may_wait=False)
        except Held as held:
            return str(held.facts["hold_id"])
        raise AssertionError("it was not held")


@asynccontextmanager
async def house_with(folder: Path, manifests: str, **keys: Any) -> AsyncGenerator[House]:
    settings = settings_in(
        folder,
        manifests,
        **{
            "listen": {"port": 0},
            "limits": {"drain_s": 1.0},
            "stdio": {"agent": "bot", "user": "ann", "scopes": ["notes.write"]},
            **keys,
        },
    )
    bound = web.bind(settings)
    url, ready, stop = web.url_of(bound), anyio.Event(), anyio.Event()
    async with (
        Broker.open(settings) as broker,
        httpx2.AsyncClient(base_url=url, trust_env=False, timeout=10) as http,
        anyio.create_task_group() as tasks,
    ):
        broker.where.port = bound.getsockname()[1]

        house = House(url, broker, http)

        async def run() -> None:
            async with application(broker) as app:
                house.routes = [route for word in BESIDE for route in (await app.beside(word)).routes]
                await web.serve(app, settings, lambda _: ready.set(), bound=bound, stop=stop)

        tasks.start_soon(run)
        with anyio.fail_after(10):
            await ready.wait()
        yield house
        tasks.cancel_scope.cancel()
