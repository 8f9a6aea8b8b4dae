"""Arguments into a request, by encoders: path, query, headers and JSON body. No text is ever pasted into text.

A manifest says where each argument goes; everything about that is judged at load (`compile_placements`), so that at the
time of a call only values can be wrong. For any value the request that results parses back into exactly the declared
structure, or there is no request (InvalidArguments, effect none):

- path: a value is one percent-encoded segment (or part of one); a segment that would be empty, `.` or `..` is refused,
  and so is a path that is with its query longer than TARGET_BYTES.
- query: percent-encoded pairs; a list becomes the same name several times; null and absent are left out.
- header: a name from the manifest only; a value in printable latin-1 without spaces around it.
- body: JSON, built as data.

An argument that is placed nowhere goes into the query (GET, HEAD, DELETE) or is a field of the body. An argument the
schema does not know has no place and is refused: a tool sends what its owner declared, nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast
from urllib.parse import quote, unquote

import orjson
from pydantic import JsonValue

from broker.backends.spec import Section
from broker.data import dataclass
from broker.errors import InvalidArguments

BODYLESS = frozenset({"GET", "HEAD", "DELETE"})
HEADER_BYTES = 8192
TARGET_BYTES = 65_536
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VARIABLE = re.compile(r"\{([^{}]*)\}")
_LITERAL = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})*")
_MISSING: Any = object()

# Names a manifest may not place arguments or constants in: they frame the message, carry credentials or identity, or
# are the broker's own.
RESERVED_HEADERS = frozenset(
    {
        "accept-encoding", "authorization", "connection", "content-encoding", "content-length", "content-type",
        "cookie", "expect", "forwarded", "host", "idempotency-key", "keep-alive", "mcp-session-id",
        "proxy-authenticate", "proxy-authorization", "proxy-connection", "set-cookie", "te", "traceparent",
        "tracestate", "trailer", "transfer-encoding", "upgrade", "user-agent", "via", "x-broker-call-id", "x-real-ip",
    }
)  # fmt: skip


class Arg(Section):
    """The value of one argument."""

    arg: str


class Const(Section):
    """The same value in every request."""

    const: JsonValue


Placement = str | Arg | Const


@dataclass(slots=True)  # made for each call, see model.empty
class Placed:
    """A request without its origin. target: path and query, as bytes go on the wire. body: None for none."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes | None


@dataclass(frozen=True, slots=True)
class _Value:
    """argument: its name; "" for a constant."""

    argument: str
    const: Any = None

    def of(self, arguments: Mapping[str, Any]) -> Any:
        return arguments.get(self.argument, _MISSING) if self.argument else self.const


