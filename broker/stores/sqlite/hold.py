"""Held calls in the store: opening, attaching, deciding, claiming, ending, collecting.

Each function is a job of the writer and changes a state by one compare-and-set (transaction.advance), so that of
reviewers, the clock, a withdrawal and several runners exactly one wins. The arguments and the principal of a held call
lie sealed from its opening to its end, and are deleted with it; its result lies sealed until it was collected.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from broker.errors import Conflict, UnknownHold
from broker.model.canonical import canonical, digest
from broker.model.hold import Review
from broker.model.invocation import Intent, Invocation, State
from broker.model.principal import person
from broker.model.quota import Charge, QuotaState
from broker.ports import Claimed
from broker.stores.sqlite import queries, quota
from broker.stores.sqlite.seal import SealBroken
from broker.stores.sqlite.transaction import Transaction, advance

RETRY_MS = 60_000  # when it is worth asking again while too many holds are open

_TARGET: Mapping[str, State] = {"approve": "approved", "reject": "rejected", "withdraw": "withdrawn"}
_OPEN_HOLDS = """select count(*), min(h.expires_at_ms)
    from invocation i indexed by invocation_open join hold h on h.call_id = i.call_id
    where i.state in ('held', 'approved') and i.state in ('held', 'approved', 'dispatching')
    and i.agent = ? and i.tenant = ? and i.issuer = ?"""


# ------------------------------------------------------------------------------------------------------------ opening


def act(intent: Intent) -> str:
    """What makes two calls the same act: who asks, what exactly was promised, with which arguments."""
    return digest([intent.principal_key, intent.definition, intent.arguments_digest])


def attach(tx: Transaction, intent: Intent) -> Invocation | None:
    """The hold of the same act that is open, or ended and not yet collected; with an entry that says who joined."""
    row = tx.db.execute("select call_id from hold where act = ? and collected_at_ms = 0", (act(intent),)).fetchone()
    if row is None:
        return None
    facts = {"attempt": intent.call_id, "face": intent.face, "request_id": intent.request_id}
    tx.ledger.append("attached", row[0], intent.at_ms, facts)
    return queries.one(tx.db, row[0])


def over_cap(tx: Transaction, intent: Intent) -> QuotaState | None:
    """Whether the agent has as many holds open as it may: the quota `open_holds`."""
    count, soonest_ms = tx.db.execute(_OPEN_HOLDS, (intent.agent, intent.tenant, intent.issuer)).fetchone()
    if count < tx.open_per_agent:
        return None
    return QuotaState(
        quota="open_holds",
        bucket=f"agent={intent.agent}",
        kind="concurrency",
        limit=tx.open_per_agent,
        left=0,
        unit="holds",
        retry_after_ms=max(1, min(RETRY_MS, (soonest_ms or RETRY_MS) - intent.at_ms)),
    )


def columns(intent: Intent, charges: tuple[Charge, ...]) -> dict[str, Any]:
    """The hold's own row as the entry has it. charges: taken when the call runs."""
    assert intent.terms is not None, "only an intent with terms is held"  # noqa: S101 – admission's own branch
    owner = json.loads(intent.principal or b"{}").get("owner", "")
    return {
        "act": act(intent),
        "reason": intent.terms.reason,
        "expires_at_ms": intent.at_ms + intent.terms.expires_in_ms,
        "scopes": list(intent.terms.scopes),
        "groups": list(intent.terms.groups),
        "persons": sorted({person(name) for name in (intent.user, intent.agent, owner) if name}),
        "charges": [asdict(charge) for charge in charges],
    }


def open_(tx: Transaction, intent: Intent, charges: tuple[Charge, ...]) -> Invocation | None:
    """Write the hold's row and its sealed payloads. The invocation and its entry are written."""
    row = {name: value if isinstance(value, str | int) else canonical(value).decode() for name, value in
           columns(intent, charges).items()}  # fmt: skip
    tx.db.execute(
        """insert into hold (call_id, act, reason, expires_at_ms, scopes, "groups", persons, charges)
        values (:call_id, :act, :reason, :expires_at_ms, :scopes, :groups, :persons, :charges)""",
        {"call_id": intent.call_id, **row},
    )
    _keep_sealed(tx, intent.call_id, "arguments", intent.arguments)
    _keep_sealed(tx, intent.call_id, "principal", intent.principal)
    tx.urgent = True
    return queries.one(tx.db, intent.call_id)


def _keep_sealed(tx: Transaction, call_id: str, part: str, clear: bytes) -> None:
    tx.db.execute(
        "insert into payload (call_id, part, body) values (?, ?, ?)",
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
    decided = {
        "reviewer": review.reviewer,
        "review_reason": review.reason,
        "review_via": review.via,
        "reviewed_at_ms": review.at_ms,
    }
    facts = {"decision": review.decision, "hold": decided}
    if not advance(tx, review.call_id, target, at_ms=review.at_ms, kind="review", facts=facts):
        raise _decided(invocation)
    tx.db.execute(
        """update hold set reviewer = :reviewer, review_reason = :review_reason, review_via = :review_via,
        reviewed_at_ms = :reviewed_at_ms where call_id = :call_id""",
        {"call_id": review.call_id, **decided},
    )
    if target != "approved":
        _end_unrun(tx, review.call_id)
    tx.urgent = True
    return _still(queries.one(tx.db, review.call_id))


def _decided(invocation: Invocation | None) -> Conflict:
    """Somebody, or the clock, was first."""
    found = _still(invocation)
    assert found.hold is not None, "a call that was held has a hold"  # noqa: S101 – the schema's own promise
    by = f" by {found.hold.reviewer}" if found.hold.reviewer else ""
    return Conflict(
        f"The held call {found.call_id} is already {found.state}{by}.",
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


def forget_arguments(tx: Transaction, call_id: str) -> None:
    tx.db.execute("delete from payload where call_id = ? and part in ('arguments', 'principal')", (call_id,))


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
        where i.state in ('held', 'approved') and i.state in ('held', 'approved', 'dispatching')
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
    return Claimed(_still(queries.one(tx.db, call_id)), arguments, principal)


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
