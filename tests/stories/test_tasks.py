"""Calls that go on as tasks: held ones, long ones, and those of servers that make tasks themselves."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import anyio
import httpx2
import orjson
import pytest

from tests.conformance.server import build
from tests.library import Reading, client_of, reading
from tests.serving import modern, modern_headers
from tests.tasking import CAPABILITIES, EXTENSION, NOTES, Tasks, Wire
from tests.world import records, reviewer, until_state

pytestmark = pytest.mark.anyio

CALLER = "ann~notes.write"
TOOLS = (
    NOTES
    + """
kind: policy
name: notes
tools: [note_write]
rules: [{id: large, when: args.amount > 10.0, effect: hold, reason: large ones need a person}]
"""
)
SLOW = """
kind: import
name: everything
backend: library
effect: read
take: [greet, slow_compute, confirm_delete, failing_job]
"""
OWN = """
tools:
  slow_compute: {task: {after: 400ms}}
  failing_job: {task: {after: 1ms, required: true}}
  confirm_delete: {task: {after: 1ms}}
"""
ABLE: dict[str, Any] = {"elicitation": {}, "extensions": {EXTENSION: {}}}
STDIO = {"agent": "ann", "scopes": ["notes.write"]}


class Conformance:
    """The server of the conformance suite, with tasks of its own or without."""

    def __init__(self, *, is_plain: bool) -> None:
        self._server = build(is_plain=is_plain)

    def app(self) -> Any:
        return self._server.streamable_http_app()


@contextlib.asynccontextmanager
async def holding(folder: Path) -> AsyncGenerator[Reading]:
    async with reading(folder, manifests=TOOLS, issuer="settings", stdio=STDIO) as house:
        yield house


async def held(wire: Wire, amount: int = 500) -> dict[str, Any]:
    created = await wire.call("note_write", {"amount": amount})
    assert created["resultType"] == "task", created
    return created


@pytest.mark.parametrize("transport", ["http", "stdio"])
async def test_a_held_call_is_a_task_whose_result_is_asked_for(transport: str, tmp_path: Path) -> None:
    async with holding(tmp_path) as house:
        tasks, answers = Tasks(), list[str]()

        async def call() -> None:
            async with client_of(house, transport, token=CALLER, extensions=[tasks]) as client:
                answers.append(str((await client.call_tool("note_write", {"amount": 500})).content))

        async with anyio.create_task_group() as group:
            group.start_soon(call)
            with anyio.fail_after(60):
                while not tasks.seen:  # what it is told is how the hold stands then: it has to be told before
                    await anyio.sleep(0.01)
            (waiting,) = await records(house.broker, states=("held",))
            await house.broker.desk.review(waiting.call_id, approve=True, reviewer=reviewer(), via="test")
        assert "written" in answers[0]
        assert {one["status"] for one in tasks.seen} <= {"working", "completed"}
        assert "large ones need a person" in tasks.seen[0]["statusMessage"]
        assert [one.state for one in await records(house.broker, tool="note_write")] == ["succeeded"]


async def test_why_a_task_was_denied_reaches_its_agent(tmp_path: Path) -> None:
    async with holding(tmp_path) as house:
        wire = Wire(house.url, CALLER)
        created = await held(wire)
        call_id = (await records(house.broker, states=("held",)))[0].call_id
        await house.broker.desk.review(call_id, approve=False, reviewer=reviewer(), reason="too much", via="test")
        told = await wire.task("get", created["taskId"])
        assert (told["status"], told["result"]["isError"]) == ("completed", True)
        assert "too much" in told["result"]["content"][0]["text"]


async def test_cancelling_the_task_withdraws_the_hold(tmp_path: Path) -> None:
    async with holding(tmp_path) as house:
        wire = Wire(house.url, CALLER)
        created = await held(wire)
        assert (await wire.task("cancel", created["taskId"]))["resultType"] == "complete"
        told = await wire.task("get", created["taskId"])
        assert (told["status"], "result" in told) == ("cancelled", False)
        assert [one.state for one in await records(house.broker, tool="note_write")] == ["withdrawn"]
        assert (await wire.task("cancel", created["taskId"]))["resultType"] == "complete"


async def test_the_task_of_somebody_else_is_as_unknown_as_none(tmp_path: Path) -> None:
    async with holding(tmp_path) as house:
        ann, bob = Wire(house.url, CALLER), Wire(house.url, "bob~notes.write")
        task_id = (await held(ann))["taskId"]
        call_id = (await records(house.broker, states=("held",)))[0].call_id
        for verb in ("get", "cancel", "update"):
            more: dict[str, Any] = {"inputResponses": {}} if verb == "update" else {}
            answers = [
                await bob.task(verb, task_id, **more),
                await ann.task(verb, call_id, **more),
                await ann.task(verb, task_id[:-4] + "AAAA", **more),
                await ann.task(verb, "none", **more),
            ]
            assert {orjson.dumps(answer["error"]) for answer in answers} == {
                orjson.dumps({"code": -32602, "message": "You have no task of this id."})
            }
        assert (await ann.task("get", task_id))["status"] == "working"


async def test_a_task_is_there_after_a_restart(tmp_path: Path) -> None:
    async with holding(tmp_path) as house:
        created = await held(Wire(house.url, CALLER))
    async with holding(tmp_path) as house:
        wire = Wire(house.url, CALLER)
        told = await wire.task("get", created["taskId"])
        assert (told["taskId"], told["status"], told["createdAt"]) == (
            created["taskId"],
            "working",
            created["createdAt"],
        )
        call_id = (await records(house.broker, states=("held",)))[0].call_id
        await house.broker.desk.review(call_id, approve=True, reviewer=reviewer(), via="test")
        assert (await wire.ended(created["taskId"]))["result"]["content"][0]["text"] == "written"


async def test_who_declared_no_tasks_gets_the_answer_of_everybody(tmp_path: Path) -> None:
    async with reading(tmp_path, manifests=TOOLS, hold={"wait_s": 0}) as house:
        undeclared = Wire(house.url, CALLER, {})
        told = await undeclared.call("note_write", {"amount": 500})
        assert (told["resultType"], told["structuredContent"]["code"]) == ("complete", "held")
        task_id = (await held(Wire(house.url, CALLER)))["taskId"]  # attaches to the same hold
        refused = await undeclared.task("get", task_id)
        assert refused["error"]["code"] == -32021
        assert refused["error"]["data"] == {"requiredCapabilities": {"extensions": {EXTENSION: {}}}}
        assert len(await records(house.broker, states=("held",))) == 1


async def test_a_listener_is_told_how_its_tasks_stand_and_nobody_elses(tmp_path: Path) -> None:
    async with holding(tmp_path) as house:
        ann, bob = Wire(house.url, CALLER), Wire(house.url, "bob~notes.write")
        mine, theirs = (await held(ann))["taskId"], (await held(bob))["taskId"]
        asked = {"notifications": {"taskIds": [mine, theirs, "none"]}}
        body = modern("subscriptions/listen", asked, **{CAPABILITIES: ann.capabilities})
        headers = modern_headers("subscriptions/listen", token=CALLER)
        heard: list[dict[str, Any]] = []
        with anyio.fail_after(20):
            async with (
                httpx2.AsyncClient(timeout=20) as http,
                http.stream("POST", f"{house.url}/mcp", json=body, headers=headers) as stream,
            ):
                async for line in stream.aiter_lines():
                    if not line.startswith("data: {"):
                        continue
                    heard.append(orjson.loads(line.removeprefix("data: ")))
                    if len(heard) == 2:
                        calls = await records(house.broker, states=("held",))
                        for one in calls:
                            await house.broker.desk.review(one.call_id, approve=True, reviewer=reviewer(), via="test")
                    if heard[-1]["params"].get("status") == "completed":
                        break
    assert heard[0]["params"]["notifications"] == {"taskIds": [mine]}
    told = [one["params"] for one in heard[1:]]
    assert {one["method"] for one in heard[1:]} == {"notifications/tasks"}
    assert {one["taskId"] for one in told} == {mine}
    assert [one["status"] for one in (told[0], told[-1])] == ["working", "completed"]
    assert told[-1]["result"]["content"][0]["text"] == "written"


# ----------------------------------------------------------------------------------------------------------- long tools


async def test_a_long_call_outlives_its_connection_and_is_collected(tmp_path: Path) -> None:
    async with reading(tmp_path, Conformance(is_plain=True), manifests=SLOW + OWN) as house:
        wire = Wire(house.url, "ann")
        quick = await wire.call("slow_compute", {"seconds": 0})
        assert quick["resultType"] == "complete"
        created = await wire.call("slow_compute", {"seconds": 1, "label": "x"})
        assert (created["resultType"], created["status"]) == ("task", "working")
        told = await wire.ended(created["taskId"])  # each of these is another connection
        assert told["result"]["content"][0]["text"] == "Computed x"
        assert (await wire.task("get", created["taskId"]))["result"] == told["result"]
        assert [one.state for one in await records(house.broker)] == ["succeeded", "succeeded"]


async def test_a_long_call_is_cancelled_and_recorded_as_that(tmp_path: Path) -> None:
    async with reading(tmp_path, Conformance(is_plain=True), manifests=SLOW + OWN) as house:
        wire = Wire(house.url, "ann")
        created = await wire.call("slow_compute", {"seconds": 30})
        await wire.task("cancel", created["taskId"])
        assert (await wire.ended(created["taskId"]))["status"] == "cancelled"
        (ended,) = await records(house.broker)
        assert (ended.state, ended.code, ended.effect) == ("outcome_unknown", "cancelled", "unknown")


async def test_a_tool_that_is_a_task_only_is_not_called_for_others(tmp_path: Path) -> None:
    async with reading(tmp_path, Conformance(is_plain=True), manifests=SLOW + OWN) as house:
        refused = await Wire(house.url, "ann", {}).call("failing_job")
        assert refused["error"]["code"] == -32021
        async with client_of(house, mode="legacy", token="ann") as client:
            told = await client.call_tool("failing_job", {})
            assert told.is_error
            assert "as a task only" in str(told.content)
        assert {one.state for one in await records(house.broker)} == {"denied"}
        created = await Wire(house.url, "ann").call("failing_job")
        ended = await Wire(house.url, "ann").ended(created["taskId"])
        assert (ended["status"], ended["result"]["isError"]) == ("completed", True)


async def test_a_call_cut_by_the_brokers_end_is_a_task_that_failed(tmp_path: Path) -> None:
    async with reading(tmp_path, Conformance(is_plain=True), manifests=SLOW + OWN) as house:
        wire = Wire(house.url, "ann")
        slow = await wire.call("slow_compute", {"seconds": 30})
        wire.capabilities = ABLE
        asking = await wire.call("confirm_delete", {})
        assert (await wire.ended(asking["taskId"], "input_required"))["inputRequests"].keys() == {"confirm"}
    async with reading(tmp_path, Conformance(is_plain=True), manifests=SLOW + OWN) as house:
        wire = Wire(house.url, "ann", ABLE)
        for task in (slow, asking):
            told = await wire.task("get", task["taskId"])
            assert (told["status"], "result" in told) == ("failed", False)
        assert "waited for input" in told["error"]["message"]


# -------------------------------------------------------------------------------------------------- tasks of a server's


async def test_a_servers_own_task_is_relayed_under_an_id_of_its_callers(tmp_path: Path) -> None:
    async with reading(tmp_path, Conformance(is_plain=False), manifests=SLOW) as house:
        ann, bob = Wire(house.url, "ann"), Wire(house.url, "bob")
        created = await ann.call("slow_compute", {"seconds": 0.3, "label": "x"})
        assert created["resultType"] == "task"
        assert not {"content", "isError"} & created.keys()
        unknown = await bob.task("get", created["taskId"])
        assert unknown["error"]["message"] == "You have no task of this id."
        told = await ann.ended(created["taskId"])
        assert (told["taskId"], told["result"]["content"][0]["text"]) == (created["taskId"], "Computed x")
        tools = {one.tool for one in await records(house.broker)}
        assert tools == {"slow_compute", "task:slow_compute"}
        assert (await Wire(house.url, "ann", {}).call("slow_compute", {"seconds": 0}))["resultType"] == "complete"


async def test_a_tasks_result_is_held_against_what_the_tools_answers_are(tmp_path: Path) -> None:
    output = "\ntools: {slow_compute: {output: {type: object, properties: {n: {type: integer}}, required: [n]}}}\n"
    async with reading(tmp_path, Conformance(is_plain=False), manifests=SLOW + output) as house:
        wire = Wire(house.url, "ann")
        created = await wire.call("slow_compute", {"seconds": 0})
        told = await wire.task("get", created["taskId"])
        assert "Computed" not in orjson.dumps(told).decode()
        assert told["error"]["data"]["code"] == "answer_withheld"


async def test_what_a_task_asks_is_answered_by_its_caller(tmp_path: Path) -> None:
    for is_plain, manifests in ((True, SLOW + OWN), (False, SLOW)):
        folder = tmp_path / str(is_plain)
        folder.mkdir()
        async with reading(folder, Conformance(is_plain=is_plain), manifests=manifests) as house:
            wire = Wire(house.url, "ann", ABLE)
            created = await wire.call("confirm_delete")
            asked = await wire.ended(created["taskId"], "input_required")
            assert asked["inputRequests"]["confirm"]["method"] == "elicitation/create"
            given = {"confirm": {"action": "accept", "content": {"confirm": True}}}
            await wire.task("update", created["taskId"], inputResponses={"other": {}})
            assert (await wire.task("get", created["taskId"]))["status"] == "input_required"
            await wire.task("update", created["taskId"], inputResponses=given)
            assert (await wire.ended(created["taskId"]))["result"]["content"][0]["text"] == "Deleted."
            assert {one.state for one in await records(house.broker)} == {"succeeded"}


async def test_results_of_tasks_are_kept_for_their_lifetime(tmp_path: Path) -> None:
    async with holding(tmp_path) as house:
        wire = Wire(house.url, CALLER)
        created = await held(wire)
        call_id = (await records(house.broker, states=("held",)))[0].call_id
        await house.broker.desk.review(call_id, approve=True, reviewer=reviewer(), via="test")
        await until_state(house.broker, call_id, "succeeded")
        assert (await wire.ended(created["taskId"]))["status"] == "completed"
        begun_ms = (await records(house.broker))[0].at_ms
        house.broker.store._tidy_at = 0.0  # type: ignore[attr-defined]  # now, and not in a minute
        await house.broker.store.sweep(begun_ms + created["ttlMs"] - 1_000)
        assert (await wire.task("get", created["taskId"]))["result"]["content"][0]["text"] == "written"
        house.broker.store._tidy_at = 0.0  # type: ignore[attr-defined]
        await house.broker.store.sweep(begun_ms + created["ttlMs"] + 1_000)
        assert "no longer kept" in (await wire.task("get", created["taskId"]))["result"]["content"][0]["text"]


async def test_who_polls_all_the_time_never_sees_a_task_between_two_rounds(tmp_path: Path) -> None:
    async with reading(tmp_path, Conformance(is_plain=True), manifests=SLOW + OWN) as house:
        wire, seen = Wire(house.url, "ann", ABLE), list[Any]()
        for _ in range(5):
            created = await wire.call("confirm_delete")

            async def poll(task_id: str, last: str) -> None:
                while not seen or seen[-1] != last:
                    told = await Wire(house.url, "ann", ABLE).task("get", task_id)
                    seen.append(told.get("status", told))

            async with anyio.create_task_group() as polling:
                polling.start_soon(poll, created["taskId"], "completed")
                await wire.ended(created["taskId"], "input_required")
                given = {"confirm": {"action": "accept", "content": {"confirm": True}}}
                await wire.task("update", created["taskId"], inputResponses=given)
            assert set(seen) <= {"working", "input_required", "completed"}
            seen.clear()
