"""The settings file as text: read, with the environment over it, and told, as `broker init` writes it (`template`) and
`docs/settings.md` shows it (`rows`).

Precedence: environment over file over default. A variable is `BROKER_` and the key in capitals, `__` between sections:
`BROKER_LISTEN__PORT=9000`, `BROKER_STDIO__SCOPES="[orders.read]"`. A variable with `__` must name a key; of the others
only exact names count and near misses are errors, because platforms set variables of their own for a service that is
called broker (`BROKER_PORT`, `BROKER_SERVICE_HOST`).

What must not live here: which keys there are (settings).
"""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, cast

import orjson
from pydantic import BaseModel, ValidationError

from broker.data import dataclass
from broker.document import Document, located_problems, nearest, parse, parse_file, parse_value
from broker.errors import Problem, SettingsError
from broker.secrets import REFERENCE, Secrets
from broker.settings import SAFE_URL, Settings

PREFIX = "BROKER_"
ENVIRONMENT = "environment"  # stands for the file in problems with variables


def read_settings(path: Path | None, environ: Mapping[str, str]) -> Settings:
    """The settings of this file (None: defaults, relative to the working directory) and these variables.

    Raises SettingsError with every problem: what cannot be read, is unknown, of the wrong type, or a reference to
    nothing.
    """
    directory = Path.cwd() if path is None else path.absolute().parent
    document, problems = _document(path)
    keys, wrong = _overridden(cast("dict[str, Any]", document.data), environ)
    problems += wrong
    secrets = Secrets(directory, environ)
    resolved = _resolved(keys, (), document, secrets, problems)
    try:
        settings = Settings.at(directory, resolved)
    except ValidationError as error:
        problems += _mistakes(document, error, environ)
        raise SettingsError(problems) from None
    for number, one in enumerate(settings.auth.issuers):
        if not SAFE_URL.match(one.issuer):
            at = ("auth", "issuers", number, "issuer")
            problems.append(
                document.problem(at, "issuer must be an https URL, or one of this machine: its keys vouch for all")
            )
    if settings.console.issuer and settings.console.issuer not in [one.issuer for one in settings.auth.issuers]:
        problems.append(
            document.problem(("console", "issuer"), "names none of auth.issuers, so it would not be believed")
        )
    if settings.console.issuer and not settings.console.client_id:
        problems.append(document.problem(("console",), "client_id is needed to sign people in at console.issuer"))
    if problems:
        raise SettingsError(problems)
    return settings


def _document(path: Path | None) -> tuple[Document, list[Problem]]:
    """The file's one document; an empty one when there is none or it is not a mapping."""
    name = "" if path is None else str(path)
    (empty,) = parse(b"{}", name).documents
    if path is None:
        return empty, []
    parsed = parse_file(path)
    problems = list(parsed.problems)
    if len(parsed.documents) > 1:
        problems.append(parsed.documents[1].problem((), "a settings file is one document; remove the --- line"))
    document = parsed.documents[0] if parsed.documents else empty
    if not isinstance(document.data, dict):
        problems.append(document.problem((), "settings are a mapping of keys to values"))
        document = empty
    return document, problems


def _overridden(data: dict[str, Any], environ: Mapping[str, str]) -> tuple[dict[str, Any], list[Problem]]:
    """A copy of the file's keys with what the variables say, and the variables that name nothing."""
    keys, problems = cast("dict[str, Any]", orjson.loads(orjson.dumps(data))), list[Problem]()
    for variable in sorted(environ):
        if not variable.startswith(PREFIX):
            continue
        steps = variable.removeprefix(PREFIX).lower().split("__")
        annotation = _annotation(Settings, steps)
        if annotation is None:
            if message := _stray(variable, steps):
                problems.append(Problem(ENVIRONMENT, 0, 0, f"{variable}: {message}"))
            continue
        try:
            value = environ[variable] if annotation in (str, Path) else parse_value(environ[variable])
        except ValueError as error:
            problems.append(Problem(ENVIRONMENT, 0, 0, f"{variable}: {error}"))
            continue
        section = keys
        for step in steps[:-1]:
            inner = section.setdefault(step, {})
            section = cast("dict[str, Any]", inner if isinstance(inner, dict) else {})
        section[steps[-1]] = value
    return keys, problems


def _annotation(model: type[BaseModel], steps: list[str]) -> Any:
    """The type of the key these steps lead to; None when they lead nowhere or to a section."""
    info = model.model_fields.get(steps[0])
    if info is None:
        return None
    section = _section_of(info.annotation)
    if len(steps) == 1:
        return None if section else info.annotation
    return _annotation(section, steps[1:]) if section else None


def _stray(variable: str, steps: list[str]) -> str:
    """What is wrong with a variable that names no key; "" when it is probably not meant for us."""
    known = [name for name, _ in _variables()]
    if len(steps) > 1:
        close = nearest(variable, known)
        return "no such setting" + (f"; did you mean {close!r}?" if close else "")
    top = [name for name in known if "__" not in name]
    close = difflib.get_close_matches(
        variable.removeprefix(PREFIX), [name.removeprefix(PREFIX) for name in top], 1, 0.85
    )
    return f"no such setting; did you mean {PREFIX + close[0]!r}?" if close else ""


