"""Streams that stay open: whoever they belong to is asked for again while they last, and shutdown ends them.

A token that expired, or a key that was revoked, ends the stream within RECHECK_S; the client comes back with a new one.
Streams that carry answers (HTTP+SSE) end last at shutdown, after the calls whose answers they carry. To whoever serves
a stream its end looks like its client's leaving, for which it has an orderly way out; being cancelled is kept for those
who do not take it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import anyio

from broker.data import dataclass
from broker.errors import RecordUnavailable, Unauthenticated
from broker.faces.mcp.ports import Authenticate
from broker.faces.mcp.request import Receive, Request, Send

RECHECK_S = 5.0
LEAVE_WITHIN_S = 2.0


@dataclass(slots=True, eq=False)
class Stream:
    """credential, key: who it belongs to. answers: whether answers to calls travel on it."""

    credential: str | None
    key: str
    answers: bool
    ending: anyio.Event


class Standing:
    def __init__(self, authenticate: Authenticate) -> None:
        self._authenticate = authenticate
        self._open: set[Stream] = set()

    def __len__(self) -> int:
        return len(self._open)

    async def keep(
        self,
        request: Request,
        credential: str | None,
        run: Callable[[Receive, Send], Awaitable[None]],
        *,
        answers: bool,
    ) -> bool:
        """Run one stream until its client leaves or its right ends. True when it was ended from here.

        Its response is completed then, so that the client sees an end and no broken connection.
        """
        stream = Stream(credential, request.principal.key, answers, anyio.Event())
        begun = completed = False

        async def watched(message: MutableMapping[str, Any]) -> None:
            nonlocal begun, completed
            begun = True
            completed = message["type"] == "http.response.body" and not message.get("more_body", False)
            await request.send(message)

        async def heard() -> MutableMapping[str, Any]:
            return await _first(request.receive, stream.ending)

        self._open.add(stream)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._recheck, stream)
                tasks.start_soon(_see_out, stream, tasks.cancel_scope)
                await run(heard, watched)
                tasks.cancel_scope.cancel()
        finally:
            self._open.discard(stream)
        ended = stream.ending.is_set()
        if ended and begun and not completed:
            await request.send({"type": "http.response.body", "body": b"", "more_body": False})
        return ended

    def end(self, *, answers: bool) -> None:
        """End the streams that carry answers, or those that do not."""
        for stream in self._open:
            if stream.answers == answers:
                stream.ending.set()

    async def _recheck(self, stream: Stream) -> None:
        while True:
            await anyio.sleep(RECHECK_S)
            try:
                principal = await self._authenticate(stream.credential)
            except RecordUnavailable:  # asked again soon; nothing new can be done over the stream meanwhile
                continue
            except Unauthenticated:
                stream.ending.set()
                return
            if principal.key != stream.key:
                stream.ending.set()
                return


async def _see_out(stream: Stream, serving: anyio.CancelScope) -> None:
    await stream.ending.wait()
    await anyio.sleep(LEAVE_WITHIN_S)
    serving.cancel()


async def _first(receive: Receive, ending: anyio.Event) -> MutableMapping[str, Any]:
    """What the client sends next, or its leaving once the stream has to end."""
    message: MutableMapping[str, Any] = {"type": "http.disconnect"}
    async with anyio.create_task_group() as both:

        async def leave() -> None:
            await ending.wait()
            both.cancel_scope.cancel()

        both.start_soon(leave)
        message = await receive()
        both.cancel_scope.cancel()
    return message
