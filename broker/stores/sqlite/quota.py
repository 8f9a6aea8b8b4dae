"""Charging quotas inside the admitting transaction, and giving back or settling what was reserved.

The transaction is exclusive (`begin immediate`), so what is read here is true until it commits, for any number of
processes on the file. All charges of an intent are taken or none: more than one goes behind a savepoint.

What each kind takes, and when it ends:

| kind | taken at admission | call ends | hold ends without running |
| --- | --- | --- | --- |
| rate | units in the sliding window | stays | stays: it limits asking |
| count | `used` | stays: the backend was asked | given back |
| cost | `reserved`, the estimate | `used`: reported, else the estimate; nothing if nothing was sent | given back |
| concurrency | `reserved`; a held call takes it when it runs | given back | – |

A bucket's time never goes back: a rate bucket goes on from the latest time it has seen, and a calendar charge of a
window before the latest one counts in the latest. So a clock that is behind, or was set back, gives no second window.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence

from broker.model.quota import Charge, QuotaState
from broker.stores.sqlite import rate
from broker.stores.sqlite.transaction import Transaction

CONCURRENCY_RETRY_MS = 1000  # nobody knows when a call will end; a second is worth asking again

_LATER = """select starts_at_ms, resets_at_ms from quota_counter
    where quota = ? and bucket = ? and kind = ? and starts_at_ms > ? and resets_at_ms > ?
    order by starts_at_ms desc limit 1"""

_TAKEN = """select used + reserved from quota_counter
    where quota = ? and bucket = ? and kind = ? and starts_at_ms = ?"""

# A first charge inserts; its amount is known to be within the limit. Any other updates, if there is room.
_TAKE = """insert into quota_counter (quota, bucket, kind, starts_at_ms, resets_at_ms, unit, most, window_ms, used,
        reserved, touched_at_ms)
    values (?, ?, ?, ?, ?, ?, ?, 0, ?, ?, ?)
    on conflict (quota, bucket, kind, starts_at_ms) do update
    set used = used + excluded.used, reserved = reserved + excluded.reserved, most = excluded.most,
        unit = excluded.unit, touched_at_ms = max(touched_at_ms, excluded.touched_at_ms)
    where quota_counter.used + quota_counter.reserved + excluded.used + excluded.reserved <= excluded.most"""

_RESERVE = """insert into reservation (call_id, quota, bucket, kind, starts_at_ms, unit, amount)
    values (?, ?, ?, ?, ?, ?, ?)
    on conflict (call_id, quota, bucket, kind) do update set amount = amount + excluded.amount"""

_SETTLE = """update quota_counter set used = max(0, used + ?), reserved = max(0, reserved - ?)
    where quota = ? and bucket = ? and kind = ? and starts_at_ms = ?"""


def charge(
    tx: Transaction, charges: Sequence[Charge], call_id: str, now_ms: int, *, held: bool
) -> tuple[tuple[QuotaState, ...], QuotaState | None]:
    """Take all charges, or none: the states after, and the first quota that is short.

    held: the call waits for a person; its count charges can be given back. Raises ValueError for a negative amount.
    """
    if any(one.amount < 0 for one in charges):
        raise ValueError("a charge below zero")
    if len(charges) == 1:
        state, over = _take(tx, charges[0], call_id, now_ms, held=held)
        return (state,), state if over else None
    tx.db.execute("savepoint charges")
    states: list[QuotaState] = []
    for one in charges:
        state, over = _take(tx, one, call_id, now_ms, held=held)
        if over:
            tx.db.execute("rollback to charges")
            tx.db.execute("release charges")
            return (state,), state
        states.append(state)
    tx.db.execute("release charges")
    return tuple(states), None


def _take(tx: Transaction, one: Charge, call_id: str, now_ms: int, *, held: bool) -> tuple[QuotaState, bool]:
    """One charge: the state after it, or as it is now and True when it is short."""
    if one.kind == "rate":
        return rate.take(tx.db, one, now_ms)
    reserves = one.kind in ("cost", "concurrency")
    starts, resets = _window(tx.db, one, now_ms)
    key = (one.quota, one.bucket, one.kind, starts)
    fits = False
    if one.amount <= one.limit:
        used, reserved = (0, one.amount) if reserves else (one.amount, 0)
        taking = (*key, resets, one.unit, one.limit, used, reserved, now_ms)
        fits = tx.db.execute(_TAKE, taking).rowcount == 1
    taken = tx.db.execute(_TAKEN, key).fetchone()
    left = one.limit - (taken[0] if taken else 0)
    if not fits:
        return _state(one, left, resets, _retry_after(one, resets, now_ms)), True
    if reserves or held:
        tx.db.execute(_RESERVE, (call_id, one.quota, one.bucket, one.kind, starts, one.unit, one.amount))
    return _state(one, left, resets), False


def _window(db: sqlite3.Connection, one: Charge, now_ms: int) -> tuple[int, int]:
    """The calendar window a charge counts in: its own, or a later one that the bucket has already entered."""
    if one.kind == "concurrency":
        return 0, 0
    later = db.execute(_LATER, (one.quota, one.bucket, one.kind, one.starts_at_ms, now_ms)).fetchone()
    return (later[0], later[1]) if later else (one.starts_at_ms, one.resets_at_ms)


def _retry_after(one: Charge, resets_at_ms: int, now_ms: int) -> int:
    """Milliseconds; 0 when it will not fit later either."""
    if one.amount > one.limit:
        return 0
    return CONCURRENCY_RETRY_MS if one.kind == "concurrency" else max(1, resets_at_ms - now_ms)


def _state(one: Charge, left: int, resets_at_ms: int, retry_after_ms: int = 0) -> QuotaState:
    return QuotaState(
        quota=one.quota,
        bucket=one.bucket,
        kind=one.kind,
        limit=one.limit,
        left=max(0, left),
        unit=one.unit,
        retry_after_ms=retry_after_ms,
        resets_at_ms=resets_at_ms,
    )


def settle(tx: Transaction, call_id: str, *, ran: bool, spent: Mapping[str, int] | None = None) -> int:
    """Free what a call has reserved; how many reservations there were.

    ran: the backend was, or may have been, asked. spent: what it reported, by unit; other units cost their estimate.
    """
    reported: Mapping[str, int] = spent or {}
    rows: list[tuple[str, str, str, int, str, int]] = tx.db.execute(
        "select quota, bucket, kind, starts_at_ms, unit, amount from reservation where call_id = ?", (call_id,)
    ).fetchall()
    if rows:
        tx.db.execute("delete from reservation where call_id = ?", (call_id,))
    for quota, bucket, kind, starts_at_ms, unit, amount in rows:
        used, reserved = 0, amount
        if kind == "count":
            used, reserved = (0 if ran else -amount), 0
        elif kind == "cost" and ran:
            used = max(0, reported.get(unit, amount))
        if used or reserved:
            tx.db.execute(_SETTLE, (used, reserved, quota, bucket, kind, starts_at_ms))
    return len(rows)


def spend_counts(tx: Transaction, call_id: str) -> None:
    """A held call runs now: what it counted is spent, whatever comes of it."""
    tx.db.execute("delete from reservation where call_id = ? and kind = 'count'", (call_id,))


def standing(db: sqlite3.Connection, now_ms: int) -> list[QuotaState]:
    """Every bucket that has something used or reserved now, by quota and bucket."""
    found: list[QuotaState] = []
    rows = db.execute(
        """select quota, bucket, kind, resets_at_ms, unit, most, window_ms, used, reserved, touched_at_ms
        from quota_counter where kind = 'rate' or (used + reserved > 0 and (resets_at_ms > ? or resets_at_ms = 0))
        order by quota, bucket, kind""",
        (now_ms,),
    ).fetchall()
    for quota, bucket, kind, resets_at_ms, unit, most, window_ms, used, reserved, touched_at_ms in rows:
        taken = used + reserved
        if kind == "rate":
            taken -= rate.outside(db, quota, bucket, used, max(now_ms, touched_at_ms) - window_ms)
        if taken > 0:
            found.append(QuotaState(quota, bucket, kind, most, max(0, most - taken), unit, 0, resets_at_ms))
    return found
