"""How deciding goes: how long people take, what they let run out or overrule, who has too much of it, what nobody ever
denies. One answer for the console, the API and the command line.

All is counted over the held calls that changed in a span, as the store gives them (`Judged`): nothing is kept for this
on the way of a call. What must not live here: who may see it (office), how it looks.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from statistics import median
from typing import TypeVar

from broker.data import dataclass
from broker.model.statistics import Judged

K = TypeVar("K", bound=Hashable)

LEAST = 10  # so many decisions before a rule is said to be always approved, or one person to decide most
LEAST_ENDED, OVERLOADED = 5, 0.2  # of those asked: this share, of so many that ended, ran out before anybody decided
MOST_OF_ALL = 0.75  # one person who makes this share of all decisions, where others made some, too


@dataclass(frozen=True, slots=True)
class Counts:
    """Of some held calls. median_ms: from the question to the decision, of those a person decided; 0 without any.

    expiry_rate: of those that ended, the share nobody decided in time. override_rate: of those a person decided, the
    share that was denied or changed before it was approved.
    """

    held: int
    waiting: int
    approved: int  # by persons, as it was sent
    changed: int  # approved with other arguments
    denied: int
    expired: int
    withdrawn: int
    median_ms: float
    expiry_rate: float
    override_rate: float

    @property
    def decided(self) -> int:
        return self.approved + self.changed + self.denied


@dataclass(frozen=True, slots=True)
class OfRule:
    """always_approved: often decided, and never anything but approved as it was: a candidate for a standing grant."""

    rule: str
    counts: Counts
    always_approved: bool


@dataclass(frozen=True, slots=True)
class OfAsked:
    """asked: the scopes and groups of which one lets a person decide; none: the settings' reviewer scope."""

    scopes: tuple[str, ...]
    groups: tuple[str, ...]
    counts: Counts
    is_overloaded: bool


@dataclass(frozen=True, slots=True)
class OfPerson:
    person: str
    decided: int
    share: float  # of all decisions
    is_overloaded: bool


@dataclass(frozen=True, slots=True)
class Stats:
    """Each list with the busiest first."""

    since_ms: int
    counts: Counts
    rules: tuple[OfRule, ...]
    asked: tuple[OfAsked, ...]
    persons: tuple[OfPerson, ...]


def stats(judged: Sequence[Judged], since_ms: int) -> Stats:
    rules = [(name, of(ones)) for name, ones in _by(judged, lambda one: one.rule)]
    asked = [(names, of(ones)) for names, ones in _by(judged, lambda one: (one.scopes, one.groups))]
    return Stats(
        since_ms,
        of(judged),
        tuple(OfRule(name, counts, _always_approved(counts)) for name, counts in rules),
        tuple(OfAsked(*names, counts, _overloaded(counts)) for names, counts in asked),
        tuple(_persons(judged)),
    )


def of(judged: Iterable[Judged]) -> Counts:
    states: Counter[str] = Counter()
    waited: list[int] = []
    for one in judged:
        state = _ending(one)
        states["held"] += 1
        states[state] += 1
        if state in ("approved", "changed", "denied"):
            waited.append(one.decided_at_ms - one.at_ms)
    ended = states["held"] - states["waiting"]
    return Counts(
        **{name: states[name] for name in _COUNTED},
        median_ms=median(waited or [0]),
        expiry_rate=states["expired"] / ended if ended else 0.0,
        override_rate=(states["changed"] + states["denied"]) / len(waited) if waited else 0.0,
    )


_COUNTED = ("held", "waiting", "approved", "changed", "denied", "expired", "withdrawn")


def _ending(one: Judged) -> str:
    """What people made of it. What the broker let run when its time was over, nobody decided in time either."""
    if one.state == "held":
        return "waiting"
    if one.state == "rejected":
        return "denied"
    if one.state == "withdrawn":
        return "withdrawn"
    if not one.reviewers:
        return "expired"
    return "changed" if one.edited else "approved"


def _persons(judged: Sequence[Judged]) -> Iterable[OfPerson]:
    decided: Counter[str] = Counter(name for one in judged if one.state != "withdrawn" for name in one.reviewers)
    total = decided.total()
    for name, number in sorted(decided.items(), key=lambda item: (-item[1], item[0])):
        most = total >= LEAST and len(decided) > 1 and number / total >= MOST_OF_ALL
        yield OfPerson(name, number, number / total, most)


def _always_approved(counts: Counts) -> bool:
    return counts.approved >= LEAST and counts.approved == counts.decided and not counts.expired


def _overloaded(counts: Counts) -> bool:
    return counts.held - counts.waiting >= LEAST_ENDED and counts.expiry_rate >= OVERLOADED


def _by(judged: Sequence[Judged], key: Callable[[Judged], K]) -> list[tuple[K, list[Judged]]]:
    groups: dict[K, list[Judged]] = defaultdict(list)
    for one in judged:
        groups[key(one)].append(one)
    return sorted(groups.items(), key=lambda item: (-len(item[1]), str(item[0])))
