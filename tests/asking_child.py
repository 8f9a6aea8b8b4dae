"""The server of `asking` as a stdio child, for brokers that start one: `python -m tests.asking_child FOLDER SPEAKS`.

FOLDER is how a test sees what happens in it: `log` has a line for each thing that happened, and each name that is
written to `grow` becomes a tool.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, cast

import anyio
import mcp_types as types
from mcp.server.stdio import stdio_server
from mcp.shared.message import SessionMessage
from mcp_types import METHOD_NOT_FOUND, UNSUPPORTED_PROTOCOL_VERSION, JSONRPCError, JSONRPCRequest

from tests.asking import MODERN, Asking, Speaks

LOOK_EVERY_S = 0.02


class Child:
    """It, as a test sees it: what `tests.asking.Asking` offers of itself, over files."""

    def __init__(self, folder: Path, speaks: Speaks) -> None:
        folder.mkdir()
        self.folder, self.speaks = folder, speaks
        self.entered, self.cancelled = _Line(folder, "entered"), _Line(folder, "cancelled")
        (folder / "log").touch()
        (folder / "grow").touch()

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-m", "tests.asking_child", str(self.folder), self.speaks]

    @property
    def asked(self) -> list[tuple[str, str]]:
        lines = [line.split() for line in (self.folder / "log").read_text().splitlines()]
        return [(line[1], line[2]) for line in lines if line[0] == "asked"]

    async def grow(self, name: str) -> None:
        with (self.folder / "grow").open("a") as names:
            names.write(name + "\n")


class _Line:
    def __init__(self, folder: Path, word: str) -> None:
        self._folder, self._word = folder, word

    async def wait(self) -> None:
        while self._word not in (self._folder / "log").read_text().splitlines():
            await anyio.sleep(LOOK_EVERY_S)


class _Logging(Asking):
    def __init__(self, folder: Path, speaks: Speaks) -> None:
        super().__init__(speaks)
        self.folder = folder

    def note(self, line: str) -> None:
        with (self.folder / "log").open("a") as log:
            log.write(line + "\n")

    async def called(self, ctx: Any, params: types.CallToolRequestParams) -> Any:
        self.note(f"asked {params.name} {'modern' if ctx.protocol_version == MODERN else 'handshake'}")
        return await super().called(ctx, params)

    async def watch(self) -> None:
        """Pass on what happens here, and what is asked of it."""
        noted, grown = set[str](), 0
        while True:
            await anyio.sleep(LOOK_EVERY_S)
            for word in ("entered", "cancelled"):
                if word not in noted and getattr(self, word).is_set():
                    noted.add(word)
                    self.note(word)
            names = (self.folder / "grow").read_text().splitlines()
            for name in names[grown:]:
                await self.grow(name)
            grown = len(names)

    def refusal(self, message: Any) -> JSONRPCError | None:
        """The answer to a request of the era it does not speak."""
        if not isinstance(message, JSONRPCRequest) or self.speaks == "both":
            return None
        unfit = "server/discover" if self.speaks == "handshake" else "initialize"
        if message.method != unfit:
            return None
        error = types.ErrorData(code=METHOD_NOT_FOUND, message="no such method")
        if self.speaks == "modern":
            data = {"supported": [MODERN], "requested": "older"}
            error = types.ErrorData(code=UNSUPPORTED_PROTOCOL_VERSION, message="no", data=data)
        return JSONRPCError(jsonrpc="2.0", id=message.id, error=error)


async def main() -> None:
    asking = _Logging(Path(sys.argv[1]), cast("Speaks", sys.argv[2]))
    inbox, messages = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    async with stdio_server() as (read, write), anyio.create_task_group() as tasks:

        async def sieve() -> None:
            async with read, inbox:
                async for item in read:
                    refused = asking.refusal(item.message) if isinstance(item, SessionMessage) else None
                    await (inbox.send(item) if refused is None else write.send(SessionMessage(refused)))

        tasks.start_soon(sieve)
        tasks.start_soon(asking.watch)
        await asking.server.run(messages, write, asking.server.create_initialization_options())
        tasks.cancel_scope.cancel()


if __name__ == "__main__":
    anyio.run(main)
