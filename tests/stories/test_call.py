"""What happens to a call, told through the pipeline with real parts: order of decisions, records, failures."""

from __future__ import annotations

import contextlib
from pathlib import Path

import anyio
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from broker.errors import (
    Forbidden,
    InsufficientScope,
    InvalidArguments,
    Overloaded,
    OverQuota,
    RecordUnavailable,
    Rejected,
    TimedOut,
    UnknownTool,
)
from broker.model.answer import Answer
from broker.model.invocation import Outcome
from broker.pipeline import dispatch
from tests.downstream import answering
from tests.world import agent, broker_with, perform, records

TOOLS = """
kind: backend
name: notes
static: {}
---
kind: tool
name: note_read
effect: read
backend: notes
input: {type: object, properties: {topic: {type: string}}, required: [topic], additionalProperties: false}
static: {text: "a note"}
---
kind: tool
name: note_write
effect: write
scopes: [notes.write]
backend: notes
input: {type: object, properties: {amount: {type: number}}, required: [amount]}
static: {text: "written"}
---
kind: tool
name: note_burn
effect: destroy
backend: notes
static: {text: "burnt"}
---
kind: policy
name: writes
tools: [note_write]
rules:
  - {id: never-negative, when: args.amount < 0, effect: deny, reason: amounts are positive.}
  - {id: large, when: args.amount > 100, effect: hold, reason: large amounts need a person}
  - {id: rest, when: "true", effect: allow}
"""
QUOTA = """
---
kind: quota
name: two-writes
tools: [note_write]
count: {limit: 2, per: day}
by: [agent]
"""
ECHOING = """
kind: backend
name: shop
http: {base_url: "%s", allow_private: true}
---
kind: tool
name: charge
effect: write
scopes: [pay]
backend: shop
record: %s
input: {type: object, properties: {card_token: {type: string}}, required: [card_token], additionalProperties: false}
http: {method: POST, path: /charges}
"""
writer = agent(scopes=["notes.write"])


@pytest.mark.anyio
async def test_an_allowed_call_is_answered_and_recorded_with_who_what_and_which_rule(tmp_path: Path) -> None:
    async with broker_with(tmp_path, TOOLS) as broker:
        answer = await perform(broker, "note_write", {"amount": 5}, writer)
        assert answer.content[0]["text"] == "written"
        (record,) = await records(broker)
    assert (record.state, record.effect, record.tool, record.agent) == ("succeeded", "done", "note_write", "bot")
    assert record.rule == "writes/rest"
    assert record.backend == "notes"
    assert record.arguments_digest.startswith("sha256:")
    assert record.result_digest.startswith("sha256:")
    assert {"resolve", "validate", "authorise", "admit", "dispatch"} <= set(record.laps_us)
    assert record.policy_version


@pytest.mark.anyio
async def test_an_unknown_tool_and_one_outside_the_callers_toolset_get_the_same_answer(tmp_path: Path) -> None:
    toolset = "\n---\nkind: toolset\nname: few\nfor: {agents: [bot]}\ntools: [note_read]\n"
    async with broker_with(tmp_path, TOOLS + toolset) as broker:
        said: list[str] = []
        for name in ("note_write", "note_nope"):
            with pytest.raises(UnknownTool) as refused:
                await perform(broker, name, {"amount": 1}, writer)
            said.append(refused.value.sentence.replace(name, "X"))
        assert said[0] == said[1]
        assert [record.code for record in await records(broker)] == ["unknown_tool", "unknown_tool"]
        assert (await perform(broker, "note_read", {"topic": "x"}, writer)).content


@pytest.mark.anyio
async def test_a_tool_that_is_permitted_to_others_only_is_unknown(tmp_path: Path) -> None:
    rule = "{id: jan, when: caller.agent == 'jan', effect: allow}"
    only = f"\n---\nkind: policy\nname: burn\ntools: [note_burn]\nrules: [{rule}]\n"
    async with broker_with(tmp_path, TOOLS + only) as broker:
        said: list[str] = []
        for name in ("note_burn", "note_nope"):
            with pytest.raises(UnknownTool) as refused:
                await perform(broker, name, {"no such": "argument"}, writer)
            said.append(refused.value.sentence.replace(name, "NAME"))
        assert said[0] == said[1]
        assert (await perform(broker, "note_burn", {}, agent("jan"))).content[0]["text"] == "burnt"


