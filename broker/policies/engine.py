"""The engine behind expressions, cel-cpp, so that it can be replaced in one file. Imported when one needs it.

It type-checks, uses RE2 and limits recursion and iteration; what is left for us is never to trust an evaluation: it
returns errors as values.

What must not live here: which arguments a source names, what is judged without the engine (expression).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from cel_expr_python import cel  # pyright: ignore[reportMissingTypeStubs] – ships a .pyi for the module only

from broker.data import dataclass
from broker.document import did_you_mean

Result = Literal["condition", "amount"]
Activation = cel.Activation

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

_BOOL = cel.Type.BOOL
_NUMBERS = {cel.Type.INT.name(): int, cel.Type.UINT.name(): int, cel.Type.DOUBLE.name(): float, _TEXT.name(): str}


@dataclass(frozen=True, slots=True)
class Compiled:
    """Neither verb ever raises."""

    _expression: cel.Expression

    def met(self, facts: Activation) -> bool | None:
        """See Expression."""
        try:
            value = self._expression.eval(facts)
            return value.value() if value.type() == _BOOL else None
        except (RuntimeError, ValueError, TypeError):  # the engine's words for budget and for values it cannot hold
            return None

    def amount(self, facts: Activation) -> int | float | str | None:
        """See Expression."""
        try:
            value = self._expression.eval(facts)
            kind = _NUMBERS.get(value.type().name())
            return kind(value.value()) if kind else None
        except (RuntimeError, ValueError, TypeError):  # as in `met`
            return None


def compiled(source: str, result: Result) -> Compiled:
    """Raises ValueError with one sentence: not valid CEL, an unknown name, a result of another type."""
    try:
        expression = _ENVIRONMENT.compile(source)
    except (RuntimeError, ValueError) as error:
        raise ValueError(_told(str(error))) from None
    kind = expression.return_type().name()
    if result == "condition" and kind != _BOOL.name():
        raise ValueError(f"a condition must be true or false, this one gives {kind.lower()}{_hint(kind)}")
    if result == "amount" and kind not in (*_NUMBERS, cel.Type.DYN.name()):
        raise ValueError(f"an amount must be a number or a decimal in quotes, this one gives {kind.lower()}")
    return Compiled(expression)


def activation(data: Mapping[str, Any]) -> Activation:
    """What expressions are evaluated against. data: by variable."""
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