@dataclass(frozen=True, slots=True)
class _Fields:
    """A JSON object to build: fields in order."""

    fields: tuple[tuple[str, _Value | _Fields], ...]

    def of(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        built: dict[str, Any] = {}
        for name, source in self.fields:
            if type(source) is _Value and source.argument:  # as `_Value.of`, whose call would cost more than its work
                value = arguments.get(source.argument, _MISSING)
            else:
                value = source.of(arguments)
            if value is not _MISSING:
                built[name] = value
        return built


_Segment = tuple[str | _Value, ...]


@dataclass(frozen=True, slots=True)
class Placements:
    """Where everything goes; made by `compile_placements` only. known: all arguments there may be."""

    method: str
    segments: tuple[_Segment, ...]
    query: tuple[tuple[str, _Value], ...]
    headers: tuple[tuple[str, _Value], ...]
    body: _Value | _Fields | None
    known: frozenset[str]
    fixed: str = ""  # the path when no argument is part of it

    def place(self, arguments: Mapping[str, Any]) -> Placed:
        """The request for these arguments. Raises InvalidArguments for a value its place cannot carry."""
        if not arguments.keys() <= self.known:
            extra = min(arguments.keys() - self.known)
            raise InvalidArguments(f"Argument {extra[:64]!r} has no place in this tool's request. Nothing was sent.")
        target = self.fixed or "".join(["/" + _segment(segment, arguments) for segment in self.segments])
        if self.query and (query := "&".join(_pairs(self.query, arguments))):
            target = f"{target}?{query}"
        if len(target) > TARGET_BYTES:
            raise InvalidArguments(f"Path and query are longer than {TARGET_BYTES} bytes. Nothing was sent.")
        headers = tuple(_headers(self.headers, arguments)) if self.headers else ()
        body = None if self.body is None else self.body.of(arguments)
        content = None if body is None or body is _MISSING else _json(body)
        return Placed(self.method, target, headers, content)


# ------------------------------------------------------------------------------------------------------------ placing


def _scalar(value: Any, where: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return orjson.dumps(value).decode()
    raise InvalidArguments(f"{where} takes a text, a number or a boolean. Nothing was sent.")


def _encoded(value: Any, where: str) -> str:
    try:
        return quote(_scalar(value, where), safe="")
    except UnicodeEncodeError:
        raise InvalidArguments(f"{where} is not valid Unicode text. Nothing was sent.") from None


def _segment(parts: _Segment, arguments: Mapping[str, Any]) -> str:
    built = "".join(
        part
        if isinstance(part, str)
        else _encoded(part.of(arguments), f"Argument {part.argument!r}, part of the path,")
        for part in parts
    )
    if len(parts) == 1 and isinstance(parts[0], str):
        return built  # judged at load
    if unquote(built) in ("", ".", ".."):
        names = ", ".join(repr(part.argument) for part in parts if isinstance(part, _Value))
        raise InvalidArguments(
            f"Argument {names} is part of the path and may not be empty, . or .. – nothing was sent."
        )
    return built


def _pairs(query: Sequence[tuple[str, _Value]], arguments: Mapping[str, Any]) -> Iterator[str]:
    for name, source in query:
        value = source.of(arguments)
        if value is _MISSING or value is None:
            continue
        for item in cast("list[Any]", value) if isinstance(value, list) else [value]:
            yield f"{quote(name, safe='')}={_encoded(item, f'Query parameter {name!r}')}"


def _headers(headers: Sequence[tuple[str, _Value]], arguments: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, source in headers:
        value = source.of(arguments)
        if value is _MISSING or value is None:
            continue
        text = _scalar(value, f"Header {name}")
        if fault := header_fault(text):
            raise InvalidArguments(f"The value for header {name} {fault}. Nothing was sent.")
        yield name, text


def _json(body: Any) -> bytes:
    try:
        return orjson.dumps(body)
    except TypeError:
        raise InvalidArguments(
            "An argument is not valid JSON (integers have at most 64 bits). Nothing was sent."
        ) from None


def header_fault(value: str) -> str:
    """Why this text cannot be a header's value; "" when it can."""
    if len(value) > HEADER_BYTES:
        return f"is longer than {HEADER_BYTES} bytes"
    if value != value.strip(" "):
        return "has spaces around it"
    if not all(" " <= sign <= "~" or "\xa0" <= sign <= "\xff" for sign in value):
        return "has control characters or characters outside latin-1"
    return ""


# ------------------------------------------------------------------------------------------------------------ compiling


def compile_placements(
    *,
    method: str,
    path: str,
    query: Mapping[str, Placement],
    headers: Mapping[str, Placement],
    body: Any,
    input_schema: Mapping[str, Any],
    injected: Sequence[str],
) -> Placements:
    """Judge and compile where arguments go. body: see `_body`; None when the manifest has none.

    Raises ValueError, one sentence a line, for everything wrong.
    """
    return _Compiler(input_schema, injected).compile(method, path, query, headers, body)


class _Compiler:
    def __init__(self, input_schema: Mapping[str, Any], injected: Sequence[str]) -> None:
        self.properties: Mapping[str, Any] = input_schema.get("properties") or {}
        self.required = {*cast("Sequence[str]", input_schema.get("required") or ()), *injected}
        self.known = frozenset([*self.properties, *injected])
        self.used: set[str] = set()
        self.problems: list[str] = []

    def compile(
        self, method: str, path: str, query: Mapping[str, Placement], headers: Mapping[str, Placement], body: Any
    ) -> Placements:
        segments = tuple(self._path(path))
        pairs = [(name, self._scalar_value(source, f"query {name}", lists=True)) for name, source in query.items()]
        fields = [(name, self._header(name, source)) for name, source in headers.items()]
        if len({name.lower() for name in headers}) < len(headers):
            self.problems.append("headers: two names differ only in upper and lower case")
        if body is not None and method in ("GET", "HEAD"):
            self.problems.append(f"body: {method} has no body; place arguments in the query")
        content = None if body is None else self._body(body, "body")
        rest = [
            name for name in (*self.properties, *sorted(self.known - self.properties.keys())) if name not in self.used
        ]
        if method in BODYLESS:
            pairs += [(name, self._scalar_value(name, f"query {name}", lists=True)) for name in rest]
        elif rest:
            content = self._with_rest(content, rest)
        if self.problems:
            raise ValueError("\n".join(self.problems))
        is_fixed = all(isinstance(part, str) for segment in segments for part in segment)
        fixed = "".join(["/" + _segment(segment, {}) for segment in segments]) if is_fixed else ""
        return Placements(method, segments, tuple(pairs), tuple(fields), content, self.known, fixed)

    def _value(self, source: Any, where: str) -> _Value:
        if isinstance(source, Const):
            return _Value("", source.const)
        name = source.arg if isinstance(source, Arg) else str(source)
        if name not in self.known:
            self.problems.append(f"{where}: the input schema has no argument {name!r}{_nearest(name, self.known)}")
        self.used.add(name)
        return _Value(name)

    def _types(self, name: str) -> set[str]:
        """The JSON types the schema allows for an argument; empty when it does not say (or by reference)."""
        schema = self.properties.get(name)
        kind = cast("Mapping[str, Any]", schema).get("type") if isinstance(schema, Mapping) else None
        if isinstance(kind, str):
            return {kind}
        return {str(one) for one in cast("list[Any]", kind)} if isinstance(kind, list) else set()

    def _scalar_value(self, source: Any, where: str, *, lists: bool) -> _Value:
        value = self._value(source, where)
        unfit = {"object"} if lists else {"object", "array"}
        if value.argument and self._types(value.argument) & unfit:
            self.problems.append(f"{where}: argument {value.argument!r} is not a single value; place it in the body")
        const: Any = value.const
        items = cast("list[Any]", const) if lists and isinstance(const, list) else [const]
        if not value.argument and any(isinstance(item, dict | list) for item in items):
            self.problems.append(f"{where}: the constant is not a single value")
        return value

    def _header(self, name: str, source: Any) -> _Value:
        lowered = name.lower()
        if not _TOKEN.fullmatch(name):
            self.problems.append(f"headers: {name!r} is not a header name")
        elif lowered in RESERVED_HEADERS or lowered.startswith(("x-forwarded-", "mcp-", "sec-")):
            self.problems.append(
                f"headers: {name} is not for manifests (credentials belong in the backend's `credential`)"
            )
        value = self._scalar_value(source, f"headers {name}", lists=False)
        if isinstance(value.const, str) and (fault := header_fault(value.const)):
            self.problems.append(f"headers {name}: the constant {fault}")
        return value

    def _path(self, path: str) -> Iterator[_Segment]:
        if not path.startswith("/"):
            self.problems.append("path: starts with /")
            return
        segments = path.split("/")[1:]
        for position, segment in enumerate(segments):
            parts = tuple(self._parts(segment))
            last = position == len(segments) - 1
            if not parts:
                if not last:
                    self.problems.append("path: has an empty segment (//)")
                parts = ("",)
            elif len(parts) == 1 and isinstance(parts[0], str) and unquote(parts[0]) in (".", ".."):
                self.problems.append("path: has a segment . or ..")
            yield parts

    def _parts(self, segment: str) -> Iterator[str | _Value]:
        end = 0
        for match in _VARIABLE.finditer(segment):
            yield from self._literal(segment[end : match.start()])
            yield self._path_value(match[1])
            end = match.end()
        yield from self._literal(segment[end:])

    def _path_value(self, name: str) -> _Value:
        value = self._scalar_value(name, "path", lists=False)
        if name in self.known and name not in self.required:
            self.problems.append(
                f"path: argument {name!r} must be in the schema's `required`, a path cannot do without it"
            )
        return value

    def _literal(self, text: str) -> Iterator[str]:
        if not _LITERAL.fullmatch(text):
            self.problems.append(
                f"path: {text!r} is not plain path text (variables are {{name}}, other signs are percent-encoded)"
            )
        if text:
            yield text

    def _body(self, source: Any, where: str) -> _Value | _Fields:
        """A placement, or a mapping of names to bodies. `{arg: x}` and `{const: x}` are placements."""
        if isinstance(source, Mapping):
            mapping = cast("Mapping[str, Any]", source)
            if set(mapping) == {"const"}:
                return _Value("", mapping["const"])
            if set(mapping) == {"arg"} and isinstance(mapping["arg"], str):
                return self._value(mapping["arg"], where)
            return _Fields(tuple((name, self._body(inner, f"{where}.{name}")) for name, inner in mapping.items()))
        if isinstance(source, str):
            return self._value(source, where)
        self.problems.append(f"{where}: an argument's name, {{arg: name}}, {{const: value}} or a mapping of these")
        return _Value("", None)

    def _with_rest(self, content: _Value | _Fields | None, rest: Sequence[str]) -> _Value | _Fields:
        if isinstance(content, _Value):
            self.problems.append(f"body: is one value, so {', '.join(map(repr, rest))} must be placed elsewhere")
            return content
        fields = content.fields if content else ()
        taken = {name for name, _ in fields}
        for name in rest:
            if name in taken:
                self.problems.append(f"body: field {name!r} is taken; place the argument {name!r} explicitly")
        return _Fields((*fields, *((name, _Value(name)) for name in rest)))


def _nearest(name: str, known: frozenset[str]) -> str:
    from difflib import get_close_matches  # only when there is something to say

    close = get_close_matches(name, known, 1)
    return f"; did you mean {close[0]!r}?" if close else ""
