"""Starting tests/store_process.py and talking with it; whatever happens, it ends with the test."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent
DEADLINE_S = 40.0


class Process:
    """Killed after DEADLINE_S, so that reading from it ends."""

    def __init__(self, verb: str, database: Path) -> None:
        self._popen = subprocess.Popen(
            [sys.executable, "-m", "tests.store_process", verb, str(database)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._timer = threading.Timer(DEADLINE_S, self._popen.kill)
        self._timer.start()

    def go_on(self) -> None:
        assert self._popen.stdin is not None
        self._popen.stdin.write("\n")
        self._popen.stdin.flush()

    def line(self) -> str:
        """The next line it says. Fails when it ended."""
        assert self._popen.stdout is not None
        line = self._popen.stdout.readline()
        assert line, f"the process ended with {self._popen.wait()}"
        return line.strip()

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self._popen.kill()
        self._popen.wait()

    def wait(self) -> int:
        return self._popen.wait()

    def close(self) -> None:
        self.kill()
        self._timer.cancel()
        for pipe in (self._popen.stdin, self._popen.stdout):
            assert pipe is not None
            pipe.close()


@contextmanager
def processes(number: int, verb: str, database: Path) -> Generator[list[Process]]:
    """Started at once; the store of each is open when the block begins."""
    with ExitStack() as stack:
        started: list[Process] = []
        for _ in range(number):
            started.append(Process(verb, database))
            stack.callback(started[-1].close)
        for process in started:
            assert process.line() == "ready"
        yield started
