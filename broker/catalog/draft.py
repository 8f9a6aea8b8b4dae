"""A tool on its way into the catalog: judged by itself, not yet named for good and without its policies.

Two makers: `tools` from `kind: tool` documents, `imports` from a downstream server's offer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from broker.catalog.catalog import BackendPlan, Entry
from broker.catalog.manifest import Declared
from broker.catalog.schema import Checker
from broker.data import dataclass, field
from broker.document import Loc, did_you_mean
from broker.model.canonical import digest
from broker.model.shared import one
from broker.model.task import Long
from broker.model.tool import RecordMode, Tool, ToolEffect
from broker.policies import rule
from broker.policies.answer import AnswerSpec, Shape
from broker.policies.expression import References
from broker.policies.idempotency import Derivation
from broker.policies.preview import PreviewPlan, PreviewSpec
from broker.policies.quota import Meter
from broker.policies.record import Redaction, secret_paths
from broker.policies.toolset import Audience

DEFAULT_TIMEOUT_S = 30.0

_COMPOSING = ("$ref", "allOf", "anyOf", "oneOf", "if", "patternProperties", "dependentSchemas")


@dataclass(slots=True)
class Draft:
    """declared and loc: where it is written. own: from a `tool` document, so that its faults are the manifest's; an
    imported tool's faults may be its server's and must not take the catalog down.
    """

    name: str
    declared: Declared[Any]
    loc: Loc
    own: bool
    plan: BackendPlan
    effect: ToolEffect
    scopes: frozenset[str]
    owner: str
    version: str
    listed: dict[str, Any]  # without name
    input_schema: Mapping[str, Any]
    output_schema: Mapping[str, Any] | None
    checker: Checker
    output: Checker | None
    answer: AnswerSpec
    action: object
    action_said: Any  # what the action was compiled from, for the definition's digest
    inject: tuple[tuple[str, str], ...]
    idempotent: bool
    timeout_s: float
    on_collect: bool = False
    long: Long | None = None
    natural: str = ""  # an imported tool's name as its server gives it
    renamed: bool = False  # by the manifest, on purpose
    dropped: tuple[str, ...] = ()  # of a resource template, see Entry
    derivation: Derivation | None = None  # of idempotency keys
    preview_said: PreviewSpec | None = None
    preview: PreviewPlan | None = None  # once all drafts are known
    rules: list[rule.Rule] = field(default_factory=list[rule.Rule])
    meters: list[Meter] = field(default_factory=list[Meter])
    audiences: list[Audience] = field(default_factory=list[Audience])
    governed: list[str] = field(default_factory=list[str])  # digests of the documents that govern it

    @property
    def record(self) -> RecordMode:
        return self.answer.record.default

    @property
    def facts(self) -> dict[str, str]:
        """Its `tool.*` values."""
        return {
            "tool.name": self.name,
            "tool.version": self.version,
            "tool.owner": self.owner,
            "tool.effect": self.effect,
            "tool.backend": self.plan.name,
        }

    def entry(self, *, everybody: bool, defaults: Sequence[Any] = ()) -> Entry:
        """everybody: there are no toolsets, so that all see all. defaults: what the settings say of holds."""
        tool = self._tool()
        facts = self.facts
        governing = [self.governed, self.timeout_s, self.on_collect, _limits(self.answer), everybody, *defaults]
        return Entry(
            tool=tool,
            rules=rule.bind(self.rules, scopes=self.scopes, effect=self.effect, tool=facts),
            checker=self.checker,
            redaction=Redaction.compile(
                self.answer.record, [*_split(self.answer.redact), *secret_paths(self.input_schema)]
            ),
            meters=tuple(self.meters),
            priced=tuple(meter for meter in self.meters if meter.amount is not None),
            answer_shape=Shape.compile(self.answer, self.output.faults if self.output is not None else None),
            output=self.output,
            audiences=None if everybody else tuple(self.audiences),
            facts=facts,
            policy=one(digest(governing)),
            dropped=self.dropped,
            derivation=self.derivation,
            preview=self.preview,
        )

    def _tool(self) -> Tool:
        listed = {"name": self.name, **self.listed}
        promised = [listed, self.version, self.effect, sorted(self.scopes), self.plan.name, self.plan.digest]
        return Tool(
            name=self.name,
            version=self.version,
            owner=self.owner,
            title=str(listed.get("title", "")),
            description=str(listed.get("description", "")),
            effect=self.effect,
            scopes=self.scopes,
            backend=self.plan.name,
            input_schema=self.input_schema,
            output_schema=self.output_schema,
            listed=listed,
            definition=digest([*promised, self.action_said, self.inject]),
            action=self.action,
            inject=self.inject,
            idempotent=self.idempotent or self.effect == "read",
            on_collect=self.on_collect,
            long=self.long,
            timeout_s=self.timeout_s,
            result_bytes=self.answer.caps.result_bytes,
            record=self.record,
            source=one(self.declared.place(self.loc)),
        )

    def misreferences(self, references: References, *, has: str = "has(args.{0}) && …") -> Iterator[str]:
        """What is wrong with the arguments an expression names, each as a sentence: unknown, filled in by the broker,
        or optional and not asked for first (a missing value cannot be evaluated, and that denies).
        """
        properties = properties_of(self.input_schema)
        required = set(cast("list[str]", self.input_schema.get("required") or []))
        injected = dict(self.inject)
        for name in sorted(references.arguments | references.guarded):
            if name in injected:
                yield f"args.{name} is filled in by the broker and not among args; use {injected[name]}"
            elif name not in properties and self.is_closed:
                meant = did_you_mean(name, properties).replace("'", "") if properties else "; it takes no arguments"
                yield f"args.{name} is not an argument{meant}"
            elif name not in required and name not in references.guarded:
                yield f"args.{name} is optional, and a missing value denies; write {has.format(name)}"

    @property
    def is_closed(self) -> bool:
        """Whether the schema's own properties are all arguments there can be."""
        schema = self.input_schema
        if any(word in schema for word in _COMPOSING):
            return False
        return schema.get("additionalProperties") is False or schema.get("unevaluatedProperties") is False


