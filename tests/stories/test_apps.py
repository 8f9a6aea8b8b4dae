"""MCP Apps (`io.modelcontextprotocol/ui`): a tool names what shows it, which can be read under its name here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import mcp_types as types
import pytest
from mcp.server.lowlevel.server import Server

from tests.library import client_of, reading
from tests.tasking import EXTENSION, Wire

pytestmark = pytest.mark.anyio

URI = "ui://clock/face.html"
HTML = "text/html;profile=mcp-app"
UI = "io.modelcontextprotocol/ui"
DECLARED: dict[str, Any] = {
    "extensions": {UI: {"mimeTypes": [HTML]}, "com.example/other": {"a": 1}, EXTENSION: {}},
    "experimental": {"x": {"y": 1}},
    "com.example": {"z": 2},
}


class Clock:
    """A server with an app. declared: what the caller of each call was said to be able to."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.declared: list[dict[str, Any]] = []

    async def tools(self, _context: Any, _params: Any) -> types.ListToolsResult:
        meta = {"ui": {"resourceUri": URI, "visibility": ["model", "app"]}, "com.example/kept": 1}
        schema = {"type": "object"}
        return types.ListToolsResult(tools=[types.Tool(name=f"{self.name}_show", input_schema=schema, _meta=meta)])

    async def resources(self, _context: Any, _params: Any) -> types.ListResourcesResult:
        listed = types.Resource(uri=URI, name="face", mime_type=HTML, _meta={"ui": {"prefersBorder": True}})
        return types.ListResourcesResult(resources=[listed])

    async def read(self, _context: Any, params: types.ReadResourceRequestParams) -> types.ReadResourceResult:
        text = f"<p>{self.name}</p>"
        meta: dict[str, Any] = {"ui": {"csp": {"connectDomains": []}}}
        content = types.TextResourceContents(uri=params.uri, text=text, mime_type=HTML, _meta=meta)
        return types.ReadResourceResult(contents=[content])

    async def call(self, context: Any, _params: Any) -> types.CallToolResult:
        params: Any = context.params
        meta: Any = params["_meta"]
        self.declared.append(meta["io.modelcontextprotocol/clientCapabilities"])
        return types.CallToolResult(content=[], structured_content={"now": 1}, _meta={"ui": {"kept": True}})

    def app(self) -> Any:
        server = Server[Any](
            self.name,
            version="1",
            on_list_tools=self.tools,
            on_call_tool=self.call,
            on_list_resources=self.resources,
            on_read_resource=self.read,
        )
        return server.streamable_http_app()


def taken(*backends: str) -> str:
    return "---".join(
        f"""
kind: import
name: {backend}
backend: {backend}
effect: read
take: ["*"]
resources: {{take: ["ui://*"]}}
"""
        for backend in backends
    )


@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_a_tools_app_is_listed_with_it_and_read(mode: str, tmp_path: Path) -> None:
    async with (
        reading(tmp_path, Clock("one"), manifests=taken("library")) as house,
        client_of(house, mode=mode, token="ann") as client,
    ):
        (tool,) = (await client.list_tools()).tools
        assert tool.meta == {"ui": {"resourceUri": URI, "visibility": ["model", "app"]}, "com.example/kept": 1}
        (listed,) = (await client.list_resources()).resources
        assert (str(listed.uri), listed.mime_type, listed.meta) == (URI, HTML, {"ui": {"prefersBorder": True}})
        (content,) = (await client.read_resource(URI)).contents
        assert (content.meta, getattr(content, "text", "")) == ({"ui": {"csp": {"connectDomains": []}}}, "<p>one</p>")
        assert (await client.call_tool("one_show", {})).meta["ui"] == {"kept": True}  # type: ignore[index]


async def test_two_servers_with_one_uri_keep_their_apps_apart(tmp_path: Path) -> None:
    async with (
        reading(tmp_path, Clock("one"), Clock("two"), manifests=taken("library", "library2")) as house,
        client_of(house, token="ann") as client,
    ):
        with anyio.fail_after(10):
            while len(tools := (await client.list_tools()).tools) < 2:
                await anyio.sleep(0.05)
        shown = {tool.name: str((tool.meta or {})["ui"]["resourceUri"]) for tool in tools}
        assert shown == {"one_show": f"library+{URI}", "two_show": f"library2+{URI}"}
        for name, uri in shown.items():
            (content,) = (await client.read_resource(uri)).contents
            assert (str(content.uri), getattr(content, "text", "")) == (uri, f"<p>{name.removesuffix('_show')}</p>")


async def test_what_a_client_declares_reaches_the_server_of_its_call_and_no_other_call(tmp_path: Path) -> None:
    clock = Clock("one")
    async with reading(tmp_path, clock, manifests=taken("library")) as house:
        await Wire(house.url, "ann", DECLARED).call("one_show")
        await Wire(house.url, "bob", {}).call("one_show")
    assert clock.declared == [DECLARED, {}]