@pytest.mark.anyio
async def test_arguments_are_judged_before_policy_and_nothing_is_coerced(tmp_path: Path) -> None:
    async with broker_with(tmp_path, TOOLS) as broker:
        for arguments in ({"amount": "5"}, {"amount": True}, {}, {"amount": 5, "x": 1}):
            with pytest.raises(InvalidArguments):
                await perform(broker, "note_write", arguments, writer)
        assert (await perform(broker, "note_write", {"amount": 5.0}, writer)).content


@pytest.mark.anyio
async def test_a_missing_scope_is_told_before_a_person_or_a_quota_is_asked(tmp_path: Path) -> None:
    async with broker_with(tmp_path, TOOLS + QUOTA) as broker:
        with pytest.raises(InsufficientScope) as refused:
            await perform(broker, "note_write", {"amount": 500}, agent())
        assert refused.value.missing == ("notes.write",)
        (record,) = await records(broker)
        assert (record.state, record.code, record.effect) == ("denied", "insufficient_scope", "none")
        assert await broker.store.quotas(broker.clock.now_ms()) == []


@pytest.mark.anyio
async def test_a_quota_is_asked_before_a_person_and_a_refused_call_burns_nothing(tmp_path: Path) -> None:
    async with broker_with(tmp_path, TOOLS + QUOTA, hold={"wait_s": 0}) as broker:
        for _ in range(2):
            await perform(broker, "note_write", {"amount": 1}, writer)
        with pytest.raises(OverQuota) as refused:
            await perform(broker, "note_write", {"amount": 500}, writer)
        assert refused.value.facts["quota"] == "two-writes"
        assert refused.value.retry_after_ms > 0
        assert await records(broker, states=("held",)) == []
        (state,) = await broker.store.quotas(broker.clock.now_ms())
        assert state.left == 0
        assert (await perform(broker, "note_write", {"amount": 1}, agent("other", scopes=["notes.write"]))).content


@pytest.mark.anyio
async def test_forbid_beats_permit_and_destroying_is_denied_unless_somebody_allowed_it(tmp_path: Path) -> None:
    async with broker_with(tmp_path, TOOLS) as broker:
        with pytest.raises(Forbidden) as by_rule:
            await perform(broker, "note_write", {"amount": -1}, writer)
        assert by_rule.value.facts["rule"] == "writes/never-negative"
        with pytest.raises(Forbidden):
            await perform(broker, "note_burn", {}, writer)
    allow = "\n---\nkind: policy\nname: burn\ntools: [note_burn]\nrules: [{id: ok, when: 'true', effect: allow}]\n"
    async with broker_with(tmp_path, TOOLS + allow) as broker:
        assert (await perform(broker, "note_burn", {}, writer)).content[0]["text"] == "burnt"


@pytest.mark.anyio
@pytest.mark.parametrize("mode", ["none", "digest", "redacted", "full"])
async def test_what_a_backend_says_of_the_arguments_is_told_and_not_recorded(tmp_path: Path, mode: str) -> None:
    async def repeats(request: Request) -> Response:
        return JSONResponse({"detail": "no such card: " + (await request.json())["card_token"]}, 422)

    async with answering(repeats) as (url, _), broker_with(tmp_path, ECHOING % (url, mode)) as broker:
        with pytest.raises(Rejected) as refused:
            await perform(broker, "charge", {"card_token": "canary-4242"}, agent(scopes=["pay"]))
        (record,) = await records(broker)
    assert "no such card: canary-4242" in refused.value.sentence
    assert record.code == "backend_rejected"
    assert "did not accept the values (HTTP 422). It says: [not kept] Check the arguments." in record.message
    assert b"canary" not in (tmp_path / "broker.db").read_bytes()


