"""A program beside the broker is started without copying the broker, spoken to, and ended."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

import anyio
import pytest
import uvloop

from broker.backends.process import PIECE_BYTES, Process

ECHO = "import sys\nfor line in sys.stdin.buffer: sys.stdout.buffer.write(line); sys.stdout.buffer.flush()"
BALLAST_PAGES = 5_000

pytestmark = pytest.mark.anyio


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": uvloop.new_event_loop if request.param else None}


def descriptors() -> int:
    return sum(1 for _ in Path("/dev/fd").iterdir())


async def started(folder: Path, program: str) -> Process:
    return await Process.start([sys.executable, "-I", "-S", "-c", program], env={}, cwd=folder)


async def read_all(process: Process) -> bytes:
    text = b""
    while piece := await process.stdout.read(PIECE_BYTES):
        text += piece
    return text


async def test_a_start_copies_nothing_of_the_broker(tmp_path: Path) -> None:
    """After a fork the first write to each page is a fault."""
    page = os.sysconf("SC_PAGE_SIZE")
    ballast = bytearray(BALLAST_PAGES * page)

    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for at in range(0, len(ballast), page):
            ballast[at] ^= 1
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults()
    process = await started(tmp_path, ECHO)
    try:
        assert faults() < BALLAST_PAGES / 10
    finally:
        await process.close(5)


async def test_what_is_written_comes_to_it_and_what_it_says_comes_back(tmp_path: Path) -> None:
    process = await started(tmp_path, ECHO)
    lines = [b"%d %s\n" % (number, b"x" * 50_000) for number in range(40)]
    said = b""

    async def listen() -> None:
        nonlocal said
        said = await read_all(process)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listen)
        for line in lines:
            await process.write(line)
        process.close_stdin()
    assert said == b"".join(lines)
    assert await process.ended(10) and process.code == 0
    with pytest.raises(OSError):
        await process.write(b"too late\n")
    await process.close(1)


async def test_who_does_not_read_is_waited_for_and_then_ended(tmp_path: Path) -> None:
    process = await started(tmp_path, "import time; time.sleep(3600)")
    with anyio.move_on_after(0.5) as scope:
        while True:
            await process.write(b"x" * 1_000_000)
    assert scope.cancelled_caught, "what nobody reads does not pile up here"
    process.close_stdin()
    assert not await process.ended(0.1)
    await process.close(10)
    assert process.code == -9


async def test_its_end_is_seen_by_who_writes(tmp_path: Path) -> None:
    process = await started(tmp_path, "import sys; sys.stderr.write('no\\n'); sys.exit(3)")
    assert await process.stderr.read(PIECE_BYTES) == b"no\n"
    assert await process.ended(10) and process.code == 3
    with pytest.raises(OSError):
        for _ in range(1_000):
            await process.write(b"x" * 1_000)
    await process.close(1)


async def test_what_cannot_be_started_leaves_nothing_open(tmp_path: Path) -> None:
    before = descriptors()
    for command, cwd in (["/no/such/program"], tmp_path), ([sys.executable], tmp_path / "nowhere"):
        with pytest.raises(OSError):
            await Process.start(command, env={}, cwd=cwd)
    assert descriptors() <= before


async def test_what_was_ended_leaves_nothing_open(tmp_path: Path) -> None:
    async def come_and_go() -> None:
        process = await started(tmp_path, ECHO)
        await process.close(10)
        assert process.code is not None

    await come_and_go()  # the loop has what it keeps
    await anyio.sleep(0.5)
    before = descriptors()
    for _ in range(3):
        await come_and_go()
    with anyio.fail_after(10):  # the loop lets go of pipes in its next turns
        while descriptors() > before:
            await anyio.sleep(0.05)
