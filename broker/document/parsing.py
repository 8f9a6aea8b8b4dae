"""Strict YAML 1.2 (and so JSON) into plain data that remembers where everything stands.

Built on ruamel's events, not on its loader: an event carries its position, anchors and tags can be refused before
anything is built, and no input can make us recurse. Scalars are read by the YAML 1.2 core schema and nothing else, so
`no`, `1:30` and `2026-01-01` are text. Refused, each with its place: duplicate keys, keys that are not text, anchors,
aliases, tags, merge keys, NaN, infinity, integers beyond 64 bits, lone surrogates, control characters, any encoding but
UTF-8, a byte order mark, too many bytes, levels or values.

What must not live here: what a document means; `mistakes` has the words for what a pydantic model finds wrong in one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentEndEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from broker.data import dataclass
from broker.errors import ConfigurationError, Problem

MAX_BYTES = 1_048_576
MAX_DEPTH = 64
MAX_VALUES = 100_000
MAX_PROBLEMS = 100  # of one file; after that reading it stops, so that a bomb costs no more than its first bytes

Loc = Sequence[str | int]

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufffe\uffff]")
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_WORDS: Mapping[str, Any] = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
}  # fmt: skip
_REMEDIES = (
    ("cannot start any token", "indent with spaces, and put text that begins with this character in quotes"),
    ("mapping values are not allowed here", "put text with a colon in it in quotes"),
    ("but got '{'", "put text with { or } in it in quotes"),
    ("unexpected end of stream", "a quote is not closed"),
    ("<stream end>", "a quote or bracket is not closed"),
)


@dataclass(slots=True)
class Mark:
    """Where a value stands: its own place, its key's (the same for items), and the marks of what is in it."""

    line: int
    column: int
    key_line: int
    key_column: int
    members: dict[str | int, Mark]


@dataclass(frozen=True, slots=True)
class Document:
    """data: dict, list, str, int, float, bool or None, as in JSON. file: as it is shown to people."""

    file: str
    data: Any
    mark: Mark

    @property
    def source(self) -> str:
        return f"{self.file}:{self.mark.line}"

    def problem(self, loc: Loc, message: str, *, at_key: bool = False) -> Problem:
        """A problem at the place `loc` leads to, or at the last place on the way that exists."""
        mark, reached = self.mark, 0
        for step in loc:
            if step not in mark.members:
                continue  # pydantic names branches of unions too; they have no place in the file
            mark, reached = mark.members[step], reached + 1
        if at_key and reached:
            return Problem(self.file, mark.key_line, mark.key_column, message)
        return Problem(self.file, mark.line, mark.column, message)


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a file holds. A document with problems is among `documents` too, as far as it could be read, so that the
    rest of it can be judged in the same go; whoever wants to use one must look at `problems` first.
    """

    documents: list[Document]
    problems: list[Problem]


def read_documents(path: Path, name: str = "") -> list[Document]:
    """The documents of a file, empty ones left out. Raises ConfigurationError with every problem of the file."""
    parsed = parse_file(path, name)
    if parsed.problems:
        raise ConfigurationError(parsed.problems)
    return parsed.documents


def parse_file(path: Path, name: str = "") -> Parsed:
    """As `parse`; a file that cannot be read is a problem too. name: the file's name in problems."""
    name = name or str(path)
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        return Parsed([], [Problem(name, 0, 0, f"cannot be read: {error.strerror or type(error).__name__}")])
    return parse(data, name, json=path.suffix.lower() == ".json")


def parse(data: bytes, name: str, *, json: bool = False) -> Parsed:
    """All documents in these bytes and every problem with them. json: tabs may indent, as JSON allows."""
    text, problem = _text(data, name)
    if problem is not None:
        return Parsed([], [problem])
    if json:
        text = text.replace("\t", " ")  # JSON has tabs only between its tokens, so no value and no column changes
    builder = _Builder(name)
    try:
        for event in YAML(typ="safe", pure=True).parse(text):  # type: ignore[reportUnknownMemberType]
            builder.take(event)
    except _TooMuchError:
        pass  # the problem that stopped us is in the list
    except MarkedYAMLError as error:
        builder.problems.append(_syntax(name, error))
    except YAMLError as error:
        builder.problems.append(Problem(name, 0, 0, f"not valid YAML: {str(error).splitlines()[0]}"))
    return Parsed([document for document in builder.documents if document.data is not None], builder.problems)


