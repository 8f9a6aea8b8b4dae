"""For scale: the MCP SDK's own server answering the same call by itself, with nothing in front of it and no record.

sdk_server.py PORT [UPSTREAM]: with an upstream, a thin proxy instead, of the SDK's server and one client of the SDK.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import mcp.types as types
import uvicorn
from mcp.client import Client
from mcp.server.lowlevel.server import Server

INPUT: dict[str, Any] = {
    "type": "object",
    "properties": {"n": {"type": "integer"}, "text": {"type": "string"}},
    "required": ["n", "text"],
}
ECHO = types.Tool(name="echo", description="Answers what it is sent.", input_schema=INPUT)
_behind: list[Client] = []


async def list_tools(*_: Any) -> types.ListToolsResult:
    return types.ListToolsResult(tools=[ECHO])


async def call_tool(_: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
    given = params.arguments or {}
    if _behind:
        return await _behind[0].call_tool(params.name, given)
    content: list[types.ContentBlock] = [types.TextContent(type="text", text=str(given["text"]))]
    return types.CallToolResult(content=content, structured_content=given)


@asynccontextmanager
async def connected(_: Any) -> AsyncGenerator[None]:
    if len(sys.argv) < 3:
        yield
        return
    async with Client(sys.argv[2]) as client:
        _behind.append(client)
        yield


def main() -> None:
    server: Server[Any] = Server(
        "echo", version="1", on_list_tools=list_tools, on_call_tool=call_tool, lifespan=connected
    )
    server.get_tool_input_schema = {"echo": INPUT}.get  # without it every call lists the tools first
    app = server.streamable_http_app(json_response=True, stateless_http=True, host="127.0.0.1")
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
