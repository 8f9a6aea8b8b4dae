"""What every store promises (ports.Store), over the table STORES. A new engine has to pass exactly this."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from broker.errors import Conflict, RecordUnavailable, UnknownHold
from broker.model.hold import Review
from broker.model.invocation import InvocationQuery
from broker.ports import Store
from broker.stores import STORES
from tests.records import (
    HOUR,
    MINUTE,
    NOW,
    HandClock,
    concurrency,
    cost,
    count,
    held_intent,
    intent,
    open_store,
    outcome,
    rate,
    said_by,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture(params=sorted(STORES))
async def store(request: pytest.FixtureRequest, tmp_path: Path, clock: HandClock) -> AsyncIterator[Store]:
    store = await open_store(tmp_path, clock, kind=request.param, open_per_agent=3)
    yield store
    await store.aclose()


def decide(call_id: str, decision: str = "approve", *, at_ms: int = NOW + 1, reviewer: str = "rita@test") -> Review:
    return Review(call_id, decision, reviewer, "looks right", at_ms, "cli")  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------- admit and finish


async def test_an_admitted_call_is_recorded_as_dispatching_and_then_as_it_ended(store: Store) -> None:
    call = intent(arguments={"order": "7"})
    admission = await store.admit(call)
    assert admission.state == "dispatching"
    recorded = await store.invocation(call.call_id)
    assert recorded is not None
    assert (recorded.state, recorded.effect, recorded.at_ms) == ("dispatching", "none", NOW)
    for name in ("agent", "user", "tenant", "tool", "tool_version", "rule", "policy_version", "backend", "definition"):
        assert getattr(recorded, name) == said_by(call)[name]
    assert (recorded.request_id, recorded.trace_id, recorded.arguments_digest) == (
        call.request_id,
        call.trace_id,
        call.arguments_digest,
    )
    assert recorded.kept == {"order": "7"}
    assert recorded.writer

    await store.finish(outcome(call.call_id))
    ended = await store.invocation(call.call_id)
    assert ended is not None
    assert (ended.state, ended.effect, ended.backend_status) == ("succeeded", "done", "HTTP 200")
    assert (ended.result_digest, ended.result_bytes, ended.changed_at_ms) == ("sha256:result", 2, NOW + 5)
    assert ended.laps_us == {"resolve": 3, "dispatch": 900}
    assert ended.duration_ms == pytest.approx(0.903)


async def test_who_follows_is_told_all_that_an_entry_says(store: Store) -> None:
    """Also what it says by naming another."""
    calls = [intent(request_id=str(number), agent=agent) for number, agent in enumerate(("bot", "cat", "bot", "cat"))]
    for call in calls:
        await store.admit(call)
    told = [event.body["set"] for event in (await store.entries_after(0, ("intent",), 10)).events]
    for call, said in zip(calls, told, strict=True):
        for name in ("agent", "user", "principal_key", "credential_id", "request_id", "tool", "rule", "policy_version"):
            assert said[name] == said_by(call)[name]
        assert (said["state"], said["effect"]) == ("dispatching", "none")


async def test_a_refusal_is_recorded_and_charges_nothing(store: Store) -> None:
    refused = intent(refusal=("forbidden", "authorise", "Refused: no."), charges=(count(5),), kept=None)
    assert (await store.admit(refused)).state == "denied"
    recorded = await store.invocation(refused.call_id)
    assert recorded is not None
    assert (recorded.state, recorded.code, recorded.stage, recorded.message, recorded.effect, recorded.kept) == (
        "denied",
        "forbidden",
        "authorise",
        "Refused: no.",
        "none",
        None,
    )
    assert await store.quotas(NOW) == []


async def test_a_call_id_is_recorded_once(store: Store) -> None:
    call = intent(charges=(count(5),))
    await store.admit(call)
    for again in (call, replace(call, charges=()), replace(call, refusal=("forbidden", "authorise", "no"))):
        with pytest.raises(Conflict):
            await store.admit(again)
    (state,) = await store.quotas(NOW)
    assert state.left == 4
    assert len(await store.invocations(InvocationQuery())) == 1


async def test_the_same_outcome_twice_is_one_outcome_and_another_is_a_conflict(store: Store) -> None:
    call = intent()
    await store.admit(call)
    await store.finish(outcome(call.call_id))
    await store.finish(outcome(call.call_id))
    with pytest.raises(Conflict):
        await store.finish(outcome(call.call_id, state="failed", code="backend_rejected"))
    with pytest.raises(Conflict):
        await store.finish(outcome("never-admitted"))
    recorded = await store.invocation(call.call_id)
    assert recorded is not None
    assert recorded.state == "succeeded"


async def test_a_plain_outcome_settles_nothing_and_has_all_laps(store: Store) -> None:
    call = intent(charges=(count(5),))
    await store.admit(call)
    laps = {"resolve": 3, "validate": 4, "dispatch": 900}
    await store.finish(outcome(call.call_id, is_plain=True, laps_us=laps))
    recorded = await store.invocation(call.call_id)
    assert recorded is not None
    assert (recorded.state, recorded.laps_us) == ("succeeded", laps)
    (state,) = await store.quotas(NOW)
    assert state.left == 4


async def test_many_calls_at_once_are_all_recorded(store: Store) -> None:
    calls = [intent() for _ in range(200)]

    async def one(index: int) -> None:
        await store.admit(calls[index])
        await store.finish(outcome(calls[index].call_id))

    async with anyio.create_task_group() as tasks:
        for index in range(len(calls)):
            tasks.start_soon(one, index)
    recorded = await store.invocations(InvocationQuery(states=("succeeded",), limit=1000))
    assert {one.call_id for one in recorded} == {call.call_id for call in calls}


# ----------------------------------------------------------------------------------------------------------- quotas


async def test_a_count_admits_its_limit_and_then_says_when_to_come_back(store: Store) -> None:
    lefts = [(await store.admit(intent(charges=(count(2),)))).quotas[0].left for _ in range(2)]
    assert lefts == [1, 0]
    call = intent(charges=(count(2),))
    refused = await store.admit(call)
    assert refused.state == "denied"
    assert refused.over is not None
    assert (refused.over.quota, refused.over.left, refused.over.retry_after_ms) == ("daily", 0, HOUR)
    recorded = await store.invocation(call.call_id)
    assert recorded is not None
    assert (recorded.state, recorded.code, recorded.quotas[0]["quota"]) == ("denied", "over_quota", "daily")
    later = count(2, starts_at_ms=NOW + HOUR, resets_at_ms=NOW + 3 * HOUR)
    assert (await store.admit(intent(at_ms=NOW + HOUR, charges=(later,)))).state == "dispatching"


async def test_a_count_is_not_given_back_when_the_call_fails(store: Store) -> None:
    call = intent(charges=(count(1),))
    await store.admit(call)
    await store.finish(outcome(call.call_id, state="failed", code="backend_rejected"))
    assert (await store.admit(intent(charges=(count(1),)))).state == "denied"


async def test_a_rate_slides_and_says_exactly_when_there_is_room(store: Store) -> None:
    async def ask(after_ms: int, amount: int = 1) -> tuple[str, int]:
        admission = await store.admit(intent(at_ms=NOW + after_ms, charges=(rate(3, amount=amount),)))
        state = admission.over or admission.quotas[0]
        return admission.state, state.retry_after_ms or state.left

    assert await ask(0) == ("dispatching", 2)
    assert await ask(20_000, amount=2) == ("dispatching", 0)
    assert await ask(30_000) == ("denied", MINUTE - 30_000)
    assert await ask(MINUTE - 1) == ("denied", 1)
    assert await ask(MINUTE) == ("dispatching", 0)
    assert await ask(MINUTE + 1, amount=2) == ("denied", 19_999)
    assert await ask(MINUTE + 20_000, amount=2) == ("dispatching", 0)


async def test_concurrency_is_free_again_when_the_call_ends(store: Store) -> None:
    first, second = intent(charges=(concurrency(1),)), intent(charges=(concurrency(1),))
    assert (await store.admit(first)).state == "dispatching"
    refused = await store.admit(second)
    assert refused.over is not None
    assert refused.over.retry_after_ms > 0
    await store.finish(outcome(first.call_id, state="failed", effect="none", code="backend_unavailable"))
    assert (await store.admit(intent(charges=(concurrency(1),)))).state == "dispatching"


@pytest.mark.parametrize(
    ("ended", "left"),
    [
        ({"spent": {"EUR": 25}}, 75),
        ({"spent": {"tokens": 25}}, 60),
        ({}, 60),
        ({"spent": {"EUR": 130}}, 0),
        ({"state": "failed", "effect": "none", "code": "backend_unavailable"}, 100),
        ({"state": "outcome_unknown", "effect": "unknown", "code": "backend_timed_out"}, 60),
    ],
)
async def test_a_cost_is_reserved_by_estimate_and_settled_by_what_was_spent(
    store: Store, ended: dict[str, Any], left: int
) -> None:
    call = intent(charges=(cost(100, 40),))
    assert (await store.admit(call)).quotas[0].left == 60
    await store.finish(outcome(call.call_id, **ended))
    found = await store.quotas(NOW)
    assert (found[0].left if found else 100) == left


async def test_all_charges_are_taken_or_none(store: Store) -> None:
    short = intent(charges=(rate(10), count(10, amount=4), concurrency(5), cost(30, 31)))
    refused = await store.admit(short)
    assert refused.over is not None
    assert (refused.over.quota, refused.over.retry_after_ms) == ("money", 0)
    assert await store.quotas(NOW) == []
    fits = await store.admit(replace(short, call_id="fits", charges=(*short.charges[:3], cost(31, 31))))
    assert [state.left for state in fits.quotas] == [9, 6, 4, 0]
    assert len(await store.quotas(NOW)) == 4


@pytest.mark.parametrize("charge", [count(3, amount=4), rate(3, amount=4), cost(3, 4), concurrency(3, amount=4)])
async def test_what_is_above_the_whole_limit_will_not_fit_later_either(store: Store, charge: object) -> None:
    refused = await store.admit(intent(charges=(charge,)))
    assert refused.over is not None
    assert (refused.over.retry_after_ms, refused.over.left) == (0, 3)


async def test_a_bucket_is_somebodys_own(store: Store) -> None:
    assert (await store.admit(intent(charges=(count(1),)))).state == "dispatching"
    assert (await store.admit(intent(charges=(count(1, bucket="agent=other"),)))).state == "dispatching"
    assert (await store.admit(intent(charges=(count(1),)))).state == "denied"


# ------------------------------------------------------------------------------------------------------------ holds


async def test_a_held_call_is_approved_claimed_once_run_and_collected(store: Store) -> None:
    call = held_intent(arguments={"amount": 900}, owner="Olga")
    admission = await store.admit(call)
    assert admission.state == "held"
    assert admission.invocation is not None
    assert admission.invocation.hold is not None
    assert admission.invocation.hold.expires_at_ms == NOW + HOUR
    assert set(admission.invocation.hold.persons) == {"ann", "bot", "olga"}
    assert await store.held_arguments(call.call_id) == call.arguments
    assert await store.claim(call.call_id, NOW + 1) is None

    approved = await store.review(decide(call.call_id))
    assert approved.hold is not None
    assert (approved.state, approved.hold.reviewer, approved.hold.review_reason) == (
        "approved",
        "rita@test",
        "looks right",
    )
    claimed = await store.claim(call.call_id, NOW + 2)
    assert claimed is not None
    assert (claimed.arguments, claimed.principal) == (call.arguments, call.principal)
    assert claimed.invocation.state == "dispatching"
    assert await store.claim(call.call_id, NOW + 3) is None

    await store.finish(outcome(call.call_id, result=b'{"content":[]}'))
    assert await store.held_arguments(call.call_id) is None
    assert await store.collect(call.call_id, "somebody else", NOW + 9) is None
    collected = await store.collect(call.call_id, call.caller.principal_key, NOW + 9)
    assert collected is not None
    assert (collected.result, collected.invocation.state) == (b'{"content":[]}', "succeeded")
    assert collected.invocation.hold is not None
    assert collected.invocation.hold.collected_at_ms == NOW + 9
    again = await store.collect(call.call_id, call.caller.principal_key, NOW + 10)
    assert again is not None
    assert again.invocation.hold is not None
    assert (again.result, again.invocation.hold.collected_at_ms) == (b'{"content":[]}', NOW + 9)


@pytest.mark.parametrize(("decision", "state"), [("reject", "rejected"), ("withdraw", "withdrawn")])
async def test_a_hold_that_ends_without_running_gives_back_what_it_reserved(
    store: Store, decision: str, state: str
) -> None:
    call = held_intent(charges=(count(5), cost(100, 40), concurrency(1)))
    await store.admit(call)
    assert {found.quota: found.left for found in await store.quotas(NOW)} == {"daily": 4, "money": 60}
    decided = await store.review(decide(call.call_id, decision))
    assert decided.state == state
    assert await store.quotas(NOW) == []
    assert await store.held_arguments(call.call_id) is None
    with pytest.raises(Conflict) as first:
        await store.review(decide(call.call_id, reviewer="ria@test"))
    assert first.value.facts == {"state": state, "reviewer": "rita@test", "reviewed_at_ms": NOW + 1}


async def test_the_same_call_attaches_to_its_hold_until_it_is_collected(store: Store) -> None:
    call = held_intent(arguments={"amount": 900}, charges=(count(5),))
    await store.admit(call)

    async def ask(amount: float = 900, definition: str = call.called.definition) -> str:
        attempt = await store.admit(
            held_intent(arguments={"amount": amount}, definition=definition, charges=(count(5),))
        )
        if attempt.state == "attached":
            assert attempt.invocation is not None
            assert attempt.invocation.call_id == call.call_id
        return attempt.state

    assert await ask() == "attached"
    assert await ask(amount=900.0) == "held"
    assert await ask(definition="sha256:another") == "held"
    assert (await store.quotas(NOW))[0].left == 2
    await store.review(decide(call.call_id))
    assert await ask() == "attached"
    await store.claim(call.call_id, NOW + 2)
    assert await ask() == "attached"
    await store.finish(outcome(call.call_id, result=b"{}"))
    assert await ask() == "attached"
    await store.collect(call.call_id, call.caller.principal_key, NOW + 9)
    assert await ask() == "held"


async def test_another_principal_does_not_attach(store: Store) -> None:
    await store.admit(held_intent(arguments={"amount": 900}))
    assert (await store.admit(held_intent(arguments={"amount": 900}, user="bob"))).state == "held"


async def test_an_agent_may_have_so_many_holds_open(store: Store) -> None:
    opened = [held_intent(arguments={"n": n}) for n in range(3)]
    for call in opened:
        assert (await store.admit(call)).state == "held"
    refused = await store.admit(held_intent(arguments={"n": 3}))
    assert refused.state == "denied"
    assert refused.over is not None
    assert (refused.over.quota, refused.over.limit, refused.over.left) == ("open_holds", 3, 0)
    assert refused.over.retry_after_ms > 0
    assert (await store.admit(held_intent(arguments={"n": 3}, agent="other"))).state == "held"
    await store.review(decide(opened[0].call_id, "reject"))
    assert (await store.admit(held_intent(arguments={"n": 3}))).state == "held"


async def test_a_decision_after_the_hold_expired_is_refused_and_the_hold_has_expired(store: Store) -> None:
    call = held_intent(charges=(count(5),))
    await store.admit(call)
    with pytest.raises(Conflict) as late:
        await store.review(decide(call.call_id, at_ms=NOW + HOUR))
    assert late.value.facts["state"] == "expired"
    recorded = await store.invocation(call.call_id)
    assert recorded is not None
    assert recorded.state == "expired"
    assert await store.quotas(NOW) == []


async def test_what_was_approved_is_not_run_after_it_expired(store: Store) -> None:
    call = held_intent()
    await store.admit(call)
    await store.review(decide(call.call_id))
    assert await store.claim(call.call_id, NOW + HOUR) is None
    recorded = await store.invocation(call.call_id)
    assert recorded is not None
    assert recorded.state == "expired"


async def test_a_caller_that_asks_after_the_end_learns_of_it_before_any_sweep(store: Store) -> None:
    call = held_intent()
    await store.admit(call)
    collected = await store.collect(call.call_id, call.caller.principal_key, NOW + HOUR)
    assert collected is not None
    assert collected.invocation.state == "expired"


async def test_a_sweep_expires_what_is_due_and_nothing_else(store: Store) -> None:
    due, approved, later = (
        held_intent(arguments=1),
        held_intent(arguments=2),
        held_intent(arguments=3, expires_in_ms=2 * HOUR),
    )
    for call in (due, approved, later):
        await store.admit(call)
    await store.review(decide(approved.call_id))
    swept = await store.sweep(NOW + HOUR)
    assert set(swept.expired) == {due.call_id, approved.call_id}
    still = await store.invocation(later.call_id)
    assert still is not None
    assert still.state == "held"


async def test_there_is_no_review_of_what_was_never_held(store: Store) -> None:
    call = intent()
    await store.admit(call)
    for call_id in (call.call_id, "nonsense"):
        with pytest.raises(UnknownHold):
            await store.review(decide(call_id))
        assert await store.collect(call_id, call.caller.principal_key, NOW) is None


async def test_a_concurrency_quota_is_taken_when_the_held_call_runs(store: Store) -> None:
    held, running = held_intent(charges=(concurrency(1),)), intent(charges=(concurrency(1),))
    await store.admit(held)
    await store.admit(running)
    await store.review(decide(held.call_id))
    assert await store.claim(held.call_id, NOW + 2) is None
    await store.finish(outcome(running.call_id))
    assert await store.claim(held.call_id, NOW + 2) is not None
    assert (await store.admit(intent(charges=(concurrency(1),)))).state == "denied"


async def test_of_many_decisions_at_once_one_wins(store: Store) -> None:
    call = held_intent()
    await store.admit(call)
    won: list[str] = []

    async def one(decision: str, reviewer: str) -> None:
        try:
            won.append((await store.review(decide(call.call_id, decision, reviewer=reviewer))).state)
        except Conflict as conflict:
            assert conflict.facts["state"] in ("approved", "rejected")

    async with anyio.create_task_group() as tasks:
        for number in range(10):
            tasks.start_soon(one, ("approve", "reject")[number % 2], f"r{number}")
    recorded = await store.invocation(call.call_id)
    assert recorded is not None
    assert won == [recorded.state]


async def test_of_many_runners_one_claims(store: Store) -> None:
    call = held_intent()
    await store.admit(call)
    await store.review(decide(call.call_id))
    claims: list[bool] = []

    async def one() -> None:
        claims.append(await store.claim(call.call_id, NOW + 2) is not None)

    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(one)
    assert sorted(claims) == [False] * 9 + [True]


# -------------------------------------------------------------------------------------------------------- questions


async def test_questions_filter_by_every_field_and_come_newest_first(store: Store) -> None:
    calls = [
        intent(at_ms=NOW, agent="a1", user="u1", tool="t1", backend="b1", rule="p/1"),
        intent(at_ms=NOW + 10, agent="a2", user="u2", tool="t2", backend="b2", rule="p/2"),
        intent(at_ms=NOW + 20, agent="a2", user="u1", tool="t1", refusal=("forbidden", "authorise", "no")),
        held_intent(at_ms=NOW + 30, agent="a3"),
    ]
    for call in calls:
        await store.admit(call)

    async def ask(**query: object) -> list[int]:
        found = await store.invocations(InvocationQuery(**query))  # type: ignore[arg-type]
        ids = [call.call_id for call in calls]
        return [ids.index(one.call_id) for one in found]

    assert await ask() == [3, 2, 1, 0]
    assert await ask(limit=2) == [3, 2]
    assert await ask(agent="a2") == [2, 1]
    assert await ask(user="u1", tool="t1") == [2, 0]
    assert await ask(backend="b2") == [1]
    assert await ask(rule="p/1") == [0]
    assert await ask(code="forbidden") == [2]
    assert await ask(states=("denied", "held")) == [3, 2]
    assert await ask(states=("held",)) == [3]
    assert await ask(held_only=True) == [3]
    assert await ask(since_ms=NOW + 10, until_ms=NOW + 30) == [2, 1]
    assert await ask(tenant="acme", principal_key=calls[0].caller.principal_key) == [0]
    assert await ask(tenant="other") == []
    assert await ask(after=calls[1].call_id) == [2, 3]
    assert await ask(oldest_first=True, limit=3) == [0, 1, 2]
    assert await ask(before=calls[2].call_id) == [1, 0]
    assert await ask(before="nobody's") == []
    assert await ask(within="acme", agent="a2") == [2, 1]
    assert await ask(within="") == []
    assert await ask(agent="' or 1=1 --") == []


async def test_a_waiter_hears_of_a_change_and_of_none_when_there_is_none(store: Store) -> None:
    call = held_intent()
    await store.admit(call)
    while await store.changed(0.2):
        pass  # what happened until here
    assert not await store.changed(0.2)

    heard: list[bool] = []

    async def wait() -> None:
        heard.append(await store.changed(30))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await anyio.lowlevel.checkpoint()
        await store.review(decide(call.call_id))
    assert heard == [True]


async def test_a_change_between_the_look_and_the_wait_is_not_missed(store: Store) -> None:
    call = held_intent()
    await store.admit(call)
    await store.invocation(call.call_id)
    async with anyio.create_task_group() as tasks:  # somebody else's decision
        tasks.start_soon(store.review, decide(call.call_id))
    with anyio.fail_after(5):
        assert await store.changed(30)


# ------------------------------------------------------------------------------------------------- opening and closing


async def test_what_was_recorded_is_there_after_a_restart(store: Store, tmp_path: Path, clock: HandClock) -> None:
    call = held_intent(arguments={"amount": 900})
    await store.admit(call)
    await store.aclose()
    again = await open_store(tmp_path, clock)
    try:
        assert await again.held_arguments(call.call_id) == call.arguments
        await again.review(decide(call.call_id))
        assert await again.claim(call.call_id, NOW + 2) is not None
    finally:
        await again.aclose()


async def test_a_closed_store_refuses_and_closes_twice(store: Store) -> None:
    await store.admit(intent())
    await store.aclose()
    await store.aclose()
    with pytest.raises(RecordUnavailable):
        await store.admit(intent())
    with pytest.raises(RecordUnavailable):
        await store.invocations(InvocationQuery())


async def test_two_stores_on_one_database_see_each_other(store: Store, tmp_path: Path, clock: HandClock) -> None:
    other = await open_store(tmp_path, clock)
    try:
        call = held_intent(charges=(count(1),))
        await store.admit(call)
        assert (await other.admit(intent(charges=(count(1),)))).state == "denied"
        await other.invocation(call.call_id)
        await store.review(decide(call.call_id))
        with anyio.fail_after(5):
            assert await other.changed(30)
        assert await other.claim(call.call_id, NOW + 2) is not None
        assert await store.claim(call.call_id, NOW + 2) is None
        assert (await store.sweep(NOW + 10)).outcome_unknown == ()  # the other one is alive
    finally:
        await other.aclose()


async def test_notes_are_kept_and_may_not_pass_for_the_stores_own_entries(store: Store) -> None:
    await store.note("reload", {"version": "sha256:x"})
    with pytest.raises(ValueError, match="own"):
        await store.note("outcome", {})
