"""`broker check`: are settings and manifests right, without serving."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from broker.errors import ConfigurationError, Problem, SettingsError
from broker.faces.cli import house, options
from broker.faces.cli.output import explain_error, print_json, say, styled, tell
from broker.faces.text import safe
from broker.faces.words import count

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from broker.catalog.catalog import Catalog
    from broker.settings import Settings


def check(
    live: Annotated[bool, typer.Option("--live", help="Also open each backend once, and say what it answers.")] = False,
    config: options.Config = None,
    as_json: options.Json = False,
) -> None:
    """Judge settings and manifests: every problem at once, as file:line:column and what would be right.

    Exit code 2 when something is wrong; 1 when a backend does not work (--live).

    Example:
      broker check
      broker check --live
    """
    try:
        settings = house.read(config)
        house.quiet(settings)
        catalog = _compiled(settings)
        _may_be_reached(settings, config)
    except ConfigurationError as error:
        if as_json:
            print_json({"ok": False, "problems": [asdict(problem) for problem in error.problems]})
        else:
            explain_error(error)
            tell(f"{count(len(error.problems), 'problem')}.")
        raise typer.Exit(2) from error
    backends, notes = house.run(_opened, config) if live else ([], catalog.notes)
    notes = (*notes, *house.unset(catalog, settings))
    healthy = all(backend["state"] == "up" for backend in backends)
    if as_json:
        print_json(
            {
                "ok": healthy,
                "problems": [],
                **_counts(catalog, backends),
                "notes": list(notes),
                **({"live": backends} if live else {}),
            }
        )
    else:
        _say(catalog, backends, notes)
    if not healthy:
        raise typer.Exit(1)


def _compiled(settings: Settings) -> Catalog:
    """The catalog as far as it can be known without any backend."""
    from broker.assembly import backend_kinds
    from broker.catalog.compiler import compile_catalog
    from broker.catalog.reader import read_manifests

    kinds = backend_kinds()
    return compile_catalog(
        read_manifests(settings.directory / settings.manifests, kinds), kinds, {}, hold=settings.hold
    )


def _may_be_reached(settings: Settings, config: Path | None) -> None:
    """Raises SettingsError for what `broker serve` refuses whatever accounts there are."""
    from broker.authserver import undeclared

    where = str(house.settings_path(config) or house.SETTINGS_FILE)
    faults = undeclared(settings)
    if faults:
        raise SettingsError([Problem(where, 0, 0, fault) for fault in faults])


async def _opened(config: Path | None) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """Each backend after it was opened, with the tools taken from it; and what the catalog has to say then."""
    async with house.tooled(config) as broker:
        catalog = broker.shelf.current
        tools = [entry.tool.backend for entry in catalog.entries.values()]
        return [
            {
                "backend": name,
                "kind": one.kind,
                "state": one.health.state,
                "detail": one.health.detail,
                "tools": tools.count(name),
            }
            for name, one in broker.backends.items()
        ], tuple(catalog.notes)


def _counts(catalog: Catalog, backends: list[dict[str, Any]]) -> dict[str, int]:
    """tools: with those of the servers, when they were asked."""
    tools = sum(one["tools"] for one in backends) if backends else len(catalog.entries)
    return {"backends": len(catalog.backends), "tools": tools}


def _say(catalog: Catalog, backends: list[dict[str, Any]], notes: Sequence[str]) -> None:
    for one in backends:
        detail = f": {one['detail']}" if one["detail"] else ""
        state = str(one["state"])
        what = safe(f" {one['backend']} ({one['kind']}), {count(one['tools'], 'tool')}{detail}")
        say(styled(f"{state:<9}", state) + what)
    say(*(f"note: {safe(note)}" for note in notes))
    counts = _counts(catalog, backends)
    known = f"{count(counts['backends'], 'backend')}, {count(counts['tools'], 'tool')}"
    idle = [one for one in backends if one["state"] != "up"]
    if idle:
        say(f"{styled('not ok', 'bad')}: {known}; {len(idle)} of {count(len(backends), 'backend')} not up")
    else:
        say(f"{styled('ok', 'ok')}: {known}")
    if not backends and any(plan.kind == "mcp" for plan in catalog.backends.values()):
        say("`broker check --live` also starts the MCP servers and asks what they offer.")
