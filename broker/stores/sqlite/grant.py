"""Standing grants in the store: proposed, decided, used, revoked. Each function is a job of the writer, or a question.

A use is counted in the transaction that admits its call, so a grant is never used once too often, by any number of
processes, and not once after the transaction that revoked it.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from broker.errors import Conflict, UnknownHold
from broker.model.canonical import canonical
from broker.model.grant import GRANT_TRANSITIONS, Grant, GrantReview, GrantState, GrantUse
from broker.model.hold import Approval
from broker.stores.sqlite.transaction import Transaction

TABLE = """create table standing_grant (
        grant_id text primary key,
        state text not null,
        tenant text not null,
        agent text not null,
        issuer text not null,
        tool text not null,
        until_ms integer not null,
        used integer not null,
        spent integer not null,
        at_ms integer not null,
        changed_at_ms integer not null,
        says text not null,
        approvals text not null
    ) strict, without rowid"""
INDEX = "create index standing_grant_open on standing_grant (tool, agent) where state in ('proposed', 'active')"

_COLUMNS = ("grant_id", "state", "tenant", "agent", "issuer", "tool", "until_ms", "used", "spent", "at_ms",
            "changed_at_ms")  # fmt: skip
_SELECT = f"select {', '.join(_COLUMNS)}, says, approvals from standing_grant"  # noqa: S608 – constants of this file
_TUPLES = ("scopes", "groups", "persons")
_USE = """update standing_grant set used = used + 1, spent = spent + ?1, changed_at_ms = ?2
    where grant_id = ?3 and state = 'active' and until_ms > ?2 and used < json_extract(says, '$.count')
    and (json_extract(says, '$.amount') = '' or spent + ?1 <= json_extract(says, '$.total'))"""


def propose(tx: Transaction, grant: Grant) -> Grant:
    """Write a proposed grant. Raises Conflict when the id exists."""
    fields = asdict(grant)
    approvals = [asdict(one) for one in grant.approvals]
    says = {name: value for name, value in fields.items() if name not in (*_COLUMNS, "approvals")}
    row = [fields[name] for name in _COLUMNS]
    changed = tx.db.execute(
        f"insert or ignore into standing_grant ({', '.join(_COLUMNS)}, says, approvals)"  # noqa: S608 – as above
        f" values ({', '.join('?' * len(row))}, ?, ?)",
        (*row, canonical(says).decode(), canonical(approvals).decode()),
    )
    if changed.rowcount != 1:
        raise Conflict(f"There is a grant {grant.grant_id} already.")
    tx.ledger.append("grant", "", grant.at_ms, {"what": "proposed", "grant": {**fields, "approvals": approvals}})
    tx.urgent = True
    return grant


def decide(tx: Transaction, review: GrantReview) -> Grant:
    """See ports.Store.decide_grant."""
    grant = one(tx.db, review.grant_id)
    if grant is None:
        raise UnknownHold(f"There is no grant {review.grant_id[:64]!r}.")
    approval, at_ms = review.approval, review.approval.at_ms
    target: GrantState = "rejected" if review.decision == "reject" else "revoked"
    approvals = grant.approvals
    if review.decision == "approve":
        if any(set(approval.persons) & set(other.persons) for other in approvals):
            raise Conflict(f"You have approved the grant {grant.grant_id} already.", next_step="Another person has to.")
        approvals = (*approvals, approval)
        target = "active" if len(approvals) >= grant.quorum else "proposed"
    if target not in GRANT_TRANSITIONS[grant.state]:
        raise Conflict(f"The grant {grant.grant_id} is already {grant.state}.", state=grant.state)
    says: dict[str, Any] = json.loads(
        tx.db.execute("select says from standing_grant where grant_id = ?", (grant.grant_id,)).fetchone()[0]
    )
    if target in ("rejected", "revoked"):
        says |= {"ended_by": approval.reviewer, "ended_reason": approval.reason}
    packed = canonical([asdict(other) for other in approvals]).decode()
    tx.db.execute(
        "update standing_grant set state = ?, changed_at_ms = ?, says = ?, approvals = ? where grant_id = ?",
        (target, at_ms, canonical(says).decode(), packed, grant.grant_id),
    )
    facts = {"what": review.decision, "grant_id": grant.grant_id, "state": target, "approval": asdict(approval)}
    tx.ledger.append("grant", "", at_ms, facts)
    tx.urgent = True
    decided = one(tx.db, grant.grant_id)
    assert decided is not None, "grants are never deleted"  # noqa: S101
    return decided


def use(tx: Transaction, uses: Sequence[GrantUse], at_ms: int) -> str:
    """Use the first of these grants that still lets a call run; its id, or "" when none does."""
    for one_use in uses:
        if tx.db.execute(_USE, (one_use.amount, at_ms, one_use.grant_id)).rowcount == 1:
            return one_use.grant_id
    return ""


def one(db: sqlite3.Connection, grant_id: str) -> Grant | None:
    row = db.execute(f"{_SELECT} where grant_id = ?", (grant_id,)).fetchone()
    return None if row is None else _grant(row)


def some(db: sqlite3.Connection, tenant: str | None, *, ended: bool, limit: int) -> list[Grant]:
    """Newest first. tenant None: of all."""
    where = "1 = 1" if ended else "state in ('proposed', 'active')"
    sql = f"{_SELECT} where {where} and (?1 is null or tenant = ?1) order by grant_id desc limit ?2"
    return [_grant(row) for row in db.execute(sql, (tenant, limit))]


def covering(db: sqlite3.Connection, tool: str, agent: str) -> list[Grant]:
    """The grants in force for calls of this tool by this agent, oldest first."""
    sql = f"{_SELECT} where tool = ? and agent = ? and state in ('proposed', 'active') and state = 'active' order by 1"
    return [_grant(row) for row in db.execute(sql, (tool, agent))]


def _grant(row: Any) -> Grant:
    *values, says, approvals = row
    fields: dict[str, Any] = {**json.loads(says), **dict(zip(_COLUMNS, values, strict=True))}
    fields |= {name: tuple(fields[name]) for name in _TUPLES}
    return Grant(**fields, approvals=tuple(_approval(other) for other in json.loads(approvals)))


def _approval(fields: dict[str, Any]) -> Approval:
    fields["persons"] = tuple(fields["persons"])
    return Approval(**fields)
