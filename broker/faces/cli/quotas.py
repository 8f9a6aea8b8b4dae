"""`broker quotas`: what is left of every quota that is in use, and when its window begins anew."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from broker.faces.cli import house, options
from broker.faces.cli.output import print_json, print_table, say, stamp
from broker.faces.cli.records import open_source
from broker.model.quota import QuotaState, spoken

if TYPE_CHECKING:
    from pathlib import Path


def quotas(
    name: Annotated[str, typer.Argument(metavar="[QUOTA]", show_default=False, help="Only this quota.")] = "",
    broker: options.At = "",
    after: Annotated[str, typer.Option(metavar="PLACE", help="Go on after the last bucket of the page before.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="Most buckets to show.")] = 100,
    config: options.Config = None,
    as_json: options.Json = False,
) -> None:
    """Show what is left of the quotas that are in use, bucket by bucket.

    A bucket of which nothing is used or reserved is not shown: all of it is left. Where there are more than `--limit`,
    the last line says how to go on.

    Example:
      broker quotas
      broker quotas agent-minute --json
    """
    house.run(_quotas, config, broker, _Page(name, after, limit), as_json)


class _Page(NamedTuple):
    quota: str
    after: str
    limit: int


async def _quotas(config: Path | None, broker: str, page: _Page, as_json: bool) -> None:
    async with open_source(config, broker) as records:
        now_ms = records.clock.now_ms()
        found = await records.store.quotas(now_ms, quota=page.quota, after=page.after, limit=page.limit + 1)
    shown = found[: page.limit]
    if as_json:
        print_json([_document(state) for state in shown])
    elif shown:
        headings = ("QUOTA", "WHOSE", "KIND", "LEFT", "OF", "UNIT", "ANEW AT")
        print_table(headings, [_row(state) for state in shown])
        if len(found) > len(shown):
            say(f"There are more: broker quotas --after {shlex.quote(shown[-1].place)}")
    else:
        say("Nothing of this quota is used now." if page.quota else "Nothing of any quota is used now.")


def _document(state: QuotaState) -> dict[str, Any]:
    return {key: value for key, value in asdict(state).items() if key != "retry_after_ms" or value}


def _row(state: QuotaState) -> tuple[str, ...]:
    left, (limit, unit) = spoken(state.left, state.unit)[0], spoken(state.limit, state.unit)
    anew = stamp(state.resets_at_ms) if state.resets_at_ms else "as calls age" if state.kind == "rate" else ""
    return (state.quota, state.bucket or "everybody", state.kind, left, limit, unit, anew)
