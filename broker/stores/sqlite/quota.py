"""Charging quotas inside the admitting transaction, and giving back or settling what was reserved.

The transaction is exclusive (`begin immediate`), so what is read here is true until it commits, for any number of
processes on the file. All charges of an intent are taken or none: each bucket is looked at before the first is written.

What each kind takes, and when it ends:

| kind | taken at admission | call ends | hold ends without running |
| --- | --- | --- | --- |
| rate | units in the sliding window | stays | stays: it limits asking |
| count | `used` | stays: the backend was asked | given back |
| cost | `reserved`, the estimate | `used`: reported, else the estimate; nothing if nothing was sent | given back |
| concurrency | `reserved`; a held call takes it when it runs | given back | – |
| repeat | one unit in the sliding window of this very call | stays | stays: it limits asking |
| errors | nothing | one unit in the sliding window, if it failed | – |

A bucket's time never goes back: a sliding window goes on from the latest time it has seen, and a calendar charge of a
window before the latest one counts in the latest. So a clock that is behind, or was set back, gives no second window.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from broker.model.quota import RESERVING, Charge, QuotaKind, QuotaState
from broker.stores.sqlite import rate, repeat
from broker.stores.sqlite.look import Look, by_kind
from broker.stores.sqlite.rows import Rows, Window
from broker.stores.sqlite.transaction import Transaction

_THERE = (0, 0, 0)  # what a calendar window that is there says of its settings
CONCURRENCY_RETRY_MS = 1000  # nobody knows when a call will end; a second is worth asking again
MOST = 2**62  # nothing is counted beyond, so that a sum stays an integer of SQLite's

# The window a charge counts in: its own, or a later one that the bucket has already entered.
_WINDOW = by_kind("""select starts_at_ms, resets_at_ms, used + reserved from quota_counter
    where quota = ?1 and bucket = ?2 and kind = :kind and starts_at_ms >= ?3
    and (starts_at_ms = ?3 or resets_at_ms > ?4) order by starts_at_ms desc limit 1""")

_TAKE = """insert into quota_counter (quota, bucket, kind, starts_at_ms, resets_at_ms, unit, most, window_ms, used,
        reserved, touched_at_ms)
    values (?, ?, ?, ?, ?, ?, ?, 0, ?, ?, ?)
    on conflict (quota, bucket, kind, starts_at_ms) do update
    set used = used + excluded.used, reserved = reserved + excluded.reserved, most = excluded.most,
        unit = excluded.unit, touched_at_ms = max(touched_at_ms, excluded.touched_at_ms)"""

# The same where the window is there, which it nearly always is. Of `used` and `reserved` only the one that changes is
# named: for the other, an index would be written that has it in its condition.
_TAKE_MORE = {
    kind: sql.replace(":column", "used" if kind == "count" else "reserved")
    for kind, sql in by_kind("""update quota_counter set :column = :column + ?, most = ?, unit = ?,
        touched_at_ms = max(touched_at_ms, ?)
    where quota = ? and bucket = ? and kind = :kind and starts_at_ms = ?""").items()
}

_RESERVE = """insert into reservation (call_id, quota, bucket, kind, starts_at_ms, unit, amount)
    values (?, ?, ?, ?, ?, ?, ?)
    on conflict (call_id, quota, bucket, kind) do update set amount = amount + excluded.amount"""

_SETTLE = by_kind("""update quota_counter set used = max(0, min(?, used + ?)), reserved = max(0, reserved - ?)
    where quota = ? and bucket = ? and kind = :kind and starts_at_ms = ?""")


def charge(
    tx: Transaction, charges: Sequence[Charge], call_id: str, now_ms: int, *, held: bool
) -> tuple[tuple[QuotaState, ...], QuotaState | None]:
    """Take all charges, or none: the states after, and the first quota that is short.

    charges: each of another bucket. held: the call waits for a person; its count charges can be given back. Raises
    ValueError for a negative amount, or two charges of one bucket.
    """
    if len(charges) > 1 and len({(one.quota, one.bucket, one.kind) for one in charges}) < len(charges):
        raise ValueError("two charges of one bucket")
    looks: list[Look] = []
    for one in charges:
        if one.amount < 0:
            raise ValueError("a charge below zero")
        seen = _look(tx.rows, one, now_ms)
        if not seen.fits:
            state = seen.state(one)
            return (state,), state
        looks.append(seen)
    states: list[QuotaState] = []
    for one, seen in zip(charges, looks, strict=True):
        _put(tx.rows, one, seen, now_ms)
        states.append(seen.state(one))
        if one.kind in RESERVING or (held and one.kind == "count"):
            key = (call_id, one.quota, one.bucket, one.kind, seen.starts_at_ms, one.unit, one.amount)
            tx.rows.put(_RESERVE, key)
    return tuple(states), None


def left(db: sqlite3.Connection, charges: Sequence[Charge], now_ms: int) -> list[QuotaState]:
    """How these buckets stand, nothing being taken. retry_after_ms > 0: no more fits, and when it is worth asking."""
    states: list[QuotaState] = []
    for one in charges:
        least = replace(one, amount=min(1, one.amount))
        seen = _look(Rows(db), least, now_ms)
        states.append(replace(seen.state(least), left=max(0, seen.left)))
    return states


def _look(rows: Rows, one: Charge, now_ms: int) -> Look:
    # Sliding windows are never put off, and of what is, they read nothing.
    if one.kind == "rate":
        return rate.look(rows.connection, one, now_ms)
    if one.kind in ("repeat", "errors"):
        return repeat.look(rows.connection, one, now_ms)
    # count and cost; concurrency is one window without an end
    key = (one.quota, one.bucket, one.kind)
    window = rows.windows.get(key)
    if window is not None and window.starts_at_ms == one.starts_at_ms and window.looked_at_ms <= now_ms:
        found: tuple[int, int, int] | None = (window.starts_at_ms, window.resets_at_ms, window.taken)
    else:
        db = rows.connection if window is None else rows.db
        found = db.execute(_WINDOW[one.kind], (one.quota, one.bucket, one.starts_at_ms, now_ms)).fetchone()
        if found is not None and found[0] == one.starts_at_ms and not rows.at_once:
            # Asked for at a later time it is found again, because no window after it was still open at this one.
            rows.windows[key] = Window(*found, looked_at_ms=now_ms)
    starts, resets, taken = found or (one.starts_at_ms, one.resets_at_ms, 0)
    room = one.limit - taken
    fits = one.amount <= room
    retry_ms = 0 if fits else _retry_after(one, resets, now_ms)
    return Look(fits, room, retry_ms, starts, resets, 0, 0, 0, _THERE if found else None)


def _put(rows: Rows, one: Charge, seen: Look, now_ms: int) -> None:
    if one.kind == "errors":
        repeat.watch(rows.connection, one, seen)
    elif one.kind in ("rate", "repeat"):
        rate.put(rows.connection, one, seen)
    elif seen.settings is None:
        used, reserved = (one.amount, 0) if one.kind == "count" else (0, one.amount)
        window = (seen.starts_at_ms, seen.resets_at_ms)
        new = (one.quota, one.bucket, one.kind, *window, one.unit, one.limit, used, reserved, now_ms)
        rows.connection.execute(_TAKE, new)
    elif (known := rows.windows.get((one.quota, one.bucket, one.kind))) is None:
        rows.connection.execute(_TAKE_MORE[one.kind], _more(one, seen, now_ms))
    else:
        known.taken += one.amount
        if known.row:
            known.row[:4] = known.row[0] + one.amount, one.limit, one.unit, max(known.row[3], now_ms)
        else:
            known.row = _more(one, seen, now_ms)
            rows.put(_TAKE_MORE[one.kind], known.row)


def _more(one: Charge, seen: Look, now_ms: int) -> list[Any]:
    return [one.amount, one.limit, one.unit, now_ms, one.quota, one.bucket, seen.starts_at_ms]


def _retry_after(one: Charge, resets_at_ms: int, now_ms: int) -> int:
    """Milliseconds; 0 when it will not fit later either."""
    if one.amount > one.limit:
        return 0
    return CONCURRENCY_RETRY_MS if one.kind == "concurrency" else max(1, resets_at_ms - now_ms)


def settle(
    tx: Transaction,
    call_id: str,
    *,
    ran: bool,
    spent: Mapping[str, int] | None = None,
    failed_at_ms: int | None = None,
) -> int:
    """Free what a call has reserved; how many reservations there were.

    ran: the backend was, or may have been, asked. spent: what it reported, by unit; other units cost their estimate.
    failed_at_ms: it ended badly, for quotas of errors.
    """
    reported: Mapping[str, int] = spent or {}
    costs = dict(reported) if ran else {}
    rows: list[tuple[str, str, QuotaKind, int, str, int]] = tx.db.execute(
        "select quota, bucket, kind, starts_at_ms, unit, amount from reservation where call_id = ?", (call_id,)
    ).fetchall()
    if rows:
        tx.db.execute("delete from reservation where call_id = ?", (call_id,))
    for quota, bucket, kind, starts_at_ms, unit, amount in rows:
        if kind == "errors":
            if failed_at_ms is not None:
                repeat.failed(tx.db, quota, bucket, kind, failed_at_ms)
            continue
        used, reserved = 0, amount
        if kind == "count":
            used, reserved = (0 if ran else -amount), 0
        elif kind == "cost" and ran:
            used = costs[unit] = min(MOST, max(0, reported.get(unit, amount)))
        if used or reserved:
            tx.db.execute(_SETTLE[kind], (MOST, used, reserved, quota, bucket, starts_at_ms))
    if costs:
        keep = "insert into spent (call_id, unit, amount) values (?, ?, ?) on conflict do nothing"
        tx.db.executemany(keep, [(call_id, unit, amount) for unit, amount in costs.items()])
    return len(rows)


def spend_counts(tx: Transaction, call_id: str) -> None:
    """A held call runs now: what it counted is spent, whatever comes of it."""
    tx.db.execute("delete from reservation where call_id = ? and kind = 'count'", (call_id,))


# Of the sliding kinds those that may hold something; of the others those whose window is not over.
_STANDING = """select quota, bucket, kind, resets_at_ms, unit, most, window_ms, used + reserved, cool_down_ms
    from quota_counter where (quota, bucket, kind) > (?1, ?2, ?3) and (?4 = '' or quota = ?4)
    and case when kind in ('rate', 'repeat', 'errors') then touched_at_ms + max(window_ms, cool_down_ms) > ?5
        else used + reserved > 0 and (resets_at_ms > ?5 or resets_at_ms = 0) end
    order by quota, bucket, kind"""


def standing(db: sqlite3.Connection, now_ms: int, *, quota: str = "", after: str = "", limit: int) -> list[QuotaState]:
    """The first `limit` buckets after this one that have something used or reserved now, by quota, bucket and kind. Of
    calls that were repeated, those that are not let through for now."""
    found: list[QuotaState] = []
    name, kind, bucket = (*after.split(":", 2), "", "")[:3]
    start = max((name, bucket, kind), (quota, "", ""))
    for name, bucket, kind, resets_at_ms, unit, most, window_ms, taken, cool_down_ms in db.execute(
        _STANDING, (*start, quota, now_ms)
    ):
        wait_ms = 0
        if kind in ("rate", "repeat", "errors"):
            one = Charge(name, bucket, kind, most, window_ms=window_ms, cool_down_ms=cool_down_ms)
            log = rate.opened(db, one, now_ms)
            wait_ms = repeat.cooling_ms(db, one, log.total, now_ms) if kind != "rate" else 0
            taken = most if wait_ms else 0 if kind == "repeat" else log.left  # noqa: PLW2901
        if taken > 0:
            found.append(QuotaState(name, bucket, kind, most, max(0, most - taken), unit, wait_ms, resets_at_ms))
            if len(found) == limit:
                break
    return found
