"""`tasks/get`, `tasks/update` and `tasks/cancel`, and telling a listener how its tasks stand: the SDK's handlers.

They are of the 2026-07-28 revision, for requests that declare the extension. Of a call of the broker's own the answer
is the records'; what the tool's own server has begun is asked there, as a call is made (identity, policy, record).

The experimental tasks of 2025-11-25 are another protocol of the same name; the SDK leaves them out, and so do we.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, cast

import anyio
import mcp_types
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel.server import Server
from mcp.shared.exceptions import MCPError
from pydantic import ConfigDict
from pydantic.alias_generators import to_camel

from broker.errors import BrokerError, UnknownTask
from broker.faces.mcp.agreement import INVALID_PARAMS, MODERN
from broker.faces.mcp.calls import MISSING_CAPABILITY, REQUIRED_TASKS, build_call, without_server
from broker.faces.mcp.parts import as_error
from broker.faces.mcp.ports import House, Meant
from broker.faces.mcp.relay import scope_of
from broker.faces.mcp.request import FACE, PRINCIPAL
from broker.faces.mcp.tasks import responses_of
from broker.model.call import Call
from broker.model.principal import Principal
from broker.model.task import EXTENSION, METHODS, Inquiry, Method, takes_tasks

Context = ServerRequestContext[Any, Any]
Tell = Callable[[Mapping[str, Any]], Awaitable[None]]

FOLLOWED = 50  # tasks by one listen stream
PAUSE_S, LOOK_EVERY_S = 0.25, 10.0
UNKNOWN = "You have no task of this id."


class TaskParams(mcp_types.RequestParams):
    """Of all three methods."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="allow")

    task_id: str


class Inquiries:
    def __init__(self, house: House) -> None:
        self._house = house

    def register(self, server: Server[Any]) -> None:
        server.extensions[EXTENSION] = {}
        for method in METHODS:
            server.add_request_handler(method, TaskParams, self._handler(method))

    def _handler(self, method: Method) -> Callable[[Context, TaskParams], Awaitable[dict[str, Any]]]:
        async def handle(context: Context, _params: TaskParams) -> dict[str, Any]:
            _check_declared(context, method)
            principal: Principal = scope_of(context)[PRINCIPAL]
            params: Mapping[str, Any] = context.params or {}
            meant = self._house.tasks.meant(params.get("taskId"), principal)
            if meant is None:
                raise MCPError(INVALID_PARAMS, UNKNOWN)
            responses = responses_of(params) if method == "tasks/update" else {}
            if responses is None:
                raise MCPError(INVALID_PARAMS, "params.inputResponses must be an object of objects")
            if meant.tool:
                return await self._ask(context, Inquiry(method, meant.inner, responses), meant)
            try:
                return await self._own(method, meant, str(params["taskId"]), principal, responses)
            except UnknownTask as error:
                raise MCPError(INVALID_PARAMS, error.message) from None

        return handle

    async def _own(
        self, method: Method, meant: Meant, task_id: str, principal: Principal, responses: Mapping[str, Any]
    ) -> dict[str, Any]:
        tasks = self._house.pipeline.tasks
        if method == "tasks/get":
            return await self._house.tasks.look(meant, task_id, principal)
        if method == "tasks/update":
            await tasks.answer(meant.inner, principal, responses)
        else:
            await tasks.cancel(meant.inner, principal)
        return {}

    async def _ask(self, context: Context, inquiry: Inquiry, meant: Meant) -> dict[str, Any]:
        """Ask the server that has the task, through the one door there is."""
        params, scope = context.params or {}, scope_of(context)
        capabilities = context.session.client_capabilities
        call = build_call(
            {"name": meant.tool, "_meta": params.get("_meta")},
            principal=scope[PRINCIPAL],
            face=scope[FACE],
            now_ms=self._house.clock.now_ms(),
            request_id=context.request_id,
            capabilities=capabilities.model_dump(by_alias=True, exclude_none=True) if capabilities else {},
        )
        call.inquiry = inquiry
        result = await self._asked(call)
        if inquiry.method != "tasks/get":
            return {}
        return without_server({**result, "taskId": params["taskId"]})

    async def _asked(self, call: Call) -> dict[str, Any]:
        try:
            return dict((await self._house.pipeline.perform(call)).more)
        except BrokerError as error:
            code, message, data = as_error(error, call, modern=True)
            raise MCPError(code, message, data) from None

    # ----------------------------------------------------------------------------------------------- telling listeners

    def followed(self, context: Context, asked: object) -> list[str]:
        """Which of these ids of tasks a listen stream is told about: its caller's own calls."""
        if not isinstance(asked, list) or not takes_tasks(_declared(context)):
            return []
        principal = scope_of(context)[PRINCIPAL]
        ids = [one for one in cast("list[Any]", asked)[:FOLLOWED] if isinstance(one, str)]
        return [one for one in ids if (meant := self._house.tasks.meant(one, principal)) and not meant.tool]

    async def follow(self, context: Context, task_ids: Sequence[str], tell: Tell) -> None:
        """Tell of each of these tasks whenever it stands otherwise, until all have ended."""
        principal: Principal = scope_of(context)[PRINCIPAL]
        left: dict[str, tuple[object, str]] = dict.fromkeys(task_ids, (None, ""))  # as last looked at
        while left:
            for task_id, (stamp, status) in tuple(left.items()):
                meant = self._house.tasks.meant(task_id, principal)
                assert meant is not None, "only ids that were opened are followed"  # noqa: S101
                try:
                    now = await self._house.pipeline.tasks.stamp(meant.inner, principal)
                    if now == stamp:
                        continue
                    told = await self._house.tasks.look(meant, task_id, principal)
                except UnknownTask:
                    del left[task_id]
                    continue
                if told["status"] != status:
                    await tell(told)
                left[task_id] = now, told["status"]
                if told["status"] in ("completed", "failed", "cancelled"):
                    del left[task_id]
            await anyio.sleep(PAUSE_S)  # however busy the records are with other calls
            await self._house.pipeline.tasks.changed(LOOK_EVERY_S)


def _declared(context: Context) -> Mapping[str, Any]:
    capabilities = context.session.client_capabilities
    return capabilities.model_dump(by_alias=True, exclude_none=True) if capabilities else {}


def _check_declared(context: Context, method: str) -> None:
    if context.protocol_version not in MODERN:
        raise MCPError(mcp_types.METHOD_NOT_FOUND, f"Method not found: {method}")
    if not takes_tasks(_declared(context)):
        raise MCPError(MISSING_CAPABILITY, f"{method} is for clients that declare {EXTENSION}", REQUIRED_TASKS)
