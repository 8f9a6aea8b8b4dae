"""Standing grants: which calls run without being held, by whose word, how often yet; to approve, to refuse, to end.

One is proposed from a held call (pages/hold), or written here from nothing. What must not live here: who may decide
(pipeline/granting).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from broker.errors import Conflict, Forbidden, InvalidArguments, Malformed
from broker.faces import bodies
from broker.faces.api.errors import STATUS
from broker.faces.console.visit import Visit
from broker.model.grant import GrantDecision
from broker.pipeline.granting import Bounds

DAY_MS = 86_400_000
MOST_DAYS = 366
VOUCHERS = ("api-key", "settings")  # besides issuers, see model.principal
DECISIONS: Mapping[str, GrantDecision] = {"approve": "approve", "reject": "reject", "revoke": "revoke"}
SUGGESTED = 6  # arguments in a suggested condition
TEXT_CHARS = 80
QUOTES = frozenset('"\\')


async def show(visit: Visit) -> Response:
    return await _page(visit)


async def decide(visit: Visit) -> Response:
    """POST: approve, reject or revoke one."""
    wanted = visit.request.path_params["decision"]
    decision = DECISIONS.get(wanted)
    if decision is None:
        raise Malformed(f"Nothing is called {wanted[:40]!r} here.")
    grant_id, reason = visit.request.path_params["id"], visit.form.get("reason", "")
    try:
        await visit.office.decide_grant(visit.who, grant_id, decision=decision, reason=reason, via="console")
    except (Conflict, Forbidden) as error:
        return await _page(visit, problem=error.sentence, status=STATUS[error.code])
    return visit.go("/console/grants")


async def propose(visit: Visit) -> Response:
    """POST: a grant for calls like a held one."""
    form = visit.form
    try:
        await visit.office.propose_grant(
            visit.who,
            visit.request.path_params["id"],
            via="console",
            when=form.get("when", ""),
            count=_number(form, "count", 1_000_000),
            until_ms=visit.office.clock.now_ms() + _number(form, "days", MOST_DAYS) * DAY_MS,
            reason=form.get("reason", ""),
            any_user="any_user" in form,
        )
    except (Conflict, Forbidden, InvalidArguments, Malformed) as error:
        return await _page(visit, problem=error.sentence, status=STATUS[error.code])
    return visit.go("/console/grants")


async def draft(visit: Visit) -> Response:
    """POST: a grant that no held call stands behind."""
    form = visit.form
    tool, _, rule = form.get("what", "").partition(" ")
    try:
        await visit.office.draft_grant(
            visit.who,
            agent=form.get("agent", "").strip(),
            user=form.get("user", "").strip(),
            issuer=form.get("issuer", ""),
            bounds=Bounds(
                _number(form, "count", 1_000_000),
                visit.office.clock.now_ms() + _number(form, "days", MOST_DAYS) * DAY_MS,
                form.get("when", ""),
                form.get("amount", ""),
                form.get("total", ""),
            ),
            tool=tool,
            rule=rule,
            reason=form.get("reason", ""),
            via="console",
        )
    except (Conflict, Forbidden, InvalidArguments, Malformed) as error:
        return await _page(visit, problem=error.sentence, status=STATUS[error.code])
    return visit.go("/console/grants")


def suggested(arguments: Any) -> str:
    """A condition that the held call meets and little else: the same words, numbers up to its own."""
    terms: list[str] = []
    for name, value in (arguments if isinstance(arguments, dict) else {}).items():  # pyright: ignore[reportUnknownVariableType]
        if not isinstance(name, str) or not name.isidentifier() or not name.isascii():
            continue
        if isinstance(value, bool):
            terms.append(f"args.{name} == {str(value).lower()}")
        elif isinstance(value, int | float):
            terms.append(f"args.{name} <= {value}")
        elif isinstance(value, str) and len(value) <= TEXT_CHARS and value.isprintable() and not set(value) & QUOTES:
            terms.append(f'args.{name} == "{value}"')
    return " && ".join(terms[:SUGGESTED])


def _number(form: dict[str, str], name: str, most: int) -> int:
    given = form.get(name, "")
    if not given.isascii() or not given.isdigit() or not 0 < int(given) <= most:
        raise Malformed(f"{name} is a whole number from 1 to {most}.", next_step="Nothing was proposed.")
    return int(given)


async def _page(visit: Visit, *, problem: str = "", status: int = 200) -> Response:
    ended = "ended" in bodies.query(visit.request, ("ended",)) if visit.request.method == "GET" else False
    found = await visit.office.grants(visit.who, ended=ended)
    rows = [(one, visit.office.granting.objection(visit.who, one)) for one in found]
    what = visit.office.grantable(visit.who)
    trusted = (one.issuer for one in visit.office.settings.auth.issuers)
    return await visit.page(
        "grants.html",
        status=status,
        rows=rows,
        ended=ended,
        problem=problem,
        what=what,
        issuers=dict.fromkeys((visit.who.issuer, *trusted, *VOUCHERS)),
        agents=[one.agent for one in await visit.office.store.agents(visit.who.tenant)] if what else [],
        written=visit.form,
    )
