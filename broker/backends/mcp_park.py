"""Calls of a modern caller that wait, at a handshake-era server, for an answer of that caller.

Such a server asks in the middle of its work; a caller of the 2026-07-28 revision is asked by the answer and comes back
with a new request. In between the server's request goes on here, in a task of its own: bound to the principal, bounded
in number and in time, and in this process only. For the pipeline each of the caller's requests is a call of its own,
authorised, charged and recorded, as it is with a modern server.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from secrets import token_urlsafe
from typing import Any, cast

import anyio
from anyio.abc import TaskGroup

from broker.data import dataclass, field
from broker.errors import BrokerError, Internal, Rejected
from broker.model.back import INPUT_REQUIRED, Ask, Back, Declined
from broker.model.call import Call, Progress

STAY_S = 300.0
PARKED, PARKED_OF_ONE = 256, 16  # of one backend, of one principal there
INVALID_PARAMS, INTERNAL_ERROR = -32602, -32603

Run = Callable[[Back, Progress], Awaitable[dict[str, Any]]]
"""The server's request from beginning to end, with the way back to whoever waits for it now."""


@dataclass(slots=True, eq=False)
class _Question:
    method: str
    params: Mapping[str, Any]
    settled: anyio.Event = field(default_factory=anyio.Event)
    answer: dict[str, Any] = field(default_factory=dict[str, Any])


class _Parked:
    def __init__(self, call: Call, admits: Callable[[], bool]) -> None:
        self.name = token_urlsafe(16)
        self.call: Call | None = call  # whose caller waits now
        self.owner = call.principal.key
        self.scope = anyio.CancelScope()
        self.questions: dict[str, _Question] = {}
        self.is_over = False
        self.result: dict[str, Any] = {}
        self.error: BrokerError | None = None
        self._admits = admits
        self._asked = 0
        self._turn = anyio.Event()

    def stir(self) -> None:
        self._turn.set()
        self._turn = anyio.Event()

    async def ask(self, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
        if not self._admits():
            raise Declined(INTERNAL_ERROR, "Too many calls wait for answers.")
        self._asked += 1
        name = f"{method.partition('/')[0]}-{self._asked}"
        question = self.questions[name] = _Question(method, params)
        self.stir()
        try:
            with anyio.move_on_after(STAY_S):
                await question.settled.wait()
                return question.answer
        finally:
            self.questions.pop(name, None)
        self.scope.cancel()  # nobody came back
        raise Declined(INTERNAL_ERROR, "Nobody answered in time.")

    async def log(self, params: Mapping[str, Any]) -> None:
        if self.call is not None and self.call.back is not None:
            await self.call.back.log(params)

    async def progress(self, progress: float, total: float | None, message: str | None) -> None:
        if self.call is not None and self.call.progress is not None:
            await self.call.progress(progress, total, message)

    async def next(self) -> dict[str, Any]:
        """The result, or what is asked next. On cancel: the server's request ends too."""
        try:
            while not (self.is_over or self.questions):
                await self._turn.wait()
        except BaseException:
            self.scope.cancel()
            raise
        self.call = None
        if not self.is_over:
            asked = {
                name: {"method": one.method, "params": _modern(one.method, one.params)}
                for name, one in self.questions.items()
            }
            return {"resultType": INPUT_REQUIRED, "inputRequests": asked, "requestState": self.name}
        if self.error is not None:
            raise self.error
        return self.result


def _modern(method: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """Params of a handshake-era question, as the modern revision has them; `_meta` is between that server and us."""
    asked = {key: value for key, value in params.items() if key != "_meta"}
    if method == "elicitation/create":
        asked.setdefault("mode", "form")
    return asked


class Lot:
    def __init__(self, backend: str, tasks: TaskGroup) -> None:
        self._backend = backend
        self._tasks = tasks
        self._parked: dict[str, _Parked] = {}

    def __len__(self) -> int:
        return len(self._parked)

    async def begin(self, call: Call, run: Run, prepared: Callable[[Back], Back]) -> dict[str, Any]:
        """Send the request; its result, or an `input_required` one. prepared: guards the way back."""
        parked = _Parked(call, lambda: self._has_room(call.principal.key))
        self._parked[parked.name] = parked
        level = call.back.log_level if call.back else ""
        ask: Ask = parked.ask
        self._tasks.start_soon(self._keep, parked, run, prepared(Back(parked.log, level, ask=ask)))
        return await parked.next()

    async def resume(self, call: Call, state: str, responses: Mapping[str, Any] | None) -> dict[str, Any]:
        """Go on where `state` left off, with the caller's answers. Raises Rejected when there is no such call."""
        parked = self._parked.get(state)
        if parked is None or parked.owner != call.principal.key or parked.call is not None:
            raise Rejected(
                f"Backend {self._backend!r} does not wait for these answers (any more). Nothing was done.",
                next_step="Call again from the beginning.",
                rpc_code=INVALID_PARAMS,
            )
        parked.call = call
        for name, answer in (responses or {}).items():
            question = parked.questions.get(name)
            if question is not None and isinstance(answer, Mapping):
                question.answer = dict(cast("Mapping[str, Any]", answer))
                del parked.questions[name]
                question.settled.set()
        return await parked.next()

    def _has_room(self, owner: str) -> bool:
        waiting = [parked for parked in self._parked.values() if parked.questions]
        return len(waiting) < PARKED and sum(parked.owner == owner for parked in waiting) < PARKED_OF_ONE

    async def _keep(self, parked: _Parked, run: Run, back: Back) -> None:
        try:
            with parked.scope:
                parked.result = await run(back, parked.progress)
            if parked.scope.cancelled_caught:
                parked.error = Rejected(f"Backend {self._backend!r} waited too long for answers.")
        except BrokerError as error:
            parked.error = error
        except Exception as error:  # noqa: BLE001 – a task of the house must not end the house; its caller is told
            parked.error = Internal(
                f"The broker failed while backend {self._backend!r} worked ({type(error).__name__})."
            )
            parked.error.effect = "unknown"
        finally:
            parked.is_over = True
            parked.stir()
        if parked.call is None:  # it ended between two requests of its caller, who may still come for the result
            await anyio.sleep(STAY_S)
        self._parked.pop(parked.name, None)
