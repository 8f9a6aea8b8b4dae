"""Quotas are exact: against a reference that does it the slow way, and with several processes on one file."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.model.invocation import InvocationQuery
from broker.stores.sqlite import rate as sliding
from broker.stores.sqlite.schema import MIGRATIONS
from broker.verifier import verify
from tests.processes import processes
from tests.records import HOUR, MINUTE, NOW, HandClock, count, intent, open_store, rate
from tests.store_process import LIMIT


class Reference:
    """Every unit with its time in a list."""

    def __init__(self) -> None:
        self.units: list[int] = []

    def inside(self, now_ms: int, window_ms: int) -> int:
        return sum(1 for at_ms in self.units if at_ms > now_ms - window_ms)

    def fits(self, now_ms: int, window_ms: int, limit: int, amount: int) -> bool:
        return self.inside(max([now_ms, *self.units]), window_ms) + amount <= limit

    def take(self, now_ms: int, amount: int) -> None:
        self.units += [max([now_ms, *self.units])] * amount


@contextmanager
def tables() -> Generator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        MIGRATIONS.apply(db)
        yield db


@settings(max_examples=150, deadline=None)
@given(
    limit=st.integers(1, 12),
    window_ms=st.integers(1, 60),
    asked=st.lists(st.tuples(st.integers(-15, 40), st.integers(1, 5)), min_size=1, max_size=60),
)
def test_the_sliding_window_decides_as_one_that_remembers_everything(
    limit: int, window_ms: int, asked: list[tuple[int, int]]
) -> None:
    reference, now_ms = Reference(), NOW
    with tables() as db:
        for step_ms, amount in asked:
            now_ms += step_ms  # the clock may be set back
            charge = rate(limit, window_ms=window_ms, amount=amount)
            fits = reference.fits(now_ms, window_ms, limit, amount)
            seen = sliding.look(db, charge, now_ms)
            state = seen.state(charge)
            assert seen.fits is fits
            if fits:
                sliding.put(db, charge, seen)
                reference.take(now_ms, amount)
            at_ms = max([now_ms, *reference.units])
            assert state.left == limit - reference.inside(at_ms, window_ms)
            if not fits and amount <= limit:
                assert reference.fits(now_ms + state.retry_after_ms, window_ms, limit, amount)
                assert not reference.fits(now_ms + state.retry_after_ms - 1, window_ms, limit, amount)
            elif not fits:
                assert state.retry_after_ms == 0


def test_units_that_left_the_window_do_not_pile_up() -> None:
    with tables() as db:
        for number in range(500):
            charge = rate(10, window_ms=10)
            seen = sliding.look(db, charge, NOW + number)
            assert seen.fits
            sliding.put(db, charge, seen)
        (rows,) = db.execute("select count(*) from quota_rate").fetchone()
        assert rows < 10 + sliding.PRUNE + 2


@pytest.mark.anyio
async def test_a_clock_that_is_set_back_gives_no_second_window(tmp_path: Path) -> None:
    store = await open_store(tmp_path)
    try:
        for _ in range(3):
            assert (await store.admit(intent(charges=(rate(3),)))).state == "dispatching"
        back = await store.admit(intent(at_ms=NOW - HOUR, charges=(rate(3),)))
        assert back.over is not None
        assert back.over.retry_after_ms == HOUR + MINUTE

        later = count(1, starts_at_ms=NOW, resets_at_ms=NOW + HOUR)
        assert (await store.admit(intent(charges=(later,)))).state == "dispatching"
        behind = count(1, starts_at_ms=NOW - HOUR, resets_at_ms=NOW)
        assert (await store.admit(intent(at_ms=NOW - MINUTE, charges=(behind,)))).state == "denied"
    finally:
        await store.aclose()


@pytest.mark.anyio
async def test_old_counters_are_tidied_and_live_ones_are_not(tmp_path: Path) -> None:
    clock = HandClock()
    store = await open_store(tmp_path, clock)
    try:
        await store.admit(intent(charges=(count(5), rate(5))))
        assert [state.left for state in await store.quotas(NOW)] == [4, 4]
        assert await store.quotas(NOW + HOUR) == []  # its day is over, its minute too
    finally:
        await store.aclose()


def test_four_processes_admit_exactly_what_the_quotas_hold(tmp_path: Path) -> None:
    """They start together on no file at all, so they also race for creating it."""
    database = tmp_path / "broker.db"
    with processes(4, "compete", database) as four:
        for process in four:
            process.go_on()
        taken = [[int(word) for word in process.line().split()] for process in four]
        assert [process.wait() for process in four] == [0, 0, 0, 0]
    totals = [sum(column) for column in zip(*taken, strict=True)]
    assert totals == [LIMIT, LIMIT, LIMIT]
    assert sum(1 for row in taken if row[0]) > 1, "one process had it all to itself: nothing was raced for"
    found = verify(database)
    assert found.fault is None
    assert found.chains == 4


@pytest.mark.anyio
async def test_what_a_killed_process_had_under_way_is_lost_at_once_and_its_reservations_are_free(
    tmp_path: Path,
) -> None:
    database = tmp_path / "broker.db"
    admitted, finished = set[str](), set[str]()
    with processes(1, "work", database) as (process,):
        process.go_on()
        while len(finished) < 40:
            verb, call_id = process.line().split()
            (admitted if verb == "admitted" else finished).add(call_id)
        store = await open_store(tmp_path)
        assert (await store.sweep(NOW)).outcome_unknown == ()  # it is alive: not ours to touch
        process.kill()
        try:
            swept = await store.sweep(NOW)
            recorded = {one.call_id: one for one in await store.invocations(InvocationQuery(limit=100_000))}
            assert admitted <= recorded.keys()
            assert {recorded[call_id].state for call_id in finished} == {"succeeded"}
            assert {one.state for one in recorded.values()} == {"succeeded", "outcome_unknown"}
            lost = {one.call_id for one in swept.outcome_unknown}
            assert lost == {one.call_id for one in recorded.values() if one.state == "outcome_unknown"}
            assert len(lost) >= 8  # the tasks that never finish theirs
            assert swept.leases == 2 * len(lost)
            (money,) = await store.quotas(NOW)  # no concurrency is left reserved
            assert money.limit - money.left == 3 * (len(recorded) - len(lost)) + 10 * len(lost)
            assert (await store.sweep(NOW)).outcome_unknown == ()
        finally:
            await store.aclose()
    assert verify(database).fault is None
    assert list((tmp_path / "broker.db.writers").iterdir()) == []
