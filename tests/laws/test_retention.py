"""Payloads go by age, by budget and by whose they are; records stay, say so, and verify."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import anyio
import orjson
import pytest

from broker.model.canonical import canonical
from broker.model.hold import Edit, Review
from broker.model.invocation import Intent
from broker.model.ledger import Retention
from broker.policies.record import RecordSpec, Redaction
from broker.ports import Store
from broker.verifier import verify
from tests import second_verifier
from tests.records import HOUR, NOW, HandClock, held_intent, intent, open_store, outcome

DAY = 24 * HOUR
SPEC = RecordSpec.model_validate({"default": "redacted", "fields": {"note": "full", "order_id": "hmac"}})


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> HandClock:
    monkeypatch.setattr("broker.stores.sqlite.store.TIDY_EVERY_S", 0.0)
    return HandClock()


@asynccontextmanager
async def keeping(folder: Path, clock: HandClock, **keys: int) -> AsyncGenerator[Store]:
    store = await open_store(folder, clock, retention=Retention(**keys))
    try:
        yield store
    finally:
        await store.aclose()


async def call(store: Store, number: int, *, make: Callable[..., Intent] = intent, **change: Any) -> Intent:
    """A call that is over, unless it is held, made on day `number`."""
    arguments = {"order_id": number, "note": f"canary-{number}", "open": f"clear-{number}"}
    took = Redaction.compile(SPEC, []).kept(arguments, canonical(arguments), store.mac)
    kept = {"kept": took.clear, "sealed": took.sealed, "macs": took.macs}
    made = make(arguments=arguments, at_ms=NOW + number * DAY, **{**kept, **change})
    await store.admit(made)
    if made.terms is None:
        await store.finish(outcome(made.call_id, at_ms=made.at_ms + 5))
    return made


def parts(folder: Path) -> dict[str, int]:
    with closing(sqlite3.connect(folder / "broker.db")) as db:
        return dict(db.execute("select part, count(*) from payload group by part"))


def said(folder: Path, kind: str) -> list[Any]:
    with closing(sqlite3.connect(folder / "broker.db")) as db:
        rows = db.execute("select body from entry where kind = ? order by id", (kind,))
        return [orjson.loads(row[0]) for row in rows]


def both_verify(folder: Path) -> int:
    """Payloads that are gone, as the verifier counts them."""
    found = verify(folder / "broker.db")
    assert found.fault is None
    assert second_verifier.judge(folder / "broker.db") is None
    return found.erased


@pytest.mark.anyio
async def test_each_class_is_kept_as_long_as_the_settings_say(tmp_path: Path, clock: HandClock) -> None:
    async with keeping(tmp_path, clock, arguments_ms=10 * DAY, sealed_ms=3 * DAY) as store:
        for number in range(20):
            await call(store, number)
        clock.at_ms = NOW + 15 * DAY
        await store.sweep(clock.at_ms)
        assert parts(tmp_path) == {"kept": 15, "full": 8}
        await store.sweep(clock.at_ms)
        clock.at_ms += 2 * DAY
        await store.sweep(clock.at_ms)
        assert parts(tmp_path) == {"kept": 13, "full": 6}
        gone = [(one["part"], one["rows"], one["why"]) for one in said(tmp_path, "payloads_deleted")]
        assert gone == [("kept", 5, "age"), ("full", 12, "age"), ("kept", 2, "age"), ("full", 2, "age")]
    assert both_verify(tmp_path) == 7 + 14


@pytest.mark.anyio
async def test_beyond_the_budget_the_oldest_go_first(tmp_path: Path, clock: HandClock) -> None:
    async with keeping(tmp_path, clock) as store:
        made = [await call(store, number) for number in range(20)]
    with closing(sqlite3.connect(tmp_path / "broker.db")) as db:
        (size,) = db.execute("select sum(length(body)) from payload").fetchone()
    async with keeping(tmp_path, clock, budget_bytes=size // 2) as store:
        await store.sweep(NOW + 30 * DAY)
        left = parts(tmp_path)
        assert left["kept"] == left["full"]
        assert left["kept"] in (9, 10), "half of it, as far as calls can be halved"
        oldest, newest = [await store.invocation(made[number].call_id) for number in (0, 19)]
        assert oldest is not None and newest is not None
        assert (oldest.kept, newest.kept["open"]) == (None, "clear-19")
    assert {one["why"] for one in said(tmp_path, "payloads_deleted")} == {"budget"}
    assert both_verify(tmp_path) == 40 - left["kept"] - left["full"]


@pytest.mark.anyio
async def test_a_file_becomes_smaller_by_what_was_deleted_while_calls_go_on(tmp_path: Path, clock: HandClock) -> None:
    database = tmp_path / "broker.db"
    async with keeping(tmp_path, clock, arguments_ms=10 * DAY) as store:
        for number in range(60):
            await call(store, number, kept=b"{%s}" % (b'"x":"%s"' % (b"y" * 60_000)))
        most = size(database)
        assert most > 3_000_000
        clock.at_ms = NOW + 200 * DAY
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(store.sweep, clock.at_ms)
            for number in range(100, 120):
                await call(store, number)
        while (before := size(database)) > 1_900_000:
            await store.sweep(clock.at_ms)
            assert size(database) < before, "each sweep gives some back"
    assert both_verify(tmp_path) >= 60


def size(database: Path) -> int:
    with closing(sqlite3.connect(database)) as db:
        return db.execute("pragma page_count").fetchone()[0] * db.execute("pragma page_size").fetchone()[0]


@pytest.mark.anyio
async def test_results_nobody_collects_go_after_the_days_of_the_settings(tmp_path: Path, clock: HandClock) -> None:
    async with keeping(tmp_path, clock, results_ms=2 * DAY) as store:
        held = await call(store, 0, make=held_intent)
        await store.review(Review(held.call_id, "approve", "rita", "", NOW + 1, "cli"))
        await store.claim(held.call_id, NOW + 2)
        await store.finish(outcome(held.call_id, result=b"{}", at_ms=NOW + 3))
        for days, left in ((1, 1), (3, 0)):
            clock.at_ms = NOW + days * DAY
            await store.sweep(clock.at_ms)
            assert parts(tmp_path).get("result", 0) == left


@pytest.mark.anyio
async def test_what_an_edited_call_had_before_is_erased_with_the_rest(tmp_path: Path, clock: HandClock) -> None:
    async with keeping(tmp_path, clock) as store:
        held = await call(store, 0, make=held_intent, user="ann")
        after = intent(arguments={"order_id": 2, "open": "clear-after"})
        review = Review(held.call_id, "approve", "rita", "less", NOW + 1, "cli")
        await store.edit(
            Edit(
                review,
                arguments=after.kept or b"",
                arguments_digest=after.arguments_digest,
                bound="sha256:bound",
                policy="sha256:policy",
                sketch=b"{}",
                sketch_digest="sha256:sketch",
                changes=b"[]",
                kept=after.kept,
            )
        )
        await store.claim(held.call_id, NOW + 2)
        await store.finish(outcome(held.call_id, at_ms=NOW + 3))
        assert parts(tmp_path)["kept_before"] == 1
        assert (await store.erase("user", "ann", by="root")).calls == 1
        assert "kept_before" not in parts(tmp_path)
    both_verify(tmp_path)
    written = b"".join(path.read_bytes() for path in tmp_path.glob("broker.db*") if path.is_file())
    assert b"clear-" not in written


@pytest.mark.anyio
async def test_what_is_kept_of_a_person_is_erased_and_the_records_stay(tmp_path: Path, clock: HandClock) -> None:
    async with keeping(tmp_path, clock) as store:
        hers = [await call(store, number, user="ann") for number in range(3)]
        his = await call(store, 3, user="bob")
        waits = await call(store, 4, make=held_intent, user="ann")
        would = await store.erase("user", "ann", by="root", dry=True)
        assert (would.calls, would.rows, would.open) == (3, 0, 1)
        assert said(tmp_path, "erasure") == []
        done = await store.erase("user", "ann", by="root")
        assert (done.calls, done.rows, done.open) == (3, 6, 1)
        again = await store.erase("user", "ann", by="root")
        assert (again.calls, again.rows, again.open) == (0, 0, 1)
        first = await store.invocation(hers[0].call_id)
        assert first is not None
        assert (first.user, first.kept, first.arguments_digest) == ("ann", None, hers[0].arguments_digest)
        assert await store.payload(hers[0].call_id, by="olga", via="cli") is None
        assert await store.payload(his.call_id, by="olga", via="cli") is not None
        assert await store.held_arguments(waits.call_id) is not None
    entries = said(tmp_path, "erasure")
    assert [(one["part"], one["user"], one["by"], len(one["calls"])) for one in entries] == [
        ("kept", "ann", "root", 3),
        ("full", "ann", "root", 3),
    ]
    assert both_verify(tmp_path) == 6
    written = b"".join(path.read_bytes() for path in tmp_path.glob("broker.db*") if path.is_file())
    assert b"clear-3" in written
    assert not [number for number in range(3) if f"clear-{number}".encode() in written], "zeros where they were"


@pytest.mark.anyio
async def test_an_erasure_covers_no_other_call(tmp_path: Path, clock: HandClock) -> None:
    async with keeping(tmp_path, clock) as store:
        await call(store, 1, user="ann")
        his = await call(store, 2, user="bob")
        await store.erase("user", "ann", by="root")
    with closing(sqlite3.connect(tmp_path / "broker.db", isolation_level=None)) as db:
        db.execute("delete from payload where call_id = ? and part = 'kept'", (his.call_id,))
    fault = verify(tmp_path / "broker.db").fault
    assert fault is not None
    assert his.call_id in fault.what
    assert second_verifier.judge(tmp_path / "broker.db") == (fault.chain, fault.seq)
