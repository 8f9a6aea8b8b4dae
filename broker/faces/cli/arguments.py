"""`name=value` on a command line, turned into a tool's arguments by the tool's own input schema."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import jiter
import typer

Schema = Mapping[str, Any]


def read_arguments(pairs: Sequence[str], document: str, schema: Schema | None) -> dict[str, Any]:
    """The arguments of a call. document: a JSON object, `@FILE`, or `-` for stdin; pairs are put over it.

    Raises typer.BadParameter. Whether they fit the tool is the pipeline's to say.
    """
    arguments = _object(document) if document else {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            hint = "; a JSON object goes to --args" if pair.startswith("{") else ""
            raise typer.BadParameter(f"{pair!r} is not name=value{hint}", param_hint="ARGUMENT")
        arguments[name] = _json(value, pair) if name.endswith(":") else typed(value, _property(schema, name))
        if name.endswith(":"):
            arguments[name[:-1]] = arguments.pop(name)
    return arguments


def typed(text: str, schema: Schema) -> Any:
    """What a person meant by this text, where the schema asks for certain types: a string stays the text it is.

    Anything else is read as JSON when that gives a type the schema allows, and is left as text for the validator to
    refuse in its own words when it does not.
    """
    allowed = _types(schema)
    if allowed == {"string"}:
        return text
    try:
        value: Any = jiter.from_json(text.encode(), allow_inf_nan=False, catch_duplicate_keys=True)
    except ValueError:
        return text
    if "string" in allowed and not isinstance(value, str) and not _names(value) & allowed:
        return text
    if not allowed and schema:  # enum and const say the type by their values
        choices = [*cast("list[Any]", schema.get("enum", [])), *([schema["const"]] if "const" in schema else [])]
        return text if text in choices else value
    return value


def _property(schema: Schema | None, name: str) -> Schema:
    properties = (schema or {}).get("properties")
    found: object = cast("Schema", properties).get(name) if isinstance(properties, Mapping) else None
    return _resolved(cast("Schema", found), schema or {}) if isinstance(found, Mapping) else {}


def _resolved(found: Schema, whole: Schema) -> Schema:
    """A local `$ref` followed, a few steps deep."""
    for _ in range(8):
        reference = found.get("$ref")
        if not isinstance(reference, str) or not reference.startswith("#/"):
            break
        target: Any = whole
        for step in reference[2:].split("/"):
            target = target.get(step.replace("~1", "/").replace("~0", "~"), {}) if isinstance(target, Mapping) else {}  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType] – a schema is any JSON
        if not isinstance(target, Mapping):
            break
        found = cast("Schema", target)
    return found


def _types(schema: Schema) -> set[str]:
    """The types a schema names, its alternatives included; empty when it names none."""
    named = schema.get("type")
    types = {named} if isinstance(named, str) else set(cast("list[str]", named or []))
    for key in ("anyOf", "oneOf", "allOf"):
        for part in cast("list[Any]", schema.get(key) or []):
            types |= _types(cast("Schema", part)) if isinstance(part, Mapping) else set()
    return types


def _names(value: Any) -> set[str]:
    if isinstance(value, bool):
        return {"boolean"}
    if isinstance(value, int):
        return {"integer", "number"}
    if isinstance(value, float):
        return {"number", *({"integer"} if value.is_integer() else set())}
    return {"null"} if value is None else {"array"} if isinstance(value, list) else {"object"}


def _object(document: str) -> dict[str, Any]:
    if document == "-":
        text = sys.stdin.read()
    elif document.startswith("@"):
        try:
            text = Path(document[1:]).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise typer.BadParameter(f"{document[1:]} cannot be read: {error}", param_hint="--args") from error
    else:
        text = document
    value = _json(text, "--args")
    if not isinstance(value, dict):
        raise typer.BadParameter("the arguments are one JSON object", param_hint="--args")
    return cast("dict[str, Any]", value)


def _json(text: str, where: str) -> Any:
    try:
        return jiter.from_json(text.encode(), allow_inf_nan=False, catch_duplicate_keys=True)
    except ValueError as error:
        raise typer.BadParameter(f"{where}: not JSON: {error}", param_hint="ARGUMENT") from error
