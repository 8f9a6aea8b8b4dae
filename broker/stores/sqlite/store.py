"""ports.Store on one SQLite file. What each verb does is in the room of its noun; here is only who runs it where.

Writes go to the one writer thread (writer.py); reads to a few read-only connections in worker threads, where a slow
question hinders nobody. Any number of processes may have the file open; it must be on a local disk, because SQLite's
WAL and the liveness locks need the same kernel.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any, TypeVar

import anyio
import anyio.to_thread
from uuid_utils import uuid7

from broker.errors import RecordUnavailable
from broker.model.canonical import canonical
from broker.model.grant import Grant, GrantReview
from broker.model.hold import Edit, Review
from broker.model.invocation import OPEN, Admission, Intent, Invocation, InvocationQuery, Outcome
from broker.model.ledger import Erased, Heads, Retention, Subject
from broker.model.question import By, Group
from broker.model.quota import Charge, QuotaState
from broker.model.statistics import CallSums, Judged, Seen, Span, Spent
from broker.ports import Claimed, Clock, Collected, Followed, HeldParts, Load, OpenCalls, QueueCount, Swept
from broker.stores.sqlite import (
    admission,
    digest,
    follow,
    hold,
    liveness,
    outcome,
    payloads,
    queries,
    questions,
    queue,
    reminder,
    spent,
    statistics,
    sweep,
)
from broker.stores.sqlite import grant as grants
from broker.stores.sqlite import quota as quotas
from broker.stores.sqlite.database import connect, migrate, unavailable
from broker.stores.sqlite.ledger import RESERVED, all_heads
from broker.stores.sqlite.pulse import Pulse
from broker.stores.sqlite.schema import MIGRATIONS
from broker.stores.sqlite.seal import Seal, SealBroken
from broker.stores.sqlite.writer import Remedy, Writer

R = TypeVar("R")

READERS = 4
PATIENCE_S = 2.0
TIDY_EVERY_S = 60.0
TIDY_ROUNDS = 50
STEP = 100  # calls taken into the digest in one transaction: a few milliseconds that others may have to wait


_FOR_EVER = Retention()


class SqliteStore:
    """Open with `SqliteStore.open`; close with `aclose`."""

    def __init__(self, path: Path, clock: Clock, seal: Seal, writer: Writer, retention: Retention) -> None:
        self._path = path
        self._clock = clock
        self._seal = seal
        self.writer = writer  # public for tests that need a job of their own
        self._idle: list[sqlite3.Connection] = []
        self._limiter = anyio.CapacityLimiter(READERS)
        self._watcher = connect(path, read_only=True)
        self._pulse = Pulse(self._version, self._read_version())
        self._tidy_at = monotonic() + TIDY_EVERY_S
        self._closed = False
        self._retention = retention
        self._retained_ms: dict[str, int] = {}  # part -> until when nothing of it is left that is due

    @classmethod
    async def open(
        cls,
        path: Path,
        *,
        clock: Clock,
        lease_s: float = 30,
        open_per_agent: int = 100,
        patience_s: float = PATIENCE_S,
        key: bytes = b"",
        retention: Retention = _FOR_EVER,
    ) -> SqliteStore:
        """Create or migrate the file and begin to work.

        lease_s: how long a process counts as alive where its lock file was removed. patience_s: how long a commit waits
        for another connection's lock. key: seals payloads, 32 bytes; b"": one is made beside the file. Raises
        RecordUnavailable: damaged, newer, not ours, not writable, locked.
        """

        def prepare() -> tuple[Seal, Writer]:
            migrate(path, MIGRATIONS, shrinks=retention.deletes)
            seal = Seal(path.with_name(path.name + ".key"), key)
            return seal, Writer(
                path,
                chain=str(uuid7()),
                clock=clock,
                seal=seal,
                patience_s=patience_s,
                lease_s=lease_s,
                open_per_agent=open_per_agent,
            )

        try:
            seal, writer = await anyio.to_thread.run_sync(prepare)
            store = cls(path, clock, seal, writer, retention)
        except (sqlite3.Error, OSError) as error:
            raise unavailable(path, error) from error
        writer.start(store._pulse.beat)
        return store

    # --------------------------------------------------------------------------------------------------------- writing

    def admit(self, intent: Intent) -> Coroutine[Any, Any, Admission]:
        return self.writer.run(admission.admit, intent, self._regret_admission)

    def finish(self, outcome_: Outcome) -> Coroutine[Any, Any, None]:
        return self.writer.run(outcome.finish, outcome_)

    async def review(self, review: Review) -> Invocation:
        return await self.writer.run(hold.review, review)

    async def edit(self, edit: Edit) -> Invocation:
        return await self.writer.run(hold.edit, edit)

    async def claim(self, call_id: str, now_ms: int) -> Claimed | None:
        return await self.writer.run(hold.claim, (call_id, now_ms), self._regret_claim)

    def _regret_admission(self, intent: Intent, late: Admission) -> Remedy | None:
        return self._regret(intent.call_id) if late.state == "dispatching" else None

    def _regret_claim(self, claim: tuple[str, int], late: Claimed | None) -> Remedy | None:
        return self._regret(claim[0]) if late is not None else None

    def _regret(self, call_id: str) -> Remedy:
        """What was admitted but never sent, because whoever asked had given up."""
        return outcome.finish, outcome.regret(call_id, self._clock.now_ms())

    async def collect(self, call_id: str, principal_key: str, now_ms: int) -> Collected | None:
        invocation = await self.invocation(call_id)
        if invocation is None or invocation.hold is None or invocation.principal_key != principal_key:
            return None
        if invocation.state in ("held", "approved") and invocation.hold.expires_at_ms <= now_ms:
            await self.writer.run(hold.expire, (call_id, now_ms))
            invocation = await self.invocation(call_id)
            assert invocation is not None and invocation.hold is not None, "records are not deleted"  # noqa: S101
        if invocation.state in OPEN:
            return Collected(invocation)
        result, changes = await self._read(
            lambda db: (self._unsealed(db, call_id, "result"), self._unsealed(db, call_id, "changes"))
        )
        if not invocation.hold.collected_at_ms:
            await self.writer.run(hold.collected, (call_id, now_ms))
            invocation = await self.invocation(call_id) or invocation
        return Collected(invocation, result or b"", changes or b"")

    async def spend(self, once: str, until_ms: int) -> bool:
        return await self.writer.run(spent.spend, (once, until_ms))

    def secret(self, purpose: str) -> bytes:
        return self._seal.derived(purpose)

    async def sweep(self, now_ms: int) -> Swept:
        await self._bury_the_dead(now_ms)
        expired: list[str] = []
        lost: list[Invocation] = []
        leases = 0
        while True:
            some = await self.writer.run(hold.expire_due, (now_ms, sweep.CHUNK))
            expired += some
            if len(some) < sweep.CHUNK:
                break
        for call_id, kind in await self._read(lambda db: reminder.due(db, now_ms, sweep.CHUNK)):
            await self.writer.run(reminder.say, (call_id, kind, now_ms))
        while True:
            found, freed = await self.writer.run(sweep.recover, (now_ms, sweep.CHUNK))
            lost += found
            leases += freed
            if len(found) < sweep.CHUNK:
                break
        leases += await self.writer.run(sweep.free_orphans, sweep.CHUNK)
        if monotonic() >= self._tidy_at:
            self._tidy_at = monotonic() + TIDY_EVERY_S
            for _ in range(TIDY_ROUNDS):  # each a job of its own: calls go between them
                if await self.writer.run(sweep.tidy, (now_ms, self._retention.results_ms)) < sweep.CHUNK:
                    break
            await self._retain(now_ms)
            for _ in range(TIDY_ROUNDS):
                if not await self.writer.run(sweep.shrink, sweep.PAGES):
                    break
        return Swept(expired=tuple(expired), outcome_unknown=tuple(lost), leases=leases)

    async def _retain(self, now_ms: int) -> None:
        """Delete payloads that were kept long enough, and the oldest beyond the budget: some of each class."""
        keeping, budget_ms = self._retention, 0
        if keeping.budget_bytes:
            budget_ms = await self._read(lambda db: payloads.over_budget(db, keeping.budget_bytes))
        for parts, kept_ms in ((payloads.ARGUMENTS, keeping.arguments_ms), (payloads.SEALED, keeping.sealed_ms)):
            aged_ms = now_ms - kept_ms if kept_ms else 0
            before_ms, why = max((aged_ms, "age"), (budget_ms, "budget"))
            for _ in range(TIDY_ROUNDS):
                since_ms = self._retained_ms.get(parts[0], 0)
                some = await self._read(lambda db, p=parts, s=since_ms, b=before_ms: payloads.due(db, p, s, b))
                if some:
                    call_ids = [call_id for call_id, _ in some]
                    await self.writer.run(payloads.expire, (parts, call_ids, before_ms, now_ms, why))
                self._retained_ms[parts[0]] = some[-1][1] if len(some) == payloads.CHUNK else max(since_ms, before_ms)
                if len(some) < payloads.CHUNK:
                    break

    async def erase(self, subject: Subject, name: str, *, by: str, dry: bool = False) -> Erased:
        calls, rows, after = 0, 0, ""
        while True:
            call_ids, still = await self._read(lambda db, a=after: payloads.of_subject(db, subject, name, a))
            if not call_ids:
                return Erased(calls, rows, still)
            calls, after = calls + len(call_ids), call_ids[-1]
            if not dry:
                rows += await self.writer.run(payloads.erase, (subject, name, call_ids, self._clock.now_ms(), by))

    async def _bury_the_dead(self, now_ms: int) -> None:
        def find(db: sqlite3.Connection) -> list[str]:
            rows = db.execute("select chain, lease_until_ms from writer where ended_at_ms = 0").fetchall()
            return sweep.dead_writers(self._path, [(row[0], row[1]) for row in rows], now_ms)

        for chain in await self._read(find):
            await self.writer.run(sweep.bury, (chain, now_ms))
            liveness.forget(self._path, chain)

    async def note(self, kind: str, facts: Mapping[str, Any]) -> None:
        if kind in RESERVED:
            raise ValueError(f"{kind!r} is an entry of the store's own")
        body, at_ms = dict(facts), self._clock.now_ms()
        await self.writer.run(lambda tx, _: tx.ledger.append(kind, "", at_ms, body), None)

    # --------------------------------------------------------------------------------------------------------- reading

    async def heads(self) -> Heads | None:
        return self.writer.left if self._closed else await self._read(all_heads)

    async def invocation(self, call_id: str) -> Invocation | None:
        return await self._read(lambda db: queries.one(db, call_id))

    async def invocations(self, query: InvocationQuery) -> list[Invocation]:
        return await self._read(lambda db: queries.some(db, query))

    async def queue(self, query: InvocationQuery) -> list[Invocation]:
        return await self._read(lambda db: queue.queue(db, query))

    async def queue_counts(self, query: InvocationQuery) -> list[QueueCount]:
        return await self._read(lambda db: queue.counts(db, query))

    async def held_lately(self, query: InvocationQuery) -> list[Invocation]:
        return await self._read(lambda db: queue.held_lately(db, query))

    async def sums(self, query: InvocationQuery, by: By) -> list[Group]:
        return await self._read(lambda db: questions.sums(db, query, by))

    async def keep_in_step(self) -> bool:
        load = self.writer.load
        if load.waiting or load.lag_s:
            return True
        if await self._read(digest.is_in_step):
            return False
        return await self.writer.run(digest.step, STEP) > 0

    def mac(self, path: str, value: Any) -> bytes:
        try:
            return self._seal.mac(path.encode(), canonical(value))
        except OSError as error:
            raise RecordUnavailable(f"The key beside the records cannot be read: {error}.") from error

    async def payload(self, call_id: str, *, by: str, via: str) -> bytes | None:
        clear = await self._read(lambda db: self._unsealed(db, call_id, payloads.FULL))
        if clear is not None:
            await self.writer.run(payloads.read, (call_id, self._clock.now_ms(), by, via))
        return clear

    async def edge(self, query: InvocationQuery) -> str:
        return await self._read(lambda db: queries.edge(db, query))

    async def call_sums(self, within: str, span: Span) -> CallSums:
        return await self._read(lambda db: statistics.calls(db, within, span))

    async def judged(self, within: str | None, since_ms: int) -> list[Judged]:
        return await self._read(lambda db: statistics.judged(db, within, since_ms))

    async def spent(self, since_ms: int) -> list[Spent]:
        return await self._read(lambda db: statistics.spent(db, since_ms))

    async def agents(self, within: str) -> list[Seen]:
        return await self._read(lambda db: statistics.agents(db, within))

    async def take_place(self, name: str, *, now_ms: int, lease_ms: int, from_first: bool = False) -> int | None:
        return await self.writer.run(follow.take, (name, from_first, now_ms, lease_ms))

    async def move_place(self, name: str, upto: int) -> bool:
        return await self.writer.run(follow.move, (name, upto))

    async def entries_after(self, place: int, kinds: Sequence[str], limit: int) -> Followed:
        return await self._read(lambda db: follow.after(db, place, kinds, limit))

    async def is_new(self, intent: Intent) -> bool:
        return await self._read(lambda db: hold.like(db, intent) is None)

    async def held_arguments(self, call_id: str) -> bytes | None:
        return await self._read(lambda db: self._unsealed(db, call_id, "arguments"))

    async def result(self, call_id: str) -> bytes | None:
        return await self._read(lambda db: self._unsealed(db, call_id, "result"))

    async def propose_grant(self, grant: Grant) -> Grant:
        return await self.writer.run(grants.propose, grant)

    async def decide_grant(self, review: GrantReview) -> Grant:
        return await self.writer.run(grants.decide, review)

    async def grant(self, grant_id: str) -> Grant | None:
        return await self._read(lambda db: grants.one(db, grant_id))

    async def grants(self, tenant: str | None, *, ended: bool = False, limit: int = 500) -> list[Grant]:
        return await self._read(lambda db: grants.some(db, tenant, ended=ended, limit=limit))

    async def grants_for(self, tool: str, agent: str) -> list[Grant]:
        return await self._read(lambda db: grants.covering(db, tool, agent))

    async def held(self, call_id: str) -> HeldParts:
        def parts(db: sqlite3.Connection) -> HeldParts:
            before = db.execute("select body from payload where call_id = ? and part = 'kept_before'", (call_id,))
            row = before.fetchone()
            return HeldParts(
                *(
                    self._unsealed(db, call_id, part)
                    for part in ("arguments", "principal", "sketch", "preview", "changes")
                ),
                before=row[0] if row else None,
            )

        return await self._read(parts)

    async def quotas(self, now_ms: int, *, quota: str = "", after: str = "", limit: int = 1000) -> list[QuotaState]:
        return await self._read(lambda db: quotas.standing(db, now_ms, quota=quota, after=after, limit=limit))

    async def left(self, charges: Sequence[Charge], now_ms: int) -> list[QuotaState]:
        return await self._read(lambda db: quotas.left(db, charges, now_ms))

    async def open_calls(self) -> OpenCalls:
        return await self._read(queries.open_calls)

    @property
    def load(self) -> Load:
        return self.writer.load

    async def changed(self, timeout_s: float) -> bool:
        return await self._pulse.wait(timeout_s)

    @property
    def fault(self) -> str:
        return self.writer.fault

    async def aclose(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._watcher.close()
        while self._idle:
            self._idle.pop().close()
        await self.writer.aclose()  # last: only a connection that may write can leave one file without a -wal

    def _unsealed(self, db: sqlite3.Connection, call_id: str, part: str) -> bytes | None:
        row = db.execute("select body from payload where call_id = ? and part = ?", (call_id, part)).fetchone()
        return None if row is None else self._seal.open(call_id, part, row[0])

    async def _read(self, question: Callable[[sqlite3.Connection], R]) -> R:
        """Ask on a connection of its own, in a worker thread. Raises RecordUnavailable."""
        self._pulse.looked()
        return await anyio.to_thread.run_sync(self._ask, question, limiter=self._limiter)

    def _ask(self, question: Callable[[sqlite3.Connection], R]) -> R:
        db: sqlite3.Connection | None = None
        try:
            db = self._connection()
            answer = question(db)
        except SealBroken as error:
            raise RecordUnavailable(str(error)) from error
        except (sqlite3.Error, OSError) as error:
            if db is not None:
                db.close()
            told = unavailable(self._path, error)
            raise RecordUnavailable(f"Records cannot be read now ({error}).", next_step=told.next_step) from error
        if self._closed:
            db.close()
        else:
            self._idle.append(db)
        return answer

    def _connection(self) -> sqlite3.Connection:
        """An idle connection, or a new one. In a worker thread."""
        if self._closed:
            raise OSError("the store is closed")
        try:
            return self._idle.pop()
        except IndexError:
            pass  # all are in use
        db = connect(self._path, read_only=True)
        db.row_factory = None
        return db

    async def _version(self) -> int:
        try:
            return await anyio.to_thread.run_sync(self._read_version, limiter=self._limiter)
        except sqlite3.Error as error:
            raise unavailable(self._path, error) from error

    def _read_version(self) -> int:
        return int(self._watcher.execute("pragma data_version").fetchone()[0])
