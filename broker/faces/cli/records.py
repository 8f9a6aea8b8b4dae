"""The records and accounts of a broker, without the broker: for commands that ask, and those that keep accounts.

Why not the assembly: it knows every part, and importing them all takes longer than most questions. What must not live
here: holds being decided, calls being made (`house.deciding`, `house.tooled`).
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import cached_property
from getpass import getuser
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from broker.clock import SystemClock, clock_of
from broker.faces.cli import house

if TYPE_CHECKING:
    from broker.faces.cli.remote import Remote
    from broker.faces.deciding import Stats
    from broker.model.invocation import Invocation, InvocationQuery
    from broker.model.question import By, Group
    from broker.model.quota import QuotaState
    from broker.ports import Clock, Directory, HeldParts, Store
    from broker.settings import Settings


class Reader(Protocol):
    """The verbs of ports.Store by which a command asks; a remote broker has them too."""

    async def invocation(self, call_id: str) -> Invocation | None: ...

    async def invocations(self, query: InvocationQuery) -> list[Invocation]: ...

    async def sums(self, query: InvocationQuery, by: By) -> list[Group]: ...

    async def held_arguments(self, call_id: str) -> bytes | None: ...

    async def held(self, call_id: str) -> HeldParts: ...

    async def quotas(self, now_ms: int, *, quota: str = "", after: str = "", limit: int = 1000) -> list[QuotaState]: ...

    async def changed(self, timeout_s: float) -> bool: ...


class Records:
    def __init__(self, settings: Settings, store: Store, clock: Clock) -> None:
        self.settings = settings
        self.store = store
        self.clock = clock

    @cached_property
    def directory(self) -> Directory:
        """Opened when it is first asked for. Blocks, which a command with nothing else to do may."""
        from broker.stores.sqlite.directory import SqliteDirectory

        return SqliteDirectory.open(_path(self.settings), clock=self.clock)

    async def stats(self, days: int) -> Stats:
        """How deciding goes, over all tenants: who may read the file reads all of it."""
        from broker.faces.deciding import stats

        since_ms = self.clock.now_ms() - days * 86_400_000
        return stats(await self.store.judged(None, since_ms), since_ms)

    async def changed(self, kind: str, **facts: Any) -> None:
        """Record what a person at this machine has just changed in the directory."""
        await self.store.note(kind, {**facts, "via": "cli", "by": whoami()})


def whoami() -> str:
    """The name of the operating system's user; its number where it has no name."""
    try:
        return getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _path(settings: Settings) -> Path:
    return settings.directory / settings.database


@asynccontextmanager
async def open_records(config: Path | None) -> AsyncGenerator[Records]:
    """Raises SettingsError; RecordUnavailable (locked, newer, damaged, not ours to write)."""
    settings = house.read(config)
    house.quiet(settings)
    from broker.stores import STORES
    from broker.stores.retention import retention

    module, _, name = STORES["sqlite"].partition(":")
    kind: Any = getattr(import_module(module), name)
    clock = clock_of(settings)
    store: Store = await kind.open(
        _path(settings),
        clock=clock,
        open_per_agent=settings.hold.open_per_agent,
        key=settings.record.key_bytes,
        retention=retention(settings.record.retention),
    )
    records = Records(settings, store, clock)
    try:
        yield records
    finally:
        if "directory" in vars(records):
            records.directory.close()
        await store.aclose()


@asynccontextmanager
async def open_source(config: Path | None, broker: str) -> AsyncGenerator[Records | Remote]:
    """The records here, or a remote broker's as the person who is signed in there. Raises also what `remote` raises."""
    if not broker:
        async with open_records(config) as records:
            yield records
        return
    from broker.faces.cli.remote import opened

    async with opened(broker, SystemClock()) as remote:
        yield remote
