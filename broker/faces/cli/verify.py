"""`broker verify`: prove that the records are whole and unchanged."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from broker.errors import Problem, SettingsError
from broker.faces.cli import house, options
from broker.faces.cli.output import print_json, say, stamp, styled, tell
from broker.faces.text import safe
from broker.faces.words import count

if TYPE_CHECKING:
    from broker.verifier import Verification


def verify(
    anchor: Annotated[
        Path | None,
        typer.Option(
            "--anchor",
            metavar="FILE",
            show_default=False,
            help="Also hold the records against an anchor or checkpoints kept elsewhere: a file, or a folder of them.",
        ),
    ] = None,
    key: Annotated[
        str,
        typer.Option(
            metavar="KEY",
            show_default=False,
            help="The public key that must have signed the checkpoints: base64, or a file with it.",
        ),
    ] = "",
    write_anchor: Annotated[
        Path | None,
        typer.Option(
            "--write-anchor",
            metavar="FILE",
            show_default=False,
            help="When all is well, write where the chains stand now.",
        ),
    ] = None,
    indices: Annotated[
        bool,
        typer.Option("--indices", help="Also check that questions find every call; takes a fifth longer."),
    ] = False,
    config: options.Config = None,
    as_json: options.Json = False,
) -> None:
    """Check every record against its chain; with an anchor, also that none is missing at the end.

    An anchor is a small file to keep elsewhere: whoever changes the database cannot change that. The signed checkpoints
    that a broker writes by itself (`record.checkpoints` in the settings) are anchors too. Exit code 1 when something is
    wrong, with the first bad position, or when the anchor proves nothing.

    Example:
      broker verify --write-anchor /backup/broker.anchor
      broker verify --anchor /backup/broker.anchor
      broker verify --anchor /mnt/log/broker.checkpoints.jsonl --key /home/ann/broker.pub
    """
    from broker import verifier
    from broker.checkpoint import PUBLIC_FILE

    settings = house.read(config)
    database = settings.directory / settings.database
    if not database.exists():
        message = "there are no records yet; `broker serve` or `broker call` begins them"
        raise SettingsError([Problem(str(database), 0, 0, message)])
    if anchor is not None and not anchor.exists():
        raise SettingsError([Problem(str(anchor), 0, 0, "there is no such anchor; `--write-anchor FILE` writes one")])
    pinned = settings.directory / PUBLIC_FILE
    is_ours = not key and anchor is not None and pinned.is_file()
    found = verifier.verify(database, anchor, key=_key(key or (str(pinned) if is_ours else "")), indices=indices)
    if key and anchor is not None and found.ok and not found.checkpoints:
        unsigned = verifier.Fault("", 0, f"{anchor.name} holds nothing that is signed with this key", of_anchor=True)
        found = replace(found, ok=False, fault=unsigned)
    if is_ours and found.checkpoints:
        limit = f"The key that signed the checkpoints was taken from {pinned.name} beside the settings; --key names it."
        found = replace(found, limits=(*found.limits, limit))
    if as_json:
        print_json(asdict(found))
    else:
        say(*_told(found))
    if not found.ok:
        raise typer.Exit(1)
    if write_anchor is not None:
        try:
            heads = verifier.write_anchor(found, write_anchor)
        except OSError as error:
            raise SettingsError([Problem(str(write_anchor), 0, 0, f"cannot be written: {error.strerror}")]) from error
        tell(f"Wrote {safe(str(write_anchor))} ({count(heads, 'chain')}). Keep it where this machine cannot change it.")


def _key(given: str) -> str:
    """The public key itself, of a text or a file that holds it. Raises SettingsError."""
    from broker.verifier import anchors

    try:
        path = Path(given)
        text = path.read_text("ascii") if given and path.is_file() else given
        return anchors.canonical_key(text) if text else ""
    except (OSError, ValueError) as error:
        raise SettingsError([Problem("--key", 0, 0, str(error))]) from error


def _told(found: Verification) -> list[str]:
    whole = f"{found.entries} entries in {found.chains} chains, {found.records} records agree with them"
    if found.fault is not None and found.fault.of_anchor:
        lines = [f"{styled('Not proved', 'bad')}: {safe(found.fault.what)}."]
        return [*lines, f"Nothing else is wrong ({whole}), but it was held against no anchor."]
    if found.fault is not None:
        where = f"chain {found.fault.chain}, entry {found.fault.seq}: " if found.fault.chain else ""
        lines = [f"{styled('Not sound', 'bad')}: {safe(where + found.fault.what)}"]
        return [*lines, "This is the first wrong place; what comes after it was not judged."]
    anchored = f", {found.anchored} places agree with the anchor" if found.anchored else ""
    if found.checkpoints:
        made = f"{count(found.checkpoints, 'checkpoint')} signed by {found.signed_by}"
        anchored += f", {made}, the newest of {stamp(found.checkpointed_at_ms)}"
    erased = f", {found.erased} payloads erased since" if found.erased else ""
    return [
        f"{styled('Sound', 'ok')}: {whole}{anchored}{erased}.",
        *(f"  {safe(limit)}" for limit in found.limits),
    ]
