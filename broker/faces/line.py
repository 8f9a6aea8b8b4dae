"""What a connection and those who answer on it say to one another, past ASGI.

    the usual way   an ASGI request, whose extensions have a `Hangup` (HANGUP), a way to answer in one write (ANSWER)
                    and the bytes that brought it (PIECE)
    the short way   a `Shortcut` is shown the bytes before the parser is; what it takes is answered on a `Line`

What must not live here: the connection itself, and what is in a request.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop, Event, Future, Task
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

HANGUP = "broker.hangup"
"""ASGI extension: the `Hangup` of the request's connection."""

ANSWER = "broker.answer"
"""ASGI extension: sends a whole response (`Answering`)."""

PIECE = "broker.piece"
"""ASGI extension: the bytes that brought the request, when nothing came before or with them that is not its own."""

Answering = Callable[[bytes, bytes], bool]
"""Sends a whole response of status 200, given further header lines and the body; see `Connection.answer`."""


class Shortcut(Protocol):
    """A way past the parser for requests whose head is known: see `broker.faces.mcp.shortcut`."""

    def __call__(self, data: bytes, server: Any) -> object | int | None:
        """The request in these bytes, sent to this address of ours; how many bytes of it are missing; None: it goes the
        usual way."""
        ...

    def answer(self, taken: Any, line: Line) -> Coroutine[Any, Any, None]:
        """Answer what `__call__` has given; to be awaited at once, in the line's task."""
        ...

    def hold(self, size: int) -> bool:
        """Count so many bytes that wait for the rest; False when there is no room for them."""
        ...

    def let_go(self, size: int) -> None:
        """They wait no longer."""
        ...


class Hangup:
    """Tells the request being worked on that its client went away, without a task to watch for it.

    task: what is cancelled then; None while there is nothing to cancel.
    """

    __slots__ = ("gone", "task")

    def __init__(self) -> None:
        self.gone = False
        self.task: Task[Any] | None = None

    def tell(self) -> None:
        self.gone = True
        if self.task is not None:
            self.task.cancel()


class _Unasked(Event):
    """The event of a body that came whole: there is nobody to wake."""

    def set(self) -> None:
        """Nothing waits."""


UNASKED = _Unasked()


class Line:
    """In the place of uvicorn's cycle for requests that took the shortcut: one for all of a connection, as there is one
    at a time, with one task that answers them all, because a new one for each costs a call a
    twentieth.

    answer: while it can be answered so; `send` is the usual way, as in ASGI. now: the loop's time.
    """

    __slots__ = (
        "_broke", "_cycle", "_is_over", "_loop", "_taken", "_usual", "answer", "disconnected", "hangup", "keep_alive",
        "now", "response_complete", "response_started", "task",
    )  # fmt: skip

    message_event = UNASKED
    answer: Answering

    def __init__(
        self,
        hangup: Hangup,
        loop: AbstractEventLoop,
        shortcut: Shortcut,
        *,
        broke: Callable[[Line, BaseException], None],
        usual: Callable[[Line], RequestResponseCycle],
    ) -> None:
        """broke: told of a fault of ours, which ends the line. usual: uvicorn's own cycle for its request."""
        self.hangup = hangup
        self.now = loop.time
        self._loop = loop
        self._broke = broke
        self._usual = usual
        self._cycle: RequestResponseCycle | None = None
        self.disconnected = self.response_started = self.response_complete = self._is_over = False
        self.keep_alive = True
        self._taken: Future[Any] = loop.create_future()
        self.task: Task[None] = loop.create_task(self._work(shortcut))

    def take(self, taken: object) -> None:
        """Begin with a request that the shortcut has taken; the one before is answered."""
        self.response_started = self.response_complete = False
        self._taken.set_result(taken)

    async def _work(self, shortcut: Shortcut) -> None:
        while (taken := await self._taken) is not None:
            self._taken = self._loop.create_future()
            try:
                await shortcut.answer(taken, self)
            except BaseException as fault:  # noqa: BLE001 – it is logged, and there is nobody else to tell
                self._broke(self, fault)
                return
            if self._is_over:  # what was taken before is answered all the same, as it holds a part of the budget
                return

    def end(self) -> None:
        """It is of no more use: the connection is gone, or the request goes the usual way."""
        self.answer = _refuse  # or it would wait for the collector, knowing itself
        self._is_over = True
        if not self._taken.done():
            self._taken.set_result(None)

    async def send(self, message: Any) -> None:
        if self._cycle is None:
            self._cycle = self._usual(self)
        await self._cycle.send(message)


def _refuse(_head: bytes, _body: bytes) -> bool:
    return False
