"""How dispatched calls end: by their own outcome, or found under way after their process died.

An outcome may also come late: a call that was taken for lost (`outcome_unknown`) is settled by whoever knows better, as
the life cycle allows. What it reserved was settled when it was taken for lost.
"""

from __future__ import annotations

from broker.errors import Conflict
from broker.model.invocation import Invocation, Outcome
from broker.stores.sqlite import hold, queries, quota
from broker.stores.sqlite.transaction import Transaction, advance

LOST = "The broker ended while this call was under way; whether it was done is unknown."


def finish(tx: Transaction, outcome: Outcome) -> None:
    """See ports.Store.finish."""
    change = {
        "code": outcome.code,
        "message": outcome.message,
        "effect": outcome.effect,
        "backend_status": outcome.backend_status,
        "result_digest": outcome.result_digest,
        "result_bytes": outcome.result_bytes,
        "laps_us": outcome.laps_us,
    }
    facts = {"spent": outcome.spent} if outcome.spent else None
    call_id = outcome.call_id
    if not advance(
        tx,
        call_id,
        outcome.state,
        at_ms=outcome.at_ms,
        kind="outcome",
        change=change,
        facts=facts,
        all_laps=outcome.is_plain,
    ):
        _check_same(tx, outcome)
        return
    if outcome.spent or not outcome.is_plain:
        quota.settle(
            tx,
            call_id,
            ran=outcome.effect != "none",
            spent=outcome.spent,
            failed_at_ms=None if outcome.state == "succeeded" else outcome.at_ms,
        )
        _end_hold(tx, call_id)
    if outcome.result:
        _keep_result(tx, outcome)


def _end_hold(tx: Transaction, call_id: str) -> None:
    """If it was held: what was kept to run it goes, and who waits is told."""
    (held,) = tx.db.execute("select held from invocation where call_id = ?", (call_id,)).fetchone()
    if held:
        hold.forget_arguments(tx, call_id)
        tx.urgent = True


def _check_same(tx: Transaction, outcome: Outcome) -> None:
    """Nothing to do when this very outcome is recorded. Raises Conflict otherwise."""
    row = tx.db.execute(
        "select state, result_digest, code from invocation where call_id = ?", (outcome.call_id,)
    ).fetchone()
    if row is None:
        raise Conflict(f"Call {outcome.call_id} is not recorded.", call_id=outcome.call_id)
    if tuple(row) != (outcome.state, outcome.result_digest, outcome.code):
        raise Conflict(
            f"Call {outcome.call_id} is {row[0]}; it cannot end as {outcome.state}.",
            call_id=outcome.call_id,
            state=row[0],
        )


def _keep_result(tx: Transaction, outcome: Outcome) -> None:
    """For whoever asks later: about a hold, or with the same idempotency key, perhaps at this moment."""
    sealed = tx.seal.close(outcome.call_id, "result", outcome.result)
    tx.db.execute(
        "insert into payload (call_id, part, body) values (?, 'result', ?) on conflict do nothing",
        (outcome.call_id, sealed),
    )
    tx.urgent = True


def lose(tx: Transaction, argument: tuple[str, int]) -> Invocation | None:
    """A call whose process is dead becomes outcome_unknown: (call_id, now_ms). Its costs stand at their estimates."""
    call_id, now_ms = argument
    change = {"effect": "unknown", "code": "outcome_unknown", "stage": "record", "message": LOST}
    if not advance(tx, call_id, "outcome_unknown", at_ms=now_ms, kind="recovery", change=change):
        return None
    quota.settle(tx, call_id, ran=True)
    _end_hold(tx, call_id)
    return queries.one(tx.db, call_id)


def regret(call_id: str, at_ms: int) -> Outcome:
    """The outcome of a call whose caller had gone, or had been told the opposite, when its admission was committed."""
    return Outcome(
        call_id=call_id,
        at_ms=at_ms,
        state="failed",
        effect="none",
        code="record_unavailable",
        message="Nobody waited for the call any more when it was recorded; nothing was sent.",
    )
