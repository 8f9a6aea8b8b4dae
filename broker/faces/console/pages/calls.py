"""One feed of all calls, denials and holds in it; the filter is the URL. And each call as a timeline at its own URL."""

from __future__ import annotations

from typing import cast
from urllib.parse import urlencode

from starlette.responses import Response

from broker.errors import Malformed
from broker.faces import bodies
from broker.faces.api.operations import STATES
from broker.faces.console.visit import Visit
from broker.faces.text import rendered
from broker.faces.words import timeline
from broker.model.invocation import InvocationQuery, State

FILTERS = ("state", "agent", "user", "tool", "backend", "rule", "code")
PAGE = 50


async def show(visit: Visit) -> Response:
    given = bodies.query(visit.request, (*FILTERS, "before"))
    state = given.get("state", "")
    if state and state not in STATES:
        raise Malformed(f"There is no state {state[:40]!r}.", next_step=f"States: {', '.join(STATES)}.")
    query = InvocationQuery(
        states=(cast("State", state),) if state else (),
        agent=given.get("agent", ""),
        user=given.get("user", ""),
        tool=given.get("tool", ""),
        backend=given.get("backend", ""),
        rule=given.get("rule", ""),
        code=given.get("code", ""),
        before=given.get("before", ""),
        limit=PAGE,
    )
    page = await visit.office.page(visit.who, query)
    chosen = {name: value for name, value in given.items() if name in FILTERS}
    following = f"/console/calls?{urlencode({**chosen, 'before': page.next})}" if page.next else ""
    return await visit.page(
        "calls.html", calls=page.items, chosen=chosen, filters=FILTERS, states=STATES, following=following
    )


async def one(visit: Visit) -> Response:
    found = await visit.office.invocation(visit.who, visit.request.path_params["id"])
    kept = await visit.office.arguments(found)
    lines = rendered(kept) if kept is not None else []
    return await visit.page("call.html", one=found, lines=lines, steps=timeline(found))
