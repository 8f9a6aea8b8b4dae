"""One hold on one page: who asks, what exactly will be sent, why it is held, two buttons; then what happened."""

from __future__ import annotations

from starlette.responses import Response

from broker.errors import Conflict, Forbidden
from broker.faces.console import rendering
from broker.faces.console.visit import Visit
from broker.faces.text import rendered
from broker.faces.words import timeline
from broker.model.invocation import Invocation, InvocationQuery, State

OTHERS = 5
SCAN = 10_000  # calls looked at for what the agent did before
JUDGED: tuple[State, ...] = ("rejected", "expired", "withdrawn", "succeeded", "failed", "outcome_unknown")
LINES = 200  # of arguments before the page asks whether to show all of them


async def show(visit: Visit) -> Response:
    found = await visit.office.hold(visit.who, visit.request.path_params["id"])
    if visit.request.query_params.get("seen") == found.state:
        return Response(status_code=204, headers=dict(rendering.HEADERS))
    return await _page(visit, found)


async def decide(visit: Visit) -> Response:
    """POST: approve or deny. Ends on the hold's page, which says what happened, whoever decided."""
    call_id = visit.request.path_params["id"]
    approve = visit.request.path_params["decision"] == "approve"
    try:
        reason = visit.form.get("reason", "")
        await visit.office.decide(visit.who, call_id, approve=approve, reason=reason, via="console")
    except (Conflict, Forbidden) as error:
        found = await visit.office.hold(visit.who, call_id)
        late = isinstance(error, Conflict)
        words = "Your decision came too late: it was decided before, as below." if late else error.sentence
        return await _page(visit, found, problem=words, status=409 if late else 403)
    return visit.go(f"/console/holds/{call_id}")


async def _page(visit: Visit, found: Invocation, *, problem: str = "", status: int = 200) -> Response:
    assert found.hold is not None  # noqa: S101 – `office.hold` gives held calls only
    office = visit.office
    lines = rendered(await office.arguments(found))
    shown = len(lines) if visit.request.query_params.get("all") else LINES
    entry = office.shelf.current.entries.get(found.tool)
    same = entry is not None and entry.tool.definition == found.definition
    return await visit.page(
        "hold.html",
        status=status,
        one=found,
        hold=found.hold,
        tool=entry.tool if entry is not None and same else None,
        lines=lines[:shown],
        more=max(0, len(lines) - shown),
        objection=office.objection(visit.who, found.hold) if found.state == "held" else "",
        steps=timeline(found),
        problem=problem,
        before=await _before(visit, found),
        similar=[one for one in await _similar(visit, found) if one.call_id != found.call_id][:OTHERS],
        reviewers=[f"scope {scope}" for scope in found.hold.scopes] + [f"group {group}" for group in found.hold.groups]
        or [f"scope {office.settings.hold.reviewer_scope}"],
    )


async def _before(visit: Visit, found: Invocation) -> list[Invocation]:
    """What the agent did before this for the same person, in the same task where its calls name one (their trace)."""
    query = InvocationQuery(
        principal_key=found.principal_key,
        agent=found.agent,
        trace_id=found.trace_id,
        before=found.call_id,
        limit=OTHERS,
        scan=SCAN,
    )
    return list((await visit.office.page(visit.who, query)).items)


async def _similar(visit: Visit, found: Invocation) -> list[Invocation]:
    """What people decided on calls of this tool that the same rule held."""
    query = InvocationQuery(tool=found.tool, rule=found.rule, states=JUDGED, limit=OTHERS + 1)
    return await visit.office.held_lately(visit.who, query)
