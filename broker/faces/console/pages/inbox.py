"""The inbox: what waits for a person, the soonest to expire first; each card answers without a click what it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from starlette.responses import Response

from broker.faces.console import rendering
from broker.faces.console.visit import Visit
from broker.faces.text import rendered
from broker.model.invocation import Invocation, InvocationQuery

SHOWN = 50
LINES = 12  # of arguments on a card; the hold's own page has them all


@dataclass(frozen=True, slots=True)
class Card:
    invocation: Invocation
    lines: list[str]
    more: int
    objection: str


async def show(visit: Visit) -> Response:
    waiting = await visit.office.waiting(visit.who)
    cards = [await _card(visit, one) for one in waiting[:SHOWN]]
    decided = await visit.office.page(
        visit.who,
        InvocationQuery(
            held_only=True,
            states=("approved", "rejected", "expired", "withdrawn", "succeeded", "failed", "outcome_unknown"),
            limit=8,
        ),
    )
    values: dict[str, Any] = {"cards": cards, "more": len(waiting) - len(cards), "decided": decided.items}
    if visit.request.query_params.get("part"):
        return rendering.page("inbox_list.html", waiting=len(waiting), now_ms=visit.office.clock.now_ms(), **values)
    return await visit.page("inbox.html", **values)


async def _card(visit: Visit, invocation: Invocation) -> Card:
    assert invocation.hold is not None  # noqa: S101 – asked for held calls only
    lines = rendered(await visit.office.arguments(invocation), cut=200)
    objection = visit.office.objection(visit.who, invocation.hold)
    return Card(invocation, lines[:LINES], max(0, len(lines) - LINES), objection)
