"""The exact sliding window: at most `limit` units in any window of `window_ms`, half open, found in O(log n).

Each bucket numbers the units it ever admitted: 1, 2, 3 ... A row covers the units of one call, all admitted at one
time, and along a bucket both numbers and times only grow. So n more units fit exactly if the unit numbered
`total + n - limit` is outside of the window: one look at the row that covers it, however many units the window holds.
The same row says when it is worth asking again.

Rejected: fixed windows (twice the limit around an edge), two-window estimates (not exact), a row for each unit counted
with count(*) (O(n)). A window that a manifest makes longer reaches back only to what is still kept.
"""

from __future__ import annotations

import sqlite3

from broker.model.quota import Charge, QuotaState

PRUNE = 8  # rows outside of the window removed with each charge: more than come in, so they do not pile up

_COVERING = """select position - amount, position, at_ms from quota_rate
    where quota = ? and bucket = ? and position >= ? order by position limit 1"""

_COUNT = """insert into quota_counter (quota, bucket, kind, starts_at_ms, resets_at_ms, unit, most, window_ms, used,
        reserved, touched_at_ms)
    values (?, ?, 'rate', 0, 0, ?, ?, ?, ?, 0, ?)
    on conflict (quota, bucket, kind, starts_at_ms) do update
    set used = excluded.used, most = excluded.most, unit = excluded.unit, window_ms = excluded.window_ms,
        touched_at_ms = excluded.touched_at_ms"""


def take(db: sqlite3.Connection, one: Charge, now_ms: int) -> tuple[QuotaState, bool]:
    """Admit `amount` units; or, when they do not fit, the state as it is and True."""
    row = db.execute(
        "select used, touched_at_ms from quota_counter where quota = ? and bucket = ? and kind = 'rate' "
        "and starts_at_ms = 0",
        (one.quota, one.bucket),
    ).fetchone()
    total, at_ms = (row[0], max(row[1], now_ms)) if row else (0, now_ms)
    edge_ms = at_ms - one.window_ms  # what happened at the edge is outside
    retry_after_ms = 0
    if one.amount <= one.limit:
        retry_after_ms = _wait_ms(db, one, total + one.amount - one.limit, edge_ms, now_ms)
        if retry_after_ms == 0:
            left = one.limit - (total + one.amount - outside(db, one.quota, one.bucket, total, edge_ms))
            _admit(db, one, total, at_ms, edge_ms)
            return _state(one, left), False
    left = one.limit - (total - outside(db, one.quota, one.bucket, total, edge_ms))
    return _state(one, left, retry_after_ms), True


def _wait_ms(db: sqlite3.Connection, one: Charge, unit: int, edge_ms: int, now_ms: int) -> int:
    """How long until the unit of this number leaves the window; 0 when it has, or there is no such unit."""
    if unit <= 0:
        return 0
    row = db.execute(_COVERING, (one.quota, one.bucket, unit)).fetchone()
    if row is None or row[0] >= unit or row[2] <= edge_ms:  # its row was pruned, or is outside
        return 0
    return max(1, row[2] + one.window_ms - now_ms)


def _admit(db: sqlite3.Connection, one: Charge, total: int, at_ms: int, edge_ms: int) -> None:
    prune(db, one.quota, one.bucket, edge_ms, PRUNE)
    if one.amount:
        db.execute(
            "insert into quota_rate (quota, bucket, position, amount, at_ms) values (?, ?, ?, ?, ?)",
            (one.quota, one.bucket, total + one.amount, one.amount, at_ms),
        )
    db.execute(_COUNT, (one.quota, one.bucket, one.unit, one.limit, one.window_ms, total + one.amount, at_ms))


def prune(db: sqlite3.Connection, quota: str, bucket: str, edge_ms: int, rows: int) -> int:
    """Remove up to `rows` of the oldest rows, as far as they are outside of the window; how many went."""
    oldest = db.execute(
        "select position, at_ms from quota_rate where quota = ? and bucket = ? order by position limit ?",
        (quota, bucket, rows),
    ).fetchall()
    gone = [position for position, at_ms in oldest if at_ms <= edge_ms]
    if gone:
        db.execute("delete from quota_rate where quota = ? and bucket = ? and position <= ?", (quota, bucket, gone[-1]))
    return len(gone)


def outside(db: sqlite3.Connection, quota: str, bucket: str, total: int, edge_ms: int) -> int:
    """How many of the bucket's units are outside of the window: a binary search over their numbers."""
    row = db.execute(_COVERING, (quota, bucket, 1)).fetchone()  # the oldest that is kept; most often inside
    if row is None:
        return total
    low, high = row[0], total
    while low < high:
        start, position, at_ms = row
        if at_ms <= edge_ms:
            low = position
        else:
            high = start
        row = db.execute(_COVERING, (quota, bucket, (low + high) // 2 + 1)).fetchone()
    return low


def _state(one: Charge, left: int, retry_after_ms: int = 0) -> QuotaState:
    return QuotaState(one.quota, one.bucket, "rate", one.limit, max(0, left), one.unit, retry_after_ms)
