"""A charge against a quota, and what a quota has left. Amounts are integers in the quota's own unit.

Kinds, and what the store does with each, all inside the admitting transaction:
- `rate`: at most `limit` in any window of `window_ms`, sliding, so no double burst at an edge.
- `count`: at most `limit` in the calendar window [starts_at_ms, resets_at_ms).
- `concurrency`: at most `limit` reservations open at once; each frees itself at finish or when its lease ends.
- `cost`: like count, reserved by estimate and settled by what was really spent. Unit: millionths of the currency.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

QuotaKind = Literal["rate", "count", "concurrency", "cost"]


@dataclass(frozen=True, slots=True)
class Charge:
    quota: str  # the manifest's name
    bucket: str  # whose: canonical text of the key values, such as `agent=bot,tool=refund`
    kind: QuotaKind
    limit: int
    amount: int = 1
    window_ms: int = 0  # rate: the sliding window. concurrency: the lease
    starts_at_ms: int = 0  # count, cost: the calendar window
    resets_at_ms: int = 0
    unit: str = "calls"


@dataclass(frozen=True, slots=True)
class QuotaState:
    """What one quota had left for one bucket, seen inside the admitting transaction."""

    quota: str
    bucket: str
    kind: QuotaKind
    limit: int
    left: int  # after this call's charge; unchanged when it was refused
    unit: str = "calls"
    retry_after_ms: int = 0  # refused only: when it is worth asking again, > 0
    resets_at_ms: int = 0
