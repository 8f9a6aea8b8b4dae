"""A charge against a quota, and what a quota has left. Amounts are integers in the quota's own unit.

Kinds, and what the store does with each, all inside the admitting transaction:
- `rate`: at most `limit` in any window of `window_ms`, sliding, so no double burst at an edge.
- `count`: at most `limit` in the calendar window [starts_at_ms, resets_at_ms).
- `concurrency`: at most `limit` reservations open at once; each frees itself at finish or when its lease ends.
- `cost`: like count, reserved by estimate and settled by what was really spent. Unit: millionths of a currency, such
  as `eur_micro`, or `tokens`.
- `repeat`: the same call, its bucket being one tool with its arguments, at most `limit` times in any window of
  `window_ms`; the one that makes it so many is the last for `cool_down_ms`.
- `errors`: the same with calls that failed, which is known at their end; `amount` is 0.
"""

from __future__ import annotations

from typing import Literal

from broker.data import dataclass

_MICRO = "_micro"  # units of money are counted in millionths

QuotaKind = Literal["rate", "count", "concurrency", "cost", "repeat", "errors"]

RESERVING: frozenset[QuotaKind] = frozenset({"cost", "concurrency", "errors"})
"""Those that something is left to be done for when the call ends."""


@dataclass(frozen=True, slots=True)
class Charge:
    quota: str  # the manifest's name
    bucket: str  # whose: canonical text of the key values, such as `agent=bot,tool=refund`
    kind: QuotaKind
    limit: int
    amount: int = 1
    window_ms: int = 0  # rate, repeat, errors: the sliding window. concurrency: the lease
    starts_at_ms: int = 0  # count, cost: the calendar window
    resets_at_ms: int = 0
    unit: str = "calls"
    cool_down_ms: int = 0  # repeat, errors: how long nothing is let through


@dataclass(slots=True)  # made for each call, see model.empty
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

    @property
    def place(self) -> str:
        """Which bucket it is, for asking for those after it. Neither a quota's name nor a kind has a colon in it."""
        return f"{self.quota}:{self.kind}:{self.bucket}"


def is_money(unit: str) -> bool:
    """Whether its amounts are millionths of a currency."""
    return unit.endswith(_MICRO)


def spoken(amount: int, unit: str) -> tuple[str, str]:
    """An amount and its unit as people write them: ("12.50", "EUR") for 12500000 eur_micro. Exact."""
    if not is_money(unit):
        return str(amount), unit
    whole, parts = divmod(abs(amount), 10**6)
    decimals = f"{parts:06d}".rstrip("0").ljust(2, "0")
    return f"{'-' if amount < 0 else ''}{whole}.{decimals}", unit.removesuffix(_MICRO).upper()


def room(left: int, limit: int, unit: str) -> str:
    """`12.50 of 100.00 EUR left`."""
    return f"{spoken(left, unit)[0]} of {' '.join(spoken(limit, unit))} left"
