"""Idempotency keys: which call a key of a client stands for, decided in the transaction that admits.

A key belongs to its principal; another principal's same key is another one. The first call with a key that is admitted
or held takes it. From then on the same call with it is that call, whatever became of it, and any other call with it is
a conflict. Only what ended without anything done and without a person's no (nothing was sent, the hold ran out or was
taken back) gives the key free for another try.

A key lives KEPT_MS from its call's beginning and, as the sealed result does, DAY_MS from its end.
"""

from __future__ import annotations

from broker.errors import Conflict
from broker.model.invocation import Intent, Invocation
from broker.stores.sqlite import queries
from broker.stores.sqlite.transaction import Transaction

DAY_MS = 86_400_000
KEPT_MS = 2 * DAY_MS


def known(tx: Transaction, intent: Intent) -> Invocation | None:
    """The call this intent's key stands for, with an entry that says who asked again; None when it is to run.

    Raises Conflict when that was another tool or had other arguments; nothing is written then.
    """
    row = tx.db.execute(
        "select call_id, tool, arguments_digest from idempotency where principal_key = ? and key = ?",
        (intent.principal_key, intent.key),
    ).fetchone()
    if row is None:
        return None
    call_id, tool, arguments_digest = row
    invocation = queries.one(tx.db, call_id)
    if invocation is None or _is_free(invocation):
        return None
    if (tool, arguments_digest) != (intent.tool, intent.arguments_digest):
        what = "other arguments" if tool == intent.tool else f"the tool {tool}"
        raise Conflict(
            f"Refused: this idempotency key was used before, with {what}. Nothing was done.",
            next_step="Take a new key for a new call.",
            first_call_id=call_id,
        )
    # An entry of no call: a call that is over stays over, so that the verifier need not remember it for ever.
    facts = {"first": call_id, "attempt": intent.call_id, "face": intent.face, "request_id": intent.request_id}
    tx.ledger.append("replayed", "", intent.at_ms, facts)
    return invocation


def _is_free(invocation: Invocation) -> bool:
    """Whether trying again is harmless: it is over, nothing was done, and nobody said no."""
    if invocation.state == "failed":
        return invocation.effect == "none"
    return invocation.state in ("expired", "withdrawn")


def take(tx: Transaction, intent: Intent, call_id: str) -> None:
    """The key stands for this call from now on. Nothing happens without a key."""
    if intent.key:
        tx.db.execute(
            "insert or replace into idempotency (principal_key, key, call_id, tool, arguments_digest, at_ms) "
            "values (?, ?, ?, ?, ?, ?)",
            (intent.principal_key, intent.key, call_id, intent.tool, intent.arguments_digest, intent.at_ms),
        )


def tidy(tx: Transaction, now_ms: int, most: int) -> int:
    """Forget keys that were kept long enough; the results they kept go with the others'."""
    return tx.db.execute(
        """delete from idempotency where (principal_key, key) in (
            select k.principal_key, k.key from idempotency k join invocation i on i.call_id = k.call_id
            where k.at_ms < ? and i.changed_at_ms < ? and i.state not in ('held', 'approved', 'dispatching')
            limit ?)""",
        (now_ms - KEPT_MS, now_ms - DAY_MS, most),
    ).rowcount
