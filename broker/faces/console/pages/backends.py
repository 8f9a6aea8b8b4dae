"""The backends and how they are, for who oversees the broker."""

from __future__ import annotations

from starlette.responses import Response

from broker.faces.console.visit import Visit


async def show(visit: Visit) -> Response:
    visit.office.must_oversee(visit.who)
    order = {"down": 0, "degraded": 1, "starting": 2, "up": 3}
    entries = visit.office.shelf.current.entries.values()
    backends = sorted(visit.office.backends.values(), key=lambda one: (order[one.health.state], one.name))
    rows = [
        (one.name, one.kind, one.health, sum(entry.tool.backend == one.name for entry in entries)) for one in backends
    ]
    return await visit.page("backends.html", rows=rows)
