"""Held calls in the store: opening, attaching, deciding, claiming, ending, collecting.

Each function is a job of the writer and changes a state by one compare-and-set (transaction.advance), so that of
reviewers, the clock, a withdrawal and several runners exactly one wins. The arguments, the principal and the sketch of
a held call lie sealed from its opening to its end, and are deleted with it; its result lies sealed until it was
collected.

Whether a person may decide is the desk's to say; how many have, is counted here, where nobody can be in between.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from broker.errors import Conflict, OverQuota, UnknownHold
from broker.model.canonical import canonical, digest_of
from broker.model.hold import Approval, Edit, Hold, Preview, Review
from broker.model.invocation import Intent, Invocation, State
from broker.model.principal import person
from broker.model.quota import Charge, QuotaState
from broker.ports import Claimed
from broker.stores.sqlite import idempotency, payloads, queries, quota
from broker.stores.sqlite.seal import SealBroken
from broker.stores.sqlite.transaction import Transaction, advance

RETRY_MS = 60_000  # when it is worth asking again while too many holds are open
ALLOWED_MS = 3_600_000  # how long a call that nobody decided on, and that may run then, waits for a broker that runs it
LET_RUN = "nobody decided in time, and its rule lets such a call run then"

_TARGET: Mapping[str, State] = {"approve": "approved", "reject": "rejected", "withdraw": "withdrawn"}
_OPEN_HOLDS = """select count(*), min(h.expires_at_ms)
    from invocation i indexed by invocation_open join hold h on h.call_id = i.call_id
    where (i.state = 'held' or i.state = 'approved')
    and i.agent = ? and i.tenant = ? and (select issuer from caller where id = i.caller) = ?"""


# ------------------------------------------------------------------------------------------------------------ opening


def act(intent: Intent) -> str:
    """What makes two calls the same act: who asks, what exactly was promised, under which rules, with which arguments.
    What will be sent is not in it: the call's own id is, and that is another each time."""
    return replace(intent.bound, sketch="").digest


def attach(tx: Transaction, intent: Intent) -> Invocation | None:
    """The hold of the same act that is open, or ended and not yet collected; with an entry that says who joined."""
    known = like(tx.db, intent)
    if known is None:
        return None
    facts = {"attempt": intent.call_id, "face": intent.caller.face, "request_id": intent.request_id}
    tx.ledger.append("attached", known, intent.at_ms, facts)
    return queries.one(tx.db, known)


def like(db: sqlite3.Connection, intent: Intent) -> str | None:
    """The id of the hold of the same act that its caller has not been told the end of."""
    row = db.execute("select call_id from hold where act = ? and collected_at_ms = 0", (act(intent),)).fetchone()
    return row[0] if row else None


def over_cap(tx: Transaction, intent: Intent) -> QuotaState | None:
    """Whether the agent has as many holds open as it may: the quota `open_holds`."""
    whose = (intent.caller.agent, intent.caller.tenant, intent.caller.issuer)
    over = _over(
        intent, tx.db.execute(_OPEN_HOLDS, whose).fetchone(), tx.open_per_agent, f"agent={intent.caller.agent}"
    )
    of_rule = intent.terms.open_per_agent if intent.terms is not None else 0
    if over is None and of_rule:
        counted = tx.db.execute(f"{_OPEN_HOLDS} and i.rule = ?", (*whose, intent.called.rule)).fetchone()
        over = _over(intent, counted, of_rule, f"agent={intent.caller.agent},rule={intent.called.rule}")
    return over


def _over(intent: Intent, counted: tuple[int, int | None], limit: int, bucket: str) -> QuotaState | None:
    count, soonest_ms = counted
    if count < limit:
        return None
    return QuotaState(
        quota="open_holds",
        bucket=bucket,
        kind="concurrency",
        limit=limit,
        left=0,
        unit="holds",
        retry_after_ms=max(1, min(RETRY_MS, (soonest_ms or RETRY_MS) - intent.at_ms)),
    )


