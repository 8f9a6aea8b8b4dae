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

    def work(self, line: Line, taken: Any) -> Coroutine[Any, Any, None]:
        """Answer what `__call__` has given, and then each `next` of the line, until there is none."""
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
    at a time, with one task that answers them all, because a new one for each costs a call a twentieth.

    answer: while it can be answered so; `send` is the usual way, as in ASGI. now: the loop's time.
    """

    __slots__ = (
        "_broke", "_cycle", "_is_over", "_loop", "_next", "_usual", "answer", "disconnected", "hangup", "keep_alive",
        "now", "response_complete", "response_started", "task",
    )  # fmt: skip

    message_event = UNASKED
    task: Task[None]
    answer: Answering

    def __init__(
        self,
        hangup: Hangup,
        loop: AbstractEventLoop,
        *,
        broke: Callable[[Line, BaseException], None],
        usual: Callable[[Line], RequestResponseCycle],
    ) -> None:
        """usual: uvicorn's own cycle for its request."""
        self.hangup = hangup
        self.now = loop.time
        self._loop = loop
        self._broke = broke
        self._usual = usual
        self._cycle: RequestResponseCycle | None = None
        self.disconnected = self.response_started = self.response_complete = self._is_over = False
        self.keep_alive = True
        self._next: Future[Any] | None = None

    @property
    def next(self) -> Future[Any]:
        """What the shortcut takes next, None at the end. For the task, when it has answered the request before."""
        self._next = coming = self._loop.create_future()
        if self._is_over:
            coming.set_result(None)
        return coming

    def take(self, taken: object) -> None:
        """Begin with a further request: the one before is answered."""
        assert self._next is not None, "an answer is the last that is done for a request"  # noqa: S101
        self.response_started = self.response_complete = False
        self._next.set_result(taken)

    def broke(self, fault: BaseException) -> None:
        """A fault of ours ended the work on its request, and the line."""
        self._broke(self, fault)

    def end(self) -> None:
        """It is of no more use: the connection is gone, or the request goes the usual way."""
        self.answer = _refuse  # or it would wait for the collector, knowing itself
        self._is_over = True
        if self._next is not None and not self._next.done():
            self._next.set_result(None)

    async def send(self, message: Any) -> None:
        if self._cycle is None:
            self._cycle = self._usual(self)
        await self._cycle.send(message)


def _refuse(_head: bytes, _body: bytes) -> bool:
    return False
