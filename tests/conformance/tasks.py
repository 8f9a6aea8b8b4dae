"""The tools that the suite's `tasks-*` scenarios call, and a server that runs them as tasks by itself, if it is to.

Nothing runs beside the requests: what a job comes to is worked out when somebody asks and its time is over. Without
tasks the same tools are slow, and ask what they have to know as any other call of several rounds does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from secrets import token_urlsafe
from typing import Any

import anyio
import mcp_types
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel.server import Server
from mcp.shared.exceptions import MCPError
from mcp.shared.inbound import decode_header_value
from pydantic import ConfigDict
from pydantic.alias_generators import to_camel

from tests.conformance.rounds import NAME, Result, ask, form, text

Context = ServerRequestContext[Any, Any]
EXTENSION = "io.modelcontextprotocol/tasks"
INVALID_PARAMS, HEADER_MISMATCH, MISSING_CAPABILITY = -32602, -32020, -32021
REQUIRED: Mapping[str, Any] = {"requiredCapabilities": {"extensions": {EXTENSION: {}}}}
LIFETIME_MS = 600_000


def _given(params: Mapping[str, Any]) -> Mapping[str, Any]:
    return params.get("inputResponses") or {}


def greet(params: Mapping[str, Any]) -> Result:
    return text(f"Hello, {params['arguments']['name']}!")


def slow_compute(params: Mapping[str, Any]) -> Result:
    return text(f"Computed {params['arguments'].get('label', '')}")


def failing_job(_params: Mapping[str, Any]) -> Result:
    return {**text("It always fails."), "isError": True}


def protocol_error_job(_params: Mapping[str, Any]) -> Result:
    raise MCPError(mcp_types.INTERNAL_ERROR, "The server fell over.")


def confirm_delete(params: Mapping[str, Any]) -> Result:
    return text("Deleted.") if "confirm" in _given(params) else ask(confirm=form("Delete it?", confirm="boolean"))


def multi_input(params: Mapping[str, Any]) -> Result:
    if {"one", "two"} <= _given(params).keys():
        return text("Both are known.")
    return ask(one=form("One?", name="string"), two=form("Two?", name="string"))


def with_task(params: Mapping[str, Any]) -> Result:
    if "user_name" not in _given(params):
        return ask(user_name=NAME)
    return text(f"Done for {_given(params)['user_name']['content']['name']}.")


@dataclass(frozen=True, slots=True)
class Job:
    """takes_s: by its arguments. is_task: whether this request of it becomes a task. required: never without one."""

    does: Callable[[Mapping[str, Any]], Result]
    takes_s: Callable[[Mapping[str, Any]], float] = lambda _arguments: 0.0
    is_task: Callable[[Mapping[str, Any]], bool] = lambda _params: True
    required: bool = False
    properties: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def schema(self) -> dict[str, Any]:
        return {"type": "object", "properties": dict(self.properties)}


JOBS: Mapping[str, Job] = {
    "greet": Job(greet, is_task=lambda _params: False, properties={"name": {"type": "string"}}),
    "slow_compute": Job(
        slow_compute,
        lambda arguments: float(arguments.get("seconds", 0)),
        properties={"seconds": {"type": "number"}, "label": {"type": "string"}},
    ),
    "failing_job": Job(failing_job, lambda _arguments: 0.5, required=True),
    "protocol_error_job": Job(protocol_error_job, lambda _arguments: 0.2),
    "confirm_delete": Job(confirm_delete, properties={"filename": {"type": "string"}}),
    "multi_input": Job(multi_input),
    "test_tool_with_task": Job(with_task, is_task=lambda params: bool(_given(params)), required=True),
}
OWN_TASKS = "\n".join(
    f"  {name}: {{task: {{after: {after}, required: {str(job.required).lower()}}}}}"
    for name, job in JOBS.items()
    if name != "greet"
    for after in ["500ms" if name == "test_tool_with_task" else "1ms"]
)
"""For the manifest of a broker that makes tasks of them by itself."""


class TaskParams(mcp_types.RequestParams):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="allow")

    task_id: str


@dataclass(slots=True)
class _Task:
    job: Job
    params: Mapping[str, Any]
    ready_at: float
    created: str
    given: dict[str, Any] = field(default_factory=dict[str, Any])
    is_cancelled: bool = False


class Tasks:
    """is_plain: the server makes no tasks."""

    def __init__(self, *, is_plain: bool = False) -> None:
        self._is_plain = is_plain
        self._tasks: dict[str, _Task] = {}

    def register(self, server: Server[Any]) -> None:
        if self._is_plain:
            return
        server.extensions[EXTENSION] = {}
        for name, does in (("get", self._get), ("update", self._update), ("cancel", self._cancel)):
            server.add_request_handler(f"tasks/{name}", TaskParams, does)

    async def call(self, context: Context, params: Mapping[str, Any]) -> Result:
        job = JOBS[str(params["name"])]
        arguments: Mapping[str, Any] = params.get("arguments") or {}
        params = {**params, "arguments": arguments}
        takes_s = job.takes_s(arguments)
        if self._is_plain or not takes_tasks(context) or not job.is_task(params):
            if job.required and not self._is_plain and not takes_tasks(context):
                raise MCPError(MISSING_CAPABILITY, "only as a task", dict(REQUIRED))
            await anyio.sleep(takes_s + (1.0 if self._is_plain and _given(params) and job.required else 0.0))
            return job.does(params)
        task_id, now = token_urlsafe(12), datetime.now(UTC).isoformat()
        task = self._tasks[task_id] = _Task(job, params, anyio.current_time() + takes_s, now, {**_given(params)})
        return {"resultType": "task", **_shown(task_id, task, "working")}

    async def _get(self, context: Context, params: TaskParams) -> Result:
        task, shown = self._of(context, params), _shown
        if task.is_cancelled:
            return shown(params.task_id, task, "cancelled")
        if anyio.current_time() < task.ready_at:
            return shown(params.task_id, task, "working")
        try:
            result = task.job.does({**task.params, "inputResponses": task.given})
        except MCPError as error:
            failed = {"code": error.error.code, "message": error.error.message}
            return {**shown(params.task_id, task, "failed"), "error": failed}
        if (asks := result.get("inputRequests")) is not None:
            left = {name: one for name, one in asks.items() if name not in task.given}
            return {**shown(params.task_id, task, "input_required"), "inputRequests": left}
        return {**shown(params.task_id, task, "completed"), "result": result}

    async def _update(self, context: Context, params: TaskParams) -> Result:
        self._of(context, params).given.update((context.params or {}).get("inputResponses") or {})
        return {}

    async def _cancel(self, context: Context, params: TaskParams) -> Result:
        task = self._of(context, params)
        task.is_cancelled = task.is_cancelled or anyio.current_time() < task.ready_at
        return {}

    def _of(self, context: Context, params: TaskParams) -> _Task:
        if not takes_tasks(context):
            raise MCPError(MISSING_CAPABILITY, "declare the extension", dict(REQUIRED))
        named = context.request.headers.get("mcp-name") if context.request is not None else params.task_id
        if named is None or decode_header_value(named) != params.task_id:
            raise MCPError(HEADER_MISMATCH, "Mcp-Name is not the id of the task")
        if params.task_id not in self._tasks:
            raise MCPError(INVALID_PARAMS, "no such task")
        return self._tasks[params.task_id]


def _shown(task_id: str, task: _Task, status: str) -> Result:
    times = {"createdAt": task.created, "lastUpdatedAt": datetime.now(UTC).isoformat()}
    return {"taskId": task_id, "status": status, **times, "ttlMs": LIFETIME_MS, "pollIntervalMs": 100}


def takes_tasks(context: Context) -> bool:
    declared = context.session.client_capabilities
    extensions = declared.extensions if declared else None
    return EXTENSION in (extensions or {})
