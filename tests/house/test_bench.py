"""The bench measures answers and not errors: its generator finds the bad ones. No figure is judged here."""

from __future__ import annotations

import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from examples.demo.house import process
from tests.bench.load import Target, measure

UPSTREAM = Path(__file__).parents[1] / "bench" / "upstream.py"


@pytest.fixture
def port(tmp_path: Path) -> Generator[int]:
    with (
        (tmp_path / "log").open("w") as log,
        process([sys.executable, str(UPSTREAM)], tmp_path, {}, log, piped=True) as upstream,
    ):
        assert upstream.stdout is not None
        yield int(upstream.stdout.readline().strip().rpartition(":")[2])


def request(n: int) -> bytes:
    return b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%d" % (len(str(n)), n)


def test_every_caller_gets_answers_and_they_are_counted(port: int) -> None:
    figures = measure(
        Target("127.0.0.1", port, request, lambda body, n: body == b"%d" % n), callers=4, seconds=0.1, warmup_s=0.05
    )
    assert figures.bad == 0
    assert len(figures.latencies_ns) > 4
    assert 0 < figures.quantile_ms(0.5) <= figures.quantile_ms(0.99)


def test_an_answer_to_another_call_is_bad_and_does_not_count(port: int) -> None:
    figures = measure(
        Target("127.0.0.1", port, request, lambda body, n: body == b"%d" % (n + 1)),
        callers=2,
        seconds=0.1,
        warmup_s=0.0,
    )
    assert figures.bad > 0
    assert figures.examples
    assert not figures.latencies_ns
