"""Calls whose head has come before: answered as any other, judged in all that can have changed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import anyio
import httpx2
import orjson
import pytest

from broker.faces.mcp import direct
from broker.model.answer import Answer
from broker.model.call import Call
from tests.serving import Served, modern_call, modern_headers, served
from tests.stories.test_wire_connection import head, rest_of, socket_to, status

pytestmark = pytest.mark.anyio


def body(number: int, **arguments: object) -> bytes:
    return orjson.dumps({**modern_call("echo", {"text": "hi", **arguments}), "id": number})


def request(house: Served, content: bytes, *lines: str) -> bytes:
    return head(house, *lines, f"Content-Length: {len(content)}") + content


async def answered(stream: anyio.abc.SocketStream) -> tuple[int, bytes]:
    """Status and body of the next answer."""
    received = b""
    with anyio.fail_after(5):
        while True:
            received += await stream.receive()
            top, found, rest = received.partition(b"\r\n\r\n")
            sizes = [int(line[15:]) for line in top.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            if found and sizes and len(rest) >= sizes[0]:
                return status(top), rest


async def test_a_head_that_came_before_is_not_judged_again_and_its_call_is_another() -> None:
    async with served() as house, socket_to(house) as stream:
        said: list[tuple[int, object]] = []
        for number in (3, 4, 55_555):  # the last is longer
            await stream.send(request(house, body(number)))
            code, content = await answered(stream)
            said.append((code, orjson.loads(content)["id"]))
        assert said == [(200, 3), (200, 4), (200, 55_555)]
        assert house.keys.asked == 1, "the gate asked once; the others took the shortcut"
        assert [call.request_id for call in house.tools.calls] == ["3", "4", "55555"]
        assert len({call.id for call in house.tools.calls}) == 3


@pytest.mark.parametrize("length", ["Content-Length: 0%d", "content-length:%d", "Content-Length: +%d"])
async def test_a_length_told_in_another_way_is_judged_anew(length: str) -> None:
    async with served() as house, socket_to(house) as stream:
        await stream.send(request(house, body(3)))
        await answered(stream)
        await stream.send(head(house, length % len(body(4))) + body(4))
        code = status(await stream.receive())
        assert (code, house.keys.asked) == ((400, 1) if "+" in length else (200, 2))


@pytest.mark.parametrize("said", ["keep-alive", "Keep-Alive", "close", "keep-alive, x-other"])
async def test_a_connection_that_stays_is_as_one_that_says_nothing(said: str) -> None:
    async with served() as house:
        for number in (3, 4):
            async with socket_to(house) as stream:
                await stream.send(request(house, body(number), f"Connection: {said}"))
                assert (await answered(stream))[0] == 200
                if said == "close":
                    assert not await rest_of(stream)
        assert house.keys.asked == (1 if said.lower() == "keep-alive" else 2)


async def test_a_client_library_is_known_by_its_head() -> None:
    async with served() as house, httpx2.AsyncClient(timeout=10) as http:
        for number in range(5):
            call = modern_call("echo", {"text": "x" * number})
            headers = modern_headers("tools/call", "echo")
            assert (await http.post(f"{house.url}/mcp", json=call, headers=headers)).status_code == 200
        assert house.keys.asked == 1


TRACES = [f"traceparent: 00-{number:032x}-{number:016x}-01" for number in (1, 2, 3)]


async def test_a_head_is_known_whatever_its_trace_is() -> None:
    async with served() as house, socket_to(house) as stream:
        for number, line in enumerate((*TRACES, TRACES[0].replace("00-", "01-") + "-more")):
            await stream.send(request(house, body(number), line))
            assert (await answered(stream))[0] == 200
            assert house.tools.calls[-1].trace_parent == line.removeprefix("traceparent: ")
        assert house.keys.asked == 1
        await stream.send(request(house, body(9)))
        await answered(stream)
        assert (house.tools.calls[-1].trace_parent, house.keys.asked) == ("", 2), "without one it is another head"


@pytest.mark.parametrize(
    "lines",
    [
        ["traceparent: 00-x"],
        ["traceparent:" + TRACES[1][13:]],
        [TRACES[1].replace("trace", "Trace")],
        [TRACES[1] + " "],
        [TRACES[1] + "\0"],
        [TRACES[1], TRACES[2]],
        [TRACES[1], "tracestate: a=b"],
        [f"X-Other: a {TRACES[1]}"],
        [TRACES[1] + "-" + "x" * 128],
    ],
)
async def test_a_trace_told_in_another_way_is_judged_anew(lines: list[str]) -> None:
    async with served() as house:

        async def say() -> tuple[int, list[Call]]:
            before = len(house.tools.calls)
            async with socket_to(house) as stream:
                await stream.send(request(house, body(4), *lines))
                return status(await stream.receive()), [told(call) for call in house.tools.calls[before:]]

        unknown = await say()
        async with socket_to(house) as stream:
            for line in TRACES[:2]:
                await stream.send(request(house, body(3), line))
                await answered(stream)
        asked = house.keys.asked
        for _ in range(2):
            assert await say() == unknown
        assert house.keys.asked - asked == (0 if lines[0].startswith("X-Other") or unknown[0] == 400 else 2)


async def test_an_empty_trace_is_none() -> None:
    async with served() as house, socket_to(house) as stream:
        for line in (TRACES[0], "traceparent: ", TRACES[1]):
            await stream.send(request(house, body(3), line))
            await answered(stream)
        assert [call.trace_parent for call in house.tools.calls] == [TRACES[0][13:], "", TRACES[1][13:]]


async def test_a_second_length_is_refused_at_a_known_head() -> None:
    async with served() as house, socket_to(house) as stream:
        await stream.send(request(house, body(3)))
        await answered(stream)
        await stream.send(request(house, body(4), "Content-Length: 1"))
        assert status(await rest_of(stream)) == 400
        assert len(house.tools.calls) == 1


async def test_a_caller_without_a_credential_is_known_by_that() -> None:
    async with served() as house, socket_to(house) as stream:
        house.keys.open()
        for number in (3, 4):
            await stream.send(request(house, body(number)).replace(b"Authorization: Bearer ann\r\n", b""))
            assert (await answered(stream))[0] == 200
        assert [call.principal.agent for call in house.tools.calls] == ["nobody", "nobody"]
        assert house.keys.asked == 1


async def test_a_head_is_known_that_came_before_its_body() -> None:
    async with served() as house, socket_to(house) as stream:
        for number in (3, 4):
            whole = request(house, body(number))
            start = whole.index(b"\r\n\r\n") + 4
            for piece in (whole[:start], whole[start:]):
                await stream.send(piece)
                await anyio.sleep(0.02)
            code, content = await answered(stream)
            assert (code, orjson.loads(content)["id"], house.keys.asked) == (200, number, 1)


@pytest.mark.parametrize("cut", [1, 40])
async def test_a_body_that_comes_in_pieces_is_waited_for(cut: int) -> None:
    async with served() as house, socket_to(house) as stream:
        await stream.send(request(house, body(3)))
        await answered(stream)
        whole = request(house, body(4))
        start = whole.index(b"\r\n\r\n") + 4
        for piece in (whole[:start], whole[start : start + cut], whole[start + cut :]):
            await stream.send(piece)
            await anyio.sleep(0.02)
        code, content = await answered(stream)
        assert (code, orjson.loads(content)["id"], house.keys.asked) == (200, 4, 1)


async def test_what_waits_for_its_rest_counts_as_bytes_in_flight_until_it_is_whole_or_gone() -> None:
    async with served() as house:
        free = house.agents.bytes_left
        async with socket_to(house) as stream:
            await stream.send(request(house, body(3)))
            await answered(stream)
            for number in (4, 5):
                whole = request(house, body(number))
                await stream.send(whole[:-5])
                with anyio.fail_after(5):
                    while house.agents.bytes_left == free:
                        await anyio.sleep(0.01)
                assert house.agents.bytes_left == free - len(whole) + 5
                if number == 4:
                    await stream.send(whole[-5:])
                    await answered(stream)
                    assert house.agents.bytes_left == free
        with anyio.fail_after(5):
            while house.agents.bytes_left != free:
                await anyio.sleep(0.01)


async def test_without_room_for_what_waits_a_request_goes_the_usual_way() -> None:
    async with served() as house, socket_to(house) as stream:
        await stream.send(request(house, body(3)))
        await answered(stream)
        taken = house.agents.bytes_left - 200
        house.agents.shortcut.hold(taken)
        await stream.send(request(house, body(4))[:-5])
        code, content = await answered(stream)
        assert code == 503
        assert b"bytes_in_flight" in content
        assert house.keys.asked == 2
        house.agents.shortcut.let_go(taken)


async def test_a_body_that_does_not_come_is_waited_for_no_longer_than_any() -> None:
    async with served(limits={"body_s": 0.3}) as house, socket_to(house) as stream:
        await stream.send(request(house, body(3)))
        await answered(stream)
        await stream.send(request(house, body(4))[:-5])
        received = await rest_of(stream)
        assert status(received) == 408
        assert b"body_s" in received
        assert len(house.tools.calls) == 1


CALL = orjson.dumps({**modern_call("echo", {"text": "hi"}), "id": 4})
WRONG = {
    "no JSON": b"{" * 30,
    "a key twice": b'{"id":5,' + CALL[1:],
    "another name than in the head": CALL.replace(b'"name":"echo"', b'"name":"ohce"'),
    "another method": CALL.replace(b"tools/call", b"tools/list"),
    "another version": CALL.replace(b"2026-07-28", b"2026-07-29"),
    "a notification": CALL.replace(b'"id":4,', b"").replace(b',"id":4', b""),
}


@pytest.mark.parametrize("why", WRONG)
async def test_a_body_that_does_not_fit_a_known_head_is_refused_as_ever(why: str) -> None:
    good, wrong = (content.ljust(500) for content in (CALL, WRONG[why]))
    async with served() as house, socket_to(house) as stream:
        await stream.send(request(house, wrong))
        unknown = await answered(stream)
        for content in (good, wrong):
            await stream.send(request(house, content))
            known = await answered(stream)
            assert known == unknown or content == good
    assert unknown[0] == (202 if why == "a notification" else 400)


ABSENT = object()
KEY = "io.modelcontextprotocol/"
ALTERNATIVES: dict[tuple[str, ...], list[object]] = {
    ("jsonrpc",): ["1.0", 2.0, ABSENT],
    ("id",): ["x", "", "\u00e9" * 128, "x" * 300, -5, 2**63, True, 1.0, None, [], ABSENT],
    ("method",): ["tools/list", "tools/calls", None],
    ("more",): [1],
    ("params",): [[], None, ABSENT],
    ("params", "name"): ["ohce", 5, ABSENT],
    ("params", "arguments"): [{}, {"text": "\u00e9\u2028"}, {"text": 1.5, "n": [{}]}, {"wrong": 1}, [], None, ABSENT],
    ("params", "requestState"): ["x"],
    ("params", "_meta"): [{}, None, [], ABSENT],
    ("params", "_meta", f"{KEY}protocolVersion"): ["2025-11-25", "2026-07-29", 1, ABSENT],
    ("params", "_meta", f"{KEY}clientCapabilities"): [
        {"elicitation": {"url": {}}}, {"extensions": {f"{KEY}tasks": {}}}, {"x": 1}, {"x": {"y": 1.0}}, [], ABSENT,
    ],
    ("params", "_meta", f"{KEY}clientInfo"): [{"name": "x"}, {"name": "x", "version": 1}, "x", ABSENT],
    ("params", "_meta", f"{KEY}logLevel"): ["debug"],
    ("params", "_meta", "progressToken"): ["x"],
    ("params", "_meta", "traceparent"): [f"00-{'a' * 32}-{'b' * 16}-01", "none", 5, None],
    ("params", "_meta", "dev.broker/idempotencyKey"): ["k", 5],
    ("params", "_meta", "other"): [1, 1.0, True, None, {"deep": [{}]}],
}  # fmt: skip


def other_bodies() -> list[bytes]:
    """The usual call with one thing in it that is another, and its text written in other ways."""
    found = [CALL, orjson.dumps(orjson.loads(CALL), option=orjson.OPT_INDENT_2), CALL.replace(b"hi", b"h\\u0069")]
    for path, values in ALTERNATIVES.items():
        for value in values:
            message = orjson.loads(CALL)
            place = message
            for key in path[:-1]:
                place = place[key]
            if value is ABSENT:
                place.pop(path[-1], None)
            else:
                place[path[-1]] = value
            found.append(orjson.dumps(message))
    numbers = [b"1e400", b"-0", b"1E5", b"18446744073709551616", b"[" * 70 + b"]" * 70]
    found += [CALL.replace(b'"hi"', number) for number in numbers]
    return [*found, CALL.replace(b'"text"', b'"text":1,"text"'), *WRONG.values()]


def told(call: Call) -> Call:
    """What is the same of two calls that mean the same."""
    return replace(call, id="", received_at_ms=0, progress=None, back=None)


async def test_whatever_is_in_a_body_a_known_head_changes_nothing() -> None:
    async with served() as house, socket_to(house) as stream:

        async def say(content: bytes, *lines: str) -> tuple[object, ...]:
            before = len(house.tools.calls)
            await stream.send(request(house, content, *lines))
            code, said = await answered(stream)
            calls = house.tools.calls[before:]
            for call in calls:
                said = said.replace(call.id.encode(), b"the call")
            return code, said, [told(call) for call in calls]

        for number, content in enumerate(other_bodies()):
            size = max(len(content), len(CALL))
            unknown = await say(content.ljust(size), f"X-Number: {number}")
            await say(CALL.ljust(size))
            for _ in range(2):
                assert await say(content.ljust(size)) == unknown, content
            if size == len(content):  # without blanks at its end, too
                assert await say(content) == unknown


async def test_a_credential_that_counts_no_longer_is_refused_at_a_known_head() -> None:
    async with served() as house, socket_to(house) as stream:
        await stream.send(request(house, body(3)))
        await answered(stream)
        house.keys.revoked.add("ann")
        await stream.send(request(house, body(4)))
        code, _ = await answered(stream)
        assert code == 401
        assert len(house.tools.calls) == 1


async def test_calls_sent_at_once_on_one_connection_are_answered_in_order() -> None:
    async with served() as house, socket_to(house) as stream:
        await stream.send(request(house, body(3)))
        await answered(stream)
        await stream.send(request(house, body(4)))
        await stream.send(request(house, body(5)) + request(house, body(6)))
        received = b""
        with anyio.fail_after(5):
            while received.count(b"HTTP/1.1 200") < 3 or not received.endswith(b"}"):
                received += await stream.receive()
        places = [received.index(b'"id":%d' % number) for number in (4, 5, 6)]
        assert places == sorted(places)


WAIT = orjson.dumps({**modern_call("wait", {}), "id": 3})


def waiting(house: Served) -> bytes:
    return request(house, WAIT).replace(b"echo", b"wait")


@asynccontextmanager
async def known_call_under_way(house: Served) -> AsyncGenerator[anyio.abc.SocketStream]:
    house.tools.release.set()
    async with socket_to(house) as stream:
        await stream.send(waiting(house))
        await answered(stream)
    house.tools.release = anyio.Event()
    house.tools.entered = anyio.Event()
    async with socket_to(house) as stream:
        await stream.send(waiting(house))
        with anyio.fail_after(5):
            await house.tools.entered.wait()
        yield stream


async def test_a_client_that_leaves_a_known_call_has_it_cancelled() -> None:
    async with served() as house:
        free = house.agents.bytes_left
        async with known_call_under_way(house):
            assert house.agents.bytes_left < free
        with anyio.fail_after(5):
            await house.tools.cancelled.wait()
            while house.agents.bytes_left != free:
                await anyio.sleep(0.01)
        assert house.keys.asked == 1


async def test_clients_that_leave_at_once_leave_nothing_behind() -> None:
    async with served() as house:
        async with socket_to(house) as stream:
            await stream.send(request(house, body(3)))
            await answered(stream)
        free, tasks = house.agents.bytes_left, len(asyncio.all_tasks())
        for number in range(20):
            async with socket_to(house) as stream:
                await stream.send(request(house, body(number)))
        with anyio.fail_after(5):
            while house.agents.bytes_left != free or len(asyncio.all_tasks()) > tasks:
                await anyio.sleep(0.01)
        assert house.keys.asked == 1


async def test_a_known_call_ends_before_the_server_does_and_its_connection_with_it() -> None:
    async with served() as house, known_call_under_way(house) as stream:
        house.stop.set()
        await anyio.sleep(0.2)
        house.tools.release.set()
        received = await rest_of(stream)
        assert status(received) == 200
        assert b"connection: close" in received


async def test_a_known_call_that_stays_silent_becomes_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "QUIET_S", 0.0)
    monkeypatch.setattr(direct, "LOOK_EVERY_S", 0.02)
    async with served() as house, known_call_under_way(house) as stream:
        received = await stream.receive()
        assert b"text/event-stream" in received
        house.tools.release.set()
        with anyio.fail_after(5):
            while b'"id":3' not in received or not received.endswith(b"0\r\n\r\n"):
                received += await stream.receive()
        house.tools.entered = anyio.Event()
        await stream.send(waiting(house))  # the connection is as good as before
        with anyio.fail_after(5):
            await house.tools.entered.wait()


class _Unreadable(dict[str, Any]):
    def __contains__(self, key: object) -> bool:
        raise RuntimeError("a fault of ours")


async def test_a_fault_of_ours_at_a_known_head_is_500_and_closed(caplog: pytest.LogCaptureFixture) -> None:
    async with served() as house, socket_to(house) as stream:
        await stream.send(request(house, body(3)))
        await answered(stream)
        free = house.agents.bytes_left

        async def broken(call: Call) -> Answer:
            return Answer(more=_Unreadable())

        house.tools.perform = broken
        await stream.send(request(house, body(4)))
        assert status(await rest_of(stream)) == 500
        assert house.agents.bytes_left == free
        assert "a fault of ours" in caplog.text
