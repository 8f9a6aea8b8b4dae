"""Calls that go on as tasks: how each stands, what it is asked, and its cancelling, for the one who made it.

A task is the invocation of its call, under the call's own id (a face gives out another, which nobody can guess). What
its server asks in the middle of it, its caller answers here, and the call is made again with the answers, as a caller
without tasks would: each round is a call of its own in the records, judged as the first was. Only what lies between two
rounds is in memory; a broker that ends meanwhile makes the task one that failed.

What must not live here: how a task looks on the wire, and calls that are made for one at another server (`Inquiry`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, cast

import uuid_utils

from broker.data import dataclass, field
from broker.errors import (
    AnswerWithheld,
    Broken,
    BrokerError,
    Cancelled,
    Conflict,
    Forbidden,
    Internal,
    OutcomeUnknown,
    Refusal,
    Rejected,
    TimedOut,
    Unavailable,
    UnknownTask,
    Withdrawn,
)
from broker.model.answer import Answer
from broker.model.back import INPUT_REQUIRED, Round
from broker.model.call import Call
from broker.model.canonical import canonical
from broker.model.hold import Review
from broker.model.invocation import Invocation
from broker.model.principal import Principal
from broker.model.task import COLLECTED_MS, KEPT_MS, Status, Task
from broker.pipeline import endings
from broker.pipeline.apart import Apart
from broker.pipeline.desk import Desk
from broker.pipeline.reviewers import name_of
from broker.pipeline.runner import Run
from broker.ports import Clock, Collected, Store

POLL_MS, POLL_HELD_MS = 500, 2_000
QUESTIONS, QUESTION_BYTES = 1_000, 67_108_864  # open at once, in all; beyond it the oldest are forgotten
WITHDRAWN = "withdrawn by the caller"
_FAILED = {kind.code for kind in (Unavailable, TimedOut, Broken, AnswerWithheld, OutcomeUnknown, Internal)}


@dataclass(slots=True)
class _Question:
    """A call that its server asked about. given: what its caller has answered so far. size_bytes: of all of it."""

    call: Call
    asks: Mapping[str, Any]
    state: str | None
    size_bytes: int
    given: dict[str, Any] = field(default_factory=dict[str, Any])
    is_answered: bool = False  # the next round is being made
    is_cancelled: bool = False


class Tasks:
    """perform: makes the next round of a call. run: as of `Desk.stands`. results_ms: as of `Retention`."""

    def __init__(
        self,
        *,
        store: Store,
        desk: Desk,
        clock: Clock,
        apart: Apart,
        perform: Callable[[Call], Awaitable[Answer]],
        run: Run,
        results_ms: int,
    ) -> None:
        self._store = store
        self._desk = desk
        self._clock = clock
        self._apart = apart
        self._perform = perform
        self._run = run
        self._results_ms = results_ms
        self._questions: OrderedDict[str, _Question] = OrderedDict()  # by call
        self._next: OrderedDict[str, str] = OrderedDict()  # call -> call of the next round

    def asked(self, call: Call, answer: Answer) -> None:
        """The server of this call, which may go on as a task, wants to know something first."""
        if answer.more.get("resultType") != INPUT_REQUIRED:
            return
        asks: Any = answer.more.get("inputRequests")
        state = cast("str | None", answer.more.get("requestState"))
        size = len(answer.encoded()) + len(canonical(call.arguments))
        self._questions[call.id] = _Question(call, dict(asks or {}), state, size)
        self._trim()

    async def begun(self, call_id: str, principal: Principal) -> Task:
        """The task as it is first told of. Raises UnknownTask."""
        invocation = await self._own(call_id, principal)
        return self._task(invocation, "working", None)

    async def look(self, call_id: str, principal: Principal) -> Task:
        """How it stands now; of a held call, its caller has been told when this returns. Raises UnknownTask."""
        invocation = await self._own(self._latest(call_id), principal)
        ended = await self._ended(invocation, principal)
        invocation = await self._own(invocation.call_id, principal)
        if not isinstance(ended, Answer) or ended.more.get("resultType") != INPUT_REQUIRED:
            return self._task(invocation, _status(invocation, ended), ended)
        if self._latest(call_id) != invocation.call_id:
            return await self.look(call_id, principal)  # it was answered while we looked
        question = self._questions.get(invocation.call_id)
        if question is None and self._apart.has(invocation.call_id):
            return self._task(invocation, "working", None)  # recorded, and what it asks is not written down yet
        if question is None:
            lost = OutcomeUnknown("The broker ended while this call waited for input.", next_step="Make it again.")
            return self._task(invocation, "failed", lost)
        if question.is_cancelled:
            return self._task(invocation, "cancelled", None)
        if question.is_answered:
            return self._task(invocation, "working", None)
        left = {name: ask for name, ask in question.asks.items() if name not in question.given}
        return replace(self._task(invocation, "input_required", None), asks=left)

    async def answer(self, call_id: str, principal: Principal, responses: Mapping[str, Any]) -> None:
        """Give answers to what is asked; what is not asked is ignored. The last one makes the call go on. Raises
        UnknownTask."""
        latest = (await self._own(self._latest(call_id), principal)).call_id
        question = self._questions.get(latest)
        if question is None or question.is_cancelled or question.is_answered:
            return
        answers = {name: given for name, given in responses.items() if name in question.asks}
        question.given |= answers
        question.size_bytes += len(canonical(answers))
        if question.given.keys() < question.asks.keys():
            self._trim()
            return
        again = replace(
            question.call,
            id=str(uuid_utils.uuid7()),
            received_at_ms=self._clock.now_ms(),
            round=Round(question.given, question.state),
            progress=None,
            back=None,
            laps_us={},
        )
        question.is_answered = True
        try:
            await self._perform(again)
        except BrokerError:
            pass  # as records have it, which is what is looked at
        finally:
            self._questions.pop(latest, None)
            self._next[latest] = again.id
            if len(self._next) > QUESTIONS:
                self._next.popitem(last=False)
            if question.is_cancelled:
                self._apart.cancel(again.id)

    async def cancel(self, call_id: str, principal: Principal) -> None:
        """Take the call back, or end it; one that has ended stays as it is. Raises UnknownTask."""
        invocation = await self._own(self._latest(call_id), principal)
        if question := self._questions.get(invocation.call_id):
            question.is_cancelled = True
        elif invocation.state in ("held", "approved"):
            await self._withdraw(invocation, principal)
        elif invocation.state == "dispatching":
            self._apart.cancel(invocation.call_id)

    async def stamp(self, call_id: str, principal: Principal) -> tuple[str, str, int]:
        """What is another as soon as the task stands otherwise, for little. Raises UnknownTask."""
        invocation = await self._own(self._latest(call_id), principal)
        return invocation.call_id, invocation.state, invocation.changed_at_ms

    async def changed(self, timeout_s: float) -> bool:
        """As `Store.changed`."""
        return await self._store.changed(timeout_s)

    # ------------------------------------------------------------------------------------------------------- records

    def _latest(self, call_id: str) -> str:
        while call_id in self._next:
            call_id = self._next[call_id]
        return call_id

    def _trim(self) -> None:
        size = sum(question.size_bytes for question in self._questions.values())
        while len(self._questions) > QUESTIONS or size > QUESTION_BYTES:
            size -= self._questions.popitem(last=False)[1].size_bytes

    async def _own(self, call_id: str, principal: Principal) -> Invocation:
        invocation = await self._store.invocation(call_id)
        if invocation is None or invocation.principal_key != principal.key:
            raise UnknownTask("You have no task of this id.", next_step="Use the task id you were given.")
        return invocation

    async def _ended(self, invocation: Invocation, principal: Principal) -> Answer | BrokerError | None:
        try:
            if invocation.hold is not None:
                return endings.ended(await self._desk.stands(invocation.call_id, principal, self._run))
            if invocation.state == "denied":
                return Forbidden(invocation.message)
            kept = b"" if invocation.state == "dispatching" else await self._store.result(invocation.call_id)
            return endings.ended(Collected(invocation, kept or b""))
        except BrokerError as error:
            return error

    async def _withdraw(self, invocation: Invocation, principal: Principal) -> None:
        review = Review(
            call_id=invocation.call_id,
            decision="withdraw",
            reviewer=name_of(principal),
            reason=WITHDRAWN,
            at_ms=self._clock.now_ms(),
            via=invocation.face,
        )
        try:
            await self._store.review(review)
        except Conflict:
            return  # somebody decided, or it runs: what is done stays done

    def _task(self, invocation: Invocation, status: Status, ended: Answer | BrokerError | None) -> Task:
        hold = invocation.hold
        kept_ms = KEPT_MS if hold is None else hold.expires_at_ms - invocation.at_ms + COLLECTED_MS
        working = ""
        if status == "working":
            working = f"{invocation.tool} is under way." if hold is None else self._desk.still_open(invocation).message
        return Task(
            call_id=invocation.call_id,
            status=status,
            created_at_ms=invocation.at_ms,
            changed_at_ms=invocation.changed_at_ms,
            ttl_ms=min(kept_ms, self._results_ms),
            poll_ms=POLL_MS if hold is None else POLL_HELD_MS,
            message=working,
            ended=ended,
        )


def _status(invocation: Invocation, ended: Answer | BrokerError | None) -> Status:
    """A result and a refusal are for the model to read, and complete the task. It failed when there is neither: nobody
    answered so that it can be told, or the server did by an error of the protocol."""
    if ended is None:
        return "working"
    by_caller = invocation.hold is not None and invocation.hold.reviewer != "broker"
    if invocation.code == Cancelled.code or (isinstance(ended, Withdrawn) and by_caller):
        return "cancelled"
    if isinstance(ended, Answer | Refusal):
        return "completed"
    is_protocols = invocation.code == Rejected.code and not invocation.backend_status
    return "failed" if is_protocols or invocation.code in _FAILED else "completed"
