"""The database as a file: who may read it, what is readable in it, and which files are refused with what to do."""

from __future__ import annotations

import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest

from broker.errors import RecordUnavailable
from broker.model.hold import Review
from broker.ports import Store
from broker.stores.sqlite.database import APPLICATION_ID
from tests.records import HOUR, NOW, HandClock, held_intent, intent, open_store, outcome

pytestmark = pytest.mark.anyio

CANARY = "canary-5f1c9a"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_nobody_else_can_read_any_of_its_files(tmp_path: Path) -> None:
    store = await open_store(tmp_path)
    try:
        await store.admit(held_intent())
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert {path.name for path in files} >= {"broker.db", "broker.db-wal", "broker.db-shm", "broker.db.key"}
        assert {mode(path) for path in files} == {0o600}
        assert mode(tmp_path / "broker.db.writers") == 0o700
    finally:
        await store.aclose()


async def test_a_file_others_could_read_is_closed_to_them(tmp_path: Path) -> None:
    (tmp_path / "broker.db").touch(mode=0o644)
    store = await open_store(tmp_path)
    await store.aclose()
    assert mode(tmp_path / "broker.db") == 0o600


async def test_a_process_that_only_reads_leaves_no_trace(tmp_path: Path) -> None:
    await (await open_store(tmp_path)).aclose()
    before = (tmp_path / "broker.db").read_bytes()
    store = await open_store(tmp_path)
    assert await store.invocation("nothing") is None
    await store.aclose()
    assert (tmp_path / "broker.db").read_bytes() == before
    assert not (tmp_path / "broker.db.writers").exists()


def everything_in(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("broker.db*") if path.is_file())


async def run_held(store: Store, call_id: str) -> None:
    await store.review(Review(call_id, "approve", "rita", "", NOW + 1, "cli"))
    await store.claim(call_id, NOW + 2)
    await store.finish(outcome(call_id, result=f'{{"text":"{CANARY}"}}'.encode()))


async def test_arguments_and_results_of_held_calls_cannot_be_read_in_the_files(tmp_path: Path) -> None:
    store = await open_store(tmp_path)
    try:
        sealed = held_intent(arguments={"text": CANARY}, kept=b'{"text":"***"}')
        await store.admit(sealed)
        assert CANARY.encode() not in everything_in(tmp_path)
        assert await store.held_arguments(sealed.call_id) == sealed.arguments
        await run_held(store, sealed.call_id)
        assert CANARY.encode() not in everything_in(tmp_path)
        collected = await store.collect(sealed.call_id, sealed.caller.principal_key, NOW + 9)
        assert collected is not None
        assert CANARY.encode() in collected.result
        await store.admit(intent(arguments={"text": CANARY}))
        assert CANARY.encode() in everything_in(tmp_path), "the search would find it"
    finally:
        await store.aclose()


async def test_a_sealed_payload_opens_only_where_it_was_put(tmp_path: Path) -> None:
    store = await open_store(tmp_path)
    try:
        one, other = held_intent(arguments={"n": 1}), held_intent(arguments={"n": 2})
        for call in (one, other):
            await store.admit(call)
        with closing(sqlite3.connect(tmp_path / "broker.db", isolation_level=None)) as db:
            db.execute(
                "update payload set body = (select body from payload where call_id = ? and part = 'arguments') "
                "where call_id = ? and part = 'arguments'",
                (one.call_id, other.call_id),
            )
        assert await store.held_arguments(one.call_id) == one.arguments
        with pytest.raises(RecordUnavailable):
            await store.held_arguments(other.call_id)
    finally:
        await store.aclose()


async def test_a_hold_whose_key_is_lost_is_withdrawn_and_says_so(tmp_path: Path) -> None:
    store = await open_store(tmp_path)
    call = held_intent()
    await store.admit(call)
    await store.review(Review(call.call_id, "approve", "rita", "", NOW + 1, "cli"))
    await store.aclose()
    (tmp_path / "broker.db.key").unlink()
    store = await open_store(tmp_path)
    try:
        assert await store.claim(call.call_id, NOW + 2) is None
        recorded = await store.invocation(call.call_id)
        assert recorded is not None
        assert recorded.hold is not None
        assert recorded.state == "withdrawn"
        assert "key" in recorded.hold.review_reason
    finally:
        await store.aclose()


