"""A stdio MCP server as a child process: started from the operator's argv, spoken to line by line, ended for certain.

No shell; a minimal environment; a session and process group of its own behind a guard (child.py) that outlives the
broker by exactly the time it takes to kill the group. Its stdout is read within bounds: one line at most as large as an
answer may be, strict JSON, anything else is noise and counted. Its stderr is kept, the last 64 KiB, so that an operator
reads in the server's own words why it does not start. A server that talks beside the protocol without end is read
slowly.

The SDK's own stdio transport is not used: its lines have no bound, its stderr needs a file, its child survives kill -9.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from asyncio import StreamReader
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from pathlib import Path

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from broker.backends import sdk
from broker.backends.decoding import short, strict_json_cut
from broker.backends.pace import Pace
from broker.backends.process import PIECE_BYTES, Process

INHERITED = ("PATH", "HOME", "LANG", "TMPDIR")
STDERR_BYTES = 65_536
WORDS = 600  # of its stderr in a sentence
IDLE_TALK_BYTES_PER_S = 262_144  # stderr, and stdout that is no message: reading it costs everybody's time
IDLE_TALK_BURST = 1_048_576
GRACE_S = 1.0  # after stdin closed, and again after SIGTERM
_GUARD = str(Path(__file__).with_name("child.py"))
_ID = re.compile(rb'"id"\s*:\s*(\d{1,15})\b')

Inbound = sdk.SessionMessage | Exception


class ChildError(Exception):
    """It could not be started; the message says why, for operators."""


def environment(declared: Mapping[str, str]) -> dict[str, str]:
    """What a child sees: PATH, HOME, LANG, TMPDIR and what its manifest declares; nothing else of the broker's."""
    return {name: os.environ[name] for name in INHERITED if name in os.environ} | dict(declared)


def program_of(command: str, env: Mapping[str, str], cwd: Path) -> str:
    """The absolute path of the program to run: from PATH, or beside the Python that runs the broker (so that servers
    installed with it are found without activating anything). Raises ChildError.
    """
    if "/" in command:
        path = cwd / command
        if path.is_file() and os.access(path, os.X_OK):
            return str(path)
        raise ChildError(f"there is no program {command!r}")
    beside = str(Path(sys.executable).parent)
    found = shutil.which(command, path=env.get("PATH", os.defpath)) or shutil.which(command, path=beside)
    if found is None:
        raise ChildError(f"the command {command!r} is not found (looked in PATH and in {beside})")
    return found


