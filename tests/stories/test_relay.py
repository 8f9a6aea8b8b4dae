"""Resources, templates, prompts and completions pass through the broker, governed as tools are, in every pairing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import httpx2
import mcp_types as types
import pytest
from mcp.client.client import Client
from mcp.shared.exceptions import MCPError
from mcp.shared.subscriptions import ResourcesListChanged

from broker.errors import Held
from broker.faces.mcp import relay
from tests.library import IMPORT, READER, Library, client_of, reading
from tests.serving import modern, modern_headers
from tests.world import agent, perform, records, reviewer, until_state

pytestmark = pytest.mark.anyio

PAIRINGS = [
    *((transport, mode, legacy) for transport in ("http", "sse") for mode in ("auto", "legacy") for legacy in (False,)),
    ("http", "auto", True),
    ("http", "legacy", True),
    ("stdio", "auto", False),
    ("stdio", "legacy", True),
]
STDIO: dict[str, Any] = {"stdio": {"agent": "desk", "scopes": ["library.read"]}}


def subscribe(uri: str) -> types.SubscribeRequest:
    return types.SubscribeRequest(params=types.SubscribeRequestParams(uri=uri))


def unsubscribe(uri: str) -> types.UnsubscribeRequest:
    return types.UnsubscribeRequest(params=types.UnsubscribeRequestParams(uri=uri))


async def error_of(asked: Any) -> MCPError:
    with pytest.raises(MCPError) as raised:
        await asked
    return raised.value


@pytest.mark.parametrize(("transport", "mode", "legacy"), PAIRINGS)
async def test_everything_but_tools_passes(transport: str, mode: str, legacy: bool, tmp_path: Path) -> None:
    library = Library(legacy=legacy)
    async with reading(tmp_path, library, **STDIO) as house, client_of(house, transport, mode) as client:
        listed = await client.list_resources()
        assert [str(one.uri) for one in listed.resources] == ["book://emma", "book://ulysses"]
        assert listed.resources[0].meta == {"x/y": 1}
        templates = await client.list_resource_templates()
        assert [one.uri_template for one in templates.resource_templates] == ["page://{book}/{number}"]
        prompts = await client.list_prompts()
        assert [one.name for one in prompts.prompts] == ["review"]

        book = await client.read_resource("book://emma")
        assert isinstance(book.contents[0], types.TextResourceContents)
        assert (book.contents[0].text, book.contents[0].meta) == ("book://emma of main", {"x/z": 2})
        assert (book.meta or {})["dev.example/kept"] is True
        assert str((book.meta or {}).get("io.modelcontextprotocol/serverInfo", "broker")).count("library") == 0
        page = await client.read_resource("page://emma/12")
        assert isinstance(page.contents[0], types.TextResourceContents)
        assert page.contents[0].text == "page://emma/12 of main"

        review = await client.get_prompt("review", {"book": "emma"})
        assert review.description == "a review"
        assert "{'book': 'emma'} for main" in str(review.messages[0].content)

        reference = types.PromptReference(type="ref/prompt", name="review")
        found = await client.complete(reference, {"name": "style", "value": "x"}, {"book": "emma"})
        assert found.completion.values == ["xa", "xb", "emma"]
        pages = types.ResourceTemplateReference(type="ref/resource", uri="page://{book}/{number}")
        assert (await client.complete(pages, {"name": "number", "value": "1"})).completion.values == ["1a", "1b"]

        missing = await error_of(client.read_resource("page://emma/999"))
        assert "no such page" in missing.error.message
        assert missing.error.code == (-32602 if mode == "auto" else -32002)


async def test_what_is_not_taken_does_not_exist_and_is_asked_of_nobody(tmp_path: Path) -> None:
    library = Library()
    async with reading(tmp_path, library) as house:
        for mode, code in (("auto", -32602), ("legacy", -32002)):
            async with client_of(house, mode=mode) as client:
                hidden = ["book://secret/plan", "page://secret/1", "page://%73ecret/1", "book://nothing", "file:///etc"]
                for uri in hidden:
                    error = await error_of(client.read_resource(uri))
                    assert (error.error.code, error.error.message) == (code, f"Unknown resource: {uri}")
                for name in ("gossip", "nothing"):
                    error = await error_of(client.get_prompt(name))
                    assert (error.error.code, error.error.message) == (-32602, f"Unknown prompt: {name}")
                gossip = types.PromptReference(type="ref/prompt", name="gossip")
                assert (await error_of(client.complete(gossip, {"name": "a", "value": ""}))).error.code == -32602
        assert library.asked == []
        denied = await records(house.broker, states=("denied",))
        assert {one.code for one in denied} == {"unknown_tool"}
        assert {"resource:file:///etc", "prompt:gossip", "completion:prompt:gossip"} <= {one.tool for one in denied}


async def test_a_tool_call_cannot_reach_a_resource_nor_a_read_a_tool(tmp_path: Path) -> None:
    library = Library()
    async with reading(tmp_path, library) as house, client_of(house) as client:
        for name in ("resource:book://emma", "prompt:review"):
            assert "Unknown tool" in (await error_of(client.call_tool(name, {"uri": "book://emma"}))).error.message
        assert (await error_of(client.read_resource("prompt:review"))).error.code == -32602
        assert library.asked == []


async def test_without_resources_and_prompts_in_the_import_none_are_shown(tmp_path: Path) -> None:
    tools_only = "\nkind: import\nname: library\nbackend: library\neffect: read\ntake: ['*']\n"
    async with reading(tmp_path, Library(), manifests=tools_only) as house, client_of(house) as client:
        assert (await client.list_resources()).resources == []
        assert (await client.list_prompts()).prompts == []
        assert (await error_of(client.read_resource("book://emma"))).error.code == -32602


async def test_missing_scopes_hide_from_lists_and_are_challenged(tmp_path: Path) -> None:
    async with reading(tmp_path, Library()) as house:
        async with client_of(house, token="ann") as client:
            assert (await client.list_resources()).resources == []
            assert (await client.list_prompts()).prompts == []
        async with httpx2.AsyncClient(base_url=house.url, timeout=10) as http:
            body = modern("resources/read", {"uri": "book://emma"})
            refused = await http.post("/mcp", json=body, headers=modern_headers("resources/read", "book://emma"))
            assert refused.status_code == 403
            assert 'scope="library.read"' in refused.headers["www-authenticate"]
            headers = modern_headers("resources/read", "book://emma", token=READER)
            read = (await http.post("/mcp", json=body, headers=headers)).json()["result"]
            assert (read["cacheScope"], read["resultType"]) == ("private", "complete")
            listed = await http.post(
                "/mcp", json=modern("prompts/list"), headers=modern_headers("prompts/list", token=READER)
            )
            assert listed.json()["result"]["cacheScope"] == "private"
        last = await records(house.broker)
        assert [(one.tool, one.state, one.code) for one in last] == [
            ("resource:book://emma", "succeeded", ""),
            ("resource:book://emma", "denied", "insufficient_scope"),
        ]
        async with client_of(house, "sse", token="ann") as client:
            error = await error_of(client.get_prompt("review", {"book": "emma"}))
            assert (error.error.code, error.error.data["code"]) == (403, "insufficient_scope")


GOVERNED = (
    IMPORT
    + """
