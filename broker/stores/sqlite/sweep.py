"""What nobody does in passing: recovering what dead processes left, and deleting what is kept no longer.

Each function is one job, bounded, so that a long sweep never holds the database for long.
"""

from __future__ import annotations

from pathlib import Path

from broker.model import task
from broker.model.invocation import Invocation
from broker.model.quota import QuotaKind
from broker.stores.sqlite import idempotency, outcome, quota, rate, reminder, spent
from broker.stores.sqlite.ledger import heads
from broker.stores.sqlite.liveness import is_dead
from broker.stores.sqlite.schema import IDLE, IDLE_AT
from broker.stores.sqlite.transaction import Transaction

CHUNK = 200
COUNTER_KEPT_MS = 7 * 86_400_000  # counters of windows gone by: longer than clocks are wrong
FREE_PAGES = 256  # of the file, 1 MB, that stay for what comes next
PAGES = 100  # given back in one go
ROWS = 2_000  # of one sliding window, deleted in one go

_IDLE = f"""select quota, bucket, kind from quota_counter indexed by quota_idle
    where {IDLE} and {IDLE_AT} < ? limit ?"""  # noqa: S608 – a constant of the schema
_FORGET = """delete from quota_rate where quota = ? and bucket = ? and position in (
    select position from quota_rate where quota = ? and bucket = ? order by position limit ?)"""


def dead_writers(path: Path, writers: list[tuple[str, int]], now_ms: int) -> list[str]:
    """Which of these chains, each with its lease, have ended. Where the kernel cannot say, the lease decides."""
    found: list[str] = []
    for chain, lease_until_ms in writers:
        dead = is_dead(path, chain)
        if dead or (dead is None and lease_until_ms < now_ms):
            found.append(chain)
    return found


def bury(tx: Transaction, argument: tuple[str, int]) -> None:
    """Mark a writer as ended, and vouch for where its chain ended: (chain, now_ms)."""
    chain, now_ms = argument
    changed = tx.db.execute("update writer set ended_at_ms = ? where chain = ? and ended_at_ms = 0", (now_ms, chain))
    if changed.rowcount == 1:
        tx.ledger.append("chain_died", "", now_ms, {"seen": heads(tx.db, chain)})


def recover(tx: Transaction, argument: tuple[int, int]) -> tuple[list[Invocation], int]:
    """Calls that an ended writer left under way: (now_ms, at most so many). They, and the reservations they had."""
    now_ms, most = argument
    rows = tx.db.execute(
        """select i.call_id, (select count(*) from reservation r where r.call_id = i.call_id)
        from invocation i indexed by invocation_open
        where i.state = 'dispatching'
        and not exists (select 1 from writer w where w.chain = i.writer and w.ended_at_ms = 0)
        limit ?""",
        (most,),
    ).fetchall()
    lost = [outcome.lose(tx, (call_id, now_ms)) for call_id, _ in rows]
    return [invocation for invocation in lost if invocation is not None], sum(count for _, count in rows)


def free_orphans(tx: Transaction, most: int) -> int:
    """Free reservations whose call is over or was never written; there are none unless something went wrong."""
    rows = tx.db.execute(
        """select distinct r.call_id from reservation r left join invocation i on i.call_id = r.call_id
        where i.state is null or i.state not in ('held', 'approved', 'dispatching') limit ?""",
        (most,),
    ).fetchall()
    return sum(quota.settle(tx, call_id, ran=True) for (call_id,) in rows)


# One statement for each part, which each has an index of: together they would walk through all that is kept.
OLD_RESULTS = tuple(
    f"""delete from payload where (call_id, part) in (
        select p.call_id, p.part from payload p indexed by payload_{part} left join hold h on h.call_id = p.call_id
        join invocation i on i.call_id = p.call_id
        where p.part = '{part}'
        and not exists (select 1 from idempotency k where k.call_id = p.call_id)
        and ((h.call_id is null and i.changed_at_ms < ?)
            or (h.collected_at_ms > 0 and max(h.collected_at_ms, h.expires_at_ms) < ?) or i.changed_at_ms < ?)
        limit ?)"""  # noqa: S608 – constants of this file
    for part in ("result", "changes")
)


def tidy(tx: Transaction, argument: tuple[int, int]) -> int:
    """Delete keys and results that were kept long enough, and counters of windows long gone: (now_ms, how long results
    that nobody collects are kept). How many rows."""
    now_ms, uncollected_ms = argument
    keys = idempotency.tidy(tx, now_ms, CHUNK)
    kept = (now_ms - task.KEPT_MS, now_ms - task.COLLECTED_MS, now_ms - uncollected_ms, CHUNK)
    results = sum(tx.db.execute(one, kept).rowcount for one in OLD_RESULTS)
    if results:
        tx.ledger.append("payloads_deleted", "", now_ms, {"part": "result", "rows": results})
    return keys + results + spent.tidy(tx.db, now_ms, CHUNK) + reminder.tidy(tx.db, CHUNK) + _tidy_counters(tx, now_ms)


def shrink(tx: Transaction, most: int) -> int:
    """Give back to the disk what is free in the file, at most so many pages; how many. 0 also for a file that was made
    to keep them (database.migrate)."""
    (free,) = tx.db.execute("pragma freelist_count").fetchone()
    if free <= FREE_PAGES:
        return 0
    tx.db.execute(f"pragma incremental_vacuum({min(most, free - FREE_PAGES)})").fetchall()
    return free - int(tx.db.execute("pragma freelist_count").fetchone()[0])


def _tidy_counters(tx: Transaction, now_ms: int) -> int:
    """Counters of windows long gone, and sliding windows that nobody uses any more: oldest first, by their indexes."""
    over = tx.db.execute(
        """delete from quota_counter where (quota, bucket, kind, starts_at_ms) in (
            select quota, bucket, kind, starts_at_ms from quota_counter indexed by quota_over
            where kind in ('count', 'cost') and reserved = 0 and resets_at_ms < ? limit ?)""",
        (now_ms - COUNTER_KEPT_MS, CHUNK),
    ).rowcount
    free = tx.db.execute(
        """delete from quota_counter where (quota, bucket, kind, starts_at_ms) in (
            select quota, bucket, kind, starts_at_ms from quota_counter indexed by quota_free
            where kind = 'concurrency' and reserved = 0 and touched_at_ms < ? limit ?)""",
        (now_ms - COUNTER_KEPT_MS, CHUNK),
    ).rowcount
    idle: list[tuple[str, str, QuotaKind]] = tx.db.execute(_IDLE, (now_ms, CHUNK)).fetchall()
    for name, bucket, kind in idle:
        log = rate.log_of(name, kind)
        if tx.db.execute(_FORGET, (log, bucket, log, bucket, ROWS)).rowcount < ROWS:
            tx.db.execute("delete from quota_counter where quota = ? and bucket = ? and kind = ?", (name, bucket, kind))
    return over + free + len(idle)
