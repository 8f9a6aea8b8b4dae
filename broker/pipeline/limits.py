"""What an agent is told about its quotas: in a refusal, beside a result, and when it asks.

A refusal says which quota, whose, what is left and when it is worth asking again; of a breaker, that the agent is in a
loop. Amounts are in the units people use (`12.50 EUR`); an error's facts carry them as they are counted, too.
"""

from __future__ import annotations

from collections.abc import Mapping

from broker.errors import OverQuota
from broker.model.quota import QuotaKind, QuotaState, room


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
