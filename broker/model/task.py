"""A call that its caller asks about later: what the tasks extension of MCP says of one, free of any wire.

Any call can be one that a person has to decide on, and that of a tool whose manifest says it may take long. A task is
no thing of its own: it is the invocation, so it is as durable as the records are, and there is nothing to keep in step.

Source: SEP-2663, `io.modelcontextprotocol/tasks`, declared with each request of the 2026-07-28 revision.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast

from broker.data import dataclass, field
from broker.errors import BrokerError
from broker.model.answer import Answer

EXTENSION = "io.modelcontextprotocol/tasks"
TASK = "task"
"""`resultType` of an answer that only says how to ask for the result."""

Status = Literal["working", "input_required", "completed", "failed", "cancelled"]
Method = Literal["tasks/get", "tasks/update", "tasks/cancel"]
METHODS: tuple[Method, ...] = ("tasks/get", "tasks/update", "tasks/cancel")

KEPT_MS = 86_400_000  # how long the result of a call that ran as a task is kept from its end
COLLECTED_MS = 3_600_000  # how long that of a held call is, from its collection and from when its hold would have ended


@dataclass(frozen=True, slots=True)
class Long:
    """What a manifest says of a tool that may take long.

    after_s: a call that takes longer goes on as a task. required: it is not made for callers that take no tasks.
    """

    after_s: float = 2.0
    required: bool = False


@dataclass(frozen=True, slots=True)
class Inquiry:
    """About a task at the tool's own server, instead of a call of the tool. responses: of tasks/update."""

    method: Method
    task_id: str
    responses: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class Task:
    """How a call stands. message: for people, while it works. ttl_ms: from created_at_ms, how long it can be asked for.

    ended: its answer, or why there is none. asks: what its server wants to know first (`inputRequests`).
    """

    call_id: str
    status: Status
    created_at_ms: int
    changed_at_ms: int
    ttl_ms: int
    poll_ms: int
    message: str = ""
    ended: Answer | BrokerError | None = None
    asks: Mapping[str, Any] = field(default_factory=dict[str, Any])


def takes_tasks(capabilities: Mapping[str, Any]) -> bool:
    """Whether these client capabilities declare the extension."""
    extensions: Any = capabilities.get("extensions")
    return isinstance(extensions, Mapping) and isinstance(cast("dict[str, Any]", extensions).get(EXTENSION), Mapping)
