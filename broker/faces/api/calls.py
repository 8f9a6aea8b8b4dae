"""Calls over REST: make one, hear later how it ended, take it back. The same pipeline as the agents' MCP server.

A call that a person must decide on is 202 with a Location; the same address answers 202 until it has ended, and then
200 with how: its result, or what ended it. What must not live here: what happens to a call (pipeline).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import jiter
from uuid_utils import uuid7

from broker.errors import BrokerError, Held, UnknownHold
from broker.faces.api.operation import Asked, Reply
from broker.model.answer import Answer
from broker.model.call import IDEMPOTENCY_META, TASK_META, Call
from broker.model.invocation import Invocation
from broker.pipeline import held_call, replay

FACE = "api"
AGAIN_S = 2  # how soon it is worth asking again
PATH = "/api/calls"


async def call_tool(asked: Asked) -> Reply:
    meta = {TASK_META: asked.body["task"]} if "task" in asked.body else {}
    if "Idempotency-Key" in asked.headers:
        meta[IDEMPOTENCY_META] = asked.headers["Idempotency-Key"]
    call = _call(asked, asked.body["tool"], asked.body.get("arguments", {}), meta)
    try:
        answer = await asked.office.perform(call)
    except Held as held:
        return _reply(await _recorded(asked, held.facts["hold_id"]), told=held)
    except BrokerError as refusal:
        refusal.facts.setdefault("call_id", call.id)
        raise
    return _reply(await _recorded(asked, (answer.meta or {}).get(replay.REPLAYED_META, call.id)), answer)


async def get_call(asked: Asked) -> Reply:
    return await _standing(asked, {"id": asked.path["id"]})


async def withdraw_call(asked: Asked) -> Reply:
    found = await _own(asked)
    if found.hold is None:
        raise UnknownHold("This call was not held, so there is nothing to take back.")
    return await _standing(asked, {"id": found.call_id, "withdraw": True})


async def _standing(asked: Asked, arguments: Mapping[str, Any]) -> Reply:
    """How one's own call stands, with its answer as long as one is kept."""
    found = await _own(asked)
    if found.hold is None:
        kept = await asked.office.store.result(found.call_id)
        return _reply(found, Answer.from_result(jiter.from_json(kept)) if kept else None)
    answer, told = None, None
    try:
        answer = await asked.office.perform(_call(asked, held_call.NAME, arguments))
    except BrokerError as error:
        if error.facts.get("hold_id") != found.call_id:  # it says nothing of the call
            raise
        told = error
    return _reply(await _recorded(asked, found.call_id), answer, told)


async def _own(asked: Asked) -> Invocation:
    """Raises UnknownHold, in the same words for what is somebody else's, whatever that one may see of it."""
    call_id = asked.path["id"]
    found = await asked.office.store.invocation(call_id)
    if found is None or found.principal_key != asked.who.key:
        raise UnknownHold(f"You have made no call {call_id[:64]!r}.", next_step="Use the id you were given.")
    return found


async def _recorded(asked: Asked, call_id: str) -> Invocation:
    found = await asked.office.store.invocation(call_id)
    assert found is not None, "what was answered is recorded"  # noqa: S101 – the pipeline's promise
    return found


def _call(asked: Asked, name: str, arguments: Mapping[str, Any], meta: Mapping[str, Any] | None = None) -> Call:
    return Call(
        id=str(uuid7()),
        name=name,
        arguments=dict(arguments),
        principal=asked.who,
        face=FACE,
        received_at_ms=asked.office.clock.now_ms(),
        trace_parent=asked.trace_parent,
        meta=meta or {},
        may_wait=False,  # whoever waits polls; a connection that waits for a person costs one
    )


def _reply(found: Invocation, answer: Answer | None = None, told: BrokerError | None = None) -> Reply:
    is_open = found.state in ("held", "approved", "dispatching")
    document = {
        "call_id": found.call_id,
        "tool": found.tool,
        "state": found.state,
        "effect": told.effect if told else found.effect,
        "code": told.code if told else found.code,
        "message": told.sentence if told else found.message,
        "hold": None if found.hold is None else asdict(found.hold),
        "result": None if answer is None else answer.result(),
    }
    where = f"{PATH}/{found.call_id}"
    return Reply(document, 202, {"Location": where, "Retry-After": str(AGAIN_S)}) if is_open else Reply(document)
