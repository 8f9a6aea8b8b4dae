"""CEL behind two verbs, compile and met, so that the engine can be replaced in one file.

Variables: `args` (map), `caller.agent|user|tenant` (text), `caller.scopes|groups` (list of texts),
`tool.name|version|owner|effect|backend` (text), `now` (timestamp). They are declared as dotted names, so a field that
does not exist is an error at load. The engine type-checks, uses RE2 and limits recursion and iteration; what is left
for us is the length of a source, and never to trust an evaluation: the engine returns errors as values.

Which arguments a source names is found by our own tokens, because the engine does not show its syntax tree. Where the
tokens are unsure they say "everything" (`whole`), which only makes judgement later, never wrong.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from cel_expr_python import cel  # pyright: ignore[reportMissingTypeStubs] – ships a .pyi for the module only

from broker.data import dataclass
from broker.document import did_you_mean
from broker.model.principal import Principal

MAX_SOURCE = 2048

_TEXT, _TEXTS = cel.Type.STRING, cel.Type.List(cel.Type.STRING)
VARIABLES: Mapping[str, cel.Type] = {
    "args": cel.Type.Map(cel.Type.STRING, cel.Type.DYN),
    "caller.agent": _TEXT,
    "caller.user": _TEXT,
    "caller.tenant": _TEXT,
    "caller.scopes": _TEXTS,
    "caller.groups": _TEXTS,
    "tool.name": _TEXT,
    "tool.version": _TEXT,
    "tool.owner": _TEXT,
    "tool.effect": _TEXT,
    "tool.backend": _TEXT,
    "now": cel.Type.TIMESTAMP,
}
_ENVIRONMENT = cel.NewEnv(variables=VARIABLES)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_BOOL = cel.Type.BOOL
_NUMBERS = {cel.Type.INT.name(): int, cel.Type.UINT.name(): int, cel.Type.DOUBLE.name(): float, _TEXT.name(): str}

_TOKEN = re.compile(
    r"""(?P<space>\s+|//[^\n]*)
      | (?P<text>[rRbB]{0,2}(?:\"\"\"(?s:.*?)\"\"\"|'''(?s:.*?)'''|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'))
      | (?P<word>[A-Za-z_][A-Za-z0-9_]*|`[^`\n]*`)
      | (?P<number>\.?[0-9][0-9A-Za-z.]*)
      | (?P<sign>.)""",
    re.VERBOSE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class References:
    """What a source names. arguments: those named by `args.x` or `args["x"]`; guarded: those it asks for with
    `has(args.x)` or `"x" in args`. whole: `args` is used in another way, so any argument may matter.
    """

    variables: frozenset[str]
    arguments: frozenset[str]
    guarded: frozenset[str]
    whole: bool

    @property
    def needs_call(self) -> bool:
        """Whether the result can differ between two calls of one caller to one tool."""
        return "args" in self.variables or "now" in self.variables


@dataclass(frozen=True, slots=True)
class Expression:
    """A compiled source. `met` is for conditions, `amount` for costs; neither ever raises."""

    source: str
    references: References
    _compiled: cel.Expression
    _plain: tuple[str, Callable[[int, int], bool], int] | None = None  # the argument, the comparison, the number

    @classmethod
    def compile(cls, source: str, *, result: Literal["condition", "amount"] = "condition") -> Expression:
        """Raises ValueError with one sentence: too long, not valid CEL, an unknown name, a result of another type."""
        if len(source.encode()) > MAX_SOURCE:
            raise ValueError(f"an expression has at most {MAX_SOURCE} bytes")
        try:
            compiled = _ENVIRONMENT.compile(source)
        except (RuntimeError, ValueError) as error:
            raise ValueError(_told(str(error))) from None
        kind = compiled.return_type().name()
        if result == "condition" and kind != _BOOL.name():
            raise ValueError(f"a condition must be true or false, this one gives {kind.lower()}{_hint(kind)}")
        if result == "amount" and kind not in (*_NUMBERS, cel.Type.DYN.name()):
            raise ValueError(f"an amount must be a number or a decimal in quotes, this one gives {kind.lower()}")
        return cls(source, _references(source), compiled, _comparison(source))

    def plainly(self, arguments: Mapping[str, Any]) -> bool | None:
        """What `met` would say, where it can be said without the engine; None: ask that.

        Most rules compare one argument with a whole number. Two integers of 64 bits are compared alike by everybody;
        anything else (a float, a boolean, a larger integer, an argument that is not there) is left to the engine.
        """
        if self._plain is None:
            return True if self.source == "true" else None
        name, compare, number = self._plain
        given = arguments.get(name)
        return compare(given, number) if type(given) is int and LEAST <= given <= GREATEST else None

    def met(self, facts: Facts) -> bool | None:
        """True or false; None when it cannot be said (a missing or mistyped value, the budget)."""
        if self.source == "true":  # the rule that catches the rest
            return True
        try:
            value = self._compiled.eval(facts)
            return value.value() if value.type() == _BOOL else None
        except (RuntimeError, ValueError, TypeError):  # the engine's words for budget and for values it cannot hold
            return None

    def amount(self, facts: Facts) -> int | float | str | None:
        """The number, or the text of one; None when it cannot be said."""
        try:
            value = self._compiled.eval(facts)
            kind = _NUMBERS.get(value.type().name())
            return kind(value.value()) if kind else None
        except (RuntimeError, ValueError, TypeError):  # as in `met`
            return None


_COMPARISON = re.compile(r"\s*args\.([A-Za-z_][A-Za-z0-9_]*)\s*(==|!=|<=|>=|<|>)\s*(-?[0-9]{1,18})\s*", re.ASCII)
_COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
LEAST, GREATEST = -(2**63), 2**63 - 1


def _comparison(source: str) -> tuple[str, Callable[[int, int], bool], int] | None:
    """`args.amount <= 50` in its parts, None for any other source. It has compiled, so the name is no word of CEL's."""
    found = _COMPARISON.fullmatch(source)
    return None if found is None else (found[1], _COMPARE[found[2]], int(found[3]))


Facts = cel.Activation
"""What expressions are evaluated against; made by `facts`, good for any number of expressions of one call."""


def facts(
    variables: frozenset[str],
    tool: Mapping[str, str],
    caller: Principal,
    arguments: Mapping[str, Any],
    now_ms: int,
) -> Facts:
    """variables: those that are used by what will be evaluated; others may be left out. tool: its `tool.*` values."""
    data: dict[str, Any] = {
        **tool,
        "args": arguments,
        "caller.agent": caller.agent,
        "caller.user": caller.user,
        "caller.tenant": caller.tenant,
    }
    if "caller.scopes" in variables:
        data["caller.scopes"] = list(caller.scopes)
    if "caller.groups" in variables:
        data["caller.groups"] = list(caller.groups)
    if "now" in variables:
        data["now"] = _EPOCH + timedelta(milliseconds=now_ms)
    try:
        return _ENVIRONMENT.Activation(data)
    except (RuntimeError, ValueError, TypeError, OverflowError):  # values the engine cannot hold
        return _ENVIRONMENT.Activation({})  # whatever names a variable cannot be evaluated then


def _hint(kind: str) -> str:
    return "; compare it with something, such as `args.x == true`" if kind == cel.Type.DYN.name() else ""


def _told(message: str) -> str:
    """The engine's first complaint as one sentence, with the nearest variable for an unknown one."""
    if "recursion" in message:
        return "the expression is nested too deeply; split it into several rules"
    if (found := re.search(r"ERROR: <input>:(-?\d+):(-?\d+): (.*)", message)) is None:
        return message.splitlines()[0][:200]
    said = found[3]
    place = f" (line {found[1]}, character {found[2]})" if found[1] != "-1" else ""
    if unknown := re.match(r"undeclared reference to '([^']+)'", said):
        return f"unknown name {unknown[1]!r}{place}{did_you_mean(unknown[1], VARIABLES)}"
    if "'<EOF>'" in said:
        return f"Syntax error: the expression ends too early{place}"
    said = said.split(" expecting {")[0]  # what could stand there instead is a list of the whole grammar
    hint = "; write whole numbers as 2.0 beside decimals" if "(int, double)" in said or "(double, int)" in said else ""
    return f"{said.split(' (in container')[0]}{place}{hint}"


# ---------------------------------------------------------------------------------------------------- what it refers to

_OPERAND_END = frozenset({"word", "number", "text"})


def _references(source: str) -> References:
    tokens = [(match.lastgroup or "", match[0]) for match in _TOKEN.finditer(source) if match.lastgroup != "space"]
    variables, arguments, guarded, whole = set[str](), set[str](), set[str](), False
    for index, (kind, word) in enumerate(tokens):
        if kind != "word" or _is_field(tokens, index):
            continue
        if word in ("caller", "tool"):
            variables.update(f"{word}.{field}" for field in _fields_after(tokens, index))
        elif word == "now":
            variables.add("now")
        elif word == "args":
            variables.add("args")
            name = next(_fields_after(tokens, index), None)
            if name is None:
                asked = _asked_in(tokens, index)
                guarded.update(asked)
                whole = whole or not asked
                continue
            arguments.add(name)
            if _is_guard(tokens, index):
                guarded.add(name)
    return References(frozenset(variables), frozenset(arguments), frozenset(guarded), whole)


def _is_field(tokens: Sequence[tuple[str, str]], index: int) -> bool:
    """Whether this word is a field of what stands before it. A dot at the beginning of an operand is not that: `.args`
    is the variable by its absolute name."""
    if index == 0 or tokens[index - 1][1] != ".":
        return False
    if index == 1:
        return False
    kind, text = tokens[index - 2]
    return (kind in _OPERAND_END and text != "in") or text in (")", "]", "}")


def _fields_after(tokens: Sequence[tuple[str, str]], index: int) -> Iterator[str]:
    """The field that is taken of the variable at index: `.x` or `["x"]`; nothing for a method or another index."""
    following = [*tokens[index + 1 : index + 4], ("", ""), ("", ""), ("", "")]
    (_, sign), (kind, text), (_, after) = following[:3]
    if sign == "." and kind == "word" and after != "(":
        yield text.strip("`")
    elif sign == "[" and kind == "text" and after == "]":
        yield _unquoted(text)


def _is_guard(tokens: Sequence[tuple[str, str]], index: int) -> bool:
    """`has(args.x)`, exactly: in `has(args.x.y)` x itself must be there."""
    around = [text for _, text in tokens[max(0, index - 2) : index]]
    after = tokens[index + 3][1] if len(tokens) > index + 3 else ""
    return around == ["has", "("] and after == ")" and tokens[index + 1][1] == "."


def _asked_in(tokens: Sequence[tuple[str, str]], index: int) -> list[str]:
    """`"x" in args`"""
    if index >= 2 and tokens[index - 1][1] == "in" and tokens[index - 2][0] == "text":
        return [_unquoted(tokens[index - 2][1])]
    return []


def _unquoted(text: str) -> str:
    body = text.lstrip("rRbB")
    width = 3 if body[:3] in ('"""', "'''") else 1
    return body[width:-width]
