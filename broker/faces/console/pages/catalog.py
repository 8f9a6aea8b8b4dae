"""The catalog as this person sees it, or as an agent does: each tool with what it does, whose it is, what it takes."""

from __future__ import annotations

from starlette.responses import Response

from broker.faces import bodies
from broker.faces.console.visit import Visit
from broker.faces.text import rendered


async def show(visit: Visit) -> Response:
    office = visit.office
    name = bodies.query(visit.request, ("as",)).get("as", "")
    sees_all = office.oversees(visit.who)
    whose = await office.as_agent(visit.who, name) if name else visit.who
    tools = [
        (one.entry.tool, sorted(one.missing), rendered(one.entry.tool.input_schema)) for one in office.offered(whose)
    ]
    catalog = office.shelf.current
    return await visit.page(
        "catalog.html",
        tools=tools,
        version=catalog.version,
        notes=catalog.notes if sees_all else (),
        agent=name,
        agents=sorted(client.client_id for client in await office.clients(visit.who)) if sees_all else [],
    )
