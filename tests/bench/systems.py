"""What is measured: each system as a process of its own in front of the same stub, and how to ask it.

    direct          the stub itself: the least any of the others can take
    sdk             the MCP SDK's own server answering by itself
    sdk proxy       a thin proxy of the SDK's server and one client of the SDK
    broker          `broker serve`, the stub behind it as an HTTP API: token, scope, schema, rules, quota, hold check,
                    fully synchronous records
    broker mcp      the same, the stub behind it as an MCP server
    unrecorded      as `broker`, with a store of the bench's own that keeps nothing: what recording costs

Gateways of others are in `peers.py`.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from examples.demo.house import House, HouseError, environment_of, process
from examples.demo.port import free_port
from tests.bench.load import compiled
from tests.bench.wire import Door, door_of

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PLACE = ROOT / ".bench"
START_S = 90.0
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []  # before anything is pinned

MANIFEST = """\
kind: backend
name: upstream
{backend}
---
{tools}
---
kind: policy
name: bench
tools: [echo]
rules:
  - {{id: usual, when: args.n >= 0, effect: allow}}
  - {{id: hold_none, when: args.n < 0, effect: hold, reason: never true here}}
---
kind: quota
name: bench-day
tools: [echo]
count: {{limit: 1000000000, per: day, timezone: UTC}}
by: [agent]
"""
HTTP = 'http: {{base_url: "http://127.0.0.1:{port}", allow_private: true, concurrent: 128, timeout: 10s}}'
MCP = (
    'mcp: {{url: "http://127.0.0.1:{port}/mcp", allow_private: true, concurrent: 128, timeout: 10s, '
    "max_tools: 20000, response_bytes: 64MiB}}"
)
TOOL = """\
kind: tool
name: echo
version: "1"
owner: bench
title: Echo
description: Answers what it is sent.
effect: write
scopes: [bench.echo]
backend: upstream
input:
  type: object
  properties: {n: {type: integer, minimum: 0}, text: {type: string, maxLength: 1000}}
  required: [n, text]
  additionalProperties: false
http: {method: POST, path: /echo}"""
IMPORT = """\
kind: import
name: stub
backend: upstream
take: ["*"]
owner: bench
effect: write
scopes: [bench.echo]"""


@dataclass(slots=True)
class System:
    """One running system. call: a request of the tool; listing: one of all tools, "" where there is none."""

    name: str
    pid: int
    port: int
    call: bytes
    listing: bytes = b""
    ready_s: float = 0.0
    idle_mb: float = 0.0
    database: Path | None = None
    stored_bytes: int = 0  # in the database before the first call
    notes: Mapping[str, str] = field(default_factory=dict[str, str])


class SkippedError(Exception):
    """This system cannot be measured here; the message says why."""


@contextmanager
def stub(folder: Path, tools: int = 1) -> Generator[System]:
    port = free_port()
    with started([str(compiled("stub", PLACE)), str(port), str(tools)], folder, {}, "stub", port, core=0) as (
        pid,
        ready_s,
    ):
        way = Door(port)
        yield System("direct", pid, port, way.call(), way.listing(), ready_s)


@contextmanager
def sdk(folder: Path, upstream: int, *, proxy: bool = False) -> Generator[System]:
    port, name = free_port(), "sdk proxy" if proxy else "sdk"
    command = [sys.executable, str(HERE / "sdk_server.py"), str(port)]
    command += [f"http://127.0.0.1:{upstream}/mcp"] if proxy else []
    with started(command, folder, {}, name, port) as (pid, ready_s):
        way = door(port)
        yield System(name, pid, port, way.call(), way.listing(), ready_s)


@contextmanager
def broker(
    folder: Path, upstream: int, *, mcp: bool = False, recorded: bool = True, name: str = "broker"
) -> Generator[System]:
    """A broker in a folder of its own. recorded: False runs it on the bench's own store, which keeps nothing."""
    home = folder / name.replace(" ", "-")
    (home / "tool_manifests").mkdir(parents=True)
    port = free_port()
    settings = home / "broker.yaml"
    settings.write_text(f"listen: {{port: {port}}}\n")
    backend = (MCP if mcp else HTTP).format(port=upstream)
    (home / "tool_manifests" / "bench.yaml").write_text(
        MANIFEST.format(backend=backend, tools=IMPORT if mcp else TOOL).replace("tools: [echo]", "tools: ['*echo']")
    )
    environment = environment_of({"BROKER_CONFIG": str(settings), "PYTHONPATH": str(ROOT)})
    command = [sys.executable, "-m", "broker" if recorded else "tests.bench.unrecorded", "serve"]
    with started(command, home, environment, name, port, path="/readyz") as (pid, ready_s):
        house = House(home, "", f"http://127.0.0.1:{port}", home, environment, _NOBODY, settings)
        token = house.register("bench", ["bench.echo"])
        idle = memory_mb(pid)
        way = door(port, token)
        database = home / "broker.db"
        kept = stored_bytes(database)
        yield System(name, pid, port, way.call(), way.listing(), ready_s, idle, database, kept)


