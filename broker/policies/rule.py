"""Rules: may this call be made, must a person be asked. Forbid beats permit, and what cannot be judged is forbidden.

All rules that select a tool are asked. Any deny, or any rule that cannot be evaluated, denies; else any hold holds;
else any allow allows; else the default of the tool's effect: reading is allowed, writing and destroying only where the
tool names a scope (which the caller then holds). Why an error denies even in an allow rule: a rule that breaks on some
value would otherwise be a way round it.

A rule compiles once per policy; `Rules` is one tool's share, with everything that does not depend on the call made
beforehand. `decide` is on the path of every call: no allocation when no rule selects the tool.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from broker.data import dataclass, field
from broker.model.hold import HoldTerms
from broker.model.principal import Principal
from broker.model.shared import one
from broker.model.tool import ToolEffect
from broker.policies import hold, scope
from broker.policies.expression import Expression, Facts, facts
from broker.policies.hours import Hours
from broker.policies.spec import Name, PolicyKind, Selection

RuleEffect = Literal["allow", "deny", "hold"]


class RuleSpec(hold.HoldSpec):
    id: Name = Field(description="The rule's name; records and refusals say policy/id.")
    when: str = Field(default="true", min_length=1, description="A CEL condition; absent: always.")
    effect: RuleEffect = Field(description="allow, deny or hold.")

    @field_validator("when", mode="before")
    @classmethod
    def _written_bare(cls, written: object) -> object:
        """`when: true` is a boolean in YAML and means what it says."""
        return str(written).lower() if isinstance(written, bool) else written

    @field_validator("when")
    @classmethod
    def _compiles(cls, source: str) -> str:
        Expression.compile(source)
        return source

    @model_validator(mode="after")
    def _only_holds_have_reviewers(self) -> Self:
        of_holds = [
            name
            for name, field in hold.HoldSpec.model_fields.items()
            if name != "reason" and getattr(self, name) != field.default
        ]
        if self.effect != "hold" and of_holds:
            raise ValueError(f"`{of_holds[0]}` belongs to rules that hold; this one is effect: {self.effect}")
        return self


class PolicySpec(Selection):
    kind: Literal["policy"] = "policy"
    name: Name = Field(description="Name of the policy.")
    description: str = Field(default="", description="For people.")
    rules: list[RuleSpec] = Field(min_length=1, max_length=1000, description="The rules; order does not decide.")

    @model_validator(mode="after")
    def _ids_are_unique(self) -> Self:
        seen = set[str]()
        for rule in self.rules:
            if rule.id.casefold() in seen:
                raise ValueError(f"two rules are called {rule.id!r}; give each its own id")
            seen.add(rule.id.casefold())
        return self


@dataclass(frozen=True, slots=True)
class Verdict:
    """A hold has terms; a denial for lack of scopes names them in `missing`. A denial's reason is a sentence."""

    outcome: Literal["allow", "deny", "hold"]
    rule: str = "default"  # "policy/rule", "scope", "quota/name" or "default"
    reason: str = ""
    terms: HoldTerms | None = None
    missing: tuple[str, ...] = ()
    hours: Hours | None = None  # of a hold: when its reviewers work

    def begun(self, now_ms: int) -> HoldTerms | None:
        """The terms of the hold that begins now; None when this is none."""
        return hold.begun(self.terms, self.hours, now_ms) if self.terms is not None else None


@dataclass(frozen=True, slots=True)
class Finding:
    """One step of an explanation, in the order of the sentence. met: whether its condition holds; None: it cannot be
    evaluated. decides: whether it is this step that decides.
    """

    rule: str
    effect: Literal["show", "scope", "allow", "deny", "hold", "meter"]
    met: bool | None
    decides: bool
    reason: str = ""
    source: str = ""  # the condition as written
    place: str = ""  # file:line


