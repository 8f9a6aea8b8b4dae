"""CEL behind two verbs, compile and met.

Variables: `args` (map), `caller.agent|user|tenant` (text), `caller.scopes|groups` (list of texts),
`tool.name|version|owner|effect|backend` (text), `now` (timestamp). They are declared as dotted names, so a field that
does not exist is an error at load. The engine (engine.py) is asked for what is more than a comparison.

Which arguments a source names is found by our own tokens, because the engine does not show its syntax tree. Where the
tokens are unsure they say "everything" (`whole`), which only makes judgement later, never wrong.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from typing import TYPE_CHECKING, Any, TypeAlias

from broker.data import dataclass
from broker.model.principal import Principal

if TYPE_CHECKING:  # late where it runs: see `_compiled`
    from broker.policies.engine import Activation, Compiled, Result

MAX_SOURCE = 2048

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

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
    _compiled: Callable[[], Compiled]
    _plain: tuple[str, Callable[[int, int], bool], int] | None = None  # the argument, the comparison, the number

    @classmethod
    def compile(cls, source: str, *, result: Result = "condition") -> Expression:
        """Raises ValueError with one sentence: too long, not valid CEL, an unknown name, a result of another type."""
        if len(source.encode()) > MAX_SOURCE:
            raise ValueError(f"an expression has at most {MAX_SOURCE} bytes")
        compiled = cache(partial(_compiled, source, result))
        plain = _comparison(source)
        if result != "condition" or (plain is None and source != "true"):
            compiled()
        return cls(source, _references(source), compiled, plain)

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
        return self._compiled().met(facts)

    def amount(self, facts: Facts) -> int | float | str | None:
        """The number, or the text of one; None when it cannot be said."""
        return self._compiled().amount(facts)


def _compiled(source: str, result: Result) -> Compiled:
    """Raises ValueError as `Expression.compile`. Late: the engine and its library are a tenth of a small broker, and
    most rules compare one argument with a whole number, which anybody can do."""
    from broker.policies import engine

    return engine.compiled(source, result)


_COMPARISON = re.compile(r"\s*args\.([A-Za-z_][A-Za-z0-9_]*)\s*(==|!=|<=|>=|<|>)\s*(-?[0-9]{1,18})\s*", re.ASCII)
_COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
_RESERVED = frozenset({
    "as", "break", "const", "continue", "else", "false", "for", "function", "if", "import", "in", "let", "loop",
    "namespace", "null", "package", "return", "true", "var", "void", "while",
})  # fmt: skip
LEAST, GREATEST = -(2**63), 2**63 - 1


def _comparison(source: str) -> tuple[str, Callable[[int, int], bool], int] | None:
    """`args.amount <= 50` in its parts, None for any other source. The engine would compile it, to a condition."""
    found = _COMPARISON.fullmatch(source)
    return None if found is None or found[1] in _RESERVED else (found[1], _COMPARE[found[2]], int(found[3]))


Facts: TypeAlias = "Activation"
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
    from broker.policies import engine  # late, as in `_compiled`

    return engine.activation(data)


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
