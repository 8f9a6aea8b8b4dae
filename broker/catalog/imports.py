"""`kind: import` documents and what servers offer into drafts.

A server is not trusted: nothing it offers can make the catalog invalid. What cannot be used is left out with a note;
what cannot be protected as the manifest asks (an injected argument it no longer takes) is left out too.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any, cast

from broker.catalog.catalog import BackendPlan
from broker.catalog.draft import Draft, backend_timeout_s, hints, properties_of, without
from broker.catalog.manifest import Declared, ImportSpec, OverrideSpec
from broker.catalog.schema import Checker, SchemaError
from broker.document import did_you_mean
from broker.errors import Problem
from broker.model.canonical import canonical
from broker.model.shared import one
from broker.policies.answer import AnswerSpec
from broker.policies.idempotency import Derivation
from broker.policies.spec import is_name
from broker.ports import BackendKind, Offer

MAX_NAME = 64


class LeftOutError(ValueError):
    """Why one offered tool is not in the catalog."""


def import_problems(declared: Declared[ImportSpec], plan: BackendPlan) -> Iterator[Problem]:
    """What is wrong with the document whatever the server offers."""
    spec = declared.spec
    for name, override in spec.tools.items():
        if not _is_taken(spec, name):
            message = (
                f"tools.{name} is not taken{did_you_mean(name, [item for item in spec.take if not _is_pattern(item)])}"
            )
            yield declared.problem(("tools", name), message, at_key=True)
        most_s, asked_s = backend_timeout_s(plan), override.caps.timeout
        if asked_s is not None and asked_s > most_s:
            message = f"caps.timeout: {asked_s:g} s is longer than backend {plan.name!r} allows ({most_s:g} s)"
            yield declared.problem(("tools", name, "caps", "timeout"), message)
        if override.output is not None:
            try:
                Checker.compile(override.output)
            except SchemaError as error:
                yield declared.problem(("tools", name, "output", *error.path), f"output: {error}")


def could_bring(spec: ImportSpec, pattern: str) -> bool:
    """Whether this import could give the catalog a tool whose name is, or matches, `pattern`. Unsure means yes: what a
    server offers, and what a collision makes of a name, is not known before it is there.
    """
    if not spec.take:
        return False
    brought = [plain_pattern(item) for item in spec.take]
    brought += [override.rename for override in spec.tools.values() if override.rename]
    if _is_pattern(pattern):
        return any(_is_pattern(item) or fnmatchcase(item, pattern) for item in brought)
    return pattern.startswith(f"{spec.backend}_") or any(fnmatchcase(pattern, item) for item in brought)


def imported(
    declared: Declared[ImportSpec], plan: BackendPlan, kind: BackendKind, offer: Offer, notes: list[str]
) -> Iterator[Draft]:
    """The drafts of what this document takes from the offer, in the offer's order."""
    spec = declared.spec
    seen = set[str]()
    for entry in offer.tools:
        natural: Any = entry.get("name")
        if not isinstance(natural, str) or not _is_taken(spec, natural):
            continue
        if natural in seen:
            notes.append(f"{declared.source}: {plan.name} offers {natural[:64]!r} twice; the second is left out")
            continue
        seen.add(natural)
        try:
            yield _draft(declared, plan, kind, entry, natural)
        except LeftOutError as error:
            notes.append(f"{declared.source}: {natural[:64]!r} of {plan.name} is left out: {error}")
    notes += [
        f"{declared.source}: {plan.name} does not offer {item!r}{did_you_mean(item, _names(offer), most=5)}"
        for item in spec.take
        if not _is_pattern(item) and item not in seen
    ]


