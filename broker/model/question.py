"""What may be asked of many calls: conditions on the arguments that are kept, and sums by one fact of the calls."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Literal, get_args

import orjson

from broker.data import dataclass, field

By = Literal["agent", "user", "tenant", "tool", "backend", "rule", "state", "code"]
Sort = Literal["calls", "refused", "failed", "time", "cost"]
Operator = Literal["=", "!=", "<", "<=", ">", ">="]

MOST_CONDITIONS = 8
# For published schemas; `read` is the judge.
CONDITION = r"^\s*args\.[A-Za-z0-9_.-]+\s*(!=|<=|>=|==|=|<|>)\s*[^\s\u0000,][^\n\u0000,]*$"
_CONDITION = re.compile(r"\s*args((?:\.[A-Za-z0-9_-]{1,64}){1,8})\s*(!=|<=|>=|==|=|<|>)\s*(.{1,256}?)\s*")
_KINDS: Mapping[type, str] = {bool: "true or false", int: "number", float: "number", str: "text"}


@dataclass(frozen=True, slots=True)
class Condition:
    """A kept argument compared with a value of its own kind: 5 is never above "4", nor is anything above true."""

    path: tuple[str, ...]
    operator: Operator
    value: str | float | bool

    def __str__(self) -> str:
        """So that `read` gives it again."""
        return f"args.{'.'.join(self.path)} {self.operator} {orjson.dumps(self.value).decode()}"

    @classmethod
    def read(cls, text: str) -> Condition:
        """`args.amount > 100`, `args.customer.id = 'c-7'`. A value that is not JSON is a text.

        Raises ValueError with one sentence for a person.
        """
        match = _CONDITION.fullmatch(text)
        if match is None:
            raise ValueError(
                f"{text[:80]!r} is not like args.amount > 100 (operators: {', '.join(get_args(Operator))})"
            )
        path, operator, written = match.groups()
        value = _value(written)
        if isinstance(value, bool) and operator not in ("=", "==", "!="):
            raise ValueError(f"{text[:80]!r}: true and false are equal or not, never more or less")
        return cls(tuple(path[1:].split(".")), "=" if operator == "==" else operator, value)  # type: ignore[arg-type]


def _value(written: str) -> str | float | bool:
    if len(written) > 1 and written[0] == written[-1] == "'":
        return written[1:-1]
    try:
        value = orjson.loads(written)
    except ValueError:
        return written
    if type(value) not in _KINDS:
        raise ValueError(f"{written[:80]!r} is no text, number, true or false")
    return value


@dataclass(frozen=True, slots=True)
class Group:
    """Calls that have one fact in common. sent: how many of them were dispatched. mean_ms, slowest_ms: of the dispatch.
    spent: unit -> amount, in the quota's own unit."""

    name: str
    calls: int
    refused: int  # denied, rejected, expired, withdrawn
    failed: int
    unknown: int
    sent: int = 0
    mean_ms: float = 0.0
    slowest_ms: float = 0.0
    spent: Mapping[str, int] = field(default_factory=dict[str, int])


FIRST: Mapping[Sort, Callable[[Group], tuple[float, str]]] = {
    "calls": lambda one: (-one.calls, one.name),
    "refused": lambda one: (-one.refused, one.name),
    "failed": lambda one: (-one.failed - one.unknown, one.name),
    "time": lambda one: (-one.mean_ms, one.name),
    "cost": lambda one: (-sum(one.spent.values()), one.name),
}
