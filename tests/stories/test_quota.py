"""Quotas as agents meet them: loops are stopped and told so, tokens charged as reported, each bucket is somebody's."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import orjson
import pytest

from broker.assembly import Broker
from broker.errors import BrokerError, InvalidArguments, OverQuota, Unavailable
from broker.model.call import TASK_META
from broker.model.principal import Principal
from tests.ledger import Ledger, ledger_backend
from tests.records import HandClock
from tests.world import a_call, agent, broker_with, records, settings_in

pytestmark = pytest.mark.anyio

NOTES = """
kind: backend
name: notes
static: {}
---
kind: tool
name: look
effect: read
backend: notes
input: {type: object, properties: {n: {type: integer}, model: {type: string}}}
static: {text: looked}
---
"""
GONE = """
kind: backend
name: gone
http: {base_url: "http://127.0.0.1:9", allow_private: true}
---
kind: tool
name: ask
effect: read
backend: gone
input: {type: object, properties: {n: {type: integer}}}
http: {method: GET, path: /}
---
"""


def quota(name: str, limits: str, by: str, more: str = "") -> str:
    return f"kind: quota\nname: {name}\n{limits}\nby: [{by}]\n{more}\n---\n"


async def send(
    broker: Broker,
    tool: str,
    arguments: dict[str, Any] | None = None,
    who: Principal | None = None,
    task: object = None,
) -> str:
    """ "" when it went well, else the code."""
    try:
        await broker.pipeline.perform(
            a_call(tool, arguments or {}, who or agent(), meta={} if task is None else {TASK_META: task})
        )
    except BrokerError as error:
        return error.code
    return ""


async def test_the_same_call_again_and_again_is_stopped_and_the_agent_is_told_that_it_loops(tmp_path: Path) -> None:
    manifests = NOTES + quota("loop", "repeat: {limit: 3, per: 1m, cool_down: 5m}", "agent")
    clock = HandClock()
    async with Broker.open(settings_in(tmp_path, manifests), clock=clock) as broker:
        assert [await send(broker, "look", {"n": 1}) for _ in range(4)] == ["", "", "", "over_quota"]
        assert await send(broker, "look", {"n": 2}) == "", "another call is no loop"
        assert await send(broker, "look", {"n": 1}, agent("other")) == "", "nor is another agent's"
        with pytest.raises(OverQuota) as told:
            await broker.pipeline.perform(a_call("look", {"n": 1}, agent()))
        assert "loop" in told.value.message and "in 300 s" in told.value.next_step
        assert (told.value.facts["kind"], told.value.retry_after_ms) == ("repeat", 300_000)
        clock.at_ms += 299_999
        assert await send(broker, "look", {"n": 1}) == "over_quota", "asking again does not help, nor make it worse"
        clock.at_ms += 1
        assert await send(broker, "look", {"n": 1}) == ""


async def test_calls_that_fail_again_and_again_are_stopped_and_those_that_go_well_are_not(tmp_path: Path) -> None:
    manifests = NOTES + GONE + quota("wrong", "errors: {limit: 3, per: 1m, cool_down: 5m}", "agent")
    clock = HandClock()
    async with Broker.open(settings_in(tmp_path, manifests), clock=clock) as broker:
        for n in range(3):
            assert await send(broker, "look", {"n": n}) == ""
            assert await send(broker, "ask", {"n": n}) == Unavailable.code
        assert await send(broker, "ask", {"n": 3}) == "over_quota"
        with pytest.raises(OverQuota) as told:
            await broker.pipeline.perform(a_call("look", {}, agent()))
        assert "3 calls failed" in told.value.message
        (state,) = await broker.store.quotas(clock.at_ms)
        assert (state.quota, state.left, state.limit, state.unit, state.retry_after_ms) == (
            "wrong", 0, 3, "failures", 300_000,
        )  # fmt: skip
        assert await send(broker, "look", {}, agent("other")) == ""
        clock.at_ms += 300_000
        assert [await send(broker, "look") for _ in range(5)] == [""] * 5


@pytest.fixture
def ledger() -> Generator[Ledger]:
    with ledger_backend() as backend:
        yield backend


async def test_tokens_are_reserved_by_estimate_and_charged_as_the_backend_reports(
    tmp_path: Path, ledger: Ledger
) -> None:
    tool = f"""
