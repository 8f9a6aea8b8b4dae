"""For scale: the MCP SDK's own server answering the same call by itself, with nothing in front of it and no record.

Prints its URL once it listens. Ends with SIGTERM.
"""

from __future__ import annotations

import socket
from typing import Any

import mcp.types as types
import uvicorn
from mcp.server.lowlevel.server import Server

INPUT: dict[str, Any] = {
    "type": "object",
    "properties": {"n": {"type": "integer"}, "text": {"type": "string"}},
    "required": ["n", "text"],
}
ECHO = types.Tool(name="echo", description="Answers what it is sent.", input_schema=INPUT)


async def list_tools(*_: Any) -> types.ListToolsResult:
    return types.ListToolsResult(tools=[ECHO])


async def call_tool(_: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
    given = params.arguments or {}
    return types.CallToolResult(content=[types.TextContent(type="text", text=str(given))], structured_content=given)


def main() -> None:
    server = Server("echo", version="1", on_list_tools=list_tools, on_call_tool=call_tool)
    server.get_tool_input_schema = {"echo": INPUT}.get  # without it every call lists the tools first
    app = server.streamable_http_app(json_response=True, stateless_http=True, host="127.0.0.1")
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])


if __name__ == "__main__":
    main()
