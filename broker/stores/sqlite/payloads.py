"""Payloads: what is kept of arguments apart from the record, and how it goes again.

What is kept in clear is written by admission, because most calls have it; here is what is sealed for the auditor, or
findable without being readable. Every deletion says in an entry what is gone, so that nothing can vanish unsaid.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

from broker.model.canonical import digest_of
from broker.stores.sqlite.transaction import Transaction

FULL = "full"


def keep(tx: Transaction, call_id: str, sealed: bytes, macs: tuple[bytes, ...]) -> dict[str, Any]:
    """Write them, in the place of what was there; what the entry says of them: the digest of what is sealed, as it is
    stored."""
    tx.db.executemany(
        "insert into argument_mac (mac, call_id) values (?, ?) on conflict do nothing", [(mac, call_id) for mac in macs]
    )
    if not sealed:
        return {}
    closed = tx.seal.close(call_id, FULL, sealed)
    tx.db.execute("insert or replace into payload (call_id, part, body) values (?, ?, ?)", (call_id, FULL, closed))
    return {"sealed": digest_of(closed)}


def read(tx: Transaction, argument: tuple[str, int, str, str]) -> None:
    """Say that somebody is about to read a call's sealed arguments: (call_id, now_ms, by, via)."""
    call_id, now_ms, by, via = argument
    tx.ledger.append("payload_read", "", now_ms, {"call_id": call_id, "by": by, "via": via})


# ------------------------------------------------------------------------------------------------------------ erasing

CHUNK = 200  # calls in one job, so that calls in flight go between
ARGUMENTS = ("kept", "kept_before")
SEALED = (FULL,)
_ALL = ()  # of a call that is over
_SUBJECTS = {"user": '"user"', "agent": "agent", "tenant": "tenant"}
_OVER = "i.state not in ('held', 'approved', 'dispatching')"


def _marks(values: Sequence[Any]) -> str:
    return ", ".join("?" * len(values))


def due(db: sqlite3.Connection, parts: tuple[str, ...], since_ms: int, before_ms: int) -> list[tuple[str, int]]:
    """The oldest calls of this time that are over and have such payloads: at most CHUNK of (call_id, at_ms)."""
    sql = f"""select i.call_id, i.at_ms from invocation i indexed by invocation_at
        where i.at_ms >= ? and i.at_ms < ? and {_OVER}
        and exists (select 1 from payload p where p.call_id = i.call_id and p.part in ({_marks(parts)}))
        order by i.at_ms limit ?"""  # noqa: S608 – constants and marks
    return db.execute(sql, (since_ms, before_ms, *parts, CHUNK)).fetchall()


def over_budget(db: sqlite3.Connection, most_bytes: int) -> int:
    """Before which time payloads have to go, so that the rest fits; 0 when all of it does."""
    parts = (*ARGUMENTS, *SEALED)
    (size,) = db.execute(
        f"select coalesce(sum(length(body)), 0) from payload where part in ({_marks(parts)})",  # noqa: S608
        parts,
    ).fetchone()
    excess = int(size) - most_bytes
    if excess <= 0:
        return 0
    rows = db.execute(
        f"""select i.at_ms, length(p.body) from invocation i indexed by invocation_at
        join payload p on p.call_id = i.call_id where p.part in ({_marks(parts)}) and {_OVER}
        order by i.at_ms""",  # noqa: S608
        parts,
    )
    before_ms = 0
    for at_ms, length in rows:
        if excess <= 0 and at_ms > before_ms - 1:
            break
        excess -= length
        before_ms = at_ms + 1
    return before_ms


def expire(tx: Transaction, argument: tuple[tuple[str, ...], list[str], int, int, str]) -> int:
    """Delete payloads that were kept long enough: (parts, call ids, before_ms, now_ms, why). How many rows.

    before_ms: every call before it either goes now, went before or goes next; so the entry names no call.
    """
    parts, call_ids, before_ms, now_ms, why = argument
    rows = _delete(tx, parts, call_ids)
    facts = {"part": parts[0], "before_ms": before_ms, "rows": rows, "why": why}
    tx.ledger.append("payloads_deleted", "", now_ms, facts)
    return rows


def of_subject(db: sqlite3.Connection, subject: str, name: str, after: str) -> tuple[list[str], int]:
    """The next calls of a user, agent or tenant of which something is kept, and how many of such are still open."""
    column = _SUBJECTS[subject]
    chosen = f"i.{column} = ? and exists (select 1 from payload p where p.call_id = i.call_id)"  # noqa: S608
    over = db.execute(
        f"select i.call_id from invocation i where {chosen} and {_OVER} and i.call_id > ? order by i.call_id limit ?",  # noqa: S608
        (name, after, CHUNK),
    ).fetchall()
    (still,) = db.execute(f"select count(*) from invocation i where {chosen} and not {_OVER}", (name,)).fetchone()  # noqa: S608
    return [row[0] for row in over], int(still)


def erase(tx: Transaction, argument: tuple[str, str, list[str], int, str]) -> int:
    """Delete all that is kept of these calls: (subject, name, call ids, now_ms, by). How many rows."""
    subject, name, call_ids, now_ms, by = argument
    rows = 0
    for parts, what in ((ARGUMENTS, "kept"), (SEALED, FULL), (_ALL, "result")):
        deleted = _delete(tx, parts, call_ids)
        if deleted:
            facts = {"part": what, subject: name, "by": by}
            tx.ledger.append("erasure", "", now_ms, {**facts, "rows": deleted, "calls": call_ids})
        rows += deleted
    return rows


def _delete(tx: Transaction, parts: Sequence[str], call_ids: Sequence[str]) -> int:
    """Overwritten with zeros in the file, not only unlinked. Keyed digests go with the arguments."""
    tx.db.execute("pragma secure_delete = on")
    chosen = f"call_id in ({_marks(call_ids)})"
    narrowed = f" and part in ({_marks(parts)})" if parts else ""
    rows = tx.db.execute(f"delete from payload where {chosen}{narrowed}", (*call_ids, *parts)).rowcount  # noqa: S608
    if ARGUMENTS[0] in parts:
        tx.db.execute(f"delete from argument_mac where {chosen}", tuple(call_ids))  # noqa: S608
    tx.db.execute("pragma secure_delete = off")
    return rows
