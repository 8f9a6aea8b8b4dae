"""`broker tools`: the catalog, or what one agent sees of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from broker.faces.cli import house, options
from broker.faces.cli.call import tell_down
from broker.faces.cli.output import print_json, print_table, say, tell
from broker.faces.text import safe

if TYPE_CHECKING:
    from pathlib import Path

    from broker.catalog.catalog import Entry

_HEADINGS = ("TOOL", "VERSION", "EFFECT", "SCOPES", "BACKEND", "OWNER", "TITLE")


def tools(
    agent: Annotated[
        str,
        typer.Option(
            "--as", metavar="AGENT", show_default=False, help="Only what this agent sees: a client's id, or `local`."
        ),
    ] = "",
    broker: options.At = "",
    config: options.Config = None,
    as_json: options.Json = False,
) -> None:
    """List the tools of the catalog; with --as, exactly what that agent gets from tools/list.

    Servers whose tools are imported are started for it.

    Example:
      broker tools
      broker tools --as support-bot
    """
    if broker and agent:
        raise typer.BadParameter("a remote broker shows what exists for you", param_hint="--as")
    if broker:
        house.run(_tools_there, broker, as_json)
    else:
        house.run(_tools, config, agent, as_json)


async def _tools_there(url: str, as_json: bool) -> None:
    from broker.clock import SystemClock
    from broker.faces.cli.remote import opened

    async with opened(url, SystemClock()) as remote:
        found: list[dict[str, Any]] = (await remote.api.get("/catalog") or {}).get("items", [])
    if as_json:
        print_json(found)
    elif found:
        print_table(_HEADINGS, [_row_of(one) for one in found])
    else:
        say(f"No tool exists for you at {safe(url)}.")


def _row_of(document: dict[str, Any]) -> list[str]:
    """Of a tool as the API describes it."""
    told = {**document, "scopes": " ".join(document.get("scopes", ()))}
    names = ("name", "version", "effect", "scopes", "backend", "owner", "title")
    return [_first(str(told.get(name) or "")) for name in names]


async def _tools(config: Path | None, agent: str, as_json: bool) -> None:
    async with house.tooled(config) as broker:
        tell_down(broker)
        catalog = broker.shelf.current
        if agent:
            listed = [dict(entry) for entry in broker.pipeline.listing(house.caller(broker, agent))]
            if as_json:
                print_json(listed)
            elif listed:
                print_table(
                    ["TOOL", "DESCRIPTION"],
                    [[str(one["name"]), _first(str(one.get("description", "")))] for one in listed],
                )
            else:
                say(f"{safe(agent)} sees no tool.")
            return
        if as_json:
            print_json([_document(entry) for entry in catalog.everything()])
        elif any(catalog.everything()):
            print_table(
                _HEADINGS,
                [_row(entry) for entry in catalog.everything()],
            )
        else:
            say(f"No tools yet: put manifests into {safe(str(broker.settings.directory / broker.settings.manifests))}.")
        tell(*(f"note: {safe(note)}" for note in catalog.notes))


def _first(text: str) -> str:
    line = text.strip().split("\n", 1)[0]
    return line if len(line) <= 100 else line[:99] + "…"


def _row(entry: Entry) -> list[str]:
    tool = entry.tool
    return [
        tool.name,
        tool.version,
        tool.effect,
        " ".join(sorted(tool.scopes)),
        tool.backend,
        tool.owner,
        _first(tool.title),
    ]


def _document(entry: Entry) -> dict[str, Any]:
    tool = entry.tool
    return {
        "name": tool.name,
        "version": tool.version,
        "title": tool.title,
        "description": tool.description,
        "owner": tool.owner,
        "effect": tool.effect,
        "scopes": sorted(tool.scopes),
        "backend": tool.backend,
        "input_schema": tool.input_schema,
        "output_schema": tool.output_schema,
        "record": tool.record,
        "definition": tool.definition,
        "source": tool.source,
    }
