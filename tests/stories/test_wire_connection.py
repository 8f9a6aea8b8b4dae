"""Bytes on a real socket: what is no HTTP, what is too slow, too long or too much, and how the server leaves."""

from __future__ import annotations

import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
import anyio.abc
import httpx2
import orjson
import pytest

from broker.faces import web
from broker.settings import Limits
from tests.serving import Served, modern, modern_call, modern_headers, served, settings_with
from tests.stories.test_wire_sessions import Legacy, bearer
from tests.stories.test_wire_stdio import INITIALIZE, READY, call

pytestmark = pytest.mark.anyio

BODY = orjson.dumps(modern_call("echo", {"text": "hi"}))


def head(house: Served, *lines: str, target: str = "/mcp") -> bytes:
    headers = modern_headers("tools/call", "echo")
    named = [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([f"POST {target} HTTP/1.1", f"Host: {house.url[7:]}", *named, *lines, "", ""]).encode()


@asynccontextmanager
async def socket_to(house: Served) -> AsyncGenerator[anyio.abc.SocketStream]:
    port = int(house.url.rpartition(":")[2])
    async with await anyio.connect_tcp("127.0.0.1", port) as stream:
        yield stream


async def talk(house: Served, *pieces: bytes) -> bytes:
    """Send the pieces; everything that comes back until the server closes."""
    async with socket_to(house) as stream:
        for piece in pieces:
            await stream.send(piece)
        return await rest_of(stream)


async def rest_of(stream: anyio.abc.SocketStream) -> bytes:
    received = b""
    with anyio.fail_after(10):
        try:
            while True:
                received += await stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return received


def status(received: bytes) -> int:
    return int(received.split(b" ", 2)[1])


async def test_a_whole_request_is_answered_and_the_connection_kept() -> None:
    async with served() as house, socket_to(house) as stream:
        for _ in range(2):
            await stream.send(head(house, f"Content-Length: {len(BODY)}") + BODY)
            with anyio.fail_after(5):
                assert status(await stream.receive()) == 200


async def test_white_space_around_a_header_is_no_part_of_its_value() -> None:
    good = "mcp-name: echo"
    async with served() as house:
        whole = head(house, f"Content-Length: {len(BODY)}", "Connection: close").replace(b"Mcp-Name", b"mcp-name")
        for line, expected in ((good, 200), ("mcp-name: \t echo \t ", 200), ("mcp-name: e cho", 400)):
            request = whole.replace(good.encode(), line.encode())
            assert status(await talk(house, request + BODY)) == expected, line


async def test_what_two_readers_of_http_could_read_differently_is_400_and_closed() -> None:
    length = f"Content-Length: {len(BODY)}"
    async with served() as house:
        good = head(house, length)
        bad = {
            "length and chunked": head(house, length, "Transfer-Encoding: chunked") + BODY,
            "two lengths": head(house, length, "Content-Length: 1") + BODY,
            "a length that is none": head(house, "Content-Length: +5") + BODY,
            "a space before the colon": good.replace(b"Host:", b"Host :") + BODY,
            "a folded header": good.replace(b"\r\n\r\n", b"\r\nX: a\r\n b\r\n\r\n") + BODY,
            "a bare line feed": good.replace(b"\r\n", b"\n") + BODY,
            "a NUL in a header": good.replace(b"\r\n\r\n", b"\r\nX: a\0b\r\n\r\n") + BODY,
            "no HTTP at all": b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
        }
        for name, request in bad.items():
            assert status(await talk(house, request)) == 400, name
        short = head(house, f"Content-Length: {len(BODY) - 5}") + BODY
        answers = await talk(house, short)
        assert status(answers) == 400, "a length that lies"
        assert house.tools.calls == []


def chunked(house: Served, *lines: str, trailer: bytes = b"") -> bytes:
    return head(house, "Transfer-Encoding: chunked", *lines) + b"%x\r\n%s\r\n0\r\n%s\r\n" % (len(BODY), BODY, trailer)


async def test_what_comes_after_a_body_is_no_header() -> None:
    """Nobody in front of the broker sees a trailer: who calls and what is called stands in the head (RFC 9110 section
    6.5.1), however the bytes come in."""
    trailer = b"Authorization: Bearer eve\r\nMcp-Name: locked\r\n"
    async with served() as house:
        whole = chunked(house, "Connection: close", trailer=trailer)
        nobody = whole.replace(b"Authorization: Bearer ann\r\n", b"")
        for request, expected in ((whole, 200), (nobody, 401)):
            last = request.index(b"\r\n0\r\n") + 2
            assert status(await talk(house, request)) == expected
            assert status(await talk(house, request[:last], request[last:])) == expected
        assert {one.principal.agent for one in house.tools.calls} == {"ann"}


async def test_a_coding_that_is_not_read_is_refused() -> None:
    async with served() as house:
        for coding in ("gzip, chunked", "chunked, chunked"):
            request = chunked(house, "Connection: close").replace(b"Encoding: chunked", b"Encoding: " + coding.encode())
            assert status(await talk(house, request)) in (400, 415), coding
        assert house.tools.calls == []


async def test_a_target_with_a_host_of_its_own_means_that_one() -> None:
    """RFC 9112 section 3.2.2: the Host header does not count then."""
    async with served() as house:
        for host, expected in ((house.url[7:], 200), ("evil.example", 421), ("eve@" + house.url[7:], 400)):
            request = head(house, f"Content-Length: {len(BODY)}", "Connection: close", target=f"http://{host}/mcp")
            assert status(await talk(house, request + BODY)) == expected


async def test_an_upgrade_that_nobody_serves_is_no_reason_to_lose_a_body() -> None:
    """Java's client asks for HTTP/2 with its first request; its body must not be taken for an empty one."""
    upgrade = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__")
    async with served() as house:
        asked = await talk(house, head(house, f"Content-Length: {len(BODY)}", *upgrade) + BODY)
        assert status(asked) == 400
        assert b"without the Upgrade header" in asked
        probe = "\r\n".join(["GET /healthz HTTP/1.1", f"Host: {house.url[7:]}", *upgrade, "", ""]).encode()
        answered = await talk(house, probe + probe)  # nothing after it can be read, so the connection ends
        assert (status(answered), answered.count(b"HTTP/1.1 200")) == (200, 1)


async def test_a_head_that_never_ends_is_ended() -> None:
    async with served(limits={"header_s": 0.2}) as house:
        late = await talk(house, b"POST /mcp HTTP/1.1\r\nHost: x\r\n")
        assert status(late) == 408
        assert b"(limit: header_s)" in late
        assert status(await talk(house)) == 408
        async with socket_to(house) as stream:  # a second head on a kept connection has its own time
            await stream.send(head(house, f"Content-Length: {len(BODY)}") + BODY)
            with anyio.fail_after(5):
                assert status(await stream.receive()) == 200
            await stream.send(b"POST /mcp")
            assert status(await rest_of(stream)) == 408


async def test_a_body_that_never_ends_is_ended_and_gives_its_bytes_back() -> None:
    async with served(limits={"body_s": 0.2}) as house:
        before = house.agents.bytes_left
        late = await talk(house, head(house, "Content-Length: 4000"), b"x" * 100)
        assert status(late) == 408
        assert b"(limit: body_s)" in late
        assert status(await talk(house, head(house, "Transfer-Encoding: chunked"), b"5\r\nxxxxx\r\n")) == 408
        with anyio.fail_after(5):
            while house.agents.bytes_left != before:
                await anyio.sleep(0.01)
        assert house.refused == ["slow_body", "slow_body"]


async def test_a_long_call_is_not_cut_by_the_deadlines_of_bytes() -> None:
    async with served(limits={"body_s": 0.1, "header_s": 0.1}) as house, httpx2.AsyncClient(timeout=10) as http:

        async def later() -> None:
            await house.tools.entered.wait()
            await anyio.sleep(0.3)
            house.tools.release.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(later)
            headers = modern_headers("tools/call", "wait")
            answer = await http.post(f"{house.url}/mcp", json=modern_call("wait"), headers=headers)
            assert answer.status_code == 200


async def test_a_head_has_a_longest_length() -> None:
    most = Limits().header_bytes
    async with served() as house:
        one_line = head(house, "X: " + "a" * most)
        many_lines = head(house, *[f"X{number}: {'a' * 100}" for number in range(most // 100)])
        endless = b"GET /" + b"a" * (most + 100)
        for request in (one_line, many_lines, endless):
            refused = await talk(house, request)
            assert status(refused) == 431
            assert b"(limit: header_bytes)" in refused
        assert status(await talk(house, head(house, "Content-Length: 2", "Connection: close") + b"{}")) == 400


async def test_half_open_connections_give_way_to_a_whole_request() -> None:
    async with served(limits={"connections": 20}) as house, anyio.create_task_group() as tasks:
        closed: list[bytes] = []

        async def half_open(started: anyio.Event) -> None:
            async with socket_to(house) as stream:
                await stream.send(b"POST /mcp HTTP/1.1\r\nHost: ")
                started.set()
                closed.append(await rest_of(stream))

        for _ in range(60):
            started = anyio.Event()
            tasks.start_soon(half_open, started)
            await started.wait()
        async with httpx2.AsyncClient(timeout=10) as http:
            headers = modern_headers("tools/call", "echo")
            assert (await http.post(f"{house.url}/mcp", content=BODY, headers=headers)).status_code == 200
        assert len(closed) >= 40
        tasks.cancel_scope.cancel()


async def test_idle_connections_give_way_and_busy_ones_do_not() -> None:
    async with served(limits={"connections": 3}) as house, socket_to(house) as idle, anyio.create_task_group() as tasks:
        await idle.send(head(house, f"Content-Length: {len(BODY)}") + BODY)
        with anyio.fail_after(5):
            assert status(await idle.receive()) == 200
        async with httpx2.AsyncClient(timeout=10) as http:
            busy: list[int] = []

            async def wait() -> None:
                headers = modern_headers("tools/call", "wait")
                answer = await http.post(f"{house.url}/mcp", json=modern_call("wait"), headers=headers)
                busy.append(answer.status_code)

            for _ in range(3):
                tasks.start_soon(wait)
            assert await rest_of(idle) == b""  # closed
            with anyio.fail_after(5):
                while len(house.tools.calls) < 4:
                    await anyio.sleep(0.01)
            refused = await talk(house, b"GET /healthz HTTP/1.1\r\n\r\n")
            assert status(refused) == 503
            assert b"(limit: connections)" in refused
            house.tools.release.set()
            with anyio.fail_after(5):
                while len(busy) < 3:
                    await anyio.sleep(0.01)
            assert busy == [200, 200, 200]


async def test_an_idle_connection_is_closed_in_time() -> None:
    async with served(limits={"keep_alive_s": 0.1}) as house, socket_to(house) as stream:
        await stream.send(head(house, f"Content-Length: {len(BODY)}") + BODY)
        assert status(await rest_of(stream)) == 200


async def test_a_body_over_all_budgets_is_refused_and_room_comes_back() -> None:
    limits = {"bytes_in_flight": 1_048_576, "body_bytes": 1_000_000}
    async with served(limits=limits) as house, httpx2.AsyncClient(timeout=10) as http:
        large = modern_call("wait", {"text": "x" * 900_000})
        headers = modern_headers("tools/call", "wait")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: http.post(f"{house.url}/mcp", json=large, headers=headers))
            await house.tools.entered.wait()
            refused = await http.post(f"{house.url}/mcp", json=large, headers=headers)
            assert refused.status_code == 503
            assert "bytes_in_flight" in refused.text
            house.tools.release.set()
        assert (await http.post(f"{house.url}/mcp", json=large, headers=headers)).status_code == 200


# ------------------------------------------------------------------------------------------------------------ shutdown


async def test_shutdown_lets_calls_end_and_closes_what_stands_open() -> None:
    with anyio.fail_after(20):
        async with served() as house, httpx2.AsyncClient(base_url=house.url, timeout=10) as http:
            ann = await Legacy(http, "ann").open()
            answers: list[int] = []

            async def wait() -> None:
                headers = modern_headers("tools/call", "wait")
                answers.append((await http.post("/mcp", json=modern_call("wait"), headers=headers)).status_code)

            async def stand(method: str, path: str, **more: object) -> None:
                async with http.stream(method, path, **more) as stream:  # type: ignore[arg-type]
                    open_streams.append(path)
                    await stream.aread()

            open_streams: list[str] = []
            listen = modern("subscriptions/listen", {"notifications": {}})
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait)
                tasks.start_soon(lambda: stand("GET", "/sse", headers=bearer("ann")))
                session = {**bearer("ann"), "Mcp-Session-Id": ann.session}
                tasks.start_soon(lambda: stand("GET", "/mcp", headers=session))
                headers = modern_headers("subscriptions/listen")
                tasks.start_soon(lambda: stand("POST", "/mcp", json=listen, headers=headers))
                await house.tools.entered.wait()
                while len(open_streams) < 3:
                    await anyio.sleep(0.01)
                house.stop.set()
                while house.agents.streams:
                    await anyio.sleep(0.01)
                assert answers == []
                house.tools.release.set()
            assert answers == [200]
            await house.stopped.wait()


async def test_an_answer_on_an_sse_stream_is_waited_for_at_shutdown() -> None:
    with anyio.fail_after(20):
        async with served() as house, httpx2.AsyncClient(base_url=house.url, timeout=10) as http:
            async with http.stream("GET", "/sse", headers=bearer("ann")) as stream:
                texts = stream.aiter_lines()
                await anext(texts)
                path = (await anext(texts)).removeprefix("data: ")
                for message in (INITIALIZE, READY, call("wait", 5)):
                    assert (await http.post(path, json=message, headers=bearer("ann"))).status_code == 202
                await house.tools.entered.wait()
                house.stop.set()
                await anyio.sleep(0.2)
                house.tools.release.set()
                rest = "\n".join([text async for text in texts])
            assert '"id":5' in rest


async def test_a_call_that_does_not_end_is_cancelled_after_the_drain() -> None:
    with anyio.fail_after(20):
        async with served(limits={"drain_s": 0.2}) as house, httpx2.AsyncClient(timeout=10) as http:

            async def wait() -> None:
                headers = modern_headers("tools/call", "wait")
                try:
                    await http.post(f"{house.url}/mcp", json=modern_call("wait"), headers=headers)
                except httpx2.HTTPError:
                    return

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait)
                await house.tools.entered.wait()
                house.stop.set()
                await house.tools.cancelled.wait()
            await house.stopped.wait()


SERVER = """
import anyio
from broker.faces import web
from tests.serving import Keys, Tools, agents_with, settings_with

async def main():
    settings = settings_with()
    agents = agents_with(Tools(), Keys(), settings, lambda: "", [])
    await web.serve(web.build(agents), settings, lambda url: print(url, flush=True))

anyio.run(main, backend_options={"use_uvloop": True})
print("left", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_the_process_with_exit_code_0(number: signal.Signals) -> None:
    with anyio.fail_after(20):
        async with await anyio.open_process([sys.executable, "-c", SERVER]) as process:
            assert process.stdout is not None
            told = (await process.stdout.receive()).decode()
            async with httpx2.AsyncClient() as http:
                assert (await http.get(f"{told.strip()}/healthz")).status_code == 200
            process.send_signal(number)
            assert await process.wait() == 0


async def test_a_taken_port_is_said_before_anything_is_served() -> None:
    with web.bind(settings_with()) as bound:
        port = bound.getsockname()[1]
        with pytest.raises(OSError, match="in use"):
            web.bind(settings_with(listen={"port": port}))
