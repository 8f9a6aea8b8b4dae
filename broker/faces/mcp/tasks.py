"""Tasks as agents see them: their ids, and what `tasks/get` says.

An id is sealed for the principal it is given to, so it cannot be guessed, and another's is as unknown as one that never
was. In it is a call of the broker's own, or a tool and the id that the tool's server has given; nothing has to be kept
for that, so an id is good after a restart and in every process on the same records.

What must not live here: the SDK (`inquiries` has its handlers), and how a call stands (the pipeline).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, cast

from broker.errors import BrokerError, Held, Underway
from broker.faces.mcp.ports import Meant, Pipeline
from broker.faces.mcp.sealing import Keys, Seal
from broker.faces.refusal import as_result
from broker.model.answer import Answer
from broker.model.call import Call
from broker.model.principal import Principal
from broker.model.task import TASK, Task

ID_CHARACTERS = 4_096
INTERNAL_ERROR = -32603


class Tasks:
    def __init__(self, pipeline: Pipeline, keys: Keys) -> None:
        self._pipeline = pipeline
        self._seal = Seal(keys, "task id v1")

    def meant(self, task_id: object, principal: Principal) -> Meant | None:
        """None for an id that was not given to this caller."""
        claims: Any = self._seal.open(task_id, most=ID_CHARACTERS, bound=principal.key)
        return Meant(*cast("list[str]", claims)) if isinstance(claims, list) else None

    async def created(self, error: Held | Underway, call: Call) -> dict[str, Any]:
        """`CreateTaskResult` of a call that waits for a person, or takes longer than its caller is kept waiting."""
        call_id = str(error.facts.get("hold_id") or error.facts.get("call_id"))
        task = await self._pipeline.tasks.begun(call_id, call.principal)
        return {"resultType": TASK, **shown(task, self._seal.close([call_id], call.principal.key))}

    def relayed(self, answer: Answer, call: Call) -> dict[str, Any]:
        """`CreateTaskResult` of the tool's own server, under an id of ours."""
        result = answer.result()
        del result["content"], result["isError"]
        result["taskId"] = self._seal.close([result["taskId"], call.name], call.principal.key)
        return result

    async def look(self, meant: Meant, task_id: str, principal: Principal) -> dict[str, Any]:
        """What tasks/get says of a call of the broker's own. Raises UnknownTask."""
        return detailed(await self._pipeline.tasks.look(meant.inner, principal), task_id)


def shown(task: Task, task_id: str) -> dict[str, Any]:
    """What is told of every task."""
    told: dict[str, Any] = {"taskId": task_id, "status": task.status}
    if task.message:
        told["statusMessage"] = task.message
    return told | {
        "createdAt": _iso(task.created_at_ms),
        "lastUpdatedAt": _iso(task.changed_at_ms),
        "ttlMs": task.ttl_ms,
        "pollIntervalMs": task.poll_ms,
    }


def detailed(task: Task, task_id: str) -> dict[str, Any]:
    """With what it asks, or how it ended."""
    told, ended = shown(task, task_id), task.ended
    if task.status == "input_required":
        told["inputRequests"] = dict(task.asks)
    elif task.status == "completed":
        told["result"] = ended.result() if isinstance(ended, Answer) else as_result(_error(ended), task.call_id)
    elif task.status == "failed":
        said = as_result(_error(ended), task.call_id)
        told["error"] = {
            "code": INTERNAL_ERROR,
            "message": said["content"][0]["text"],
            "data": said["structuredContent"],
        }
    return told


def _error(ended: object) -> BrokerError:
    assert isinstance(ended, BrokerError), "a task ends with an answer or with an error"  # noqa: S101
    return ended


def _iso(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def responses_of(params: Mapping[str, Any]) -> dict[str, Any] | None:
    """`inputResponses` of tasks/update; None when they are not an object of objects."""
    given: Any = params.get("inputResponses")
    if not isinstance(given, dict) or any(not isinstance(one, dict) for one in cast("dict[str, Any]", given).values()):
        return None
    return cast("dict[str, Any]", given)
