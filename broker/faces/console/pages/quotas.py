"""What is used of the quotas, bucket by bucket, the fullest first."""

from __future__ import annotations

from starlette.responses import Response

from broker.faces.console.visit import Visit


async def show(visit: Visit) -> Response:
    page = await visit.office.quotas(visit.who)
    states = sorted(page.items, key=lambda one: (one.left / one.limit if one.limit else 0, one.quota, one.bucket))
    return await visit.page("quotas.html", quotas=states)
