"""Held calls that the agent's own user may confirm: signed in as that user, in a browser, and in no other way."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import httpx2
import mcp_types as types
import pytest
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client

from tests.premises import House, house_with
from tests.stories.test_console import browsing, hidden, sign_in
from tests.tasking import NOTES, TAKES_TASKS, Wire
from tests.world import records

pytestmark = pytest.mark.anyio

RULES = (
    NOTES
    + """
kind: policy
name: notes
tools: [note_write]
rules:
  - {id: own, when: args.amount > 10.0, effect: hold, reason: your user has to know, confirm: caller}
  - {id: huge, when: args.amount > 1000.0, effect: hold, reason: somebody else has to look}
"""
)
VISITS: dict[str, Any] = {"elicitation": {"url": {}}}


@asynccontextmanager
async def living(folder: Path, **keys: Any) -> AsyncGenerator[House]:
    async with house_with(folder, RULES, hold={"wait_s": 5}, **keys) as house:
        for name in ("ann", "bob"):
            house.person(name, ["notes.write"])
        yield house


async def confirm(house: House, name: str, url: str, decision: str = "approve") -> httpx2.Response:
    """What a person does who is shown this URL."""
    path = urlsplit(url).path
    async with browsing(house) as http:
        page = await sign_in(http, house, name, path)
        if page.status_code != 200:
            return page
        form = {"csrf": hidden(page, "csrf"), "reason": "not now" if decision == "deny" else ""}
        return await http.post(f"{path}/{decision}", data=form, headers={"Origin": house.url})


class Person:
    """The user in front of the agent: confirms, denies, or closes the page. shown: each URL."""

    def __init__(self, house: House, decision: str = "approve") -> None:
        self._house, self._decision = house, decision
        self.shown: list[str] = []

    async def __call__(self, context: Any, params: Any) -> types.ElicitResult:
        self.shown.append(params.url)
        if self._decision == "decline":
            return types.ElicitResult(action="decline")
        assert (await confirm(self._house, "ann", params.url, self._decision)).status_code == 200
        return types.ElicitResult(action="accept")


@asynccontextmanager
async def agent_of_ann(house: House, mode: Any, person: Person) -> AsyncGenerator[Client]:
    headers = {"Authorization": f"Bearer {house.token('ann')}"}
    async with httpx2.AsyncClient(headers=headers, timeout=20) as http:
        wire: Any = streamable_http_client(f"{house.url}/mcp", http_client=http)
        async with Client(wire, mode=mode, elicitation_callback=person) as client:
            yield client


@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_the_agents_own_user_confirms_in_the_browser_and_the_call_goes_on_once(mode: str, tmp_path: Path) -> None:
    async with living(tmp_path) as house:
        person = Person(house)
        async with agent_of_ann(house, mode, person) as client:
            answer = await client.call_tool("note_write", {"amount": 50})
        assert "written" in str(answer.content)
        (done,) = await records(house.broker, tool="note_write")
        assert done.state == "succeeded"
        assert person.shown == [f"{house.url}/console/holds/{done.call_id}"]
        assert done.hold is not None
        assert (done.hold.reviewer, [one.via for one in done.hold.approvals]) == (f"ann@{house.url}", ["console"])


@pytest.mark.parametrize("mode", ["legacy", "auto"])
@pytest.mark.parametrize(("decision", "state"), [("deny", "rejected"), ("decline", "withdrawn")])
async def test_a_user_who_will_not_ends_the_call(mode: str, decision: str, state: str, tmp_path: Path) -> None:
    async with living(tmp_path) as house:
        async with agent_of_ann(house, mode, Person(house, decision)) as client:
            answer = await client.call_tool("note_write", {"amount": 50})
        assert answer.is_error
        assert ("not now" in str(answer.content)) == (decision == "deny")
        assert [one.state for one in await records(house.broker, tool="note_write")] == [state]


async def test_nobody_else_and_no_program_confirms_for_the_user(tmp_path: Path) -> None:
    async with living(tmp_path) as house:
        wire = Wire(house.url, house.token("ann"), VISITS)
        asked = await wire.call("note_write", {"amount": 50})
        assert asked["resultType"] == "input_required"
        question = asked["inputRequests"]["confirm"]
        url: str = question["params"]["url"]
        call_id = url.rpartition("/")[2]
        assert (question["method"], question["params"]["mode"]) == ("elicitation/create", "url")
        assert (await confirm(house, "bob", url)).status_code == 404
        program = await house.post(f"/api/holds/{call_id}/approve", "ann")  # the agent has such a token of ann's, too
        assert program.status_code == 403
        (waiting,) = await records(house.broker, tool="note_write")
        assert waiting.state == "held"
        params = {"name": "note_write", "arguments": {"amount": 50}, "requestState": asked["requestState"]}
        given = {"inputResponses": {"confirm": {"action": "accept", "content": {"approved": True}}}}
        for user in ("ann", "bob"):  # what a client says confirms nothing, and a state is its caller's and good once
            again = Wire(house.url, house.token(user), VISITS)
            answer = await again.ask("tools/call", "note_write", {**params, **given})
            if user == "ann":
                assert answer["result"]["structuredContent"]["code"] == "held"
            else:
                assert answer["error"]["code"] == -32602
        spent = await wire.ask("tools/call", "note_write", {**params, **given})
        assert spent["error"]["data"]["reason"] == "invalid_request_state"
        assert [one.state for one in await records(house.broker, tool="note_write")] == ["held"]


async def test_where_a_rule_asks_somebody_else_the_user_does_not_confirm(tmp_path: Path) -> None:
    async with living(tmp_path) as house:
        house.person("rita", ["broker.review"])
        wire = Wire(house.url, house.token("ann"), {**VISITS, **TAKES_TASKS})
        created = await wire.call("note_write", {"amount": 5000})  # both rules hold it: the stricter one counts
        assert (created["resultType"], created["status"]) == ("task", "working")
        (waiting,) = await records(house.broker, tool="note_write")
        url = f"{house.url}/console/holds/{waiting.call_id}"
        assert (await confirm(house, "ann", url)).status_code in (400, 403)
        assert (await confirm(house, "rita", url)).status_code == 200
        with anyio.fail_after(10):
            assert (await wire.ended(created["taskId"]))["result"]["content"][0]["text"] == "written"


async def test_the_user_confirms_the_call_as_it_is_and_no_other(tmp_path: Path) -> None:
    async with living(tmp_path) as house:
        asked = await Wire(house.url, house.token("ann"), VISITS).call("note_write", {"amount": 50})
        url: str = asked["inputRequests"]["confirm"]["params"]["url"]
        path = urlsplit(url).path
        async with browsing(house) as http:
            page = await sign_in(http, house, "ann", path)
            form = {"csrf": hidden(page, "csrf"), "arguments": '{"amount": 49}', "sure": "1", "reason": "less"}
            refused = await http.post(f"{path}/edit", data=form, headers={"Origin": house.url})
        assert refused.status_code == 403
        assert [one.state for one in await records(house.broker, tool="note_write")] == ["held"]


async def test_who_declared_nothing_is_told_that_the_call_is_held(tmp_path: Path) -> None:
    async with living(tmp_path) as house:
        told = await Wire(house.url, house.token("ann"), {"elicitation": {}}).call("note_write", {"amount": 50})
        assert told["structuredContent"]["code"] == "held"
