"""How one call looks on a terminal: as a row of a list, and in detail from request to outcome."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from broker.errors import Conflict, UnknownHold
from broker.faces.cli.output import stamp, styled
from broker.faces.text import rendered, safe
from broker.faces.words import EFFECTS, STAGES, span, who, why
from broker.model.invocation import Invocation, InvocationQuery
from broker.model.quota import room

if TYPE_CHECKING:
    from broker.faces.cli.records import Reader

ID_CHARS = 36
SHORT = 8  # of an id, its random end

HEADINGS = ("TIME", "CALL", "STATE", "TOOL", "WHO", "TOOK", "WHY")


def row(invocation: Invocation, *, short: bool) -> list[str]:
    return [
        stamp(invocation.at_ms),
        invocation.call_id[-SHORT:] if short else invocation.call_id,
        invocation.state,
        invocation.tool,
        who(invocation),
        span(invocation.duration_ms),
        why(invocation),
    ]


def line(invocation: Invocation, *, short: bool) -> str:
    """A row as one line for `--follow`, where no column is known in advance."""
    at, call, state, tool, asked, took, reason = row(invocation, short=short)
    return (
        f"{at}  {safe(call)}  {styled(f'{state:<15}', state)}  {safe(f'{tool:<24}  {asked:<20}  {took:>7}  {reason}')}"
    )


# ------------------------------------------------------------------------------------------------------------ detail


def detail(invocation: Invocation) -> list[str]:
    """Everything recorded about one call, top to bottom in the order it happened."""
    lines = [f"{styled(invocation.tool, 'bold')}  {styled(invocation.state, invocation.state)}", ""]
    lines += _facts([
        ("call", invocation.call_id),
        ("asked by", who(invocation)),
        ("vouched by", invocation.issuer),
        ("through", invocation.face),
        ("request", invocation.request_id),
        ("trace", invocation.trace_id),
        ("version", f"{invocation.tool_version} ({invocation.tool_effect})" if invocation.tool_version else ""),
        ("backend", invocation.backend),
        ("definition", invocation.definition),
        ("catalog", invocation.policy_version),
        ("arguments", invocation.arguments_digest),
    ])  # fmt: skip
    if invocation.kept is not None:
        lines += [
            "",
            "Arguments, as the tool's record mode keeps them:",
            *(f"  {shown}" for shown in rendered(invocation.kept)),
        ]
    return [*lines, "", "What happened:", *_timeline(invocation)]


def _facts(facts: Iterable[tuple[str, str]]) -> list[str]:
    return [f"  {name:<12}{safe(value)}" for name, value in facts if value]


def _timeline(invocation: Invocation) -> list[str]:
    hold = invocation.hold
    lines = [f"  {stamp(invocation.at_ms)}  received"]
    laps = invocation.laps_us
    lines += [_lap(stage, laps) for stage in STAGES if stage in laps and stage != "dispatch"]
    lines += [_lap(stage, laps) for stage in laps if stage not in STAGES]
    if invocation.rule:
        lines.append(f"{'':23}decided by {safe(invocation.rule)}")
    for quota in invocation.quotas:
        left = room(quota["left"], quota["limit"], quota["unit"])
        lines.append(safe(f"{'':23}quota {quota.get('quota')} [{quota.get('bucket')}]: {left}"))
    if hold:
        until = stamp(hold.expires_at_ms)
        lines.append(f"  {stamp(invocation.at_ms)}  {styled('held', 'held')}: {safe(hold.reason)} (until {until})")
        if hold.reviewed_at_ms:
            words = f": {safe(hold.review_reason)}" if hold.review_reason else ""
            lines.append(f"  {stamp(hold.reviewed_at_ms)}  decided by {safe(hold.reviewer)}{words}")
    if "dispatch" in laps:
        lines.append(_lap("dispatch", laps))
    if invocation.state == "held":
        return lines  # it waits still: that it does has been said
    lines.append(
        f"  {stamp(invocation.changed_at_ms)}  {styled(invocation.state, invocation.state)}, {_effect(invocation)}"
    )
    lines += [f"{'':23}{safe(invocation.message)}"] if invocation.message else []
    if invocation.result_digest:
        lines.append(f"{'':23}answer {invocation.result_bytes} bytes, {safe(invocation.result_digest)}")
    if hold and hold.collected_at_ms:
        lines.append(f"  {stamp(hold.collected_at_ms)}  collected by the caller")
    return lines


def _lap(stage: str, laps: Mapping[str, int]) -> str:
    return f"{'':23}{stage:<14}{span(laps[stage] / 1000):>9}"


def _effect(invocation: Invocation) -> str:
    status = f" ({safe(invocation.backend_status)})" if invocation.backend_status else ""
    return EFFECTS[invocation.effect] + status


# ---------------------------------------------------------------------------------------------------------- finding


async def find(store: Reader, text: str, *, held_only: bool = False) -> Invocation:
    """The call with this id, or with an id that begins or ends so, among the latest 1,000.

    Raises UnknownHold when there is none; Conflict when there are several.
    """
    if len(text) >= ID_CHARS:
        exact = await store.invocation(text)
        if exact is not None:
            return exact
    latest = await store.invocations(InvocationQuery(held_only=held_only, limit=1000))
    fitting = [one for one in latest if text and (one.call_id.startswith(text) or one.call_id.endswith(text))]
    if len(fitting) > 1:
        shown = ", ".join(one.call_id for one in fitting[:5])
        raise Conflict(f"{text} fits {len(fitting)} calls: {shown}.", next_step="Give more of the id.")
    if not fitting:
        what, listing = ("held call", "broker holds --all") if held_only else ("call", "broker log")
        raise UnknownHold(f"There is no {what} {text[:64]!r}.", next_step=f"`{listing}` lists them.")
    return await store.invocation(fitting[0].call_id) or fitting[0]
