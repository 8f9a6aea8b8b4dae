"""A whole broker in one process for tests: real store, real catalog, real backends, no face."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
from uuid_utils import uuid7

from broker.assembly import Broker
from broker.model.answer import Answer
from broker.model.call import Call
from broker.model.invocation import Invocation, InvocationQuery
from broker.model.principal import Principal
from broker.settings import Settings
from broker.settings_file import read_settings


def settings_in(folder: Path, manifests: str, **keys: Any) -> Settings:
    """A settings file and one manifest file in `folder`, read the way the broker reads them."""
    (folder / "tool_manifests").mkdir(exist_ok=True)
    (folder / "tool_manifests" / "tools.yaml").write_text(manifests)
    import orjson

    (folder / "broker.yaml").write_bytes(orjson.dumps({"watch": False, **keys}))
    return read_settings(folder / "broker.yaml", {})


@asynccontextmanager
async def broker_with(folder: Path, manifests: str, **keys: Any) -> AsyncGenerator[Broker]:
    async with Broker.open(settings_in(folder, manifests, **keys)) as broker:
        yield broker


def agent(
    name: str = "bot", *, user: str = "", scopes: Iterable[str] = (), issuer: str = "test", **more: Any
) -> Principal:
    """issuer "test" is known to nobody: such a caller can call, but a hold of it will not run (its grant is gone)."""
    return Principal(agent=name, user=user, issuer=issuer, scopes=frozenset(scopes), **more)


def reviewer(
    name: str = "rita", *, scopes: Iterable[str] = ("broker.review",), groups: Iterable[str] = ()
) -> Principal:
    return Principal(agent="console", user=name, issuer="test", scopes=frozenset(scopes), groups=frozenset(groups))


def a_call(name: str, arguments: Mapping[str, Any] | None = None, caller: Principal | None = None, **more: Any) -> Call:
    return Call(
        id=str(uuid7()),
        name=name,
        arguments=dict(arguments or {}),
        principal=caller or agent(),
        face="test",
        received_at_ms=0,
        **more,
    )


async def perform(
    broker: Broker, name: str, arguments: Mapping[str, Any] | None = None, caller: Principal | None = None, **more: Any
) -> Answer:
    with anyio.fail_after(20):
        return await broker.pipeline.perform(a_call(name, arguments, caller, **more))


async def records(broker: Broker, **filters: Any) -> list[Invocation]:
    """Newest first."""
    return await broker.store.invocations(InvocationQuery(**filters))


async def until_state(broker: Broker, call_id: str, *states: str) -> Invocation:
    with anyio.fail_after(10):
        while True:
            invocation = await broker.store.invocation(call_id)
            if invocation is not None and invocation.state in states:
                return invocation
            await broker.store.changed(1.0)