def columns(intent: Intent, charges: tuple[Charge, ...]) -> dict[str, Any]:
    """The hold's own row as the entry has it. charges: taken when the call runs."""
    terms = intent.terms
    assert terms is not None, "only an intent with terms is held"  # noqa: S101 – admission's own branch
    owner = json.loads(intent.principal or b"{}").get("owner", "")
    return {
        "act": act(intent),
        "reason": terms.reason,
        "expires_at_ms": intent.at_ms + terms.expires_in_ms,
        "scopes": list(terms.scopes),
        "groups": list(terms.groups),
        "persons": sorted({person(name) for name in (intent.caller.user, intent.caller.agent, owner) if name}),
        "charges": [asdict(charge) for charge in charges],
        "terms": {
            "quorum": terms.quorum,
            "reasons": list(terms.reasons),
            "escalates_at_ms": intent.at_ms + terms.escalates_in_ms if terms.escalates_in_ms else 0,
            "escalation_scopes": list(terms.escalation_scopes),
            "escalation_groups": list(terms.escalation_groups),
            "on_expiry": terms.on_expiry,
            "on_collect": terms.on_collect,
            "confirm": terms.confirm,
        },
        "bound": bound_of(intent.bound.digest, intent.policy, intent.sketch_digest, intent.preview),
    }


def bound_of(digest: str, policy: str, sketch: str, preview: Preview | None, edited_by: str = "") -> dict[str, Any]:
    """What stands in the column `bound`."""
    shown = asdict(preview) if preview else None
    return {"digest": digest, "policy": policy, "sketch": sketch, "preview": shown, "edited_by": edited_by}


def open_(tx: Transaction, intent: Intent, charges: tuple[Charge, ...]) -> Invocation | None:
    """Write the hold's row and its sealed payloads. The invocation and its entry are written."""
    row = {name: value if isinstance(value, str | int) else canonical(value).decode() for name, value in
           columns(intent, charges).items()}  # fmt: skip
    tx.db.execute(
        """insert into hold (call_id, act, reason, expires_at_ms, scopes, "groups", persons, charges, terms, bound)
        values (:call_id, :act, :reason, :expires_at_ms, :scopes, :groups, :persons, :charges, :terms, :bound)""",
        {"call_id": intent.call_id, **row},
    )
    _keep_sealed(tx, intent.call_id, "arguments", intent.arguments)
    _keep_sealed(tx, intent.call_id, "principal", intent.principal)
    _keep_sealed(tx, intent.call_id, "sketch", intent.sketch)
    if intent.previewed:
        _keep_sealed(tx, intent.call_id, "preview", intent.previewed)
    tx.urgent = True
    return queries.one(tx.db, intent.call_id)


def _keep_sealed(tx: Transaction, call_id: str, part: str, clear: bytes) -> None:
    tx.db.execute(
        "insert or replace into payload (call_id, part, body) values (?, ?, ?)",
        (call_id, part, tx.seal.close(call_id, part, clear)),
    )


# ----------------------------------------------------------------------------------------------------------- deciding


def review(tx: Transaction, review: Review) -> Invocation:
    """See ports.Store.review. A hold whose time is over is expired on the way, whoever asked first."""
    invocation = queries.one(tx.db, review.call_id)
    if invocation is None or invocation.hold is None:
        raise UnknownHold(f"There is no held call {review.call_id[:64]!r}.")
    if _expire_if_due(tx, invocation, review.at_ms):
        raise _decided(queries.one(tx.db, review.call_id))
    target = _TARGET[review.decision]
    change: dict[str, Any] = {}
    if target == "approved":
        approvals = _with(invocation.hold.approvals, review) if invocation.state == "held" else ()
        change["votes"] = [asdict(one) for one in approvals]
        target = _reached(invocation.hold, approvals)
    return _decide(tx, invocation, review, target, change)