---
kind: policy
name: reading
tools: ["resource:*"]
rules:
  - {id: ulysses, when: 'has(args.uri) && args.uri == "book://ulysses"', effect: deny, reason: not before noon.}
---
kind: policy
name: styles
tools: ["prompt:review"]
rules:
  - {id: rude, when: 'has(args.style) && args.style == "rude"', effect: deny, reason: be kind.}
---
kind: quota
name: twice
tools: ["resource:book://emma"]
count: {limit: 2, per: day}
by: [agent]
---
kind: toolset
name: readers
for: {agents: [ann]}
tools: ["resource:*", "prompt:review"]
---
"""
)


async def test_rules_quotas_and_toolsets_mean_them_by_name(tmp_path: Path) -> None:
    library = Library()
    async with reading(tmp_path, library, manifests=GOVERNED) as house:
        async with client_of(house) as client:
            forbidden = (await error_of(client.read_resource("book://ulysses"))).error
            assert (forbidden.code, forbidden.data["rule"]) == (403, "reading/ulysses")
            assert forbidden.message.startswith("Refused: rule reading/ulysses forbids")
            rude = (await error_of(client.get_prompt("review", {"book": "emma", "style": "rude"}))).error
            assert rude.data["rule"] == "styles/rude"
            wrong = (await error_of(client.get_prompt("review", {"book": "emma", "mood": "rude"}))).error
            assert wrong.code == -32602
            assert library.asked == []
            for _ in range(2):
                await client.read_resource("book://emma", cache_mode="bypass")
            over = (await error_of(client.read_resource("book://emma", cache_mode="bypass"))).error
            assert (over.code, over.data["code"]) == (429, "over_quota")
            assert len(library.asked) == 2
        async with client_of(house, token="bob~library.read") as other:
            assert (await other.list_resources()).resources == []
            assert (await error_of(other.read_resource("book://emma"))).error.message == "Unknown resource: book://emma"


HELD = (
    IMPORT
    + """