def parse_value(text: str) -> Any:
    """One value as it would stand in a file, such as `9000`, `true` or `[a, b]`. Raises ValueError."""
    parsed = parse(text.encode(), "")
    if parsed.problems or len(parsed.documents) > 1:
        raise ValueError(parsed.problems[0].message if parsed.problems else "more than one document")
    return parsed.documents[0].data if parsed.documents else None


def _text(data: bytes, name: str) -> tuple[str, Problem | None]:
    if len(data) > MAX_BYTES:
        return "", Problem(name, 0, 0, f"larger than {MAX_BYTES} bytes; split it into several files")
    if data.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        return "", Problem(name, 1, 1, "begins with a byte order mark; save it as UTF-8 without one")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return "", Problem(name, line, error.start - data.rfind(b"\n", 0, error.start), "not UTF-8; save it as UTF-8")
    if found := _CONTROL.search(text):
        line, start = text.count("\n", 0, found.start()) + 1, text.rfind("\n", 0, found.start())
        what = f"control character U+{ord(found[0]):04X}; write it as an escape in double quotes"
        return "", Problem(name, line, found.start() - start, what)
    return text, None


def _syntax(name: str, error: MarkedYAMLError) -> Problem:
    fault: Any = error  # ruamel leaves these attributes without types
    said = " ".join(str(part) for part in (fault.problem, fault.context) if part)
    remedy = next((f"; {words}" for sign, words in _REMEDIES if sign in said), "")
    mark = fault.problem_mark or fault.context_mark
    place = (mark.line + 1, mark.column + 1) if mark is not None else (0, 0)
    return Problem(name, *place, f"not valid YAML: {said}{remedy}")


_NO_MEMBERS: dict[str | int, Mark] = {}  # of every value that is no mapping or sequence; most are


class _TooMuchError(Exception):
    """Reading stops here; the reason is already a problem."""


@dataclass(slots=True)
class _Frame:
    """A mapping or sequence being filled. key: the key whose value comes next; None while a key is awaited."""

    data: dict[str, Any] | list[Any]
    mark: Mark
    key: str | None = None
    key_at: tuple[int, int] = (0, 0)
    keep: bool = True  # False: the value that comes next belongs to a key that was refused