def _resolved(
    value: Any, loc: tuple[str | int, ...], document: Document, secrets: Secrets, problems: list[Problem]
) -> Any:
    """The value with every reference in its texts replaced; what cannot be is added to the problems."""
    if isinstance(value, dict):
        items = cast("dict[str, Any]", value).items()
        return {key: _resolved(inner, (*loc, key), document, secrets, problems) for key, inner in items}
    if isinstance(value, list):
        inners = enumerate(cast("list[Any]", value))
        return [_resolved(inner, (*loc, index), document, secrets, problems) for index, inner in inners]
    if isinstance(value, str) and REFERENCE.search(value):
        try:
            return secrets.resolve(value)
        except LookupError as error:
            problems.append(document.problem(loc, str(error.args[0])))
    return value


def _mistakes(document: Document, error: ValidationError, environ: Mapping[str, str]) -> list[Problem]:
    """Problems of the file; one with a value that a variable gave is told as the variable's."""
    given: dict[tuple[str | int, ...], str] = {
        tuple(name.removeprefix(PREFIX).lower().split("__")): name for name in environ if name.startswith(PREFIX)
    }
    problems: list[Problem] = []
    for loc, problem in located_problems(document, error, Settings):
        variable = next((given[loc[:end]] for end in range(len(loc), 0, -1) if loc[:end] in given), "")
        problems.append(Problem(ENVIRONMENT, 0, 0, f"{variable}: {problem.message}") if variable else problem)
    return problems


# ------------------------------------------------------------------------------------------------- the fields, told


@dataclass(frozen=True, slots=True)
class Row:
    """One setting for people. key: `listen.port`, or `auth.issuers[].issuer` for a key of each item of a list."""

    key: str
    kind: str
    default: str  # as it would be written in the file; "required" when it must be given
    description: str
    variable: str  # the environment variable, "" where there is none


def rows() -> tuple[Row, ...]:
    """Every setting, in the order of the file."""
    return tuple(_rows(Settings, ""))


def template() -> str:
    """The text of a new settings file: every key with its default, commented out, under its sentence."""
    lines = [
        "# Settings of the broker. Every key is optional; what is commented out shows the default.",
        "# Texts may refer to the environment or to a file: ${env:NAME}, ${file:PATH}.",
        "# A variable overrides its key: BROKER_LISTEN__PORT=9000 sets `port` of `listen`.",
        "",
    ]
    for name, info in Settings.model_fields.items():
        lines += [*_sketch(name, info.annotation, info, 0), ""]
    return "\n".join(lines)


def _sketch(name: str, annotation: Any, info: Any, depth: int) -> Iterator[str]:
    """The lines of one key: sentences begin with `##`, keys with `# `, so that removing `# ` makes them valid."""
    indent = "  " * depth
    section = _section_of(annotation)
    if info.description:
        yield f"## {indent}{info.description}"
    elif section is not None and section.__doc__:
        yield f"## {indent}{section.__doc__.splitlines()[0]}"
    if section is None:
        yield f"# {indent}{name}: {_written(info.default)}"
        if (item := _item_of(annotation)) is not None:
            for key, inner in item.model_fields.items():
                yield f"##   {indent}{'- ' if key == next(iter(item.model_fields)) else '  '}{key}: {inner.description}"
        return
    yield f"# {indent}{name}:"
    for key, inner in section.model_fields.items():
        yield from _sketch(key, inner.annotation, inner, depth + 1)


def _rows(model: type[BaseModel], prefix: str) -> Iterator[Row]:
    for name, info in model.model_fields.items():
        key = f"{prefix}{name}"
        section = _section_of(info.annotation)
        if section is not None:
            yield from _rows(section, f"{key}.")
            continue
        default = "required" if info.is_required() else _written(info.default)
        variable = "" if "[]" in key else PREFIX + key.replace(".", "__").upper()
        yield Row(key, _kind(info.annotation), default, info.description or "", variable)
        if (item := _item_of(info.annotation)) is not None:
            yield from _rows(item, f"{key}[].")


def _variables() -> Iterator[tuple[str, str]]:
    for row in rows():
        if row.variable:
            yield row.variable, row.key


def _written(value: Any) -> str:
    """A default as YAML: JSON is YAML, and a text that needs no quotes has none."""
    if isinstance(value, Path) or (isinstance(value, str) and value and _stands_bare(value)):
        return str(value)
    return orjson.dumps(value).decode().replace(",", ", ")


def _stands_bare(text: str) -> bool:
    """Whether this text stands in YAML without quotes."""
    try:
        return parse_value(text) == text
    except ValueError:
        return False


def _kind(annotation: Any) -> str:
    if typing.get_origin(annotation) is Literal:
        return " | ".join(str(word) for word in typing.get_args(annotation))
    if typing.get_origin(annotation) is list:
        inner = typing.get_args(annotation)[0]
        return "list of mappings" if _section_of(inner) else f"list of {_kind(inner)}"
    return {str: "text", int: "whole number", float: "number", bool: "true | false", Path: "path"}.get(
        annotation, "text"
    )


def _section_of(annotation: Any) -> type[BaseModel] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _item_of(annotation: Any) -> type[BaseModel] | None:
    """The model of a list's items."""
    return _section_of(typing.get_args(annotation)[0]) if typing.get_origin(annotation) is list else None