async def test_results_are_deleted_some_time_after_they_were_collected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.stores.sqlite.store.TIDY_EVERY_S", 0.0)
    store = await open_store(tmp_path)
    try:
        collected, waiting = held_intent(arguments={"n": 1}), held_intent(arguments={"n": 2})
        for call in (collected, waiting):
            await store.admit(call)
            await run_held(store, call.call_id)
        await store.collect(collected.call_id, collected.caller.principal_key, NOW + 9)
        await store.sweep(NOW + 2 * HOUR)  # an hour after its hold would have expired
        kept = await store.collect(collected.call_id, collected.caller.principal_key, NOW + HOUR)
        assert kept is not None
        assert kept.result
        await store.sweep(NOW + 2 * HOUR + 10)
        gone = await store.collect(collected.call_id, collected.caller.principal_key, NOW + HOUR)
        assert gone is not None
        assert gone.result == b""
        still = await store.collect(waiting.call_id, waiting.caller.principal_key, NOW + 2 * HOUR)
        assert still is not None
        assert still.result
    finally:
        await store.aclose()


async def refused(folder: Path) -> str:
    with pytest.raises(RecordUnavailable) as error:
        await open_store(folder)
    return error.value.sentence


@pytest.mark.parametrize("offset", [0, 15, 16, 18, 19, 20, 21, 22, 23, 59])
async def test_a_damaged_header_is_refused_with_how_to_repair(tmp_path: Path, offset: int) -> None:
    await (await open_store(tmp_path)).aclose()
    database = tmp_path / "broker.db"
    sound = database.read_bytes()
    database.write_bytes(sound[:offset] + bytes([sound[offset] ^ 0xFF]) + sound[offset + 1 :])
    assert ".recover" in await refused(tmp_path)
    database.write_bytes(sound)
    await (await open_store(tmp_path)).aclose()


async def test_a_broker_killed_while_it_makes_its_database_can_be_started_again(tmp_path: Path) -> None:
    """Then the tables are in the log, and the file itself is that of an empty database, without an encoding."""
    killed = tmp_path / "killed.db"
    with closing(sqlite3.connect(killed, isolation_level=None)) as db:
        db.execute("pragma journal_mode = wal")
        db.execute(f"pragma application_id = {APPLICATION_ID}")
        for end in ("", "-wal"):
            (tmp_path / f"broker.db{end}").write_bytes((tmp_path / f"killed.db{end}").read_bytes())
    assert (tmp_path / "broker.db").read_bytes()[56:60] == bytes(4)
    await (await open_store(tmp_path)).aclose()


async def test_a_damaged_schema_is_refused_with_how_to_repair(tmp_path: Path) -> None:
    await (await open_store(tmp_path)).aclose()
    database = tmp_path / "broker.db"
    sound = database.read_bytes()
    database.write_bytes(sound[:100] + b"\xff" * 400 + sound[500:])
    assert ".recover" in await refused(tmp_path)


async def test_a_database_of_a_newer_broker_is_refused(tmp_path: Path) -> None:
    await (await open_store(tmp_path)).aclose()
    with closing(sqlite3.connect(tmp_path / "broker.db", isolation_level=None)) as db:
        db.execute(
            "insert into _sqlite_migrations (migration_set, name, applied_at) values ('store', 'of-tomorrow', '2030')"
        )
    assert "newer" in await refused(tmp_path)


async def test_somebody_elses_database_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "broker.db", isolation_level=None)) as db:
        db.execute("create table theirs (a)")
    before = (tmp_path / "broker.db").read_bytes()
    assert "not a broker's" in await refused(tmp_path)
    assert (tmp_path / "broker.db").read_bytes() == before


async def test_a_folder_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    """A disk that is not mounted: quotas would begin anew, and no record would know of what was before."""
    with pytest.raises(RecordUnavailable, match="no folder") as refused:
        await open_store(tmp_path / "unmounted")
    assert "Mount it" in refused.value.next_step
    assert list(tmp_path.iterdir()) == []


async def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "cannot be opened" in await refused(tmp_path / "file")
    (tmp_path / "broker.db").mkdir()
    await refused(tmp_path)


async def test_a_writer_whose_lock_file_was_removed_counts_as_alive_until_its_lease_ends(tmp_path: Path) -> None:
    clock = HandClock()
    store, other = await open_store(tmp_path, clock, lease_s=30), await open_store(tmp_path, clock)
    try:
        call = intent()
        await store.admit(call)
        (lock,) = (tmp_path / "broker.db.writers").iterdir()
        lock.unlink()
        assert (await other.sweep(NOW + 30_000)).outcome_unknown == ()
        (lost,) = (await other.sweep(NOW + 30_001)).outcome_unknown
        assert lost.call_id == call.call_id
    finally:
        await store.aclose()
        await other.aclose()
