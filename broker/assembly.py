"""The composition root: the one place that knows every part and puts them together.

`Broker.open` gives a broker that works; what it opens it closes, in reverse. Faces are built on it by whoever serves
them. A process that only asks or decides (`work=False`) opens no backend and runs no hold.

What must not live here: decisions. This file builds, starts and stops.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from importlib import import_module
from typing import Any

import anyio
import anyio.to_thread
import structlog

from broker import __version__
from broker.auth import Context, Gatekeeper, authenticators, local
from broker.auth.standing import Reviewers
from broker.backends import BACKENDS
from broker.catalog.catalog import Catalog, Shelf
from broker.checkpoint import Checkpointer
from broker.clock import clock_of
from broker.data import dataclass
from broker.errors import Problem, RecordUnavailable, SettingsError
from broker.model.invocation import Invocation
from broker.notifiers import NOTIFIERS
from broker.pipeline.call import Pipeline
from broker.pipeline.desk import Desk
from broker.pipeline.granting import Grants
from broker.pipeline.notices import Notices
from broker.pipeline.runner import Runner
from broker.pipeline.waits import tell_waits
from broker.ports import Backend, BackendKind, Clock, Directory, Notifier, Secrets, Store, Watch
from broker.reconciler import Reconciler
from broker.secrets import Secrets as FileSecrets
from broker.settings import Settings
from broker.stores import STORES
from broker.stores.retention import retention

SWEEP_EVERY_S = 5.0
STEP_EVERY_S = 2.0
STEP_PAUSE_S = 0.01  # leaves most of the time to the calls

log = structlog.get_logger("broker")


def load(reference: str) -> Any:
    """The object behind "module:Name", the form of every table that grows."""
    module, _, name = reference.partition(":")
    return getattr(import_module(module), name)


def backend_kinds() -> dict[str, BackendKind]:
    return {name: load(reference) for name, reference in BACKENDS.items()}


class Where:
    """Under which URL clients reach this broker; the port is known when it listens."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.port = settings.listen.port

    def base_url(self) -> str:
        """Without a trailing slash and without a path: issuer, resources and links begin with it."""
        return self._settings.public_url.rstrip("/") or f"http://127.0.0.1:{self.port}"


