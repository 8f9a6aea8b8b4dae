"""`broker grants`: standing grants, by which calls that a rule holds may run without being held."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Protocol, cast

import typer

from broker.data import dataclass
from broker.faces.cli import house, options
from broker.faces.cli.app import plain
from broker.faces.cli.output import print_json, print_table, say, stamp
from broker.faces.cli.records import open_records, open_source
from broker.faces.cli.review import PasswordStdin, Reviewer, not_both, person_of
from broker.faces.text import safe

if TYPE_CHECKING:
    from pathlib import Path

    from broker.assembly import Broker
    from broker.faces.cli.records import Reader
    from broker.faces.cli.remote import Remote
    from broker.model.grant import Grant, GrantDecision
    from broker.model.principal import Principal

app = plain(no_args_is_help=True)

Id = Annotated[str, typer.Argument(metavar="ID", show_default=False, help="The grant's id, as the list shows it.")]
Why = Annotated[str, typer.Option("--reason", show_default=False, help="Why; it is recorded.")]


@app.callback()
def grants() -> None:
    """Standing grants: calls that a rule holds run without being held, so often, up to so much, until then.

    Who proposes one is the first to approve it; another person confirms it. It takes as many as the rule asks for a
    hold, and two at least. Revoking works at once.

    Example:
      broker grants propose 1c2b3a49 --count 20 --for 7d --when "args.amount <= 100.0" --reason "routine refunds"
    """


# --------------------------------------------------------------------------------------------------- here, or elsewhere


class Grantor(Protocol):
    """A person at a broker: this one, or a remote one (`remote.Remote`)."""

    @property
    def store(self) -> Reader: ...

    async def propose_grant(self, call_id: str, bounds: Mapping[str, Any], *, any_user: bool) -> Grant:
        """For calls like a held one."""
        ...

    async def draft_grant(self, named: Mapping[str, str], bounds: Mapping[str, Any]) -> Grant:
        """named: tool, rule, agent, issuer, user; an empty user: whomever the agent acts for."""
        ...

    async def decide_grant(self, grant_id: str, decision: GrantDecision, reason: str) -> Grant: ...


@dataclass(frozen=True, slots=True)
class _Here:
    broker: Broker
    person: Principal

    @property
    def store(self) -> Reader:
        return self.broker.store

    async def propose_grant(self, call_id: str, bounds: Mapping[str, Any], *, any_user: bool) -> Grant:
        return await self.broker.grants.propose(self.person, call_id=call_id, any_user=any_user, via="cli", **bounds)

    async def draft_grant(self, named: Mapping[str, str], bounds: Mapping[str, Any]) -> Grant:
        from broker.pipeline.granting import Bounds, whose

        issuer = named["issuer"] or self.broker.where.base_url()
        calls = whose(self.broker.directory, self.person.tenant, named["agent"], issuer, named["user"])
        measures = Bounds(**{name: value for name, value in bounds.items() if name != "reason"})
        return await self.broker.grants.draft(
            self.person, calls, measures, tool=named["tool"], rule=named["rule"], reason=bounds["reason"], via="cli"
        )

    async def decide_grant(self, grant_id: str, decision: GrantDecision, reason: str) -> Grant:
        return await self.broker.grants.decide(self.person, grant_id, decision=decision, reason=reason, via="cli")


@dataclass(frozen=True, slots=True)
class _Who:
    """What the options say of who acts, and where."""

    broker: str
    config: Path | None
    account: str
    stdin: bool

    @asynccontextmanager
    async def opened(self, *, judging: bool = False) -> AsyncGenerator[Grantor]:
        """judging: a proposal is judged by the catalog; a decision on what is there needs none."""
        not_both(self.broker, self.account)
        if self.broker:
            async with open_source(None, self.broker) as remote:
                yield cast("Remote", remote)
            return
        async with house.tooled(self.config) if judging else house.deciding(self.config) as broker:
            yield _Here(broker, await person_of(broker, self.account, stdin=self.stdin))


# ------------------------------------------------------------------------------------------------------------ commands


@app.command("list")
def list_(
    everything: Annotated[bool, typer.Option("--all", help="Also those that were rejected or revoked.")] = False,
    broker: options.At = "",
    config: options.Config = None,
    as_json: options.Json = False,
) -> None:
    """Show the standing grants: whose calls, within which bounds, how much of each is used.

    Example:
      broker grants list
    """
    house.run(_list, config, broker, everything, as_json)


async def _list(config: Path | None, broker: str, everything: bool, as_json: bool) -> None:
    if broker:
        async with open_source(None, broker) as remote:
            found = await cast("Remote", remote).grants(ended=everything)
    else:
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
    count: Annotated[int, typer.Option("--count", min=1, max=100_000, help="Most calls.")],
    lasting: Annotated[str, typer.Option("--for", metavar="DURATION", help="How long it lasts, such as 12h or 7d.")],
    hold: Annotated[
        str, typer.Argument(metavar="[HOLD]", show_default=False, help="The held call that calls are like.")
    ] = "",
    tool: Annotated[str, typer.Option("--tool", show_default=False, help="Without a hold: calls of this tool,")] = "",
    agent: Annotated[str, typer.Option("--agent", show_default=False, help="by this agent,")] = "",
    user: Annotated[str, typer.Option("--user", show_default=False, help="for this user (or --any-user),")] = "",
    rule: Annotated[
        str, typer.Option("--rule", metavar="POLICY/ID", show_default=False, help="that this rule holds.")
    ] = "",
    issuer: Annotated[
        str, typer.Option("--issuer", show_default=False, help="Who vouches for the agent; absent: this broker.")
    ] = "",
    when: Annotated[str, typer.Option("--when", help="CEL over `args`: the bounds a call must keep.")] = "true",
    amount: Annotated[str, typer.Option("--amount", show_default=False, help="CEL: what one call costs.")] = "",
    total: Annotated[str, typer.Option("--total", show_default=False, help="The most all calls cost together.")] = "",
    any_user: Annotated[bool, typer.Option("--any-user", help="For whoever the agent acts for.")] = False,
    reason: Why = "",
    reviewer: Reviewer = "",
    password_stdin: PasswordStdin = False,
    broker: options.At = "",
    config: options.Config = None,
    as_json: options.Json = False,
) -> None:
    """Propose a grant for calls like a held one, or of a tool by an agent; another person has to confirm it.

    Example:
      broker grants propose 1c2b3a49 --count 20 --for 7d --when "args.amount <= 100.0"
      broker grants propose --tool orders_refund --rule refunds/large --agent support-bot --any-user --count 9 --for 7d
    """
    from broker.model.quantity import duration_s

    named = {"tool": tool, "rule": rule, "agent": agent, "issuer": issuer, "user": user}
    if bool(hold) == bool(tool and rule and agent and bool(user) != any_user) or (hold and any(named.values())):
        told = "give either a held call, or --tool, --rule, --agent and one of --user and --any-user"
        raise typer.BadParameter(told, param_hint="HOLD")
    try:
        lasting_ms = round(duration_s(lasting) * 1000)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--for") from None
    bounds: dict[str, Any] = {
        "count": count, "when": when, "amount": amount, "total": total, "reason": reason,
    }  # fmt: skip
    who = _Who(broker, config, reviewer, password_stdin)
    house.run(_propose, who, hold, named, lasting_ms, bounds, any_user, as_json)


async def _propose(
    who: _Who,
    hold: str,
    named: Mapping[str, str],
    lasting_ms: int,
    bounds: dict[str, Any],
    any_user: bool,
    as_json: bool,
) -> None:
    from broker.clock import SystemClock
    from broker.faces.cli.invocation import find

    async with who.opened(judging=True) as grantor:
        clock = grantor.broker.clock if isinstance(grantor, _Here) else SystemClock()
        bounds["until_ms"] = clock.now_ms() + lasting_ms
        if hold:
            held = await find(grantor.store, hold, held_only=True)
            made = await grantor.propose_grant(held.call_id, bounds, any_user=any_user)
        else:
            made = await grantor.draft_grant(named, bounds)
    _tell(made, as_json)


def _decision(name: GrantDecision, words: str, example: str) -> None:
    """The command of one decision."""

    def decide(
        grant: Id,
        reason: Why = "",
        reviewer: Reviewer = "",
        password_stdin: PasswordStdin = False,
        broker: options.At = "",
        config: options.Config = None,
        as_json: options.Json = False,
    ) -> None:
        house.run(_decide, _Who(broker, config, reviewer, password_stdin), grant, name, reason, as_json)

    decide.__doc__ = f"{words}\n\nExample:\n  broker grants {name} 0193d7a2-71b2-7c3e-9a55-0f6d1c2b3a49{example}\n"
    app.command(name)(decide)


_decision("approve", "Confirm a proposed grant, as another person.", "")
_decision("reject", "Reject a proposed grant; that takes a reason.", ' --reason "too wide"')
_decision(
    "revoke", "Revoke a grant: it covers no call from then on; that takes a reason.", ' --reason "the campaign is over"'
)


async def _decide(who: _Who, grant: str, decision: GrantDecision, reason: str, as_json: bool) -> None:
    async with who.opened() as grantor:
        decided = await grantor.decide_grant(grant, decision, reason)
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
