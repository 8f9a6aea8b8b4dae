"""`broker approve` and `broker deny`: one person's decision on one held call, and what became of it.

Who decides is the operating system's user, who holds the default reviewer scope because whoever may write the records'
file is the operator; or an account, with its password and its own scopes and groups. The requester never decides:
that is checked by the desk, by person. At a remote broker it is whoever `broker login` signed in there.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from broker.faces.cli import house, options
from broker.faces.cli.arguments import read_arguments
from broker.faces.cli.invocation import find
from broker.faces.cli.output import print_json, say, styled
from broker.faces.cli.records import open_source
from broker.faces.text import safe
from broker.faces.words import as_document, span, who

if TYPE_CHECKING:
    from pathlib import Path

    from broker.assembly import Broker
    from broker.faces.cli.records import Reader
    from broker.faces.cli.remote import Remote
    from broker.model.invocation import Invocation
    from broker.model.principal import Principal

OPERATOR = "os"  # who vouches for the operating system's user

Id = Annotated[
    str, typer.Argument(metavar="ID", show_default=False, help="The hold's id, or enough of its beginning or end.")
]
Reviewer = Annotated[
    str,
    typer.Option(
        "--reviewer", metavar="ACCOUNT", show_default=False, help="Decide as this account instead of the system's user."
    ),
]
PasswordStdin = Annotated[bool, typer.Option("--password-stdin", help="Read the account's password from stdin.")]
Wait = Annotated[
    float, typer.Option("--wait", metavar="SECONDS", min=0, max=600, help="How long to wait for it to run.")
]


def approve(
    hold: Id,
    reason: Annotated[str, typer.Option("--reason", help="A word for the record.", show_default=False)] = "",
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Approve with this argument changed.", show_default=False),
    ] = None,
    reviewer: Reviewer = "",
    password_stdin: PasswordStdin = False,
    wait: Wait = 5.0,
    broker: options.At = "",
    config: options.Config = None,
    as_json: options.Json = False,
) -> None:
    """Approve a held call: a serving broker then runs it once, exactly as shown.

    Waits a few seconds for it to run and says what happened. Exit code 1 when it failed or did not run.
    Where several persons must approve, it says how many have. A changed call is judged as if its caller had sent it,
    and the caller is told what you changed.

    Example:
      broker approve 0193d7a2-71b2-7c3e-9a55-0f6d1c2b3a49
      broker approve 1c2b3a49 --reason "checked with the customer"
      broker approve 1c2b3a49 --set amount=40
    """
    not_both(broker, reviewer)
    if broker:
        house.run(_decide_there, broker, hold, True, reason, wait, as_json, changes)
    else:
        house.run(_decide, config, hold, True, reason, reviewer, password_stdin, wait, as_json, changes)


def deny(
    hold: Id,
    reason: Annotated[str, typer.Option("--reason", help="Why; it is sent to the agent.", show_default=False)],
    reviewer: Reviewer = "",
    password_stdin: PasswordStdin = False,
    broker: options.At = "",
    config: options.Config = None,
    as_json: options.Json = False,
) -> None:
    """Deny a held call. The agent is told the reason.

    Example:
      broker deny 1c2b3a49 --reason "wrong customer"
    """
    not_both(broker, reviewer)
    if broker:
        house.run(_decide_there, broker, hold, False, reason, 0.0, as_json)
    else:
        house.run(_decide, config, hold, False, reason, reviewer, password_stdin, 0.0, as_json)


def not_both(broker: str, reviewer: str) -> None:
    """Raises BadParameter."""
    if broker and reviewer:
        raise typer.BadParameter("at a remote broker you are who `broker login` signed in", param_hint="--reviewer")


async def _decide(
    config: Path | None,
    hold: str,
    approved: bool,
    reason: str,
    account: str,
    stdin: bool,
    wait_s: float,
    as_json: bool,
    changes: list[str] | None = None,
) -> None:
    # Other arguments are judged by the catalog; a decision on what is there needs none.
    async with house.tooled(config) if changes else house.deciding(config) as broker:
        invocation = await find(broker.store, hold, held_only=True)
        person = await person_of(broker, account, stdin=stdin)
        decided = await broker.desk.review(
            invocation.call_id,
            approve=approved,
            reviewer=person,
            reason=reason,
            via="cli",
            arguments=await _changed(broker.store, invocation, changes, broker.pipeline.input_schema(invocation.tool)),
        )
        await _tell(broker.store, decided, approved, wait_s, as_json)


async def _decide_there(
    url: str,
    hold: str,
    approved: bool,
    reason: str,
    wait_s: float,
    as_json: bool,
    changes: list[str] | None = None,
) -> None:
    async with open_source(None, url) as remote:
        invocation = await find(remote.store, hold, held_only=True)
        arguments = await _changed(remote.store, invocation, changes, None)
        decided = await cast("Remote", remote).decide(
            invocation.call_id, approve=approved, reason=reason, arguments=arguments
        )
        await _tell(remote.store, decided, approved, wait_s, as_json)


async def _changed(
    store: Reader, invocation: Invocation, changes: list[str] | None, schema: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """The hold's arguments with these put over them; None when nothing is to change."""
    if not changes:
        return None
    exact = await store.held_arguments(invocation.call_id)
    return read_arguments(changes, (exact or b"{}").decode(), schema)