def _draft(
    declared: Declared[ImportSpec], plan: BackendPlan, kind: BackendKind, entry: Mapping[str, Any], natural: str
) -> Draft:
    spec = declared.spec
    override = spec.tools.get(natural) or OverrideSpec()
    effect = override.effect or spec.effect
    idempotent = override.idempotent or False
    inject = tuple(sorted(override.inject.items()))
    schema = _input(entry, [name for name, _ in inject])
    output = override.output if override.output is not None else _output(entry)
    listed = {key: value for key, value in entry.items() if key != "name"} | {"inputSchema": schema}
    if override.title is not None:
        listed["title"] = override.title
    if override.description is not None:
        listed["description"] = override.description
    if output is not None:
        listed["outputSchema"] = output
    said: Any = entry.get("annotations")
    annotations = cast("dict[str, Any]", said) if isinstance(said, dict) else {}
    if override.title is not None:
        annotations = {key: value for key, value in annotations.items() if key != "title"}
    listed["annotations"] = {**annotations, **hints(effect, idempotent=idempotent)}
    _judge_texts(listed, entry)
    return Draft(
        name=override.rename or plain(natural),
        declared=declared,
        loc=("tools", natural) if natural in spec.tools else (),
        own=False,
        plan=plan,
        effect=effect,
        scopes=one(frozenset(spec.scopes if override.scopes is None else override.scopes)),
        owner=spec.owner,
        version=spec.version,
        listed=listed,
        input_schema=schema,
        output_schema=output,
        checker=_checker(schema, "input", hidden=[name for name, _ in inject]),
        output=None if output is None else _checker(output, "output"),
        answer=AnswerSpec(caps=override.caps, record=override.record, redact=override.redact, usage=override.usage),
        action=_action(kind, entry),
        action_said=entry,
        inject=inject,
        idempotent=idempotent,
        on_collect=override.run == "on_collect",
        long=None if override.task is None else override.task.compiled,
        timeout_s=override.caps.timeout or backend_timeout_s(plan),
        derivation=Derivation.compile(override.idempotency),
        preview_said=override.preview,
        natural=natural,
        renamed=override.rename is not None,
    )


def _input(entry: Mapping[str, Any], injected: list[str]) -> dict[str, Any]:
    schema: Any = entry.get("inputSchema")
    if not isinstance(schema, dict):
        raise LeftOutError("its input schema is not an object")
    schema = cast("dict[str, Any]", schema)
    if schema.get("type") != "object":
        raise LeftOutError("its input schema is not of type object")
    required: Any = schema.get("required", [])
    if not isinstance(required, list) or not isinstance(schema.get("properties", {}), dict):
        raise LeftOutError("its input schema is not valid JSON Schema")
    if gone := [name for name in injected if name not in properties_of(schema)]:
        raise LeftOutError(f"{gone[0]!r} is to be filled in by the broker, but it takes no such argument")
    return without(schema, injected) if injected else schema


def _output(entry: Mapping[str, Any]) -> Mapping[str, Any] | None:
    schema: Any = entry.get("outputSchema")
    if schema is not None and not isinstance(schema, dict):
        raise LeftOutError("its output schema is not an object")
    return cast("dict[str, Any] | None", schema)


def _checker(schema: Mapping[str, Any], word: str, hidden: list[str] | None = None) -> Checker:
    try:
        return Checker.compile(schema, foreign=True, hidden=hidden or ())
    except SchemaError as error:
        raise LeftOutError(f"its {word} schema cannot be used: {error}") from None


def _judge_texts(listed: Mapping[str, Any], entry: Mapping[str, Any]) -> None:
    for word in ("title", "description"):
        if not isinstance(listed.get(word, ""), str):
            raise LeftOutError(f"its {word} is not text")
    try:
        canonical([listed, entry])
    except TypeError:
        raise LeftOutError("it holds what JSON cannot carry") from None


def _action(kind: BackendKind, entry: Mapping[str, Any]) -> object:
    try:
        return kind.compile_import(entry)
    except ValueError as error:
        raise LeftOutError(str(error).splitlines()[0] if str(error) else "its backend refuses it") from None


def _is_taken(spec: ImportSpec, natural: str) -> bool:
    return _matches(natural, spec.take) and not _matches(natural, spec.drop)


def _matches(name: str, items: list[str]) -> bool:
    return any(name == item or fnmatchcase(name, item) for item in items)


def _is_pattern(item: str) -> bool:
    return any(sign in item for sign in "*?[")


def _names(offer: Offer) -> list[str]:
    return [name for entry in offer.tools if isinstance(name := entry.get("name"), str)]


# ---------------------------------------------------------------------------------------------------------------- names


def plain(natural: str) -> str:
    """A server's name for a tool as a name of ours: itself where it is one, else with `_` for what may not stand in it
    and, where it is too long, a short hash at its end. The same in every process."""
    if is_name(natural):
        return natural
    name = re.sub(r"[^a-zA-Z0-9_-]", "_", natural) or "tool"
    return name if len(name) <= MAX_NAME else shortened(name, natural)


def plain_pattern(item: str) -> str:
    """A pattern for a server's names as one for the names `plain` makes of them."""
    return re.sub(r"[^a-zA-Z0-9_\-*?\[\]!]", "_", item)


def shortened(name: str, of: str) -> str:
    """A name of at most 64 characters whose end tells it apart: six hex digits of the hash of `of`."""
    return f"{name[: MAX_NAME - 7]}_{hashlib.sha256(of.encode('utf-8', 'backslashreplace')).hexdigest()[:6]}"