class _Builder:
    """Turns events into documents. One per file."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.documents: list[Document] = []
        self.problems: list[Problem] = []
        self._stack: list[_Frame] = []
        self._values = 0

    def take(self, event: Any) -> None:
        if isinstance(event, ScalarEvent):
            self._begin(event)
            self._scalar(event)
        elif isinstance(event, MappingStartEvent):
            self._push(event, {})
        elif isinstance(event, SequenceStartEvent):
            self._push(event, [])
        elif isinstance(event, MappingEndEvent | SequenceEndEvent):
            frame = self._stack.pop()
            self._place(frame.data, frame.mark)
        elif isinstance(event, AliasEvent):
            self._begin(event)
            self._wrong(event, "aliases are not accepted; write the value out")
            self._put(event, None)
        elif isinstance(event, DocumentStartEvent):
            self._document(event)
        elif isinstance(event, DocumentEndEvent):
            self._stack.clear()

    def _document(self, event: Any) -> None:
        if event.version is not None and tuple(event.version) != (1, 2):
            self._wrong(event, "only YAML 1.2 is accepted; remove the %YAML line")
        if event.tags:
            self._wrong(event, "tags are not accepted; remove the %TAG line")

    def _wrong(self, event: Any, message: str) -> None:
        self.problems.append(Problem(self.name, *_at(event), message))
        if len(self.problems) >= MAX_PROBLEMS:
            raise _TooMuchError

    def _begin(self, event: Any) -> None:
        """What is checked of every value: how many there are, anchors, tags."""
        self._values += 1
        if self._values > MAX_VALUES:
            self._wrong(event, f"more than {MAX_VALUES} values in one file; split it")
            raise _TooMuchError
        if not isinstance(event, AliasEvent):
            if event.anchor is not None:
                self._wrong(event, "anchors are not accepted; write the value where it is needed")
            if event.tag is not None:
                self._wrong(event, "tags are not accepted; quote the value if it is text")

    def _push(self, event: Any, data: dict[str, Any] | list[Any]) -> None:
        self._begin(event)
        if len(self._stack) >= MAX_DEPTH:
            self._wrong(event, f"nested deeper than {MAX_DEPTH} levels")
            raise _TooMuchError
        if self._awaits_key():
            self._wrong(event, "a key must be text")
        at = _at(event)
        self._stack.append(_Frame(data, Mark(*at, *at, {})))

    def _awaits_key(self) -> bool:
        return bool(self._stack) and isinstance(self._stack[-1].data, dict) and self._stack[-1].key is None

    def _scalar(self, event: Any) -> None:
        if not self._awaits_key():
            self._put(event, self._value(event))
            return
        frame = self._stack[-1]
        frame.key, frame.key_at, frame.keep = event.value, _at(event), False
        if event.style is None and event.value == "<<":
            self._wrong(event, "merge keys are not accepted; write the keys out")
        elif not isinstance(key := self._value(event), str):
            self._wrong(event, f'a key must be text; write "{event.value[:40]}" in quotes')
        elif key in frame.data:
            first = frame.mark.members[key]
            self._wrong(event, f"duplicate key {key[:80]!r}; it stands first in line {first.key_line}")
        else:
            frame.key, frame.keep = key, True

    def _value(self, event: Any) -> Any:
        text: str = event.value
        if event.style is not None or event.tag is not None:
            return self._string(event, text)
        if text in _WORDS:
            return _WORDS[text]
        if text[0] not in "+-.0123456789":
            return self._string(event, text)
        if _INT.fullmatch(text):
            return self._integer(event, text)
        if _FLOAT.fullmatch(text):
            number = float(text)
            if math.isfinite(number):
                return number
        if _NOT_FINITE.fullmatch(text) or _FLOAT.fullmatch(text):
            self._wrong(event, "numbers must be finite")
            return 0
        return self._string(event, text)

    def _integer(self, event: Any, text: str) -> int:
        digits = text.lstrip("+-")
        if len(digits) > 1 and digits[0] == "0" and digits[1] not in "ox":
            self._wrong(event, "a number does not begin with 0; quote it if it is text")
            return 0
        number = int(text, 0) if len(digits) < 40 else 1 << 65
        if not -(1 << 63) <= number < 1 << 63:
            self._wrong(event, "integers must fit into 64 bits; quote it if it is text")
            return 0
        return number

    def _string(self, event: Any, text: str) -> str:
        try:
            # JSON escapes a character beyond U+FFFF as two surrogates; together they are that character.
            return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            self._wrong(event, "half of a surrogate pair; write the whole character")
            return ""

    def _put(self, event: Any, value: Any) -> None:
        at = _at(event)
        self._place(value, Mark(*at, *at, _NO_MEMBERS))

    def _place(self, value: Any, mark: Mark) -> None:
        """Put a finished value into what contains it; a value without container is a document."""
        if not self._stack:
            self.documents.append(Document(self.name, value, mark))
            return
        frame = self._stack[-1]
        if isinstance(frame.data, list):
            frame.mark.members[len(frame.data)] = mark
            frame.data.append(value)
        elif frame.key is None:
            frame.key, frame.keep = "", False  # this value stood where a key belongs, and has been reported
        else:
            if frame.keep:
                mark.key_line, mark.key_column = frame.key_at
                frame.data[frame.key] = value
                frame.mark.members[frame.key] = mark
            frame.key, frame.keep = None, True


def _at(event: Any) -> tuple[int, int]:
    return event.start_mark.line + 1, event.start_mark.column + 1
