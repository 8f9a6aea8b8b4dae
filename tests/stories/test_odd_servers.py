"""A downstream server whose lists and answers have odd shapes: nobody but itself pays for it, and no agent is told less
or other than the record says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from mcp.shared.exceptions import MCPError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.library import client_of, reading
from tests.world import agent, perform, records

pytestmark = pytest.mark.anyio

IMPORT = """
kind: import
name: books
backend: library
effect: write
scopes: [library.read]
owner: shop
take: ["*"]
resources: {take: ["*"]}
prompts: {take: ["*"]}
"""
FIELDS = {
    "tools/list": "tools",
    "resources/list": "resources",
    "resources/templates/list": "resourceTemplates",
    "prompts/list": "prompts",
}
ERAS = ["auto", "legacy"]


def tool(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "description": "A tool.", "inputSchema": {"type": "object"}, **more}


class Odd:
    """A server of the 2026-07-28 revision that says what it is told to say. lists: by method. results: of tools/call,
    by the tool's name. rounds: what these say first."""

    def __init__(self, results: Any = None, **lists: list[Any]) -> None:
        self.results: dict[str, Any] = results or {}
        self.rounds: dict[str, Any] = {}
        self.lists = {"tools": [tool(name) for name in self.results], **lists}

    def app(self) -> Any:
        return Starlette(routes=[Route("/mcp", self.answer, methods=["POST"])])

    async def answer(self, request: Request) -> Response:
        asked = await request.json()
        if "id" not in asked:
            return Response(status_code=202)
        result = self.result(asked["method"], asked.get("params") or {})
        return JSONResponse({"jsonrpc": "2.0", "id": asked["id"], "result": {"resultType": "complete", **result}})

    def result(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        cached = {"ttlMs": 0, "cacheScope": "private"}
        if method == "server/discover":
            capabilities: dict[str, Any] = {"tools": {}, "resources": {}, "prompts": {}}
            info = {"name": "odd", "version": "1"}
            return {"supportedVersions": ["2026-07-28"], "capabilities": capabilities, "serverInfo": info, **cached}
        if field := FIELDS.get(method):
            return {field: self.lists.get(field, []), **cached}
        name = params.get("name") or params["uri"]
        if name in self.rounds and params.get("requestState") is None:
            return self.rounds[name]
        return self.results[name]


def house_of(folder: Path, server: Odd) -> Any:
    return reading(folder, server, manifests=IMPORT)


ODD_TOOLS: dict[str, dict[str, Any]] = {
    "annotations": {"annotations": "x"},
    "hint": {"annotations": {"readOnlyHint": [1]}},
    "icons": {"icons": 5},
    "icon": {"icons": [{"src": 5}]},
    "meta": {"_meta": "x"},
    "execution": {"execution": {"taskSupport": "maybe"}},
    "title": {"title": 5},
    "description": {"description": [1]},
    "properties": {"inputSchema": {"type": "object", "properties": {"a": 5}}},
    "required": {"inputSchema": {"type": "object", "required": [5]}},
    "schema": {"inputSchema": {"type": "object", "$schema": 5}},
    "output": {"outputSchema": {"type": "object", "properties": {"a": 5}}},
}
ODD_RESOURCES: dict[str, dict[str, Any]] = {
    "odd://size": {"size": "big"},
    "odd://type": {"mimeType": 5},
    "odd://name": {"name": 5},
    "odd://audience": {"annotations": {"audience": ["king"]}},
    "odd://priority": {"annotations": {"priority": 7}},
    "odd://title": {"title": {}},
}
ODD_PROMPTS: dict[str, dict[str, Any]] = {
    "text": {"arguments": "x"},
    "description": {"description": [1]},
    "required": {"arguments": [{"name": "a", "required": "often"}]},
    "described": {"arguments": [{"name": "a", "description": 5}]},
}


@pytest.mark.parametrize("mode", ERAS)
async def test_an_entry_no_client_could_read_is_left_out_and_the_others_are_listed(mode: str, tmp_path: Path) -> None:
    server = Odd(
        tools=[tool(name, **more) for name, more in ODD_TOOLS.items()] + [tool("good")],
        resources=[{"uri": uri, "name": "r", **more} for uri, more in ODD_RESOURCES.items()] + [{"uri": "odd://good"}],
        resourceTemplates=[
            {"uriTemplate": "odd:/{x}", "name": "t", "mimeType": 5},
            {"uriTemplate": "good:/{x}", "name": "t"},
        ],
        prompts=[{"name": name, **more} for name, more in ODD_PROMPTS.items()] + [{"name": "good"}],
    )
    async with house_of(tmp_path, server) as house, client_of(house, mode=mode) as client:
        tools = (await client.list_tools()).tools
        assert [one.name for one in tools] == ["good"]
        assert [str(one.uri) for one in (await client.list_resources()).resources] == ["odd://good"]
        templates = (await client.list_resource_templates()).resource_templates
        assert [one.uri_template for one in templates] == ["good:/{x}"]
        assert [one.name for one in (await client.list_prompts()).prompts] == ["good"]


TEXT = {"type": "text", "text": "hi"}
ODD_RESULTS: dict[str, Any] = {
    "unknown": {"content": [{"type": "hologram", "data": {}}]},
    "untyped": {"content": [{"text": "x"}]},
    "number": {"content": [{"type": "text", "text": 5}]},
    "data": {"content": [{"type": "image", "data": 5, "mimeType": "image/png"}]},
    "mime": {"content": [{"type": "audio", "data": "AA=="}]},
    "priority": {"content": [TEXT, {**TEXT, "annotations": {"priority": 7}}]},
    "block_meta": {"content": [{**TEXT, "_meta": 5}]},
    "embedded": {"content": [{"type": "resource", "resource": {"uri": "file:///x"}}]},
    "link": {"content": [{"type": "resource_link", "uri": "file:///x"}]},
    "error": {"content": [TEXT], "isError": "false"},
    "meta": {"content": [TEXT], "_meta": "x"},
    "null": {"content": [None]},
    "none": {},
}
FINE_RESULTS: dict[str, Any] = {
    "text": {"content": [{**TEXT, "annotations": {"priority": 1}, "_meta": {"a/b": 1}}], "isError": None},
    "image": {"content": [{"type": "image", "data": "AA==", "mimeType": "image/png"}]},
    "linked": {"content": [{"type": "resource_link", "uri": "file:///x", "name": "x"}]},
    "contained": {"content": [{"type": "resource", "resource": {"uri": "file:///x", "text": "x"}}]},
    "empty": {"content": []},
}


@pytest.mark.parametrize("mode", ERAS)
async def test_an_answer_no_client_could_read_is_withheld_in_every_era_and_recorded_so(
    mode: str, tmp_path: Path
) -> None:
    server = Odd({**ODD_RESULTS, **FINE_RESULTS})
    async with house_of(tmp_path, server) as house, client_of(house, mode=mode) as client:
        for name in FINE_RESULTS:
            assert not (await client.call_tool(name, {})).is_error
        for name in ODD_RESULTS:
            told = await client.call_tool(name, {})
            assert told.is_error, name
            assert told.structured_content["code"] == "answer_withheld"
            assert "is not a tool result" in told.structured_content["message"]
        ended = await records(house.broker, limit=100)
    assert {one.tool for one in ended if one.code == "answer_withheld"} == set(ODD_RESULTS)
    assert {one.tool for one in ended if one.state == "succeeded"} == set(FINE_RESULTS)


ODD_PARTS: dict[str, Any] = {
    "role": {"messages": [{"role": "king", "content": TEXT}]},
    "content": {"messages": [{"role": "user", "content": {"type": "hologram"}}]},
    "odd://blob": {"contents": [{"uri": "odd://blob", "blob": 5}]},
    "odd://neither": {"contents": [{"uri": "odd://neither"}]},
    "odd://nowhere": {"contents": [{"text": "x"}]},
}


@pytest.mark.parametrize("mode", ERAS)
async def test_the_same_of_what_is_read_and_got(mode: str, tmp_path: Path) -> None:
    prompts = [{"name": name} for name in ODD_PARTS if "/" not in name]
    resources = [{"uri": name, "name": "r"} for name in ODD_PARTS if "/" in name]
    async with (
        house_of(tmp_path, Odd(ODD_PARTS, prompts=prompts, resources=resources, tools=[])) as house,
        client_of(house, mode=mode) as client,
    ):
        for name in ODD_PARTS:
            with pytest.raises(MCPError, match="is not as MCP has it") as error:
                await (client.read_resource(name) if "/" in name else client.get_prompt(name))
            assert error.value.error.data["code"] == "answer_withheld"
        assert {one.code for one in await records(house.broker)} == {"answer_withheld"}


QUESTION = {"method": "elicitation/create", "params": {"message": "Who?", "requestedSchema": {"type": "object"}}}
ODD_QUESTIONS: dict[str, Any] = {
    "undeclared": {"inputRequests": {"a": QUESTION}, "requestState": "s"},
    "list": {"inputRequests": [1], "requestState": "s"},
    "foreign": {"inputRequests": {"a": {"method": "tools/call"}}},
    "nothing": {},
}


async def test_a_caller_that_can_be_asked_nothing_is_asked_nothing(tmp_path: Path) -> None:
    asking = {name: {"resultType": "input_required", **more} for name, more in ODD_QUESTIONS.items()}
    async with house_of(tmp_path, Odd(asking)) as house, client_of(house) as client:
        for name in asking:
            told = await client.call_tool(name, {})
            assert (told.is_error, told.structured_content["code"]) == (True, "answer_withheld"), name
            assert "asks" in told.structured_content["message"]
        assert {one.code for one in await records(house.broker)} == {"answer_withheld"}


@pytest.mark.parametrize("mode", ERAS)
async def test_structured_content_may_be_any_json_and_the_older_eras_read_it_as_text(mode: str, tmp_path: Path) -> None:
    """Any value since 2026-07-28; an object, and a schema of one, before."""
    given: dict[str, Any] = {"list": [1, "a"], "word": "x", "number": 0, "false": False}
    server = Odd({name: {"content": [], "structuredContent": value} for name, value in given.items()})
    server.results["bad"] = {"content": [TEXT], "structuredContent": ["a"]}
    server.lists["tools"] = [tool(name, outputSchema={"enum": [value]}) for name, value in given.items()]
    server.lists["tools"] += [tool("bad", outputSchema={"type": "array", "items": {"type": "integer"}})]
    async with house_of(tmp_path, server) as house, client_of(house, mode=mode) as client:
        tools = (await client.list_tools()).tools
        assert [one.name for one in tools] == sorted([*given, "bad"])
        assert {one.output_schema is None for one in tools} == {mode == "legacy"}
        for name, value in given.items():
            told = await client.call_tool(name, {})
            if mode == "legacy":
                assert told.structured_content is None
                assert [orjson.loads(getattr(block, "text", "")) for block in told.content] == [value]
            else:
                assert (told.structured_content, told.content) == (value, [])
        withheld = await client.call_tool("bad", {})
        assert "must be an integer" in withheld.structured_content["message"]


@pytest.mark.parametrize("who", ["auto", "legacy", "nobody"])
async def test_a_server_that_wants_another_round_gets_it_of_whoever_calls(who: str, tmp_path: Path) -> None:
    """It asks nothing of the caller. One that has no rounds – over REST, at the command line, of a call that was held –
    is not told that something half done is the result."""
    server = Odd({"slow": {"content": [TEXT]}})
    server.rounds["slow"] = {"resultType": "input_required", "requestState": "later"}
    async with house_of(tmp_path, server) as house:
        if who == "nobody":
            done = await perform(house.broker, "slow", caller=agent(scopes=["library.read"]))
            assert (list(done.content), done.is_final) == ([TEXT], True)
        else:
            async with client_of(house, mode=who) as client:
                assert (await client.call_tool("slow", {})).content[0].type == "text"
        rounds = 2 if who == "auto" else 1
        assert [one.state for one in await records(house.broker)] == ["succeeded"] * rounds
