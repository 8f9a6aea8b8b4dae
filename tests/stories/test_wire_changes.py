"""Clients hear that their tools changed, on every transport and in both eras, and only when theirs did."""

from __future__ import annotations

from typing import Any

import anyio
import httpx2
import orjson
import pytest
from mcp.client.client import Client
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client

from broker.faces.mcp.sessions import Audience
from broker.model.principal import Principal
from tests.serving import Tools, modern, modern_headers, served, tool
from tests.stories.test_wire_clients import BEARER

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("transport", ["http", "sse"])
async def test_a_handshake_era_session_is_told(transport: str) -> None:
    told = anyio.Event()

    async def hear(message: Any) -> None:
        if getattr(message, "method", "") == "notifications/tools/list_changed":
            told.set()

    with anyio.fail_after(15):
        async with served() as house, httpx2.AsyncClient(headers=BEARER, timeout=10) as http:
            wire: Any = (
                streamable_http_client(f"{house.url}/mcp", http_client=http)
                if transport == "http"
                else sse_client(f"{house.url}/sse", headers=BEARER)
            )
            async with Client(wire, mode="legacy", message_handler=hear) as client:
                await client.list_tools()
                while not told.is_set():  # the GET stream opens some time after the handshake
                    house.tools.tools.append(tool(f"new_{len(house.tools.tools)}"))
                    house.agents.announce_tools_changed()
                    with anyio.move_on_after(0.1):
                        await told.wait()
                assert len((await client.list_tools()).tools) > 4


async def test_a_listen_stream_acknowledges_tells_and_ends_in_good_order() -> None:
    wanted = {"toolsListChanged": True, "promptsListChanged": True, "resourceSubscriptions": ["file:///etc/passwd"]}
    body = modern("subscriptions/listen", {"notifications": wanted}, request_id="sub")
    events: list[Any] = []
    with anyio.fail_after(15):
        async with served() as house, httpx2.AsyncClient(base_url=house.url, timeout=10) as http:
            headers = modern_headers("subscriptions/listen")
            async with http.stream("POST", "/mcp", json=body, headers=headers) as response:
                assert response.headers["content-type"] == "text/event-stream"
                assert response.headers["x-accel-buffering"] == "no"
                async for text in response.aiter_lines():
                    if not text.startswith("data: "):
                        continue
                    events.append(orjson.loads(text[6:]))
                    if len(events) == 1:
                        house.agents.announce_tools_changed()  # nothing changed: nothing is told
                        house.tools.tools.append(tool("new"))
                        house.agents.announce_tools_changed()
                    elif len(events) == 2:
                        house.stop.set()
    acknowledged, changed, end = events
    assert acknowledged["params"]["notifications"] == {"toolsListChanged": True, "promptsListChanged": True}
    assert changed["method"] == "notifications/tools/list_changed"
    assert changed["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"] == "sub"
    assert (end["id"], end["result"]["resultType"]) == ("sub", "complete")


class Ear:
    def __init__(self) -> None:
        self.heard = 0
        self.event = anyio.Event()

    async def send_tool_list_changed(self) -> None:
        self.heard += 1
        self.event.set()

    async def send_resource_list_changed(self) -> None:
        raise AssertionError("nothing of it changed")

    send_prompt_list_changed = send_resource_list_changed

    async def send_resource_updated(self, uri: str) -> None:
        raise AssertionError(f"{uri} is followed by nobody")


async def test_only_those_whose_own_list_changed_are_told() -> None:
    tools, ann, bob = Tools(), Ear(), Ear()
    audience = Audience(tools, most=10)
    audience.join(ann, Principal(agent="ann", scopes=frozenset({"vault.open"})))
    audience.join(bob, Principal(agent="bob"))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(audience.announcing)
        tools.tools = [tool("locked", properties={"changed": {}}) if t["name"] == "locked" else t for t in tools.tools]
        audience.announce()
        with anyio.fail_after(5):
            await ann.event.wait()
        assert (ann.heard, bob.heard) == (1, 0)
        audience.leave(ann)
        tools.tools = [*tools.tools, tool("open")]
        audience.announce()
        with anyio.fail_after(5):
            await bob.event.wait()
        assert (ann.heard, bob.heard) == (1, 1)
        tasks.cancel_scope.cancel()


async def test_listen_streams_are_capped() -> None:
    audience = Audience(Tools(), most=1)
    who = Principal(agent="ann")
    with audience.listening(who) as first, audience.listening(who) as second:
        assert first is not None
        assert second is None
    with audience.listening(who) as again:
        assert again is not None


async def test_many_announcements_in_one_moment_are_one_message() -> None:
    tools, ear = Tools(), Ear()
    audience = Audience(tools, most=10)
    audience.join(ear, Principal(agent="ann"))
    for number in range(50):
        tools.tools = [*tools.tools, tool(f"t{number}")]
        audience.announce()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(audience.announcing)
        with anyio.fail_after(5):
            await ear.event.wait()
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    assert ear.heard == 1


async def test_sessions_that_end_are_forgotten() -> None:
    async with served() as house, httpx2.AsyncClient(headers=BEARER, timeout=10) as http:
        async with Client(streamable_http_client(f"{house.url}/mcp", http_client=http), mode="legacy") as client:
            await client.list_tools()
            assert house.agents.listeners == 1
        with anyio.fail_after(5):
            while house.agents.listeners:
                await anyio.sleep(0.01)
