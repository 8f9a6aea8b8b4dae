"""`broker_held_call`: the broker's one own tool, by which an agent collects or withdraws a call that was held.

It is listed only where some rule can hold a call, and it is small on purpose: every agent pays for it in every list.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from broker.errors import InvalidArguments
from broker.model.answer import Answer

NAME = "broker_held_call"

INPUT: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "id": {"type": "string", "maxLength": 64, "description": "The hold id you were given."},
        "withdraw": {"type": "boolean", "description": "true takes the call back if it has not run."},
    },
    "required": ["id"],
    "additionalProperties": False,
}

LISTED: Mapping[str, Any] = {
    "name": NAME,
    "title": "Result of a held call",
    "description": "Gives the result of a call that was held for a person's approval, or says how it stands.",
    "inputSchema": INPUT,
    "annotations": {"readOnlyHint": True, "openWorldHint": False},
}


def read(arguments: Mapping[str, Any]) -> tuple[str, bool]:
    """(hold id, withdraw) from the arguments. Raises InvalidArguments."""
    unknown = sorted(set(arguments) - {"id", "withdraw"})
    hold_id, withdraw = arguments.get("id"), arguments.get("withdraw", False)
    if unknown:
        raise InvalidArguments(f"{NAME} has no argument {unknown[0]!r}; it takes id and withdraw.")
    if not isinstance(hold_id, str) or not 0 < len(hold_id) <= 64:
        raise InvalidArguments(f"{NAME} needs id: the hold id you were given, as a string.")
    if not isinstance(withdraw, bool):
        raise InvalidArguments(f"{NAME}: withdraw must be true or false.")
    return hold_id, withdraw


def as_tool_answer(answer: Answer) -> Answer:
    """A collected answer as this tool's: what a resource or a prompt holds becomes content that a model is shown."""
    more = dict(answer.more)
    contents, messages = more.pop("contents", None), more.pop("messages", None)
    if contents is not None:
        return replace(answer, more=more, content=tuple({"type": "resource", "resource": one} for one in contents))
    if messages is not None:
        return replace(answer, more=more, content=tuple(one.get("content", {}) for one in messages))
    return answer
