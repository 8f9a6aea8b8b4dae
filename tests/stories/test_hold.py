"""Holds, told through the pipeline and the desk: held, decided once, run exactly once, collected."""

from __future__ import annotations

import contextlib
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import anyio
import pytest

from broker.assembly import Broker
from broker.errors import Conflict, Denied, Expired, Forbidden, Held, UnknownHold, Withdrawn
from broker.model.invocation import Invocation
from tests import world
from tests.stories.test_call import TOOLS
from tests.world import agent, perform, records, reviewer, settings_in, until_state

writer = agent(scopes=["notes.write"], user="ann", issuer="settings")
STDIO = {"agent": "bot", "user": "ann", "scopes": ["notes.write"]}


def broker_with(folder: Path, manifests: str, **keys: Any) -> AbstractAsyncContextManager[Broker]:
    """A broker whose settings vouch for the writer, so that its holds may run without it."""
    return world.broker_with(folder, manifests, **{"stdio": STDIO, **keys})


async def held(broker: Broker, amount: float = 500) -> str:
    with pytest.raises(Held) as error:
        await perform(broker, "note_write", {"amount": amount}, writer, may_wait=False)
    return str(error.value.facts["hold_id"])


@pytest.mark.anyio
async def test_a_held_call_is_approved_run_once_and_collected(tmp_path: Path) -> None:
    async with broker_with(tmp_path, TOOLS) as broker:
        hold_id = await held(broker)
        with pytest.raises(Held):
            await perform(broker, "broker_held_call", {"id": hold_id}, writer, may_wait=False)
        await broker.desk.review(hold_id, approve=True, reviewer=reviewer(), reason="fine", via="test")
        done = await until_state(broker, hold_id, "succeeded")
        assert done.hold is not None
        assert done.hold.reviewer == "rita@test"
        answer = await perform(broker, "broker_held_call", {"id": hold_id}, writer)
        assert answer.content[0]["text"] == "written"
        assert len(await records(broker, tool="note_write")) == 1


@pytest.mark.anyio
async def test_a_caller_that_waits_gets_the_result_of_the_approved_call_itself(tmp_path: Path) -> None:
    async with broker_with(tmp_path, TOOLS) as broker, anyio.create_task_group() as tasks:
        steps: list[float] = []

        async def progress(done: float, total: float | None, message: str | None) -> None:
            steps.append(done)

        async def approve() -> None:
            while not (waiting := await records(broker, states=("held",))):
                await broker.store.changed(1)
            await broker.desk.review(waiting[0].call_id, approve=True, reviewer=reviewer(), via="test")

        tasks.start_soon(approve)
        answer = await perform(broker, "note_write", {"amount": 500}, writer, progress=progress)
        assert answer.content[0]["text"] == "written"
        assert steps[:1] == [1]


@pytest.mark.anyio
async def test_the_same_call_again_attaches_and_another_one_does_not(tmp_path: Path) -> None:
    async with broker_with(tmp_path, TOOLS) as broker:
        first = await held(broker)
        assert await held(broker) == first
        assert await held(broker, 501) != first
        assert await held(broker, 500.0) != first  # another spelling is another request
        await broker.desk.review(first, approve=True, reviewer=reviewer(), via="test")
        await until_state(broker, first, "succeeded")
        answer = await perform(broker, "note_write", {"amount": 500}, writer, may_wait=False)
        assert answer.content[0]["text"] == "written"
        assert await held(broker) != first  # collected: from now on it is a new request


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["ann", "Ann", "ＡＮＮ", "bot"])
async def test_the_requester_cannot_review_under_any_spelling(tmp_path: Path, name: str) -> None:
    async with broker_with(tmp_path, TOOLS) as broker:
        hold_id = await held(broker)
        with pytest.raises(Forbidden):
            await broker.desk.review(hold_id, approve=True, reviewer=reviewer(name), via="test")
        record = await broker.store.invocation(hold_id)
        assert record is not None
        assert record.state == "held"
        await broker.desk.review(hold_id, approve=True, reviewer=reviewer("rita"), via="test")


