"""The life cycle holds in the store: from each state, exactly what model.invocation.TRANSITIONS allows can happen."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.errors import Conflict, UnknownHold
from broker.model.hold import Review
from broker.model.invocation import TRANSITIONS, Intent, State
from broker.ports import Store
from broker.verifier import verify
from tests.records import HOUR, NOW, held_intent, intent, open_store, outcome

pytestmark = pytest.mark.anyio

STATES: tuple[State, ...] = tuple(state for state in TRANSITIONS if state != "received")
BY_REVIEW = {"approved": "approve", "rejected": "reject", "withdrawn": "withdraw"}
BY_OUTCOME = ("succeeded", "failed", "outcome_unknown")


async def review(store: Store, call_id: str, decision: str) -> None:
    await store.review(Review(call_id, decision, "rita", "", NOW + 1, "cli"))  # type: ignore[arg-type]


async def attempt(store: Store, call: Intent, target: State) -> None:
    """Try to bring a call into a state with the verb that leads there."""
    if target in BY_REVIEW:
        await review(store, call.call_id, BY_REVIEW[target])
    elif target == "expired":
        await store.sweep(NOW + HOUR)
    elif target == "dispatching":
        await store.claim(call.call_id, NOW + 1)
    elif target in BY_OUTCOME:
        await store.finish(outcome(call.call_id, state=target, code="" if target == "succeeded" else "x"))
    else:
        refusal = ("forbidden", "authorise", "no") if target == "denied" else None
        same = held_intent if target == "held" else intent
        await store.admit(same(call_id=call.call_id, refusal=refusal, arguments={"another": 1}))


async def reach(store: Store, state: State, number: int) -> Intent:
    """A new call in this state. Each is another act, so that none attaches to another's hold."""
    arguments = {"number": number}
    if state == "denied":
        call = intent(arguments=arguments, refusal=("forbidden", "authorise", "no"))
        await store.admit(call)
        return call
    if state in ("dispatching", *BY_OUTCOME):
        call = intent(arguments=arguments)
        await store.admit(call)
    else:
        call = held_intent(arguments=arguments)
        await store.admit(call)
    if state not in ("dispatching", "held"):
        await attempt(store, call, state)
    return call


@pytest.mark.parametrize("source", STATES)
async def test_from_each_state_exactly_the_allowed_ones_can_be_reached(tmp_path: Path, source: State) -> None:
    store = await open_store(tmp_path)
    try:
        for number, target in enumerate(STATES):
            if target == source:
                continue
            call = await reach(store, source, number)
            before = await store.invocation(call.call_id)
            assert before is not None
            assert before.state == source
            refused = False
            try:
                await attempt(store, call, target)
            except (Conflict, UnknownHold):
                refused = True
            after = await store.invocation(call.call_id)
            assert after is not None
            allowed = target in TRANSITIONS[source]
            assert after.state == (target if allowed else source), f"{source} -> {target}"
            assert not (allowed and refused), f"{source} -> {target} happened and was refused"
    finally:
        await store.aclose()
    assert verify(tmp_path / "broker.db").fault is None


async def test_a_transition_that_was_refused_leaves_no_entry(tmp_path: Path) -> None:
    store = await open_store(tmp_path)
    try:
        call = await reach(store, "rejected", 0)
        before = verify(tmp_path / "broker.db").entries
        with pytest.raises(Conflict):
            await review(store, call.call_id, "approve")
        assert await store.claim(call.call_id, NOW + 1) is None
        assert verify(tmp_path / "broker.db").entries == before
    finally:
        await store.aclose()
