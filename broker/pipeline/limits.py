"""What an agent is told about its quotas: in a refusal, beside a result, and when it asks.

Beside a result (`_meta`, dev.broker/limits) stands what this call's own charges left: the store said so when it took
them, so that nothing is asked again. Who wants to know before calling uses the tool `broker_limits` or reads the
resource `broker://limits`, which tell of every quota that applies to some tool the caller may use. Only the caller's
own buckets are told, of shared ones what is left; never who else is in them. All of it is there only where a quota is.

A refusal says which quota, whose, what is left and when it is worth asking again; of a breaker, that the agent is in a
loop. Amounts are in the units people use (`12.50 EUR`); an error's facts carry them as they are counted, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import orjson

from broker.catalog.catalog import Entry
from broker.errors import InvalidArguments, OverQuota
from broker.model.answer import Answer
from broker.model.part import RESOURCE
from broker.model.principal import Principal
from broker.model.quota import Charge, QuotaKind, QuotaState, is_money, room, spoken

META = "dev.broker/limits"
NAME = "broker_limits"
URI = "broker://limits"
RESOURCE_NAME = RESOURCE + URI
MOST_BUCKETS = 200  # of one answer

INPUT: Mapping[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
LISTED: Mapping[str, Any] = {
    "name": NAME,
    "title": "Your limits",
    "description": "Says what is left of the quotas that apply to your calls, and when they begin anew.",
    "inputSchema": INPUT,
    "annotations": {"readOnlyHint": True, "openWorldHint": False},
}
LISTED_RESOURCE: Mapping[str, Any] = {
    "uri": URI,
    "name": "limits",
    "title": "Your limits",
    "description": "What is left of the quotas that apply to your calls.",
    "mimeType": "application/json",
}


def charges(entries: Iterable[Entry], caller: Principal, task: str, now_ms: int) -> list[Charge]:
    """A charge for every bucket of this caller, at most MOST_BUCKETS. Those that only a certain call has (a repeated
    one, a model's) are left out."""
    found: dict[tuple[str, str], Charge] = {}
    for entry in entries:
        for charge in entry.standing(caller, now_ms, task):
            found.setdefault((charge.quota, charge.bucket), charge)
            if len(found) == MOST_BUCKETS:
                return list(found.values())
    return list(found.values())


def answer(call_arguments: Mapping[str, Any], states: Sequence[QuotaState]) -> Answer:
    """What the tool answers. Raises InvalidArguments."""
    if call_arguments:
        raise InvalidArguments(f"{NAME} takes no arguments.", next_step="Call it without any.")
    limits = {"limits": [{**told(state), "whose": state.bucket, "kind": state.kind} for state in states]}
    return Answer(content=({"type": "text", "text": orjson.dumps(limits).decode()},), structured=limits)


def as_resource(tool_answer: Answer) -> Answer:
    text = tool_answer.content[0]["text"]
    return Answer(more={"contents": [{"uri": URI, "mimeType": "application/json", "text": text}]})


def beside(result: Answer, states: Sequence[QuotaState]) -> Answer:
    """The answer of a call that was charged, with what is left."""
    left = [told(state) for state in states if state.kind != "concurrency"]  # its place is free again by now
    return result.with_meta(META, left) if left else result


def told(state: QuotaState) -> dict[str, Any]:
    """One quota for a model: amounts in the unit people use, times as RFC 3339."""
    said: dict[str, Any] = {"quota": state.quota, "left": state.left, "limit": state.limit, "unit": state.unit}
    if is_money(state.unit):  # counted things are numbers, money is a decimal's text
        said["left"], _ = spoken(state.left, state.unit)
        said["limit"], said["unit"] = spoken(state.limit, state.unit)
    if state.resets_at_ms:
        said["resets_at"] = _as_time(state.resets_at_ms)
    if state.retry_after_ms:
        said["retry_after_s"] = -(-state.retry_after_ms // 1000)
    return said


@lru_cache(maxsize=256)
def _as_time(at_ms: int) -> str:
    """RFC 3339. Windows end at the same few times for all calls."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="seconds")


def refusal(tool: str, over: QuotaState) -> OverQuota:
    """The error for a call that this quota has no room for."""
    whose = f" for {over.bucket}" if over.bucket else ""
    why, next_step = _looping(over, whose) or _used_up(over, whose)
    return OverQuota(
        f"Refused: {why} {tool} was not sent.",
        retry_after_ms=over.retry_after_ms,
        next_step=next_step,
        quota=over.quota,
        kind=over.kind,
        bucket=over.bucket,
        limit=over.limit,
        left=over.left,
        unit=over.unit,
    )


def _used_up(over: QuotaState, whose: str) -> tuple[str, str]:
    why = f"quota {over.quota}{whose} has no room for this call: {room(over.left, over.limit, over.unit)}."
    if not over.retry_after_ms:
        return why, "It will not fit later either; ask for less, or ask the person you work for."
    return why, f"Try again in {_seconds(over.retry_after_ms)}."


_LOOPS: Mapping[QuotaKind, tuple[str, str]] = {
    "repeat": (
        "this very call was sent {limit} times in a short time; you seem to be in a loop (quota {quota}).",
        (
            "Do not send it again: use the answers you have, do something else, or ask the person you work for. "
            "It is let through again in {wait}."
        ),
    ),
    "errors": (
        "{limit} calls failed in a short time; you seem to be in a loop (quota {quota}).",
        (
            "Stop, read what those calls answered, and change what you do, or ask the person you work for. "
            "Calls are let through again in {wait}."
        ),
    ),
}


def _looping(over: QuotaState, whose: str) -> tuple[str, str] | None:
    words = _LOOPS.get(over.kind)
    if words is None:
        return None
    told = {"limit": over.limit, "quota": f"{over.quota}{whose}", "wait": _seconds(over.retry_after_ms)}
    return words[0].format_map(told), words[1].format_map(told)


def _seconds(milliseconds: int) -> str:
    return f"{max(1, -(-milliseconds // 1000))} s"
