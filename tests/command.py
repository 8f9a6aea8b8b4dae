"""The real command in a process of its own, for tests of the command line.

`broker` forks it from a process that has imported everything already, since importing takes longer than most commands;
`running` starts it as a person does. Both have a person's environment: a home of the test's own, nothing of ours in it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any, NoReturn

import orjson

DEADLINE_S = 60


@dataclass(frozen=True, slots=True)
class Said:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return orjson.loads(self.out)


def environment(folder: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_")}
    return {**kept, "HOME": str(folder), "XDG_CONFIG_HOME": str(folder / ".config"), "COLUMNS": "200", **(extra or {})}


def broker(*words: str, cwd: Path, env: Mapping[str, str] | None = None, stdin: str = "") -> Said:
    """Run `broker WORDS` to its end."""
    with TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("in", "out", "err")]
        files[0].write_text(stdin)
        wanted = {"words": words, "cwd": str(cwd), "env": environment(cwd, env), "files": list(map(str, files))}
        code = _forked(json.dumps(wanted))
        return Said(code, files[1].read_text(), files[2].read_text())


@contextmanager
def running(
    *words: str, cwd: Path, env: Mapping[str, str] | None = None, stderr: int | IO[str] = subprocess.PIPE
) -> Generator[subprocess.Popen[str]]:
    """`broker WORDS` while it runs; ended by SIGTERM afterwards, and by force when that does not help."""
    process = subprocess.Popen(
        [sys.executable, "-m", "broker", *words],
        cwd=cwd,
        env=environment(cwd, env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise


# -------------------------------------------------------------------------------------------------------- the forker


def _forked(wanted: str) -> int:
    forker = _forker()
    assert forker.stdin is not None and forker.stdout is not None
    forker.stdin.write(wanted + "\n")
    forker.stdin.flush()
    return int(forker.stdout.readline())


@cache
def _forker() -> subprocess.Popen[str]:
    """One for the whole run of tests; it ends when its input does, with this process."""
    command = [sys.executable, "-c", "from tests.command import serve; serve()"]
    root = Path(__file__).parents[1]
    return subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def serve() -> None:
    """Fork one command for each line of the input, and print its exit code. Runs in the forker."""
    from broker.faces.cli import COMMANDS
    from broker.faces.cli.app import built_command

    for part in COMMANDS.values():
        for name, reference in part.items():
            built_command(name, reference)
    import_module("broker.faces.cli.serving")  # and with it the whole house
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _become(json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _become(wanted: Mapping[str, Any]) -> NoReturn:
    from broker.faces.cli.run import run

    signal.alarm(wanted.get("within_s", DEADLINE_S))
    os.chdir(wanted["cwd"])
    os.environ.clear()
    os.environ.update(wanted["env"])
    for descriptor, path in enumerate(wanted["files"]):
        flags = os.O_RDONLY if descriptor == 0 else os.O_WRONLY | os.O_CREAT
        os.dup2(os.open(path, flags), descriptor)
    sys.stdin = os.fdopen(0)
    code = 70
    try:
        code = run(wanted["words"])
    except BaseException as error:  # noqa: BLE001 – a bug is told as Python tells it
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
