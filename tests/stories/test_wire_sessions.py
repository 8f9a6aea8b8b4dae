"""Sessions and streams belong to one principal, are bounded, and last no longer than their caller's right."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx2
import pytest

from broker.faces.mcp import direct, standing
from tests.serving import Served, modern, modern_call, modern_headers, served, tool
from tests.stories.test_wire_clients import event
from tests.stories.test_wire_stdio import INITIALIZE, READY, call

pytestmark = pytest.mark.anyio

ACCEPT = {"Accept": "application/json, text/event-stream"}


def bearer(token: str) -> dict[str, str]:
    return {**ACCEPT, "Authorization": f"Bearer {token}"}


class Legacy:
    """A handshake-era client spelled out, so that it can do what none should."""

    def __init__(self, http: httpx2.AsyncClient, token: str) -> None:
        self.http, self.token, self.session = http, token, ""

    async def open(self) -> Legacy:
        hello = await self.http.post("/mcp", json=INITIALIZE, headers=bearer(self.token))
        self.session = hello.headers["mcp-session-id"]
        await self.post(READY)
        return self

    async def post(self, message: Any, *, token: str = "", session: str = "") -> httpx2.Response:
        headers = {**bearer(token or self.token), "Mcp-Session-Id": session or self.session}
        return await self.http.post("/mcp", json=message, headers=headers)


@asynccontextmanager
async def house_and_http(**sections: Any) -> AsyncGenerator[tuple[Served, httpx2.AsyncClient]]:
    with anyio.fail_after(20):
        async with served(**sections) as house, httpx2.AsyncClient(base_url=house.url, timeout=10) as http:
            yield house, http


async def test_a_session_of_somebody_else_is_not_found() -> None:
    async with house_and_http() as (house, http):
        ann = await Legacy(http, "ann").open()
        assert event((await ann.post(call("echo", 1))).text)["result"]["structuredContent"]["by"] == "ann"
        stranger = await ann.post(call("echo", 2), token="bob")
        guessed = await ann.post(call("echo", 2), session="f" * 32)
        assert (stranger.status_code, stranger.text) == (guessed.status_code, guessed.text)
        assert stranger.status_code == 404
        assert len(house.tools.calls) == 1


async def test_another_token_of_the_same_principal_goes_on_with_its_session() -> None:
    async with house_and_http() as (house, http):
        ann = await Legacy(http, "ann").open()
        assert (await ann.post(call("locked", 1))).status_code == 403
        stepped_up = await ann.post(call("locked", 2), token="ann~vault.open")
        assert stepped_up.status_code == 200
        assert house.tools.calls[-1].principal.scopes == {"vault.open"}


async def test_each_request_is_authenticated_again() -> None:
    async with house_and_http() as (house, http):
        ann = await Legacy(http, "ann").open()
        house.keys.revoked.add("ann")
        assert (await ann.post(call("echo", 1))).status_code == 401
        assert house.tools.calls == []


async def test_an_ended_session_is_not_found() -> None:
    async with house_and_http() as (_, http):
        ann = await Legacy(http, "ann").open()
        ended = await http.delete("/mcp", headers={**bearer("ann"), "Mcp-Session-Id": ann.session})
        assert ended.status_code == 200
        assert (await ann.post(call("echo", 1))).status_code == 404


async def test_sessions_are_capped_and_room_comes_back() -> None:
    async with house_and_http(limits={"sessions": 2}) as (_, http):
        first = await Legacy(http, "ann").open()
        await Legacy(http, "bob").open()
        refused = await http.post("/mcp", json=INITIALIZE, headers=bearer("eve"))
        assert (refused.status_code, refused.json()["error"]["data"]["limit"]) == (503, "sessions")
        await http.delete("/mcp", headers={**bearer("ann"), "Mcp-Session-Id": first.session})
        await Legacy(http, "eve").open()


async def test_idle_sessions_end() -> None:
    async with house_and_http(limits={"session_idle_s": 0.05}) as (_, http):
        ann = await Legacy(http, "ann").open()
        while (await ann.post(READY)).status_code != 404:
            await anyio.sleep(0.1)


@pytest.mark.parametrize("method", ["POST", "GET", "DELETE"])
async def test_without_a_session_nothing_of_the_handshake_era_is_served(method: str) -> None:
    async with house_and_http() as (house, http):
        body = call("echo", 1) if method == "POST" else None
        assert (await http.request(method, "/mcp", headers=bearer("ann"), json=body)).status_code == 400
        assert house.refused == ["no_session"]


async def test_an_id_in_use_is_refused_and_answers_are_never_crossed() -> None:
    async with house_and_http() as (house, http):
        ann = await Legacy(http, "ann").open()
        answers: list[Any] = []

        async def wait() -> None:
            answers.append(event((await ann.post(call("wait", 7))).text))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await house.tools.entered.wait()
            assert (await ann.post(call("echo", "7"))).status_code == 400
            house.tools.release.set()
        assert answers[0]["result"]["structuredContent"]["text"] == "wait"
        assert event((await ann.post(call("echo", 7))).text)["result"]["isError"] is False


async def test_invalid_arguments_are_told_before_missing_scopes_and_the_call_is_made_once() -> None:
    async with house_and_http() as (house, http):
        ann = await Legacy(http, "ann").open()
        answer = event((await ann.post(call("locked", 1, wrong=True))).text)["result"]
        assert answer["structuredContent"]["code"] == "invalid_arguments"
        assert len(house.tools.calls) == 1


# ------------------------------------------------------------------------------------------ HTTP+SSE


async def test_the_stream_needs_a_token_and_its_messages_the_same_principal() -> None:
    async with house_and_http() as (house, http):
        assert (await http.get("/sse", headers=ACCEPT)).status_code == 401
        assert (await http.get("/sse", headers=ACCEPT)).headers["www-authenticate"].endswith('/sse"')
        async with http.stream("GET", "/sse", headers=bearer("ann")) as stream:
            texts = stream.aiter_lines()
            assert await anext(texts) == "event: endpoint"
            path = (await anext(texts)).removeprefix("data: ")
            assert (await http.post(path, json=INITIALIZE, headers=ACCEPT)).status_code == 401
            stranger = await http.post(path, json=INITIALIZE, headers=bearer("bob"))
            guessed = await http.post(f"/messages/?session_id={'0' * 32}", json=INITIALIZE, headers=bearer("ann"))
            assert (stranger.status_code, stranger.text) == (guessed.status_code, guessed.text)
            assert stranger.status_code == 404
            assert (await http.post(path, json=INITIALIZE, headers=bearer("ann"))).status_code == 202
            lying = {**bearer("ann"), "MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "tools/list"}
            refused = await http.post(path, json=modern_call("echo"), headers=lying)
            assert (refused.status_code, refused.json()["error"]["code"]) == (400, -32020)
            assert (await http.post(path, content=b'{"a":1,"a":2}', headers=bearer("ann"))).status_code == 415
            json = {**bearer("ann"), "Content-Type": "application/json"}
            assert (await http.post(path, content=b'{"a":1,"a":2}', headers=json)).status_code == 400
        assert house.tools.calls == []


async def test_open_streams_are_capped() -> None:
    async with (
        house_and_http(limits={"sessions": 1}) as (_, http),
        http.stream("GET", "/sse", headers=bearer("ann")) as stream,
    ):
        texts = stream.aiter_lines()
        await anext(texts)
        assert (await http.get("/sse", headers=bearer("bob"))).status_code == 503


# ------------------------------------------------------------------------------------------ rights that end


@pytest.mark.parametrize("kind", ["sse", "get", "listen"])
async def test_a_stream_ends_soon_after_its_right(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standing, "RECHECK_S", 0.05)
    async with house_and_http() as (house, http):
        ann = await Legacy(http, "ann").open()
        request: dict[str, Any] = {
            "sse": {"method": "GET", "url": "/sse", "headers": bearer("ann")},
            "get": {"method": "GET", "url": "/mcp", "headers": {**bearer("ann"), "Mcp-Session-Id": ann.session}},
            "listen": {
                "method": "POST",
                "url": "/mcp",
                "json": modern("subscriptions/listen", {"notifications": {"toolsListChanged": True}}),
                "headers": modern_headers("subscriptions/listen"),
            },
        }[kind]
        async with http.stream(**request) as stream:
            assert stream.status_code == 200
            house.keys.revoked.add("ann")
            await stream.aread()  # to its end, which is a proper one
        assert house.refused == ["stream_ended"]


# ------------------------------------------------------------------------------------------ cancellation


async def test_a_modern_call_ends_with_its_connection() -> None:
    async with house_and_http() as (house, http):

        async def wait() -> None:
            await http.post("/mcp", json=modern_call("wait"), headers=modern_headers("tools/call", "wait"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await house.tools.entered.wait()
            tasks.cancel_scope.cancel()
        await house.tools.cancelled.wait()


async def test_a_handshake_era_call_ends_with_its_cancellation() -> None:
    async with house_and_http() as (house, http):
        ann = await Legacy(http, "ann").open()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ann.post, call("wait", 3))
            await house.tools.entered.wait()
            await ann.post({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 3}})
            await house.tools.cancelled.wait()


async def test_a_silent_call_is_kept_alive_as_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "QUIET_S", 0.0)
    monkeypatch.setattr(direct, "LOOK_EVERY_S", 0.02)
    async with house_and_http() as (house, http):
        headers = modern_headers("tools/call", "wait")
        async with http.stream("POST", "/mcp", json=modern_call("wait"), headers=headers) as stream:
            assert stream.headers["content-type"] == "text/event-stream"
            seen: list[str] = []
            async for text in stream.aiter_lines():
                seen.append(text)
                house.tools.release.set()
        assert seen[0] == ": waiting"
        assert event("\n".join(seen))["result"]["structuredContent"]["text"] == "wait"


async def test_two_hundred_callers_get_their_own_answers() -> None:
    async with house_and_http() as (house, http):
        house.tools.tools.append(tool("other"))

        async def one(number: int) -> None:
            token, text = f"agent{number}", f"nonce{number}"
            headers = modern_headers("tools/call", "echo", token=token)
            answer = await http.post("/mcp", json=modern_call("echo", {"text": text}), headers=headers)
            assert answer.json()["result"]["structuredContent"] == {"by": token, "text": text}

        async with anyio.create_task_group() as tasks:
            for number in range(200):
                tasks.start_soon(one, number)
        assert len(house.tools.calls) == 200
