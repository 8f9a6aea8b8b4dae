"""Idempotency keys: which call a key stands for, decided in the transaction that admits.

A key is the client's, or derived by the tool from its arguments; a call may have both. It belongs to its principal;
another principal's same key is another one. The first call with a key that is admitted or held takes it. From then on
the same call with it is that call, whatever became of it, and any other call with it is a conflict. Only what ended
without anything done and without a person's no (nothing was sent, the hold ran out or was taken back) gives the key
free for another try, which goes to the backend under the id of the first.

A client's key lives KEPT_MS from its call's beginning and, as the sealed result does, DAY_MS from its end. A derived
one stands for its call as long as the tool says and no longer: after that the same call is a new act.
"""

from __future__ import annotations

from collections.abc import Iterator

from broker.errors import Conflict
from broker.model.invocation import Intent, Invocation
from broker.stores.sqlite import queries
from broker.stores.sqlite.transaction import Transaction

DAY_MS = 86_400_000
KEPT_MS = 2 * DAY_MS


def known(tx: Transaction, intent: Intent) -> tuple[Invocation | None, str]:
    """The call that one of this intent's keys stands for, with an entry that says who asked again; None when it is to
    run, and the id of the first attempt, "" when this is it.

    Raises Conflict when that was another tool or had other arguments; nothing is written then.
    """
    first = ""
    for key, _ in _keys(intent):
        row = tx.db.execute(
            "select call_id, tool, arguments_digest, until_ms, first from idempotency "
            "where principal_key = ? and key = ?",
            (intent.caller.principal_key, key),
        ).fetchone()
        if row is None or 0 < row[3] <= intent.at_ms:
            continue
        call_id, tool, arguments_digest = row[:3]
        invocation = queries.one(tx.db, call_id)
        if invocation is None or _is_free(invocation):
            first = first or row[4] or call_id
            continue
        if (tool, arguments_digest) != (intent.called.tool, intent.arguments_digest):
            raise _conflict(intent, tool, call_id)
        # An entry of no call: a call that is over stays over, so that the verifier need not remember it for ever.
        facts = {
            "first": call_id,
            "attempt": intent.call_id,
            "face": intent.caller.face,
            "request_id": intent.request_id,
        }
        tx.ledger.append("replayed", "", intent.at_ms, facts)
        return invocation, ""
    return None, first


def _keys(intent: Intent) -> Iterator[tuple[str, int]]:
    """Each key with the time until which it stands; 0: by its age."""
    if intent.key:
        yield intent.key, 0
    if intent.derived:
        yield intent.derived, intent.at_ms + intent.derived_ms


def _conflict(intent: Intent, tool: str, call_id: str) -> Conflict:
    what = "other arguments" if tool == intent.called.tool else f"the tool {tool}"
    return Conflict(
        f"Refused: this idempotency key was used before, with {what}. Nothing was done.",
        next_step="Take a new key for a new call; where the tool makes the key of its arguments, it was called for the "
        "same thing before, and what differs is not done.",
        first_call_id=call_id,
    )


def _is_free(invocation: Invocation) -> bool:
    """Whether trying again is harmless: it is over, nothing was done, and nobody said no."""
    if invocation.state == "failed":
        return invocation.effect == "none"
    return invocation.state in ("expired", "withdrawn")


def take(tx: Transaction, intent: Intent, call_id: str, first: str = "") -> None:
    """Its keys stand for this call from now on. Nothing happens without a key."""
    for key, until_ms in _keys(intent):
        tx.db.execute(
            "insert or replace into idempotency (principal_key, key, call_id, tool, arguments_digest, at_ms, until_ms, "
            "first) values (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                intent.caller.principal_key,
                key,
                call_id,
                intent.called.tool,
                intent.arguments_digest,
                intent.at_ms,
                until_ms,
                first,
            ),
        )


def first_of(tx: Transaction, call_id: str) -> str:
    """The id of the first attempt of this call, "" when it has no key or is the first."""
    row = tx.db.execute(
        "select first from idempotency where call_id = ? and first <> '' limit 1", (call_id,)
    ).fetchone()
    return row[0] if row else ""


def tidy(tx: Transaction, now_ms: int, most: int) -> int:
    """Forget keys that were kept long enough; the results they kept go with the others'."""
    return tx.db.execute(
        """delete from idempotency where (principal_key, key) in (
            select k.principal_key, k.key from idempotency k join invocation i on i.call_id = k.call_id
            where k.at_ms < ? and k.until_ms < ? and i.changed_at_ms < ?
            and i.state not in ('held', 'approved', 'dispatching')
            limit ?)""",
        (now_ms - KEPT_MS, now_ms, now_ms - DAY_MS, most),
    ).rowcount
