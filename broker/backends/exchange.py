"""One call on its way to a backend, and what is known about it: how "nothing left" is told from "nobody can say".

It travels in a context variable and not in arguments, because the MCP SDK stands between a call and the socket: it
carries the context of whoever sent a message into the task that posts it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from contextvars import ContextVar
from typing import Any, TypeVar

import anyio

from broker.data import dataclass
from broker.errors import Broken, BrokerError, TimedOut, Unavailable
from broker.model.back import Back
from broker.model.empty import NOTHING

T = TypeVar("T")


class Cut(RuntimeError):
    """A request or its answer was cut off. error: what the caller is to be told."""

    def __init__(self, error: BrokerError) -> None:
        super().__init__(error.message)
        self.error = error


@dataclass(slots=True, eq=False)
class Exchange:
    """deadline: in anyio's clock. is_exact: nobody but the connection keeps it. send: headers of this call. repeatable:
    doing it twice does no harm. left: a byte of it was written. status: of the answer. back: how its server reaches the
    caller meanwhile. told: reserved `_meta` of this request alone, for the eras that have it. Settled once, by whoever
    is first: with a result or with an error.
    """

    deadline: float
    send: Mapping[str, str] = NOTHING
    left: bool = False
    status: int = 0
    error: BrokerError | None = None
    result: dict[str, Any] | None = None
    _is_settled: bool = False
    _wanted: anyio.Event | None = None  # made when somebody waits: most exchanges are settled where they are made
    repeatable: bool = False
    is_exact: bool = False
    back: Back | None = None
    told: Mapping[str, Any] = NOTHING

    def fail(self, error: BrokerError) -> None:
        """The first failure is the cause; what follows are its consequences."""
        if not self._is_settled:
            self.error = error
            self._settle()

    def succeed(self, result: dict[str, Any]) -> None:
        if not self._is_settled:
            self.result = result
            self._settle()

    def _settle(self) -> None:
        self._is_settled = True
        if self._wanted is not None:
            self._wanted.set()

    @property
    def is_settled(self) -> bool:
        return self._is_settled

    async def settled(self) -> None:
        """Wait for a result or an error. By one task."""
        if not self._is_settled:
            self._wanted = anyio.Event()
            await self._wanted.wait()

    async def within(self, doing: Awaitable[T]) -> T:
        """What may wait for more than the connection does. Raises TimeoutError at the deadline."""
        with anyio.fail_after(self.deadline - anyio.current_time()):
            return await doing

    def unanswered(self, sentence: str, reason: str) -> BrokerError:
        """The error for an exchange that broke, by whether anything of it had left."""
        if self.left:
            return Broken(
                f"{sentence} ({reason}); whether it was done is unknown.", next_step="Check before you try again."
            )
        return Unavailable(f"{sentence} ({reason}). Nothing was sent.", next_step="Try again shortly.", reason=reason)

    def overdue(self, backend: str, timeout_s: float) -> BrokerError:
        """The error for an exchange whose deadline passed."""
        if self.left:
            return TimedOut(
                f"Backend {backend!r} did not answer within {timeout_s:g} s; whether it was done is unknown.",
                next_step="Check before you try again.",
            )
        return Unavailable(
            f"Backend {backend!r} could not be reached within {timeout_s:g} s. Nothing was sent.",
            next_step="Try again shortly.",
        )


EXCHANGE: ContextVar[Exchange | None] = ContextVar("broker_exchange", default=None)
