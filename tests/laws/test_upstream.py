"""Our own HTTP/1.1 client: what it refuses to read, which connections it keeps, and when it asks twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from anyio.abc import SocketStream
from hypothesis import given
from hypothesis import strategies as st

from broker.backends.address import Origin
from broker.backends.exchange import Cut, Exchange
from broker.backends.http1 import HEAD_BYTES, HELD_BYTES, Heads, Http1
from broker.backends.mcp_modern import Events
from broker.backends.upstream import Upstream
from broker.errors import Broken, TimedOut, Unavailable

pytestmark = pytest.mark.anyio

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
Script = Callable[[SocketStream, int], Awaitable[None]]


class Server:
    """A server of bytes: `script` gets each connection with its number; `asked` counts requests by connection."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.heads: list[bytes] = []
        self.connections = 0

    async def connected(self, stream: SocketStream) -> None:
        self.connections += 1
        async with stream:
            try:
                await self.script(stream, self.connections)
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                return

    async def request(self, stream: SocketStream) -> bytes:
        received = b""
        while b"\r\n\r\n" not in received:
            received += await stream.receive()
        self.heads.append(received)
        return received


@asynccontextmanager
async def upstream(server: Server, **more: Any) -> AsyncGenerator[Upstream]:
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    settings: dict[str, Any] = {"allow_private": True, "cap": 1_000_000, "connections": 4, "connect_s": 2, "tls": None}
    made = Upstream("The peer", Origin.parse(f"http://127.0.0.1:{port}", allow_private=True), **{**settings, **more})
    with anyio.fail_after(20):
        async with listener, anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, server.connected)
            try:
                yield made
            finally:
                await made.aclose()
                tasks.cancel_scope.cancel()


def exchange(within_s: float = 5.0, *, repeatable: bool = False) -> Exchange:
    return Exchange(anyio.current_time() + within_s, repeatable=repeatable)


async def ask(peer: Upstream, method: str = "GET", asked: Exchange | None = None) -> bytes:
    response = await peer.ask(method, "/", (), None, asked or exchange())
    return await response.read()


def answers(*parts: bytes, close: bool = False, times: int = 100) -> Server:
    """Each request on each connection gets these bytes."""

    async def script(stream: SocketStream, _: int) -> None:
        for _ in range(times):
            await server.request(stream)
            for part in parts:
                await stream.send(part)
            if close:
                return

    server = Server(script)
    return server


LATE = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nok",
        b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: identity\r\nContent-Length: 2\r\n\r\nok",
        b"Content-Length: +2\r\n\r\nok",
        b"Content-Length: 2, 2\r\n\r\nok",
        b"Content-Length : 2\r\n\r\nok",
        b"X: a\r\n b\r\nContent-Length: 2\r\n\r\nok",
        b"X: a\0b\r\nContent-Length: 2\r\n\r\nok",
        b"".join(b"X-%d: a\r\n" % n for n in range(300)) + b"\r\n",
        b"X: " + b"a" * HEAD_BYTES + b"\r\nContent-Length: 2\r\n\r\nok",
    ],
)
async def test_a_head_that_can_be_read_in_two_ways_is_no_answer(answer: bytes) -> None:
    server = answers(LATE + answer)
    async with upstream(server) as peer:
        with pytest.raises(Cut) as cut:
            await ask(peer)
        assert isinstance(cut.value.error, Broken)
        assert cut.value.error.effect == "unknown"
        with pytest.raises(Cut):
            await ask(peer)
    assert server.connections == 2


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
        b"ICY 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 103 Early\r\n\r\n" * 10_000,
    ],
)
async def test_another_protocol_is_no_answer(answer: bytes) -> None:
    async with upstream(answers(answer)) as peer:
        with pytest.raises(Cut) as cut:
            await ask(peer)
    assert isinstance(cut.value.error, Broken)


@pytest.mark.parametrize(
    "answer",
    [
        LATE + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        LATE + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
        LATE + b"Transfer-Encoding: chunked\r\n\r\n2\r\nokxx",
        LATE + b"Transfer-Encoding: chunked\r\n\r\n2;" + b"x" * 200_000,
        LATE + b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX: " + b"x" * 200_000,
        LATE + b"Content-Length: 3\r\n\r\nok",
    ],
)
async def test_a_body_that_is_badly_framed_or_cut_off_is_no_answer(answer: bytes) -> None:
    async with upstream(answers(answer, close=True)) as peer:
        with pytest.raises(Cut) as cut:
            await ask(peer)
    assert isinstance(cut.value.error, Broken)


