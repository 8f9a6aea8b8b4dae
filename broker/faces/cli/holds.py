"""`broker holds`: what waits for a person, exactly as it will be sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import jiter
import typer

from broker.faces.cli import house, options
from broker.faces.cli.invocation import HEADINGS, row
from broker.faces.cli.output import print_json, print_table, say, stamp, styled
from broker.faces.cli.records import open_source
from broker.faces.text import SHOWN, rendered, safe
from broker.faces.words import as_document, span, who
from broker.model.hold import Hold
from broker.model.invocation import Invocation, InvocationQuery
from broker.model.sketch import Sketch

if TYPE_CHECKING:
    from pathlib import Path

    from broker.faces.cli.records import Records
    from broker.faces.cli.remote import Remote


def holds(
    everything: Annotated[bool, typer.Option("--all", help="Also those that have ended.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Most holds to show.")] = 100,
    stats: Annotated[bool, typer.Option("--stats", help="How deciding goes, instead of what waits.")] = False,
    days: Annotated[int, typer.Option(min=1, max=366, help="With --stats: of so many days.")] = 30,
    broker: options.At = "",
    config: options.Config = None,
    as_json: options.Json = False,
) -> None:
    """Show the calls that wait for a person's decision, the soonest to expire first.

    Each shows exactly what will be sent if it is approved; characters that show nothing are written out by number.

    Example:
      broker holds
      broker holds --all --json
      broker holds --stats --days 7
    """
    if stats:
        from broker.faces.cli.stats import show

        house.run(show, config, broker, days, as_json)
        return
    house.run(_holds, config, broker, everything, limit, as_json)


async def _holds(config: Path | None, broker: str, everything: bool, limit: int, as_json: bool) -> None:
    async with open_source(config, broker) as records:
        query = InvocationQuery(states=() if everything else ("held", "approved"), held_only=True, limit=limit)
        found = await records.store.invocations(query)
        waiting = sorted(
            (one for one in found if one.state == "held"), key=lambda one: one.hold.expires_at_ms if one.hold else 0
        )
        approved = [one for one in found if one.state == "approved"]
        if as_json:
            print_json(
                [await _document(records, one) for one in [*waiting, *(one for one in found if one.state != "held")]]
            )
            return
        for one in waiting:
            say(*await _card(records, one), "")
        if approved:
            say("Approved, and waiting for a serving broker to run them:")
            print_table(HEADINGS, [row(one, short=False) for one in approved], styles={2: "*"})
            say("")
        ended = [one for one in found if one.state not in ("held", "approved")]
        if ended:
            print_table(HEADINGS, [row(one, short=False) for one in ended], styles={2: "*"})
        if not found:
            say("Nothing was ever held." if everything else "Nothing waits for a decision.")


async def _arguments(records: Records | Remote, invocation: Invocation) -> Any:
    exact = await records.store.held_arguments(invocation.call_id)
    return None if exact is None else jiter.from_json(exact)


async def _document(records: Records | Remote, invocation: Invocation) -> dict[str, Any]:
    sketch = (await records.store.held(invocation.call_id)).sketch
    shown = jiter.from_json(sketch) if sketch else None
    return {**as_document(invocation), "arguments": await _arguments(records, invocation), "sketch": shown}


async def _card(records: Records | Remote, invocation: Invocation) -> list[str]:
    hold, now_ms = invocation.hold, records.clock.now_ms()
    assert hold is not None, "asked for held calls only"  # noqa: S101 – the query's promise
    left, ago = span(max(0, hold.expires_at_ms - now_ms)), span(now_ms - invocation.at_ms)
    asked = [f"scope {scope}" for scope in hold.scopes] + [f"group {group}" for group in hold.groups]
    settings = getattr(records, "settings", None)  # a remote broker's are its own business
    default = f"scope {settings.hold.reviewer_scope}" if settings else "the reviewer scope"
    what = safe(f"{invocation.tool_effect} on backend {invocation.backend}")
    parts = await records.store.held(invocation.call_id)
    lines = [
        f"{styled(invocation.tool, 'bold')}  held {ago} ago, {styled(f'expires in {left}', 'held')}",
        f"  hold        {safe(invocation.call_id)}",
        f"  asked by    {safe(who(invocation))}",
        f"  because     {safe(hold.reason)} (rule {safe(invocation.rule)})",
        f"  reviewers   {safe(' or '.join(asked) or default)}; never the requester",
        *_approvals(hold, now_ms),
        *_escalation(hold),
        f"  expires     {stamp(hold.expires_at_ms)}{'; it runs then' if hold.on_expiry == 'allow' else ''}",
        f"  will do     {what}, with exactly these arguments:",
    ]
    lines += [f"    {shown}" for shown in rendered(await _arguments(records, invocation))]
    lines += _sent(parts.sketch)
    lines += _previewed(hold, parts.previewed)
    lines += [
        f"  digest      {safe(invocation.arguments_digest)}",
        f"  decide      broker approve {safe(invocation.call_id)}",
        f'              broker deny {safe(invocation.call_id)} --reason "…"',
    ]
    return lines


def _approvals(hold: Hold, now_ms: int) -> list[str]:
    if hold.quorum == 1:
        return []
    given = ", ".join(f"{one.reviewer} {span(now_ms - one.at_ms)} ago" for one in hold.approvals)
    return [safe(f"  approvals   {len(hold.approvals)} of {hold.quorum}{f': {given}' if given else ''}")]


def _escalation(hold: Hold) -> list[str]:
    if not hold.escalates_at_ms:
        return []
    named = [f"scope {scope}" for scope in hold.escalation_scopes] + [
        f"group {group}" for group in hold.escalation_groups
    ]
    return [f"  escalates   {stamp(hold.escalates_at_ms)} to {safe(' or '.join(named))}"]


def _sent(packed: bytes | None) -> list[str]:
    """The broker's own rendering of what will be sent; values of headers are not for people."""
    if packed is None:
        return []
    sketch = Sketch.unpack(packed)
    lines = [f"  will send   {safe(sketch.method)} {safe(sketch.target)}"]
    lines += [f"  headers     {safe(', '.join(sketch.headers))}"] if sketch.headers else []
    lines += [f"  body        {safe(sketch.body[:SHOWN])}"] if sketch.body else []
    more = len(sketch.body) - SHOWN
    lines += [f"              … and {more} more characters; --json has them all"] if more > 0 else []
    return [*lines, f"              {sketch.digest}"]


def _previewed(hold: Hold, packed: bytes | None) -> list[str]:
    if hold.preview is None:
        return []
    if packed is None:
        return [f"  preview     {safe(hold.preview.tool)} failed: {safe(hold.preview.failed)}"]
    return [
        f"  preview     {safe(hold.preview.tool)} says:",
        *(f"    {line}" for line in rendered(jiter.from_json(packed))),
    ]
