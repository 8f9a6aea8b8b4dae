"""`broker user`: people with accounts here, who sign in and review."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from broker.errors import Conflict
from broker.faces.cli import house, options
from broker.faces.cli.app import plain
from broker.faces.cli.output import print_json, print_table, say, stamp
from broker.faces.cli.passwords import ask_new
from broker.faces.cli.records import open_records
from broker.faces.text import safe

if TYPE_CHECKING:
    from pathlib import Path

    from broker.model.directory import Account

app = plain(no_args_is_help=True)

Name = Annotated[
    str, typer.Argument(metavar="NAME", show_default=False, help="The person's name, as it stands in records.")
]
Scopes = Annotated[
    list[str] | None,
    typer.Option(
        "--scope", metavar="SCOPE", show_default=False, parser=options.scope, help="A scope; may be repeated."
    ),
]
Groups = Annotated[
    list[str] | None, typer.Option("--group", metavar="GROUP", show_default=False, help="A group; may be repeated.")
]
Tenant = Annotated[str, typer.Option("--tenant", show_default=False, help="The organisation.")]


@app.callback()
def user() -> None:
    """Accounts of people: add, list, remove.

    An account signs in on the broker's own page, lets agents act for it, and reviews held calls if its scopes say so.

    Example:
      broker user add ann --scope orders.read --scope broker.review
    """


@app.command()
def add(
    name: Name,
    scope: Scopes = None,
    group: Groups = None,
    tenant: Tenant = "",
    password_stdin: Annotated[bool, typer.Option("--password-stdin", help="Read the password from stdin.")] = False,
    config: options.Config = None,
    as_json: options.Json = False,
) -> None:
    """Add an account. Asks for a password; makes one up and prints it when none is typed.

    Example:
      broker user add ann --scope orders.read --scope broker.review
      broker user add bob --group support --password-stdin < password.txt
    """
    house.run(_add, config, name, frozenset(scope or ()), frozenset(group or ()), tenant, password_stdin, as_json)


async def _add(
    config: Path | None,
    name: str,
    scopes: frozenset[str],
    groups: frozenset[str],
    tenant: str,
    stdin: bool,
    as_json: bool,
) -> None:
    from broker.authserver.accounts import checked_name, create
    from broker.model.directory import Account

    checked_name(name)
    async with open_records(config) as records:
        if records.directory.account(name) is not None:
            raise Conflict(f"There is an account {name!r} already.", next_step="`broker user list` shows it.")
        password, ours = ask_new(name, stdin=stdin)
        account = Account(name=name, scopes=scopes, groups=groups, tenant=tenant, created_at_ms=records.clock.now_ms())
        stored = create(records.directory, account, password)
        await records.changed("account_added", **_document(stored))
    if as_json:
        print_json({**_document(stored), **({"password": password} if ours else {})})
        return
    say(f"Added {safe(stored.name)}{_holding(stored)}.")
    if ours:
        say(f"Password: {password}", "It is not shown again.")


@app.command("list")
def list_accounts(config: options.Config = None, as_json: options.Json = False) -> None:
    """List the accounts.

    Example:
      broker user list --json
    """
    house.run(_list, config, as_json)


async def _list(config: Path | None, as_json: bool) -> None:
    async with open_records(config) as records:
        accounts = records.directory.accounts()
    if as_json:
        print_json([_document(account) for account in accounts])
    elif accounts:
        print_table(
            ["NAME", "SCOPES", "GROUPS", "TENANT", "SINCE", ""],
            [
                [
                    one.name,
                    " ".join(sorted(one.scopes)),
                    " ".join(sorted(one.groups)),
                    one.tenant,
                    stamp(one.created_at_ms),
                    "disabled" if one.disabled else "",
                ]
                for one in accounts
            ],
        )
    else:
        say("No accounts. `broker user add NAME` adds one.")


@app.command()
def remove(name: Name, config: options.Config = None) -> None:
    """Remove an account. Its tokens, sessions and keys end at once; records keep its name.

    Example:
      broker user remove ann
    """
    house.run(_remove, config, name)


async def _remove(config: Path | None, name: str) -> None:
    async with open_records(config) as records:
        account = records.directory.account(name)
        removed = account is not None and records.directory.remove_account(account.name)
        if account is not None and removed:
            await records.changed("account_removed", name=account.name)
    if not removed:
        say(f"There is no account {safe(name)}.")
        raise typer.Exit(1)
    say(f"Removed {safe(name)}. What was given to it no longer works.")


def _holding(account: Account) -> str:
    parts = [f"scopes {' '.join(sorted(account.scopes))}"] if account.scopes else []
    parts += [f"groups {' '.join(sorted(account.groups))}"] if account.groups else []
    return f" with {' and '.join(safe(part) for part in parts)}" if parts else ", without scopes"


def _document(account: Account) -> dict[str, Any]:
    return {
        "name": account.name,
        "scopes": sorted(account.scopes),
        "groups": sorted(account.groups),
        "tenant": account.tenant,
        "disabled": account.disabled,
        "created_at_ms": account.created_at_ms,
    }
