"""Keeps backends and catalog in step with the manifests and with what downstream servers offer.

One snapshot at a time: whatever changes (files, SIGHUP, a server's list) ends in a whole new catalog that replaces the
old one, or in nothing at all and a report of every problem. Calls under way keep the entry they began with; a backend
whose definition changed is replaced, and the old one ends when its calls have.

A backend is opened and closed by one task of its own, because connections of downstream servers live in cancel scopes
that must be left by the task that entered them.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager

import anyio
import anyio.to_thread
import structlog
from anyio.abc import TaskGroup
from watchfiles import awatch  # pyright: ignore[reportUnknownVariableType]  # names trio, which is not installed

from broker.catalog.catalog import BackendPlan, Catalog, Shelf
from broker.catalog.compiler import compile_catalog
from broker.catalog.reader import Manifests, read_manifests
from broker.data import dataclass, field
from broker.errors import ConfigurationError, RecordUnavailable
from broker.pipeline.desk import Desk
from broker.ports import Backend, BackendKind, Clock, Offer, Secrets, Store
from broker.settings import Settings

START_WAIT_S = 5.0  # how long the first catalog waits for backends that are still starting
SETTLE_S = 0.05  # offers come in bursts; one catalog for each burst
CLOSE_S = 8.0  # backends promise 5; later they are left to the end of the process

log = structlog.get_logger("broker.reload")


@dataclass(slots=True)
class _Owned:
    plan: BackendPlan
    backend: Backend
    stop: anyio.Event = field(default_factory=anyio.Event)


class Reconciler:
    """The live backends (shared with the pipeline) and the shelf; also the BackendContext of every backend."""

    def __init__(
        self,
        *,
        settings: Settings,
        kinds: Mapping[str, BackendKind],
        shelf: Shelf,
        store: Store,
        desk: Desk,
        backends: dict[str, Backend],
        secrets: Secrets,
        clock: Clock,
    ) -> None:
        self.secrets = secrets
        self.clock = clock
        self.directory = str(settings.directory)
        self.problems: tuple[str, ...] = ()  # of the last reload that was refused; empty when the manifests are served
        self._settings = settings
        self._kinds = kinds
        self._shelf = shelf
        self._store = store
        self._desk = desk
        self._backends = backends
        self._owned: dict[str, _Owned] = {}
        self._offers: dict[str, Offer] = {}
        self.on_resource_updated: set[Callable[[str, str], None]] = set()  # (backend, its URI); quick, and not raising
        self._manifests: Manifests | None = None  # those that are served, if an offer can make them mean something else
        self._stirred = anyio.Event()
        self._turn = anyio.Lock()
        self._leaving = anyio.Event()  # ends the watcher's thread, which a cancelled task would wait for
        self._tasks: TaskGroup | None = None
        self._links: TaskGroup | None = None

    @property
    def tasks(self) -> TaskGroup:
        """See BackendContext."""
        assert self._links is not None  # noqa: S101 – backends are opened only while running
        return self._links

    def offer_changed(self, backend: str) -> None:  # noqa: ARG002 – the port names it; one flag serves all
        """See BackendContext."""
        self._stirred.set()

    def resource_updated(self, backend: str, uri: str) -> None:
        """See BackendContext."""
        for callback in tuple(self.on_resource_updated):
            callback(backend, uri)

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Backends open, the catalog on the shelf, changes followed. Raises ManifestError for bad manifests."""
        prepared = [await self._prepare("start")]  # before the task group, so that its errors arrive as they are
        # Two groups: what backends run beside their calls outlives the owners that close them in good order.
        async with anyio.create_task_group() as links:
            self._links = links
            try:
                async with self._owners(prepared):
                    yield
            finally:
                links.cancel_scope.cancel()  # for what a backend left behind when its time to close was over

    @asynccontextmanager
    async def _owners(self, prepared: list[tuple[Manifests, Catalog]]) -> AsyncGenerator[None]:
        """prepared: what to begin with, taken out of it, because the caller stays to the end."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            try:
                await self._serve(*prepared.pop(), cause="start")
                await self._started()
                tasks.start_soon(self._follow_offers)
                if self._settings.watch:
                    tasks.start_soon(self._follow_files)
                yield
            finally:
                self._leaving.set()
                tasks.cancel_scope.cancel()  # each owner closes its backend behind a bounded shield

    async def reload(self, cause: str) -> Catalog:
        """Read the manifests and serve them. Raises ManifestError with every problem; the old catalog then stays."""
        async with self._turn:
            await self._serve(*await self._prepare(cause), cause=cause)
            return self._shelf.current

    async def _prepare(self, cause: str) -> tuple[Manifests, Catalog]:
        try:
            manifests = await anyio.to_thread.run_sync(self._read)
            catalog = await self._compile(manifests)
        except ConfigurationError as error:
            self.problems = tuple(str(problem) for problem in error.problems)
            await self._note("reload_refused", {"cause": cause, "problems": list(self.problems)[:100]})
            raise
        self.problems = ()
        return manifests, catalog

    async def _serve(self, manifests: Manifests, catalog: Catalog, *, cause: str) -> None:
        self._manifests = manifests if manifests.imports else None
        self._arrange(catalog)
        await self._swap(catalog, cause)

    async def _recompile(self, cause: str) -> None:
        async with self._turn:
            if self._manifests is None:
                return
            catalog = await self._compile(self._manifests)
            served = self._shelf.current  # notes may change with an offer of which nothing is taken
            if (catalog.version, catalog.notes) != (served.version, served.notes):
                await self._swap(catalog, cause)

    def _read(self) -> Manifests:
        return read_manifests(self._settings.directory / self._settings.manifests, self._kinds)

    async def _compile(self, manifests: Manifests) -> Catalog:
        """The last known offer stands while a server is away, so that one dead backend does not empty the catalog."""
        for name, owned in self._owned.items():
            if owned.backend.offer is not None:
                self._offers[name] = owned.backend.offer
        offers = dict(self._offers)
        return await anyio.to_thread.run_sync(
            lambda: compile_catalog(manifests, self._kinds, offers, hold=self._settings.hold)
        )

    async def _swap(self, catalog: Catalog, cause: str) -> None:
        old = self._shelf.current
        self._shelf.swap(catalog)
        if catalog.version == old.version and cause != "start":
            return
        before = {entry.tool.name: entry.tool.definition for entry in old.everything()}
        after = {entry.tool.name: entry.tool.definition for entry in catalog.everything()}
        facts: dict[str, object] = {
            "cause": cause,
            "version": catalog.version,
            "tools": len(catalog.entries),
            "added": sorted(after.keys() - before.keys())[:100],
            "removed": sorted(before.keys() - after.keys())[:100],
            "changed": sorted(name for name in after.keys() & before.keys() if after[name] != before[name])[:100],
        }
        await self._note("reload", facts)
        if cause != "start":
            log.info("catalog changed", **facts)
        try:
            for withdrawn in await self._desk.withdraw_changed(old, catalog):
                log.warning("hold withdrawn: its tool changed", call_id=withdrawn.call_id, tool=withdrawn.tool)
        except RecordUnavailable as error:
            # The definitions are gone from the catalog, so no runner can claim these holds in the meantime.
            log.error("holds of changed tools are not withdrawn yet", reason=error.message)

    async def _note(self, kind: str, facts: Mapping[str, object]) -> None:
        """A reload that cannot be recorded is served all the same (refusing it would keep a rule that should be gone),
        and `/readyz` is red for the same reason anyway."""
        try:
            await self._store.note(kind, facts)
        except RecordUnavailable as error:
            log.error("a reload is not recorded", reason=error.message)

    # ------------------------------------------------------------------------------------------------------ backends

    def _arrange(self, catalog: Catalog) -> None:
        """Start what is new or changed, stop what is gone or replaced."""
        for name, owned in list(self._owned.items()):
            plan = catalog.backends.get(name)
            if plan is None or plan.digest != owned.plan.digest:
                del self._owned[name]
                self._backends.pop(name, None)
                if plan is None:
                    self._offers.pop(name, None)  # a replaced one's last offer stands until the new one speaks
                owned.stop.set()
        for name, plan in catalog.backends.items():
            if name not in self._owned:
                owned = _Owned(plan, self._kinds[plan.kind].build(name, plan.spec, self))
                self._owned[name] = owned
                self._backends[name] = owned.backend
                assert self._tasks is not None  # noqa: S101 – only called while running
                self._tasks.start_soon(self._own, name, owned)

    async def _own(self, name: str, owned: _Owned) -> None:
        try:
            await owned.backend.open()
            await owned.stop.wait()
        except Exception:  # a backend that breaks its promise not to raise must not take the others down
            log.exception("a backend could not be opened", backend=name)
        finally:
            with anyio.move_on_after(CLOSE_S, shield=True):
                await owned.backend.aclose()

    async def _started(self) -> None:
        """Give backends a moment to say what they offer; what comes later is added when it comes."""
        with anyio.move_on_after(START_WAIT_S):
            while any(owned.backend.health.state == "starting" for owned in self._owned.values()):
                await self._stirred.wait()
                self._stirred = anyio.Event()
        if any(owned.backend.offer is not None for owned in self._owned.values()):
            await self._recompile("offers")

    # ------------------------------------------------------------------------------------------------------- changes

    async def _follow_offers(self) -> None:
        while True:
            await self._stirred.wait()
            self._stirred = anyio.Event()
            await anyio.sleep(SETTLE_S)
            try:
                await self._recompile("a server's list changed")
            except ConfigurationError as error:
                log.error(
                    "a server's new list does not fit the manifests; the old catalog stays", problems=error.message
                )

    async def _follow_files(self) -> None:
        folder = self._settings.directory / self._settings.manifests
        async for _ in awatch(folder, step=100, debounce=400, stop_event=self._leaving):
            try:
                await self.reload("files changed")
            except ConfigurationError as error:
                log.error("manifests not reloaded; the old ones are served", problems=error.message)
