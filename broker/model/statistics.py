"""Sums over records as people's charts show them, in slots of equal length. All times are milliseconds, UTC."""

from __future__ import annotations

from collections.abc import Mapping

from broker.data import dataclass


@dataclass(frozen=True, slots=True)
class Span:
    """From since_ms on, in so many slots of step_ms."""

    since_ms: int
    step_ms: int
    slots: int

    def starts(self) -> list[int]:
        return [self.since_ms + number * self.step_ms for number in range(self.slots)]


@dataclass(frozen=True, slots=True)
class CallSlot:
    """Calls that began in a slot: how many by state, and how long their dispatch took (0 when none was)."""

    states: Mapping[str, int]
    p50_us: int = 0
    p95_us: int = 0


@dataclass(frozen=True, slots=True)
class CallSums:
    """looked_from_ms: since when calls were looked at, later than the span when there were more than are looked at."""

    slots: tuple[CallSlot, ...]
    looked_from_ms: int


@dataclass(frozen=True, slots=True)
class Judged:
    """A call that was held: when it was asked, when it was decided (0: it was not), how it stands.

    scopes, groups: who was asked. reviewers: the persons who approved or denied, none for what only time decided.
    """

    at_ms: int
    decided_at_ms: int
    state: str
    rule: str
    scopes: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    reviewers: tuple[str, ...] = ()
    edited: bool = False  # approved with other arguments than it was asked with


@dataclass(frozen=True, slots=True)
class Spent:
    """What was used of a quota in one of its calendar windows, by one bucket."""

    quota: str
    bucket: str
    unit: str
    limit: int
    starts_at_ms: int
    used: int


@dataclass(frozen=True, slots=True)
class Seen:
    """An agent as the records know it: its last call."""

    agent: str
    call_id: str
    at_ms: int