@pytest.mark.anyio
async def test_a_reviewer_needs_what_the_rule_asks_for(tmp_path: Path) -> None:
    rule = TOOLS.replace("need a person}", "need a person, reviewers: {groups: [leads]}}")
    assert rule != TOOLS
    async with broker_with(tmp_path, rule) as broker:
        hold_id = await held(broker)
        with pytest.raises(Forbidden):
            await broker.desk.review(hold_id, approve=True, reviewer=reviewer(), via="test")
        await broker.desk.review(hold_id, approve=True, reviewer=reviewer(groups=["leads"]), via="test")


@pytest.mark.anyio
async def test_a_denied_call_tells_the_agent_who_and_why_and_never_runs(tmp_path: Path) -> None:
    async with broker_with(tmp_path, TOOLS) as broker:
        hold_id = await held(broker)
        await broker.desk.review(hold_id, approve=False, reviewer=reviewer(), reason="too much", via="test")
        with pytest.raises(Denied) as denied:
            await perform(broker, "broker_held_call", {"id": hold_id}, writer)
        assert "rita@test" in denied.value.sentence
        assert "too much" in denied.value.sentence
        with pytest.raises(Conflict):
            await broker.desk.review(hold_id, approve=True, reviewer=reviewer("bob"), via="test")
        record = await broker.store.invocation(hold_id)
        assert record is not None
        assert (record.state, record.effect) == ("rejected", "none")


@pytest.mark.anyio
async def test_a_hold_is_nobody_elses(tmp_path: Path) -> None:
    async with broker_with(tmp_path, TOOLS) as broker:
        hold_id = await held(broker)
        said: set[str] = set()
        for guess, caller in ((hold_id, agent("thief", scopes=["notes.write"])), ("no-such-hold", writer)):
            with pytest.raises(UnknownHold) as refused:
                await perform(broker, "broker_held_call", {"id": guess}, caller)
            said.add(refused.value.sentence)
        assert len(said) == 1


@pytest.mark.anyio
async def test_a_hold_expires_and_can_be_withdrawn_by_its_caller(tmp_path: Path) -> None:
    soon = TOOLS.replace("need a person}", "need a person, expires: 1s}")
    async with broker_with(tmp_path, soon) as broker:
        hold_id = await held(broker)
        await broker.store.sweep(broker.clock.now_ms() + 2_000)
        with pytest.raises(Expired):
            await perform(broker, "broker_held_call", {"id": hold_id}, writer)
        second = await held(broker)
        with pytest.raises(Withdrawn):
            await perform(broker, "broker_held_call", {"id": second, "withdraw": True}, writer)
        with pytest.raises(Conflict):
            await broker.desk.review(second, approve=True, reviewer=reviewer(), via="test")


@pytest.mark.anyio
async def test_a_hold_survives_a_restart_and_its_vanished_caller(tmp_path: Path) -> None:
    async with broker_with(tmp_path, TOOLS) as broker:
        hold_id = await held(broker)
    async with Broker.open(settings_in(tmp_path, TOOLS), work=False) as broker:  # or it might run it, and be cut off
        await broker.desk.review(hold_id, approve=True, reviewer=reviewer(), via="test")
    async with broker_with(tmp_path, TOOLS) as broker:
        assert (await until_state(broker, hold_id, "succeeded")).effect == "done"


@pytest.mark.anyio
async def test_a_reload_that_changes_the_tool_withdraws_its_holds(tmp_path: Path) -> None:
    async with broker_with(tmp_path, TOOLS) as broker:
        hold_id = await held(broker)
        settings_in(tmp_path, TOOLS.replace("written", "rewritten"))
        await broker.reconciler.reload("test")
        assert (await until_state(broker, hold_id, "withdrawn")).effect == "none"