class Child:
    """One run of the server. argv: as in the manifest. cap: largest line in bytes. masked: secrets to keep secret.
    most: how many entries of a list are of interest.

    on_unreadable: told the request id of an answer that is too large or not JSON, and why.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path,
        cap: int,
        masked: Sequence[str],
        most: int,
        on_unreadable: Callable[[int, str], None],
    ) -> None:
        self._argv = tuple(argv)
        self._env = env
        self._cwd = cwd
        self._cap = cap
        self._masked = masked
        self._most = most
        self._on_unreadable = on_unreadable
        self._stderr = bytearray()
        self._stderr_ended = anyio.Event()
        self._process: Process | None = None
        self.noise = 0  # lines on stdout that were no messages

    @property
    def words(self) -> str:
        """The last lines it wrote to stderr, made safe; "" for none."""
        text = self._stderr.decode("utf-8", "replace")[-WORDS * 4 :]
        lines = [line for line in text.splitlines() if line.strip()]
        kept = ""
        for line in reversed(lines):
            if len(kept) + len(line) > WORDS:
                break
            kept = f"{line} {kept}"
        return short(kept or (lines[-1] if lines else ""), self._masked, WORDS)

    async def last_words(self) -> str:
        """How it ended and what it said about that; waits a moment for what is still in the pipe."""
        with anyio.move_on_after(0.5):
            await self._stderr_ended.wait()
        code = self._process.code if self._process else None
        how = (
            ""
            if code is None
            else f"it was ended by signal {code - 128}"
            if code > 128
            else f"it exited with code {code}"
        )
        return self.words or how or "it closed its output"

    @asynccontextmanager
    async def streams(self) -> AsyncGenerator[sdk.Streams]:
        """The SDK's message streams to and from it. Raises ChildError when it cannot be started.

        Leaving ends it: stdin closed, SIGTERM, SIGKILL to its group, each after a grace; nothing is left behind.
        """
        program = program_of(self._argv[0], self._env, self._cwd)
        lifeline, held = os.pipe()  # `held` is ours alone: Python's descriptors are not inherited
        try:
            process = await Process.start(
                [sys.executable, "-I", "-S", _GUARD, str(lifeline), program, *self._argv],
                env=self._env,
                cwd=self._cwd,
                pass_fds=(lifeline,),
            )
        except OSError as error:
            os.close(held)
            raise ChildError(f"cannot be run: {(error.strerror or 'unknown reason').lower()}") from None
        finally:
            os.close(lifeline)
        self._process = process
        try:
            async with anyio.create_task_group() as tasks:
                given, read = anyio.create_memory_object_stream[Inbound](0)
                # A little room, so that telling a child of a cancellation does not wait for one that does not read.
                write, taken = anyio.create_memory_object_stream[sdk.SessionMessage](64)
                tasks.start_soon(self._read_stdout, process, given)
                tasks.start_soon(self._write_stdin, process, taken)
                tasks.start_soon(self._keep_stderr, process)
                async with given, read, write, taken:
                    try:
                        yield read, write
                    finally:
                        with anyio.CancelScope(shield=True):
                            held = await self._end(process, held)
                        tasks.cancel_scope.cancel()
        finally:
            if held >= 0:
                os.close(held)
            with anyio.CancelScope(shield=True):
                await process.close(GRACE_S)

    async def _end(self, process: Process, held: int) -> int:
        """Returns -1: the lifeline is closed. Takes at most two graces and a kill."""
        process.close_stdin()
        if not await process.ended(GRACE_S):
            process.terminate()
            await process.ended(GRACE_S)
        os.close(held)  # the guard kills the whole group, also when the server itself has ended
        await process.ended(GRACE_S)
        return -1

    # ------------------------------------------------------------------------------------------------------- its pipes

    async def _write_stdin(self, process: Process, taken: MemoryObjectReceiveStream[sdk.SessionMessage]) -> None:
        with suppress(OSError):
            async for item in taken:
                line = item.message.model_dump_json(by_alias=True, exclude_unset=True)
                await process.write(line.encode() + b"\n")

    async def _keep_stderr(self, process: Process) -> None:
        pace = Pace(IDLE_TALK_BYTES_PER_S, IDLE_TALK_BURST)
        with suppress(OSError):
            while chunk := await process.stderr.read(PIECE_BYTES):
                self._stderr += chunk
                del self._stderr[:-STDERR_BYTES]
                await pace.spend(len(chunk))
        self._stderr_ended.set()

    async def _read_stdout(self, process: Process, given: MemoryObjectSendStream[Inbound]) -> None:
        pace = Pace(IDLE_TALK_BYTES_PER_S, IDLE_TALK_BURST)
        async with given, AsyncExitStack() as stack:  # its end is the connection's end
            with suppress(OSError, anyio.BrokenResourceError, anyio.ClosedResourceError):
                lines = await stack.enter_async_context(aclosing(_lines(process.stdout, self._cap, pace)))
                async for line, whole in lines:
                    message = self._message(line) if whole else self._unreadable(line, "is larger than its limit")
                    if message is None:
                        await pace.spend(len(line))
                    else:
                        await given.send(message)

    def _message(self, line: bytes) -> sdk.SessionMessage | None:
        if not line.strip():
            return None
        if not line.lstrip().startswith(b"{"):
            self.noise += 1
            return None
        try:
            read, _ = strict_json_cut(line, self._most)
            message = sdk.jsonrpc_message_adapter.validate_python(read, by_name=False)
        except ValueError:  # pydantic's is one
            return self._unreadable(line[:4096], "is not a JSON-RPC message")
        return sdk.SessionMessage(message)

    def _unreadable(self, head: bytes, why: str) -> None:
        self.noise += 1
        match = _ID.search(head, 0, 512)
        if match:
            self._on_unreadable(int(match[1]), why)


async def _lines(stream: StreamReader, cap: int, pace: Pace) -> AsyncGenerator[tuple[bytes, bool]]:
    """(line, True), or (its first bytes, False) for a line over the cap, the rest of which is thrown away unread."""
    buffer = bytearray()
    searched = 0
    head: bytes | None = None  # of the overlong line that is being thrown away
    while chunk := await stream.read(PIECE_BYTES):
        buffer += chunk
        while (end := buffer.find(b"\n", searched)) >= 0:
            line = bytes(buffer[:end])
            del buffer[: end + 1]
            searched = 0
            if head is not None:
                yield head, False
                head = None
            elif len(line) > cap:
                yield line[:4096], False
            else:
                yield line, True
        if len(buffer) > cap or (head is not None and buffer):
            head = head if head is not None else bytes(buffer[:4096])
            size = len(buffer)
            buffer.clear()
            await pace.spend(size)
        searched = len(buffer)
    if buffer and head is None:
        yield bytes(buffer), True
