"""`broker grants`: standing grants, by which calls like a held one may run without being held."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from broker.faces.cli import house
from broker.faces.cli.app import plain
from broker.faces.cli.output import print_json, print_table, say, stamp
from broker.faces.cli.records import open_records
from broker.faces.cli.review import PasswordStdin, Reviewer, person_of
from broker.faces.text import safe

if TYPE_CHECKING:
    from pathlib import Path

    from broker.model.grant import Grant, GrantDecision

app = plain(no_args_is_help=True)

Id = Annotated[str, typer.Argument(metavar="ID", show_default=False, help="The grant's id, as the list shows it.")]
Why = Annotated[str, typer.Option("--reason", show_default=False, help="Why; it is recorded.")]


@app.callback()
def grants() -> None:
    """Standing grants: calls like a held one run without being held, so often, up to so much, until then.

    Who proposes one is the first to approve it; another person confirms it. It takes as many as the rule asks for a
    hold, and two at least. Revoking works at once.

    Example:
      broker grants propose 1c2b3a49 --count 20 --for 7d --when "args.amount <= 100.0" --reason "routine refunds"
    """


@app.command("list")
def list_(
    everything: Annotated[bool, typer.Option("--all", help="Also those that were rejected or revoked.")] = False,
    config: house.Config = None,
    as_json: house.Json = False,
) -> None:
    """Show the standing grants: whose calls, within which bounds, how much of each is used.

    Example:
      broker grants list
    """
    house.run(_list, config, everything, as_json)


async def _list(config: Path | None, everything: bool, as_json: bool) -> None:
    async with open_records(config) as records:
        found = await records.store.grants(None, ended=everything)
    if as_json:
        print_json([asdict(one) for one in found])
    elif found:
        headings = ("GRANT", "STATE", "TOOL", "AGENT", "WHEN", "USED", "UNTIL", "APPROVED BY")
        print_table(headings, [_row(one) for one in found])
    else:
        say("There are no standing grants.")


def _row(grant: Grant) -> list[str]:
    names = ", ".join(one.reviewer for one in grant.approvals)
    return [
        grant.grant_id,
        grant.state,
        grant.tool,
        f"{grant.agent} for {grant.user}" if grant.user else grant.agent,
        grant.when,
        f"{grant.used} of {grant.count}",
        stamp(grant.until_ms),
        f"{names} ({len(grant.approvals)} of {grant.quorum})",
    ]


@app.command()
def propose(
    hold: Annotated[str, typer.Argument(metavar="HOLD", show_default=False, help="The held call that calls are like.")],
    count: Annotated[int, typer.Option("--count", min=1, max=100_000, help="Most calls.")],
    lasting: Annotated[str, typer.Option("--for", metavar="DURATION", help="How long it lasts, such as 12h or 7d.")],
    when: Annotated[str, typer.Option("--when", help="CEL over `args`: the bounds a call must keep.")] = "true",
    amount: Annotated[str, typer.Option("--amount", show_default=False, help="CEL: what one call costs.")] = "",
    total: Annotated[str, typer.Option("--total", show_default=False, help="The most all calls cost together.")] = "",
    any_user: Annotated[bool, typer.Option("--any-user", help="For whoever the agent acts for.")] = False,
    reason: Why = "",
    reviewer: Reviewer = "",
    password_stdin: PasswordStdin = False,
    config: house.Config = None,
    as_json: house.Json = False,
) -> None:
    """Propose a grant for calls like a held one; another person has to confirm it.

    Example:
      broker grants propose 1c2b3a49 --count 20 --for 7d --when "args.amount <= 100.0"
    """
    from broker.model.quantity import duration_s

    try:
        lasting_ms = round(duration_s(lasting) * 1000)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--for") from None
    bounds = {
        "count": count, "when": when, "amount": amount, "total": total, "any_user": any_user, "reason": reason,
    }  # fmt: skip
    house.run(_propose, config, hold, lasting_ms, bounds, reviewer, password_stdin, as_json)


async def _propose(
    config: Path | None,
    hold: str,
    lasting_ms: int,
    bounds: dict[str, Any],
    account: str,
    stdin: bool,
    as_json: bool,
) -> None:
    from broker.faces.cli.invocation import find

    async with house.tooled(config) as broker:
        held = await find(broker.store, hold, held_only=True)
        person = await person_of(broker, account, stdin=stdin)
        until_ms = broker.clock.now_ms() + lasting_ms
        made = await broker.grants.propose(person, call_id=held.call_id, until_ms=until_ms, via="cli", **bounds)
    _tell(made, as_json)


@app.command()
def approve(
    grant: Id,
    reason: Why = "",
    reviewer: Reviewer = "",
    password_stdin: PasswordStdin = False,
    config: house.Config = None,
    as_json: house.Json = False,
) -> None:
    """Confirm a proposed grant, as another person than the one who proposed it.

    Example:
      broker grants approve 0193d7a2-71b2-7c3e-9a55-0f6d1c2b3a49
    """
    house.run(_decide, config, grant, "approve", reason, reviewer, password_stdin, as_json)


@app.command()
def reject(
    grant: Id,
    reason: Why,
    reviewer: Reviewer = "",
    password_stdin: PasswordStdin = False,
    config: house.Config = None,
    as_json: house.Json = False,
) -> None:
    """Reject a proposed grant.

    Example:
      broker grants reject 0193d7a2-71b2-7c3e-9a55-0f6d1c2b3a49 --reason "too wide"
    """
    house.run(_decide, config, grant, "reject", reason, reviewer, password_stdin, as_json)


@app.command()
def revoke(
    grant: Id,
    reason: Why,
    reviewer: Reviewer = "",
    password_stdin: PasswordStdin = False,
    config: house.Config = None,
    as_json: house.Json = False,
) -> None:
    """Revoke a grant: it covers no call from then on.

    Example:
      broker grants revoke 0193d7a2-71b2-7c3e-9a55-0f6d1c2b3a49 --reason "the campaign is over"
    """
    house.run(_decide, config, grant, "revoke", reason, reviewer, password_stdin, as_json)


async def _decide(
    config: Path | None, grant: str, decision: GrantDecision, reason: str, account: str, stdin: bool, as_json: bool
) -> None:
    async with house.deciding(config) as broker:
        person = await person_of(broker, account, stdin=stdin)
        decided = await broker.grants.decide(person, grant, decision=decision, reason=reason, via="cli")
    _tell(decided, as_json)


def _tell(grant: Grant, as_json: bool) -> None:
    if as_json:
        print_json(asdict(grant))
        return
    given = f"{len(grant.approvals)} of {grant.quorum} approvals are given"
    say(
        safe(f"{grant.state.capitalize()}: {grant.tool} for {grant.agent}, at most {grant.count} calls; {given}."),
        f"Grant {grant.grant_id}.",
    )
