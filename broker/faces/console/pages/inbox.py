"""The inbox: what waits for a person, the soonest to expire first; each card answers without a click what it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from urllib.parse import urlencode

from starlette.responses import Response

from broker.data import dataclass
from broker.faces import bodies
from broker.faces.console import rendering
from broker.faces.console.visit import Visit
from broker.faces.office import QUEUE_FILTERS
from broker.faces.text import rendered
from broker.model.invocation import Invocation, InvocationQuery, State

SHOWN = 25
LINES = 12  # of arguments on a card; the hold's own page has them all
DECIDED: tuple[State, ...] = (
    "approved", "dispatching", "rejected", "expired", "withdrawn", "succeeded", "failed", "outcome_unknown",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Card:
    invocation: Invocation
    title: str
    lines: list[str]
    more: int
    objection: str


async def show(visit: Visit) -> Response:
    given = bodies.query(visit.request, (*QUEUE_FILTERS, "after", "part"))
    chosen = {name: value for name, value in given.items() if name in QUEUE_FILTERS}
    after = given.get("after", "")
    queue = await visit.office.queue(visit.who, replace(InvocationQuery(after=after, limit=SHOWN), **chosen))
    values: dict[str, Any] = {
        "cards": [await _card(visit, one) for one in queue.items],
        "queue": queue,
        "chosen": chosen,
        "after": after,
        "here": f"/console?{urlencode({**chosen, **({'after': after} if after else {}), 'part': 'list'})}",
        "following": f"/console?{urlencode({**chosen, 'after': queue.next})}" if queue.next else "",
        "decided": await visit.office.held_lately(visit.who, InvocationQuery(states=DECIDED, limit=8)),
    }
    if "part" in given:
        return rendering.page("inbox_list.html", now_ms=visit.office.clock.now_ms(), **values)
    return await visit.page("inbox.html", **values)


async def _card(visit: Visit, invocation: Invocation) -> Card:
    assert invocation.hold is not None  # noqa: S101 – asked for held calls only
    lines = rendered(await visit.office.arguments(invocation), cut=200)
    objection = visit.office.objection(visit.who, invocation, via="console")
    entry = visit.office.shelf.current.entries.get(invocation.tool)
    title = entry.tool.title if entry is not None else ""
    return Card(invocation, title, lines[:LINES], max(0, len(lines) - LINES), objection)
