"""Admitting one intent: everything that must be durable before the first byte leaves, in one transaction.

The order is: an intent already refused is only written; one whose key is known is that call; a held one attaches to its
like, or must fit under the cap of open holds; then all charges or none; then the row, which says what is left. Only a
call id that exists, which no client can choose, is found out after something was written, and undoes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from orjson import Fragment

from broker.errors import Conflict
from broker.model.canonical import canonical
from broker.model.invocation import Admission, Intent, Invocation
from broker.model.quota import QuotaState, room
from broker.stores.sqlite import grant, hold, idempotency, payloads, quota
from broker.stores.sqlite.ledger import CALLED, CALLER
from broker.stores.sqlite.transaction import Transaction, Undo

_INSERTED = (
    "call_id", "at_ms", "changed_at_ms", "caller", "called", "agent", "user", "tenant", "credential_id", "tool", "rule",
    "writer", "state", "effect", "request_id", "trace_id", "arguments_digest", "held", "code", "stage", "message",
    "quotas", "laps_us",
)  # fmt: skip
_INSERT = f"""insert into invocation ({", ".join(f'"{name}"' for name in _INSERTED)})
    values ({", ".join("?" * len(_INSERTED))}) on conflict (call_id) do nothing"""  # noqa: S608 – constants
_OWN = ("request_id", "trace_id", "arguments_digest", "held", "code", "stage", "message")

_KEEP = "insert into payload (call_id, part, body) values (?, 'kept', ?)"

_DENIED = Admission("denied")
_GO = Admission("dispatching")
_WENT_WELL = ("", "", "")


def admit(tx: Transaction, intent: Intent) -> Admission:
    """See ports.Store.admit."""
    if intent.refusal is not None:
        _write(tx, intent, "denied", refusal=intent.refusal)
        return _DENIED
    first = ""
    if intent.key or intent.derived:
        known, first = _known(tx, intent)
        if known is not None:
            return Admission("replayed", invocation=known)
    if intent.terms is not None:
        return _hold(tx, intent, first)
    if not intent.charges:
        _write(tx, intent, "dispatching", first=first)
        return Admission("dispatching", sent_as=first) if first else _GO
    states, over = quota.charge(tx, intent.charges, intent.call_id, intent.at_ms, held=False)
    if over is not None:
        return _over(tx, intent, over)
    _write(tx, intent, "dispatching", states=states, first=first)
    return Admission("dispatching", states, None, None, first)


def _known(tx: Transaction, intent: Intent) -> tuple[Invocation | None, str]:
    """See idempotency.known. A conflict is recorded as a refusal before it is raised."""
    try:
        return idempotency.known(tx, intent)
    except Conflict as conflict:
        _write(tx, intent, "denied", refusal=(conflict.code, conflict.stage, conflict.sentence))
        raise


def _hold(tx: Transaction, intent: Intent, first: str) -> Admission:
    attached = hold.attach(tx, intent)
    if attached is not None:
        idempotency.take(tx, intent, attached.call_id)
        return Admission("attached", invocation=attached)
    if intent.grants and (granted := _granted(tx, intent, first)) is not None:
        return granted
    over = hold.over_cap(tx, intent)
    if over is not None:
        return _over(tx, intent, over)
    # A held call occupies nobody's time: it takes its place among the running ones when it runs.
    now = tuple(charge for charge in intent.charges if charge.kind != "concurrency")
    later = tuple(charge for charge in intent.charges if charge.kind == "concurrency")
    states, over = quota.charge(tx, now, intent.call_id, intent.at_ms, held=True)
    if over is not None:
        return _over(tx, intent, over)
    _write(tx, intent, "held", states=states, first=first, facts={"hold": hold.columns(intent, later)})
    return Admission("held", quotas=states, invocation=hold.open_(tx, intent, later))


def _granted(tx: Transaction, intent: Intent, first: str) -> Admission | None:
    """Let a call run that a rule holds and a standing grant covers; None when none does any more. Its use is counted,
    and the grant stands in the record as what decided."""
    tx.db.execute("savepoint granted")
    used = grant.use(tx, intent.grants, intent.at_ms)
    if not used:
        tx.db.execute("release granted")
        return None
    states, over = quota.charge(tx, intent.charges, intent.call_id, intent.at_ms, held=False)
    if over is not None:
        tx.db.execute("rollback to granted")
        tx.db.execute("release granted")
        return _over(tx, intent, over)
    tx.db.execute("release granted")
    runs = replace(intent, called=intent.called._replace(rule=f"grant/{used}"), terms=None)
    _write(tx, runs, "dispatching", states=states, facts={"grant": used, "held_by": intent.called.rule}, first=first)
    return Admission("dispatching", quotas=states, sent_as=first)


def _over(tx: Transaction, intent: Intent, over: QuotaState) -> Admission:
    whose = f" for {over.bucket}" if over.bucket else ""
    message = f"Quota {over.quota}{whose}: {room(over.left, over.limit, over.unit)}."
    _write(tx, intent, "denied", states=(over,), refusal=("over_quota", "admit", message))
    return Admission("denied", quotas=(over,), over=over)


def _write(
    tx: Transaction,
    intent: Intent,
    state: str,
    *,
    states: tuple[QuotaState, ...] = (),
    refusal: tuple[str, str, str] = _WENT_WELL,
    facts: Mapping[str, Any] | None = None,
    first: str = "",
) -> None:
    """The row, what is kept of the arguments, and the entry. Raises Undo when there is such a call."""
    caller, called = intent.caller, intent.called
    begun = (tx.ledger.chain if state == "dispatching" else "", state, "none")
    own = (
        intent.request_id, intent.trace_id, intent.arguments_digest, 0 if intent.terms is None else 1, *refusal,
    )  # fmt: skip
    quotas = canonical([_said(one) for one in states]).decode() if states else "[]"
    laps = canonical(intent.laps_us).decode()
    row = (  # in the order of _INSERTED
        intent.call_id,
        intent.at_ms,
        intent.at_ms,
        tx.context.callers.id(tx.rows, caller),
        tx.context.called.id(tx.rows, called),
        caller.agent,
        caller.user,
        caller.tenant,
        caller.credential_id,
        called.tool,
        called.rule,
        *begun,
        *own,
        quotas,
        laps,
    )
    tx.rows.begin_call(intent.call_id)
    if not tx.rows.put(_INSERT, row):
        raise Undo(Conflict(f"Call {intent.call_id} is already recorded.", call_id=intent.call_id))
    said: dict[str, Any] = {name: value for name, value in zip(_OWN, own, strict=True) if value}
    if states:
        said["quotas"] = Fragment(quotas)
    if intent.laps_us:
        said["laps_us"] = Fragment(laps)
    body: dict[str, Any] = {"set": said, **(facts or {})}
    if (intent.key or intent.derived) and state != "denied":
        idempotency.take(tx, intent, intent.call_id, first)
        body["key"] = intent.key or intent.derived
    if intent.kept is not None:
        body["kept"] = intent.kept_digest == intent.arguments_digest or intent.kept_digest
        tx.rows.put(_KEEP, (intent.call_id, intent.kept))
    if intent.sealed or intent.macs:
        body |= payloads.keep(tx, intent.call_id, intent.sealed, intent.macs)
    if state == "dispatching":
        tx.ledger.append_intent(intent.call_id, intent.at_ms, body, caller, called)
        return
    also = zip((*CALLER, *CALLED), (*caller, *called, *begun), strict=True)
    said.update((name, value) for name, value in also if value)
    tx.ledger.append(state, intent.call_id, intent.at_ms, body)


def _said(one: QuotaState) -> dict[str, Any]:
    """All its fields; `asdict` was a third of an admission."""
    return {
        "quota": one.quota,
        "bucket": one.bucket,
        "kind": one.kind,
        "limit": one.limit,
        "left": one.left,
        "unit": one.unit,
        "retry_after_ms": one.retry_after_ms,
        "resets_at_ms": one.resets_at_ms,
    }
