"""One feed of all calls, denials and holds in it; the filter is the URL. Each call as a timeline at its own URL.

The same view is to be had as JSON and as CSV, a page at a time, and that is recorded.
"""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from typing import Any, cast
from urllib.parse import urlencode

import orjson
from starlette.responses import Response

from broker.errors import Malformed
from broker.faces import bodies
from broker.faces.api.operations import STATES
from broker.faces.console import rendering
from broker.faces.console.visit import Visit
from broker.faces.office import Page
from broker.faces.text import rendered
from broker.faces.words import as_document, timeline
from broker.model.invocation import InvocationQuery, State
from broker.pipeline.desk import name_of

FILTERS = ("state", "agent", "user", "tool", "backend", "rule", "code")
PAGE = 50
FILE = 200  # calls of a JSON or CSV
COLUMNS = (
    "call_id", "at", "state", "agent", "user", "tenant", "tool", "backend", "rule", "code", "effect", "message",
    "duration_ms",
)  # fmt: skip


async def show(visit: Visit) -> Response:
    chosen, page = await _asked(visit, PAGE)
    return await visit.page(
        "calls.html",
        calls=page.items,
        chosen=chosen,
        filters=FILTERS,
        states=STATES,
        short=len(page.items) < PAGE and bool(page.next),
        following=f"/console/calls?{urlencode({**chosen, 'before': page.next})}" if page.next else "",
        files=urlencode(chosen),
    )


async def as_json(visit: Visit) -> Response:
    """GET: the view as a JSON object: `calls` as the record has them, and `next` for the `before` of the next file."""
    _, page = await _asked(visit, FILE)
    await _note(visit, "json", len(page.items))
    body = orjson.dumps({"calls": [as_document(one) for one in page.items], "next": page.next})
    return _file(body, "application/json", "calls.json")


async def as_csv(visit: Visit) -> Response:
    """GET: the view as a table. A cell that a spreadsheet would take for a formula begins with an apostrophe."""
    _, page = await _asked(visit, FILE)
    await _note(visit, "csv", len(page.items))
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(COLUMNS)
    for one in page.items:
        document = as_document(one)
        table.writerow([_cell(document[name]) for name in COLUMNS])
    return _file(text.getvalue().encode(), "text/csv; charset=utf-8", "calls.csv")


async def one(visit: Visit) -> Response:
    found = await visit.office.invocation(visit.who, visit.request.path_params["id"])
    kept = await visit.office.arguments(found)
    lines = rendered(kept) if kept is not None else []
    return await visit.page("call.html", one=found, lines=lines, steps=timeline(found))


async def _asked(visit: Visit, limit: int) -> tuple[dict[str, str], Page]:
    """The filters of the URL, and the page they ask for."""
    given = bodies.query(visit.request, (*FILTERS, "before"))
    state = given.get("state", "")
    if state and state not in STATES:
        raise Malformed(f"There is no state {state[:40]!r}.", next_step=f"States: {', '.join(STATES)}.")
    equal = {name: value for name, value in given.items() if name in FILTERS and name != "state"}
    states = (cast("State", state),) if state else ()
    query = InvocationQuery(states=states, before=given.get("before", ""), limit=limit)
    page = await visit.office.page(visit.who, replace(query, **equal), hurried=True)
    return {name: value for name, value in given.items() if name in FILTERS}, page


async def _note(visit: Visit, kind: str, rows: int) -> None:
    facts = {"by": name_of(visit.who), "via": "console", "format": kind, "rows": rows}
    await visit.office.store.note("export", facts)


def _cell(value: Any) -> str:
    text = str(value)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def _file(body: bytes, kind: str, name: str) -> Response:
    headers = {**rendering.HEADERS, "Content-Disposition": f'attachment; filename="{name}"'}
    return Response(body, 200, headers, kind)
