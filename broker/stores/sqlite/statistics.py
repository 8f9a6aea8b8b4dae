"""Sums for people's charts, asked of one tenant. Read only, and bounded: each question looks at so many of the newest
rows at most, and for so long, however many there are and wherever they lie; what it could not look at is said.

No counters are kept for this on the way of a call: a chart that somebody looks at now and then is not worth a write.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from time import monotonic

from broker.model.statistics import CallSlot, CallSums, Judged, Seen, Span, Spent

LATELY = 25_000  # calls that charts are made of, and among which an agent called lately
STEP = 1_000
PATIENCE_S = 0.05
HELD = 20_000
WINDOWS = 5_000
AGENTS = 200

_NEWEST = "select coalesce(max(id), 0) from invocation"
# `+` keeps the planner from an index by time, whose rows lie all over the file.
_CALLS = """select (i.at_ms - ?1) / ?2, i.state, json_extract(i.laps_us, '$.dispatch') from invocation i
    where i.id > ?3 and i.id <= ?4 and +i.at_ms >= ?1 and +i.tenant = ?5"""
_OLDEST = "select at_ms from invocation where id > ? order by id limit 1"
_HELD = """select i.at_ms, h.reviewed_at_ms, i.state, i.rule, h.scopes, h."groups", h.votes, h.reviewer,
        coalesce(json_extract(h.bound, '$.edited_by'), '') <> ''
    from invocation i indexed by invocation_held join hold h on h.call_id = i.call_id
    where i.held = 1 and i.tenant = ? and i.changed_at_ms >= ? order by i.changed_at_ms desc limit ?"""
_HELD_ANYWHERE = _HELD.replace("i.tenant = ? and ", "")
_SPENT = """select quota, bucket, unit, most, starts_at_ms, used + reserved from quota_counter
    where kind in ('count', 'cost') and starts_at_ms >= ? and used + reserved > 0 order by starts_at_ms desc limit ?"""
_AGENTS = """select agent, call_id, max(at_ms) from invocation where id > ? and id <= ? and +tenant = ?
    group by +agent"""  # the bare column is of the row with the maximum (SQLite's own promise)


def calls(db: sqlite3.Connection, within: str, span: Span) -> CallSums:
    """See ports.Store.call_sums."""
    states: list[Counter[str]] = [Counter() for _ in range(span.slots)]
    took = [list[int]() for _ in range(span.slots)]
    floor = 0
    for floor, upto in _lately(db):
        for number, state, dispatch_us in db.execute(_CALLS, (span.since_ms, span.step_ms, floor, upto, within)):
            slot = int(number)
            if slot < span.slots:
                states[slot][state] += 1
                if dispatch_us is not None:
                    took[slot].append(int(dispatch_us))
    oldest = db.execute(_OLDEST, (floor,)).fetchone() if floor else None
    slots = (CallSlot(one, *_percentiles(sorted(us))) for one, us in zip(states, took, strict=True))
    return CallSums(tuple(slots), max(span.since_ms, oldest[0]) if oldest else span.since_ms)


def _lately(db: sqlite3.Connection) -> Iterator[tuple[int, int]]:
    """The newest calls, a STEP of ids at a time (from beyond, to), while there is time."""
    (newest,) = db.execute(_NEWEST).fetchone()
    ends_at_s = monotonic() + PATIENCE_S
    for upto in range(newest, max(0, newest - LATELY), -STEP):
        yield max(0, upto - STEP), upto
        if monotonic() >= ends_at_s:
            return


def _percentiles(ordered: list[int]) -> tuple[int, int]:
    return (ordered[len(ordered) // 2], ordered[len(ordered) * 95 // 100]) if ordered else (0, 0)


def judged(db: sqlite3.Connection, within: str | None, since_ms: int) -> list[Judged]:
    """See ports.Store.judged."""
    held, values = (_HELD, (within, since_ms, HELD)) if within is not None else (_HELD_ANYWHERE, (since_ms, HELD))
    return [
        Judged(
            asked, decided, state, rule, _names(scopes), _names(groups), _by(votes, last, state), edited=bool(edited)
        )
        for asked, decided, state, rule, scopes, groups, votes, last, edited in db.execute(held, values)
    ]


@lru_cache(maxsize=1024)
def _names(packed: str) -> tuple[str, ...]:
    """Few different ones, many times."""
    return tuple(json.loads(packed))


def _by(votes: str, last: str, state: str) -> tuple[str, ...]:
    """Who approved, and who denied. Others who end a hold are its caller and the broker, and no reviewers."""
    approved = [one["reviewer"] for one in json.loads(votes)] if votes != "[]" else []
    return tuple(dict.fromkeys([*approved, last] if state == "rejected" else approved))


def spent(db: sqlite3.Connection, since_ms: int) -> list[Spent]:
    """See ports.Store.spent."""
    return [Spent(*row) for row in db.execute(_SPENT, (since_ms, WINDOWS))]


def agents(db: sqlite3.Connection, within: str) -> list[Seen]:
    """See ports.Store.agents."""
    found: dict[str, Seen] = {}
    for floor, upto in _lately(db):
        for one in (Seen(*row) for row in db.execute(_AGENTS, (floor, upto, within))):
            found.setdefault(one.agent, one)  # newer ones came first
    return sorted(found.values(), key=lambda one: one.agent)[:AGENTS]
