"""What stays on one side: nothing of an agent's request reaches a server, nothing of a server's answer is ours to say,
and one client is no other's business, whatever it sends."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx2
import mcp_types as types
import orjson
import pytest
from mcp.server.lowlevel.server import Server
from mcp.server.request_state import RequestStateBoundary, RequestStateSecurity

from tests.downstream import serving
from tests.library import Reading, reading
from tests.serving import modern, modern_headers
from tests.tasking import CAPABILITIES, TAKES_TASKS
from tests.world import records

pytestmark = pytest.mark.anyio

TOKEN = "ann~notes.write"
HOSTILE = [
    ("Cookie", "session=the-agents-own"),
    ("Proxy-Authorization", "Basic cHJveHk6c2VjcmV0"),
    ("X-Forwarded-For", "10.9.9.9"),
    ("X-Forwarded-User", "root"),
    ("X-Forwarded-Host", "evil.example"),
    ("Forwarded", "for=10.9.9.9;host=evil.example"),
    ("X-Real-IP", "10.9.9.9"),
    ("X-Broker-Call-Id", "forged"),
    ("x-broker-call-id", "forged-again"),
    ("X_Broker_Call_Id", "forged-underscored"),
    ("Idempotency-Key", "forged"),
    ("X-Auth-Request-User", "root"),
    ("Connection", "x-broker-call-id, idempotency-key, authorization"),
    ("Mcp-Session-Id", "somebody-elses"),
    ("Last-Event-ID", "7"),
]
OWN_HTTP = {
    "host", "connection", "accept", "accept-encoding", "user-agent", "idempotency-key", "x-broker-call-id", "x-key",
}  # fmt: skip
OWN_MCP = {
    "host", "accept", "accept-encoding", "user-agent", "content-type", "content-length", "connection", "authorization",
    "idempotency-key", "x-broker-call-id", "mcp-protocol-version", "mcp-method", "mcp-name",
}  # fmt: skip
LEAKING = [
    ("Set-Cookie", "session=of-the-server"),
    ("WWW-Authenticate", 'Bearer realm="elsewhere"'),
    ("Authorization", "Bearer of-the-server"),
    ("X-Forwarded-User", "root"),
    ("Access-Control-Allow-Origin", "*"),
    ("Location", "https://evil.example"),
]


class Echo:
    """A plain HTTP service and an MCP server of one era, which keep the headers they are sent and add some."""

    def __init__(self, *, handshake: bool) -> None:
        self._handshake = handshake
        self.sent: list[dict[str, list[str]]] = []

        async def listed(_context: Any, _params: Any) -> types.ListToolsResult:
            schema = {"type": "object", "properties": {"nonce": {"type": "string"}}}
            return types.ListToolsResult(tools=[types.Tool(name="mcp_echo", input_schema=schema)])

        async def called(_context: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
            said = str((params.arguments or {}).get("nonce"))
            return types.CallToolResult(content=[types.TextContent(type="text", text=said)])

        self._server = Server[Any]("echo", version="1", on_list_tools=listed, on_call_tool=called)
        self._server.middleware.append(RequestStateBoundary(RequestStateSecurity.ephemeral(), default_audience="echo"))

    def app(self) -> Any:
        inner: Any = self._server.streamable_http_app()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "http":
                await inner(scope, receive, send)
                return

            async def leaking(message: Any) -> None:
                if message["type"] == "http.response.start":
                    lines = [(name.lower().encode(), value.encode()) for name, value in LEAKING]
                    message = {**message, "headers": [*message.get("headers", ()), *lines]}
                await send(message)

            headers: dict[str, list[str]] = {}
            for name, value in scope["headers"]:
                headers.setdefault(name.decode(), []).append(value.decode())
            if scope["path"] == "/plain":
                self.sent.append(headers)
                json = [(b"content-type", b"application/json")]
                await leaking({"type": "http.response.start", "status": 200, "headers": json})
                await leaking({"type": "http.response.body", "body": b'"plain"'})
                return
            body = b""
            more = scope["method"] == "POST"
            while more:
                part = await receive()
                body, more = body + part.get("body", b""), part.get("more_body", False)
            if b'"tools/call"' in body:
                self.sent.append(headers)
            if self._handshake and "mcp-protocol-version" in headers and "2026" in headers["mcp-protocol-version"][0]:
                await leaking({"type": "http.response.start", "status": 400, "headers": []})
                await leaking({"type": "http.response.body", "body": b"what?"})
                return
            replayed = iter([{"type": "http.request", "body": body, "more_body": False}] if body else [])

            async def again() -> Any:
                return next(replayed, None) or await receive()

            await inner(scope, again, leaking)

        return app


@asynccontextmanager
async def echoing(folder: Path, *, handshake: bool) -> AsyncGenerator[tuple[Reading, Echo]]:
    echo = Echo(handshake=handshake)
    async with serving(echo.app()) as url:
        manifests = f"""
kind: backend
name: echo
mcp:
  url: {url}/mcp
  allow_private: true
  credential: {{header: Authorization, value: "Bearer ${{file:key.txt}}"}}
