"""Thousands of clients that never finish what they began: each is closed in time, what it held comes back, and whoever
does finish is answered all along. Through `broker serve` in a process of its own, whose memory is looked at from
outside.
"""

from __future__ import annotations

import resource
import selectors
import socket
import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

import orjson
import pytest

from tests.command import running
from tests.serving import modern_call, modern_headers

DEADLINE_S = 2.0
PATIENCE_S = 30.0  # until a test that waits for a deadline gives up
HALF_OPEN = 3_000
EACH_BYTES = 32_768  # what a half-open connection may cost
KEPT_BYTES = 24 * 1024 * 1024  # by which two storms may differ in what the allocators keep
IN_FLIGHT_BYTES = 64 * 1024 * 1024

SETTINGS = f"""
watch: false
testing: {{open: true}}
limits:
  connections: {HALF_OPEN + 200}
  header_s: {DEADLINE_S}
  body_s: {DEADLINE_S}
  bytes_in_flight: {IN_FLIGHT_BYTES}
"""
MANIFESTS = """
kind: backend
name: notes
static: {}
---
kind: tool
name: note
effect: read
backend: notes
input: {type: object}
static: {text: here}
"""
BODY = orjson.dumps(modern_call("note"))


class Served:
    def __init__(self, port: int, pid: int) -> None:
        self.port = port
        self.pid = pid
        self._kept = HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)

    def answers(self) -> None:
        """A whole call on a new connection, and one on a connection that is kept."""
        fresh = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        for connection in (fresh, self._kept):
            connection.request("POST", "/mcp", BODY, headers())
            answer = connection.getresponse()
            said = answer.read()
            assert answer.status == 200, said
            assert b'"here"' in said
        fresh.close()

    def close(self) -> None:
        self._kept.close()

    @property
    def memory(self) -> int:
        """Resident bytes."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) * 1024


def headers() -> dict[str, str]:
    named = modern_headers("tools/call", "note")
    del named["Authorization"]
    return named


def whole_head(port: int, length: int) -> bytes:
    lines = [f"{name}: {value}" for name, value in headers().items()]
    return "\r\n".join(
        ["POST /mcp HTTP/1.1", f"Host: 127.0.0.1:{port}", *lines, f"Content-Length: {length}", "", ""]
    ).encode()


@pytest.fixture
def served(tmp_path: Path) -> Generator[Served]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * HALF_OPEN
    if hard != resource.RLIM_INFINITY and hard < needed:
        pytest.skip(f"{needed} descriptors are needed, and the limit is {hard}")
    if not Path("/proc/self/status").exists():
        pytest.skip("memory is read from /proc, which is not there")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
    (tmp_path / "tool_manifests").mkdir()
    (tmp_path / "tool_manifests" / "tools.yaml").write_text(MANIFESTS)
    (tmp_path / "broker.yaml").write_text(SETTINGS)
    try:
        with running("serve", "--port", "0", cwd=tmp_path) as process:
            assert process.stderr is not None
            told = next(line for line in process.stderr if "/mcp" in line)
            house = Served(int(told.split("/mcp")[0].rpartition(":")[2]), process.pid)
            try:
                house.answers()
                yield house
                house.answers()
            finally:
                house.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def half_open(port: int, beginnings: list[bytes], number: int) -> Generator[list[socket.socket]]:
    """So many connections that have sent one of these beginnings each, and no more."""
    opened: list[socket.socket] = []
    try:
        for place in range(number):
            opened.append(socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S))
            opened[-1].sendall(beginnings[place % len(beginnings)])
            opened[-1].setblocking(False)
        yield opened
    finally:
        for one in opened:
            one.close()


def until_closed(opened: list[socket.socket], trickled: bytes, house: Served) -> Counter[str]:
    """Trickle these bytes over them and wait until the server has closed every one; what each was told, by its status
    line and its limit.
    """
    told: dict[socket.socket, bytes] = dict.fromkeys(opened, b"")
    with selectors.DefaultSelector() as waiting:
        for one in opened:
            waiting.register(one, selectors.EVENT_READ)
        until = time.monotonic() + PATIENCE_S
        while waiting.get_map():
            assert time.monotonic() < until, f"{len(waiting.get_map())} are still open"
            for key, _ in waiting.select(0.2):
                one = key.fileobj
                assert isinstance(one, socket.socket)
                try:
                    said = one.recv(65_536)
                except ConnectionResetError:
                    said = b""
                if said:
                    told[one] += said
                else:
                    waiting.unregister(one)
            for key in list(waiting.get_map().values()):
                one = key.fileobj
                assert isinstance(one, socket.socket)
                try:
                    one.send(trickled)
                except (BlockingIOError, BrokenPipeError, ConnectionResetError):
                    continue
            house.answers()
    return Counter(f"{said[9:12].decode()} {limit_in(said)}" for said in told.values())


def limit_in(said: bytes) -> str:
    return said.partition(b"(limit: ")[2].partition(b")")[0].decode()


def test_three_thousand_half_open_connections_are_closed_in_time_and_what_they_held_comes_back(
    served: Served,
) -> None:
    head = whole_head(served.port, 1_000_000)
    beginnings = [b"P", b"POST /mcp HTTP/1.1\r\nHost: ", head, head + b'{"jsonrpc": ']
    told = stormed_twice(served, beginnings, HALF_OPEN, trickled=b"O", most_bytes=HALF_OPEN * EACH_BYTES)
    assert set(told) <= {"408 header_s", "408 body_s", "400 "}  # 400: POOO… is no method
    assert min(told["408 header_s"], told["408 body_s"]) > HALF_OPEN // 8


def test_bodies_that_stop_half_way_share_one_budget_and_give_it_back(served: Served) -> None:
    beginning = whole_head(served.port, 1_000_000) + b" " * 900_000
    told = stormed_twice(served, [beginning], 100, trickled=b"", most_bytes=IN_FLIGHT_BYTES * 2)
    assert set(told) == {"408 body_s", "503 bytes_in_flight"}


def stormed_twice(
    served: Served, beginnings: list[bytes], number: int, *, trickled: bytes, most_bytes: int
) -> Counter[str]:
    """What the connections of the second storm were told. The allocators grow to their size in the first one; the
    second must leave nothing more.
    """
    cold, grown, _ = served.memory, *storm(served, beginnings, number, trickled)
    assert grown - cold < most_bytes
    base, grown, told = served.memory, *storm(served, beginnings, number, trickled)
    assert grown - cold < most_bytes
    until = time.monotonic() + PATIENCE_S
    while (more := served.memory - base) > KEPT_BYTES:
        assert time.monotonic() < until, f"{more >> 20} MB do not come back"
        time.sleep(0.2)
    print(f"{number} half open: {(grown - cold) >> 20} MB, of the second {more >> 20} MB stay; {dict(told)}")
    return told


def storm(served: Served, beginnings: list[bytes], number: int, trickled: bytes) -> tuple[int, Counter[str]]:
    """Resident bytes while all are half open, and what they were told when they were closed."""
    with half_open(served.port, beginnings, number) as opened:
        served.answers()
        memory = served.memory
        return memory, until_closed(opened, trickled, served)