def _limits(answer: AnswerSpec) -> Any:
    return answer.model_dump(mode="json", include={"caps", "record", "redact", "result", "usage", "output"})


def properties_of(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    properties: Any = schema.get("properties")
    return cast("dict[str, Any]", properties) if isinstance(properties, dict) else {}


def closed(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema with what it does not name refused, unless it says otherwise itself: a forgotten
    `additionalProperties` must not let arguments through that nobody described."""
    if "additionalProperties" in schema or "unevaluatedProperties" in schema:
        return dict(schema)
    word = "unevaluatedProperties" if any(word in schema for word in _COMPOSING) else "additionalProperties"
    return {**schema, word: False}


def without(schema: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The schema as an agent may see it: without the properties the broker fills in."""
    properties = {name: inner for name, inner in properties_of(schema).items() if name not in names}
    stripped: dict[str, Any] = {**schema, "properties": properties}
    if "required" in schema:
        stripped["required"] = [name for name in cast("list[str]", schema["required"]) if name not in names]
    return stripped


def hints(effect: ToolEffect, *, idempotent: bool) -> dict[str, bool]:
    """The annotations that follow from the effect."""
    return {
        "readOnlyHint": effect == "read",
        "destructiveHint": effect == "destroy",
        "idempotentHint": idempotent or effect == "read",
    }


def backend_timeout_s(plan: BackendPlan) -> float:
    """The backend's total time per call, where its kind has one."""
    return float(getattr(plan.spec, "timeout", DEFAULT_TIMEOUT_S))


def _split(paths: Sequence[str]) -> list[tuple[str, ...]]:
    return [tuple(path.split(".")) for path in paths]
