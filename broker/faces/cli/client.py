"""`broker client`: agents that get access tokens from the embedded authorization server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from broker.faces.cli import house, options
from broker.faces.cli.app import plain
from broker.faces.cli.output import print_json, print_table, say, stamp
from broker.faces.cli.records import open_records
from broker.faces.cli.user import Groups, Scopes, Tenant
from broker.faces.text import safe

if TYPE_CHECKING:
    from pathlib import Path

    from broker.model.directory import Client

app = plain(no_args_is_help=True)

Id = Annotated[
    str, typer.Argument(metavar="ID", show_default=False, help="The client's id: the agent's name in records.")
]


@app.callback()
def client() -> None:
    """Clients, that is agents: add, list, remove.

    A client acts for itself (client credentials), or for a person who signs in (with --redirect-uri).

    Example:
      broker client add support-bot --scope orders.read --scope orders.refund --owner ann
    """


@app.command()
def add(
    client_id: Id,
    scope: Scopes = None,
    group: Groups = None,
    tenant: Tenant = "",
    name: Annotated[str, typer.Option("--name", show_default=False, help="A name to show.")] = "",
    owner: Annotated[
        str,
        typer.Option(
            "--owner", metavar="PERSON", show_default=False, help="Who is responsible; may not review its calls."
        ),
    ] = "",
    redirect_uri: Annotated[
        list[str] | None,
        typer.Option(
            "--redirect-uri",
            metavar="URI",
            show_default=False,
            help="People sign in for it, and are sent back here; may be repeated.",
        ),
    ] = None,
    config: options.Config = None,
    as_json: options.Json = False,
) -> None:
    """Add a client. Its secret is printed once.

    Example:
      broker client add support-bot --scope orders.read --owner ann
      broker client add desk-app --redirect-uri https://desk.example.com/callback --scope orders.read
    """
    facts = {"name": name, "tenant": tenant, "owner": owner}
    house.run(_add, config, client_id, scope or [], group or [], redirect_uri or [], facts, as_json)


async def _add(
    config: Path | None,
    client_id: str,
    scopes: list[str],
    groups: list[str],
    redirects: list[str],
    facts: dict[str, str],
    as_json: bool,
) -> None:
    from broker.authserver.clients import create
    from broker.model.directory import Client

    async with open_records(config) as records:
        wanted = Client(
            client_id=client_id,
            scopes=frozenset(scopes),
            groups=frozenset(groups),
            grants=("authorization_code", "refresh_token") if redirects else ("client_credentials",),
            redirect_uris=tuple(redirects),
            name=facts["name"],
            tenant=facts["tenant"],
            owner=facts["owner"],
            created_at_ms=records.clock.now_ms(),
        )
        stored, secret = create(records.directory, wanted)
        await records.changed("client_added", **_document(stored))
    if as_json:
        print_json({**_document(stored), **({"client_secret": secret} if secret else {})})
        return
    say(f"Added {safe(stored.client_id)} with {_scopes(stored)}.")
    if secret:
        say(f"Secret: {secret}", "It is not shown again. For a token by hand: broker token " + safe(stored.client_id))


@app.command("list")
def list_clients(config: options.Config = None, as_json: options.Json = False) -> None:
    """List the clients, those that registered themselves included.

    Example:
      broker client list
    """
    house.run(_list, config, as_json)


async def _list(config: Path | None, as_json: bool) -> None:
    async with open_records(config) as records:
        clients = records.directory.clients()
    if as_json:
        print_json([_document(one) for one in clients])
    elif clients:
        print_table(
            ["ID", "NAME", "SCOPES", "OWNER", "TENANT", "SINCE", ""],
            [
                [one.client_id, one.name, _scopes(one), one.owner, one.tenant, stamp(one.created_at_ms), _state(one)]
                for one in clients
            ],
        )
    else:
        say("No clients. `broker client add ID` adds one.")


@app.command()
def remove(client_id: Id, config: options.Config = None) -> None:
    """Remove a client. Its tokens end at once; records keep its name.

    Example:
      broker client remove support-bot
    """
    house.run(_remove, config, client_id)


async def _remove(config: Path | None, client_id: str) -> None:
    async with open_records(config) as records:
        removed = records.directory.remove_client(client_id)
        if removed:
            await records.changed("client_removed", client_id=client_id)
    if not removed:
        say(f"There is no client {safe(client_id)}.")
        raise typer.Exit(1)
    say(f"Removed {safe(client_id)}. What was given to it no longer works.")


def _scopes(client: Client) -> str:
    return "the person's scopes" if client.scopes is None else " ".join(sorted(client.scopes)) or "no scopes"


def _state(client: Client) -> str:
    return " ".join(
        word for word, true in (("registered itself", client.dynamic), ("disabled", client.disabled)) if true
    )


def _document(client: Client) -> dict[str, Any]:
    return {
        "client_id": client.client_id,
        "name": client.name,
        "grants": list(client.grants),
        "redirect_uris": list(client.redirect_uris),
        "scopes": None if client.scopes is None else sorted(client.scopes),
        "groups": sorted(client.groups),
        "tenant": client.tenant,
        "owner": client.owner,
        "dynamic": client.dynamic,
        "disabled": client.disabled,
        "created_at_ms": client.created_at_ms,
    }
