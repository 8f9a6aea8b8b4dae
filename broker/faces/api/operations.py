"""What the API can do, each operation with its words for the published description. The table is the API.

Handlers take (Asked) and return a JSON value or a Reply, or raise BrokerError. What must not live here: HTTP (routes).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, get_args

import orjson

from broker.errors import InvalidArguments
from broker.faces.api import calls
from broker.faces.api.operation import Asked, Operation, Schemas
from broker.faces.macs import macs_of
from broker.faces.office import Offered
from broker.faces.words import as_document, timeline
from broker.model.grant import Grant, GrantDecision
from broker.model.invocation import Invocation, InvocationQuery, State
from broker.model.question import CONDITION, FIRST, MOST_CONDITIONS, By, Condition, Sort
from broker.pipeline.granting import Bounds

MOST = 500
LIST = 50
ANY_USER = "*"
STATES: tuple[str, ...] = get_args(State)


# ----------------------------------------------------------------------------------------------------------- handlers


async def list_holds(asked: Asked) -> Any:
    states = tuple(asked.query.get("state", ("held", "approved")))
    page = await asked.office.page(asked.who, _query(asked, states=states, held_only=True))
    return {"items": [_held(asked, one) for one in page.items], "next": page.next}


async def get_hold(asked: Asked) -> Any:
    found = await asked.office.hold(asked.who, asked.path["id"])
    sketch = await asked.office.sketch(found)
    return {
        **_held(asked, found),
        "arguments": await asked.office.arguments(found),
        "sketch": {**asdict(sketch), "digest": sketch.digest} if sketch else None,
        "previewed": await asked.office.preview(found),
        "changes": [asdict(one) for one in await asked.office.changes(found)],
    }


async def approve(asked: Asked) -> Any:
    return await _decide(asked, approve=True)


async def deny(asked: Asked) -> Any:
    return await _decide(asked, approve=False)


async def _decide(asked: Asked, *, approve: bool) -> Any:
    reason = asked.body.get("reason", "")
    decided = await asked.office.decide(
        asked.who,
        asked.path["id"],
        approve=approve,
        reason=reason,
        via="api",
        arguments=asked.body.get("arguments"),
    )
    return _held(asked, decided)


async def list_grants(asked: Asked) -> Any:
    found = await asked.office.grants(asked.who, ended=bool(asked.query.get("ended", False)))
    return {"items": [_grant(asked, one) for one in found]}


async def propose_grant(asked: Asked) -> Any:
    bounds = {name: asked.body[name] for name in _BOUNDS if name in asked.body}
    return _grant(asked, await asked.office.propose_grant(asked.who, asked.path["id"], via="api", **bounds))


async def draft_grant(asked: Asked) -> Any:
    given: dict[str, Any] = {"issuer": "", "reason": "", **asked.body}
    bounds = Bounds(**{name: given.pop(name) for name in _MEASURES if name in given})
    user = given.pop("user")
    made = await asked.office.draft_grant(
        asked.who, bounds=bounds, user="" if user == ANY_USER else user, via="api", **given
    )
    return _grant(asked, made)


async def approve_grant(asked: Asked) -> Any:
    return await _decide_grant(asked, "approve")


async def reject_grant(asked: Asked) -> Any:
    return await _decide_grant(asked, "reject")


async def revoke_grant(asked: Asked) -> Any:
    return await _decide_grant(asked, "revoke")


async def _decide_grant(asked: Asked, decision: GrantDecision) -> Any:
    reason = asked.body.get("reason", "")
    decided = await asked.office.decide_grant(asked.who, asked.path["id"], decision=decision, reason=reason, via="api")
    return _grant(asked, decided)


def _grant(asked: Asked, grant: Grant) -> dict[str, Any]:
    objection = asked.office.granting.objection(asked.who, grant) if grant.state == "proposed" else ""
    return {**asdict(grant), "may_decide": grant.state == "proposed" and not objection, "objection": objection}


async def list_invocations(asked: Asked) -> Any:
    page = await asked.office.page(asked.who, _query(asked, states=tuple(asked.query.get("state", ()))))
    return {"items": [as_document(one) for one in page.items], "next": page.next}


async def list_sums(asked: Asked) -> Any:
    query = _query(asked, states=tuple(asked.query.get("state", ())))
    found = await asked.office.sums(asked.who, query, asked.query.get("by", "tool"))
    found.sort(key=FIRST[asked.query.get("sort", "calls")])
    return {"items": [asdict(one) for one in found[: query.limit]]}


async def get_invocation(asked: Asked) -> Any:
    found = await asked.office.invocation(asked.who, asked.path["id"])
    return {**as_document(found), "timeline": [asdict(step) for step in timeline(found)]}


async def read_payload(asked: Asked) -> Any:
    clear = await asked.office.payload(asked.who, asked.path["id"], via="api")
    return {"arguments": None if clear is None else orjson.loads(clear)}


async def list_quotas(asked: Asked) -> Any:
    given = asked.query
    page = await asked.office.quotas(
        asked.who, quota=given.get("quota", ""), after=given.get("after", ""), limit=given.get("limit", MOST)
    )
    return {"items": [asdict(state) for state in page.items], "next": page.next}


async def get_stats(asked: Asked) -> Any:
    now_ms = asked.office.clock.now_ms()
    return asdict(await asked.office.stats(asked.who, now_ms - asked.query.get("days", 30) * 86_400_000))


async def list_tools(asked: Asked) -> Any:
    return {
        "version": asked.office.shelf.current.version,
        "items": [_tool(one) for one in asked.office.offered(asked.who)],
    }


# ----------------------------------------------------------------------------------------------------------- documents


def _held(asked: Asked, invocation: Invocation) -> dict[str, Any]:
    objection = asked.office.objection(asked.who, invocation) if invocation.state == "held" else ""
    return {
        **as_document(invocation),
        "may_decide": invocation.state == "held" and not objection,
        "objection": objection,
    }


def _tool(offered: Offered) -> dict[str, Any]:
    tool = offered.entry.tool
    return {
        **tool.listed,
        "version": tool.version,
        "owner": tool.owner,
        "effect": tool.effect,
        "backend": tool.backend,
        "scopes": sorted(tool.scopes),
        "missing_scopes": sorted(offered.missing),
        "definition": tool.definition,
    }


def _query(asked: Asked, *, states: tuple[State, ...], held_only: bool = False) -> InvocationQuery:
    given = asked.query
    return InvocationQuery(
        states=states,
        held_only=held_only,
        since_ms=given.get("since_ms", 0),
        until_ms=given.get("until_ms", 0),
        limit=given.get("limit", LIST),
        agent=given.get("agent", ""),
        user=given.get("user", ""),
        tool=given.get("tool", ""),
        backend=given.get("backend", ""),
        rule=given.get("rule", ""),
        code=given.get("code", ""),
        before=given.get("before", ""),
        after=given.get("after", ""),
        words=given.get("search", ""),
        where=_conditions(given.get("where", ()), given.get("tool", "")),
        macs=macs_of(asked.office.store.mac, given.get("arg", ())),
    )


def _conditions(texts: Sequence[str], tool: str) -> tuple[Condition, ...]:
    """Arguments mean something of one tool only, and looking through everybody's would take long.

    Raises InvalidArguments: what a schema can say of a condition, it has said before.
    """
    if texts and not tool:
        raise InvalidArguments("`where` needs a `tool`: conditions are on the arguments of one.")
    try:
        return tuple(Condition.read(text) for text in texts)
    except ValueError as error:
        raise InvalidArguments(f"`where`: {error}.") from error


# ----------------------------------------------------------------------------------------------------------- the table

_TEXT = {"type": "string", "maxLength": 256, "pattern": r"^[^\u0000]*$"}  # NUL: no name has one
_TIME = {"type": "integer", "minimum": 0, "maximum": 2**53}
_PAGED: Schemas = {
    "limit": {"type": "integer", "minimum": 1, "maximum": MOST, "default": LIST},
    "before": {**_TEXT, "description": "`next` of the page before."},
    "state": {
        "type": "array", "items": {"enum": list(STATES)}, "maxItems": len(STATES),
        "description": "One or more, with commas between.",
    },
}  # fmt: skip
_FILTERS: Schemas = {
    **_PAGED,
    "after": {**_TEXT, "description": "A call's id: only later ones, oldest first; `next` is then the next `after`."},
    **dict.fromkeys(("agent", "user", "tool", "backend", "rule", "code"), _TEXT),
    "since_ms": {**_TIME, "description": "Milliseconds since 1970, UTC."},
    "until_ms": {**_TIME, "description": "Milliseconds since 1970, UTC; not included."},
    "search": {**_TEXT, "description": "Words, all in the arguments that are kept; `refun*` finds beginnings."},
    "where": {
        "type": "array",
        "items": {**_TEXT, "pattern": CONDITION},
        "maxItems": MOST_CONDITIONS,
        "description": "Conditions on kept arguments, such as `args.amount > 100`, with commas between.",
    },
    "arg": {
        "type": "array",
        "items": {**_TEXT, "pattern": r"^[^=,\u0000]+=[^,\u0000]*$"},
        "maxItems": MOST_CONDITIONS,
        "description": "`path=value` of arguments kept as keyed digests, any of them, with commas between.",
    },
}
_SUMMED: Schemas = {
    **{name: schema for name, schema in _FILTERS.items() if name not in ("before", "after")},
    "by": {"enum": list(get_args(By)), "default": "tool"},
    "sort": {"enum": list(get_args(Sort)), "default": "calls", "description": "What comes first, by its largest."},
}
_OF_QUOTAS: Schemas = {
    "quota": {**_TEXT, "description": "Only this one."},
    "limit": {"type": "integer", "minimum": 1, "maximum": MOST, "default": MOST},
    "after": {**_TEXT, "maxLength": 2048, "description": "`next` of the page before."},
}
_OTHER = {"type": "object", "description": "Approve with these arguments instead; the caller is told."}
_REASON = {"reason": {"type": "string", "maxLength": 1000}}
_BOUNDS: Schemas = {
    "when": {"type": "string", "minLength": 1, "maxLength": 2048, "description": "CEL over `args`; absent: any."},
    "count": {"type": "integer", "minimum": 1, "maximum": 100_000, "description": "Most calls."},
    "until_ms": {**_TIME, "description": "When it ends, milliseconds since 1970, UTC."},
    "amount": {"type": "string", "maxLength": 2048, "description": "CEL: what one call costs."},
    "total": {"type": "string", "maxLength": 32, "description": "The most all calls cost together, a decimal."},
    "any_user": {"type": "boolean", "description": "For whoever the agent acts for, not this user alone."},
    "reason": {"type": "string", "maxLength": 1000},
}
_SUBJECT: Schemas = {
    "tool": {**_TEXT, "minLength": 1},
    "agent": {**_TEXT, "minLength": 1},
    "user": {**_TEXT, "minLength": 1, "description": f"Whose calls; `{ANY_USER}`: whoever the agent acts for."},
    "rule": {**_TEXT, "minLength": 1, "description": "Which rule is not to hold them: `policy/id`."},
    "issuer": {**_TEXT, "description": "Who vouches for the agent; absent: who vouches for you."},
}
_MEASURES = ("when", "count", "until_ms", "amount", "total")
_NEW_GRANT: Schemas = {**_SUBJECT, **{name: _BOUNDS[name] for name in (*_MEASURES, "reason")}}
_DAYS: Schemas = {"days": {"type": "integer", "minimum": 1, "maximum": 366, "default": 30}}
_CALLED: Schemas = {
    "tool": {"type": "string", "minLength": 1, "maxLength": 128, "description": "Its name, as /api/catalog has it."},
    "arguments": {"type": "object", "description": "As its inputSchema says; absent: none."},
    "task": {"type": "string", "minLength": 1, "maxLength": 128, "description": "The task it is part of."},
}
_KEY: Schemas = {
    "Idempotency-Key": {
        "type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$",
        "description": "Your own name for this call: sent again with it, it is not done again.",
    },
}  # fmt: skip
_DECIDING = ("forbidden", "unknown_hold", "conflict")
_FIRST = "/items/0/call_id"
_ENDED = ("denied_by_reviewer", "hold_expired", "hold_withdrawn", "outcome_unknown")
_CALLING = (
    "unknown_tool", "insufficient_scope", "forbidden", "invalid_arguments", "over_quota", "overloaded", "conflict",
    "in_flight", *_ENDED, "refused", "unknown_hold", "backend_unavailable", "backend_rejected", "backend_broken",
    "backend_error", "answer_withheld", "backend_timed_out",
)  # fmt: skip

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "GET", "/api/holds", "listHolds", "Held calls you may see; without `state` the open ones.",
        list_holds, "Holds", parameters=_PAGED,
        leads_to=dict.fromkeys(("getHold", "approveHold", "denyHold", "proposeGrant", "getInvocation"), _FIRST),
    ),
    Operation(
        "GET", "/api/holds/{id}", "getHold", "One held call with exactly what will be sent.",
        get_hold, "HoldInFull", codes=("unknown_hold",),
    ),
    Operation(
        "POST", "/api/holds/{id}/approve", "approveHold", "Approve: the broker runs the call once.",
        approve, "Hold", body={**_REASON, "arguments": _OTHER}, codes=(*_DECIDING, "invalid_arguments", "over_quota"),
    ),
    Operation(
        "POST", "/api/holds/{id}/deny", "denyHold", "Deny: the call never runs; the reason is sent to the agent.",
        deny, "Hold", body=_REASON, required=("reason",), codes=_DECIDING,
    ),
    Operation(
        "POST", "/api/holds/{id}/grant", "proposeGrant", "Propose a standing grant for calls like this one.",
        propose_grant, "Grant", body=_BOUNDS, required=("count", "until_ms"), codes=(*_DECIDING, "invalid_arguments"),
        leads_to=dict.fromkeys(("approveGrant", "rejectGrant", "revokeGrant"), "/grant_id"),
    ),
    Operation(
        "GET", "/api/stats", "getStats", "How deciding goes, for who sees all calls of his tenant.",
        get_stats, "Stats", parameters=_DAYS, codes=("forbidden",),
    ),
    Operation(
        "GET", "/api/grants", "listGrants", "Standing grants you may see; with `ended` those that ended, too.",
        list_grants, "Grants", parameters={"ended": {"type": "boolean"}},
        leads_to=dict.fromkeys(("approveGrant", "rejectGrant", "revokeGrant"), "/items/0/grant_id"),
    ),
    Operation(
        "POST", "/api/grants", "draftGrant", "Propose a standing grant for calls of a tool by an agent.",
        draft_grant, "Grant", body=_NEW_GRANT,
        required=("tool", "rule", "agent", "user", "count", "until_ms"),
        codes=("forbidden", "invalid_arguments"),
        leads_to=dict.fromkeys(("approveGrant", "rejectGrant", "revokeGrant"), "/grant_id"),
    ),
    Operation(
        "POST", "/api/grants/{id}/approve", "approveGrant", "Confirm a proposed grant, as another person.",
        approve_grant, "Grant", body=_REASON, codes=_DECIDING,
    ),
    Operation(
        "POST", "/api/grants/{id}/reject", "rejectGrant", "Reject a proposed grant.",
        reject_grant, "Grant", body=_REASON, required=("reason",), codes=_DECIDING,
    ),
    Operation(
        "POST", "/api/grants/{id}/revoke", "revokeGrant", "Revoke a grant; it covers no call from then on.",
        revoke_grant, "Grant", body=_REASON, required=("reason",), codes=_DECIDING,
    ),
    Operation(
        "POST", calls.PATH, "callTool", "Call a tool; 202 with a Location when a person must decide first.",
        calls.call_tool, "Call", body=_CALLED, required=("tool",), headers=_KEY, codes=_CALLING, accepts=True,
        leads_to=dict.fromkeys(("getCall", "withdrawCall", "getInvocation"), "/call_id"),
    ),
    Operation(
        "GET", f"{calls.PATH}/{{id}}", "getCall", "How your own call stands; once it has ended, its result.",
        calls.get_call, "Call", codes=("unknown_hold", "overloaded"), accepts=True,
    ),
    Operation(
        "POST", f"{calls.PATH}/{{id}}/withdraw", "withdrawCall", "Take back your own held call, unless it has run.",
        calls.withdraw_call, "Call", codes=("unknown_hold", "conflict", "overloaded"), accepts=True,
    ),
    Operation(
        "GET", "/api/invocations", "listInvocations", "Calls you may see, newest first.",
        list_invocations, "Invocations", parameters=_FILTERS, leads_to={"getInvocation": _FIRST},
        codes=("invalid_arguments",),
    ),
    Operation(
        "GET", "/api/invocations/{id}", "getInvocation", "One call with its timeline.",
        get_invocation, "InvocationInFull", codes=("unknown_hold",),
    ),
    Operation(
        "POST", "/api/invocations/{id}/payload", "readPayload", "Its sealed arguments, for an auditor; it is recorded.",
        read_payload, "Payload", codes=("forbidden", "unknown_hold"),
    ),
    Operation(
        "GET", "/api/quotas", "listQuotas", "What is used of the quotas you may see, by quota and bucket.",
        list_quotas, "Quotas", parameters=_OF_QUOTAS,
    ),
    Operation(
        "GET", "/api/sums", "listSums", "Calls summed by one of their facts, for who sees all calls of his tenant.",
        list_sums, "Sums", parameters=_SUMMED, codes=("forbidden", "invalid_arguments"),
    ),
    Operation("GET", "/api/catalog", "listTools", "The tools that exist for you.", list_tools, "Catalog"),
)  # fmt: skip
