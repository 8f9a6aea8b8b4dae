"""One admitted call to its backend and back: injected identity, one deadline, inspection of what came.

The state `dispatching` is committed before this is entered, so whatever happens here ends in a recorded outcome.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, cast

from broker.catalog.catalog import Entry
from broker.errors import BrokerError, Internal, TimedOut, Unavailable
from broker.model.answer import Answer
from broker.model.back import ASKING_S
from broker.model.call import Call
from broker.model.sketch import Sketch
from broker.model.tool import Tool
from broker.ports import Backend

_SOURCES: Mapping[str, Callable[[Call], str]] = {
    "caller.agent": lambda call: call.principal.agent,
    "caller.user": lambda call: call.principal.user,
    "caller.tenant": lambda call: call.principal.tenant,
    "call.id": lambda call: call.id,
}

LOOK_EVERY_S = 0.5

# A backend keeps the tool's deadline itself, because only it knows whether bytes have left. This much later dispatch
# stops waiting for a backend that does not.
GRACE_S = 2.0


class Patience:
    """Ends the dispatches whose backends do not keep their deadlines: one timer for all of them, because a scope or a
    timer for each call costs it more than everything else here, and has to go off for a bug of ours only.
    """

    def __init__(self) -> None:
        self._until: dict[asyncio.Task[Any], float] = {}  # when each is to end; gone when it was told to
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None  # of the first call: to look for it is a system call

    def begin(self, seconds: float) -> asyncio.Task[Any]:
        """The current task, which is to call `end` within so many seconds; it is cancelled otherwise."""
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        assert task is not None, "calls are made in tasks"  # noqa: S101
        self._until[task] = loop.time() + seconds
        if self._timer is None:
            self._timer = loop.call_later(LOOK_EVERY_S, self._look, loop)
        return task

    def end(self, task: asyncio.Task[Any]) -> None:
        self._until.pop(task, None)

    def is_over(self, task: asyncio.Task[Any]) -> bool:
        """Of a task that was cancelled: whether this did it, and nobody else, perhaps in the same moment."""
        return task not in self._until and not task.uncancel()

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for task, until in tuple(self._until.items()):
            if until <= now:
                del self._until[task]
                task.cancel()
        self._timer = loop.call_later(LOOK_EVERY_S, self._look, loop) if self._until else None


def patience_s(call: Call, tool: Tool) -> float:
    """How long a dispatch may take."""
    asking_s = ASKING_S if call.back is not None and call.back.ask is not None else 0.0
    return tool.timeout_s + GRACE_S + asking_s


def dispatched(entry: Entry, call: Call, backends: Mapping[str, Backend]) -> Awaitable[Answer]:
    """Make the call once, when this is awaited.

    Raises what `Backend.call` raises; Unavailable when the backend is not configured any more. On cancel: the backend
    abandons the request; what became of it is unknown.
    """
    tool = entry.tool
    backend = backends.get(tool.backend) or _backend(entry, backends)
    return backend.call(tool, _filled(entry, call) if tool.inject else call.arguments, call)


def inspected(entry: Entry, call: Call, answer: Answer) -> Answer:
    """The answer as the manifest says. Raises as `Entry.shape`."""
    return entry.shape(answer) if call.inquiry is None else _of_task(entry, answer)


def overdue(tool: Tool) -> TimedOut:
    """How a dispatch ends that `Patience` has cancelled."""
    return TimedOut(
        f"{tool.name} did not answer within {tool.timeout_s:g} s; whether it was done is unknown.",
        next_step="Check before you try again.",
    )


def _of_task(entry: Entry, answer: Answer) -> Answer:
    """What is told of a task, with the result in it held against all that the tool's own answers are."""
    result: Any = answer.more.get("result")
    if not isinstance(result, Mapping):
        return answer
    shaped = entry.shape(Answer.from_result(cast("Mapping[str, Any]", result)))
    return replace(answer, more={**answer.more, "result": shaped.result()})


def sketch(entry: Entry, call: Call, backends: Mapping[str, Backend]) -> Sketch:
    """What `dispatched` sends for this call when it runs later, by itself: without what only the request under way
    has (`_meta`, trace). Raises InvalidArguments for what cannot be sent; Unavailable as `dispatched`."""
    alone = replace(call, meta={}, trace_parent="", progress=None)
    return _backend(entry, backends).sketch(entry.tool, _filled(entry, alone), alone)


def _backend(entry: Entry, backends: Mapping[str, Backend]) -> Backend:
    backend = backends.get(entry.tool.backend)
    if backend is None:
        raise Unavailable(
            f"Backend {entry.tool.backend!r} is not configured any more.", next_step="Ask for the tool list again."
        )
    return backend


def _filled(entry: Entry, call: Call) -> Mapping[str, object]:
    """The arguments with what the broker fills in."""
    return {**call.arguments, **{name: _SOURCES[source](call) for name, source in entry.tool.inject}}


def as_broker_error(error: Exception) -> BrokerError:
    """A failure of dispatch as the caller may see it: our bugs become Internal, with nothing of the inside."""
    if isinstance(error, BrokerError):
        return error
    internal = Internal(
        "The broker failed while the call was under way; whether it was done is unknown.",
        next_step="Give the call id to the operator.",
    )
    internal.effect = "unknown"
    return internal
