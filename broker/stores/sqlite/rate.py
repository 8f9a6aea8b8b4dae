"""The exact sliding window: at most `limit` units in any window of `window_ms`, half open, found in O(log n).

Each bucket numbers the units it ever admitted: 1, 2, 3 ... A row covers the units of one call, all admitted at one
time, and along a bucket both numbers and times only grow. So how many are inside is one subtraction: the number of the
last unit, less the number before the first row that is inside, which is among the oldest kept. The row that covers the
unit `total + n - limit` says when n more will fit.

A log like this is kept for `rate`, and for the breakers of repeat.py under a name of their own. Rejected: fixed windows
(twice the limit around an edge), two-window estimates (not exact), a row for each unit counted with count(*) (O(n)). A
window that a manifest makes longer reaches back only to what is still kept.
"""

from __future__ import annotations

import sqlite3

from broker.model.quota import Charge, QuotaKind
from broker.stores.sqlite.look import Look, by_kind

PRUNE = 8  # rows outside of the window removed with each charge: more than come in, so they do not pile up

_COUNTER = by_kind("""select used, touched_at_ms, most, window_ms, cool_down_ms from quota_counter
    where quota = ? and bucket = ? and kind = :kind and starts_at_ms = 0""")

_OLDEST = f"""select position, position - amount, at_ms from quota_rate
    where quota = ? and bucket = ? order by position limit {PRUNE + 1}"""  # noqa: S608 – a constant of this file

_COVERING = """select position - amount, position, at_ms from quota_rate
    where quota = ? and bucket = ? and position >= ? order by position limit 1"""

_COUNT = """insert into quota_counter (quota, bucket, kind, starts_at_ms, resets_at_ms, unit, most, window_ms, used,
        reserved, touched_at_ms, cool_down_ms)
    values (?, ?, ?, 0, 0, ?, ?, ?, ?, 0, ?, ?)
    on conflict (quota, bucket, kind, starts_at_ms) do update
    set used = excluded.used, most = excluded.most, unit = excluded.unit, window_ms = excluded.window_ms,
        touched_at_ms = excluded.touched_at_ms, cool_down_ms = excluded.cool_down_ms"""


def log_of(quota: str, kind: QuotaKind) -> str:
    """The name of the rows of this quota. One that changes its kind begins anew."""
    return quota if kind == "rate" else f"{kind}:{quota}"


def look(db: sqlite3.Connection, one: Charge, now_ms: int) -> Look:
    """Whether `amount` more units fit at the bucket's own time, which never goes back."""
    read = opened(db, one, now_ms)
    left = one.limit - read.left
    fits = one.amount <= left
    wait_ms = 0 if fits or one.amount > one.limit else _wait_ms(db, one, read.total + one.amount - one.limit, now_ms)
    return read._replace(fits=fits, left=left, retry_after_ms=wait_ms)


def opened(db: sqlite3.Connection, one: Charge, now_ms: int) -> Look:
    """The log as it stands; `left` is how many units are inside of the window."""
    row = db.execute(_COUNTER[one.kind], (one.quota, one.bucket)).fetchone()
    if row is None:
        return Look(True, 0, at_ms=now_ms)
    total, touched_at_ms, *known = row
    at_ms = max(touched_at_ms, now_ms)
    outside, gone = _edge(db, log_of(one.quota, one.kind), one.bucket, total, at_ms - one.window_ms)
    return Look(True, total - outside, total=total, gone=gone, at_ms=at_ms, settings=tuple(known))


def _edge(db: sqlite3.Connection, log: str, bucket: str, total: int, edge_ms: int) -> tuple[int, int]:
    """How many units are outside of the window, and up to which position rows may go. What happened at the edge is
    outside."""
    oldest = db.execute(_OLDEST, (log, bucket)).fetchall()
    gone = 0
    for position, before, at_ms in oldest:
        if at_ms > edge_ms:
            return before, gone
        gone = position
    return (total if len(oldest) <= PRUNE else outside(db, log, bucket, total, edge_ms)), gone


def outside(db: sqlite3.Connection, log: str, bucket: str, total: int, edge_ms: int) -> int:
    """How many of the bucket's units are outside of the window: a binary search over their numbers."""
    row = db.execute(_COVERING, (log, bucket, 1)).fetchone()
    if row is None:
        return total
    low, high = row[0], total
    while low < high:
        start, position, at_ms = row
        if at_ms <= edge_ms:
            low = position
        else:
            high = start
        row = db.execute(_COVERING, (log, bucket, (low + high) // 2 + 1)).fetchone()
    return low


def _wait_ms(db: sqlite3.Connection, one: Charge, unit: int, now_ms: int) -> int:
    """How long until the unit of this number leaves the window."""
    at_ms = time_of(db, log_of(one.quota, one.kind), one.bucket, unit)
    return max(1, (now_ms if at_ms is None else at_ms) + one.window_ms - now_ms)


def time_of(db: sqlite3.Connection, log: str, bucket: str, unit: int) -> int | None:
    """When the unit of this number, from 1, was admitted; None when that is not kept any more."""
    row = db.execute(_COVERING, (log, bucket, unit)).fetchone()
    return None if row is None or row[0] >= unit else row[2]


def put(db: sqlite3.Connection, one: Charge, seen: Look) -> None:
    """Admit the units of a charge that fits."""
    log = log_of(one.quota, one.kind)
    if seen.gone:
        db.execute(
            "delete from quota_rate where quota = ? and bucket = ? and position <= ?", (log, one.bucket, seen.gone)
        )
    if one.amount:
        db.execute(
            "insert into quota_rate (quota, bucket, position, amount, at_ms) values (?, ?, ?, ?, ?)",
            (log, one.bucket, seen.total + one.amount, one.amount, seen.at_ms),
        )
    count(db, one, seen.total + one.amount, seen.at_ms)


def count(db: sqlite3.Connection, one: Charge, total: int, at_ms: int) -> None:
    """Write the counter's row: the number of the last unit, and what the quota says now."""
    settings = (one.unit, one.limit, one.window_ms, total, at_ms, one.cool_down_ms)
    db.execute(_COUNT, (one.quota, one.bucket, one.kind, *settings))
