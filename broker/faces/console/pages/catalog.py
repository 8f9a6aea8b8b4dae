"""The catalog as this person sees it: each tool with what it does, whose it is, and what it takes to call it."""

from __future__ import annotations

from starlette.responses import Response

from broker.faces.console.visit import Visit
from broker.faces.text import rendered


async def show(visit: Visit) -> Response:
    tools = [
        (one.entry.tool, sorted(one.missing), rendered(one.entry.tool.input_schema))
        for one in visit.office.offered(visit.who)
    ]
    catalog = visit.office.shelf.current
    notes = catalog.notes if visit.office.oversees(visit.who) else ()
    return await visit.page("catalog.html", tools=tools, version=catalog.version, notes=notes)
