"""A small client on the SDK that does what each client scenario of the suite asks of it. Ends with 0 when it could.

The suite starts it with the URL as last argument and the scenario in the environment. It knows nothing of the broker:
`through.py` starts it against one.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

import anyio
import httpx2
import mcp_types
from mcp.client.auth.extensions.client_credentials import ClientCredentialsOAuthProvider
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

EXAMPLES: Mapping[str, Any] = {"string": "x", "integer": 1, "number": 1.5, "boolean": True, "object": {}, "array": []}
HANDSHAKE_ONLY = ("json-schema-ref-no-deref",)  # whose server speaks nothing else, whatever the set it is run for
CALL_S = 30.0

Does = Callable[[Client, list[mcp_types.Tool]], Awaitable[None]]


def calls(*names: str, **arguments: Any) -> Does:
    async def does(client: Client, _listed: list[mcp_types.Tool]) -> None:
        for name in names:
            await client.call_tool(name, arguments)

    return does


async def lists(_client: Client, _listed: list[mcp_types.Tool]) -> None:
    """Lists the tools, which is done for every scenario."""


async def calls_all(client: Client, listed: list[mcp_types.Tool]) -> None:
    """Every tool that is there, with the least it asks for; what goes wrong with one is not the next one's fault."""
    for tool in listed:
        properties: Mapping[str, Any] = tool.input_schema.get("properties", {})
        arguments = {
            name: EXAMPLES.get(properties.get(name, {}).get("type", ""), "x")
            for name in tool.input_schema.get("required", [])
        }
        with suppress(MCPError, ValueError, RuntimeError):
            await client.call_tool(tool.name, arguments)


async def calls_told(client: Client, listed: list[mcp_types.Tool]) -> None:
    """The calls the suite hands over, as far as their tools are there."""
    known = {tool.name for tool in listed}
    for call in context().get("toolCalls", []):
        if call["name"] in known:
            with suppress(MCPError, ValueError, RuntimeError):
                await client.call_tool(call["name"], call.get("arguments") or {})


async def echoes(client: Client, listed: list[mcp_types.Tool]) -> None:
    """Gives back the schema it was shown."""
    shown = next(tool.input_schema for tool in listed if tool.name == "json_schema_2020_12_tool")
    await client.call_tool("json_schema_echo", {"schema": shown})


SCENARIOS: Mapping[str, Does] = {
    "initialize": lists,
    "auth/client-credentials-basic": lists,
    "tools_call": calls("add_numbers", a=5, b=3),
    "sse-retry": calls("test_reconnection"),
    "elicitation-sep1034-client-defaults": calls("test_client_elicitation_defaults"),
    "request-metadata": calls("add_numbers", a=5, b=3),
    "http-standard-headers": calls_all,
    "http-custom-headers": calls_told,
    "http-invalid-tool-headers": calls_all,
    "json-schema-ref-no-deref": lists,
    "json-schema-2020-12-preservation": echoes,
    "sep-2322-client-request-state": calls(
        "test_mrtr_echo_state", "test_mrtr_unrelated", "test_mrtr_no_state", "test_mrtr_no_result_type"
    ),
}


async def elicited(context: Any, params: mcp_types.ElicitRequestParams) -> mcp_types.ElicitResult:
    """Accepts, with the defaults; where there is none, the least that the schema takes."""
    schema: Mapping[str, Any] = getattr(params, "requested_schema", {})
    properties: Mapping[str, Mapping[str, Any]] = schema.get("properties", {})
    content = {
        name: told.get("default", EXAMPLES.get(told.get("type", ""), "x"))
        for name, told in properties.items()
        if "default" in told or name in schema.get("required", [])
    }
    return mcp_types.ElicitResult(action="accept", content=content)


async def sampled(context: Any, params: mcp_types.CreateMessageRequestParams) -> mcp_types.CreateMessageResult:
    said = mcp_types.TextContent(type="text", text="Paris")
    return mcp_types.CreateMessageResult(role="assistant", content=said, model="none")


async def rooted(context: Any) -> mcp_types.ListRootsResult:
    return mcp_types.ListRootsResult(roots=[])


def mode(scenario: str) -> Any:
    modern = os.environ.get("MCP_CONFORMANCE_PROTOCOL_VERSION", "") in MODERN_PROTOCOL_VERSIONS
    return "auto" if modern and scenario not in HANDSHAKE_ONLY else "legacy"


class Kept:
    """What a client of OAuth keeps."""

    def __init__(self) -> None:
        self.tokens: Any = None
        self.client: Any = None

    async def get_tokens(self) -> Any:
        return self.tokens

    async def set_tokens(self, tokens: Any) -> None:
        self.tokens = tokens

    async def get_client_info(self) -> Any:
        return self.client

    async def set_client_info(self, client_info: Any) -> None:
        self.client = client_info


def context() -> dict[str, Any]:
    """What the suite hands over besides the scenario's name."""
    return json.loads(os.environ.get("MCP_CONFORMANCE_CONTEXT") or "{}")


async def play(scenario: str, url: str, *, signs_in: bool = True) -> None:
    """signs_in: by itself, where the scenario is about that."""
    told, auth = context(), None
    if signs_in and scenario.startswith("auth/"):
        auth = ClientCredentialsOAuthProvider(url, Kept(), told["client_id"], told["client_secret"])
    with anyio.fail_after(CALL_S):
        async with (
            httpx2.AsyncClient(auth=auth, timeout=CALL_S) as http,
            Client(
                streamable_http_client(url, http_client=http),
                mode=mode(scenario),
                elicitation_callback=elicited,
                sampling_callback=sampled,
                list_roots_callback=rooted,
            ) as client,
        ):
            listed = (await client.list_tools()).tools
            await SCENARIOS[scenario](client, listed)


if __name__ == "__main__":
    anyio.run(play, os.environ["MCP_CONFORMANCE_SCENARIO"], sys.argv[-1])
