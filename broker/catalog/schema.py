"""JSON Schemas compiled once, and their faults told in sentences an agent can act on.

A fault says where (`$.lines[0].sku`), what is wrong and what would be right; it never shows the value, which may be a
secret, but may show what the schema says (limits, options, patterns). Nothing is coerced: `"5"` is not 5, and `true` is
not 1; 1.0 is an integer, as JSON Schema says.

Each schema is compiled when it is loaded, so that a wrong one is refused then. What was made of it is the engine's and
large; it goes when newer schemas need the room, and is made again by the call that needs it. Schemas that say the same
are one.

The engine (jsonschema-rs) fetches references by default: here nothing is ever fetched. 2020-12 is the dialect; a
downstream server's schema may name draft-07 or 2019-09 in `$schema`. Formats are checked, unknown ones ignored.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from itertools import islice
from threading import Lock
from typing import Any, cast
from weakref import WeakValueDictionary

import jsonschema_rs
import orjson

from broker.catalog.bounds import MAX_BYTES, Path, UnboundedError, bounds_of, depth_exceeds
from broker.data import dataclass
from broker.document import dotted

KEPT_BYTES = 262_144  # of schemas whose validators are kept: a validator takes some twenty times as much
MAX_FAULTS = 10
# Telling costs more than judging: the engine copies the value for every error it tells, also for those within anyOf.
MAX_WORK = 100_000  # how often one part may judge one value of a recursive schema
MAX_TOLD_WORK = 64
MAX_TOLD_BYTES = 4_000_000  # bytes of the value, times parts of the schema
MAX_PLACED_BYTES = 1_000_000_000  # the same, up to which at least the place is told
DIALECT = "https://json-schema.org/draft/2020-12/schema"
NOTHING: Mapping[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}

_DIALECTS: Mapping[str, type[Any]] = {
    DIALECT: jsonschema_rs.Draft202012Validator,
    "https://json-schema.org/draft/2019-09/schema": jsonschema_rs.Draft201909Validator,
    "http://json-schema.org/draft-07/schema": jsonschema_rs.Draft7Validator,
}
# Lookarounds are common in schemas, so the backtracking engine stays; its work per match is bounded.
_PATTERNS = jsonschema_rs.FancyRegexOptions(backtrack_limit=100_000, size_limit=1_048_576, dfa_size_limit=1_048_576)


class SchemaError(ValueError):
    """path: where in the schema."""

    def __init__(self, message: str, path: Path = ()) -> None:
        super().__init__(message)
        self.path = path


class Compiled:
    """A schema that the engine has taken, one object for all that say the same. schema: as it was first given.
    validator: None while there is none; `made` makes it.
    """

    __slots__ = ("__weakref__", "_bytes", "_dialect", "bounds", "most_depth", "schema", "validator")

    def __init__(self, schema: Mapping[str, Any], dialect: type[Any], size: int) -> None:
        """Raises SchemaError."""
        try:
            self.bounds = bounds_of(schema)
        except UnboundedError as error:
            raise SchemaError(str(error), error.path) from None
        self.schema = schema
        self.most_depth = self.bounds.depth(MAX_WORK)
        self.validator: Any = None
        self._dialect = dialect
        self._bytes = size
        try:
            self.made()
        except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as error:
            raise _not_a_schema(error) from None

    def made(self) -> Any:
        """The validator, which stays until KEPT_BYTES of schemas are newer."""
        validator = self._dialect(dict(self.schema), retriever=_deny, validate_formats=True, pattern_options=_PATTERNS)
        with _turn:
            if self.validator is None:
                self.validator, _kept[self] = validator, self._bytes
                excess = sum(_kept.values()) - KEPT_BYTES
                while excess > 0 and len(_kept) > 1:
                    oldest = next(iter(_kept))
                    excess -= _kept.pop(oldest)
                    oldest.validator = None
        return validator


_turn = Lock()  # catalogs are compiled in a thread, beside calls
_kept: dict[Compiled, int] = {}
_shared = WeakValueDictionary[tuple[type[Any], bytes], Compiled]()


def _compiled(schema: Mapping[str, Any], dialect: type[Any]) -> Compiled:
    """Raises SchemaError."""
    try:
        text = orjson.dumps(schema)
    except TypeError:
        return Compiled(schema, dialect, MAX_BYTES)  # which says what is wrong with it
    key = dialect, sha256(text).digest()
    found = _shared.get(key)
    if found is None:
        found = _shared[key] = Compiled(schema, dialect, len(text))
    return found


@dataclass(frozen=True, slots=True)
class Checker:
    """A compiled schema. hidden: properties that are filled in by the broker and not the caller's to give."""

    _compiled: Compiled
    _hidden: frozenset[str] = frozenset()

    @classmethod
    def compile(cls, schema: Mapping[str, Any], *, foreign: bool = False, hidden: Iterable[str] = ()) -> Checker:
        """foreign: from a downstream server, which may write older dialects. Raises SchemaError."""
        return cls(_compiled(schema, _dialect(schema, foreign=foreign)), frozenset(hidden))

    @property
    def schema(self) -> Mapping[str, Any]:
        """What it judges by, equal to what was compiled and one object for all that say the same."""
        return self._compiled.schema

    def faults(self, value: Any) -> tuple[str, ...]:
        """() when the value is right; else at most 10 sentences, without full stops."""
        compiled = self._compiled
        if compiled.most_depth is not None and depth_exceeds(value, compiled.most_depth):
            return (f"$ is nested deeper than {compiled.most_depth} levels; send less at once",)
        try:
            if self._hidden and not self._hidden.isdisjoint(value):
                name = min(self._hidden.intersection(value))
                return (f"$.{name} is filled in by the broker; leave it out",)
            validator = compiled.validator or compiled.made()
            if validator.is_valid(value):
                return ()
            return tuple(dict.fromkeys(islice(self._told(validator, value), MAX_FAULTS)))
        except (
            ValueError,
            TypeError,
        ):  # what the engine cannot read at all: nesting beyond its stack, keys that are not text
            return ("$ is not JSON that can be checked; send plain JSON values",)

    def _told(self, validator: Any, value: Any) -> Iterable[str]:
        bounds = self._compiled.bounds
        tellable = bounds.depth(MAX_TOLD_WORK)
        bytes_told = len(orjson.dumps(value)) * bounds.unfolded
        if bytes_told > MAX_PLACED_BYTES or (tellable is not None and depth_exceeds(value, tellable)):
            yield "$ is not as the schema asks; it is too large to say where"
        elif bytes_told > MAX_TOLD_BYTES:
            for entry in validator.evaluate(value).errors():
                steps = entry["instanceLocation"].split("/")[1:]
                word = entry["schemaLocation"].rsplit("/", 1)[-1]
                yield f"{shown([int(step) if step.isdecimal() else step for step in steps])} fails {word} of its schema"
        else:
            for error in validator.iter_errors(value):
                yield from self._sentences(error)

    def _sentences(self, error: Any) -> Iterable[str]:
        path = cast("list[str | int]", error.instance_path)
        where = shown(path)
        kind: str = error.kind.name
        facts = cast("dict[str, Any]", error.kind.as_dict())
        if kind == "required":
            yield f"{shown([*path, str(facts['property'])])} is missing; add it"
        elif kind in ("additionalProperties", "unevaluatedProperties"):
            known = _properties(self.schema).get(tuple(str(step) for step in path if isinstance(step, str)), ())
            for name in cast("list[str]", facts["unexpected"])[:MAX_FAULTS]:
                yield f"{shown([*path, name])} is not known here{_meant(name, known)}"
        elif kind in ("anyOf", "oneOf") and "context" in facts:
            yield f"{where} {_alternatives(cast('list[list[Any]]', facts['context']))}"
        else:
            yield f"{where} {_TOLD.get(kind, _otherwise)(facts)}"


