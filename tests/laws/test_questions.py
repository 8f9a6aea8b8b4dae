"""Questions about many calls give what the records say, however far the digest has got, and forget what is erased."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.model.invocation import Invocation, InvocationQuery
from broker.model.question import Condition, Group
from broker.stores.sqlite import digest, queries, questions
from broker.stores.sqlite.database import connect
from tests.bench.seed import DAY_MS, seed

NOW_MS = 1_790_000_000_000
CALLS, HELD = 300, 4
BY = ("agent", "user", "tenant", "tool", "backend", "rule", "state", "code")


class Job:
    """What a job of the writer is given, as far as the digest needs it."""

    def __init__(self, db: Any) -> None:
        self.db = db


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    path = tmp_path_factory.mktemp("records") / "broker.db"
    seed(path, CALLS, held=HELD, now_ms=NOW_MS, days=5)
    with closing(connect(path)) as db:
        db.row_factory = None
        db.execute("insert into spent select call_id, 'eur_micro', id % 7 from invocation where code = ''")
        yield db


def in_step(db: Any, calls: int) -> None:
    """The digest after so many calls, none of which had ended when it took in the 50th."""
    digest.forget(Job(db), None)  # type: ignore[arg-type]
    while calls > 0 and (taken := digest.step(Job(db), min(calls, 64))):  # type: ignore[arg-type]
        calls -= taken


def everything(db: Any, query: InvocationQuery) -> list[Invocation]:
    return queries.some(db, dataclasses.replace(query, limit=10_000))


def counted(found: list[Invocation], by: str) -> dict[str, tuple[int, int, int, int]]:
    sums: dict[str, list[int]] = {}
    for one in found:
        row = sums.setdefault(getattr(one, by), [0, 0, 0, 0])
        row[0] += 1
        row[1] += one.state in ("denied", "rejected", "expired", "withdrawn")
        row[2] += one.state == "failed"
        row[3] += one.laps_us.get("dispatch", 0)
    return {name: (row[0], row[1], row[2], row[3]) for name, row in sums.items()}


def told(groups: list[Group]) -> dict[str, tuple[int, int, int, int]]:
    return {one.name: (one.calls, one.refused, one.failed, round(one.mean_ms * one.sent * 1000)) for one in groups}


moments = st.integers(NOW_MS - 6 * DAY_MS, NOW_MS + DAY_MS) | st.just(0)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    by=st.sampled_from(BY),
    calls=st.integers(0, CALLS + HELD + 10),
    since=moments,
    until=moments,
    filters=st.fixed_dictionaries(
        {},
        optional={
            "agent": st.sampled_from(["agent-01", "agent-04", "nobody"]),
            "user": st.sampled_from(["user-07", "nobody"]),
            "backend": st.sampled_from(["orders", "mail"]),
            "code": st.sampled_from(["forbidden", "over_quota"]),
            "states": st.sampled_from([("denied",), ("held",), ("succeeded", "failed")]),
            "within": st.sampled_from(["acme", "globex"]),
            "held_only": st.booleans(),
            "where": st.sampled_from([(Condition(("amount",), ">", 250),), (Condition(("note",), "=", "x"),)]),
        },
    ),
)
def test_sums_are_those_of_the_records_however_far_the_digest_is(
    db: Any, by: Any, calls: int, since: int, until: int, filters: dict[str, Any]
) -> None:
    in_step(db, calls)
    query = InvocationQuery(since_ms=since, until_ms=until, **filters)
    assert told(questions.sums(db, query, by)) == counted(everything(db, query), by)


def test_a_call_that_ended_late_is_counted_once_as_it_ended(db: Any) -> None:
    in_step(db, 10_000)
    db.execute("begin")
    try:
        held = [row[0] for row in db.execute("select id from invocation where state = 'held'")]
        assert len(held) == HELD
        assert {row[0] for row in db.execute("select id from digest_late")} >= set(held)
        db.execute("update invocation set state = 'expired' where state = 'held'")
        query = InvocationQuery(states=("expired",))
        before = told(questions.sums(db, query, "state"))
        assert digest.step(Job(db), 100) == HELD  # type: ignore[arg-type]
        assert before == told(questions.sums(db, query, "state")) == {"expired": (HELD, HELD, 0, 0)}
    finally:
        db.execute("rollback")


def test_what_calls_cost_is_summed_by_unit(db: Any) -> None:
    for calls in (0, 150, 10_000):
        in_step(db, calls)
        found = {one.name: one.spent for one in questions.sums(db, InvocationQuery(), "backend")}
        rows = db.execute(
            "select backend, sum(amount) from record join spent using (call_id) group by 1 having sum(amount) > 0"
        )
        assert {name: sums["eur_micro"] for name, sums in found.items() if sums} == dict(rows.fetchall())


def test_words_are_found_in_kept_arguments_and_gone_with_them(db: Any) -> None:
    in_step(db, 10_000)
    call = everything(db, InvocationQuery(limit=1))[0]
    words = f"telephone {call.kept['order_id']}"
    assert call.call_id in {one.call_id for one in everything(db, InvocationQuery(words=words))}
    db.execute("begin")
    try:
        db.execute("delete from payload where call_id = ? and part = 'kept'", (call.call_id,))
        assert call.call_id not in {one.call_id for one in everything(db, InvocationQuery(words=words))}
        assert not digest.is_in_step(db)
        while digest.step(Job(db), 100):  # type: ignore[arg-type]
            pass
        assert db.execute("select count(*) from search_gone").fetchone() == (0,)
        assert digest.is_in_step(db)
        assert call.call_id not in {one.call_id for one in everything(db, InvocationQuery(words=words))}
        left = db.execute("select count(*) from search where search match 'telephone'").fetchone()
        assert left == (len([one for one in everything(db, InvocationQuery()) if one.kept]),)
    finally:
        db.execute("rollback")


def test_an_argument_that_is_replaced_is_found_by_its_new_words_only(db: Any) -> None:
    in_step(db, 10_000)
    call = everything(db, InvocationQuery(limit=1))[0]
    db.execute("begin")
    try:
        db.execute("update payload set body = ? where call_id = ? and part = 'kept'", (b'{"n": "zebra"}', call.call_id))
        assert call.call_id not in {one.call_id for one in everything(db, InvocationQuery(words="telephone"))}
        in_step_again = [digest.step(Job(db), 100) for _ in range(9)]  # type: ignore[arg-type]
        assert in_step_again[-1] == 0
        assert [one.call_id for one in everything(db, InvocationQuery(words="zeb*"))] == [call.call_id]
        assert call.call_id not in {one.call_id for one in everything(db, InvocationQuery(words="telephone"))}
    finally:
        db.execute("rollback")


@pytest.mark.parametrize("words", ['"', "a OR", "NEAR(", "words:x", "*", "-x", "(", 'x" OR "y', "\x00", "' ; drop"])
def test_words_are_words_whatever_they_hold(db: Any, words: str) -> None:
    in_step(db, 10_000)
    everything(db, InvocationQuery(words=words))


@pytest.mark.parametrize(
    ("text", "kept", "holds"),
    [
        ("args.amount > 100", {"amount": 101}, True),
        ("args.amount > 100", {"amount": 100}, False),
        ("args.amount > 100", {"amount": "900"}, False),
        ("args.amount > 100", {}, False),
        ("args.amount >= 1.5", {"amount": 1.5}, True),
        ("args.note = urgent", {"note": "urgent"}, True),
        ("args.note = 'urgent'", {"note": "urgent"}, True),
        ("args.note != urgent", {"note": "no"}, True),
        ("args.note != urgent", {"note": 5}, False),
        ('args.who.id = "7"', {"who": {"id": "7"}}, True),
        ("args.who.id = 7", {"who": {"id": "7"}}, False),
        ("args.sure = true", {"sure": True}, True),
        ("args.sure = true", {"sure": 1}, False),
        ("args.sure != true", {"sure": False}, True),
        ("args.amount = 1", {"amount": True}, False),
    ],
)
def test_a_condition_compares_a_value_with_its_own_kind(db: Any, text: str, kept: Any, holds: bool) -> None:
    from broker.model.canonical import canonical

    call_id = db.execute("select call_id from payload where part = 'kept'").fetchone()[0]
    db.execute("begin")
    try:
        db.execute("update payload set body = ? where call_id = ? and part = 'kept'", (canonical(kept), call_id))
        found = everything(db, InvocationQuery(where=(Condition.read(text),)))
        assert (call_id in {one.call_id for one in found}) == holds
    finally:
        db.execute("rollback")


@pytest.mark.parametrize("text", ["", "amount > 1", "args.a >", "args.a ~ 1", "args.a > [1]", "args.a > true",
                                  "args.\"x > 1", "args.a') or 1=1 --", "args > 1"])  # fmt: skip
def test_what_is_no_condition_is_refused_in_one_sentence(text: str) -> None:
    read: Callable[[str], Condition] = Condition.read
    with pytest.raises(ValueError, match=r"is not like|is no text|never more or less"):
        read(text)


@pytest.mark.parametrize(
    "query",
    [
        InvocationQuery(agent="agent-01", user="user-07", since_ms=NOW_MS - DAY_MS, until_ms=NOW_MS),
        InvocationQuery(user="nobody"),
        InvocationQuery(words="telephone"),
        InvocationQuery(tool="orders_refund", where=(Condition(("amount",), ">", 100),)),
        InvocationQuery(code="forbidden"),
    ],
    ids=str,
)
def test_a_question_of_an_operator_does_not_walk_through_all_records_nor_sort_them(
    db: Any, query: InvocationQuery
) -> None:
    asked: list[str] = []
    db.set_trace_callback(asked.append)
    try:
        everything(db, query)
    finally:
        db.set_trace_callback(None)
    (sql,) = [one for one in asked if one.startswith("select i.call_id")]
    plan = [row[3] for row in db.execute(f"explain query plan {sql}")]
    assert not [step for step in plan if step == "SCAN i" or (query.words and "TEMP B-TREE" in step)], plan


def test_a_digest_that_comes_later_is_what_it_would_have_been(db: Any) -> None:
    tables = ("digest_person", "digest_person_spent")

    def kept() -> list[list[Any]]:
        return [db.execute(f"select * from {table}").fetchall() for table in tables]

    db.execute("begin")
    try:
        in_step(db, 150)
        expected = kept()
        assert all(expected)
        for table in tables:
            db.execute(f"drop table {table}")
        digest.add_persons(db)
        assert kept() == expected
    finally:
        db.execute("rollback")
