"""Quotas: what a call charges, to which bucket, against which limit. Counting them exactly is the store's.

What a call costs is in amount.py, whose bucket it is in bucket.py, where a calendar window begins in calendar.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, tzinfo
from typing import Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from pydantic import AfterValidator, Field, model_validator

from broker.data import dataclass
from broker.document import nearest
from broker.model.principal import person
from broker.model.quota import Charge, QuotaKind
from broker.policies.amount import (
    TOKENS,
    Money,
    MoneyAmount,
    Tokens,
    TokensAmount,
    counted,
    is_decimal,
    micro,
    unit_of,
)
from broker.policies.bucket import CALLERS, CALLS, Asked, Key, buckets, of_call
from broker.policies.calendar import Period, window
from broker.policies.expression import Expression, facts
from broker.policies.spec import Name, PolicyKind, Seconds, Selection, Spec

MAX_LIMIT = 1_000_000_000
MAX_GROUPS = 16  # of one quota: each is a bucket that a call may be charged in
LEASE_GRACE_S = 5.0  # how much longer than its call a reservation must live
DEFAULT_LEASE_S = 60.0

Limit = Annotated[int, Field(ge=1, le=MAX_LIMIT)]


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
    amount: MoneyAmount = Field(description="What one call costs: a decimal, or a CEL expression such as args.amount.")
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")] = Field(description="ISO 4217 code, such as EUR.")


class TokensSpec(Spec):
    limit: Tokens = Field(description="Most tokens in a calendar window.")
    per: Period = Field(description="The calendar window.")
    timezone: Zone = Field(default="UTC", description="Where days, weeks and months begin.")
    amount: TokensAmount = Field(
        description="What is reserved for one call: a number, or a CEL expression such as args.max_tokens. A tool that "
        "reports its `usage` is charged what it used."
    )


class RepeatSpec(Spec):
    limit: Annotated[int, Field(ge=2, le=10_000)] = Field(
        description="So many calls of one tool with the same arguments within the window are a loop."
    )
    per: Seconds = Field(description="Length of the sliding window, such as 5m.")
    cool_down: Seconds = Field(description="How long that call is then refused, such as 10m.")


class ErrorsSpec(Spec):
    limit: Annotated[int, Field(ge=1, le=10_000)] = Field(
        description="So many calls that failed within the window are a loop."
    )
    per: Seconds = Field(description="Length of the sliding window, such as 5m.")
    cool_down: Seconds = Field(description="How long the bucket's calls are then refused, such as 10m.")


_LIMITS = ("rate", "count", "concurrency", "cost", "tokens", "repeat", "errors")


class QuotaSpec(Selection):
    kind: Literal["quota"] = "quota"
    name: Name = Field(description="Name of the quota.")
    description: str = Field(default="", description="For people.")
    rate: RateSpec | None = Field(default=None, description="At most so many calls in any window.")
    count: CountSpec | None = Field(default=None, description="At most so many calls in a calendar window.")
    concurrency: ConcurrencySpec | None = Field(default=None, description="At most so many calls at once.")
    cost: CostSpec | None = Field(default=None, description="At most so much money in a calendar window.")
    tokens: TokensSpec | None = Field(default=None, description="At most so many tokens in a calendar window.")
    repeat: RepeatSpec | None = Field(default=None, description="Stop the same call again and again.")
    errors: ErrorsSpec | None = Field(default=None, description="Stop calls that fail again and again.")
    by: list[Key] = Field(description="Whose bucket: any of these; [] is one bucket for all.")
    groups: list[Annotated[str, Field(min_length=1, max_length=256)]] = Field(
        default=[],
        max_length=MAX_GROUPS,
        description="With `group` in `by`: the groups that have a bucket. Who is in several is charged in each.",
    )

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        if sum(getattr(self, name) is not None for name in _LIMITS) != 1:
            raise ValueError(f"a quota has exactly one of {', '.join(f'`{name}`' for name in _LIMITS)}")
        if len(set(self.by)) != len(self.by):
            raise ValueError("`by` names something twice")
        return self

    @model_validator(mode="after")
    def _buckets(self) -> Self:
        if ("group" in self.by) != bool(self.groups):
            raise ValueError("`group` in `by` and a list of `groups` belong together")
        if "task" in self.by and not CALLERS & set(self.by):
            raise ValueError("callers choose their task: add `agent`, `user` or `tenant`, whose tasks are counted")
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
    """A compiled quota. Its `charges` are what the store is asked to take for one call."""

    quota: str
    kind: QuotaKind
    limit: int
    by: tuple[Key, ...]
    groups: frozenset[str] = frozenset()  # as `person` folds them
    unit: str = "calls"
    width_ms: int = 0  # rate, repeat, errors: the window. concurrency: the lease
    cool_down_ms: int = 0
    windows: Windows | None = None
    fixed: int = 1
    amount: Expression | None = None

    @property
    def is_of_caller(self) -> bool:
        """Whether what a call takes depends on its caller, its tool and the time alone."""
        return self.amount is None and self.kind != "repeat" and CALLS.isdisjoint(self.by)

    def objection(self, asked: Asked, now_ms: int) -> str:
        """Why this call has no price, as a sentence; "" when it has one. Cheap for every quota but a computed cost."""
        if self.amount is None:
            return ""
        try:
            self._price(asked, now_ms)
        except ValueError as error:
            return f"What this call costs cannot be computed: {error}."
        return ""

    def charges(self, asked: Asked, now_ms: int) -> list[Charge]:
        """One, or one for each group. Raises ValueError where `objection` says something."""
        starts, resets = self.windows.at(now_ms) if self.windows else (0, 0)
        amount = self.fixed if self.amount is None else self._price(asked, now_ms)
        return [
            Charge(
                quota=self.quota,
                bucket=of_call(bucket, asked) if self.kind == "repeat" else bucket,
                kind=self.kind,
                limit=self.limit,
                amount=amount,
                window_ms=self.width_ms,
                starts_at_ms=starts,
                resets_at_ms=resets,
                unit=self.unit,
                cool_down_ms=self.cool_down_ms,
            )
            for bucket in buckets(self.by, self.groups, asked)
        ]

    def standing(self, asked: Asked, now_ms: int) -> list[Charge]:
        """The charges of any call of this caller to this tool, by their least amount; none where the bucket depends on
        the call."""
        if self.kind == "repeat" or "model" in self.by:
            return []
        return replace(self, amount=None, fixed=min(1, self.fixed)).charges(asked, now_ms)

    def _price(self, asked: Asked, now_ms: int) -> int:
        assert self.amount is not None  # noqa: S101 – asked for computed amounts only
        variables = self.amount.references.variables
        value = self.amount.amount(facts(variables, asked.tool, asked.caller, asked.arguments, now_ms))
        if value is None:
            raise ValueError("its expression gives no number")
        return counted(value, self.unit)


def charges(meters: Sequence[Meter], asked: Asked, now_ms: int) -> tuple[Charge, ...]:
    """What a call takes of all quotas that select its tool. Raises ValueError when a cost cannot be computed."""
    return tuple(charge for one in meters for charge in one.charges(asked, now_ms))


def meter(spec: QuotaSpec) -> Meter:
    kind = next(name for name in _LIMITS if getattr(spec, name) is not None)
    groups = frozenset(person(group) for group in spec.groups)
    base = Meter(spec.name, "rate", 1, tuple(spec.by), groups)
    return replace(base, **_PARTS[kind](getattr(spec, kind)))


def _priced(limit: int, spec: CostSpec | TokensSpec, unit: str) -> dict[str, Any]:
    constant = is_decimal(spec.amount)
    return {
        "kind": "cost",
        "limit": limit,
        "unit": unit,
        "windows": Windows(spec.per, spec.timezone),
        "fixed": counted(spec.amount, unit) if constant else 1,
        "amount": None if constant else Expression.compile(spec.amount, result="amount"),
    }


def _breaker(kind: QuotaKind, spec: RepeatSpec | ErrorsSpec, **more: Any) -> dict[str, Any]:
    return {
        "kind": kind,
        "limit": spec.limit,
        "width_ms": round(spec.per * 1000),
        "cool_down_ms": round(spec.cool_down * 1000),
        **more,
    }


def _lease(spec: ConcurrencySpec) -> dict[str, Any]:
    return {"kind": "concurrency", "limit": spec.limit, "width_ms": round((spec.lease or DEFAULT_LEASE_S) * 1000)}


# Each way to limit, as the parts of a Meter.
_PARTS: Mapping[str, Callable[[Any], dict[str, Any]]] = {
    "rate": lambda spec: {"kind": "rate", "limit": spec.limit, "width_ms": round(spec.per * 1000)},
    "count": lambda spec: {"kind": "count", "limit": spec.limit, "windows": Windows(spec.per, spec.timezone)},
    "concurrency": _lease,
    "cost": lambda spec: _priced(micro(spec.limit), spec, unit_of(spec.currency)),
    "tokens": lambda spec: _priced(spec.limit, spec, TOKENS),
    "repeat": lambda spec: _breaker("repeat", spec),
    "errors": lambda spec: _breaker("errors", spec, fixed=0, unit="failures"),
}


def leased(one: Meter, lease_s: float) -> Meter:
    """The same with another lease."""
    return replace(one, width_ms=round(lease_s * 1000))


KIND = PolicyKind(
    "quota", "meter", QuotaSpec, meter, {"name": "agent-minute", "rate": {"limit": 60, "per": "1m"}, "by": ["agent"]}
)
