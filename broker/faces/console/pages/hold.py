"""One hold on one page: who asks, what exactly will be sent, why it is held, what to decide; then what happened."""

from __future__ import annotations

from typing import Any, cast

import jiter
import orjson
from starlette.responses import Response

from broker.errors import BrokerError, Conflict, Forbidden, InvalidArguments, Malformed, OverQuota
from broker.faces.api.errors import STATUS
from broker.faces.console import rendering
from broker.faces.console.pages.grants import suggested
from broker.faces.console.visit import Visit
from broker.faces.text import rendered, safe
from broker.faces.words import timeline
from broker.model.hold import Hold
from broker.model.invocation import Invocation, InvocationQuery, State
from broker.pipeline.editing import changed

OTHERS = 5
SCAN = 5_000  # calls looked at for what the agent did before: a task is of one sitting
JUDGED: tuple[State, ...] = ("rejected", "expired", "withdrawn", "succeeded", "failed", "outcome_unknown")
LINES = 200  # of arguments, of a body, of a preview, before the page asks whether to show all of them
EDITED_CHARS = 30_000  # longer arguments are not for a form
LATE = "Your decision came too late: it was decided before, as below."


async def show(visit: Visit) -> Response:
    found = await visit.office.hold(visit.who, visit.request.path_params["id"])
    if visit.request.query_params.get("seen") == stage_of(found):
        return Response(status_code=204, headers=dict(rendering.HEADERS))
    return await _page(visit, found)


async def decide(visit: Visit) -> Response:
    """POST: approve, deny, or approve with other arguments, which are shown as a difference first.

    Ends on the hold's page, which says what happened, whoever decided.
    """
    call_id, decision = (visit.request.path_params[name] for name in ("id", "decision"))
    found = await visit.office.hold(visit.who, call_id)
    try:
        arguments = _arguments(visit.form.get("arguments", "")) if decision == "edit" else None
        if arguments is not None and "sure" not in visit.form:
            return await _page(visit, found, edited=arguments)
        await visit.office.decide(
            visit.who,
            call_id,
            approve=decision != "deny",
            reason=visit.form.get("reason", ""),
            via="console",
            arguments=arguments,
        )
    except (Conflict, Forbidden, InvalidArguments, Malformed, OverQuota) as error:
        return await _refused(visit, call_id, error)
    return visit.go(f"/console/holds/{call_id}")


async def _refused(visit: Visit, call_id: str, error: BrokerError) -> Response:
    found = await visit.office.hold(visit.who, call_id)
    late = isinstance(error, Conflict) and found.state != "held"
    return await _page(visit, found, problem=LATE if late else error.sentence, status=STATUS[error.code])


def _arguments(text: str) -> dict[str, Any]:
    """Raises Malformed."""
    try:
        value = jiter.from_json(text.encode(), allow_inf_nan=False, catch_duplicate_keys=True)
    except ValueError as error:
        raise Malformed(f"The arguments are not JSON: {error}.", next_step="Nothing was decided.") from None
    if not isinstance(value, dict):
        raise Malformed("The arguments are not a JSON object.", next_step="Nothing was decided.")
    return cast("dict[str, Any]", value)


def stage_of(found: Invocation) -> str:
    """What has to be different for the page to be shown anew."""
    approvals = len(found.hold.approvals) if found.hold else 0
    return f"{found.state}.{approvals}"


async def _page(
    visit: Visit, found: Invocation, *, problem: str = "", status: int = 200, edited: dict[str, Any] | None = None
) -> Response:
    hold, office = cast("Hold", found.hold), visit.office
    arguments = await office.arguments(found)
    sketch, preview = await office.sketch(found), await office.preview(found)
    entry = office.shelf.current.entries.get(found.tool)
    same = entry is not None and entry.tool.definition == found.definition
    whole = orjson.dumps(arguments, option=orjson.OPT_INDENT_2).decode() if isinstance(arguments, dict) else ""
    return await visit.page(
        "hold.html",
        status=status,
        one=found,
        hold=hold,
        stage=stage_of(found),
        tool=entry.tool if entry is not None and same else None,
        arguments=_cut(visit, rendered(arguments)),
        sketch=sketch,
        body=_cut(visit, sketch.body.split("\n") if sketch is not None and sketch.body else []),
        preview=_cut(visit, previewed(preview)) if preview is not None else None,
        suggested=suggested(arguments) if same else "",
        editable=whole if same and len(whole) <= EDITED_CHARS else "",
        edited=None if edited is None else orjson.dumps(edited).decode(),
        changes=tuple(changed(arguments, edited)) if edited is not None else await office.changes(found),
        objection=office.objection(visit.who, found, via="console") if found.state == "held" else "",
        steps=timeline(found),
        problem=problem,
        before=await _before(visit, found),
        similar=[one for one in await _similar(visit, found) if one.call_id != found.call_id][:OTHERS],
        reviewers=_named(hold.scopes, hold.groups) or [f"scope {office.settings.hold.reviewer_scope}"],
        escalation=_named(hold.escalation_scopes, hold.escalation_groups),
    )


def previewed(result: Any) -> list[str]:
    """What a preview said, as lines: its texts, and its structured content once, although most servers give that as a
    text too (MCP asks them to). Whatever is not of this shape is shown as it is."""
    shaped = cast("dict[str, Any]", result) if isinstance(result, dict) else {}
    content, structured = shaped.get("content"), shaped.get("structuredContent")
    if not isinstance(content, list) or set(shaped) - {"content", "structuredContent", "isError"}:
        return rendered(result)
    lines: list[str] = []
    for block in cast("list[Any]", content):
        plain = cast("dict[str, Any]", block) if isinstance(block, dict) else {}
        text = plain.get("text") if set(plain) == {"type", "text"} else None
        if not isinstance(text, str):
            lines += rendered(block)
        elif (said := _as_json(text)) is None:
            lines += safe(text, lines=True).split("\n")
        elif said != structured:
            lines += rendered(said)
    return lines + (rendered(structured) if structured is not None else [])


def _as_json(text: str) -> Any:
    """None for what is none."""
    try:
        return jiter.from_json(text.encode("utf-8", "surrogatepass"), allow_inf_nan=False, catch_duplicate_keys=True)
    except ValueError:
        return None


def _cut(visit: Visit, lines: list[str]) -> tuple[list[str], int]:
    """The lines that are shown, and how many are not."""
    shown = len(lines) if visit.request.query_params.get("all") else LINES
    return lines[:shown], max(0, len(lines) - shown)


def _named(scopes: tuple[str, ...], groups: tuple[str, ...]) -> list[str]:
    return [f"scope {scope}" for scope in scopes] + [f"group {group}" for group in groups]


async def _before(visit: Visit, found: Invocation) -> list[Invocation]:
    """What the agent did before this for the same person, in the same task where its calls name one (their trace)."""
    query = InvocationQuery(
        principal_key=found.principal_key,
        agent=found.agent,
        trace_id=found.trace_id,
        before=found.call_id,
        limit=2 * OTHERS,
        scan=SCAN,
    )
    page = await visit.office.page(visit.who, query)
    return [one for one in page.items if one.face != "preview"][:OTHERS]  # those were ours


async def _similar(visit: Visit, found: Invocation) -> list[Invocation]:
    """What people decided on calls of this tool that the same rule held."""
    query = InvocationQuery(tool=found.tool, rule=found.rule, states=JUDGED, limit=OTHERS + 1)
    return await visit.office.held_lately(visit.who, query)
