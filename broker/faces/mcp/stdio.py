"""stdio: one message a line, read by the same strict reader as HTTP, with memory bounded whatever comes.

A line that is no message is answered with a JSON-RPC error without an id, and the next one is read. An over-long line
is dropped up to its end without being kept. When the input ends, requests that are still being answered get their time,
so that `printf … | broker serve --stdio` prints its answers.

While serving, file descriptor 1 leads to stderr: a stray print, of ours or of a library, must not get onto the wire.
What must not live here: who calls. That is the launch configuration's, and given.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import contextmanager
from typing import Any

import anyio
import mcp_types
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.shared.message import ServerMessageMetadata, SessionMessage

from broker.data import dataclass
from broker.errors import Malformed
from broker.faces.mcp.ports import Refused
from broker.faces.mcp.replies import error_body
from broker.faces.mcp.request import FACE, PRINCIPAL
from broker.faces.mcp.strict import INVALID_REQUEST, Message, read_message
from broker.model.principal import Principal
from broker.settings import Limits

CHUNK_BYTES = 65_536

Read = Callable[[], Awaitable[bytes]]
Write = Callable[[bytes], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class LaunchRequest:
    """Stands where HTTP messages have their request: who calls is fixed for the whole process."""

    scope: dict[str, Any]


class Wire:
    """Both directions of one stdio client. read: some bytes, b"" at the end of input. write: all of a line."""

    def __init__(self, read: Read, write: Write, principal: Principal, limits: Limits, on_refused: Refused) -> None:
        self._read = read
        self._write = write
        self._writing = anyio.Lock()
        self._limits = limits
        self._on_refused = on_refused
        self._metadata = ServerMessageMetadata(request_context=LaunchRequest({PRINCIPAL: principal, FACE: "mcp-stdio"}))
        self._owed: set[str] = set()  # ids of requests not answered yet
        self._settled = anyio.Event()

    async def receive(self, into: MemoryObjectSendStream[SessionMessage | Exception]) -> None:
        """Read messages to the end of input; then wait, at most `drain_s`, until what was asked is answered."""
        async with into:
            async for line in lines(self._read, self._limits.body_bytes):
                await self._take(line, into)
            with anyio.move_on_after(self._limits.drain_s):
                while self._owed:
                    self._settled = anyio.Event()
                    await self._settled.wait()

    async def send(self, out: MemoryObjectReceiveStream[SessionMessage]) -> None:
        """Write messages until there are no more."""
        async with out:
            async for outgoing in out:
                message = outgoing.message
                await self._line(message.model_dump_json(by_alias=True, exclude_unset=True).encode())
                if isinstance(message, mcp_types.JSONRPCResponse | mcp_types.JSONRPCError):
                    self._settle(message.id)

    async def _take(self, line: bytes | None, into: MemoryObjectSendStream[SessionMessage | Exception]) -> None:
        if line is None:
            await self._refuse(
                INVALID_REQUEST,
                f"Refused: a line is longer than {self._limits.body_bytes} bytes (limit: body_bytes).",
                "too_large",
            )
            return
        try:
            message = read_message(line, self._limits)
        except Malformed as fault:
            code = fault.facts["rpc_code"]
            await self._refuse(code, fault.sentence, "invalid_request" if code == INVALID_REQUEST else "parse_error")
            return
        if not await self._owe(message):
            return
        typed = mcp_types.jsonrpc_message_adapter.validate_python(message.raw, by_name=False)
        await into.send(SessionMessage(typed, metadata=self._metadata))

    async def _owe(self, message: Message) -> bool:
        """Note what will have to be answered. False when it is refused: its id is in use, or too much is owed."""
        if message.kind == "notification" and message.method == "notifications/cancelled":
            self._settle(message.params.get("requestId"))  # a cancelled request is never answered
        if message.kind != "request":
            return True
        key = str(message.id)
        if key in self._owed:
            await self._refuse(INVALID_REQUEST, "Refused: a request with this id is being answered.", "id_in_use")
            return False
        if len(self._owed) >= self._limits.calls:
            await self._refuse(INVALID_REQUEST, "Refused: too many requests at once (limit: calls).", "overloaded")
            return False
        self._owed.add(key)
        return True

    def _settle(self, request_id: Any) -> None:
        self._owed.discard(str(request_id))
        if not self._owed:
            self._settled.set()

    async def _refuse(self, code: int, sentence: str, kind: str) -> None:
        self._on_refused(kind)
        await self._line(error_body(None, code, sentence))

    async def _line(self, data: bytes) -> None:
        async with self._writing:
            await self._write(data + b"\n")


async def lines(read: Read, most: int) -> AsyncIterator[bytes | None]:
    """Lines without their ends (LF or CR LF), empty ones left out; None for a line longer than `most`.

    A last line without an end counts. At most `most` bytes and one chunk are held.
    """
    held = bytearray()
    too_long = False
    while chunk := await read():
        *whole, rest = chunk.split(b"\n")
        for piece in whole:
            held += piece
            if too_long or len(held) > most + 1:  # a CR before the LF does not count
                yield None
            elif line := bytes(held).strip(b" \t\r"):
                yield line
            held.clear()
            too_long = False
        held += rest
        if len(held) > most:
            held.clear()
            too_long = True
    if too_long:
        yield None
    elif line := bytes(held).strip(b" \t\r"):
        yield line


@contextmanager
def claimed() -> Generator[tuple[int, int]]:
    """The wire's own descriptors for input and output, with 0 leading to nothing and 1 to stderr meanwhile.

    What was printed before and still waits in a buffer goes to stderr as well: nothing is flushed on the way in.
    """
    source, sink = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    try:
        os.dup2(nothing, 0)
        os.dup2(2, 1)
        yield source, sink
    finally:
        sys.stdout.flush()
        os.dup2(source, 0)
        os.dup2(sink, 1)
        for descriptor in (nothing, source, sink):
            os.close(descriptor)


def reader(descriptor: int) -> Read:
    """Reads what there is, without a thread where the system can wait for it (pipes, terminals, sockets)."""

    async def read() -> bytes:
        try:
            await anyio.wait_readable(descriptor)
        except (OSError, NotImplementedError, ValueError):  # a regular file, or a loop that cannot wait for this
            return await anyio.to_thread.run_sync(os.read, descriptor, CHUNK_BYTES, abandon_on_cancel=True)
        return os.read(descriptor, CHUNK_BYTES)

    return read


def writer(descriptor: int) -> Write:
    """Writes in a thread: a client that does not read must not stop the broker."""

    def write_all(data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]

    async def write(data: bytes) -> None:
        await anyio.to_thread.run_sync(write_all, data, abandon_on_cancel=True)

    return write
