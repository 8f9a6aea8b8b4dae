"""Quotas: what a call charges, to which bucket, against which limit. Counting them exactly is the store's.

Amounts are integers. Money is exact: millionths of the currency, made from decimals and never from rounding; what is
finer, negative, zero, not a number or absurdly large is refused, at load for a constant and by a denial of the call for
a computed amount.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, tzinfo
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator

from broker.document import nearest
from broker.model.principal import Principal, person
from broker.model.quota import Charge, QuotaKind
from broker.policies.calendar import Period, window
from broker.policies.expression import Expression, facts
from broker.policies.spec import Name, PolicyKind, Seconds, Selection, Spec

MAX_LIMIT = 1_000_000_000
MAX_MICRO = 10**15  # a billion of any currency
LEASE_GRACE_S = 5.0  # how much longer than its call a reservation must live
DEFAULT_LEASE_S = 60.0

Key = Literal["agent", "user", "tenant", "tool", "backend"]
Limit = Annotated[int, Field(ge=1, le=MAX_LIMIT)]


def micro(written: object) -> int:
    """Millionths, 1 to 10^15, of a whole number, a float as it is written, or the text of a decimal.

    Raises ValueError saying what is wrong: not a number, not finite, not above zero, finer than a millionth, too large.
    """
    if isinstance(written, bool) or not isinstance(written, (int, float, str)):
        raise ValueError('expected a decimal such as 100.00 or "0.02"')  # noqa: TRY004 – the error pydantic collects
    try:
        amount = Decimal(written if isinstance(written, int) else str(written).strip())
    except InvalidOperation:
        raise ValueError('expected a decimal such as 100.00 or "0.02"') from None
    if not amount.is_finite() or amount <= 0:
        raise ValueError("an amount of money is finite and above zero")
    if amount.adjusted() > 9:
        raise ValueError("an amount of money is at most 1000000000")
    exact = amount.scaleb(6)
    if exact != exact.to_integral_value():
        raise ValueError("an amount of money has at most six decimals")
    if not 1 <= int(exact) <= MAX_MICRO:
        raise ValueError("an amount of money is at most 1000000000")
    return int(exact)


def _money(written: object) -> object:
    micro(written)
    return str(written)


def _zone(name: str) -> str:
    try:
        zone(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        close = nearest(name, available_timezones())
        raise ValueError("unknown time zone" + (f"; did you mean {close!r}?" if close else "")) from None
    return name


def zone(name: str) -> tzinfo:
    """UTC needs no database of time zones, which small systems do not have."""
    return UTC if name == "UTC" else ZoneInfo(name)


def _amount(written: object) -> object:
    """A decimal, or a CEL expression over the call; compiled here so that its faults are reported at its place."""
    if isinstance(written, (int, float)) and not isinstance(written, bool):
        return _money(written)
    if isinstance(written, str) and not _is_decimal(written):
        Expression.compile(written, result="amount")
        return written
    return _money(written)


def _is_decimal(text: str) -> bool:
    try:
        Decimal(text.strip())
    except InvalidOperation:
        return False
    return True


Money = Annotated[str, BeforeValidator(_money), WithJsonSchema({"type": ["string", "number"]})]
Amount = Annotated[str, BeforeValidator(_amount), WithJsonSchema({"type": ["string", "number"]})]
Zone = Annotated[str, AfterValidator(_zone)]


class RateSpec(Spec):
    limit: Limit = Field(description="Most calls in any window of this length.")
    per: Seconds = Field(description="Length of the sliding window, such as 1m.")


class CountSpec(Spec):
    limit: Limit = Field(description="Most calls in a calendar window.")
    per: Period = Field(description="The calendar window.")
    timezone: Zone = Field(default="UTC", description="Where days, weeks and months begin, such as Europe/Berlin.")

    @model_validator(mode="after")
    def _zones_have_days(self) -> Self:
        if self.timezone != "UTC" and self.per in ("minute", "hour"):
            raise ValueError("`timezone` matters for day, week and month only; minutes and hours are UTC's")
        return self


class ConcurrencySpec(Spec):
    limit: Limit = Field(description="Most calls under way at once.")
    lease: Seconds | None = Field(default=None, description="When a place frees itself after a crash.")


class CostSpec(Spec):
    limit: Money = Field(description="Most money in a calendar window, as a decimal.")
    per: Period = Field(description="The calendar window.")
    timezone: Zone = Field(default="UTC", description="Where days, weeks and months begin.")
    amount: Amount = Field(description="What one call costs: a decimal, or a CEL expression such as args.amount.")
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")] = Field(description="ISO 4217 code, such as EUR.")


class QuotaSpec(Selection):
    kind: Literal["quota"] = "quota"
    name: Name = Field(description="Name of the quota.")
    description: str = Field(default="", description="For people.")
    rate: RateSpec | None = Field(default=None, description="At most so many calls in any window.")
    count: CountSpec | None = Field(default=None, description="At most so many calls in a calendar window.")
    concurrency: ConcurrencySpec | None = Field(default=None, description="At most so many calls at once.")
    cost: CostSpec | None = Field(default=None, description="At most so much money in a calendar window.")
    by: list[Key] = Field(description="Whose bucket: any of these; [] is one bucket for all.")

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        if sum(part is not None for part in (self.rate, self.count, self.concurrency, self.cost)) != 1:
            raise ValueError("a quota has exactly one of `rate`, `count`, `concurrency` and `cost`")
        if len(set(self.by)) != len(self.by):
            raise ValueError("`by` names something twice")
        return self


class Windows:
    """The windows of one quota. The last one is kept: asking the calendar costs more than all the rest of a charge."""

    __slots__ = ("_last", "_period", "_zone")

    def __init__(self, period: Period, timezone: str) -> None:
        self._period: Period = period
        self._zone = zone(timezone)
        self._last = (0, 0)

    def at(self, now_ms: int) -> tuple[int, int]:
        last = self._last
        if not last[0] <= now_ms < last[1]:
            last = self._last = window(self._period, self._zone, now_ms)
        return last


@dataclass(frozen=True, slots=True)
class Meter:
    """A compiled quota. Its `charge` is what the store is asked to take for one call."""

    quota: str
    kind: QuotaKind
    limit: int
    by: tuple[Key, ...]
    unit: str = "calls"
    width_ms: int = 0  # rate: the window. concurrency: the lease
    windows: Windows | None = None
    fixed: int = 1
    amount: Expression | None = None

    def objection(self, caller: Principal, arguments: Mapping[str, Any], now_ms: int, tool: Mapping[str, str]) -> str:
        """Why this call has no price, as a sentence; "" when it has one. Cheap for every quota but a computed cost."""
        if self.amount is None:
            return ""
        try:
            self._price(caller, arguments, now_ms, tool)
        except ValueError as error:
            return f"What this call costs cannot be computed: {error}."
        return ""

    def charge(self, caller: Principal, arguments: Mapping[str, Any], now_ms: int, tool: Mapping[str, str]) -> Charge:
        """tool: its `tool.*` values. Raises ValueError where `objection` says something."""
        starts, resets = self.windows.at(now_ms) if self.windows else (0, 0)
        return Charge(
            quota=self.quota,
            bucket=bucket(self.by, caller, tool),
            kind=self.kind,
            limit=self.limit,
            amount=self.fixed if self.amount is None else self._price(caller, arguments, now_ms, tool),
            window_ms=self.width_ms,
            starts_at_ms=starts,
            resets_at_ms=resets,
            unit=self.unit,
        )

    def _price(self, caller: Principal, arguments: Mapping[str, Any], now_ms: int, tool: Mapping[str, str]) -> int:
        assert self.amount is not None  # noqa: S101 – asked for computed amounts only
        value = self.amount.amount(facts(self.amount.references.variables, tool, caller, arguments, now_ms))
        if value is None:
            raise ValueError("its expression gives no number")
        return micro(value)


def bucket(by: Sequence[Key], caller: Principal, tool: Mapping[str, str]) -> str:
    """`agent=bot,tool=refund`. Spelling variants of a person's name are one bucket; who acts for no user is counted as
    itself.
    """
    return ",".join(f"{key}={_escaped(_BUCKETS[key](caller, tool))}" for key in by)


_BUCKETS: Mapping[Key, Callable[[Principal, Mapping[str, str]], str]] = {
    "agent": lambda caller, _: person(caller.agent),
    "user": lambda caller, _: person(caller.user) or f"agent:{person(caller.agent)}",
    "tenant": lambda caller, _: person(caller.tenant),
    "tool": lambda _, tool: tool["tool.name"],
    "backend": lambda _, tool: tool["tool.backend"],
}


def _escaped(value: str) -> str:
    """Values come from credentials: none may look like another bucket."""
    return value.replace("%", "%25").replace(",", "%2C").replace("=", "%3D")


def meter(spec: QuotaSpec) -> Meter:
    by = tuple(spec.by)
    if spec.rate:
        return Meter(spec.name, "rate", spec.rate.limit, by, width_ms=round(spec.rate.per * 1000))
    if spec.count:
        return Meter(spec.name, "count", spec.count.limit, by, windows=Windows(spec.count.per, spec.count.timezone))
    if spec.concurrency:
        lease_s = spec.concurrency.lease or DEFAULT_LEASE_S
        return Meter(spec.name, "concurrency", spec.concurrency.limit, by, width_ms=round(lease_s * 1000))
    cost = spec.cost
    if cost is None:
        raise ValueError("a quota has exactly one of `rate`, `count`, `concurrency` and `cost`")
    constant = _is_decimal(cost.amount)
    return Meter(
        spec.name,
        "cost",
        micro(cost.limit),
        by,
        unit=f"{cost.currency.lower()}_micro",
        windows=Windows(cost.per, cost.timezone),
        fixed=micro(cost.amount) if constant else 1,
        amount=None if constant else Expression.compile(cost.amount, result="amount"),
    )


def leased(one: Meter, lease_s: float) -> Meter:
    """The same with another lease."""
    return replace(one, width_ms=round(lease_s * 1000))


KIND = PolicyKind(
    "quota", "meter", QuotaSpec, meter, {"name": "agent-minute", "rate": {"limit": 60, "per": "1m"}, "by": ["agent"]}
)
