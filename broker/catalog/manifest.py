"""The shape of each kind of document in `tool_manifests/`, and what a folder of them holds once read.

The blocks named after backend kinds (`http:`, `mcp:`, `static:`) come from the table of kinds that is passed in, so a
new kind of backend brings its own keys. Policies, quotas and toolsets have their shapes in `policies/`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Generic, Literal, Self, TypeVar, cast

from pydantic import AfterValidator, BaseModel, Field, create_model, model_validator

from broker.data import dataclass, field
from broker.document import Document, Loc, section
from broker.errors import Problem
from broker.model.task import Long
from broker.model.tool import INJECTABLE, ToolEffect
from broker.policies.answer import AnswerSpec, CapsSpec, Usage
from broker.policies.idempotency import IdempotencySpec
from broker.policies.preview import PreviewSpec
from broker.policies.quota import QuotaSpec
from broker.policies.record import RecordSpec
from broker.policies.rule import PolicySpec
from broker.policies.scope import Scope, ScopeSpec
from broker.policies.spec import RESERVED_PREFIX, Name, Seconds, Spec
from broker.policies.toolset import ToolsetSpec
from broker.ports import BackendKind

Run = Literal["on_approval", "on_collect"]
Injected = Literal["caller.agent", "caller.user", "caller.tenant", "call.id"]
assert set(INJECTABLE) == set(Injected.__args__)  # noqa: S101 – two spellings of one list  # type: ignore[attr-defined]

DERIVED_HINTS = frozenset({"readOnlyHint", "destructiveHint", "idempotentHint"})

_FOREIGN = re.compile(r"[^\s\x00-\x1f\x7f]{1,128}")
_FOREIGN_PART = re.compile(r"[^\x00-\x1f\x7f]{1,512}")


def _not_reserved(name: str) -> str:
    if name.casefold().startswith(RESERVED_PREFIX):
        raise ValueError(f"names that begin with {RESERVED_PREFIX} are the broker's own; choose another")
    return name


def _foreign(text: str) -> str:
    if not _FOREIGN.fullmatch(text):
        raise ValueError("expected a tool's name as its server gives it, or a shell pattern such as git_*")
    return text


def _foreign_part(text: str) -> str:
    if not _FOREIGN_PART.fullmatch(text):
        raise ValueError("expected a URI or a name as its server gives it, or a shell pattern such as file:///docs/*")
    return text


def _not_derived(annotations: dict[str, Any]) -> dict[str, Any]:
    if derived := sorted(DERIVED_HINTS & annotations.keys()):
        raise ValueError(f"{', '.join(derived)} follow from `effect` and `idempotent`; remove them here")
    return annotations


ToolName = Annotated[Name, AfterValidator(_not_reserved)]
Foreign = Annotated[str, AfterValidator(_foreign)]
ForeignPart = Annotated[str, AfterValidator(_foreign_part)]
Inject = dict[Annotated[str, Field(min_length=1, max_length=128)], Injected]


class TaskSpec(Spec):
    """For a tool that may take long: its calls go on as tasks, for clients that take them (the tasks extension)."""

    after: Seconds = Field(default=2.0, ge=0, description="A call that takes longer than this goes on as a task.")
    required: bool = Field(default=False, description="Clients that take no tasks are refused, not kept waiting.")

    @property
    def compiled(self) -> Long:
        return Long(self.after, self.required)


class BackendBase(Spec):
    kind: Literal["backend"] = "backend"
    name: ToolName = Field(description="Name of the backend; tools refer to it.")
    description: str = Field(default="", description="For people.")


class ToolBase(ScopeSpec, AnswerSpec):
    kind: Literal["tool"] = "tool"
    name: ToolName = Field(description="Name of the tool, as agents call it.")
    version: str = Field(default="1", min_length=1, max_length=64, description="Version, as records show it.")
    owner: str = Field(default="", max_length=128, description="The team that answers for it.")
    title: str = Field(default="", max_length=256, description="Title for people.")
    description: str = Field(default="", max_length=16_384, description="What it does, in words for the model.")
    effect: ToolEffect = Field(description="read, write or destroy: decides the default policy and the hints.")
    idempotent: bool = Field(default=False, description="Calling it twice does what calling it once does.")
    run: Run = Field(
        default="on_approval",
        description="When a held call runs: on_approval, or on_collect, for the credential its caller shows then.",
    )
    task: TaskSpec | None = Field(default=None, description="It may take long; `{}` takes what is usual.")
    backend: str = Field(description="The backend that answers.")
    input: dict[str, Any] | None = Field(
        default=None,
        description="JSON Schema 2020-12 of the arguments, or {file: name.schema.json}; absent: no arguments. "
        "Unless it says otherwise, arguments it does not name are refused.",
    )
    inject: Inject = Field(
        default={}, description="Arguments filled in from the caller's identity; agents never see them."
    )
    idempotency: IdempotencySpec | None = Field(
        default=None, description="Arguments that name the act, so that a call sent twice is done once."
    )
    preview: PreviewSpec | None = Field(
        default=None, description="A safe call made before a held call is shown: a dry run, a quote, a difference."
    )
    annotations: Annotated[dict[str, Any], AfterValidator(_not_derived)] = Field(
        default={}, description="Further MCP annotations."
    )


class OverrideSpec(Spec):
    """What is different for one imported tool; absent keys stay as the server or the import says."""

    rename: ToolName | None = Field(default=None, description="Its name in the catalog.")
    title: str | None = Field(default=None, max_length=256, description="Its title.")
    description: str | None = Field(default=None, max_length=16_384, description="Its description for the model.")
    effect: ToolEffect | None = Field(default=None, description="Its effect.")
    idempotent: bool | None = Field(default=None, description="Whether it is idempotent.")
    run: Run = Field(default="on_approval", description="When a held call runs: on_approval or on_collect.")
    task: TaskSpec | None = Field(default=None, description="It may take long; `{}` takes what is usual.")
    scopes: list[Scope] | None = Field(default=None, description="Its scopes, instead of the import's.")
    inject: Inject = Field(default={}, description="Arguments filled in from the caller's identity.")
    caps: CapsSpec = section(CapsSpec, "Time and size limits.")
    record: RecordSpec = section(RecordSpec, "What records keep of the arguments.")
    redact: list[str] = Field(default=[], description="Further argument paths that records never keep.")
    idempotency: IdempotencySpec | None = Field(
        default=None, description="Arguments that name the act, so that a call sent twice is done once."
    )
    preview: PreviewSpec | None = Field(
        default=None, description="A safe call made before a held call is shown: a dry run, a quote, a difference."
    )
    usage: Usage = Field(default={}, description="What a call has used: JMESPath over its structured content.")
    output: dict[str, Any] | None = Field(default=None, description="Output schema, instead of the server's.")


class PartsSpec(Spec):
    """What an import takes of a server's resources (with their templates) or of its prompts."""

    take: list[ForeignPart] = Field(
        min_length=1, description="URIs, URI templates or names, or shell patterns of them."
    )
    drop: list[ForeignPart] = Field(default=[], description="What to leave out of what was taken, expanded URIs too.")
    scopes: list[Scope] | None = Field(default=None, description="Their scopes, instead of the import's.")
    caps: CapsSpec = section(CapsSpec, "Time and size limits of one read.")
    record: RecordSpec = section(RecordSpec, "What records keep of the arguments.")
    redact: list[str] = Field(default=[], description="Arguments that records never keep.")