def _with(approvals: tuple[Approval, ...], review: Review) -> tuple[Approval, ...]:
    """These and the review's own. Raises Conflict when this person is among them: a quorum counts persons."""
    persons = review.persons or (person(review.reviewer),)
    if any(set(persons) & set(one.persons) for one in approvals):
        raise Conflict(
            f"You have approved the held call {review.call_id} already.", next_step="Another person has to approve it."
        )
    one = Approval(review.reviewer, persons, review.reason, review.at_ms, review.via, review.issuer)
    return (*approvals, one)


def _reached(hold: Hold, approvals: tuple[Approval, ...]) -> State:
    return "approved" if len(approvals) >= hold.quorum else "held"


def _decide(
    tx: Transaction,
    invocation: Invocation,
    review: Review,
    target: State,
    change: Mapping[str, Any],
    *,
    decision: str = "",
    sets: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Invocation:
    """Bring the hold where the decision leads, or raise Conflict. change: columns of its row; sets: of the call's."""
    columns = dict(change)
    if target != "held":
        columns |= {
            "reviewer": review.reviewer,
            "review_reason": review.reason,
            "review_via": review.via,
            "reviewed_at_ms": review.at_ms,
        }
    said = {**(facts or {}), "decision": decision or review.decision, "by": review.reviewer, "hold": columns}
    if not advance(tx, review.call_id, target, at_ms=review.at_ms, kind="review", change=sets, facts=said):
        raise _decided(invocation)
    _change(tx, review.call_id, columns)
    if target in ("rejected", "withdrawn"):
        _end_unrun(tx, review.call_id)
    tx.urgent = True
    return _still(queries.one(tx.db, review.call_id))


_CHANGE = """update hold set reviewer = coalesce(:reviewer, reviewer),
    review_reason = coalesce(:review_reason, review_reason), review_via = coalesce(:review_via, review_via),
    reviewed_at_ms = coalesce(:reviewed_at_ms, reviewed_at_ms), expires_at_ms = coalesce(:expires_at_ms, expires_at_ms),
    charges = coalesce(:charges, charges), bound = coalesce(:bound, bound), votes = coalesce(:votes, votes)
    where call_id = :call_id"""
_CHANGEABLE = (
    "reviewer",
    "review_reason",
    "review_via",
    "reviewed_at_ms",
    "expires_at_ms",
    "charges",
    "bound",
    "votes",
)


def _change(tx: Transaction, call_id: str, columns: Mapping[str, Any]) -> None:
    values = {
        name: value if value is None or isinstance(value, str | int) else canonical(value).decode()
        for name, value in ((name, columns.get(name)) for name in _CHANGEABLE)
    }
    tx.db.execute(_CHANGE, {"call_id": call_id, **values})


def edit(tx: Transaction, edit: Edit) -> Invocation:
    """See ports.Store.edit. What the call reserved is given back and what it takes now is reserved, or nothing changes.

    A rate is not taken again: it limits asking, and the caller has asked once.
    """
    review = edit.review
    invocation = queries.one(tx.db, review.call_id)
    if invocation is None or invocation.hold is None:
        raise UnknownHold(f"There is no held call {review.call_id[:64]!r}.")
    if _expire_if_due(tx, invocation, review.at_ms) or invocation.state != "held":
        raise _decided(queries.one(tx.db, review.call_id))
    now = tuple(charge for charge in edit.charges if charge.kind in ("count", "cost"))
    later = [asdict(charge) for charge in edit.charges if charge.kind == "concurrency"]
    tx.db.execute("savepoint edit")
    quota.settle(tx, review.call_id, ran=False)
    _, over = quota.charge(tx, now, review.call_id, review.at_ms, held=True)
    if over is not None:
        tx.db.execute("rollback to edit")
        tx.db.execute("release edit")
        raise OverQuota(
            f"Refused: quota {over.quota} has {over.left} of {over.limit} {over.unit} left, too little for the changed "
            "call.",
            retry_after_ms=over.retry_after_ms,
            next_step="Change the arguments further, or approve the call as it is.",
            quota=over.quota,
            bucket=over.bucket,
        )
    tx.db.execute("release edit")
    approvals = _with((), review)
    bound = bound_of(edit.bound, edit.policy, edit.sketch_digest, None, review.reviewer)
    change = {"charges": later, "bound": bound, "votes": [asdict(one) for one in approvals]}
    _keep_sealed(tx, review.call_id, "arguments", edit.arguments)
    _keep_sealed(tx, review.call_id, "sketch", edit.sketch)
    _keep_sealed(tx, review.call_id, "changes", edit.changes)
    tx.db.execute("delete from payload where call_id = ? and part = 'preview'", (review.call_id,))  # of other arguments
    return _decide(
        tx,
        invocation,
        review,
        _reached(invocation.hold, approvals),
        change,
        decision="edit",
        sets={"arguments_digest": edit.arguments_digest},
        facts={
            **_keep_both(tx, review.call_id, edit.kept),
            **payloads.keep(tx, review.call_id, edit.sealed, edit.macs),
        },
    )


def _keep_both(tx: Transaction, call_id: str, kept: bytes | None) -> dict[str, Any]:
    """What the record keeps of the changed arguments, and of those first asked for beside them."""
    if kept is None:
        return {}
    before = tx.db.execute("select body from payload where call_id = ? and part = 'kept'", (call_id,)).fetchone()
    if before is not None:
        tx.db.execute("insert or ignore into payload values (?, 'kept_before', ?)", (call_id, before[0]))
    tx.db.execute("insert or replace into payload values (?, 'kept', ?)", (call_id, kept))
    return {"kept": digest_of(kept)}


def _decided(invocation: Invocation | None) -> Conflict:
    """Somebody, or the clock, was first."""
    found = _still(invocation)
    assert found.hold is not None, "a call that was held has a hold"  # noqa: S101 – the schema's own promise
    by = f", decided by {found.hold.reviewer}" if found.hold.reviewer else ""
    return Conflict(
        f"The held call {found.call_id} waits no longer: {found.state}{by}.",
        state=found.state,
        reviewer=found.hold.reviewer,
        reviewed_at_ms=found.hold.reviewed_at_ms,
    )


def _still(invocation: Invocation | None) -> Invocation:
    assert invocation is not None, "records are never deleted while they are worked on"  # noqa: S101
    return invocation


def _end_unrun(tx: Transaction, call_id: str) -> None:
    """The hold ended and nothing was sent: what it reserved goes back, its sealed arguments go."""
    quota.settle(tx, call_id, ran=False)
    forget_arguments(tx, call_id)
    tx.db.execute("delete from payload where call_id = ? and part = 'changes'", (call_id,))


def forget_arguments(tx: Transaction, call_id: str) -> None:
    tx.db.execute(
        "delete from payload where call_id = ? and part in ('arguments', 'principal', 'sketch', 'preview')", (call_id,)
    )


# --------------------------------------------------------------------------------------------------------- expiration


def expire(tx: Transaction, argument: tuple[str, int]) -> bool:
    """Expire this hold if its time is over: (call_id, now_ms)."""
    call_id, now_ms = argument
    invocation = queries.one(tx.db, call_id)
    return invocation is not None and _expire_if_due(tx, invocation, now_ms)


def expire_due(tx: Transaction, argument: tuple[int, int]) -> list[str]:
    """Expire what is due: (now_ms, at most so many). The ids; as many as asked for means there may be more."""
    now_ms, most = argument
    rows = tx.db.execute(
        """select i.call_id from invocation i indexed by invocation_open join hold h on h.call_id = i.call_id
        where (i.state = 'held' or i.state = 'approved')
        and h.expires_at_ms <= ? limit ?""",
        (now_ms, most),
    ).fetchall()
    for (call_id,) in rows:
        _expire(tx, call_id, now_ms)
    return [call_id for (call_id,) in rows]


def _expire_if_due(tx: Transaction, invocation: Invocation, now_ms: int) -> bool:
    due = invocation.hold is not None and invocation.hold.expires_at_ms <= now_ms
    return due and invocation.state in ("held", "approved") and _expire(tx, invocation.call_id, now_ms)


def _expire(tx: Transaction, call_id: str, now_ms: int) -> bool:
    """Reject it, or let it run where its rule says so; what nobody ran within ALLOWED_MS is rejected."""
    invocation = queries.one(tx.db, call_id)
    hold = invocation.hold if invocation is not None else None
    if invocation is not None and hold is not None and hold.on_expiry == "allow" and invocation.state == "held":
        columns = {
            "reviewer": "broker",
            "review_reason": LET_RUN,
            "reviewed_at_ms": now_ms,
            "expires_at_ms": now_ms + ALLOWED_MS,
        }
        if not advance(tx, call_id, "approved", at_ms=now_ms, kind="expiry", facts={"hold": columns}):
            return False
        _change(tx, call_id, columns)
        tx.urgent = True
        return True
    if not advance(tx, call_id, "expired", at_ms=now_ms, kind="expiry"):
        return False
    _end_unrun(tx, call_id)
    tx.urgent = True
    return True


# ------------------------------------------------------------------------------------------------ running, collecting


def claim(tx: Transaction, argument: tuple[str, int]) -> Claimed | None:
    """See ports.Store.claim: (call_id, now_ms). Also None while a concurrency quota has no room; asking again is free.

    A hold whose sealed arguments do not open any more can never run: it is withdrawn, with the reason.
    """
    call_id, now_ms = argument
    invocation = queries.one(tx.db, call_id)
    if invocation is None or invocation.state != "approved" or _expire_if_due(tx, invocation, now_ms):
        return None
    try:
        arguments, principal = (unsealed(tx, call_id, part) for part in ("arguments", "principal"))
    except SealBroken as error:
        _withdraw_broken(tx, call_id, now_ms, str(error))
        return None
    (packed,) = tx.db.execute("select charges from hold where call_id = ?", (call_id,)).fetchone()
    charges = tuple(Charge(**fields) for fields in json.loads(packed))
    if charges and quota.charge(tx, charges, call_id, now_ms, held=True)[1] is not None:
        return None
    quota.spend_counts(tx, call_id)
    advance(tx, call_id, "dispatching", at_ms=now_ms, kind="claim", change={"writer": tx.ledger.chain})
    tx.urgent = True
    return Claimed(_still(queries.one(tx.db, call_id)), arguments, principal, idempotency.first_of(tx, call_id))


def unsealed(tx: Transaction, call_id: str, part: str) -> bytes:
    """Raises SealBroken, also when the payload is gone."""
    row = tx.db.execute("select body from payload where call_id = ? and part = ?", (call_id, part)).fetchone()
    if row is None:
        raise SealBroken(f"The sealed {part} of {call_id} are gone.")
    return tx.seal.open(call_id, part, row[0])


def _withdraw_broken(tx: Transaction, call_id: str, now_ms: int, why: str) -> None:
    decided = {"reviewer": "broker", "review_reason": why}
    advance(tx, call_id, "withdrawn", at_ms=now_ms, kind="withdrawal", facts={"hold": decided})
    tx.db.execute(
        "update hold set reviewer = :reviewer, review_reason = :review_reason where call_id = :call_id",
        {"call_id": call_id, **decided},
    )
    _end_unrun(tx, call_id)
    tx.urgent = True


def collected(tx: Transaction, argument: tuple[str, int]) -> None:
    """The caller was told how its hold ended: (call_id, now_ms). Only the first time counts."""
    call_id, now_ms = argument
    changed = tx.db.execute(
        "update hold set collected_at_ms = ? where call_id = ? and collected_at_ms = 0", (now_ms, call_id)
    )
    if changed.rowcount == 1:
        tx.ledger.append("collected", call_id, now_ms, {"hold": {"collected_at_ms": now_ms}})
