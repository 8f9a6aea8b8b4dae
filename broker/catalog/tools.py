"""`kind: tool` documents into drafts: each judged against its backend, its schemas and itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from broker.catalog.catalog import BackendPlan
from broker.catalog.draft import Draft, backend_timeout_s, closed, hints, properties_of
from broker.catalog.manifest import Declared, blocks_of
from broker.catalog.schema import NOTHING, Checker, SchemaError
from broker.document import Loc, did_you_mean
from broker.errors import Problem
from broker.model.shared import Pool, one
from broker.policies.idempotency import Derivation
from broker.ports import BackendKind

# Where one of these stands, what names an object has is not said in one place.
_OPEN = ("$ref", "$dynamicRef", "allOf", "anyOf", "oneOf", "if", "patternProperties", "dependentSchemas")


def tool_draft(
    declared: Declared[Any], plan: BackendPlan, kinds: Mapping[str, BackendKind], pool: Pool, problems: list[Problem]
) -> Draft | None:
    """The draft of this document; None when something is wrong with it, which is then among the problems. pool: of what
    its schemas say."""
    spec, before = declared.spec, len(problems)
    schema, checker = _input(declared, pool, problems)
    output = _output(declared, problems)
    _inside(declared, schema, problems)
    timeout_s = _timeout(declared, plan, problems)
    action = _action(declared, plan, kinds, schema, problems) if schema is not None else None
    if len(problems) > before or schema is None or checker is None:
        return None
    listed: dict[str, Any] = {"title": spec.title} if spec.title else {}
    listed |= {"description": spec.description, "inputSchema": schema}
    if spec.output is not None:
        listed["outputSchema"] = spec.output
    said = spec.model_dump(mode="json", include={plan.kind, "result"})
    derived = hints(spec.effect, idempotent=spec.idempotent)
    listed["annotations"] = {"openWorldHint": plan.kind != "static", **spec.annotations, **derived}
    return Draft(
        name=spec.name,
        declared=declared,
        loc=(),
        own=True,
        plan=plan,
        effect=spec.effect,
        scopes=one(frozenset(spec.scopes)),
        owner=spec.owner,
        version=spec.version,
        listed=listed,
        input_schema=schema,
        output_schema=spec.output,
        checker=checker,
        output=output,
        answer=spec,
        action=action,
        action_said=[said[plan.kind], said["result"]],
        inject=tuple(sorted(spec.inject.items())),
        idempotent=spec.idempotent,
        timeout_s=timeout_s,
        on_collect=spec.run == "on_collect",
        long=None if spec.task is None else spec.task.compiled,
        derivation=Derivation.compile(spec.idempotency),
        preview_said=spec.preview,
    )


def _input(
    declared: Declared[Any], pool: Pool, problems: list[Problem]
) -> tuple[Mapping[str, Any] | None, Checker | None]:
    spec = declared.spec
    schema = NOTHING if spec.input is None else spec.input
    if schema.get("type") != "object":
        problems.append(declared.problem(("input",), "input: arguments are an object; write `type: object`"))
        return None, None
    for name in spec.inject:
        if name in properties_of(schema):
            message = f"inject.{name}: `input` has it too; take it out there, agents must not see it"
            problems.append(declared.problem(("inject", name), message, at_key=True))
    schema: Mapping[str, Any] = pool.shared(closed(schema))
    checker = _compiled(declared, "input", schema, problems, hidden=list(spec.inject))
    return schema if checker is None else checker.schema, checker


def _output(declared: Declared[Any], problems: list[Problem]) -> Checker | None:
    schema = declared.spec.output
    if schema is None:
        return None
    if schema.get("type") != "object":
        problems.append(declared.problem(("output",), "output: structured content is an object; write `type: object`"))
        return None
    return _compiled(declared, "output", schema, problems)


def _compiled(
    declared: Declared[Any],
    word: str,
    schema: Mapping[str, Any],
    problems: list[Problem],
    hidden: list[str] | None = None,
) -> Checker | None:
    try:
        return Checker.compile(schema, hidden=hidden or ())
    except SchemaError as error:
        problems.append(declared.problem((word, *error.path), f"{word}: {error}"))
        return None


def _inside(declared: Declared[Any], schema: Mapping[str, Any] | None, problems: list[Problem]) -> None:
    """Paths of what records keep lead to arguments there are: a wrong one would leave in clear what it means."""
    spec = declared.spec
    paths: list[tuple[str, Loc]] = [(path, ("redact", index)) for index, path in enumerate(spec.redact)]
    paths += [(path, ("record", "fields", path)) for path in spec.record.fields]
    for path, loc in paths:
        if schema is not None and (unknown := _unknown(schema, path)) is not None:
            name, names = unknown
            word = f"redact[{loc[1]}]" if loc[0] == "redact" else "record.fields"
            message = f"{word}: {name!r} is no argument{did_you_mean(name, names)}"
            problems.append(declared.problem(loc, message, at_key=loc[0] == "record"))


def _unknown(schema: Mapping[str, Any], path: str) -> tuple[str, Mapping[str, Any]] | None:
    """The first name of a path that its schema does not have, and those it has there; None when that cannot be said."""
    here: Any = schema
    for name in path.split("."):
        while isinstance(here, dict) and "properties" not in here and "items" in here:
            here = cast("dict[str, Any]", here)["items"]
        if not isinstance(here, dict) or any(word in here for word in _OPEN):
            return None
        found = cast("dict[str, Any]", here)
        names: Any = found.get("properties")
        if found.get("additionalProperties", False) is not False or not isinstance(names, dict):
            return None
        known = cast("dict[str, Any]", names)
        if name not in known:
            return name, known
        here = known[name]
    return None


def _timeout(declared: Declared[Any], plan: BackendPlan, problems: list[Problem]) -> float:
    most_s, asked_s = backend_timeout_s(plan), declared.spec.caps.timeout
    if asked_s is not None and asked_s > most_s:
        message = f"caps.timeout: {asked_s:g} s is longer than backend {plan.name!r} allows ({most_s:g} s)"
        problems.append(declared.problem(("caps", "timeout"), f"{message}; lower it, or raise the backend's `timeout`"))
    return most_s if asked_s is None else asked_s


def _action(
    declared: Declared[Any],
    plan: BackendPlan,
    kinds: Mapping[str, BackendKind],
    schema: Mapping[str, Any],
    problems: list[Problem],
) -> object:
    kind, blocks = kinds[plan.kind], blocks_of(declared.spec, kinds)
    if kind.Action is None:
        message = f"backend: {plan.name!r} is of kind {plan.kind}, whose tools come by `kind: import`"
        problems.append(declared.problem(("backend",), message))
        return None
    for other in sorted(blocks.keys() - {plan.kind}):
        message = f"{other}: backend {plan.name!r} is of kind {plan.kind}; write `{plan.kind}:`"
        problems.append(declared.problem((other,), message, at_key=True))
    if plan.kind not in blocks:
        if not blocks:
            message = f"missing key `{plan.kind}`: what the tool does at backend {plan.name!r}"
            problems.append(declared.problem((), message))
        return None
    try:
        return kind.compile(blocks[plan.kind], schema, list(declared.spec.inject))
    except ValueError as error:
        lines = filter(None, str(error).splitlines())
        problems += [declared.problem((plan.kind,), f"{plan.kind}: {line}", at_key=True) for line in lines]
        return None
