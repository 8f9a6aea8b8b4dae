"""An agent as the broker sees one: an MCP client with a token. Uses the official Python client, unchanged."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import httpx2
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client
from mcp.types import TextContent

Era = Literal["legacy", "2026-07-28"]
CALL_DEADLINE_S = 30.0


@dataclass(frozen=True, slots=True)
class Reply:
    """What an agent got. is_error: as its client shows it; facts: the structured part ({} when there is none)."""

    text: str
    is_error: bool
    facts: dict[str, Any]

    @property
    def code(self) -> str:
        """The broker's code for a refusal or a hold, "" for an answer."""
        return str(self.facts.get("code", ""))


class Agent:
    def __init__(self, name: str, client: Client) -> None:
        self.name = name
        self._client = client

    async def tools(self) -> list[str]:
        return [tool.name for tool in (await self._client.list_tools()).tools]

    async def call(self, tool: str, arguments: dict[str, Any]) -> Reply:
        """One call. A refusal that comes as a JSON-RPC error is a reply like any other."""
        try:
            result = await self._client.call_tool(tool, arguments, read_timeout_seconds=CALL_DEADLINE_S)
        except MCPError as error:
            data = error.data
            return Reply(
                error.message, is_error=True, facts=cast("dict[str, Any]", data) if isinstance(data, dict) else {}
            )
        text = "\n".join(part.text for part in result.content if isinstance(part, TextContent))
        return Reply(text, is_error=bool(result.is_error), facts=result.structured_content or {})


@asynccontextmanager
async def connected(name: str, url: str, token: str, era: Era) -> AsyncGenerator[Agent]:
    """An agent connected over streamable HTTP. era: the protocol revision its client speaks."""
    headers = {"Authorization": f"Bearer {token}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=CALL_DEADLINE_S) as http,
        Client(streamable_http_client(url, http_client=http), mode=era) as client,
    ):
        yield Agent(name, client)
