"""Real clients of every era over every transport see one and the same server."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx2
import orjson
import pytest
from fastmcp import Client as FastClient
from fastmcp.client.transports import SSETransport, StdioTransport, StreamableHttpTransport
from mcp.client.client import Client
from mcp.client.sse import sse_client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError

from tests.serving import modern, modern_headers, served

pytestmark = pytest.mark.anyio

CHILD = [sys.executable, "-m", "tests.stdio_server"]
BEARER = {"Authorization": "Bearer ann"}
VERSIONS = {"auto": "2026-07-28", "legacy": "2025-11-25", "2026-07-28": "2026-07-28"}


@asynccontextmanager
async def connected(transport: str, mode: Any) -> AsyncGenerator[Client]:
    """A client of the SDK, with 20 s for everything it is asked."""
    with anyio.fail_after(20):
        if transport == "stdio":
            async with Client(
                stdio_client(StdioServerParameters(command=CHILD[0], args=CHILD[1:])), mode=mode
            ) as client:
                yield client
            return
        async with served() as house, httpx2.AsyncClient(headers=BEARER) as http:
            wire = (
                streamable_http_client(f"{house.url}/mcp", http_client=http)
                if transport == "http"
                else sse_client(f"{house.url}/sse", headers=BEARER)
            )
            async with Client(wire, mode=mode) as client:
                yield client


@pytest.mark.parametrize(
    ("transport", "mode"),
    [(transport, mode) for transport in ("http", "sse", "stdio") for mode in ("auto", "legacy")]
    + [("http", "2026-07-28")],
)
async def test_a_client_lists_calls_and_is_refused(transport: str, mode: Any) -> None:
    async with connected(transport, mode) as client:
        assert client.protocol_version == VERSIONS[mode]
        listed = await client.list_tools()
        assert [tool.name for tool in listed.tools] == ["echo", "progress", "wait", "hold"]

        answer = await client.call_tool("echo", {"text": "grüß"})
        assert answer.structured_content is not None
        assert answer.structured_content["text"] == "grüß"
        assert answer.structured_content["by"] == ("launched" if transport == "stdio" else "ann")

        refused = await client.call_tool("echo", {"wrong": 1})
        assert refused.is_error
        held = await client.call_tool("hold", {})
        assert not held.is_error
        assert "Held" in str(held.content)

        with pytest.raises(MCPError) as unknown:
            await client.call_tool("nothing", {})
        assert (unknown.value.error.code, unknown.value.error.message) == (-32602, "Unknown tool: nothing")


@pytest.mark.parametrize(
    ("transport", "mode"),
    [("http", "auto"), ("http", "legacy"), ("sse", "auto"), ("sse", "legacy"), ("stdio", "legacy")],
)
async def test_progress_reaches_the_caller(transport: str, mode: Any) -> None:
    seen: list[tuple[float, float | None, str | None]] = []

    async def note(progress: float, total: float | None, message: str | None) -> None:
        seen.append((progress, total, message))

    async with connected(transport, mode) as client:
        answer = await client.call_tool("progress", {}, progress_callback=note)
    assert not answer.is_error
    assert seen == [(1.0, 2.0, "half way")]


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_missing_scopes_are_challenged_over_streamable_http(mode: Any) -> None:
    async with connected("http", mode) as client:
        with pytest.raises(MCPError, match=r"needs vault\.open"):
            await client.call_tool("locked", {})
        assert not (await client.call_tool("echo", {})).is_error


@pytest.mark.parametrize(("transport", "mode"), [("sse", "auto"), ("sse", "legacy"), ("stdio", "legacy")])
async def test_missing_scopes_are_a_result_where_a_status_would_end_the_stream(transport: str, mode: Any) -> None:
    async with connected(transport, mode) as client:
        refused = await client.call_tool("locked", {})
        assert refused.is_error
        assert refused.structured_content is not None
        assert refused.structured_content["code"] == "insufficient_scope"
        assert not (await client.call_tool("echo", {})).is_error


@pytest.mark.parametrize("transport", ["http", "sse", "stdio"])
async def test_the_client_of_fastmcp_works_too(transport: str) -> None:
    with anyio.fail_after(20):
        async with served() as house:
            wires: dict[str, Any] = {
                "http": lambda: StreamableHttpTransport(f"{house.url}/mcp", headers=BEARER),
                "sse": lambda: SSETransport(f"{house.url}/sse", headers=BEARER),
                "stdio": lambda: StdioTransport(CHILD[0], CHILD[1:], keep_alive=False),
            }
            async with FastClient(wires[transport]()) as client:
                assert [tool.name for tool in await client.list_tools()] == ["echo", "progress", "wait", "hold"]
                answer = await client.call_tool("echo", {"text": "hi"})
                assert answer.structured_content is not None
                assert answer.structured_content["text"] == "hi"


@pytest.mark.parametrize("version", ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"])
async def test_every_handshake_revision_is_spoken_on_the_same_endpoint(version: str) -> None:
    headers = {**BEARER, "Accept": "application/json, text/event-stream"}
    params = {"protocolVersion": version, "capabilities": {}, "clientInfo": {"name": "old", "version": "0"}}
    async with served() as house, httpx2.AsyncClient(headers=headers, base_url=house.url, timeout=10) as http:
        hello = await http.post("/mcp", json={"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params})
        result = event(hello.text)["result"]
        assert result["protocolVersion"] == version
        assert result["capabilities"]["tools"] == {"listChanged": True}
        assert result["instructions"] == "Test instructions."
        session = {"Mcp-Session-Id": hello.headers["mcp-session-id"], "MCP-Protocol-Version": version}
        ready = {"jsonrpc": "2.0", "method": "notifications/initialized"}
        assert (await http.post("/mcp", json=ready, headers=session)).status_code == 202
        listed = await http.post("/mcp", json={"jsonrpc": "2.0", "id": 1, "method": "tools/list"}, headers=session)
        assert event(listed.text)["result"]["tools"][0]["name"] == "echo"
        assert "ttlMs" not in event(listed.text)["result"]


async def test_a_modern_list_is_private_and_complete() -> None:
    async with served() as house, httpx2.AsyncClient(base_url=house.url, timeout=10) as http:
        listed = await http.post("/mcp", json=modern("tools/list"), headers=modern_headers("tools/list"))
        result = listed.json()["result"]
        assert (result["cacheScope"], result["resultType"]) == ("private", "complete")
        assert result["ttlMs"] >= 0
        paged = await http.post(
            "/mcp", json=modern("tools/list", {"cursor": "2"}), headers=modern_headers("tools/list")
        )
        assert (paged.status_code, paged.json()["error"]["code"]) == (400, -32602)
        nothing = await http.post("/mcp", json=modern("nothing/list"), headers=modern_headers("nothing/list"))
        assert (nothing.status_code, nothing.json()["error"]["code"]) == (404, -32601)


async def test_a_modern_list_is_the_same_from_the_gate_and_from_the_sdk() -> None:
    async with served() as house, httpx2.AsyncClient(base_url=house.url, timeout=10) as http:
        asked = modern("tools/list")
        from_gate = await http.post("/mcp", json=asked, headers=modern_headers("tools/list"))
        asked["params"]["_meta"]["io.modelcontextprotocol/logLevel"] = "error"  # for the SDK to judge
        from_sdk = await http.post("/mcp", json=asked, headers=modern_headers("tools/list"))
        assert from_gate.json() == from_sdk.json()
        assert from_gate.headers["content-type"] == from_sdk.headers["content-type"]
        assert list(from_gate.json()["result"]) != list(from_sdk.json()["result"])  # by two ways, as the order tells


def event(text: str) -> Any:
    """The last JSON message of an event stream."""
    return orjson.loads([line for line in text.splitlines() if line.startswith("data: {")][-1].removeprefix("data: "))
