"""The agents: those registered here, with what they may ask for, and those that called lately, whoever vouches."""

from __future__ import annotations

from starlette.responses import Response

from broker.faces.console.visit import Visit
from broker.model.invocation import InvocationQuery


async def show(visit: Visit) -> Response:
    clients = {client.client_id: client for client in await visit.office.clients(visit.who)}
    seen = {one.agent: one for one in await visit.office.store.agents(visit.who.tenant)}
    queue = await visit.office.queue(visit.who, InvocationQuery(limit=1))
    names = sorted({*clients, *seen})
    rows = [(name, clients.get(name), seen.get(name), queue.choices["agent"].get(name, 0)) for name in names]
    return await visit.page("agents.html", rows=rows)