@pytest.mark.anyio
@pytest.mark.parametrize(
    "new",
    [
        "hold, reviewers: {groups: [treasury]}, reason: large amounts need a person}",
        "hold, reason: other words and the same reviewers}",
        "allow}",
        "deny, reason: no large amounts any more}",
    ],
)
async def test_a_hold_does_not_outlive_the_rules_that_held_it(tmp_path: Path, new: str) -> None:
    async with broker_with(tmp_path, TOOLS) as broker:
        hold_id = await held(broker)
        changed = TOOLS.replace("hold, reason: large amounts need a person}", new)
        assert changed != TOOLS
        (tmp_path / "tool_manifests" / "tools.yaml").write_text(changed)
        await broker.reconciler.reload("test")
        with pytest.raises(Conflict, match="withdrawn"):
            await broker.desk.review(hold_id, approve=True, reviewer=reviewer(), via="test")
        assert (await until_state(broker, hold_id, "withdrawn")).effect == "none"
        with pytest.raises(Withdrawn, match="changed while the call was held"):
            await perform(broker, "broker_held_call", {"id": hold_id}, writer)


@pytest.mark.anyio
async def test_a_change_of_other_rules_leaves_a_hold_as_it_is(tmp_path: Path) -> None:
    async with broker_with(tmp_path, TOOLS) as broker:
        hold_id = await held(broker)
        other = "kind: quota\nname: reads\ntools: [note_read]\nrate: {limit: 9, per: 1m}\nby: []\n"
        (tmp_path / "tool_manifests" / "more.yaml").write_text(other)
        version = broker.shelf.current.version
        await broker.reconciler.reload("test")
        assert broker.shelf.current.version != version
        await broker.desk.review(hold_id, approve=True, reviewer=reviewer(), via="test")
        assert (await until_state(broker, hold_id, "succeeded")).effect == "done"


@pytest.mark.anyio
async def test_of_many_reviewers_one_wins_and_the_effect_follows_the_winner(tmp_path: Path) -> None:
    async with broker_with(tmp_path, TOOLS) as broker:
        for round_ in range(20):
            hold_id = await held(broker, 1000 + round_)
            won: list[Invocation] = []

            async def decide(name: str, *, approve: bool, hold_id: str = hold_id, won: list[Invocation] = won) -> None:
                with contextlib.suppress(Conflict):
                    won.append(
                        await broker.desk.review(
                            hold_id, approve=approve, reviewer=reviewer(name), reason="so", via="test"
                        )
                    )

            async with anyio.create_task_group() as tasks:
                for number in range(4):
                    tasks.start_soon(lambda n=number: decide(f"r{n}", approve=n % 2 == 0))
            (winner,) = won
            ended = await until_state(broker, hold_id, "succeeded", "rejected")
            assert (ended.state == "succeeded") == (winner.state == "approved")


@pytest.mark.anyio
async def test_a_hold_of_a_caller_nobody_vouches_for_any_more_does_not_run(tmp_path: Path) -> None:
    async with broker_with(tmp_path, TOOLS) as broker:
        hold_id = await held(broker)
    async with broker_with(tmp_path, TOOLS, stdio={"agent": "bot", "user": "ann"}) as broker:
        await broker.desk.review(hold_id, approve=True, reviewer=reviewer(), via="test")
        refused = await until_state(broker, hold_id, "failed")
        assert (refused.effect, refused.result_digest) == ("none", "")


@pytest.mark.anyio
async def test_who_asks_while_an_approved_call_is_under_way_is_not_told_that_nothing_was_done(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, TOOLS, stdio=STDIO)
    async with Broker.open(settings, work=False) as broker, broker.reconciler.running():  # nobody runs approved calls
        hold_id = await held(broker)
        told: dict[str, tuple[str, bool]] = {}

        async def ask() -> None:
            with pytest.raises(Held) as open_still:
                await perform(broker, "broker_held_call", {"id": hold_id}, writer, may_wait=False)
            error = open_still.value
            told[error.facts["state"]] = (error.effect, "Nothing has been done" in error.sentence)

        await ask()
        await broker.desk.review(hold_id, approve=True, reviewer=reviewer(), via="test")
        await ask()
        assert await broker.store.claim(hold_id, broker.clock.now_ms()) is not None
        await ask()
    assert told == {"held": ("none", True), "approved": ("none", True), "dispatching": ("unknown", False)}