@dataclass(slots=True)
class Broker:
    """All parts, running. recovered: calls found under way by a dead process at start; their outcome is unknown."""

    settings: Settings
    clock: Clock
    secrets: Secrets
    store: Store
    directory: Directory
    gatekeeper: Gatekeeper
    shelf: Shelf
    backends: dict[str, Backend]
    desk: Desk
    runner: Runner
    grants: Grants
    pipeline: Pipeline
    reconciler: Reconciler
    where: Where
    recovered: tuple[Invocation, ...] = ()

    @property
    def not_ready(self) -> tuple[str, ...]:
        """Why new calls cannot be served now, for /readyz; empty when they can."""
        reasons = [self.store.fault] if self.store.fault else []
        if self.pipeline.unrecorded:
            reasons.append(f"{self.pipeline.unrecorded} outcomes wait to be recorded")
        return tuple(reasons)

    async def _sweep(self) -> None:
        """Expire holds, free leases and settle what dead processes left, for ever."""
        while True:
            await anyio.sleep(SWEEP_EVERY_S)
            try:
                swept = await self.store.sweep(self.clock.now_ms())
            except RecordUnavailable as error:
                log.warning("sweep waits: records cannot be written", reason=error.message)
                continue
            for invocation in swept.outcome_unknown:
                log.warning("outcome unknown", call_id=invocation.call_id, tool=invocation.tool, agent=invocation.agent)

    async def _keep_in_step(self) -> None:
        """Take new calls into what questions are answered from, while the records are idle, for ever."""
        while True:
            await anyio.sleep(STEP_EVERY_S)
            try:
                more = True
                while more:
                    more = await self.store.keep_in_step()
                    await anyio.sleep(STEP_PAUSE_S)
            except RecordUnavailable:
                continue  # the sweep says so

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: Settings, *, work: bool = True, clock: Clock | None = None) -> AsyncGenerator[Broker]:
        """Raises SettingsError, ManifestError, RecordUnavailable (database locked, newer or damaged)."""
        clock = clock or clock_of(settings)
        async with _plain_errors(), AsyncExitStack() as stack:
            store, directory = await _open_stores(settings, clock, stack)
            checkpointer = Checkpointer(settings.record.checkpoints, settings.directory, store, clock)
            if work:
                stack.push_async_callback(checkpointer.aclose)
            where = Where(settings)
            context = Context(settings, directory, clock, where.base_url)
            nobody = local.principal(settings.stdio) if settings.testing.open else None
            gatekeeper = Gatekeeper(partial(authenticators, context), nobody=nobody)
            stack.push_async_callback(gatekeeper.aclose)
            shelf = Shelf(Catalog.empty())
            backends: dict[str, Backend] = {}
            secrets = FileSecrets(settings.directory)
            runner = Runner(
                shelf=shelf,
                store=store,
                clock=clock,
                backends=backends,
                recheck=gatekeeper.recheck,
                reviewer_now=Reviewers(directory, where.base_url).now,
                reviewer_scope=settings.hold.reviewer_scope,
            )
            desk = Desk(
                shelf=shelf,
                store=store,
                clock=clock,
                backends=backends,
                runner=runner,
                reviewer_scope=settings.hold.reviewer_scope,
                wait_s=settings.hold.wait_s,
            )
            grants = Grants(shelf=shelf, store=store, clock=clock, reviewer_scope=settings.hold.reviewer_scope)
            pipeline = Pipeline(
                shelf=shelf,
                store=store,
                desk=desk,
                grants=grants,
                backends=backends,
                clock=clock,
                calls=settings.limits.calls,
                results_ms=retention(settings.record.retention).results_ms,
            )
            reconciler = Reconciler(
                settings=settings,
                kinds=backend_kinds(),
                shelf=shelf,
                store=store,
                desk=desk,
                backends=backends,
                secrets=secrets,
                clock=clock,
            )
            broker = cls(
                settings=settings,
                clock=clock,
                secrets=secrets,
                store=store,
                directory=directory,
                gatekeeper=gatekeeper,
                shelf=shelf,
                backends=backends,
                desk=desk,
                runner=runner,
                grants=grants,
                pipeline=pipeline,
                reconciler=reconciler,
                where=where,
            )
            if work and settings.traces.url:
                pipeline.watch = _tracer(settings)
                stack.push_async_callback(anyio.to_thread.run_sync, pipeline.watch.close)
            if work:
                broker.recovered = (await store.sweep(clock.now_ms())).outcome_unknown
                await stack.enter_async_context(checkpointer.running())
                await stack.enter_async_context(reconciler.running())
                await stack.enter_async_context(broker._working())
                await stack.enter_async_context(broker._notifying())
            yield broker

    @asynccontextmanager
    async def _notifying(self) -> AsyncGenerator[None]:
        notices = Notices(self.store, self.clock, self.where.base_url)
        async with AsyncExitStack() as stack, anyio.create_task_group() as tasks:
            for to in self.settings.notify:
                notifier: Notifier = load(NOTIFIERS[to.via])(to)
                stack.push_async_callback(notifier.aclose)
                tasks.start_soon(notices.serve, to, notifier)
            try:
                yield
            finally:
                tasks.cancel_scope.cancel()

    @asynccontextmanager
    async def _working(self) -> AsyncGenerator[None]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._sweep)
            tasks.start_soon(self._keep_in_step)
            tasks.start_soon(self.pipeline.settle_late)
            tasks.start_soon(self.pipeline.outlive)
            tasks.start_soon(self.runner.run_approved, self.pipeline.run_held)
            if self.pipeline.watch is not None:
                tasks.start_soon(tell_waits, self.store, self.clock, self.pipeline.watch)
            try:
                yield
            finally:
                tasks.cancel_scope.cancel()


@asynccontextmanager
async def _plain_errors() -> AsyncGenerator[None]:
    """Task groups wrap whatever ends them; whoever opened the broker wants the one error that did."""
    try:
        yield
    except BaseExceptionGroup as group:
        raise _only(group) from None  # pyright: ignore[reportUnknownArgumentType]  # a bare except clause has no types


def _only(error: BaseException) -> BaseException:
    """The one error inside a group, however deep; the group itself when there are several."""
    inner: tuple[BaseException, ...] = getattr(error, "exceptions", ())
    return _only(inner[0]) if len(inner) == 1 else error


def _tracer(settings: Settings) -> Watch:
    """Raises SettingsError when the extra is not installed."""
    try:
        from broker.telemetry.otel import Tracer  # only here: it is an extra, and 40 ms
    except ImportError as error:
        why = f"traces.url needs the extra otel (pip install 'broker[otel]'): {error.name} is missing"
        raise SettingsError([Problem(str(settings.directory / "broker.yaml"), 0, 0, why)]) from error
    return Tracer(settings.traces, __version__)


async def _open_stores(settings: Settings, clock: Clock, stack: AsyncExitStack) -> tuple[Store, Directory]:
    """The records and, in the same database, who may call."""
    from broker.stores.sqlite.directory import SqliteDirectory

    path = settings.directory / settings.database
    store: Store = await load(STORES["sqlite"]).open(
        path,
        clock=clock,
        open_per_agent=settings.hold.open_per_agent,
        key=settings.record.key_bytes,
        retention=retention(settings.record.retention),
    )
    stack.push_async_callback(store.aclose)
    directory = await anyio.to_thread.run_sync(lambda: SqliteDirectory.open(path, clock=clock))
    stack.callback(directory.close)
    return store, directory
