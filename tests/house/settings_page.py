"""Writes docs/settings.md from the fields of `broker.settings`: `python tests/house/settings_page.py`.

A test compares the page with what this would write, so a setting without its sentence cannot be added.
"""

from __future__ import annotations

import json
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from broker.settings import Settings

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"
HEAD = """\
# Settings

<!-- written by `python tests/house/settings_page.py` from broker/settings.py; do not edit -->

One file, `broker.yaml`, found beside you, or named by `--config` or `BROKER_CONFIG`. Every key is optional; an unknown
key is an error that names the nearest known one. `broker init` writes a file with comments.

- A value may be a reference: `${env:NAME}` or `${file:PATH}` (relative to the settings file). Secrets are always
  written so.
- Every key can be overridden by the environment: `BROKER_` and the key in capitals, sections divided by two
  underscores: `BROKER_LISTEN__PORT=9000`.

| key | type | default | meaning |
| --- | --- | --- | --- |
"""


def rows(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        section = _section(field.annotation)
        if section is None:
            yield f"{prefix}{name}", field
        else:
            if get_origin(field.annotation) is list:
                yield f"{prefix}{name}", field
            yield from rows(section, f"{prefix}{name}{'[]' if get_origin(field.annotation) is list else ''}.")


def _section(annotation: Any) -> type[BaseModel] | None:
    inner = get_args(annotation)[0] if get_origin(annotation) is list else annotation
    return inner if isinstance(inner, type) and issubclass(inner, BaseModel) else None


def type_of(annotation: Any) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{part}`" for part in parts)
    if origin is list:
        return "list of sections" if _section(annotation) else f"list of {type_of(parts[0])}"
    if origin is types.UnionType:
        return " or ".join("nothing" if part is types.NoneType else type_of(part) for part in parts)
    return {str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path"}[annotation]


def default_of(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return f"`{json.dumps(value, default=str)}`"


def page() -> str:
    lines = [
        f"| `{key}` | {type_of(field.annotation)} | {default_of(field)} | {field.description} |"
        for key, field in rows(Settings)
    ]
    return HEAD + "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
