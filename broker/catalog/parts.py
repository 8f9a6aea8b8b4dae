"""Resources, resource templates and prompts of servers into drafts: what an import's `resources:` and `prompts:` take.

A part is a tool to everything that judges: it has a name no tool can have (`model.part`), arguments (`uri`; a prompt's
own), the effect `read`, and so scopes, rules, quotas and toolsets mean it as they mean a tool. As with tools, nothing a
server offers can make the catalog invalid; what cannot be used is left out with a note.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import cache
from typing import Any, cast
from urllib.parse import unquote

from broker.catalog.catalog import BackendPlan
from broker.catalog.draft import Draft, backend_timeout_s
from broker.catalog.imports import LeftOutError
from broker.catalog.manifest import Declared, ImportSpec, PartsSpec
from broker.catalog.schema import Checker, SchemaError
from broker.catalog.uri_template import UriTemplate
from broker.document import Loc
from broker.errors import Problem
from broker.model.canonical import canonical
from broker.model.part import PROMPT, RESOURCE, Family, Part
from broker.model.tool import Tool
from broker.policies.answer import AnswerSpec
from broker.ports import Offer

URI_INPUT: Mapping[str, Any] = {
    "type": "object",
    "properties": {"uri": {"type": "string"}},
    "required": ["uri"],
    "additionalProperties": False,
}

_KEY: Mapping[Family, str] = {"resources": "uri", "templates": "uriTemplate", "prompts": "name"}


@cache
def _uri_checker() -> Checker:
    return Checker.compile(URI_INPUT)


def parts_problems(declared: Declared[ImportSpec], plan: BackendPlan) -> Iterator[Problem]:
    """What is wrong with `resources:` and `prompts:` whatever the server offers."""
    for word, spec in (("resources", declared.spec.resources), ("prompts", declared.spec.prompts)):
        most_s, asked_s = backend_timeout_s(plan), spec.caps.timeout if spec is not None else None
        if asked_s is not None and asked_s > most_s:
            message = f"caps.timeout: {asked_s:g} s is longer than backend {plan.name!r} allows ({most_s:g} s)"
            yield declared.problem((word, "caps", "timeout"), message)


def parts_could_bring(spec: ImportSpec, pattern: str) -> bool:
    """Whether this import could bring a part whose name is, or matches, `pattern`. Unsure means yes."""
    for prefix, parts in ((RESOURCE, spec.resources), (PROMPT, spec.prompts)):
        if parts is None:
            continue
        if any(sign in pattern for sign in "*?["):
            return True
        if pattern.startswith(prefix) and (
            any(fnmatchcase(pattern.removeprefix(prefix), item) for item in parts.take)
            or pattern.startswith((f"{PROMPT}{spec.backend}_", f"{RESOURCE}{_scheme(spec.backend)}+"))
        ):
            return True
    return False


def imported_parts(
    declared: Declared[ImportSpec], plan: BackendPlan, offer: Offer, notes: list[str]
) -> Iterator[Draft]:
    """The drafts of what this document takes, in the offer's order; without `resources:` and `prompts:` none."""
    spec = declared.spec
    families: list[tuple[Family, PartsSpec | None, Sequence[Mapping[str, Any]]]] = [
        ("resources", spec.resources, offer.resources),
        ("templates", spec.resources, offer.templates),
        ("prompts", spec.prompts, offer.prompts),
    ]
    for family, parts, entries in families:
        seen = set[str]()
        for entry in entries if parts is not None else ():
            natural: Any = entry.get(_KEY[family])
            if parts is None or not isinstance(natural, str) or natural in seen or not is_taken(parts, natural):
                continue
            seen.add(natural)
            try:
                yield _draft(declared, plan, parts, family, entry, natural)
            except LeftOutError as error:
                notes.append(f"{declared.source}: {natural[:64]!r} of {plan.name} is left out: {error}")
    found = {(prefix, str(entry.get(key))) for prefix, key, entry in _offered(offer)}
    for prefix, parts in ((RESOURCE, spec.resources), (PROMPT, spec.prompts)):
        notes += [
            f"{declared.source}: {plan.name} does not offer {prefix}{item}"
            for item in (parts.take if parts is not None else ())
            if not any(sign in item for sign in "*?[") and (prefix, item) not in found
        ]


def _offered(offer: Offer) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for prefix, key, entries in (
        (RESOURCE, "uri", offer.resources),
        (RESOURCE, "uriTemplate", offer.templates),
        (PROMPT, "name", offer.prompts),
    ):
        for entry in entries:
            yield prefix, key, entry


def is_taken(parts: PartsSpec, natural: str) -> bool:
    """Whether `take` and `drop` let this name through. `drop` means a URI however it is written: percent-decoded, too,
    so that what a template's expansion spells differently is not a way round it."""
    plain = unquote(natural)
    return any(natural == item or fnmatchcase(natural, item) for item in parts.take) and not any(
        fnmatchcase(name, item) or name == item for item in parts.drop for name in (natural, plain)
    )


