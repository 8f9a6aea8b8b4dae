"""The catalog: one immutable snapshot of everything agents can be offered, replaced whole and never changed.

All answers come from look-ups and from what was compiled; the size of the catalog shows nowhere but in `listing`, whose
tuples are kept for callers that see the same. What must not live here: how a catalog is made (compiler).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from broker.catalog.schema import Checker
from broker.errors import Forbidden
from broker.model.answer import Answer
from broker.model.principal import Principal
from broker.model.quota import Charge
from broker.model.tool import Tool
from broker.policies.answer import Redaction, Shape
from broker.policies.quota import Meter
from broker.policies.rule import Finding, Rules, Verdict
from broker.policies.toolset import Audience

KEPT_LISTINGS = 256


@dataclass(frozen=True, slots=True)
class BackendPlan:
    """A backend as the manifests want it. spec: valid, of its kind. digest: over all it says; another one is another
    backend."""

    name: str
    kind: str
    spec: Any
    source: str
    digest: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One tool with all that was compiled for it."""

    tool: Tool
    rules: Rules
    checker: Checker
    redaction: Redaction
    meters: tuple[Meter, ...] = ()
    priced: tuple[Meter, ...] = ()  # those of the meters whose amount depends on the call
    answer_shape: Shape = field(default_factory=Shape)
    output: Checker | None = None
    audiences: tuple[Audience, ...] | None = None  # None: the catalog has no toolsets, everybody sees everything
    facts: Mapping[str, str] = field(default_factory=dict[str, str])  # its `tool.*` values

    def faults(self, arguments: Mapping[str, Any]) -> tuple[str, ...]:
        """What is wrong with these arguments: at most 10 sentences (path, what, remedy), no value; () when right."""
        return self.checker.faults(arguments)

    def output_faults(self, structured: Any) -> tuple[str, ...]:
        """The same for structured content against the output schema; () when the tool has none."""
        return self.output.faults(structured) if self.output is not None else ()

    def decide(self, principal: Principal, arguments: Mapping[str, Any], now_ms: int) -> Verdict:
        """Scopes, then rules; a call whose cost cannot be computed is denied too. Never raises."""
        verdict = self.rules.decide(principal, arguments, now_ms)
        if self.priced and verdict.outcome != "deny":
            for meter in self.priced:
                if objection := meter.objection(principal, arguments, now_ms, self.facts):
                    return Verdict("deny", f"quota/{meter.quota}", objection)
        return verdict

    def charges(self, principal: Principal, arguments: Mapping[str, Any], now_ms: int) -> tuple[Charge, ...]:
        """What this call takes from each quota that selects the tool. Raises Forbidden where `decide` would deny."""
        if not self.meters:
            return ()
        try:
            return tuple(meter.charge(principal, arguments, now_ms, self.facts) for meter in self.meters)
        except ValueError as error:
            raise Forbidden(f"Refused: what this call costs cannot be computed: {error}. Nothing was done.") from None

    def explain(self, principal: Principal, arguments: Mapping[str, Any], now_ms: int) -> tuple[Finding, ...]:
        """Every toolset, scope, rule and price with its result, in the order in which they are asked."""
        findings = [
            Finding(f"toolset/{audience.toolset}", "show", audience.admits(principal), False)
            for audience in self.audiences or ()
        ]
        findings += self.rules.explain(principal, arguments, now_ms)
        for meter in self.priced:
            objection = meter.objection(principal, arguments, now_ms, self.facts)
            findings.append(Finding(f"quota/{meter.quota}", "meter", not objection, bool(objection), objection))
        return tuple(findings)

    def shape(self, answer: Answer) -> Answer:
        """The answer as it may be handed on: selected, checked, within its cap. Raises AnswerWithheld."""
        return self.answer_shape.inspect(answer)

    def kept(self, arguments: Mapping[str, Any]) -> bytes | None:
        """What a record keeps of the arguments, as canonical JSON; None when nothing."""
        return self.redaction.kept(arguments)

    def is_visible(self, principal: Principal) -> bool:
        """Whether the tool exists for this caller: in one of its toolsets, and some call of it could pass its rules."""
        if self.audiences is not None and not any(audience.admits(principal) for audience in self.audiences):
            return False
        return not self.rules.hides(principal)

    def is_listed(self, principal: Principal) -> bool:
        """Whether it is offered to this caller: visible, all scopes held, and some call of it could pass."""
        return (
            self.tool.scopes <= principal.scopes
            and self.is_visible(principal)
            and not self.rules.is_hopeless(principal)
        )


@dataclass(frozen=True, slots=True)
class Catalog:
    """version: digest over all that can make a difference; equal for equal manifests and offers in any process.

    entries: by name, in the order of the names. notes: what was left out or renamed, and why, for operators.
    all_scopes: those that tools ask for and reviewers need.
    """

    version: str
    entries: Mapping[str, Entry]
    backends: Mapping[str, BackendPlan]
    notes: tuple[str, ...] = ()
    all_scopes: frozenset[str] = frozenset()
    may_hold: bool = False
    # Which parts of a principal decide what is listed: callers that agree in them share a listing.
    _deciding: tuple[Literal["agent", "user", "tenant", "groups", "scopes"], ...] = ("scopes",)
    _listings: dict[tuple[Any, ...], tuple[Entry, ...]] = field(
        default_factory=dict[tuple[Any, ...], "tuple[Entry, ...]"], compare=False, repr=False
    )

    @classmethod
    def empty(cls) -> Catalog:
        return cls(version="empty", entries={}, backends={})

    def resolve(self, name: str, principal: Principal) -> Entry | None:
        """The tool of this name if it exists for this caller; None for unknown and invisible alike."""
        entry = self.entries.get(name)
        return entry if entry is not None and entry.is_visible(principal) else None

    def listing(self, principal: Principal) -> tuple[Entry, ...]:
        """What this caller may use, in stable order. At most 256 different listings are kept, the oldest goes."""
        key = tuple(getattr(principal, part) for part in self._deciding)
        listed = self._listings.get(key)
        if listed is None:
            listed = tuple(entry for entry in self.entries.values() if entry.is_listed(principal))
            while len(self._listings) >= KEPT_LISTINGS:
                self._listings.pop(next(iter(self._listings)), None)
            self._listings[key] = listed
        return listed


class Shelf:
    """Where the current catalog stands. Whoever began with one keeps it; the next call sees the new one."""

    def __init__(self, catalog: Catalog) -> None:
        self._current = catalog
        self._subscribers: dict[int, Callable[[], None]] = {}
        self._tickets = 0

    @property
    def current(self) -> Catalog:
        return self._current

    def swap(self, catalog: Catalog) -> None:
        """Put a new catalog in place and tell the subscribers, if it is a different one."""
        changed = catalog.version != self._current.version
        self._current = catalog
        if changed:
            for subscriber in tuple(self._subscribers.values()):
                subscriber()

    def subscribe(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call back after each change, from the task that swapped; must be quick and not raise. Returns the way out."""
        self._tickets += 1
        ticket = self._tickets
        self._subscribers[ticket] = callback
        return lambda: self._subscribers.pop(ticket, None) and None
