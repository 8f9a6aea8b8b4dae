"""What is said of a hold while it waits, once each: that others may decide now, that its time is nearly over.

Which of it has been said is a row of its own, so that several brokers, and one after a restart, say it once; what was
said is in the record. Nothing of the hold changes by it. What must not live here: who is told, and how (notices).
"""

from __future__ import annotations

import sqlite3

from broker.stores.sqlite.transaction import Transaction

TABLE = """create table reminder (
    call_id text not null,
    kind text not null,
    primary key (call_id, kind)
) strict, without rowid"""

SOON_MS = 3_600_000  # its time is nearly over in its last hour, or in its last fifth, whichever is shorter
_WAITING = """from invocation i indexed by invocation_open join hold h on h.call_id = i.call_id
    where i.state = 'held'
    and not exists (select 1 from reminder r where r.call_id = i.call_id and r.kind = {kind})"""
_DUE = f"""select i.call_id, 'escalation' {_WAITING.format(kind="'escalation'")}
        and json_extract(h.terms, '$.escalates_at_ms') between 1 and :now
    union all
    select i.call_id, 'expiring' {_WAITING.format(kind="'expiring'")}
        and h.expires_at_ms > :now and h.expires_at_ms - min(:soon, (h.expires_at_ms - i.at_ms) / 5) <= :now
    limit :most"""


def due(db: sqlite3.Connection, now_ms: int, most: int) -> list[tuple[str, str]]:
    """(call id, kind of entry) of what is to be said now."""
    return db.execute(_DUE, {"now": now_ms, "soon": SOON_MS, "most": most}).fetchall()


def say(tx: Transaction, argument: tuple[str, str, int]) -> None:
    """Enter it, unless somebody has or the hold waits no more: (call id, kind, now_ms)."""
    call_id, kind, now_ms = argument
    said = tx.db.execute(
        """insert or ignore into reminder (call_id, kind)
        select call_id, ? from invocation where call_id = ? and state = 'held'""",
        (kind, call_id),
    )
    if said.rowcount != 1:
        return
    if kind == "escalation":
        tx.ledger.append("escalation", call_id, now_ms, {})
    else:
        tx.ledger.append("expiring", call_id, now_ms, {})
    tx.urgent = True


def tidy(db: sqlite3.Connection, most: int) -> int:
    """Forget what was said of holds that wait no more; how many rows."""
    return db.execute(
        """delete from reminder where (call_id, kind) in (
            select r.call_id, r.kind from reminder r join invocation i on i.call_id = r.call_id
            where i.state <> 'held' limit ?)""",
        (most,),
    ).rowcount
