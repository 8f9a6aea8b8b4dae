"""A client of the SDK that takes tasks (the extension of 2026-07-28), and raw requests about them, for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import anyio
import httpx2
import mcp_types as types
import orjson
from mcp.client.extension import ClaimContext, ClientExtension, ResultClaim
from mcp_types import Result
from pydantic import BaseModel, ConfigDict

from tests.serving import modern, modern_headers

EXTENSION = "io.modelcontextprotocol/tasks"
CAPABILITIES = "io.modelcontextprotocol/clientCapabilities"
TAKES_TASKS: Mapping[str, Any] = {"extensions": {EXTENSION: {}}}
ENDED = ("completed", "failed", "cancelled")

# A tool whose calls a policy of the story holds.
NOTES = """
kind: backend
name: files
static: {}
---
kind: tool
name: note_write
effect: write
scopes: [notes.write]
backend: files
input: {type: object, properties: {amount: {type: number}}, required: [amount]}
static: {text: written}
---
"""


class CreateTaskResult(Result):
    model_config = ConfigDict(extra="allow", populate_by_name=True)

    result_type: Literal["task"] = "task"
    taskId: str
    status: str


class _Params(types.RequestParams):
    model_config = ConfigDict(extra="allow")

    taskId: str


class _Request(types.Request[Any, str]):
    name_param = "taskId"
    params: Any = None


class _Detailed(BaseModel):
    model_config = ConfigDict(extra="allow")


class Tasks(ClientExtension):
    """Waits for its tasks by asking. seen: all that it was told of them."""

    identifier = EXTENSION

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def claims(self) -> Sequence[ResultClaim[Any]]:
        return [ResultClaim(result_type="task", model=CreateTaskResult, resolve=self._resolve)]

    async def _resolve(self, created: CreateTaskResult, context: ClaimContext) -> types.CallToolResult:
        self.seen.append(created.model_dump())
        while True:
            request = _Request(method="tasks/get", params=_Params(taskId=created.taskId))
            told = (await context.session.send_request(request, _Detailed)).model_dump()
            self.seen.append(told)
            if told["status"] in ENDED:
                return types.CallToolResult.model_validate(told["result"])
            await anyio.sleep(0.05)


class Wire:
    """Raw modern requests of one caller, who takes tasks or not."""

    def __init__(self, url: str, token: str, capabilities: Mapping[str, Any] | None = None) -> None:
        self._url, self._token, self._id = url, token, 0
        self.capabilities: Mapping[str, Any] = TAKES_TASKS if capabilities is None else capabilities

    async def ask(self, method: str, name: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """The whole JSON-RPC answer."""
        self._id += 1
        body = modern(method, params, request_id=self._id, **{CAPABILITIES: self.capabilities})
        headers = modern_headers(method, name, token=self._token)
        async with httpx2.AsyncClient(timeout=20) as http:
            text = (await http.post(f"{self._url}/mcp", json=body, headers=headers)).text
        if text.startswith(("event:", ":", "id:")):
            text = next(line for line in text.splitlines() if line.startswith("data: {")).removeprefix("data: ")
        return orjson.loads(text)

    async def call(self, tool: str, arguments: Mapping[str, Any] | None = None) -> dict[str, Any]:
        answer = await self.ask("tools/call", tool, {"name": tool, "arguments": dict(arguments or {})})
        return answer.get("result") or answer

    async def task(self, verb: str, task_id: str, **more: Any) -> dict[str, Any]:
        """The result of tasks/{verb}; the whole answer when it is an error."""
        answer = await self.ask(f"tasks/{verb}", task_id, {"taskId": task_id, **more})
        return answer.get("result") or answer

    async def ended(self, task_id: str, *states: str) -> dict[str, Any]:
        """How the task stands once it is in one of these states, or has ended."""
        with anyio.fail_after(15):
            while True:
                told = await self.task("get", task_id)
                if told["status"] in (states or ENDED):
                    return told
                await anyio.sleep(0.05)