async def _tell(store: Reader, decided: Invocation, approved: bool, wait_s: float, as_json: bool) -> None:
    """Say what became of it. Raises Exit(1) when it was approved and has not been done."""
    if approved:
        decided = await _outcome(store, decided, wait_s)
    if as_json:
        print_json(as_document(decided))
    else:
        say(*_told(decided))
    if approved and decided.state not in ("succeeded", "held"):
        raise typer.Exit(1)


async def _outcome(store: Reader, decided: Invocation, wait_s: float) -> Invocation:
    """The call as it stands after at most wait_s seconds, or as soon as it has ended."""
    latest = [decided]

    async def ended() -> bool:
        latest[0] = await store.invocation(decided.call_id) or latest[0]
        return latest[0].state not in ("approved", "dispatching")

    await house.until(ended, wait_s, store.changed)
    return latest[0]


def _told(invocation: Invocation) -> list[str]:
    what = f"{safe(invocation.tool)} for {safe(who(invocation))}"
    state = invocation.state
    if state == "held" and invocation.hold:
        given, quorum = len(invocation.hold.approvals), invocation.hold.quorum
        return [
            f"{styled('Approved', 'approved')} by {given} of {quorum}: {what}.",
            "Another person has to approve it.",
        ]
    if state == "rejected":
        return [f"{styled('Denied', 'denied')}: {what}. Nothing was done; the agent is told why."]
    if state == "approved":
        return [
            f"{styled('Approved', 'approved')}, not done yet: {what}.",
            "No serving broker has picked it up; it runs as soon as one does (`broker serve`).",
        ]
    if state == "dispatching":
        return [
            f"{styled('Approved', 'approved')}, running now: {what}.",
            f"`broker log {invocation.call_id}` shows how it ends.",
        ]
    if state == "succeeded":
        status = f", {safe(invocation.backend_status)}" if invocation.backend_status else ""
        took = span(invocation.laps_us.get("dispatch", 0) / 1000)
        return [
            f"{styled('Approved and done', 'succeeded')}: {what} ran in {took}{status}.",
            "The agent can collect the answer.",
        ]
    if state in ("withdrawn", "expired"):
        words = f": {safe(invocation.hold.review_reason)}" if invocation.hold and invocation.hold.review_reason else ""
        return [f"{styled('Void', 'failed')}: {what} was {state}{words}. Nothing was done."]
    done = {
        "none": "Nothing was done.",
        "done": "It reached the backend.",
        "unknown": "Nobody can say whether it was done.",
    }
    return [
        f"{styled(f'Approved, and {state}', 'failed')}: {what}. {safe(invocation.message)}",
        done[invocation.effect],
    ]


# ----------------------------------------------------------------------------------------------------------- persons


def system_user() -> str:
    """The operating system's name for whoever runs this; never from the environment, which anybody can set."""
    if sys.platform == "win32":
        return os.getlogin()
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid-{os.getuid()}"


async def person_of(broker: Broker, account: str, *, stdin: bool) -> Principal:
    """Who decides: this account, or without one the system's user. Raises Forbidden."""
    return await _account(broker, account, stdin=stdin) if account else _operator(broker)


def _operator(broker: Broker) -> Principal:
    """The system's user: the default reviewer scope, and what an account of the same name has besides."""
    from broker.model.principal import Principal

    name = system_user()
    account = broker.directory.account(name)
    own = account if account is not None and not account.disabled else None
    return Principal(
        agent=name,
        user=name,
        issuer=OPERATOR,
        scopes=frozenset({broker.settings.hold.reviewer_scope}) | (own.scopes if own else frozenset[str]()),
        groups=own.groups if own else frozenset[str](),
    )


async def _account(broker: Broker, name: str, *, stdin: bool) -> Principal:
    """The account, proved by its password. Raises Forbidden in the same words for every way it is not."""
    from broker.faces.cli.passwords import proven
    from broker.model.principal import Principal

    account = await proven(broker.directory, name, stdin=stdin)
    return Principal(
        agent=account.name,
        user=account.name,
        tenant=account.tenant,
        issuer=broker.where.base_url(),
        scopes=account.scopes,
        groups=account.groups,
    )
