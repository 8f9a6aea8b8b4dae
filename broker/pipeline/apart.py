"""Calls that go on when their callers have gone: those with an idempotency key, and those that run as tasks.

Each runs in a task of the pipeline's own, within its tool's deadline, and its answer is kept for whoever asks again.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable

import anyio
from anyio.abc import TaskGroup

from broker.errors import BrokerError, Cancelled, OutcomeUnknown, Underway
from broker.model.answer import Answer
from broker.model.call import Call
from broker.pipeline.dispatch import as_broker_error

Do = Callable[[], Awaitable[Answer]]


class Apart:
    """alone: how many calls go on that nobody waits for; each still has its place among the calls of this broker."""

    def __init__(self) -> None:
        self.alone = 0
        self._tasks: TaskGroup | None = None  # while `outlive` runs
        self._running: dict[str, tuple[Call, anyio.CancelScope]] = {}

    async def outlive(self) -> None:
        """Carry on with them, for ever. One per pipeline."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            try:
                await anyio.sleep_forever()
            finally:
                self._tasks = None

    async def run(self, call: Call, do: Do, *, within_s: float = math.inf) -> Answer:
        """The answer of `do`, which has recorded how it ended. Raises what `do` raises, BrokerErrors only; Underway
        when it takes longer than `within_s`: it goes on.

        On cancel: it goes on. When the broker ends first: `do` is cancelled.
        """
        if self._tasks is None:
            return await do()
        ended, scope, left_alone = anyio.Event(), anyio.CancelScope(), False
        outcome: list[Answer | BrokerError] = []

        async def run() -> None:
            try:
                with scope:
                    outcome.append(await do())
            except Exception as error:  # noqa: BLE001 – raised again by whoever still waits; `do` has recorded it
                outcome.append(as_broker_error(error))
            finally:
                self._running.pop(call.id, None)
                ended.set()
                self.alone -= left_alone

        self._running[call.id] = call, scope
        self._tasks.start_soon(run)
        try:
            with anyio.move_on_after(within_s):
                await ended.wait()
        finally:
            left_alone = not ended.is_set()
            self.alone += left_alone
        if left_alone:
            raise underway(call.name, call.id)
        if not outcome:
            raise cancelled(call, begun=True)
        if isinstance(outcome[0], BrokerError):
            raise outcome[0]
        return outcome[0]

    def has(self, call_id: str) -> bool:
        """Whether it runs here, or what it came to is just being told."""
        return call_id in self._running

    def cancel(self, call_id: str) -> None:
        """End this call, if it goes on here: its caller asked for that."""
        if running := self._running.get(call_id):
            call, scope = running
            call.is_cancelled = True
            scope.cancel()


def underway(tool: str, call_id: str) -> Underway:
    return Underway(
        f"{tool} is under way; its result is not there yet.",
        next_step="Ask for its task later; do not send the call again.",
        call_id=call_id,
    )


def cancelled(call: Call, *, begun: bool) -> BrokerError:
    """The end of a call that was cancelled, by its caller or because that one left."""
    kind = Cancelled if call.is_cancelled else OutcomeUnknown
    who = "The caller cancelled it" if call.is_cancelled else "The caller went away"
    error = kind(f"{who} while the call was under way; whether it was done is unknown.")
    if not begun:
        error = kind(f"{who} before the call was sent. Nothing was done.")
        error.effect = "none"
    return error
