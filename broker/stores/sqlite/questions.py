"""Questions about many calls, answered without walking through all of them: sums by one of their facts.

Whole days come from the digest (digest.py); what is not in it yet, or had not ended then, and the ends of a window that
begins or ends within a day, from the records themselves. So the answer is that of the records, whatever the digest has
got to. What no digest has (arguments, who was held, persons and tools together) is summed from the records alone.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from broker.data import dataclass
from broker.model.invocation import InvocationQuery
from broker.model.question import By, Group
from broker.stores.sqlite import queries
from broker.stores.sqlite.digest import DAY_MS, DIGESTS

_FILTERS = ("tenant", "agent", "user", "tool", "backend", "rule", "code")  # that a digest may have columns for

_CALLS = """select name, sum(calls),
        sum(case when state in ('denied', 'rejected', 'expired', 'withdrawn') then calls end),
        sum(case when state = 'failed' then calls end), sum(case when state = 'outcome_unknown' then calls end),
        sum(sent), sum(us), max(slowest) from ({parts}) group by name"""
_OF_DIGEST = """select {name} as name, i.state as state, sum(i.calls) as calls, sum(i.sent) as sent,
    total(i.dispatch_us) as us, max(i.slowest_us) as slowest from {source} where {where} group by 1, 2"""
_OF_RECORDS = """select {name} as name, i.state as state, count(*) as calls, count(i.laps_us ->> '$.dispatch') as sent,
    total(i.laps_us ->> '$.dispatch') as us, max(i.laps_us ->> '$.dispatch') as slowest
    from {source} where {where} group by 1, 2"""

_OF_RECORD = {"backend": "(select backend from called where id = i.called)"}  # what no column of theirs says

_SPENT = "select name, unit, sum(amount) from ({parts}) group by name, unit"
_SPENT_OF_DIGEST = """select {name} as name, unit, sum(i.amount) as amount from {source} where {where}
    group by 1, 2"""
_SPENT_OF_RECORDS = """select {name} as name, unit, sum(amount) as amount from {source} join spent s using (call_id)
    where {where} group by 1, 2"""


@dataclass(frozen=True, slots=True)
class _Part:
    """A share of the calls that are asked about. digest: the one that has it; "": none."""

    digest: str
    where: str
    values: tuple[Any, ...]
    source: str = "invocation i"


def sums(db: sqlite3.Connection, query: InvocationQuery, by: By) -> list[Group]:
    """The calls that the query finds, however many (its limit and pages do not count), by this fact of theirs."""
    parts = list(_parts(db, query, by))
    spent: dict[str, dict[str, int]] = {}
    for name, unit, amount in _asked(db, (_SPENT, _SPENT_OF_DIGEST, _SPENT_OF_RECORDS), by, parts):
        spent.setdefault(name, {})[unit] = int(amount)
    return [
        Group(
            name=name,
            calls=int(calls),
            refused=int(refused or 0),
            failed=int(failed or 0),
            unknown=int(unknown or 0),
            sent=int(sent),
            mean_ms=us / sent / 1000 if sent else 0.0,
            slowest_ms=(slowest or 0) / 1000,
            spent=spent.get(name, {}),
        )
        for name, calls, refused, failed, unknown, sent, us, slowest in _asked(
            db, (_CALLS, _OF_DIGEST, _OF_RECORDS), by, parts
        )
    ]


def _asked(db: sqlite3.Connection, texts: tuple[str, str, str], by: By, parts: list[_Part]) -> list[Any]:
    """One statement, so that all parts are seen at one moment. Names and conditions are of this floor, values bound.

    Of records the name has a plus before it, so that no index of theirs is walked from end to end only because it has
    the groups in order.
    """
    whole, digest, records = texts
    suffix = "_spent" if whole is _SPENT else ""
    asked = [
        (digest if part.digest else records).format(
            name=f'i."{by}"' if part.digest else _OF_RECORD.get(by, f'+i."{by}"'),
            where=part.where,
            source=f"{part.digest}{suffix} i" if part.digest else part.source,
        )
        for part in parts
    ]
    values = [value for part in parts for value in part.values]
    return db.execute(whole.format(parts=" union all ".join(asked)), values).fetchall()


def _parts(db: sqlite3.Connection, query: InvocationQuery, by: By) -> Iterator[_Part]:
    query = replace(query, before="", after="")
    digest = _digest_for(query, by)
    if not digest:
        yield _records(db, query)
        return
    (upto,) = db.execute("select upto from digest_at").fetchone()
    # A person is told by the column here: what is looked through is few, and a digest has no ids.
    person, whose = (' and i."user" = ?', (query.user,)) if query.user else ("", ())
    query = replace(query, user="")
    late = "(select id from digest_late)"
    first, last = -(-query.since_ms // DAY_MS), query.until_ms // DAY_MS if query.until_ms else 2**40
    yield _records(db, query, f"i.id > ?{person}", upto, *whose)
    yield _records(db, query, f"i.id in {late} and i.id <= ?{person}", upto, *whose)
    taken = f"i.id <= ? and i.id not in {late}{person}"
    if first >= last:  # no whole day
        yield _records(db, query, taken, upto, *whose)
        return
    if query.since_ms < first * DAY_MS:
        yield _records(db, replace(query, until_ms=first * DAY_MS), taken, upto, *whose)
    if query.until_ms:
        yield _records(db, replace(query, since_ms=last * DAY_MS), taken, upto, *whose)
    backend, of_backend = (" and i.backend = ?", (query.backend,)) if query.backend else ("", ())
    where, values = queries.where(replace(query, since_ms=0, until_ms=0, backend=""))
    days = f"i.day >= ? and i.day < ?{person}{backend}"
    yield _Part(digest, " and ".join([*where, days]), (*values, first, last, *whose, *of_backend))


def _digest_for(query: InvocationQuery, by: By) -> str:
    """The one that knows all that is asked for; "": none does."""
    asked = {name for name in _FILTERS if getattr(query, name)} | {by}
    plain = InvocationQuery(
        **{name: getattr(query, name) for name in _FILTERS},
        states=query.states,
        within=query.within,
        since_ms=query.since_ms,
        until_ms=query.until_ms,
    )
    if query != replace(plain, limit=query.limit, oldest_first=query.oldest_first):
        return ""
    return next((name for name, facts in DIGESTS.items() if asked <= {fact.strip('"') for fact in facts}), "")


def _records(db: sqlite3.Connection, query: InvocationQuery, *more: Any) -> _Part:
    """more: one more condition and its values."""
    where, values = queries.where(query)
    condition = list(more[:1])
    source = "invocation i" if more else queries.source_of(db, query)
    if query.where:
        source += " left join payload k on k.call_id = i.call_id and k.part = 'kept'"
    return _Part("", " and ".join([*condition, *where]), (*more[1:], *values), source)
