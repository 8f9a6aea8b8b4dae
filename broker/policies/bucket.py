"""Whose bucket a call is charged in: any combination of who calls, for whom, as what, and of what is called.

`agent`, `user`, `tenant` and `group` come from the credential. `task` and `model` are what the caller says: they make
buckets smaller and nothing else, since every quota that selects a tool is charged. A quota by task must name a caller,
too, so that nobody can use up another's task.

Spelling variants (case, width, composition) are one bucket; a value cannot be written so that it looks like another's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from broker.data import dataclass
from broker.model.canonical import digest
from broker.model.principal import Principal, person

Key = Literal["agent", "user", "tenant", "group", "task", "tool", "backend", "model"]
CALLERS = frozenset({"agent", "user", "tenant"})
CALLS = frozenset({"task", "model"})  # another one, perhaps, for each call of a caller

MODEL_ARGUMENT = "model"
MODEL_CHARACTERS = 128  # of what names a bucket; the digest of what is longer
SHOWN_DIGITS = 16  # of a call's digest: enough that no two calls of one caller share a bucket


@dataclass(frozen=True, slots=True)
class Asked:
    """A call as buckets see it. tool: its `tool.*` values. task: "" when it is part of none."""

    caller: Principal
    arguments: Mapping[str, Any]
    tool: Mapping[str, str]
    task: str = ""


def buckets(by: Sequence[Key], groups: frozenset[str], asked: Asked) -> list[str]:
    """`["agent=bot,tool=refund"]`: one; with `group` among the keys one for each of these groups the caller is in."""
    if "group" not in by:
        return [",".join(f"{key}={_escaped(_VALUES[key](asked))}" for key in by)]
    own = sorted({person(group) for group in asked.caller.groups} & groups)
    return [
        ",".join(f"{key}={_escaped(group if key == 'group' else _VALUES[key](asked))}" for key in by) for group in own
    ]


def of_call(bucket: str, asked: Asked) -> str:
    """The bucket of this very call within a bucket: the tool and its arguments."""
    same = digest([asked.tool["tool.name"], asked.arguments]).rpartition(":")[2][:SHOWN_DIGITS]
    return f"{bucket},call={same}" if bucket else f"call={same}"


def _user(asked: Asked) -> str:
    """Who acts for no user is counted as itself."""
    return person(asked.caller.user) or f"agent:{person(asked.caller.agent)}"


def _model(asked: Asked) -> str:
    named = asked.arguments.get(MODEL_ARGUMENT)
    if not isinstance(named, str):
        return ""
    return person(named) if len(named) <= MODEL_CHARACTERS else digest(named)


_VALUES: Mapping[Key, Callable[[Asked], str]] = {
    "agent": lambda asked: person(asked.caller.agent),
    "user": _user,
    "tenant": lambda asked: person(asked.caller.tenant),
    "task": lambda asked: asked.task,
    "tool": lambda asked: asked.tool["tool.name"],
    "backend": lambda asked: asked.tool["tool.backend"],
    "model": _model,
}


def _escaped(value: str) -> str:
    """Values come from credentials: none may look like another bucket."""
    return value.replace("%", "%25").replace(",", "%2C").replace("=", "%3D")
