"""`broker serve` that dies or fails where a test says (tests/shim), and a client that starts it again and goes on.

The processes are forked from one that has imported everything with the shim preloaded, because a hundred starts of
Python would take longer than all the rest.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import cache
from http.client import HTTPConnection, HTTPException
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any

import orjson

from tests.command import _become, broker, environment  # pyright: ignore[reportPrivateUsage]  # the same kind of fork
from tests.serving import modern_call, modern_headers
from tests.shim import Shim, compiled

ROOT = Path(__file__).parents[1]
DEADLINE_S = 30.0
SERVES_S = 300  # after which a forgotten one is ended


# -------------------------------------------------------------------------------------------------------- the forker


@cache
def _forker() -> subprocess.Popen[str]:
    """One for the whole run of tests; it ends when its input does."""
    command = [sys.executable, "-c", "from tests.crashing import fork_on_demand; fork_on_demand()"]
    env = {**os.environ, "LD_PRELOAD": str(compiled())}
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)


def _ask(wanted: Mapping[str, Any]) -> int:
    forker = _forker()
    assert forker.stdin is not None and forker.stdout is not None
    forker.stdin.write(json.dumps(wanted) + "\n")
    forker.stdin.flush()
    return int(forker.stdout.readline())


def fork_on_demand() -> None:
    """Runs in the forker: {words, …} starts a process and says its id, {wait: id} says how it ended."""
    import_module("broker.faces.cli.run")
    import_module("broker.faces.cli.serving")
    for line in sys.stdin:
        wanted = json.loads(line)
        if "wait" in wanted:
            print(os.waitstatus_to_exitcode(os.waitpid(wanted["wait"], 0)[1]), flush=True)
            continue
        child = os.fork()
        if child == 0:
            _become(wanted)
        print(child, flush=True)


# ------------------------------------------------------------------------------------------------------ broker serve


class Serving:
    """`broker serve` in a folder, started when it is first needed and again whenever it has died.

    credential: what the client presents. Each start has a shim of its own; `arm` is told of it before it starts.
    """

    def __init__(self, folder: Path, credential: str = "") -> None:
        self.folder = folder
        self.credential = credential
        self.deaths = 0
        self.shim = Shim(folder / "shim.0")
        self._starts = count(1)
        self._pid = 0
        self._port = 0

    def start(self) -> bool:
        """False when it died before it was ready."""
        if self._pid:
            return True
        number = next(self._starts)
        if number > 1:
            self.shim = Shim(self.folder / f"shim.{number}")
        files = [self.folder / f"{name}.{number}" for name in ("in", "out", "err")]
        files[0].write_text("")
        files[2].write_text("")  # whoever served from this folder before has said that it was ready
        env = environment(self.folder, {"BROKER_SHIM": str(self.shim.path)})
        words = ("serve", "--port", "0")
        names = [str(file) for file in files]
        wanted = {"words": words, "cwd": str(self.folder), "env": env, "files": names, "within_s": SERVES_S}
        self._pid = _ask(wanted)
        said, until = "", time.monotonic() + DEADLINE_S
        while time.monotonic() < until:
            said = files[2].read_text()
            for line in said.splitlines():
                if "/mcp" in line:
                    self._port = int(line.split("/mcp")[0].rpartition(":")[2])
                    return True
            if not self._is_alive():
                self._died()
                return False
            time.sleep(0.01)
        raise AssertionError(f"broker serve does not become ready: {said}")

    def _is_alive(self) -> bool:
        state = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z"

    def _died(self) -> None:
        code = _ask({"wait": self._pid})
        self._pid = 0
        assert code == -signal.SIGKILL, f"broker serve ended with {code}: {self.said()}"
        self.deaths += 1

    @property
    def port(self) -> int:
        return self._port

    def said(self) -> str:
        """All that was written to stderr by any start."""
        return "\n".join(file.read_text() for file in sorted(self.folder.glob("err.*")))

    def stop(self) -> int:
        """SIGTERM, and its exit code; 0 when it is not running."""
        if not self._pid:
            return 0
        os.kill(self._pid, signal.SIGTERM)
        code = _ask({"wait": self._pid})
        self._pid = 0
        self.deaths += code == -signal.SIGKILL
        return code

    def kill(self) -> None:
        """At the end of a test, whatever state it is in."""
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            _ask({"wait": self._pid})
            self._pid = 0

    def get(self, path: str) -> tuple[int, Any]:
        connection = HTTPConnection("127.0.0.1", self._port, timeout=DEADLINE_S)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, orjson.loads(answer.read())
        finally:
            connection.close()

    def ask(self, tool: str, arguments: Mapping[str, Any], meta: Mapping[str, Any]) -> dict[str, Any] | None:
        """One request; None when the broker died before it had answered."""
        headers = modern_headers("tools/call", tool, token=self.credential)
        connection = HTTPConnection("127.0.0.1", self._port, timeout=DEADLINE_S)
        try:
            connection.request("POST", "/mcp", orjson.dumps(modern_call(tool, arguments, **meta)), headers)
            answer = orjson.loads(connection.getresponse().read())
        except (HTTPException, OSError):
            self._died()
            return None
        finally:
            connection.close()
        return answer["result"]

    def call(self, tool: str, arguments: Mapping[str, Any], **meta: Any) -> dict[str, Any]:
        """The result, however often the broker has to be started for it."""
        for _ in range(10):
            if self.start():
                result = self.ask(tool, arguments, meta)
                if result is not None:
                    return result
        raise AssertionError("broker serve dies every time")


def house(folder: Path, manifests: str, settings: str) -> str:
    """A folder that a broker can serve from, with one agent `bot` that may `work`; its credential."""
    (folder / "tool_manifests").mkdir(parents=True)
    (folder / "tool_manifests" / "tools.yaml").write_text(manifests)
    (folder / "broker.yaml").write_text(settings)
    said = broker("token", "--api-key", "bot", "--scope", "work", cwd=folder)
    assert said.code == 0, said.err
    return said.out.strip()


def copy_of(template: Path, folder: Path) -> Path:
    shutil.copytree(template, folder)
    return folder