@dataclass(frozen=True, slots=True)
class Rule:
    """One compiled rule. `early`: it can be judged without the call; a tool that is forbidden anyway is not shown."""

    name: str  # policy/id
    effect: RuleEffect
    when: Expression
    verdict: Verdict  # when its condition is met
    broken: Verdict  # when it cannot be evaluated
    place: str = ""

    @property
    def early(self) -> bool:
        return not self.when.references.needs_call


def compile_rule(policy: str, spec: RuleSpec, *, default_expires_s: float, place: str = "") -> Rule:
    """Raises ValueError for a condition that does not compile."""
    name = f"{policy}/{spec.id}"
    reason = _sentence(spec.reason) or ("It allows no such call." if spec.effect == "deny" else "")
    terms = hold.terms(spec, default_expires_s) if spec.effect == "hold" else None
    hours = spec.hours.compiled if spec.hours else None
    return Rule(
        name=name,
        effect=spec.effect,
        when=Expression.compile(spec.when),
        verdict=Verdict(spec.effect, name, terms.reason if terms else reason, terms, (), hours),
        broken=Verdict("deny", name, "Its condition cannot be evaluated for this call (a missing or mistyped value)."),
        place=place,
    )


def compile_policy(
    spec: PolicySpec,
    default_expires_s: float = hold.DEFAULT_EXPIRES_S,
    place: Callable[[int], str] = lambda _index: "",
) -> tuple[Rule, ...]:
    """place: where the rule with this index stands, as file:line."""
    return tuple(
        compile_rule(spec.name, rule, default_expires_s=default_expires_s, place=place(index))
        for index, rule in enumerate(spec.rules)
    )


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules of one tool, its scopes and its default. Made by `bind`."""

    scopes: frozenset[str]
    rules: tuple[Rule, ...]
    default: Verdict
    _early: tuple[Rule, ...]
    _variables: frozenset[str]
    _early_variables: frozenset[str]
    _tool: Mapping[str, str] = field(default_factory=dict[str, str])

    def decide(self, caller: Principal, arguments: Mapping[str, Any], now_ms: int) -> Verdict:
        """Scopes first, then every rule. Never raises."""
        if not self.scopes <= caller.scopes:
            return Verdict("deny", "scope", "", None, scope.missing(self.scopes, caller.scopes))
        if not self.rules:
            return self.default
        held: Verdict | None = None
        allowed: Verdict | None = None
        known: Facts | None = None
        for rule in self.rules:
            met = rule.when.plainly(arguments)
            if met is None:
                known = known or facts(self._variables, self._tool, caller, arguments, now_ms)
                met = rule.when.met(known)
            if met is None:
                return rule.broken
            if met:
                if rule.effect == "deny":
                    return rule.verdict
                if rule.effect == "hold":
                    held = _stricter(held, rule.verdict)
                else:
                    allowed = allowed or rule.verdict
        return held or allowed or self.default

    def forbids(self, caller: Principal) -> bool:
        """Whether a rule denies every call of this caller, whatever its arguments. Such a tool is invisible."""
        if not self._early:
            return False
        known = self._early_facts(caller)
        return any(met is None or (met and rule.effect == "deny") for rule, met in self._early_met(known))

    def is_hopeless(self, caller: Principal) -> bool:
        """Whether no call of this caller can be allowed or held: nothing permits it. Such a tool is not listed."""
        if self.default.outcome != "deny":
            return False
        if any(not rule.early and rule.effect != "deny" for rule in self.rules):
            return False
        if not self._early:
            return True
        known = self._early_facts(caller)
        return not any(met and rule.effect != "deny" for rule, met in self._early_met(known))

    @property
    def hides_from_some(self) -> bool:
        """Whether `hides` depends on the caller; it hides from nobody otherwise."""
        return bool(self._early)

    def hides(self, caller: Principal) -> bool:
        """Whether the tool does not exist for this caller: its every call is denied, or rules permit it to others only.

        A tool that nothing permits to anybody is no secret but a mistake, and its refusal says so.
        """
        if not self._early:
            return False  # what depends on the call hides nothing
        permitted = any(rule.effect != "deny" for rule in self.rules)
        return self.forbids(caller) or (permitted and self.is_hopeless(caller))

    @property
    def may_hold(self) -> bool:
        return any(rule.effect == "hold" for rule in self.rules)

    @property
    def early_variables(self) -> frozenset[str]:
        """Which variables decide on `forbids` and `is_hopeless`, for caches."""
        return self._early_variables

    def explain(self, caller: Principal, arguments: Mapping[str, Any], now_ms: int) -> tuple[Finding, ...]:
        """Every rule with its result; exactly one finding decides."""
        verdict = self.decide(caller, arguments, now_ms)
        findings: list[Finding] = []
        if self.scopes:
            lacking = scope.missing(self.scopes, caller.scopes)
            reason = f"missing: {' '.join(lacking)}" if lacking else f"held: {' '.join(sorted(self.scopes))}"
            findings.append(Finding("scope", "scope", not lacking, bool(verdict.missing), reason))
        known = facts(self._variables, self._tool, caller, arguments, now_ms)
        for rule in self.rules:
            met = rule.when.met(known)
            told = rule.broken.reason if met is None else rule.verdict.reason
            decides = verdict is (rule.broken if met is None else rule.verdict)
            findings.append(Finding(rule.name, rule.effect, met, decides, told, rule.when.source, rule.place))
        if verdict is self.default:
            effect = "allow" if verdict.outcome == "allow" else "deny"
            findings.append(Finding("default", effect, True, True, verdict.reason))
        return tuple(findings)

    def _early_facts(self, caller: Principal) -> Facts:
        return facts(self._early_variables, self._tool, caller, {}, 0)

    def _early_met(self, known: Facts) -> list[tuple[Rule, bool | None]]:
        return [(rule, rule.when.met(known)) for rule in self._early]


def bind(rules: Sequence[Rule], *, scopes: frozenset[str], effect: ToolEffect, tool: Mapping[str, str]) -> Rules:
    """One tool's share. tool: the value of each `tool.*` variable."""
    early = tuple(rule for rule in rules if rule.early)
    return Rules(
        scopes=scopes,
        rules=tuple(rules),
        default=_default(scopes, effect),
        _early=early,
        _variables=_variables(rules),
        _early_variables=_variables(early),
        _tool=tool,
    )


