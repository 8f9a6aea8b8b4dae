"""One line, one message, and bounded memory, whatever comes in on standard input."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Any

import anyio
import anyio.lowlevel
import orjson
import pytest

from broker.faces.mcp.stdio import lines
from broker.model.principal import Principal
from tests.serving import Keys, Tools, agents_with, modern, modern_call, settings_with
from tests.stories.test_wire_clients import CHILD

pytestmark = pytest.mark.anyio

INITIALIZE = {
    "jsonrpc": "2.0",
    "id": "hello",
    "method": "initialize",
    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "0"}},
}
READY = {"jsonrpc": "2.0", "method": "notifications/initialized"}


def call(name: str, request_id: Any, **arguments: Any) -> dict[str, Any]:
    return {
        "jsonrpc": "2.0",
        "id": request_id,
        "method": "tools/call",
        "params": {"name": name, "arguments": arguments},
    }


class Session:
    """One stdio client in this process: what it sends is fed in pieces, what it is told is kept."""

    def __init__(self, pieces: Iterable[bytes], *, tools: Tools | None = None, **limits: Any) -> None:
        self.pieces = list(pieces)
        self.told: list[Any] = []
        self.refused: list[str] = []
        self.tools = tools or Tools()
        self.settings = settings_with(limits=limits)

    async def run(self) -> Session:
        agents = agents_with(self.tools, Keys(), self.settings, lambda: "", self.refused)
        with anyio.fail_after(10):
            await agents.serve_wire(self._read, self._write, Principal(agent="local", issuer="settings"))
        return self

    async def _read(self) -> bytes:
        await anyio.lowlevel.checkpoint()
        return self.pieces.pop(0) if self.pieces else b""

    async def _write(self, data: bytes) -> None:
        assert data.endswith(b"\n")
        assert data.count(b"\n") == 1
        self.told.append(orjson.loads(data))

    def answer(self, request_id: Any) -> Any:
        return next(message for message in self.told if message.get("id") == request_id)

    @property
    def errors(self) -> list[int]:
        return [message["error"]["code"] for message in self.told if message.get("id") is None]


def line(message: Any, end: bytes = b"\n") -> bytes:
    return orjson.dumps(message) + end


HELLO = line(INITIALIZE) + line(READY)


async def test_messages_are_answered_and_the_end_of_input_waits_for_the_answers() -> None:
    session = await Session([HELLO, line(call("echo", 1, text="hi"))]).run()
    assert session.answer("hello")["result"]["protocolVersion"] == "2025-11-25"
    assert session.answer(1)["result"]["structuredContent"] == {"by": "local", "text": "hi"}
    assert session.tools.calls[0].face == "mcp-stdio"


async def test_a_modern_client_needs_no_handshake() -> None:
    session = await Session([line(modern("tools/list")), line(modern_call("echo", request_id=2))]).run()
    assert session.answer(1)["result"]["cacheScope"] == "private"
    assert session.answer(2)["result"]["resultType"] == "complete"


async def test_lines_end_in_any_way_and_arrive_in_any_pieces() -> None:
    whole = HELLO + line(call("echo", 1), b"\r\n") + b"\n  \r\n" + line(call("echo", 2)) + line(call("echo", 3), b"")
    session = await Session([whole[place : place + 7] for place in range(0, len(whole), 7)]).run()
    for request_id in (1, 2, 3):
        assert session.answer(request_id)["result"]["isError"] is False
    assert session.errors == []


@pytest.mark.parametrize(
    ("name", "bad", "code"),
    [
        ("two messages on a line", line(call("echo", 8), b"") + line(call("echo", 9)), -32700),
        ("invalid UTF-8", b'{"jsonrpc":"2.0","id":8,"method":"\xff"}\n', -32700),
        ("a key twice", b'{"jsonrpc":"2.0","id":8,"id":9,"method":"ping"}\n', -32700),
        ("half a message", b'{"jsonrpc":"2.0",\n', -32700),
        ("a batch", b"[" + line(call("echo", 8), b"") + b"]\n", -32600),
        ("id null", line(call("echo", None)), -32600),
        ("too deep", b"[" * 65 + b"]" * 65 + b"\n", -32600),
    ],
)
async def test_a_bad_line_is_told_and_the_next_one_is_read(name: str, bad: bytes, code: int) -> None:
    session = await Session([HELLO, bad, line(call("echo", 1))]).run()
    assert session.errors == [code], name
    assert session.answer(1)["result"]["isError"] is False
    assert len(session.tools.calls) == 1
    assert len(session.refused) == 1


@pytest.mark.parametrize(
    "odd",
    [
        b'{"jsonrpc":"2.0","id":1,"error":{}}',
        b'{"jsonrpc":"2.0","id":1,"error":5}',
        b'{"jsonrpc":"2.0","id":1,"result":5}',
        b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":5}}',
        b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"_meta":5}}',
        b'{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{"cursor":5}}',
        b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":{}}}',
        b'{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":[]}}',
    ],
)
async def test_members_of_the_wrong_type_end_nothing_but_their_message(odd: bytes) -> None:
    session = await Session([HELLO, odd + b"\n", line(call("echo", "next"))]).run()
    assert session.answer("next")["result"]["isError"] is False
    assert len(session.tools.calls) == 1


async def test_a_partial_last_line_is_refused() -> None:
    session = await Session([HELLO, line(call("echo", 1)), b'{"jsonrpc":"2.0","id":2,"me']).run()
    assert session.errors == [-32700]
    assert session.answer(1)["result"]["isError"] is False


async def test_an_overlong_line_is_dropped_and_the_next_one_is_read() -> None:
    pieces = [b"x" * 1024] * 40
    session = await Session([HELLO, *pieces, b"\n", line(call("echo", 1))], body_bytes=4096).run()
    assert session.errors == [-32600]
    assert session.refused == ["too_large"]
    assert session.answer(1)["result"]["isError"] is False


async def test_a_hundred_megabytes_in_one_line_hold_no_memory() -> None:
    import tracemalloc

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(1600):
            yield bytes(65_536)
        yield b"\nend\n"

    source = endless()

    async def read() -> bytes:
        return await anext(source, b"")

    tracemalloc.start()
    try:
        assert [line async for line in lines(read, 1_000_000)] == [None, b"end"]
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


async def test_an_id_in_use_is_refused_and_the_first_answer_is_not_crossed() -> None:
    tools = Tools()

    async def later() -> None:
        await tools.entered.wait()
        tools.release.set()

    session = Session([HELLO, line(call("wait", 1)), line(call("echo", "1")), line(call("echo", 2))], tools=tools)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(later)
        await session.run()
    assert session.refused == ["id_in_use"]
    assert [call.name for call in tools.calls] == ["wait", "echo"]
    assert session.answer(1)["result"]["structuredContent"]["text"] == "wait"


async def test_a_cancelled_call_is_stopped_and_never_answered() -> None:
    session = Session([HELLO, line(call("wait", 1))])
    entered = session.tools.entered

    async def read() -> bytes:
        await anyio.lowlevel.checkpoint()
        if session.pieces:
            return session.pieces.pop(0)
        if not session.tools.cancelled.is_set():
            await entered.wait()
            session.tools.release = anyio.Event()
            session.tools.cancelled.set()
            cancel = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}
            return line(cancel)
        return b""

    session._read = read  # type: ignore[method-assign]
    await session.run()
    assert [message.get("id") for message in session.told] == ["hello"]


async def test_nothing_but_messages_gets_onto_the_wire() -> None:
    """A real child: its stray print goes to stderr, and a shell pipe gets all its answers."""
    feed = HELLO + line(call("echo", 1, text="ä")) + b"rubbish\n"
    with anyio.fail_after(20):
        done = await anyio.run_process(CHILD, input=feed, check=True)
    told = [orjson.loads(text) for text in done.stdout.splitlines()]
    assert {message.get("id") for message in told} == {"hello", 1, None}
    assert b"a stray print" in done.stderr
    assert b"Traceback" not in done.stderr


async def test_standard_input_may_be_a_file(tmp_path: Any) -> None:
    feed = tmp_path / "feed"
    feed.write_bytes(line(modern("tools/list")))
    with anyio.fail_after(20), feed.open("rb") as source:
        done = await anyio.run_process(CHILD, stdin=source, check=True)
    assert orjson.loads(done.stdout)["result"]["resultType"] == "complete"
