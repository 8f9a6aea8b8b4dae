"""How a held call ended, for its caller: the answer it was given, or the error that says who or what ended it.

Nothing is decided here; the words are for an agent, and say what to do next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import orjson

from broker.errors import BackendError, BrokerError, Denied, Expired, OutcomeUnknown, UnknownHold, Withdrawn
from broker.model.answer import Answer
from broker.model.invocation import Invocation
from broker.ports import Collected

SHOWN = 200  # characters of a changed value in words; as data it is whole
CHANGED_META = "dev.broker/changed"
"""Key of a result's `_meta`: who changed the call before approving it, and what: {by, changes: [{path, kind, ...}]}."""


def ended(collected: Collected) -> Answer | None:
    """The answer of a held call that ended with one; None while it is open. Raises how it ended otherwise."""
    invocation = collected.invocation
    if collected.result:
        answer = Answer.from_result(orjson.loads(collected.result), status=invocation.backend_status)
        return _with_changes(answer, invocation, orjson.loads(collected.changes)) if collected.changes else answer
    ended = _ENDINGS.get(invocation.state)
    if ended is None:
        return None
    raise ended(invocation)


def _with_changes(answer: Answer, invocation: Invocation, changes: list[dict[str, Any]]) -> Answer:
    """The answer with what a reviewer had changed, in words for the model and as data."""
    by = invocation.hold.edited_by if invocation.hold else ""
    told = "; ".join(_change(one) for one in changes)
    words = f"Note: {by} approved this call with other arguments than you sent. {told}."
    meta = {**(answer.meta or {}), CHANGED_META: {"by": by, "changes": changes}}
    return replace(answer, content=(*answer.content, {"type": "text", "text": words}), meta=meta)


def _change(one: Mapping[str, Any]) -> str:
    was, now = (orjson.dumps(one.get(key)).decode()[:SHOWN] for key in ("was", "now"))
    path = one["path"]
    told = {
        "changed": f"{path}: {was} became {now}",
        "added": f"{path}: {now} was added",
        "removed": f"{path} was removed",
    }
    return told[one["kind"]]


def _denied(invocation: Invocation) -> BrokerError:
    hold = invocation.hold
    words = f": {hold.review_reason}" if hold and hold.review_reason else "."
    return Denied(
        f"Refused: {hold.reviewer if hold else 'the reviewer'} denied {invocation.tool} (hold {invocation.call_id})"
        f"{words} Nothing was done.".replace("..", "."),
        next_step="Do not send the same call again; change the request or ask the person you work for.",
        **_facts(invocation),
    )


def _expired(invocation: Invocation) -> BrokerError:
    return Expired(
        f"Refused: nobody decided on {invocation.tool} in time (hold {invocation.call_id}). Nothing was done.",
        next_step="Send the call again if it is still wanted; it will be held anew.",
        **_facts(invocation),
    )


def _withdrawn(invocation: Invocation) -> BrokerError:
    why = invocation.hold.review_reason if invocation.hold else ""
    return Withdrawn(
        f"Refused: the held call of {invocation.tool} was withdrawn (hold {invocation.call_id}): {why}. "
        "Nothing was done.",
        next_step="Ask for the tool list again and send a new call if it is still wanted.",
        **_facts(invocation),
    )


def _failed(invocation: Invocation) -> BrokerError:
    error = BackendError(invocation.message or f"{invocation.tool} failed.", **_facts(invocation))
    error.effect = invocation.effect
    return error


def _unknown(invocation: Invocation) -> BrokerError:
    return OutcomeUnknown(
        invocation.message
        or f"{invocation.tool} was sent, then the broker was interrupted; whether it was done is unknown.",
        next_step="Check before you try again." if not invocation.message else "",
        **_facts(invocation),
    )


def _delivered(invocation: Invocation) -> BrokerError:
    return UnknownHold(
        f"{invocation.tool} ran and {invocation.state}; its result is no longer kept (hold {invocation.call_id}).",
        next_step="The record of the call remains.",
        **_facts(invocation),
    )


_ENDINGS: Mapping[str, Callable[[Invocation], BrokerError]] = {
    "rejected": _denied,
    "expired": _expired,
    "withdrawn": _withdrawn,
    "failed": _failed,
    "outcome_unknown": _unknown,
    "succeeded": _delivered,
}


def _facts(invocation: Invocation) -> dict[str, Any]:
    facts: dict[str, Any] = {"hold_id": invocation.call_id, "state": invocation.state}
    if invocation.hold and invocation.hold.reviewer:
        facts["reviewer"] = invocation.hold.reviewer
    if invocation.code:
        facts["cause"] = invocation.code
    return facts


def spoken(seconds: int) -> str:
    """A length of time in words: `20 minutes`."""
    for unit, size in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= 2 * size - size // 2:
            return f"{round(seconds / size)} {unit}s"
    return f"{seconds} seconds"
