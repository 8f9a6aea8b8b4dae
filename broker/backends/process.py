"""A program started beside the broker, and its three pipes on the event loop.

Why not the loop's own way: uvloop forks, and a fork of a process of a hundred megabytes copies its page tables (20 ms
in which no call moves) and makes a fault of the first write to each page afterwards, for all calls under way. The
standard library's `subprocess` starts without copying (vfork), in a millisecond whatever the size; so it is asked for
the process, and the loop for its pipes.

What must not live here: anything about what is started.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from asyncio import StreamReader, StreamReaderProtocol, StreamWriter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Self, cast

import anyio

PIECE_BYTES = 65_536
LOOK_EVERY_S = 0.01
NICE = 10  # added to the broker's own: what takes all it can get leaves the processor to the broker's callers


class Process:
    """One run of a program. stdout, stderr: to read from, at most PIECE_BYTES at a time, b"" at the end."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self._child = child
        self._stdin: StreamWriter
        self._outputs: list[asyncio.ReadTransport] = []
        self.stdout, self.stderr = StreamReader(PIECE_BYTES), StreamReader(PIECE_BYTES)

    @classmethod
    async def start(
        cls, command: Sequence[str], *, env: Mapping[str, str], cwd: Path, pass_fds: Sequence[int] = ()
    ) -> Self:
        """In a session of its own, nicer than the broker. Raises OSError when it cannot be started."""
        child = subprocess.Popen(  # noqa: ASYNC220 – see the module's head
            command,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
            cwd=cwd,
            start_new_session=True,
            pass_fds=pass_fds,
        )
        process = cls(child)
        try:
            with suppress(ProcessLookupError):  # it may have ended
                os.setpriority(os.PRIO_PROCESS, child.pid, os.getpriority(os.PRIO_PROCESS, 0) + NICE)
            with anyio.CancelScope(shield=True):  # takes no time, and half of it would be lost
                await process._connect()
        except BaseException:
            child.kill()
            child.communicate()
            raise
        return process

    async def _connect(self) -> None:
        loop, child = asyncio.get_running_loop(), self._child
        for reader, pipe in ((self.stdout, child.stdout), (self.stderr, child.stderr)):
            transport, _ = await loop.connect_read_pipe(
                lambda reader=reader: StreamReaderProtocol(reader), cast("IO[bytes]", pipe)
            )
            self._outputs.append(transport)
        # Nothing is read from it; the protocol is asked for its flow control.
        into, protocol = await loop.connect_write_pipe(
            lambda: StreamReaderProtocol(StreamReader()), cast("IO[bytes]", child.stdin)
        )
        self._stdin = StreamWriter(into, protocol, None, loop)

    async def write(self, data: bytes) -> None:
        """To its stdin; waits while it does not read. Raises OSError when that is closed, by either side."""
        if self._stdin.is_closing():
            raise BrokenPipeError
        self._stdin.write(data)
        await self._stdin.drain()

    def close_stdin(self) -> None:
        """No more is written; what is, may still be read."""
        self._stdin.close()

    def _is_unread(self) -> bool:
        """Whether what was written waits, so that its pipe does not close by itself. Asked first, because asyncio's own
        transport may not be aborted when it is about to close."""
        try:
            return self._stdin.transport.get_write_buffer_size() > 0
        except RuntimeError:  # uvloop's, of what is closed
            return False

    @property
    def code(self) -> int | None:
        """What it exited with; None while it runs."""
        return self._child.poll()

    def terminate(self) -> None:
        """SIGTERM, if it runs."""
        with suppress(ProcessLookupError):
            self._child.terminate()

    async def ended(self, within_s: float) -> bool:
        """Wait for its end, at most so long; whether it has ended."""
        with anyio.move_on_after(within_s):
            while self.code is None:  # noqa: ASYNC110 – there is no event of it, and this is seldom and brief
                await anyio.sleep(LOOK_EVERY_S)
        return self.code is not None

    async def close(self, within_s: float) -> None:
        """Let go of its pipes, and end it if nothing else did; at most so long."""
        for output in self._outputs:
            output.close()
        if not self._stdin.is_closing() or self._is_unread():
            self._stdin.transport.abort()
        if self.code is None:
            self._child.kill()
            await self.ended(within_s)