class ImportSpec(ScopeSpec):
    kind: Literal["import"] = "import"
    name: Name = Field(description="Name of this document.")
    description: str = Field(default="", description="For people.")
    backend: str = Field(description="The backend whose tools are taken.")
    take: list[Foreign] = Field(default=[], description="Exact names or shell patterns of its tools.")
    drop: list[Foreign] = Field(default=[], description="Names or patterns to leave out of what was taken.")
    effect: ToolEffect = Field(description="Of all taken tools; what a server says of itself is not trusted.")
    owner: str = Field(default="", max_length=128, description="The team that answers for them.")
    version: str = Field(default="1", min_length=1, max_length=64, description="Version, as records show it.")
    tools: dict[Foreign, OverrideSpec] = Field(default={}, description="What is different for single tools.")
    resources: PartsSpec | None = Field(
        default=None, description="Its resources and resource templates that are taken; absent: none."
    )
    prompts: PartsSpec | None = Field(default=None, description="Its prompts that are taken; absent: none.")

    @model_validator(mode="after")
    def _takes_something(self) -> Self:
        if not self.take and self.resources is None and self.prompts is None:
            raise ValueError("an import takes something: give `take` (tools), `resources` or `prompts`")
        return self


S = TypeVar("S", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Declared(Generic[S]):
    """A document that has its shape, with its place. files: documents that stand for parts of it ({file: …})."""

    spec: S
    document: Document
    files: Mapping[tuple[str | int, ...], Document] = field(default_factory=dict[tuple[str | int, ...], Document])

    @property
    def source(self) -> str:
        return self.document.source

    def problem(self, loc: Loc, message: str, *, at_key: bool = False) -> Problem:
        for start, document in self.files.items():
            if tuple(loc[: len(start)]) == start:
                return document.problem(loc[len(start) :], message, at_key=at_key)
        return self.document.problem(loc, message, at_key=at_key)

    def place(self, loc: Loc) -> str:
        """`file:line` of a part."""
        problem = self.problem(loc, "")
        return f"{problem.file}:{problem.line}"


@dataclass(frozen=True, slots=True)
class Manifests:
    """Everything a folder says, each document valid in itself; whether they fit together is the compiler's question.

    broken: (kind, name) of documents that are not valid, so that what refers to them is not reported as well.
    """

    backends: tuple[Declared[Any], ...] = ()
    tools: tuple[Declared[Any], ...] = ()
    imports: tuple[Declared[ImportSpec], ...] = ()
    policies: tuple[Declared[PolicySpec], ...] = ()
    quotas: tuple[Declared[QuotaSpec], ...] = ()
    toolsets: tuple[Declared[ToolsetSpec], ...] = ()
    files: int = 0
    broken: frozenset[tuple[str, str]] = frozenset()


def document_models(kinds: Mapping[str, BackendKind]) -> Mapping[str, type[BaseModel]]:
    """kind -> model of its documents, with the blocks of these backend kinds."""
    return {
        "backend": _with_blocks("BackendDocument", BackendBase, {name: kind.Spec for name, kind in kinds.items()}),
        "tool": _with_blocks(
            "ToolDocument", ToolBase, {name: kind.Action for name, kind in kinds.items() if kind.Action is not None}
        ),
        "import": ImportSpec,
        "policy": PolicySpec,
        "quota": QuotaSpec,
        "toolset": ToolsetSpec,
    }


def _with_blocks(name: str, base: type[Spec], blocks: Mapping[str, type[BaseModel]]) -> type[BaseModel]:
    return _created(name, base, tuple(blocks.items()))


@cache
def _created(name: str, base: type[Spec], blocks: tuple[tuple[str, type[BaseModel]], ...]) -> type[BaseModel]:
    """Making a model costs milliseconds; a process asks for one or two sets of kinds."""
    fields: dict[str, Any] = {
        kind: (model | None, Field(default=None, description=f"The part of backends of kind {kind}."))
        for kind, model in blocks
    }
    return create_model(name, __base__=base, **fields)


def blocks_of(spec: BaseModel, kinds: Mapping[str, BackendKind]) -> dict[str, Any]:
    """The blocks this document has, by backend kind."""
    return {kind: block for kind in kinds if (block := getattr(spec, kind, None)) is not None}


def json_schema(kinds: Mapping[str, BackendKind]) -> dict[str, Any]:
    """JSON Schema 2020-12 of one document, for editors."""
    definitions: dict[str, Any] = {}
    branches: list[Any] = []
    for kind, model in document_models(kinds).items():
        schema = model.model_json_schema(by_alias=True, ref_template="#/$defs/{model}")
        definitions.update(cast("dict[str, Any]", schema.pop("$defs", {})))
        schema["required"] = ["kind", *(word for word in schema.get("required", []) if word != "kind")]
        schema["properties"]["kind"] = {"const": kind}
        definitions[f"{kind} document"] = schema
        branches.append(
            {
                "if": {"properties": {"kind": {"const": kind}}, "required": ["kind"]},
                "then": {"$ref": f"#/$defs/{kind}%20document"},
            }
        )
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A document of a broker's manifest",
        "type": "object",
        "properties": {"kind": {"enum": list(document_models(kinds))}},
        "required": ["kind"],
        "allOf": branches,
        "$defs": definitions,
    }
