"""`broker check`: are settings and manifests right, without serving."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from broker.errors import ConfigurationError
from broker.faces.cli import house
from broker.faces.cli.output import count, explain_error, print_json, say, styled, tell
from broker.faces.cli.text import safe

if TYPE_CHECKING:
    from pathlib import Path

    from broker.catalog.catalog import Catalog
    from broker.settings import Settings


def check(
    live: Annotated[bool, typer.Option("--live", help="Also open each backend once, and say what it answers.")] = False,
    config: house.Config = None,
    as_json: house.Json = False,
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
    except ConfigurationError as error:
        if as_json:
            print_json({"ok": False, "problems": [asdict(problem) for problem in error.problems]})
        else:
            explain_error(error)
            tell(f"{count(len(error.problems), 'problem')}.")
        raise typer.Exit(2) from error
    backends = house.run(_opened, config) if live else []
    healthy = all(backend["state"] == "up" for backend in backends)
    if as_json:
        print_json(
            {
                "ok": healthy,
                "problems": [],
                **_counts(catalog, backends),
                "notes": [] if live else list(catalog.notes),
                **({"live": backends} if live else {}),
            }
        )
    else:
        _say(catalog, backends)
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


async def _opened(config: Path | None) -> list[dict[str, Any]]:
    """Each backend after it was opened, with the tools taken from it."""
    async with house.tooled(config) as broker:
        tools = [entry.tool.backend for entry in broker.shelf.current.entries.values()]
        return [
            {
                "backend": name,
                "kind": one.kind,
                "state": one.health.state,
                "detail": one.health.detail,
                "tools": tools.count(name),
            }
            for name, one in broker.backends.items()
        ]


def _counts(catalog: Catalog, backends: list[dict[str, Any]]) -> dict[str, int]:
    """tools: with those of the servers, when they were asked."""
    tools = sum(one["tools"] for one in backends) if backends else len(catalog.entries)
    return {"backends": len(catalog.backends), "tools": tools}


def _say(catalog: Catalog, backends: list[dict[str, Any]]) -> None:
    for one in backends:
        detail = f": {one['detail']}" if one["detail"] else ""
        state = str(one["state"])
        what = safe(f" {one['backend']} ({one['kind']}), {count(one['tools'], 'tool')}{detail}")
        say(styled(f"{state:<9}", state) + what)
    if not backends:
        say(*(f"note: {safe(note)}" for note in catalog.notes))
    counts = _counts(catalog, backends)
    known = f"{count(counts['backends'], 'backend')}, {count(counts['tools'], 'tool')}"
    say(f"{styled('ok', 'ok')}: {known}")