---
kind: import
name: echo
backend: echo
take: ["*"]
effect: read
---
kind: backend
name: plain
http: {{base_url: {url}, allow_private: true, headers: {{X-Key: ours}}}}
---
kind: tool
name: plain
effect: read
backend: plain
http: {{method: GET, path: /plain}}
"""
        (folder / "key.txt").write_text("ours")
        async with reading(folder, manifests=manifests) as house:
            with anyio.fail_after(10):
                while "mcp_echo" not in house.broker.shelf.current.entries:
                    await anyio.sleep(0.02)
            yield house, echo


def hostile(method: str, name: str) -> list[tuple[str, str]]:
    return [*modern_headers(method, name, token=TOKEN).items(), *HOSTILE]


@pytest.mark.parametrize("handshake", [False, True], ids=["modern", "handshake"])
async def test_no_header_of_an_agent_goes_down_and_none_of_a_server_comes_back(handshake: bool, tmp_path: Path) -> None:
    async with echoing(tmp_path, handshake=handshake) as (house, echo):
        for tool in ("plain", "mcp_echo"):
            body = modern("tools/call", {"name": tool, "arguments": {} if tool == "plain" else {"nonce": "n"}})
            async with httpx2.AsyncClient(timeout=20) as http:
                answer = await http.post(f"{house.url}/mcp", json=body, headers=hostile("tools/call", tool))
            assert answer.status_code == 200, answer.text
            assert not orjson.loads(answer.content.rpartition(b"data: ")[2])["result"].get("isError"), answer.text
            leaked = {name.lower() for name, _ in LEAKING} & answer.headers.keys()
            assert not leaked
            assert not any(value in str(answer.headers) + answer.text for _, value in LEAKING if len(value) > 5)
        calls = {one.tool: one.call_id for one in await records(house.broker)}
        plain, called = echo.sent[0], echo.sent[-1]
        assert plain.keys() == OWN_HTTP
        own = OWN_MCP - ({"mcp-method", "mcp-name"} if handshake else set())
        assert own <= called.keys() <= own | ({"mcp-session-id"} if handshake else set())
        for headers, tool in ((plain, "plain"), (called, "mcp_echo")):
            assert headers["x-broker-call-id"] == [calls[tool]]
            assert headers["idempotency-key"] == [calls[tool]]
            everything = str(headers)
            assert "ann~" not in everything
            assert not any(value in everything for _, value in HOSTILE if value != "7")
        assert called["authorization"] == ["Bearer ours"]


async def test_two_hundred_callers_get_their_own_answers_beside_one_that_attacks(tmp_path: Path) -> None:
    async with echoing(tmp_path, handshake=False) as (house, _echo):
        answers: dict[int, str] = {}
        refused: list[int] = []
        done = anyio.Event()

        async def attack(http: httpx2.AsyncClient) -> None:
            """Bytes that are no requests, ids and sessions of others, and the same id over and over."""
            url, number = f"{house.url}/mcp", 0
            while not done.is_set():
                number += 1
                headers = modern_headers("tools/call", "mcp_echo", token="eve")
                bodies: list[bytes] = [
                    b"{" * 2000,
                    b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"mcp_echo","name":"plain"}}',
                    b"\xff\xfe" + orjson.dumps(modern("tools/call", {"name": "mcp_echo"})),
                    orjson.dumps(modern("tasks/get", {"taskId": "A" * 200}, **{CAPABILITIES: TAKES_TASKS})),
                    orjson.dumps(
                        modern("tools/call", {"name": "mcp_echo", "arguments": {"nonce": "eve"}}, request_id=1)
                    ),
                ]
                answer = await http.post(url, content=bodies[number % len(bodies)], headers=headers)
                refused.append(answer.status_code)
                session = {**headers, "MCP-Protocol-Version": "2025-11-25", "Mcp-Session-Id": f"guess-{number}"}
                answer = await http.post(url, content=bodies[-1], headers=session)
                refused.append(answer.status_code)

        async def call(http: httpx2.AsyncClient, number: int) -> None:
            body = modern("tools/call", {"name": "mcp_echo", "arguments": {"nonce": f"nonce-{number}"}}, request_id=1)
            headers = modern_headers("tools/call", "mcp_echo", token=f"agent{number}")
            answer = await http.post(f"{house.url}/mcp", json=body, headers=headers)
            answers[number] = orjson.loads(answer.content)["result"]["content"][0]["text"]

        limits = httpx2.Limits(max_connections=60)
        async with httpx2.AsyncClient(timeout=40, limits=limits) as http, anyio.create_task_group() as attacking:
            for _ in range(5):
                attacking.start_soon(attack, http)
            async with anyio.create_task_group() as calling:
                for number in range(200):
                    calling.start_soon(call, http, number)
            done.set()
        assert answers == {number: f"nonce-{number}" for number in range(200)}
        assert len(refused) > 10
        assert max(refused) < 500
        by_agent = {one.agent for one in await records(house.broker, tool="mcp_echo", limit=1000)}
        assert by_agent >= {f"agent{number}" for number in range(200)}