kind: backend
name: ledger
http: {{base_url: "http://127.0.0.1:{ledger.server_port}", allow_private: true}}
---
kind: tool
name: think
effect: read
backend: ledger
input: {{type: object, properties: {{most: {{type: integer}}, model: {{type: string}}}}, required: [most]}}
http: {{method: POST, path: /}}
usage: {{tokens: number, EUR: "nothing.here"}}
---
"""  # the ledger answers with how many calls it had: 1, 2, 3 ...
    quotas = quota("budget", "tokens: {limit: 100, per: day, amount: args.most}", "agent, model")
    quotas += quota("purse", 'cost: {limit: 1, per: day, amount: "0.25", currency: EUR}', "agent")
    async with broker_with(tmp_path, tool + quotas) as broker:

        async def left() -> list[int]:
            return [state.left for state in await broker.store.quotas(broker.clock.now_ms())]

        assert await send(broker, "think", {"most": 90, "model": "M"}) == ""
        assert await left() == [99, 750_000], "1 token as reported; nobody reported money, so the estimate"
        assert await send(broker, "think", {"most": 99, "model": "m"}) == ""
        assert (await left())[0] == 97
        assert await send(broker, "think", {"most": 98, "model": "m"}) == "over_quota"
        assert await send(broker, "think", {"most": 98, "model": "other"}) == ""
        for wrong in (0, -1, 2**62):
            assert await send(broker, "think", {"most": wrong, "model": "m"}) == "forbidden", "no such price"
        assert len(ledger.received) == 3


async def test_a_group_pays_for_its_members_and_a_task_only_makes_a_bucket_smaller(tmp_path: Path) -> None:
    quotas = quota("groups", "count: {limit: 2, per: month}", "group", "groups: [sales, support]")
    quotas += quota("tasks", "count: {limit: 1, per: month}", "agent, task")
    quotas += quota("all", "count: {limit: 4, per: month}", "agent")
    both = agent("ann", groups={"Sales", "support"})
    async with broker_with(tmp_path, NOTES + quotas) as broker:
        assert [await send(broker, "look", who=both, task=f"t{n}") for n in range(3)] == [
            "",
            "",
            "over_quota",
        ]
        assert await send(broker, "look", who=agent("bea", groups={"sales"})) == "over_quota", "used up by ann"
        assert [await send(broker, "look", task="a") for _ in range(2)] == ["", "over_quota"]
        new = [await send(broker, "look", task=f"n{n}") for n in range(4)]
        assert new == ["", "", "", "over_quota"], "a new task is no way round the quota that has none"
        for wrong in ("", 7, "x" * 129, ["a"]):
            assert await send(broker, "look", who=agent("new"), task=wrong) == InvalidArguments.code
        denied = await records(broker, states=("denied",), code="over_quota")
        assert {one.quotas[0]["quota"] for one in denied} == {"groups", "tasks", "all"}


async def limits_of(broker: Broker, who: Principal) -> list[dict[str, Any]]:
    answer = await broker.pipeline.perform(a_call("broker_limits", {}, who))
    assert answer.structured is not None
    return answer.structured["limits"]


async def test_an_agent_reads_what_is_left_of_its_own_quotas_and_nothing_of_others(tmp_path: Path) -> None:
    quotas = quota("mine", "count: {limit: 5, per: month}", "agent") + quota("ours", "rate: {limit: 9, per: 1h}", "")
    quotas += quota("money", 'cost: {limit: 1, per: day, amount: "0.25", currency: EUR}', "user")
    quotas += quota("loop", "repeat: {limit: 3, per: 1m, cool_down: 5m}", "agent")
    quotas += quota("others", "count: {limit: 5, per: month}", "group", "groups: [sales]")
    ann, bea = agent("ann", user="u"), agent("bea", user="v")
    async with broker_with(tmp_path, NOTES + quotas) as broker:
        answer = await broker.pipeline.perform(a_call("look", {"n": 1}, ann))
        assert answer.meta is not None
        left = {one["quota"]: (one["left"], one["limit"], one["unit"]) for one in answer.meta["dev.broker/limits"]}
        assert left == {
            "mine": (4, 5, "calls"),
            "ours": (8, 9, "calls"),
            "money": ("0.75", "1.00", "EUR"),
            "loop": (2, 3, "calls"),
        }
        assert orjson.loads(answer.encoded()) == answer.result(), "as if it had been encoded at once"
        recorded = (await records(broker))[0]
        assert recorded.result_bytes < len(answer.encoded()), "the record is of what the backend answered"
        await broker.pipeline.perform(a_call("look", {"n": 1}, bea))

        told = {one["quota"]: (one["left"], one["whose"]) for one in await limits_of(broker, ann)}
        assert told == {"mine": (4, "agent=ann"), "ours": (7, ""), "money": ("0.75", "user=u")}
        told = {
            one["quota"]: (one["left"], one["whose"]) for one in await limits_of(broker, agent("cy", groups={"sales"}))
        }
        assert told == {
            "mine": (5, "agent=cy"), "ours": (7, ""), "money": ("1.00", "user=agent:cy"), "others": (5, "group=sales"),
        }  # fmt: skip
        assert len(await records(broker)) == 2, "asking is no call"
        with pytest.raises(InvalidArguments):
            await broker.pipeline.perform(a_call("broker_limits", {"agent": "bea"}, ann))

        call = a_call("resource:broker://limits", {"uri": "broker://limits"}, ann)
        call.asked = "resource"
        (content,) = (await broker.pipeline.perform(call)).more["contents"]
        assert content["uri"] == "broker://limits"
        assert {one["quota"] for one in orjson.loads(content["text"])["limits"]} == {"mine", "ours", "money"}
        assert [one["name"] for one in broker.pipeline.listing(ann)] == ["look", "broker_limits"]
        assert [one["uri"] for one in broker.pipeline.parts(ann).resources] == ["broker://limits"]


async def test_where_no_quota_applies_nothing_is_said_of_any(tmp_path: Path) -> None:
    async with broker_with(
        tmp_path, NOTES + GONE + quota("q", "count: {limit: 5, per: month}", "", "tools: [ask]")
    ) as broker:
        answer = await broker.pipeline.perform(a_call("look", {}, agent()))
        assert answer.meta is None
    async with broker_with(tmp_path, NOTES) as broker:
        assert [one["name"] for one in broker.pipeline.listing(agent())] == ["look"]
        assert broker.pipeline.parts(agent()).resources == ()
        assert await limits_of(broker, agent()) == []
