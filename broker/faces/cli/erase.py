"""`broker erase`: what is kept of somebody's calls goes; that they were made stays."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, cast

import typer

from broker.faces.cli import house, options
from broker.faces.cli.output import print_json, say
from broker.faces.cli.records import open_records, whoami
from broker.faces.text import safe
from broker.faces.words import count

if TYPE_CHECKING:
    from pathlib import Path

    from broker.model.ledger import Subject


def erase(
    user: Annotated[str, typer.Option(help="Of the calls for this person.", show_default=False)] = "",
    agent: Annotated[str, typer.Option(help="Of this agent's calls.", show_default=False)] = "",
    tenant: Annotated[str, typer.Option(help="Of this tenant's calls.", show_default=False)] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say how much it would be.")] = False,
    config: options.Config = None,
    as_json: options.Json = False,
) -> None:
    """Erase arguments and results that are kept of somebody's calls. The records stay, and say that it was done.

    Names stay in the record too: it exists to say who did what. Calls that wait or run keep what they need; erase again
    when they are over. A broker may run meanwhile.

    Example:
      broker erase --user ann --dry-run
      broker erase --user ann
    """
    given = {name: value for name, value in (("user", user), ("agent", agent), ("tenant", tenant)) if value}
    if len(given) != 1:
        raise typer.BadParameter("it takes one of --user, --agent and --tenant")
    ((subject, name),) = given.items()
    house.run(_erase, config, subject, name, dry_run, as_json)


async def _erase(config: Path | None, subject: str, name: str, dry: bool, as_json: bool) -> None:
    async with open_records(config) as records:
        erased = await records.store.erase(cast("Subject", subject), name, by=whoami(), dry=dry)
    if as_json:
        print_json({**asdict(erased), "dry_run": dry})
        return
    of = f"{count(erased.calls, 'call')} of {subject} {safe(name)}"
    say(
        f"Something is kept of {of}; nothing was erased." if dry else f"Erased {count(erased.rows, 'payload')} of {of}."
    )
    if erased.open:
        say(f"{count(erased.open, 'call')} still open: erase again when they are over.")