@pytest.mark.parametrize(
    ("method", "answer", "body", "kept"),
    [
        ("GET", OK, b"ok", True),
        ("GET", b"HTTP/1.1 103 Early\r\nContent-Length: 7\r\n\r\n" + OK, b"ok", True),
        ("GET", LATE + b"Transfer-Encoding: chunked\r\n\r\n1;a=b\r\no\r\n1\r\nk\r\n0\r\nX: y\r\n\r\n", b"ok", True),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n", b"", True),
        ("HEAD", LATE + b"Content-Length: 7\r\n\r\n", b"", False),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n", b"", False),
        ("GET", LATE + b"Connection: close\r\nContent-Length: 2\r\n\r\nok", b"ok", False),
        ("GET", b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", b"ok", False),
        ("GET", b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok", b"ok", True),
        ("GET", OK + OK, b"ok", False),
        ("GET", OK + b"H", b"ok", False),
        ("GET", OK + b"junk", b"ok", False),
        ("GET", LATE + b"Keep-Alive: timeout=1\r\nContent-Length: 2\r\n\r\nok", b"ok", False),
    ],
)
async def test_a_connection_is_kept_only_after_an_answer_that_ended_exactly(
    method: str, answer: bytes, body: bytes, kept: bool
) -> None:
    server = answers(answer)
    async with upstream(server) as peer:
        for _ in range(2):
            assert await ask(peer, method) == body
            await anyio.sleep(0.01)  # what else came is noticed
    assert server.connections == (1 if kept else 2)


async def test_a_body_without_a_length_ends_with_the_connection() -> None:
    async with upstream(answers(LATE + b"\r\no", b"k", close=True)) as peer:
        assert await ask(peer) == b"ok"


def ends_kept_connections(*, answered: bytes = b"") -> Server:
    """The second request on the first connection meets its end, after these bytes of an answer."""

    async def script(stream: SocketStream, number: int) -> None:
        await server.request(stream)
        await stream.send(OK)
        await server.request(stream)
        if number == 1:
            if answered:
                await stream.send(answered)
            return
        await stream.send(OK)

    server = Server(script)
    return server


async def test_only_what_may_be_done_twice_is_sent_again_when_a_kept_connection_ends() -> None:
    for repeatable, times in ((True, 3), (False, 2)):
        server = ends_kept_connections()
        async with upstream(server) as peer:
            await ask(peer)
            again = exchange(repeatable=repeatable)
            if repeatable:
                assert await ask(peer, asked=again) == b"ok"
            else:
                with pytest.raises(Cut) as cut:
                    await ask(peer, asked=again)
                assert isinstance(cut.value.error, Broken)
            assert again.left
        assert len(server.heads) == times


async def test_nothing_is_sent_again_once_a_byte_of_an_answer_came() -> None:
    server = ends_kept_connections(answered=b"H")
    async with upstream(server) as peer:
        await ask(peer)
        with pytest.raises(Cut):
            await ask(peer, asked=exchange(repeatable=True))
    assert len(server.heads) == 2


async def test_a_connection_that_ended_while_idle_is_not_used() -> None:
    server = answers(OK, times=1)
    async with upstream(server) as peer:
        for _ in range(3):
            assert await ask(peer) == b"ok"
            await anyio.sleep(0.05)
    assert server.connections == 3


async def test_a_late_answer_is_cut_off_at_the_deadline_whoever_waits_for_it() -> None:
    async with upstream(answers(LATE)) as peer:
        with pytest.raises(Cut) as cut:
            await ask(peer, asked=exchange(0.1))
        assert isinstance(cut.value.error, TimedOut)
    async with upstream(answers(LATE + b"Content-Length: 9\r\n\r\n")) as peer:
        with pytest.raises(Cut) as cut:
            await ask(peer, asked=exchange(0.1))
        assert isinstance(cut.value.error, TimedOut)


async def test_each_request_on_a_kept_connection_has_its_own_deadline() -> None:
    """The timer of an earlier one, which is left to run, neither cuts a later one off nor lets it wait."""

    async def script(stream: SocketStream, _: int) -> None:
        await server.request(stream)
        await stream.send(LATE + b"Content-Length: 1\r\n\r\n1")
        await server.request(stream)
        await anyio.sleep(0.3)  # beyond the deadline of the first
        await stream.send(LATE + b"Content-Length: 1\r\n\r\n2")
        await server.request(stream)
        await anyio.sleep_forever()

    server = Server(script)
    async with upstream(server) as peer:
        with anyio.fail_after(5):
            assert await ask(peer, asked=Exchange(anyio.current_time() + 0.2, is_exact=True)) == b"1"
            assert await ask(peer, asked=exchange(60)) == b"2"
            with pytest.raises(Cut) as cut:
                await ask(peer, asked=exchange(0.1))
        assert isinstance(cut.value.error, TimedOut)
    assert server.connections == 1


async def test_connections_are_bounded_and_a_cancelled_request_frees_its_own() -> None:
    async def script(stream: SocketStream, number: int) -> None:
        await server.request(stream)
        if number > 1:
            await stream.send(OK)
        await stream.receive()

    server = Server(script)
    async with upstream(server, connections=1) as peer:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask, peer)
            while not server.heads:
                await anyio.sleep(0.005)
            with pytest.raises(Cut) as cut:
                await ask(peer, asked=exchange(-0.4))
            assert isinstance(cut.value.error, Unavailable)
            tasks.cancel_scope.cancel()
        assert await ask(peer) == b"ok"
    assert server.connections == 2


async def test_a_body_nobody_reads_waits_in_its_own_socket() -> None:
    sent = 0

    async def script(stream: SocketStream, _: int) -> None:
        nonlocal sent
        await server.request(stream)
        await stream.send(LATE + b"Content-Type: text/event-stream\r\n\r\n")
        while True:
            await stream.send(b"x" * 65_536)
            sent += 65_536

    server = Server(script)
    async with upstream(server) as peer:
        response = await peer.ask("GET", "/", (), None, None)
        before = -1
        with anyio.fail_after(5):
            while before != sent or not sent:
                before = sent
                await anyio.sleep(0.1)
        assert sent < HELD_BYTES + 16_000_000  # the kernel's buffers, both sides
        response.close()


@pytest.mark.parametrize(
    ("target", "header"),
    [
        ("/ HTTP/1.1\r\nX: y", (b"A", b"b")),
        ("/a b", (b"A", b"b")),
        ("elsewhere", (b"A", b"b")),
        ("/ü", (b"A", b"b")),
        ("/", (b"A", b"b\r\nX: y")),
        ("/", (b"A", b"b\nX: y")),
        ("/", (b"A\r\n", b"b")),
        ("/", (b"A", b"\0")),
    ],
)
async def test_one_request_stays_one_request(target: str, header: tuple[bytes, bytes]) -> None:
    server = answers(OK)
    async with upstream(server) as peer:
        asked = exchange()
        with pytest.raises(Cut) as cut:
            await peer.ask("GET", target, [header], None, asked)
        assert isinstance(cut.value.error, Unavailable)
        assert not asked.left
        assert await ask(peer) == b"ok"
    assert len(server.heads) == 1


async def test_closing_ends_what_is_under_way() -> None:
    async with upstream(answers(LATE)) as peer, anyio.create_task_group() as tasks:
        ended: list[Cut] = []

        async def asking() -> None:
            try:
                await ask(peer)
            except Cut as cut:
                ended.append(cut)

        tasks.start_soon(asking)
        await anyio.sleep(0.05)
        await peer.aclose()
        await anyio.sleep(0.05)
        assert isinstance(ended[0].error, Broken)
        with pytest.raises(Cut) as cut:
            await ask(peer)
        assert isinstance(cut.value.error, Unavailable)


# ------------------------------------------------------------------------------------------------------------- events


def data_of(pieces: Sequence[bytes], most: int = 1000) -> list[bytes]:
    events = Events(most)
    return [data for piece in pieces for data in events.feed(piece)]


STREAM = (
    b'\xef\xbb\xbf: hello\r\nid: 1\r\ndata: {"a":\r\ndata:1}\r\n\r\n'
    b"event: ping\ndata: x\n\ndata\n\nevent: message\rdata: 2\r\r"
)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_are_the_same_however_they_arrive(size: int) -> None:
    assert data_of([STREAM[at : at + size] for at in range(0, len(STREAM), size)]) == [b'{"a":\n1}', b"2"]


@pytest.mark.parametrize("line", [b"data: xxxxxxx\n", b"x" * 11, b"data: xxxx\nid: xxxx\n"])
def test_an_event_is_bounded_and_comments_between_events_are_not(line: bytes) -> None:
    assert data_of([b": comment\n" * 1000, b"data: 1\n\n"], most=10) == [b"1"]
    with pytest.raises(ValueError):
        data_of([line], most=10)


class Wire(asyncio.Transport):
    """A transport that goes nowhere."""

    closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None: ...
    def abort(self) -> None:
        self.closing = True

    def is_closing(self) -> bool:
        return self.closing

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


_ANSWERS = st.sampled_from(
    [
        OK,
        OK.replace(b"ok", b"no"),
        OK.replace(b"200 OK", b"503 No"),
        OK + b"x",
        OK[:-1],
        OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"),
        OK.replace(b"HTTP/1.1", b"HTTP/1.0"),
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 204 No\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 304 No\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 100 Go on\r\n\r\n" + OK,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\n\nok",
        b"\r\n\r\n",
        b"",
    ]
)


def heard(heads: Heads, asked: list[tuple[bytes, int, bool]]) -> list[Any]:
    """What one connection after the other says of these answers: (bytes, cut after so many, to a HEAD)."""
    loop = asyncio.new_event_loop()
    told: list[Any] = []
    connection = None
    try:
        for data, cut, no_body in asked:
            if connection is None:
                connection = Http1(loop, 30.0, heads)
                connection.connection_made(Wire())
            connection.send(b"?", no_body=no_body)
            for piece in (data[:cut], data[cut:]):
                if piece:
                    connection.data_received(piece)
            fault = connection.fault
            told.append((connection.status, list(connection.headers), connection.whole(), fault and str(fault)))
            rests = connection.rest()
            told.append(rests)
            connection = connection if rests else None
    finally:
        loop.close()
    return told


@given(st.lists(st.tuples(st.just(OK) | _ANSWERS, st.sampled_from([0, 0, 17, 43]), st.booleans()), max_size=6))
def test_a_head_that_has_come_before_says_what_it_said_then(asked: list[tuple[bytes, int, bool]]) -> None:
    class Forgetful(Heads):
        def find(self, data: bytes) -> None:
            return None

    assert heard(Heads(), asked) == heard(Forgetful(), asked)