@pytest.mark.anyio
async def test_nothing_is_admitted_while_a_late_outcome_is_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with broker_with(tmp_path, TOOLS) as broker:
        finish, tries, writing, go_on = broker.store.finish, list[Outcome](), anyio.Event(), anyio.Event()

        async def finish_late(outcome: Outcome) -> None:
            tries.append(outcome)
            if len(tries) == 1:
                raise RecordUnavailable("The disk is full.")
            writing.set()
            await go_on.wait()
            await finish(outcome)

        monkeypatch.setattr(broker.store, "finish", finish_late)
        with pytest.raises(RecordUnavailable) as untold:
            await perform(broker, "note_read", {"topic": "x"})
        assert untold.value.effect == "done"
        with anyio.fail_after(10):
            await writing.wait()
        assert broker.not_ready
        with pytest.raises(RecordUnavailable) as refused:
            await perform(broker, "note_read", {"topic": "x"})
        assert refused.value.effect == "none"
        go_on.set()
        with anyio.fail_after(10):
            while broker.not_ready:
                await anyio.sleep(0.01)
        monkeypatch.undo()
        assert (await perform(broker, "note_read", {"topic": "x"})).content[0]["text"] == "a note"
        assert [record.state for record in await records(broker)] == ["succeeded", "succeeded"]


@pytest.mark.anyio
async def test_the_record_verifies_after_calls_of_every_kind(tmp_path: Path) -> None:
    from broker.verifier import verify

    async with broker_with(tmp_path, TOOLS + QUOTA) as broker, anyio.create_task_group() as tasks:

        async def one(amount: float) -> None:
            with contextlib.suppress(OverQuota, Forbidden):
                await perform(broker, "note_write", {"amount": amount}, writer, may_wait=False)

        for amount in (1, -1, 2, 3, 4):
            tasks.start_soon(one, amount)
    found = verify(tmp_path / "broker.db", None)
    assert found.ok, found


@pytest.mark.anyio
async def test_a_backend_that_does_not_keep_its_deadline_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "GRACE_S", 0.0)
    monkeypatch.setattr(dispatch, "LOOK_EVERY_S", 0.02)
    hasty = TOOLS.replace('static: {text: "a note"}', 'static: {text: "a note"}\ncaps: {timeout: 100ms}')

    async def endless(*_: object) -> Answer:
        await anyio.sleep_forever()
        raise AssertionError

    async with broker_with(tmp_path, hasty) as broker:
        backend = broker.backends["notes"]
        with monkeypatch.context() as patched:
            patched.setattr(type(backend), "call", endless)
            for _ in range(2):  # nothing of the first end is left in this task
                with pytest.raises(TimedOut, match=r"did not answer within 0.1 s; whether it was done is unknown"):
                    await perform(broker, "note_read", {"topic": "x"})
            with anyio.move_on_after(0.03) as left:
                await perform(broker, "note_read", {"topic": "x"})
            assert left.cancelled_caught
        assert (await perform(broker, "note_read", {"topic": "x"})).content[0]["text"] == "a note"
        said = [(record.state, record.code) for record in await records(broker)]
    assert said == [
        ("succeeded", ""),
        ("outcome_unknown", "outcome_unknown"),
        *[("outcome_unknown", "backend_timed_out")] * 2,
    ]


@pytest.mark.anyio
async def test_one_call_too_many_is_refused_by_the_limits_name(tmp_path: Path) -> None:
    entered, release = anyio.Event(), anyio.Event()

    async def slowly(_request: Request) -> Response:
        entered.set()
        await release.wait()
        return JSONResponse({})

    payer = agent(scopes=["pay"])
    async with (
        answering(slowly) as (url, _),
        broker_with(tmp_path, ECHOING % (url, "none"), limits={"calls": 1}) as broker,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(perform, broker, "charge", {"card_token": "x"}, payer)
        await entered.wait()
        with pytest.raises(Overloaded, match="limit: calls") as refused:
            await perform(broker, "charge", {"card_token": "x"}, payer)
        assert refused.value.facts["limit"] == "calls"
        release.set()