def shown(path: Sequence[str | int]) -> str:
    """`$.lines[0].sku`. Names come from callers: long ones are cut, and what is not plain text is escaped."""
    plain = [step if isinstance(step, int) else _plain(step) for step in path]
    rest = dotted(plain)
    return f"${'' if not rest or rest.startswith('[') else '.'}{rest}"


def _plain(name: str) -> str:
    name = name if len(name) <= 64 else f"{name[:63]}…"
    return name if name.isprintable() and name.isascii() else ascii(name)[1:-1]


def _meant(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name[:64], known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; known: {', '.join(known[:12])}" if known else "; leave it out"


def _alternatives(context: list[list[Any]]) -> str:
    """What any of several schemas would have taken: the types where only they are wrong, else the nearest's fault."""
    types: list[str] = []
    for branch in context:
        if len(branch) != 1 or branch[0].kind.name != "type":
            break
        types += branch[0].kind.as_dict()["types"]
    else:
        return f"must be {_either([_TYPES.get(kind, kind) for kind in dict.fromkeys(types)])}"
    wrong = [branch for branch in context if branch]
    if not wrong:
        return "fits none of the forms the schema allows"
    nearest = min(wrong, key=lambda branch: (len(branch), _of_type(branch)))
    facts = nearest[0].kind.as_dict()
    inner = shown(nearest[0].instance_path)
    if nearest[0].kind.name == "required":
        return f"fits none of the allowed forms; for the nearest, {inner}.{facts['property']} is missing"
    told = _TOLD.get(nearest[0].kind.name, _otherwise)(facts)
    return f"fits none of the allowed forms; for the nearest, {inner} {told}"


def _of_type(branch: list[Any]) -> int:
    return sum(error.kind.name == "type" for error in branch)


def _either(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


_TYPES = {
    "string": "a string",
    "integer": "an integer",
    "number": "a number",
    "boolean": "true or false",
    "object": "an object",
    "array": "an array",
    "null": "null",
}


def _otherwise(_facts: Mapping[str, Any]) -> str:
    return "is not as the schema asks"


def _options(facts: Mapping[str, Any]) -> str:
    options = [_json(option) for option in facts["options"]]
    return f"must be one of {', '.join(options[:20])}{', …' if len(options) > 20 else ''}"


def _json(value: Any) -> str:
    """A value of the schema as JSON, cut to a readable length."""
    try:
        text = orjson.dumps(value).decode()
    except TypeError:
        text = str(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


_TOLD: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "type": lambda facts: f"must be {_either([_TYPES.get(str(kind), str(kind)) for kind in facts['types']])}",
    "enum": _options,
    "const": lambda facts: f"must be {_json(facts['expected_value'])}",
    "minimum": lambda facts: f"must be at least {facts['limit']}",
    "maximum": lambda facts: f"must be at most {facts['limit']}",
    "exclusiveMinimum": lambda facts: f"must be more than {facts['limit']}",
    "exclusiveMaximum": lambda facts: f"must be less than {facts['limit']}",
    "multipleOf": lambda facts: f"must be a multiple of {facts['multiple_of']}",
    "minLength": lambda facts: f"must have at least {facts['limit']} characters",
    "maxLength": lambda facts: f"must have at most {facts['limit']} characters",
    "pattern": lambda facts: f"must match the pattern {str(facts['pattern'])[:120]}",
    "format": lambda facts: f"must be a valid {facts['format']}",
    "minItems": lambda facts: f"must have at least {facts['limit']} items",
    "maxItems": lambda facts: f"must have at most {facts['limit']} items",
    "additionalItems": lambda facts: f"must have at most {facts['limit']} items",
    "uniqueItems": lambda _: "must not have the same item twice",
    "contains": lambda _: "must contain an item of the kind the schema asks for",
    "minProperties": lambda facts: f"must have at least {facts['limit']} properties",
    "maxProperties": lambda facts: f"must have at most {facts['limit']} properties",
    "propertyNames": lambda _: "has a property name that is not allowed",
    "not": lambda _: "is of a kind that is not allowed",
    "falseSchema": lambda _: "must be left out",
    "oneOf": lambda _: "fits more than one of the forms of which it must fit one",
}


def _deny(_uri: str) -> Any:
    raise ValueError("nothing is fetched")


def _dialect(schema: Mapping[str, Any], *, foreign: bool) -> type[Any]:
    named: Any = schema.get("$schema", DIALECT)
    found = _DIALECTS.get(named.rstrip("#")) if isinstance(named, str) else None
    if found is None or not (foreign or found is jsonschema_rs.Draft202012Validator):
        raise SchemaError(f"its $schema is not {DIALECT}; remove it or write that", ("$schema",))
    return found


def _not_a_schema(error: Exception) -> SchemaError:
    if not isinstance(error, jsonschema_rs.ValidationError):
        return SchemaError("its references cannot be resolved within it")
    path = tuple(error.instance_path)
    if "retrieving it failed" in error.message or "regex" in error.message:
        return SchemaError("is no regular expression we accept" if "regex" in error.message else "points nowhere", path)
    remedy = f"; a type is {', '.join(_TYPES)}" if path and path[-1] == "type" else ""
    return SchemaError(f"is not valid JSON Schema 2020-12{remedy}", path)


def _properties(schema: Mapping[str, Any]) -> Mapping[tuple[str, ...], Sequence[str]]:
    """Names of the properties per path of names, for suggestions; three levels are enough to be helpful."""
    found: dict[tuple[str, ...], Sequence[str]] = {}

    def collect(part: Any, path: tuple[str, ...]) -> None:
        if not isinstance(part, dict) or len(path) > 3:
            return
        node = cast("dict[str, Any]", part)
        properties: Any = node.get("properties")
        if isinstance(properties, dict):
            named = cast("dict[str, Any]", properties)
            found[path] = tuple(named)[:200]
            for name, inner in named.items():
                collect(inner, (*path, name))
        collect(node.get("items"), path)

    collect(dict(schema), ())
    return found
