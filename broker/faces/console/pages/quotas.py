"""What is used of the quotas, bucket by bucket, the fullest first."""

from __future__ import annotations

from starlette.responses import Response

from broker.faces.console.visit import Visit


async def show(visit: Visit) -> Response:
    states = await visit.office.quotas(visit.who)
    states.sort(key=lambda state: (state.left / state.limit if state.limit else 0, state.quota, state.bucket))
    return await visit.page("quotas.html", quotas=states)
