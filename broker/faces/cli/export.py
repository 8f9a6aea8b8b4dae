"""`broker export`: every record, for other systems."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from broker.faces.cli import house
from broker.faces.cli.log import moment
from broker.faces.cli.output import print_json_line, tell
from broker.faces.cli.records import open_records
from broker.faces.words import as_document
from broker.model.invocation import InvocationQuery

if TYPE_CHECKING:
    from pathlib import Path

PAGE = 1_000


def export(
    form: Annotated[Literal["jsonl"], typer.Option("--format", help="jsonl: one JSON document a line.")] = "jsonl",
    since: Annotated[
        str, typer.Option(metavar="WHEN", help="30m, 2h, 1d ago, or a date and time.", show_default=False)
    ] = "",
    until: Annotated[str, typer.Option(metavar="WHEN", help="As --since.", show_default=False)] = "",
    config: house.Config = None,
) -> None:
    """Print every recorded call, oldest first, one JSON document a line. The export itself is recorded.

    Example:
      broker export > calls.jsonl
      broker export --since 1d | jq -r '[.at, .agent, .tool, .state] | @tsv'
    """
    house.run(_export, config, form, since, until)


async def _export(config: Path | None, form: str, since: str, until: str) -> None:
    async with open_records(config) as records:
        now_ms = records.clock.now_ms()
        since_ms, until_ms = moment(since, now_ms, "--since"), moment(until, now_ms, "--until")
        number, after = 0, ""
        while True:
            query = InvocationQuery(after=after, since_ms=since_ms, until_ms=until_ms, limit=PAGE, oldest_first=True)
            page = await records.store.invocations(query)
            for one in page:
                print_json_line(as_document(one))
            number += len(page)
            if len(page) < PAGE:
                break
            after = page[-1].call_id
        await records.store.note(
            "export", {"format": form, "calls": number, "since_ms": since_ms, "until_ms": until_ms, "via": "cli"}
        )
    tell(f"{number} calls.")
