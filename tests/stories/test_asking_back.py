"""What a server asks in the middle of a call reaches the one who called, if that one can be asked, and nobody else."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import anyio
import httpx2
import mcp_types as types
import orjson
import pytest
from mcp.shared.exceptions import MCPDeprecationWarning, MCPError

from broker.faces.mcp.events import Events
from broker.model.back import undeclared
from tests.asking import ABLE, CALLER, MANIFEST, QUESTIONS, Asking, Speaks, elicited
from tests.library import Reading, client_of, reading
from tests.serving import modern, modern_headers
from tests.world import records

pytestmark = pytest.mark.anyio

PAIRS = [(mode, speaks) for mode in ("legacy", "auto") for speaks in ("handshake", "modern")]
DECLARED = "io.modelcontextprotocol/clientCapabilities"


def house_of(tmp_path: Path, server: Asking, **keys: Any) -> Any:
    return reading(tmp_path, server, manifests=keys.pop("manifests", MANIFEST), **keys)


@pytest.mark.parametrize(("mode", "speaks"), PAIRS)
async def test_questions_of_every_kind_are_answered_by_the_caller(mode: str, speaks: Speaks, tmp_path: Path) -> None:
    server = Asking(speaks)
    async with house_of(tmp_path, server) as house, client_of(house, mode=mode, token=CALLER, **ABLE) as client:
        for tool, words in (("name", "Ann"), ("sign", "accept"), ("sample", "Because."), ("roots", "file:///home/ann")):
            assert words in str((await client.call_tool(tool, {})).content)
        assert len(server.seen) == 4
        ended = await records(house.broker)
    rounds = 2 if mode == "auto" else 1
    assert [one.tool for one in ended] == [tool for tool in ("roots", "sample", "sign", "name") for _ in range(rounds)]
    assert {one.state for one in ended} == {"succeeded"}


@pytest.mark.parametrize(("mode", "speaks"), PAIRS)
async def test_only_what_the_caller_declared_is_asked(mode: str, speaks: Speaks, tmp_path: Path) -> None:
    server = Asking(speaks)
    only: dict[str, Any] = {"elicitation_callback": elicited}
    async with house_of(tmp_path, server) as house, client_of(house, mode=mode, token=CALLER, **only) as client:
        assert "Ann" in str((await client.call_tool("name", {})).content)
        for tool in ("sample", "roots"):
            result = await client.call_tool(tool, {})
            assert result.is_error or "did not declare" in str(result.content)
    assert len(server.seen) == 1
    assert all(not {"sampling", "roots"} & declared.keys() for declared in server.declared)


def test_elicitation_without_a_mode_is_by_form() -> None:
    form, url = QUESTIONS["name"][1], QUESTIONS["sign"][1]
    assert undeclared("elicitation/create", form, {"elicitation": {}}) is None
    assert undeclared("elicitation/create", url, {"elicitation": {}}) == {"elicitation": {"url": {}}}
    assert undeclared("elicitation/create", form, {"elicitation": {"url": {}}}) == {"elicitation": {"form": {}}}
    assert undeclared("sampling/createMessage", {"tools": []}, {"sampling": {}}) == {"sampling": {"tools": {}}}


class Rounds:
    """Raw requests of one modern caller."""

    def __init__(self, house: Reading, token: str = CALLER) -> None:
        self._house, self._token, self._id = house, token, 0

    async def call(self, tool: str, arguments: Any = None, meta: Any = None, **more: Any) -> tuple[int, dict[str, Any]]:
        self._id += 1
        params: dict[str, Any] = {"name": tool, "arguments": arguments or {}, **more}
        body = modern("tools/call", params, request_id=self._id, **(meta or {}))
        body["params"]["_meta"][DECLARED] = {"elicitation": {}, "sampling": {}}
        headers = modern_headers("tools/call", tool, token=self._token)
        async with httpx2.AsyncClient(timeout=20) as http:
            answer = await http.post(f"{self._house.url}/mcp", json=body, headers=headers)
        text = answer.text
        if answer.headers["content-type"].startswith("text/event-stream"):
            text = next(line for line in text.splitlines() if line.startswith("data: {")).removeprefix("data: ")
        return answer.status_code, orjson.loads(text)


@pytest.mark.parametrize("speaks", ["handshake", "modern"])
async def test_a_state_is_for_one_caller_one_call_and_one_time(speaks: Speaks, tmp_path: Path) -> None:
    server = Asking(speaks)
    async with house_of(tmp_path, server) as house:
        ann, bob = Rounds(house), Rounds(house, "bob")
        _, asked = await ann.call("name")
        result = asked["result"]
        assert result["resultType"] == "input_required"
        assert not {"content", "isError"} & result.keys()
        name, state = next(iter(result["inputRequests"])), result["requestState"]
        assert "own state" not in state
        given = {"inputResponses": {name: {"action": "accept", "content": {"name": "Ann"}}}, "requestState": state}

        refused = [
            await bob.call("name", **given),
            await ann.call("sign", **given),
            await ann.call("name", {"other": 1}, **given),
            await ann.call("name", **{**given, "requestState": state[:-2] + "AA"}),
            await ann.call("name", **{**given, "requestState": state + "x"}),
            await ann.call("name", **{**given, "requestState": state + "==x"}),
            await ann.call("name", **{**given, "requestState": "!" + state}),
            await ann.call("name", **{**given, "requestState": "x"}),
            await ann.call("name", **{**given, "requestState": 7}),
        ]
        for status, answer in refused:
            assert (status, answer["error"]["code"]) == (400, -32602)
        assert server.seen == []

        status, done = await ann.call("name", **given)
        assert (status, done["result"]["resultType"]) == (200, "complete")
        status, again = await ann.call("name", **given)
        assert (status, again["error"]["code"]) == (400, -32602)
        assert "used already" in again["error"]["message"]
        assert len(server.seen) == 1
        spent = (await records(house.broker))[0]
        assert (spent.state, spent.effect, spent.code) == ("failed", "none", "state_spent")


class Orders(Asking):
    """Its one tool takes an order."""

    async def listed(self, ctx: Any, _params: Any) -> types.ListToolsResult:
        self.sessions.append(ctx.session)
        schema: dict[str, Any] = {"type": "object", "properties": {"order": {"type": "string"}}, "required": ["order"]}
        return types.ListToolsResult(tools=[types.Tool(name="name", input_schema=schema)])


@pytest.mark.parametrize("derived", [False, True])
async def test_a_call_with_a_key_goes_through_its_rounds_once(derived: bool, tmp_path: Path) -> None:
    """Whether the client names the call or the tool does: each round is a request of its own, its repetition is not."""
    server, more = Orders("modern"), {"order": "7"}
    manifest = MANIFEST + ("tools: {name: {idempotency: {from: [order]}}}\n" if derived else "")
    key = {} if derived else {"dev.broker/idempotencyKey": "k"}
    async with house_of(tmp_path, server, manifests=manifest) as house:
        ann = Rounds(house)
        _, asked = await ann.call("name", more, meta=key)
        state = asked["result"]["requestState"]
        given = {"inputResponses": {"name": {"action": "accept", "content": {"name": "Ann"}}}, "requestState": state}
        _, done = await ann.call("name", more, meta=key, **given)
        assert "Ann" in str(done["result"]["content"])
        _, again = await ann.call("name", more, meta=key, **given)
        assert again["result"]["content"] == done["result"]["content"]
        assert "dev.broker/replayed" in again["result"]["_meta"]
        _, begun = await ann.call("name", more, meta=key)
        assert begun["result"]["resultType"] == "input_required"
        assert (len(server.asked), len(server.seen)) == (2, 1)


async def test_every_round_is_authorised_anew(tmp_path: Path) -> None:
    quota = "kind: quota\nname: one\ntools: [name]\ncount: {limit: 1, per: day}\nby: [agent]\n---"
    server = Asking("modern")
    async with house_of(tmp_path, server, manifests=quota + MANIFEST) as house:
        ann = Rounds(house)
        _, asked = await ann.call("name")
        state = asked["result"]["requestState"]
        given = {"inputResponses": {"name": {"action": "decline"}}, "requestState": state}
        _, refused = await ann.call("name", **given)
        assert refused["result"]["structuredContent"]["code"] == "over_quota"
        assert server.seen == []


async def test_a_missing_capability_is_an_error_that_names_it(tmp_path: Path) -> None:
    server = Asking("both")
    async with house_of(tmp_path, server) as house, client_of(house, token=CALLER) as client:
        with pytest.raises(MCPError) as error:
            await client.call_tool("able", {})
        assert (error.value.error.code, error.value.error.data) == (-32021, {"requiredCapabilities": {"sampling": {}}})
        status, _ = await Rounds(house).call("able")
        assert status == 200


@pytest.mark.parametrize(("mode", "speaks"), PAIRS)
async def test_logs_go_to_who_asked_for_them_from_the_level_it_asked_for(
    mode: str, speaks: Speaks, tmp_path: Path
) -> None:
    server = Asking(speaks)
    heard: list[Any] = []

    async def hear(params: types.LoggingMessageNotificationParams) -> None:
        heard.append((params.level, params.data, params.logger))

    more: dict[str, Any] = {"logging_callback": hear}
    async with house_of(tmp_path, server) as house, client_of(house, mode=mode, token=CALLER, **more) as client:
        if mode == "legacy":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", MCPDeprecationWarning)
                await client.set_logging_level("info")  # pyright: ignore[reportDeprecated]
            await client.call_tool("log", {})
        else:
            await client.call_tool("log", {}, meta={"io.modelcontextprotocol/logLevel": "info"})
        with anyio.fail_after(5):
            while len(heard) < 2:
                await anyio.sleep(0.01)
        assert heard == [("info", "an info", "here"), ("error", "an error", "here")]
        if mode == "auto":
            heard.clear()
            await client.call_tool("log", {})
            assert heard == []
    if (mode, speaks) == ("legacy", "handshake"):
        assert server.levels == ["info"]


async def test_agents_that_can_be_asked_have_sessions_of_their_own_while_theirs_last(tmp_path: Path) -> None:
    async with house_of(tmp_path, Asking("handshake")) as house:
        backend: Any = house.broker.backends["library"]
        own = backend._routes._own
        async with (
            client_of(house, mode="legacy", token="ann", **ABLE) as ann,
            client_of(house, mode="legacy", token="bob", **ABLE) as bob,
        ):
            await ann.call_tool("name", {})
            await bob.call_tool("name", {})
            assert len(own) == 2
        with anyio.fail_after(10):
            while len(own):
                await anyio.sleep(0.01)


async def test_servers_are_spared_more_sessions_than_their_limit(tmp_path: Path) -> None:
    async with house_of(tmp_path, Asking("handshake")) as house:
        backend: Any = house.broker.backends["library"]
        own = backend._routes._own
        own._most = 1
        async with (
            client_of(house, mode="legacy", token="ann", **ABLE) as ann,
            client_of(house, mode="legacy", token="bob", **ABLE) as bob,
            anyio.create_task_group() as tasks,
        ):
            await ann.call_tool("name", {})
            assert "Ann" in str((await bob.call_tool("name", {})).content)  # in the place of one that is not used
            assert len(own) == 1
            tasks.start_soon(bob.call_tool, "wait")
            while next(iter(own._links.values())).is_idle:
                await anyio.sleep(0.01)
            refused = await ann.call_tool("name", {})
            assert refused.is_error
            assert "limit `sessions`" in str(refused.content)
            tasks.cancel_scope.cancel()


async def test_a_session_is_told_only_its_own_events() -> None:
    events = Events()
    ann, bob = events.of_session(), events.of_session()
    first = await ann.store_event("1", None)
    said = types.JSONRPCNotification(jsonrpc="2.0", method="notifications/x")
    await ann.store_event("1", said)
    await ann.store_event("2", said)
    await bob.store_event("1", said)
    got: list[Any] = []

    async def send(event: Any) -> None:
        got.append(event.event_id)

    assert await ann.replay_events_after(first, send) == "1"
    assert got == ["2"]
    for wrong in ("999", "-1", "x", "", "9" * 400):
        assert await ann.replay_events_after(wrong, send) is None
    assert await bob.replay_events_after(first, send) is None
    assert got == ["2"]


async def test_events_are_bounded_and_the_oldest_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    from broker.faces.mcp import events as module

    monkeypatch.setattr(module, "EVENT_BYTES", 1000)
    events = Events()
    ann = events.of_session()
    said = types.JSONRPCNotification(jsonrpc="2.0", method="notifications/" + "x" * 100)
    for _ in range(50):
        await ann.store_event("1", said)
    assert events.size_bytes <= 1000
    assert 0 < len(events) < 50
    huge = types.JSONRPCNotification(jsonrpc="2.0", method="notifications/" + "x" * 2000)
    kept = await ann.store_event("1", huge)
    assert events.after(ann, kept) is None
    assert len(events) > 0
