"""The catalog: one immutable snapshot of everything agents can be offered, replaced whole and never changed.

All answers come from look-ups and from what was compiled; the size of the catalog shows nowhere but in `listing`, whose
tuples are kept for callers that see the same. What must not live here: how a catalog is made (compiler).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any, Literal, Self, cast
from urllib.parse import unquote

from broker.catalog.schema import Checker
from broker.catalog.uri_template import UriTemplate
from broker.data import dataclass, field
from broker.errors import Forbidden
from broker.model.answer import Answer
from broker.model.invocation import Called
from broker.model.part import RESOURCE, Family, Part
from broker.model.principal import Principal
from broker.model.quota import Charge
from broker.model.tool import Tool
from broker.policies.answer import Shape
from broker.policies.bucket import Asked
from broker.policies.idempotency import Derivation
from broker.policies.preview import PreviewPlan
from broker.policies.quota import Meter, charges
from broker.policies.record import Redaction
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
class _Charged:
    """What a caller's calls are charged while the time is in [since_ms, until_ms). It holds the caller, so that nobody
    else gets its id."""

    caller: Principal
    since_ms: int
    until_ms: int
    charges: tuple[Charge, ...]


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
    policy: str = ""  # digest over every rule, quota, toolset and limit that governs it: a hold is bound to it
    derivation: Derivation | None = None  # of idempotency keys from arguments
    preview: PreviewPlan | None = None  # of a call of it that is held
    dropped: tuple[str, ...] = ()  # of a resource template: patterns of URIs it does not stand for
    metered_by_caller: bool = field(init=False, compare=False)  # what it is charged depends on nothing else of the call
    is_open: bool = field(init=False, compare=False)  # it exists for everybody
    _called: dict[str, Called] = field(init=False, compare=False, repr=False, default_factory=dict[str, Called])
    _charged: dict[int, _Charged] = field(init=False, compare=False, repr=False, default_factory=dict[int, _Charged])

    def __post_init__(self) -> None:
        object.__setattr__(self, "metered_by_caller", all(one.is_of_caller for one in self.meters))
        object.__setattr__(self, "is_open", self.audiences is None and not self.rules.hides_from_some)

    def drops(self, uri: str) -> bool:
        """Whether this URI, for which the template stands, was left out by the import. However it is written: what is
        percent-encoded is compared decoded, too."""
        natural = uri.removeprefix(cast("Part", self.tool.action).prefix)
        return any(fnmatchcase(name, item) for item in self.dropped for name in (natural, unquote(natural)))

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
            asked = Asked(principal, arguments, self.facts)
            for meter in self.priced:
                if objection := meter.objection(asked, now_ms):
                    return Verdict("deny", f"quota/{meter.quota}", objection)
        return verdict

    def charges(
        self, principal: Principal, arguments: Mapping[str, Any], now_ms: int, task: str = ""
    ) -> tuple[Charge, ...]:
        """What this call takes from each quota that selects the tool. Raises Forbidden where `decide` would deny."""
        if not self.meters:
            return ()
        known = self._charged.get(id(principal))
        if known is not None and known.caller is principal and known.since_ms <= now_ms < known.until_ms:
            return known.charges
        try:
            made = charges(self.meters, Asked(principal, arguments, self.facts, task), now_ms)
            if self.metered_by_caller:
                self._remember(principal, made)
            return made
        except ValueError as error:
            raise Forbidden(f"Refused: what this call costs cannot be computed: {error}. Nothing was done.") from None

    def called(self, rule: str, policy_version: str) -> Called:
        """What records say of its calls that this rule has decided; the same object for all."""
        known = self._called.get(rule)
        if known is None or known.policy_version != policy_version:
            tool = self.tool
            known = self._called[rule] = Called(
                tool.name, tool.version, tool.effect, tool.definition, tool.backend, rule, policy_version, tool.record
            )
        return known

    def _remember(self, principal: Principal, made: tuple[Charge, ...]) -> None:
        """These are the charges of each of its calls until one of the windows is over."""
        while len(self._charged) >= KEPT_LISTINGS:
            self._charged.pop(next(iter(self._charged)))
        since_ms = max([one.starts_at_ms for one in made], default=0)
        until_ms = min([one.resets_at_ms for one in made if one.resets_at_ms], default=sys.maxsize)
        self._charged[id(principal)] = _Charged(principal, since_ms, until_ms, made)

    def standing(self, principal: Principal, now_ms: int, task: str = "") -> list[Charge]:
        """Which buckets a call would be charged in, whatever its arguments are."""
        asked = Asked(principal, {}, self.facts, task)
        return [charge for meter in self.meters for charge in meter.standing(asked, now_ms)]

    def explain(self, principal: Principal, arguments: Mapping[str, Any], now_ms: int) -> tuple[Finding, ...]:
        """Every toolset, scope, rule and price with its result, in the order in which they are asked."""
        findings = [
            Finding(f"toolset/{audience.toolset}", "show", audience.admits(principal), False)
            for audience in self.audiences or ()
        ]
        findings += self.rules.explain(principal, arguments, now_ms)
        for meter in self.priced:
            objection = meter.objection(Asked(principal, arguments, self.facts), now_ms)
            findings.append(Finding(f"quota/{meter.quota}", "meter", not objection, bool(objection), objection))
        return tuple(findings)

    def shape(self, answer: Answer) -> Answer:
        """The answer as it may be handed on: selected, checked, within its cap. Raises AnswerWithheld."""
        return self.answer_shape.inspect(answer)

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
class PartsListed:
    """Entries of resources/list, resources/templates/list and prompts/list."""

    resources: tuple[Mapping[str, Any], ...] = ()
    templates: tuple[Mapping[str, Any], ...] = ()
    prompts: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> Self:
        found: dict[Family, list[Mapping[str, Any]]] = {"resources": [], "templates": [], "prompts": []}
        for entry in entries:
            found[cast("Part", entry.tool.action).family].append(entry.tool.listed)
        return cls(**{family: tuple(listed) for family, listed in found.items()})


@dataclass(frozen=True, slots=True)
class Catalog:
    """version: digest over all that can make a difference; equal for equal manifests and offers in any process.

    entries: tools by name, in the order of the names. parts: the same for resources, templates and prompts, whose names
    are `resource:URI` and `prompt:NAME`. notes: what was left out or renamed, and why, for operators.
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
    parts: Mapping[str, Entry] = field(default_factory=dict[str, Entry])
    _templates: tuple[tuple[UriTemplate, Entry], ...] = field(init=False, compare=False, repr=False)
    _listed_parts: dict[tuple[Any, ...], PartsListed] = field(
        default_factory=dict[tuple[Any, ...], "PartsListed"], compare=False, repr=False
    )
    _listings: dict[tuple[Any, ...], tuple[Entry, ...]] = field(
        default_factory=dict[tuple[Any, ...], "tuple[Entry, ...]"], compare=False, repr=False
    )

    def __post_init__(self) -> None:
        templates = (entry for entry in self.parts.values() if cast("Part", entry.tool.action).family == "templates")
        compiled = tuple((UriTemplate.compile(entry.tool.name.removeprefix(RESOURCE)), entry) for entry in templates)
        object.__setattr__(self, "_templates", compiled)

    @classmethod
    def empty(cls) -> Catalog:
        return cls(version="empty", entries={}, backends={})

    def resolve(self, name: str, principal: Principal) -> Entry | None:
        """The tool of this name if it exists for this caller; None for unknown and invisible alike."""
        entry = self.entries.get(name)
        return entry if entry is None or entry.is_open or entry.is_visible(principal) else None

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

    # ----------------------------------------------------------------------------------------------------------- parts

    def named(self, name: str) -> Entry | None:
        """The tool or part of this name, whoever asks."""
        return self.entries.get(name) or self.parts.get(name)

    def everything(self) -> Iterator[Entry]:
        yield from self.entries.values()
        yield from self.parts.values()

    def resolve_part(self, name: str, principal: Principal, *, expanded: bool) -> Entry | None:
        """The part of this name if it exists for this caller; None for unknown and invisible alike.

        expanded: `resource:URI` means the resource of that URI or, where there is none, a template that stands for it;
        otherwise the resource or the template of that very text (a completion's).
        """
        entry = self.parts.get(name)
        if not expanded or not name.startswith(RESOURCE):
            return entry if entry is not None and entry.is_visible(principal) else None
        if entry is not None and cast("Part", entry.tool.action).family == "resources":
            return entry if entry.is_visible(principal) else None
        uri = name.removeprefix(RESOURCE)
        for template, behind in self._templates:
            if template.matches(uri) and not behind.drops(uri) and behind.is_visible(principal):
                return behind
        return None

    def usable_parts(self, principal: Principal) -> Iterator[Entry]:
        return (entry for entry in self.parts.values() if entry.is_listed(principal))

    def listed_parts(self, principal: Principal) -> PartsListed:
        """What this caller may read and get: entries as servers list them, in stable order. Kept as `listing` is."""
        key = tuple(getattr(principal, part) for part in self._deciding)
        listed = self._listed_parts.get(key)
        if listed is None:
            listed = PartsListed.of(self.usable_parts(principal))
            while len(self._listed_parts) >= KEPT_LISTINGS:
                self._listed_parts.pop(next(iter(self._listed_parts)), None)
            self._listed_parts[key] = listed
        return listed


class Shelf:
    """Where the current catalog stands. Whoever began with one keeps it; the next call sees the new one."""

    def __init__(self, catalog: Catalog) -> None:
        self.current = catalog
        self._subscribers: dict[int, Callable[[], None]] = {}
        self._tickets = 0

    def swap(self, catalog: Catalog) -> None:
        """Put a new catalog in place and tell the subscribers, if it is a different one."""
        changed = catalog.version != self.current.version
        self.current = catalog
        if changed:
            for subscriber in tuple(self._subscribers.values()):
                subscriber()

    def subscribe(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call back after each change, from the task that swapped; must be quick and not raise. Returns the way out."""
        self._tickets += 1
        ticket = self._tickets
        self._subscribers[ticket] = callback
        return lambda: self._subscribers.pop(ticket, None) and None
