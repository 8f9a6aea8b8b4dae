"""`broker quotas`: what is left of every quota that is in use, and when its window begins anew."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from broker.faces.cli import house
from broker.faces.cli.output import print_json, print_table, say, stamp
from broker.faces.cli.records import open_source

if TYPE_CHECKING:
    from pathlib import Path

    from broker.model.quota import QuotaState

MICRO = "_micro"  # units of money are counted in millionths


def quotas(
    name: Annotated[str, typer.Argument(metavar="[QUOTA]", show_default=False, help="Only this quota.")] = "",
    broker: house.At = "",
    config: house.Config = None,
    as_json: house.Json = False,
) -> None:
    """Show what is left of the quotas that are in use, bucket by bucket.

    A bucket of which nothing is used or reserved is not shown: all of it is left.

    Example:
      broker quotas
      broker quotas agent-minute --json
    """
    house.run(_quotas, config, broker, name, as_json)


async def _quotas(config: Path | None, broker: str, name: str, as_json: bool) -> None:
    async with open_source(config, broker) as records:
        found = await records.store.quotas(records.clock.now_ms())
    shown = [state for state in found if name in ("", state.quota)]
    if as_json:
        print_json([_document(state) for state in shown])
    elif shown:
        headings = ("QUOTA", "WHOSE", "KIND", "LEFT", "OF", "UNIT", "ANEW AT")
        print_table(headings, [_row(state) for state in shown])
    else:
        say("Nothing of any quota is used now." if not name else "Nothing of this quota is used now.")


def _document(state: QuotaState) -> dict[str, Any]:
    return {key: value for key, value in asdict(state).items() if key != "retry_after_ms"}


def _row(state: QuotaState) -> tuple[str, ...]:
    money = state.unit.endswith(MICRO)
    left, limit = (f"{amount / 10**6:.2f}" if money else str(amount) for amount in (state.left, state.limit))
    unit = state.unit.removesuffix(MICRO).upper() if money else state.unit
    anew = stamp(state.resets_at_ms) if state.resets_at_ms else "as calls age" if state.kind == "rate" else ""
    return (state.quota, state.bucket or "everybody", state.kind, left, limit, unit, anew)
