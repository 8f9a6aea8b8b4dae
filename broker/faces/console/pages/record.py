"""The record, verified on request by code that shares nothing with its writer; for who oversees the broker."""

from __future__ import annotations

from starlette.responses import Response

from broker.faces.console.visit import Visit


async def show(visit: Visit) -> Response:
    visit.office.must_oversee(visit.who)
    found = await visit.verify() if visit.request.method == "POST" else None
    return await visit.page("record.html", found=found)