@contextmanager
def broker_in(folder: Path, name: str, manifests: str, settings: str) -> Generator[int]:
    """A broker with these manifests and settings, in a folder of its own: its port."""
    home = folder / name
    (home / "tool_manifests").mkdir(parents=True)
    port = free_port()
    (home / "broker.yaml").write_text(f"{settings}listen: {{port: {port}}}\n")
    (home / "tool_manifests" / f"{name}.yaml").write_text(manifests)
    environment = environment_of({"BROKER_CONFIG": str(home / "broker.yaml"), "PYTHONPATH": str(ROOT)})
    command = [sys.executable, "-m", "broker", "serve"]
    with started(command, home, environment, name, port, path="/readyz"):
        yield port


_NOBODY: subprocess.Popen[str] = None  # type: ignore[assignment]  # the process is held here, not by the house


# ------------------------------------------------------------------------------------------------------- processes


@contextmanager
def started(
    command: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    name: str,
    port: int,
    *,
    path: str = "",
    core: int = 1,
) -> Generator[tuple[int, float]]:
    """The process, pinned, and how many seconds it took to be ready: to accept, or to answer 200 at this path."""
    log_path = folder / f"{name.replace(' ', '-')}.log"
    began = time.perf_counter()
    with log_path.open("w") as log, process(command, folder, environment or environment_of({}), log) as child:
        while not _is_ready(port, path):
            if child.poll() is not None or time.perf_counter() - began > START_S:
                raise HouseError(f"{name} did not start:\n{log_path.read_text('utf-8', 'replace')[-2000:]}")
            time.sleep(0.004)
        ready_s = time.perf_counter() - began
        pin(child.pid, core)
        yield child.pid, ready_s


def _is_ready(port: int, path: str) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as asking:
            if not path:
                return True
            asking.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode())
            return asking.recv(64).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


def door(port: int, token: str = "", *, path: str = "/mcp", tool: str = "echo") -> Door:
    """Tried for a while: what stands behind may still be connecting. Raises ValueError, OSError."""
    until = time.monotonic() + 20
    while True:
        try:
            return door_of(port, path, token, tool)
        except (ValueError, OSError):
            if time.monotonic() > until:
                raise
            time.sleep(0.2)


def pin(pid: int, core: int) -> None:
    """To the first or second core; only where there are two to choose from and the system can (Linux)."""
    if len(CORES) >= 2:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), {CORES[core]})


def memory_mb(pid: int) -> float:
    """Proportional set size of a process and its children; 0 where the system does not tell."""
    total = 0
    for one in (pid, *_children(pid)):
        try:
            lines = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += int(next(line for line in lines if line.startswith("Pss:")).split()[1])
    return total / 1024


def cpu_s(pid: int) -> float:
    """CPU seconds a process and its children have used, to the microsecond where the system tells."""
    total = 0.0
    for one in (pid, *_children(pid)):
        for thread in Path(f"/proc/{one}/task").iterdir():
            try:
                total += int((thread / "schedstat").read_text().split()[0]) / 1e9
            except OSError:  # it has ended
                continue
    return total


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def stored_bytes(database: Path) -> int:
    """How large the database is, whatever of it is still in its log."""
    import sqlite3

    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as db:
        (pages,), (size,) = (db.execute(f"pragma {name}").fetchone() for name in ("page_count", "page_size"))
    return int(pages) * int(size)


def count_records(database: Path) -> int:
    """Calls that the store says have ended well."""
    import sqlite3

    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as db:
        return int(db.execute("SELECT count(*) FROM invocation WHERE state = 'succeeded'").fetchone()[0])


def as_json(value: object) -> str:
    return json.dumps(value, indent=2, default=lambda one: getattr(one, "__dict__", str(one)))
