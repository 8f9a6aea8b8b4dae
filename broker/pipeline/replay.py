"""Idempotency keys: how a call is named, and what a client is told when it sends the same call again.

The client gives a key in the request's `_meta`, or the tool derives one from the arguments; which call a key stands for
is the store's to decide, inside the transaction that admits. Here is what that call's state means for whoever asks
again: its answer, the wait for it, or how it ended. Nothing is dispatched from here.
"""

from __future__ import annotations

from dataclasses import replace

import anyio
import orjson

from broker.catalog.catalog import Entry
from broker.errors import AnswerWithheld, BackendError, BrokerError, InFlight, InvalidArguments, OutcomeUnknown
from broker.model.answer import Answer
from broker.model.call import IDEMPOTENCY_META, PREVIEW_FACE, Call
from broker.model.canonical import canonical, digest_of
from broker.model.invocation import Invocation
from broker.ports import Store

REPLAYED_META = "dev.broker/replayed"  # of a result: the id of the call whose answer it is
MOST_CHARACTERS = 255
FIRST_LOOK_S, LOOK_EVERY_S = 0.05, 0.5  # not at every commit: many may wait for one call


def key_of(call: Call) -> str:
    """The call's idempotency key, "" when it has none. Raises InvalidArguments."""
    key = call.meta.get(IDEMPOTENCY_META)
    if key is None:
        return ""
    if not isinstance(key, str) or not 0 < len(key) <= MOST_CHARACTERS:
        raise InvalidArguments(
            f"Refused: `_meta` key {IDEMPOTENCY_META} is not a text of 1 to {MOST_CHARACTERS} characters.",
            next_step="Correct it and call again; nothing was done.",
        )
    return _in_round(key, call)


def derived_of(call: Call, entry: Entry) -> tuple[str, int]:
    """The key that the tool makes of this call's arguments, and how long it stands; ("", 0) when it makes none."""
    derivation = entry.derivation
    if derivation is None or call.aside or call.face == PREVIEW_FACE:
        return "", 0
    return _in_round(derivation.key(entry.tool.name, call.arguments), call), derivation.within_ms


def _in_round(key: str, call: Call) -> str:
    """Each round of a call is a request of its own: only its repetition is the same one."""
    if call.round is None:
        return key
    return f"{key} {digest_of(canonical([call.round.responses, call.round.state]))}"


async def replay(known: Invocation, store: Store, *, wait_s: float) -> Answer:
    """The answer of a call that was never held, after waiting for it if it is under way.

    Raises InFlight when it is so for longer than wait_s; otherwise how it ended. On cancel: nothing happens to it.
    """
    deadline, pause_s = anyio.current_time() + wait_s, FIRST_LOOK_S
    while known.state == "dispatching":
        left_s = deadline - anyio.current_time()
        if left_s <= 0:
            raise InFlight(
                f"The call of {known.tool} with this idempotency key is still under way; it was not sent again.",
                next_step="Send the same call with the same key again in a moment.",
                call_id=known.call_id,
            )
        await anyio.sleep(min(pause_s, left_s))
        pause_s = min(2 * pause_s, LOOK_EVERY_S)
        known = await store.invocation(known.call_id) or known
    result = await store.result(known.call_id)
    if result is None:
        raise _ended(known)
    return of_call(Answer.from_result(orjson.loads(result), status=known.backend_status), known)


def of_call(answer: Answer, known: Invocation) -> Answer:
    """The answer, marked as the one of an earlier call."""
    return replace(answer, meta={**(answer.meta or {}), REPLAYED_META: known.call_id})


def _ended(known: Invocation) -> BrokerError:
    """How a call without an answer ended, as it was told the first time."""
    if known.state == "outcome_unknown":
        return OutcomeUnknown(
            known.message or f"{known.tool} was sent, then interrupted; whether it was done is unknown.",
            next_step="It is not sent again with this key. Check before you try again with another.",
            call_id=known.call_id,
            cause=known.code,
        )
    if known.state == "succeeded":
        return AnswerWithheld(
            f"{known.tool} was done with this idempotency key before; its answer is no longer kept.",
            next_step="Do not repeat it.",
            call_id=known.call_id,
        )
    error = BackendError(known.message or f"{known.tool} failed.", call_id=known.call_id, cause=known.code)
    error.effect = known.effect
    return error
