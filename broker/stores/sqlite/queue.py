"""What waits for a person, in the order of its urgency, and what was held and changed lately. Read only.

Asked at every change and on every page, so nothing here may grow with the history: the partial indices of open and of
held calls bound each question. Whole records are read for the few that are shown.
"""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from typing import Any

from broker.model.invocation import Invocation, InvocationQuery
from broker.ports import QueueCount
from broker.stores.sqlite import queries

_HELD = "i.state = 'held'"
_FROM = "from invocation i indexed by invocation_open join hold h on h.call_id = i.call_id"
_COUNT = 'select i.tool, i.agent, i."user", i.rule, count(*) from invocation i indexed by invocation_open'
_LATELY = "select i.call_id from invocation i indexed by {index} where i.held = 1"
_AFTER = "(h.expires_at_ms, i.call_id) > (select expires_at_ms, call_id from hold where call_id = ?)"


def queue(db: sqlite3.Connection, query: InvocationQuery) -> list[Invocation]:
    """See ports.Store.queue."""
    where, values = queries.where(replace(query, after=""))
    if query.after:
        where.append(_AFTER)
        values.append(query.after)
    sql = (
        f"select i.call_id {_FROM} where {_HELD} and {' and '.join(where)} order by h.expires_at_ms, i.call_id limit ?"
    )
    return _whole(db, sql, (*values, query.limit))


def counts(db: sqlite3.Connection, query: InvocationQuery) -> list[QueueCount]:
    """See ports.Store.queue_counts."""
    where, values = queries.where(query)
    sql = f"{_COUNT} where {_HELD} and {' and '.join(where)} group by 1, 2, 3, 4 order by 1, 2, 3, 4"
    return [QueueCount(*row) for row in db.execute(sql, values)]


def held_lately(db: sqlite3.Connection, query: InvocationQuery) -> list[Invocation]:
    """See ports.Store.held_lately."""
    where, values = queries.where(query)
    lately = _LATELY.format(index="invocation_judged" if query.tool and query.rule else "invocation_held")
    sql = f"{lately} and {' and '.join(where)} order by i.changed_at_ms desc, i.id desc limit ?"
    return _whole(db, sql, (*values, query.limit))


def _whole(db: sqlite3.Connection, sql: str, values: tuple[Any, ...]) -> list[Invocation]:
    found = (queries.one(db, call_id) for (call_id,) in db.execute(sql, values).fetchall())
    return [one for one in found if one is not None]