---
kind: policy
name: rare
tools: ["resource:book://emma", "prompt:review"]
rules: [{id: ask, effect: hold, reason: a rare book}]
---
"""
)


async def test_a_read_can_be_held_and_is_collected_like_a_call(tmp_path: Path) -> None:
    library = Library()
    async with (
        reading(tmp_path, library, manifests=HELD, **STDIO, hold={"wait_s": 0}) as house,
        client_of(house) as client,
    ):
        held = (await error_of(client.read_resource("book://emma"))).error
        assert (held.code, held.data["code"]) == (202, "held")
        assert held.message.startswith("Held: resource:book://emma waits")
        completion = types.PromptReference(type="ref/prompt", name="review")
        refused = (await error_of(client.complete(completion, {"name": "book", "value": ""}))).error
        assert (refused.code, refused.data["rule"]) == (403, "rare/ask")
        assert library.asked == []
        (waiting,) = await records(house.broker, states=("held",))
        assert waiting.tool == "resource:book://emma"
        decided = await house.broker.desk.review(
            waiting.call_id, approve=False, reviewer=reviewer(), reason="no", via="test"
        )
        assert decided.state == "rejected"
        told = (await error_of(client.read_resource("book://emma"))).error
        assert (told.code, told.data["code"]) == (403, "denied_by_reviewer")


async def test_an_approved_read_runs_once_and_its_answer_waits(tmp_path: Path) -> None:
    library = Library()
    desk = agent("desk", issuer="settings", scopes=["library.read"])
    read = {"uri": "book://emma"}
    async with reading(tmp_path, library, manifests=HELD, **STDIO, hold={"wait_s": 10}) as house:
        broker = house.broker
        for collected_by_asking_again in (True, False):
            with pytest.raises(Held) as held:
                await perform(broker, "resource:book://emma", read, desk, asked="resource", may_wait=False)
            hold_id = str(held.value.facts["hold_id"])
            await broker.desk.review(hold_id, approve=True, reviewer=reviewer(), via="test")
            await until_state(broker, hold_id, "succeeded")
            if collected_by_asking_again:
                answer = await perform(broker, "resource:book://emma", read, desk, asked="resource")
                assert answer.more["contents"][0]["text"] == "book://emma of main"
            else:
                answer = await perform(broker, "broker_held_call", {"id": hold_id}, desk)
                assert answer.content[0]["resource"]["text"] == "book://emma of main"
        assert len(library.asked) == 2


async def test_what_two_servers_offer_alike_is_told_apart(tmp_path: Path) -> None:
    one, two = Library(), Library(shelf="other")
    both = IMPORT + "---" + IMPORT.replace("library\n", "library2\n")
    async with reading(tmp_path, one, two, manifests=both) as house, client_of(house) as client:
        uris = [str(resource.uri) for resource in (await client.list_resources()).resources]
        assert uris == [
            "library+book://emma", "library+book://ulysses", "library2+book://emma", "library2+book://ulysses",
        ]  # fmt: skip
        assert [prompt.name for prompt in (await client.list_prompts()).prompts] == [
            "library2_review",
            "library_review",
        ]
        for uri in ("library2+book://emma", "library2+page://emma/1"):
            read = await client.read_resource(uri)
            assert isinstance(read.contents[0], types.TextResourceContents)
            natural = uri.removeprefix("library2+")
            assert (str(read.contents[0].uri), read.contents[0].text) == (uri, f"{natural} of other")
        assert (await error_of(client.read_resource("library2+page://secret/1"))).error.code == -32602
        assert "for other" in str((await client.get_prompt("library2_review", {"book": "x"})).messages[0].content)
        assert any("is called 'resource:library+book://emma'" in note for note in house.broker.shelf.current.notes)


async def test_the_record_says_what_was_read_and_completed(tmp_path: Path) -> None:
    async with reading(tmp_path, Library()) as house, client_of(house) as client:
        await client.read_resource("page://emma/3")
        await client.get_prompt("review", {"book": "emma"})
        await client.complete(types.PromptReference(type="ref/prompt", name="review"), {"name": "book", "value": "e"})
        found = [(one.tool, one.state, one.backend_status) for one in await records(house.broker)]
        assert found == [
            ("completion:prompt:review", "succeeded", "MCP completion/complete"),
            ("prompt:review", "succeeded", "MCP prompts/get"),
            ("resource:page://{book}/{number}", "succeeded", "MCP resources/read"),
        ]


async def test_the_agents_own_meta_goes_along_and_reserved_keys_do_not(tmp_path: Path) -> None:
    library = Library()
    async with reading(tmp_path, library) as house, httpx2.AsyncClient(base_url=house.url, timeout=10) as http:
        body = modern("resources/read", {"uri": "book://emma"}, **{"dev.example/x": 1})
        headers = modern_headers("resources/read", "book://emma", token=READER)
        await http.post("/mcp", json=body, headers=headers)
        meta = library.asked[0][1]["_meta"]
        assert meta["dev.example/x"] == 1
        assert meta["io.modelcontextprotocol/clientInfo"]["name"] == "broker"


@pytest.mark.parametrize("legacy", [False, True], ids=["modern-server", "legacy-server"])
@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_a_change_of_a_servers_resources_reaches_those_whose_list_changed(
    mode: str, legacy: bool, tmp_path: Path
) -> None:
    library = Library(legacy=legacy)
    told = anyio.Event()
    heard: list[str] = []

    async def hear(message: Any) -> None:
        heard.append(getattr(message, "method", ""))
        if heard[-1] == "notifications/resources/list_changed":
            told.set()

    async def listen(client: Client) -> None:
        if mode == "auto":
            async with client.listen(resources_list_changed=True, prompts_list_changed=True) as events:
                listening.set()
                async for event in events:
                    heard.append(type(event).__name__)
                    if isinstance(event, ResourcesListChanged):
                        told.set()
        else:
            listening.set()

    listening = anyio.Event()
    async with reading(tmp_path, library) as house, client_of(house, mode=mode, message_handler=hear) as client:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listen, client)
            await listening.wait()
            while not told.is_set():  # the streams of events open some time after the handshakes
                await library.gain(f"book://new{len(library.books)}")
                with anyio.move_on_after(1.5):
                    await told.wait()
            tasks.cancel_scope.cancel()
        uris = [str(one.uri) for one in (await client.list_resources(cache_mode="bypass")).resources]
        assert "book://new3" in uris
        assert not {"PromptsListChanged", "notifications/prompts/list_changed"} & set(heard)


@pytest.mark.parametrize("legacy", [False, True], ids=["modern-server", "legacy-server"])
async def test_a_modern_agent_follows_what_it_may_and_nothing_else(legacy: bool, tmp_path: Path) -> None:
    library = Library(legacy=legacy)
    wanted = ["book://emma", "book://secret/plan", "page://emma/1"]
    async with reading(tmp_path, library) as house, client_of(house) as client:
        async with client.listen(resource_subscriptions=wanted) as events:
            assert set(events.honored.resource_subscriptions or ()) == {"book://emma", "page://emma/1"}
            told = anyio.Event()
            heard: list[Any] = []

            async def hear() -> None:
                async for event in events:
                    heard.append(event)
                    told.set()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(hear)
                while not told.is_set():
                    await library.update("book://ulysses")
                    await library.update("book://emma")
                    with anyio.move_on_after(0.5):
                        await told.wait()
                tasks.cancel_scope.cancel()
        assert {event.uri for event in heard} == {"book://emma"}
        found = {(one.tool, one.state) for one in await records(house.broker)}
        assert ("subscription:resource:book://emma", "succeeded") in found
        assert ("resource:book://secret/plan", "denied") in found or (
            "subscription:resource:book://secret/plan",
            "denied",
        ) in found


@pytest.mark.parametrize("legacy", [False, True], ids=["modern-server", "legacy-server"])
async def test_a_handshake_era_agent_follows_and_stops_following(legacy: bool, tmp_path: Path) -> None:
    library = Library(legacy=legacy)
    told = anyio.Event()
    heard: list[str] = []

    async def hear(message: Any) -> None:
        if getattr(message, "method", "") == "notifications/resources/updated":
            heard.append(str(message.params.uri))
            told.set()

    async with reading(tmp_path, library) as house, client_of(house, mode="legacy", message_handler=hear) as client:
        await client.session.send_request(subscribe("book://emma"), types.EmptyResult)
        assert (
            await error_of(client.session.send_request(subscribe("book://secret/plan"), types.EmptyResult))
        ).error.code == -32002
        while not told.is_set():
            await library.update("book://emma")
            with anyio.move_on_after(0.5):
                await told.wait()
        await client.session.send_request(unsubscribe("book://emma"), types.EmptyResult)
        count = len(heard)
        await library.update("book://emma")
        await client.list_resources()
        assert set(heard) == {"book://emma"}
        assert len(heard) <= count + 1


async def test_a_session_follows_so_many_resources_and_none_when_it_has_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "FOLLOWED", 1)
    library = Library(legacy=True)

    def methods() -> list[str]:
        return [method for method, _ in library.asked]

    async with reading(tmp_path, library) as house:
        async with client_of(house, "sse", mode="legacy") as client:
            for _ in range(2):  # the same again is no more
                await client.session.send_request(subscribe("book://emma"), types.EmptyResult)
            over = await error_of(client.session.send_request(subscribe("book://ulysses"), types.EmptyResult))
            assert (over.error.code, over.error.message[:8]) == (429, "Refused:")
            assert methods() == ["resources/subscribe"]
        while methods() != ["resources/subscribe", "resources/unsubscribe"]:
            await anyio.sleep(0.02)
