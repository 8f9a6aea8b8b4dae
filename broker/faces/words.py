"""One call in words and as a document, the same in every face: list, record, timeline.

What must not live here: how a face lays it out (colour, columns, HTML), and making foreign text visible (text): what is
returned here is as recorded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from broker.data import dataclass
from broker.model.invocation import Invocation
from broker.model.quota import room

# The stages of the call's sentence in its order, for records whose laps come in another.
STAGES = ("authenticate", "resolve", "validate", "authorise", "admit", "dispatch", "inspect", "settle", "record")

EFFECTS = {
    "none": "nothing was done",
    "done": "it was done",
    "unknown": "nobody can say whether it was done",
}


def as_document(invocation: Invocation) -> dict[str, Any]:
    """The whole record as JSON: the model's own field names, and `at` and `duration_ms` for reading."""
    at = datetime.fromtimestamp(invocation.at_ms / 1000, UTC).isoformat(timespec="milliseconds")
    return {"call_id": invocation.call_id, "at": at, **asdict(invocation), "duration_ms": invocation.duration_ms}


def why(invocation: Invocation) -> str:
    """The one reason worth a column: who decided, else the error's code, else the rule that decided."""
    hold = invocation.hold
    if invocation.state == "held" and hold:
        return f"{invocation.rule}: {hold.reason}"
    if hold and hold.reviewer and not invocation.code:
        verb = {"rejected": "denied", "withdrawn": "withdrawn"}.get(invocation.state, "approved")
        return f"{invocation.rule}: {verb} by {hold.reviewer}"
    return invocation.code or invocation.rule


def who(invocation: Invocation) -> str:
    """`agent`, `agent for user`, and the tenant where there is one."""
    person = f" for {invocation.user}" if invocation.user else ""
    tenant = f" ({invocation.tenant})" if invocation.tenant else ""
    return f"{invocation.agent}{person}{tenant}"


def span(milliseconds: float) -> str:
    """A length of time for people: `340 ms`, `12 s`, `4 min`, `3 h 20 min`, `2 d 4 h`."""
    if milliseconds < 1000:
        return f"{milliseconds:.0f} ms" if milliseconds >= 10 else f"{milliseconds:.1f} ms"
    seconds = int(milliseconds // 1000)
    if seconds < 60:
        return f"{seconds} s"
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86_400
    if minutes < 60:
        return f"{minutes} min"
    if hours < 48:
        return f"{hours} h {minutes % 60} min" if minutes % 60 else f"{hours} h"
    return f"{days} d {hours % 24} h" if hours % 24 else f"{days} d"


def count(number: int, noun: str) -> str:
    """`1 tool`, `2 tools`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that happened to a call. at_ms 0: its moment is not recorded. took_us 0: not measured."""

    what: str
    at_ms: int = 0
    took_us: int = 0
    detail: str = ""


def timeline(invocation: Invocation) -> list[Step]:
    """From request to outcome, in the order it happened."""
    return list(_steps(invocation))


def _steps(invocation: Invocation) -> Iterator[Step]:
    hold, laps = invocation.hold, invocation.laps_us
    yield Step("received", invocation.at_ms, detail=f"through {invocation.face}")
    for stage in (*STAGES, *(name for name in laps if name not in STAGES)):
        if stage in laps and stage != "dispatch":
            yield Step(stage, took_us=laps[stage], detail=invocation.rule if stage == "authorise" else "")
    for quota in invocation.quotas:
        left = room(quota["left"], quota["limit"], quota["unit"])
        yield Step("quota", detail=f"{quota.get('quota')} [{quota.get('bucket')}]: {left}")
    if hold:
        yield Step("held", invocation.at_ms, detail=f"{hold.reason} (rule {invocation.rule})")
        if hold.reviewed_at_ms:
            words = f": {hold.review_reason}" if hold.review_reason else ""
            yield Step("decided", hold.reviewed_at_ms, detail=f"by {hold.reviewer}{words}")
    if "dispatch" in laps:
        yield Step("dispatch", took_us=laps["dispatch"], detail=f"to {invocation.backend}")
    if invocation.state == "held":
        return  # it waits still: that it does has been said
    status = f" ({invocation.backend_status})" if invocation.backend_status else ""
    told = f". {invocation.message}" if invocation.message else ""
    yield Step(invocation.state, invocation.changed_at_ms, detail=f"{EFFECTS[invocation.effect]}{status}{told}")
    if hold and hold.collected_at_ms:
        yield Step("collected", hold.collected_at_ms, detail="by the caller")
