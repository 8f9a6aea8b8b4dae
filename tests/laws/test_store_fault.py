"""When the file is locked, full, read-only, moved or slow: closed in bounded time, nothing half done, healed."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from broker.errors import Internal, RecordUnavailable
from broker.model.invocation import Intent, InvocationQuery
from broker.stores.sqlite import admission, ledger
from broker.stores.sqlite.live_file import is_busy
from broker.stores.sqlite.store import SqliteStore
from broker.stores.sqlite.transaction import Transaction
from broker.verifier import verify
from tests.processes import processes
from tests.records import NOW, HandClock, count, held_intent, intent, open_store, outcome

pytestmark = pytest.mark.anyio


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    store = await SqliteStore.open(tmp_path / "broker.db", clock=HandClock(), patience_s=0.1)
    yield store
    await store.aclose()


@contextmanager
def locked(database: Path) -> Generator[None]:
    """Another program in the middle of a write."""
    with closing(sqlite3.connect(database, isolation_level=None, check_same_thread=False)) as db:
        db.execute("begin immediate")
        yield
        db.execute("rollback")


async def healed(store: SqliteStore) -> None:
    """Without any call: the store finds out by itself."""
    with anyio.fail_after(5):
        while store.fault:
            await anyio.sleep(0.01)


async def on_the_thread(store: SqliteStore, statement: str) -> None:
    def run(tx: Transaction, _: None) -> None:
        tx.db.execute(statement)

    await store.writer.run(run, None)


async def assert_refused(store: SqliteStore) -> None:
    """Every verb that writes, in bounded time; and the reason is known to /readyz."""
    with anyio.fail_after(5):
        for attempt in (
            lambda: store.admit(intent()),
            lambda: store.admit(held_intent()),
            lambda: store.admit(intent(refusal=("forbidden", "authorise", "no"))),
            lambda: store.note("reload", {}),
        ):
            with pytest.raises(RecordUnavailable) as refused:
                await attempt()
            assert refused.value.effect == "none"
            assert refused.value.next_step
            assert store.fault


async def test_a_lock_held_for_a_moment_is_waited_for(tmp_path: Path) -> None:
    store = await open_store(tmp_path)
    try:
        async with anyio.create_task_group() as tasks:
            with locked(tmp_path / "broker.db"):
                tasks.start_soon(store.admit, intent())
                await anyio.sleep(0.05)  # the writer is at it by now; if not, the test is only easier
        assert not store.fault
        assert len(await store.invocations(InvocationQuery())) == 1
    finally:
        await store.aclose()


async def test_a_lock_held_for_long_refuses_and_then_heals(store: SqliteStore, tmp_path: Path) -> None:
    running = intent(charges=(count(5),))
    await store.admit(running)
    with locked(tmp_path / "broker.db"):
        await assert_refused(store)
        with pytest.raises(RecordUnavailable):
            await store.finish(outcome(running.call_id))
        assert len(await store.invocations(InvocationQuery())) == 1  # reading goes on
    await healed(store)
    await store.finish(outcome(running.call_id))
    assert [one.state for one in await store.invocations(InvocationQuery())] == ["succeeded"]
    found = verify(tmp_path / "broker.db")
    assert found.fault is None
    with closing(sqlite3.connect(tmp_path / "broker.db")) as db:
        assert db.execute("select count(*) from entry where kind = 'outage'").fetchone() == (1,)


async def test_a_lock_at_the_very_first_record_heals_too(store: SqliteStore, tmp_path: Path) -> None:
    with locked(tmp_path / "broker.db"):
        await assert_refused(store)
    await healed(store)
    await store.admit(intent())
    assert verify(tmp_path / "broker.db").fault is None


@pytest.mark.parametrize("fault", ["pragma query_only = on", "pragma max_page_count = 1"])
async def test_a_file_that_takes_no_writes_refuses_and_heals(store: SqliteStore, tmp_path: Path, fault: str) -> None:
    """The pragma is forgotten when the store opens the file anew, which is how it heals."""
    await store.admit(intent())
    await on_the_thread(store, fault)
    with pytest.raises(RecordUnavailable):
        for _ in range(100):
            await store.admit(intent(arguments={"text": "x" * 10_000}))
    assert store.fault
    await healed(store)
    assert (await store.admit(intent())).state == "dispatching"
    assert verify(tmp_path / "broker.db").fault is None


async def test_a_disk_that_takes_no_more_refuses_and_heals(tmp_path: Path) -> None:
    def play() -> tuple[str, str, int]:
        with processes(1, "fill", tmp_path / "broker.db") as (process,):
            process.go_on()
            return process.line(), process.line(), process.wait()

    assert await anyio.to_thread.run_sync(play) == ("refused 3 fault", "healed dispatching", 0)
    assert verify(tmp_path / "broker.db").fault is None


@pytest.mark.parametrize("part", ["", "-wal", "-shm"])
async def test_a_file_moved_away_refuses_until_it_is_back(store: SqliteStore, tmp_path: Path, part: str) -> None:
    await store.admit(intent())
    file, away = tmp_path / f"broker.db{part}", tmp_path / "away"
    file.rename(away)
    await assert_refused(store)
    away.rename(file)
    await healed(store)
    await store.admit(intent())
    assert verify(tmp_path / "broker.db").fault is None


async def test_another_file_in_its_place_is_not_written_to(store: SqliteStore, tmp_path: Path) -> None:
    await store.admit(intent())
    (tmp_path / "broker.db").rename(tmp_path / "away")
    other = await open_store(tmp_path)
    try:
        await other.admit(intent())
        await assert_refused(store)
        assert len(await other.invocations(InvocationQuery())) == 1
    finally:
        await other.aclose()


async def test_a_disk_that_hangs_is_not_waited_for_and_what_it_wrote_late_is_settled(
    store: SqliteStore, tmp_path: Path
) -> None:
    hang = threading.Event()

    def wait(_tx: Transaction, _argument: None) -> None:
        hang.wait(20)

    call = intent(charges=(count(5),))
    refused: list[bool] = []

    async def admit() -> None:
        with pytest.raises(RecordUnavailable):
            await store.admit(call)
        refused.append(True)

    async def hung() -> None:
        with pytest.raises(RecordUnavailable):
            await store.writer.run(wait, None)

    async with anyio.create_task_group() as tasks:
        with anyio.fail_after(10):
            tasks.start_soon(hung)
            tasks.start_soon(admit)
            while not refused:
                await anyio.sleep(0.01)
            await assert_refused(store)
            hang.set()
            await healed(store)
    recorded = await store.invocation(call.call_id)
    if recorded is not None:  # it shared the batch that hung; or it was refused while it still waited in the queue
        while recorded is not None and recorded.state == "dispatching":
            await store.changed(0.1)
            recorded = await store.invocation(call.call_id)
        assert recorded is not None
        assert (recorded.state, recorded.effect) == ("failed", "none")
    assert (await store.admit(intent())).state == "dispatching"
    assert verify(tmp_path / "broker.db").fault is None


async def test_a_caller_that_goes_away_during_the_commit_leaves_no_call_under_way(
    store: SqliteStore, tmp_path: Path
) -> None:
    call = intent()
    with locked(tmp_path / "broker.db"):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(store.admit, call)
            await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
    with anyio.fail_after(5):
        while True:
            await store.note("reload", {})  # behind it in the queue, so it has been decided
            recorded = await store.invocation(call.call_id)
            if recorded is None or recorded.state != "dispatching":
                break
    assert recorded is None or (recorded.state, recorded.effect) == ("failed", "none")


async def test_a_bug_in_one_job_undoes_that_job_alone(store: SqliteStore, tmp_path: Path) -> None:
    def buggy(tx: Transaction, _: None) -> None:
        tx.db.execute("insert into payload (call_id, part, body) values ('half', 'done', x'00')")
        tx.ledger.append("half", "", NOW, {})
        raise ZeroDivisionError

    calls = [intent() for _ in range(20)]
    failed: list[Any] = []

    async def go_wrong() -> None:
        with pytest.raises(Internal) as error:
            await store.writer.run(buggy, None)
        failed.append(error.value.__cause__)

    async with anyio.create_task_group() as tasks:
        for call in calls[:10]:
            tasks.start_soon(store.admit, call)
        tasks.start_soon(go_wrong)
        for call in calls[10:]:
            tasks.start_soon(store.admit, call)
    assert [type(error) for error in failed] == [ZeroDivisionError]
    assert len(await store.invocations(InvocationQuery())) == len(calls)
    assert not store.fault
    with closing(sqlite3.connect(tmp_path / "broker.db")) as db:
        assert db.execute("select count(*) from payload where call_id = 'half'").fetchone() == (0,)
    assert verify(tmp_path / "broker.db").fault is None


async def bug(store: SqliteStore, call: Intent) -> None:
    """In the middle of a job, after it was recorded."""

    def buggy(tx: Transaction, _: None) -> None:
        admission.admit(tx, call)
        raise ZeroDivisionError

    with pytest.raises(Internal):
        await store.writer.run(buggy, None)


async def no_writes(store: SqliteStore, call: Intent) -> None:
    def refuse(tx: Transaction, _: None) -> None:
        admission.admit(tx, call)
        tx.db.execute("pragma query_only = on")
        tx.db.execute("delete from payload where call_id = 'x'")

    with pytest.raises(RecordUnavailable):
        await store.writer.run(refuse, None)
    await healed(store)


async def restored(store: SqliteStore, call: Intent) -> None:
    """The disk takes back what it had: another copy of the file is opened in its place."""
    await store.admit(call)

    def older(tx: Transaction, _: None) -> None:
        tx.db.execute("delete from payload where call_id = ?", (call.call_id,))
        tx.db.execute("delete from invocation where call_id = ?", (call.call_id,))
        tx.db.execute("delete from entry where call_id = ?", (call.call_id,))

    await store.writer.run(older, None)
    await no_writes(store, intent())


@pytest.mark.parametrize("undone", [bug, no_writes, restored])
async def test_no_intent_names_one_that_was_undone(
    store: SqliteStore, tmp_path: Path, undone: Callable[[SqliteStore, Intent], Awaitable[None]]
) -> None:
    await store.admit(intent())
    await undone(store, intent(agent="cat", tool="orders_find"))
    for _ in range(3):
        await store.admit(intent(agent="cat", tool="orders_find"))
        await store.admit(intent())
    assert verify(tmp_path / "broker.db").fault is None
    with closing(sqlite3.connect(tmp_path / "broker.db")) as db:
        named = "json_extract(body, '$.as[0]') > 0 and json_extract(body, '$.as[1]') > 0"
        assert db.execute(f"select count(*) from entry where kind = 'intent' and {named}").fetchone() >= (4,)


async def test_few_callers_are_remembered(store: SqliteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "SAID", 5)
    for number in range(40):
        await store.admit(intent(agent=f"agent-{number % 3}", tool=f"tool-{number % 4}"))
    assert verify(tmp_path / "broker.db").fault is None


async def test_an_error_without_a_code_is_nobodys_lock() -> None:
    with closing(sqlite3.connect(":memory:")) as db:
        pass
    with pytest.raises(sqlite3.ProgrammingError) as closed:
        db.execute("select 1")
    assert not is_busy(closed.value)
