"""Whichever jobs share a transaction: every answer, row and entry is what it is when they run one by one."""

# The thread's own steps are taken by hand, so that it is known which jobs meet in which batch.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import Mock, patch

from hypothesis import given, settings
from hypothesis import strategies as st

from broker.errors import BrokerError, Conflict, Internal
from broker.model.canonical import digest_of
from broker.model.hold import Review
from broker.model.quota import Charge
from broker.stores.sqlite import admission, hold, outcome, sweep
from broker.stores.sqlite.database import migrate
from broker.stores.sqlite.schema import MIGRATIONS
from broker.stores.sqlite.seal import Seal
from broker.stores.sqlite.transaction import Transaction
from broker.stores.sqlite.writer import Job, Writer
from broker.verifier import verify
from tests.records import NOW, HandClock, breaker, concurrency, cost, count, held_intent, intent, rate
from tests.records import outcome as ended

DAY = 10  # milliseconds
CALLS = [f"call-{number}" for number in range(16)]
Deed = tuple[Callable[..., Any], Any]


def counted(limit: int, at_ms: int, **change: Any) -> Charge:
    starts = at_ms // DAY * DAY
    return count(limit, starts_at_ms=starts, resets_at_ms=starts + DAY, **change)


CHARGES: dict[str, Callable[[int], Charge]] = {
    "count": lambda at: counted(9, at),
    "count of another": lambda at: counted(2, at, bucket="agent=else"),
    "count by other terms": lambda at: counted(8, at, amount=2, unit="questions"),
    "rate": lambda _: rate(3, DAY),
    "cost": lambda at: cost(40, 15, starts_at_ms=at // DAY * DAY, resets_at_ms=at // DAY * DAY + DAY),
    "concurrency": lambda _: concurrency(2),
    "repeat": lambda _: breaker("repeat", 3, DAY, DAY),
    "errors": lambda _: breaker("errors", 1, DAY, DAY),
}
ids = st.sampled_from(CALLS)
times = st.integers(NOW, NOW + DAY + 2)
some_charges = st.lists(st.sampled_from(sorted(CHARGES)), max_size=2, unique_by=lambda name: name.split()[0])


usual_charges = st.lists(
    st.sampled_from([name for name in CHARGES if name.startswith("count")] + ["count"] * 4), min_size=1, max_size=1
)


@st.composite
def admissions(draw: st.DrawFn, call_id: str = "") -> Deed:
    """What nearly every call is."""
    at_ms = draw(times)
    counts_at_ms = at_ms - draw(st.sampled_from([0] * 9 + [DAY]))  # some count in a window that is over, as they may
    charges = tuple(CHARGES[name](counts_at_ms) for name in draw(usual_charges))
    return admission.admit, intent(call_id=call_id or draw(ids), at_ms=at_ms, charges=charges)


@st.composite
def any_admissions(draw: st.DrawFn) -> Deed:
    at_ms = draw(times)
    keyed = draw(st.sampled_from(["", "", "a", "b"]))
    one = draw(st.sampled_from([intent, held_intent]))(
        call_id=draw(ids),
        at_ms=at_ms,
        arguments={"n": draw(st.integers(0, 2))},
        charges=tuple(CHARGES[name](at_ms) for name in draw(some_charges)),
        refusal=draw(st.sampled_from([None, None, ("forbidden", "authorise", "no")])),
        key=digest_of(keyed.encode()) if keyed else "",
        sealed=draw(st.sampled_from([b"", b"{}"])),
    )
    return admission.admit, one


@st.composite
def endings(draw: st.DrawFn, plain: bool, call_ids: Sequence[str] = CALLS) -> Deed:
    state, code = draw(st.sampled_from([("succeeded", ""), ("failed", "tool_error"), ("outcome_unknown", "timeout")]))
    one = ended(
        draw(st.sampled_from(call_ids)),
        at_ms=draw(times),
        state=state,
        code=code,
        spent={} if plain else draw(st.sampled_from([{}, {"EUR": 7}])),
        result=b"" if plain else draw(st.sampled_from([b"", b"{}"])),
        is_plain=plain,
        laps_us={"resolve": 3, "dispatch": 900},
    )
    return outcome.finish, one


def note(tx: Transaction, kind: str) -> None:
    tx.ledger.append(kind, "", NOW, {})


def wrong(tx: Transaction, kind: str) -> None:
    note(tx, kind)
    raise ZeroDivisionError


@st.composite
def usual(draw: st.DrawFn) -> list[list[Deed]]:
    """Calls that begin once and end, nearly always in this order: what is put off, and stays so."""
    starts = [draw(admissions(call_id)) for call_id in CALLS]
    which = draw(st.sampled_from([CALLS[:3]] * 3 + [CALLS]))
    ends = draw(st.lists(endings(True, which), max_size=3, unique_by=lambda deed: deed[1].call_id))
    return [starts[:3], draw(st.permutations([*starts[3:], *ends]))]


unusual = st.one_of(
    admissions(),
    any_admissions(),
    endings(plain=True),
    endings(plain=False),
    ids.map(lambda call_id: (hold.review, Review(call_id, "approve", "rita", "", NOW + 1, "cli"))),
    ids.map(lambda call_id: (hold.claim, (call_id, NOW + 2))),
    times.map(lambda at_ms: (sweep.recover, (at_ms, 100))),
    st.just((note, "reload")),
)


@cache
def empty() -> bytes:
    with TemporaryDirectory() as folder:
        migrate(path := Path(folder, "broker.db"), MIGRATIONS)
        return path.read_bytes()


def played(batches: Sequence[Sequence[Deed]]) -> tuple[list[Any], dict[str, list[Any]]]:
    """Every answer and every table, when these jobs share these transactions."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "broker.db")
        path.write_bytes(empty())
        seal = Seal(path.with_suffix(".key"), b"k" * 32)
        clock = HandClock()
        writer = Writer(path, chain="c", clock=clock, seal=seal, patience_s=1, lease_s=30, open_per_agent=2)
        writer._bell = Mock()
        writer._file.db.execute("pragma synchronous = off")
        for batch in batches:
            writer._carry_out([Job(*deed) for deed in batch])
        writer._carry_out([Job(writer._end, None)])
        writer._life.end(remove=True)
        writer._file.db.close()
        assert verify(path).fault is None
        with closing(sqlite3.connect(path)) as db:
            names = [name for (name,) in db.execute("select name from sqlite_schema where type = 'table'")]
            rows = {name: db.execute(f"select * from {name}").fetchall() for name in names}
        del rows["_sqlite_migrations"]
        return [told(answer) for _, results, _ in writer._answers for answer in results], rows


def told(answer: Any) -> Any:
    if isinstance(answer, Internal):
        return repr(answer.__cause__)
    return (type(answer), answer.sentence) if isinstance(answer, BrokerError) else answer


@settings(deadline=None, max_examples=100)
@given(batches=usual())
def test_usual_calls_that_share_a_transaction_do_what_they_do_one_by_one(batches: list[list[Deed]]) -> None:
    assert played(batches) == played(alone(batches))


@settings(deadline=None, max_examples=100)
@given(batches=st.lists(st.lists(st.one_of(unusual, st.just((wrong, "half"))), min_size=1, max_size=8), max_size=4))
def test_whatever_shares_a_transaction_does_what_it_does_alone(batches: list[list[Deed]]) -> None:
    with patch("broker.stores.sqlite.seal.token_bytes", bytes):
        assert played(batches) == played(alone(batches))


def alone(batches: list[list[Deed]]) -> list[list[Deed]]:
    return [[deed] for batch in batches for deed in batch]


def test_a_call_that_is_there_already_is_refused_alone() -> None:
    calls = [(admission.admit, intent(call_id=name)) for name in ("one", "two", "one", "three")]
    answers, rows = played([calls])
    assert [answer[0] if isinstance(answer, tuple) else answer.state for answer in answers[:-1]] == [
        "dispatching",
        "dispatching",
        Conflict,
        "dispatching",
    ]
    assert [row[1] for row in rows["invocation"]] == ["one", "two", "three"]


def test_a_window_that_was_looked_at_late_is_not_the_one_of_an_earlier_time() -> None:
    """The one after it was over at the later time, and is open at the earlier."""

    def asked(name: str, at_ms: int, counts_at_ms: int) -> Deed:
        return admission.admit, intent(call_id=name, at_ms=at_ms, charges=(counted(9, counts_at_ms),))

    first = [asked("one", NOW, NOW), asked("two", NOW + DAY, NOW + DAY)]
    batches = [first, [asked("three", NOW + 2 * DAY, NOW), asked("four", NOW + DAY + 1, NOW)]]
    told = played(batches)
    assert told == played(alone(batches))
    assert [row[8] for row in told[1]["quota_counter"]] == [2, 2]