def _draft(  # noqa: PLR0917 – called in one place
    declared: Declared[ImportSpec],
    plan: BackendPlan,
    parts: PartsSpec,
    family: Family,
    entry: Mapping[str, Any],
    natural: str,
) -> Draft:
    spec = declared.spec
    try:
        canonical(entry)
    except TypeError:
        raise LeftOutError("it holds what JSON cannot carry") from None
    schema, checker = _prompt_input(entry) if family == "prompts" else (URI_INPUT, _uri_checker())
    if family == "templates":
        _template(natural)
    loc: Loc = ("prompts",) if family == "prompts" else ("resources",)
    return Draft(
        name=(PROMPT if family == "prompts" else RESOURCE) + natural,
        declared=declared,
        loc=loc,
        own=False,
        plan=plan,
        effect="read",
        scopes=frozenset(spec.scopes if parts.scopes is None else parts.scopes),
        owner=spec.owner,
        version=spec.version,
        listed=dict(entry),
        input_schema=schema,
        output_schema=None,
        checker=checker,
        output=None,
        answer=AnswerSpec(caps=parts.caps, record=parts.record, redact=parts.redact),
        action=Part(family, natural),
        action_said=[family, natural, parts.drop],
        inject=(),
        idempotent=True,
        timeout_s=parts.caps.timeout or backend_timeout_s(plan),
        natural=natural,
        dropped=tuple(parts.drop),
    )


def _template(text: str) -> UriTemplate:
    try:
        return UriTemplate.compile(text)
    except ValueError as error:
        raise LeftOutError(str(error)) from None


def _prompt_input(entry: Mapping[str, Any]) -> tuple[dict[str, Any], Checker]:
    """A prompt's arguments as a schema: texts, those it does not name refused."""
    listed: Any = entry.get("arguments") or []
    properties: dict[str, Any] = {}
    required: list[str] = []
    for argument in cast("list[Any]", listed) if isinstance(listed, list) else []:
        if not isinstance(argument, Mapping):
            raise LeftOutError("its arguments are not a list of objects")
        name: Any = cast("Mapping[str, Any]", argument).get("name")
        if not isinstance(name, str) or not 0 < len(name) <= 128:
            raise LeftOutError("one of its arguments has no name")
        properties[name] = {"type": "string"}
        if cast("Mapping[str, Any]", argument).get("required") is True and name not in required:
            required.append(name)
    schema: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
    if required:
        schema["required"] = required
    try:
        return schema, Checker.compile(schema, foreign=True)
    except SchemaError as error:
        raise LeftOutError(f"its arguments cannot be used: {error}") from None


# ---------------------------------------------------------------------------------------------------------------- names


def settle_parts(drafts: Sequence[Draft], notes: list[str]) -> list[Draft]:
    """The drafts with their final names: the server's own unless two servers offer the same; then both are prefixed
    with their backend's name, a URI in its scheme (`git+file:///…`). What cannot be told apart is left out."""
    times = Counter((draft.plan.name, draft.name) for draft in drafts)
    for (backend, name), count in times.items():
        if count > 1:
            notes.append(f"{name[:80]!r} of {backend} is left out: {count} imports take it; drop it from all but one")
    single = [draft for draft in drafts if times[draft.plan.name, draft.name] == 1]
    wanted = Counter(draft.name for draft in single)
    kept: dict[str, Draft] = {draft.name: draft for draft in single if wanted[draft.name] == 1}
    for draft in single:
        if wanted[draft.name] > 1:
            _rename(draft)
            where = f"{draft.declared.source}: {draft.natural[:64]!r} of {draft.plan.name}"
            if kept.setdefault(draft.name, draft) is draft:
                notes.append(f"{where} is called {draft.name!r}")
            else:
                notes.append(f"{where} is left out: there is another {draft.name!r}")
    return list(kept.values())


def _rename(draft: Draft) -> None:
    part = cast("Part", draft.action)
    named, word = (
        (f"{draft.plan.name}_", PROMPT) if part.family == "prompts" else (_scheme(draft.plan.name) + "+", RESOURCE)
    )
    draft.name = word + named + part.natural
    draft.action = replace(part, prefix=named)
    draft.listed = {**draft.listed, _KEY[part.family]: named + part.natural}


def _scheme(backend: str) -> str:
    """A backend's name as the beginning of a URI scheme (RFC 3986 section 3.1)."""
    plain = re.sub(r"[^a-z0-9.-]", "-", backend.lower())
    return plain if plain[0].isalpha() else f"b{plain}"


def follow_renames(drafts: Sequence[Draft]) -> None:
    """MCP Apps: a tool names the resource that shows it (`_meta.ui.resourceUri`); a renamed one by its new name."""
    renamed = {
        (draft.plan.name, part.natural): part.prefix + part.natural
        for draft in drafts
        if isinstance(part := draft.action, Part) and part.prefix and part.family == "resources"
    }
    for draft in drafts if renamed else ():
        meta: Any = draft.listed.get("_meta")
        ui: Any = cast("dict[str, Any]", meta).get("ui") if isinstance(meta, dict) else None
        named: Any = cast("dict[str, Any]", ui).get("resourceUri") if isinstance(ui, dict) else None
        if isinstance(named, str) and (new := renamed.get((draft.plan.name, named))):
            draft.listed = {**draft.listed, "_meta": {**meta, "ui": {**ui, "resourceUri": new}}}


def part_of(tool: Tool) -> Part:
    """What a part's entry in the catalog leads to."""
    return cast("Part", tool.action)
