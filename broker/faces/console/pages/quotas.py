"""What is used of the quotas over time, and what is left now, bucket by bucket, the fullest first."""

from __future__ import annotations

from starlette.responses import Response

from broker.faces.console.charts import SPANS, chosen_span, of_spending
from broker.faces.console.visit import Visit


async def show(visit: Visit) -> Response:
    chosen, span = chosen_span(visit)
    page = await visit.office.quotas(visit.who)
    states = sorted(page.items, key=lambda one: (one.left / one.limit if one.limit else 0, one.quota, one.bucket))
    charts = await of_spending(visit, span)
    return await visit.page("quotas.html", quotas=states, charts=charts, spans=SPANS, chosen=chosen)
