"""Following the ledger from outside, entry by entry, without losing the place: notifications, exports.

A follower has a name and a place: the entry up to which everything it follows has been handed on. The place moves
after the handing on, so an interruption repeats an entry and never skips one; entries have names that stay (chain and
seq), by which whoever is told twice can tell. One process at a time follows for a name; it says so by a
lease, which is over when the process is known to have ended.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from typing import Any

from broker.ports import Event, Followed
from broker.stores.sqlite.ledger import whole
from broker.stores.sqlite.transaction import Transaction

TABLES = (
    """create table follower (
        name text primary key,
        upto integer not null,
        lease_until_ms integer not null,
        holder text not null
    ) strict, without rowid""",
)
LOOKED_THROUGH = 5_000  # entries at one look, whatever their kinds

_BEGIN = """insert into follower (name, upto, lease_until_ms, holder)
    values (?1, case when ?2 then 0 else (select coalesce(max(id), 0) from entry) end, 0, '') on conflict do nothing"""
_LEASE = """update follower set lease_until_ms = ?2, holder = ?3
    where name = ?1 and (holder = ?3 or lease_until_ms <= ?4
        or exists (select 1 from writer where chain = holder and ended_at_ms > 0))"""


def take(tx: Transaction, argument: tuple[str, bool, int, int]) -> int | None:
    """(name, from the first entry on, now_ms, lease_ms): the place, ours to go on from; None while another has it."""
    name, from_first, now_ms, lease_ms = argument
    tx.db.execute(_BEGIN, (name, from_first))
    if tx.db.execute(_LEASE, (name, now_ms + lease_ms, tx.ledger.chain, now_ms)).rowcount != 1:
        return None
    return int(tx.db.execute("select upto from follower where name = ?", (name,)).fetchone()[0])


def move(tx: Transaction, argument: tuple[str, int]) -> bool:
    """(name, upto): everything up to this entry has been handed on. False when the name is another's by now."""
    name, upto = argument
    moved = tx.db.execute(
        "update follower set upto = ? where name = ? and holder = ? and upto <= ?", (upto, name, tx.ledger.chain, upto)
    )
    return moved.rowcount == 1


def after(db: sqlite3.Connection, place: int, kinds: Sequence[str], limit: int) -> Followed:
    """The next entries of these kinds (none: of all), in order of commit."""
    rows: list[Any] = db.execute(
        "select id, chain, seq, at_ms, kind, call_id, body from entry where id > ? order by id limit ?",
        (place, LOOKED_THROUGH if kinds else limit),
    ).fetchall()
    events: list[Event] = []
    for entry_id, chain, seq, at_ms, kind, call_id, body in rows:
        if not kinds or kind in kinds:
            events.append(Event(entry_id, f"{chain}.{seq}", at_ms, kind, call_id, whole(db, chain, json.loads(body))))
            if len(events) == limit:
                return Followed(tuple(events), entry_id)
    return Followed(tuple(events), rows[-1][0] if rows else place)