def _stricter(held: Verdict | None, other: Verdict) -> Verdict:
    """Of several rules that hold, the one that asks most persons, and one that its caller may not confirm before one
    that it may; the order of rules does not decide otherwise either, so that a reviewer can be told one rule."""
    if held is None or held.terms is None or other.terms is None:
        return held or other
    return other if _asks(other.terms) > _asks(held.terms) else held


def _asks(terms: HoldTerms) -> tuple[int, bool]:
    return terms.quorum, not terms.confirm


ALLOWED = Verdict("allow")
UNPERMITTED = Verdict(
    "deny", reason="A tool that writes or destroys needs a scope or a rule that allows it; it has none."
)


def _default(scopes: frozenset[str], effect: ToolEffect) -> Verdict:
    return ALLOWED if effect == "read" or scopes else UNPERMITTED


def _variables(rules: Sequence[Rule]) -> frozenset[str]:
    return one(frozenset(name for rule in rules for name in rule.when.references.variables))


def _sentence(words: str) -> str:
    words = words.strip()
    return words if not words or words[-1] in ".!?" else f"{words}."


KIND = PolicyKind(
    "rule",
    "authorise",
    PolicySpec,
    compile_policy,
    {
        "name": "refunds",
        "tools": ["orders_refund"],
        "rules": [
            {"id": "small", "when": "args.amount <= 50", "effect": "allow"},
            {"id": "big", "when": "args.amount > 50", "effect": "hold", "reason": "refunds above 50 need a person"},
        ],
    },
)
