"""`broker export`: every record, for other systems; all at once, or one after the other as it comes (`--follow`)."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from broker.errors import Problem, SettingsError
from broker.faces.cli import house, options
from broker.faces.cli.log import moment
from broker.faces.cli.output import json_line, tell
from broker.faces.cli.records import Records, open_records
from broker.faces.text import safe
from broker.faces.words import as_document
from broker.model.invocation import InvocationQuery

if TYPE_CHECKING:
    from broker.model.invocation import Invocation

PAGE = 1_000
Form = Literal["jsonl", "csv", "cef", "parquet"]


def export(
    form: Annotated[
        Form,
        typer.Option(
            "--format",
            help="jsonl: one JSON document a line; csv; cef: for SIEMs; parquet: a file (extra `parquet`).",
        ),
    ] = "jsonl",
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", show_default=False, help="A file, instead of stdout.")
    ] = None,
    since: Annotated[
        str, typer.Option(metavar="WHEN", help="30m, 2h, 1d ago, today, or a date and time.", show_default=False)
    ] = "",
    until: Annotated[str, typer.Option(metavar="WHEN", help="As --since.", show_default=False)] = "",
    follow: Annotated[
        bool,
        typer.Option("--follow", "-f", help="Go on with whatever is recorded, from where this name stands, for ever."),
    ] = False,
    name: Annotated[
        str, typer.Option("--name", metavar="NAME", help="With --follow: whose place in the record it is.")
    ] = "export",
    from_first: Annotated[
        bool, typer.Option("--from-first", help="With --follow: a new name begins at the first entry, not at the end.")
    ] = False,
    webhook: Annotated[
        str, typer.Option(metavar="URL", show_default=False, help="With --follow: to this URL, signed.")
    ] = "",
    secret: Annotated[
        str, typer.Option(metavar="REFERENCE", show_default=False, help="Signs a webhook, such as ${file:siem.secret}.")
    ] = "",
    otlp: Annotated[
        str,
        typer.Option(metavar="URL", show_default=False, help="With --follow: as OpenTelemetry logs, to …/v1/logs."),
    ] = "",
    config: options.Config = None,
) -> None:
    """Write every recorded call, oldest first. The export itself is recorded.

    With --follow each entry of the record is handed on as it is written, with the call it is about, at least once and
    in order: the place is kept in the records and moved when the other side has taken what it was given.

    Example:
      broker export > calls.jsonl
      broker export --since 1d | jq -r '[.at, .agent, .tool, .state] | @tsv'
      broker export --format csv --output calls.csv
      broker export --format parquet --output calls.parquet --since 30d
      broker export --follow --name siem --format cef
      broker export --follow --name lake --otlp http://127.0.0.1:4318/v1/logs
    """
    if follow:
        if since or until or output:
            raise typer.BadParameter("--follow goes on from its place; it takes no --since, --until or --output")
        if form == "parquet" or (form in ("csv", "cef") and (webhook or otlp)) or (webhook and otlp):
            raise typer.BadParameter("--follow prints jsonl, csv or cef, or sends to one of --webhook and --otlp")
        from broker.faces.cli.forward import Wanted, forward

        house.run(forward, config, Wanted(form, name, from_first, webhook, secret, otlp))
        return
    if name != "export" or from_first or webhook or secret or otlp:
        raise typer.BadParameter("--name, --from-first, --webhook, --secret and --otlp go with --follow")
    if form == "parquet" and output is None:
        raise typer.BadParameter("parquet is written to a file: --output calls.parquet")
    house.run(_export, config, form, output, since, until)


async def _export(config: Path | None, form: Form, output: Path | None, since: str, until: str) -> None:
    async with open_records(config) as records:
        now_ms = records.clock.now_ms()
        since_ms, until_ms = moment(since, now_ms, "--since"), moment(until, now_ms, "--until")
        try:
            number = await _write(_pages(records, since_ms, until_ms), form, output)
        except OSError as error:
            if output is None:  # whoever reads what is printed has gone
                raise
            raise SettingsError([Problem(str(output), 0, 0, f"cannot be written: {error.strerror}")]) from error
        await records.store.note(
            "export", {"format": form, "calls": number, "since_ms": since_ms, "until_ms": until_ms, "via": "cli"}
        )
    tell(f"{number} calls." if output is None else f"{number} calls in {safe(str(output))}.")


async def _pages(records: Records, since_ms: int, until_ms: int) -> AsyncGenerator[Sequence[Invocation]]:
    after = ""
    while True:
        query = InvocationQuery(after=after, since_ms=since_ms, until_ms=until_ms, limit=PAGE, oldest_first=True)
        page = await records.store.invocations(query)
        yield page
        if len(page) < PAGE:
            return
        after = page[-1].call_id


def _begin(output: Path) -> None:
    output.unlink(missing_ok=True)
    output.touch(mode=0o600)


async def _write(pages: AsyncGenerator[Sequence[Invocation]], form: Form, output: Path | None) -> int:
    """How many calls were written. A file is made anew, for its owner's eyes only."""
    from broker.faces.formats import ParquetFile, cef_line, csv_lines

    number = 0
    if output is not None:
        _begin(output)
    if form == "parquet":
        assert output is not None, "judged by the command"  # noqa: S101
        file = ParquetFile(output)
        async for page in pages:
            file.write(page)
            number += len(page)
        file.close()
        return number
    with output.open("w", encoding="utf-8") if output else nullcontext(sys.stdout) as to:
        async for page in pages:
            if form == "csv":
                to.writelines(csv_lines(page, heading=number == 0))
            elif form == "cef":
                to.writelines(f"{cef_line(one)}\n" for one in page)
            else:
                to.writelines(f"{json_line(as_document(one))}\n" for one in page)
            number += len(page)
    return number
