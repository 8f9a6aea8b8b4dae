"""However many buckets there are: a charge looks at its own, a sweep takes a bounded part, a list comes in pages."""

# The statements themselves are judged.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from contextlib import closing
from pathlib import Path

import pytest

from broker.stores.sqlite import quota, rate, sweep
from broker.stores.sqlite.ledger import Ledger
from broker.stores.sqlite.rows import Rows
from broker.stores.sqlite.schema import MIGRATIONS
from broker.stores.sqlite.seal import Seal
from broker.stores.sqlite.transaction import Transaction
from tests.records import MINUTE, NOW, breaker, concurrency, cost, count
from tests.records import rate as rated

BUCKETS = 5_000
WEEK = 7 * 86_400_000


@pytest.fixture
def tx(tmp_path: Path) -> Generator[Transaction]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        MIGRATIONS.apply(db)
        yield Transaction(rows := Rows(db), Ledger(rows, "chain", lambda _: None), Seal(tmp_path / "key"), 1000)


def fill(tx: Transaction) -> None:
    for number in range(BUCKETS // 5):
        whose = f"agent={number}"
        charges = (
            rated(5, bucket=whose),
            count(5, bucket=whose),
            cost(100, 7, bucket=whose),
            concurrency(5, bucket=whose),
            breaker("repeat", 3, MINUTE, MINUTE, bucket=whose),
        )
        assert quota.charge(tx, charges, f"call {number}", NOW, held=False)[1] is None
        quota.settle(tx, f"call {number}", ran=True)


@pytest.mark.parametrize(
    ("sql", "values"),
    [
        *((sql, 4) for sql in quota._WINDOW.values()),
        *((sql, 2) for sql in rate._COUNTER.values()),
        (rate._OLDEST, 2),
        (rate._COVERING, 3),
        (sweep._IDLE, 2),
    ],
)
def test_what_is_asked_at_every_charge_and_sweep_is_found_by_an_index(tx: Transaction, sql: str, values: int) -> None:
    plan = tx.db.execute(f"explain query plan {sql}", (0,) * values).fetchall()
    assert plan
    assert all(("SEARCH" in row[-1] and "INDEX" in row[-1]) or "PRIMARY KEY" in row[-1] for row in plan), plan


def test_a_list_of_buckets_comes_in_pages_without_a_gap_or_a_repetition(tx: Transaction) -> None:
    fill(tx)
    seen: list[str] = []
    after = ""
    while page := quota.standing(tx.db, NOW, after=after, limit=300):
        assert len(page) <= 300
        seen += [state.place for state in page]
        after = page[-1].place
    assert len(seen) == len(set(seen)) == BUCKETS // 5 * 3, "concurrency is free again, and nobody repeated himself"
    assert seen == sorted(seen)
    (only,) = {state.quota for state in quota.standing(tx.db, NOW, quota="money", limit=10_000)}
    assert only == "money"


def test_a_sweep_takes_a_bounded_part_and_in_the_end_all_that_is_over(tx: Transaction) -> None:
    fill(tx)
    assert sweep.tidy(tx, (NOW + MINUTE, WEEK)) == 0
    rounds = 0
    while gone := sweep.tidy(tx, (NOW + WEEK + WEEK, WEEK)):
        assert gone <= 3 * sweep.CHUNK
        rounds += 1
    assert rounds >= BUCKETS // 5 // sweep.CHUNK
    (rows,) = tx.db.execute("select count(*) from quota_rate").fetchone()
    (counters,) = tx.db.execute("select count(*) from quota_counter").fetchone()
    assert (rows, counters) == (0, 0)
