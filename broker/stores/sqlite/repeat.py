"""Breakers of runaway loops: `repeat` (the same call again and again) and `errors` (calls that fail again and again).

Both keep the log of a sliding window (rate.py), a bucket of `repeat` being one call with its arguments. The unit that
makes `limit` of them within one window trips the breaker: nothing more is let through until `cool_down_ms` after it.
Then one call may try; while the window still holds as many, it trips it again. Nothing but the log is kept, so a
breaker cannot be in a state that its history does not explain, and a refused call writes nothing.

`repeat` counts calls when they are admitted. `errors` only asks then, and leaves a reservation, by which the end of the
call finds the buckets it counts in if it failed. A call that nobody saw end (a crash of ours) is no failure of the
agent's and counts nowhere.
"""

from __future__ import annotations

import sqlite3

from broker.model.quota import Charge, QuotaKind
from broker.stores.sqlite import rate
from broker.stores.sqlite.look import Look, by_kind

_SETTINGS = by_kind("""select most, window_ms, cool_down_ms from quota_counter
    where quota = ? and bucket = ? and kind = :kind and starts_at_ms = 0""")


def look(db: sqlite3.Connection, one: Charge, now_ms: int) -> Look:
    read = rate.opened(db, one, now_ms)
    wait_ms = cooling_ms(db, one, read.total, now_ms)
    return read._replace(fits=wait_ms == 0, left=0 if wait_ms else one.limit - read.left, retry_after_ms=wait_ms)


def cooling_ms(db: sqlite3.Connection, one: Charge, total: int, now_ms: int) -> int:
    """How long the breaker stays open; 0 when it is closed."""
    if total < one.limit:
        return 0
    log = rate.log_of(one.quota, one.kind)
    last_ms = rate.time_of(db, log, one.bucket, total)
    if last_ms is None or max(now_ms, last_ms) >= last_ms + one.cool_down_ms:
        return 0
    first_ms = rate.time_of(db, log, one.bucket, total - one.limit + 1)
    tripped = first_ms is not None and first_ms > last_ms - one.window_ms
    return last_ms + one.cool_down_ms - now_ms if tripped else 0


def watch(db: sqlite3.Connection, one: Charge, seen: Look) -> None:
    """Make sure that the end of the call finds what this quota of errors says."""
    if seen.settings != (one.limit, one.window_ms, one.cool_down_ms):
        rate.count(db, one, seen.total, seen.at_ms)


def failed(db: sqlite3.Connection, quota: str, bucket: str, kind: QuotaKind, now_ms: int) -> None:
    """A call failed that this bucket watched."""
    row = db.execute(_SETTINGS[kind], (quota, bucket)).fetchone()
    if row is not None:
        most, window_ms, cool_down_ms = row
        one = Charge(quota, bucket, kind, most, window_ms=window_ms, cool_down_ms=cool_down_ms, unit="failures")
        rate.put(db, one, rate.opened(db, one, now_ms))
