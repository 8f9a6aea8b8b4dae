"""`broker_held_call`: the broker's one own tool, by which an agent collects or withdraws a call that was held.

It is listed only where some rule can hold a call, and it is small on purpose: every agent pays for it in every list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from broker.errors import InvalidArguments
from broker.model.answer import Answer
from broker.model.invocation import Invocation

NAME = "broker_held_call"
LISTED_HOLDS = 50

INPUT: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "id": {"type": "string", "maxLength": 64, "description": "The hold id you were given; absent: list yours."},
        "withdraw": {"type": "boolean", "description": "true takes the call back if it has not run."},
    },
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
    """(hold id, withdraw) from the arguments; "" for none. Raises InvalidArguments."""
    unknown = sorted(set(arguments) - {"id", "withdraw"})
    hold_id, withdraw = arguments.get("id"), arguments.get("withdraw", False)
    if unknown:
        raise InvalidArguments(f"{NAME} has no argument {unknown[0]!r}; it takes id and withdraw.")
    if not isinstance(withdraw, bool):
        raise InvalidArguments(f"{NAME}: withdraw must be true or false.")
    if hold_id is None and not withdraw:
        return "", False
    if not isinstance(hold_id, str) or not 0 < len(hold_id) <= 64:
        raise InvalidArguments(f"{NAME} needs id: the hold id you were given, as a string.")
    return hold_id, withdraw


def listing(holds: Sequence[Invocation], now_ms: int) -> Answer:
    """The caller's own open holds, newest first."""
    rows = [
        {
            "id": one.call_id,
            "tool": one.tool,
            "state": one.state,
            "reason": one.hold.reason if one.hold else "",
            "expires_in_s": max(0, ((one.hold.expires_at_ms if one.hold else 0) - now_ms) // 1000),
        }
        for one in holds
    ]
    text = "\n".join(f"{row['id']}  {row['tool']}  {row['state']}" for row in rows) or "You have no open held calls."
    return Answer(content=({"type": "text", "text": text},), structured={"holds": rows})


def as_tool_answer(answer: Answer) -> Answer:
    """A collected answer as this tool's: what a resource or a prompt holds becomes content that a model is shown."""
    more = dict(answer.more)
    contents, messages = more.pop("contents", None), more.pop("messages", None)
    if contents is not None:
        return replace(answer, more=more, content=tuple({"type": "resource", "resource": one} for one in contents))
    if messages is not None:
        return replace(answer, more=more, content=tuple(one.get("content", {}) for one in messages))
    return answer
