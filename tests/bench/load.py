"""Closed-loop load: N callers on N connections, each sends its next request when it has checked the last answer.

Bare protocols on uvloop, since a client library costs more than the broker it would measure. Every answer is looked at:
status 200 and the number that was sent, so that a fast error does not count as speed.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import uvloop

LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
STALLED_S = 15.0


@dataclass(frozen=True, slots=True)
class Target:
    """request: the whole HTTP request for call number n. is_answer: whether this body answers call n."""

    host: str
    port: int
    request: Callable[[int], bytes]
    is_answer: Callable[[bytes, int], bool]


@dataclass(slots=True)
class Figures:
    """Latencies in nanoseconds, in the order the answers came; bad: answers that were not, with the first few kept."""

    callers: int
    seconds: float = 0.0
    latencies_ns: list[int] = field(default_factory=list[int])
    bad: int = 0
    examples: list[str] = field(default_factory=list[str])

    @property
    def per_second(self) -> float:
        return len(self.latencies_ns) / self.seconds if self.seconds else 0.0

    def quantile_ms(self, q: float) -> float:
        ordered = sorted(self.latencies_ns)
        return ordered[min(len(ordered) - 1, int(q * len(ordered)))] / 1e6 if ordered else 0.0


class Run:
    """What the callers of one measurement share: the numbers, the clock, the results."""

    def __init__(self, target: Target, callers: int, seconds: float, warmup_s: float) -> None:
        self.target = target
        self.figures = Figures(callers)
        self.count_from_ns = time.perf_counter_ns() + int(warmup_s * 1e9)
        self.until_ns = self.count_from_ns + int(seconds * 1e9)
        self.number = 0
        self.open = callers
        self.ended = asyncio.Event()


class Caller(asyncio.Protocol):
    def __init__(self, run: Run) -> None:
        self._run = run
        self._data = b""
        self._number = 0
        self._sent_ns = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own class does not inherit it
        self._send()

    def _send(self) -> None:
        self._run.number += 1
        self._number = self._run.number
        request = self._run.target.request(self._number)
        self._sent_ns = time.perf_counter_ns()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._data += data
        end = self._data.find(b"\r\n\r\n")
        if end < 0:
            return
        length = LENGTH.search(self._data, 0, end + 2)
        if length is None:
            self._bad(self._data)
            self._transport.abort()
            return
        if len(self._data) < end + 4 + int(length[1]):
            return
        self._answered(time.perf_counter_ns(), self._data[:end], self._data[end + 4 :])

    def _answered(self, now_ns: int, head: bytes, body: bytes) -> None:
        self._data = b""
        figures = self._run.figures
        if not head.startswith(b"HTTP/1.1 200 ") or not self._run.target.is_answer(body, self._number):
            self._bad(head + b"\r\n\r\n" + body)
        elif self._sent_ns >= self._run.count_from_ns:
            figures.latencies_ns.append(now_ns - self._sent_ns)
        if now_ns >= self._run.until_ns:
            self._transport.close()
        else:
            self._send()

    def _bad(self, answer: bytes) -> None:
        self._run.figures.bad += 1
        if len(self._run.figures.examples) < 3:
            self._run.figures.examples.append(answer[:600].decode("utf-8", "replace"))

    def connection_lost(self, exc: Exception | None) -> None:
        if time.perf_counter_ns() < self._run.until_ns:
            self._bad(b"the connection ended: " + repr(exc).encode())
        self._run.open -= 1
        if not self._run.open:
            self._run.ended.set()


async def _measure(target: Target, callers: int, seconds: float, warmup_s: float) -> Figures:
    run = Run(target, callers, seconds, warmup_s)
    loop = asyncio.get_running_loop()
    for _ in range(callers):
        await loop.create_connection(lambda: Caller(run), target.host, target.port)
    await asyncio.wait_for(run.ended.wait(), warmup_s + seconds + STALLED_S)
    run.figures.seconds = (time.perf_counter_ns() - run.count_from_ns) / 1e9
    return run.figures


def measure(target: Target, *, callers: int, seconds: float, warmup_s: float = 0.4) -> Figures:
    """One point. Raises TimeoutError when an answer does not come within 15 s of the end."""
    return uvloop.run(_measure(target, callers, seconds, warmup_s))
