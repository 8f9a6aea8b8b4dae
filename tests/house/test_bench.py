"""The bench measures answers and not errors: its generator finds the bad ones. No figure is judged here."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Generator
from pathlib import Path

import pytest

from examples.demo.house import environment_of, process
from examples.demo.port import free_port
from tests.bench.load import MARK, Figures, compiled, measure

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="the bench's programs need a C compiler")


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("programs")


@pytest.fixture
def port(programs: Path, tmp_path: Path) -> Generator[int]:
    number = free_port()
    command = [str(compiled("stub", programs)), str(number), "3"]
    with (tmp_path / "log").open("w") as log, process(command, tmp_path, environment_of({}), log):
        yield number


def asked(programs: Path, folder: Path, port: int, expected: bytes, callers: int) -> Figures:
    body = b'{"n":%s}' % MARK
    request = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    program, until = compiled("load", programs), time.monotonic() + 10
    while True:  # the stub may not listen yet
        try:
            return measure(program, folder, port, request, expected, callers=callers, seconds=0.1, warmup_s=0.05)
        except subprocess.CalledProcessError:
            if time.monotonic() > until:
                raise


def test_every_caller_gets_answers_and_they_are_counted(programs: Path, port: int, tmp_path: Path) -> None:
    figures = asked(programs, tmp_path, port, b'"n":' + MARK, callers=4)
    assert figures.bad == 0
    assert figures.answers > 4
    assert 0 < figures.p50_ms <= figures.p99_ms


def test_an_answer_to_another_call_is_bad_and_does_not_count(programs: Path, port: int, tmp_path: Path) -> None:
    figures = asked(programs, tmp_path, port, b'"m":' + MARK, callers=2)
    assert figures.bad > 0
    assert "HTTP/1.1 200" in figures.words
    assert figures.answers == 0
