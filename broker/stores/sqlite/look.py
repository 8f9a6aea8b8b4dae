"""What a bucket says to a charge before anything is written; what each kind of quota answers, and is then handed back.

All charges of an intent are looked at first and written after, so that a refusal has nothing to undo.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, get_args

from broker.model.quota import Charge, QuotaKind, QuotaState


def by_kind(sql: str) -> Mapping[QuotaKind, str]:
    """This statement for each kind, written out in the place of `:kind`.

    A parameter there would be held against the conditions of the partial indices, and SQLite prepares a statement anew
    whenever such a parameter is bound: five times what it takes to run one of these.
    """
    return {kind: sql.replace(":kind", f"'{kind}'") for kind in get_args(QuotaKind)}


class Look(NamedTuple):
    """left: units, as the bucket is now. starts_at_ms: the calendar window the charge counts in. total, gone, at_ms: of
    a sliding log (rate.py)."""

    fits: bool
    left: int
    retry_after_ms: int = 0  # when it does not fit; 0: it will not later either
    starts_at_ms: int = 0
    resets_at_ms: int = 0
    total: int = 0
    gone: int = 0
    at_ms: int = 0
    settings: tuple[int, int, int] | None = None  # most, window_ms, cool_down_ms as the bucket has them; None: new

    def state(self, one: Charge) -> QuotaState:
        """As it is after the charge; as it is when it does not fit."""
        left, retry_ms = (self.left - one.amount, 0) if self.fits else (self.left, self.retry_after_ms)
        left = max(0, left)
        return QuotaState(one.quota, one.bucket, one.kind, one.limit, left, one.unit, retry_ms, self.resets_at_ms)
