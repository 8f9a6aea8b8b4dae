"""Calls per second and latency, direct and through the broker, measured side by side in one run.

    direct    the load generator calls the upstream HTTP service itself
    broker    the same call as an MCP tool through `broker serve`: token, scope, schema, rule, quota, durable record
    sdk       for scale: the MCP SDK's own server answering the same call by itself, without anything of that

Figures of one machine mean little; ratios of one run mean much, so those are printed, each as a number followed by `x`.
Every answer is checked, and at the end the records are counted: a call without a record fails the bench. Where the
system allows it, generator and upstream share one core and the server that is measured has another.

Writes `.bench/result.json`. Settings: BENCH_SECONDS (per point, default 2).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import orjson
from load import Figures, Target, measure

from examples.demo.house import START_S, House, HouseError, environment_of, free_port, process, serve

HERE = Path(__file__).parent
RESULT = HERE.parents[1] / ".bench" / "result.json"
CALLERS = (1, 16, 64)
SECONDS = float(os.environ.get("BENCH_SECONDS", "2"))
VERSION = "2026-07-28"
PAYLOAD = "The quick brown fox jumps over the lazy dog."

MANIFEST = """\
kind: backend
name: upstream
http: {{base_url: "{upstream}", allow_private: true, concurrent: 128, timeout: 10s}}
---
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
  properties: {{n: {{type: integer, minimum: 0}}, text: {{type: string, maxLength: 1000}}}}
  required: [n, text]
  additionalProperties: false
http: {{method: POST, path: /echo}}
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


# ------------------------------------------------------------------------------------------------------- the targets


def direct(url: str) -> Target:
    host, port = _address(url)
    head = f"POST /echo HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\nContent-Length: ".encode()

    def request(n: int) -> bytes:
        body = b'{"n":%d,"text":"%s"}' % (n, PAYLOAD.encode())
        return b"%s%d\r\n\r\n%s" % (head, len(body), body)

    return Target(host, port, request, lambda body, n: orjson.loads(body) == {"n": n, "text": PAYLOAD})


def tool(url: str, token: str) -> Target:
    """`tools/call` of echo at /mcp, as a 2026-07-28 client sends it."""
    host, port = _address(url)
    head = (
        f"POST /mcp HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: Bearer {token}\r\n"
        "Content-Type: application/json\r\nAccept: application/json, text/event-stream\r\n"
        f"MCP-Protocol-Version: {VERSION}\r\nMcp-Method: tools/call\r\n"
        "Mcp-Name: echo\r\nContent-Length: "
    ).encode()
    meta = {
        "io.modelcontextprotocol/protocolVersion": VERSION,
        "io.modelcontextprotocol/clientCapabilities": {},
        "io.modelcontextprotocol/clientInfo": {"name": "bench", "version": "1"},
    }
    body_of = (
        '{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":"echo","arguments":{"n":%d,"text":"'
        + PAYLOAD
        + '"},"_meta":'
        + json.dumps(meta)
        + "}}"
    )

    def request(n: int) -> bytes:
        body = (body_of % (n, n)).encode()
        return b"%s%d\r\n\r\n%s" % (head, len(body), body)

    return Target(host, port, request, _is_echo)


def _is_echo(body: bytes, n: int) -> bool:
    answer: dict[str, Any] = orjson.loads(body)
    result: dict[str, Any] = answer.get("result") or {"isError": True}
    echoed: Any = result.get("structuredContent")
    if echoed is None and not result.get("isError"):
        echoed = orjson.loads(result["content"][0]["text"])
    return answer["id"] == n and not result.get("isError") and echoed == {"n": n, "text": PAYLOAD}


def _address(url: str) -> tuple[str, int]:
    host, _, port = url.removeprefix("http://").partition(":")
    return host, int(port)


# ------------------------------------------------------------------------------------------------------- the servers


@contextmanager
def server(script: str, directory: Path, core: int) -> Generator[str]:
    """One of the programs beside this file, given by the URL it prints."""
    path = directory / f"{script}.log"
    command = [sys.executable, str(HERE / script)]
    with path.open("w") as log, process(command, directory, os.environ, log, piped=True) as child:
        assert child.stdout is not None
        _pin(child.pid, core)
        url = child.stdout.readline().strip()
        if not url:
            raise HouseError(f"{script} did not start:\n{path.read_text()}")
        yield url


@contextmanager
def broker(directory: Path, upstream: str) -> Generator[tuple[House, float]]:
    """`broker serve` in front of the upstream, and how long it took to be ready, in seconds."""
    port = free_port()
    settings = directory / "broker.yaml"
    settings.write_text(f"listen: {{port: {port}}}\n")
    manifests = directory / "tool_manifests"
    manifests.mkdir()
    (manifests / "bench.yaml").write_text(MANIFEST.format(upstream=upstream))
    environment = environment_of({"BROKER_CONFIG": str(settings)})
    url, began = f"http://127.0.0.1:{port}", time.monotonic()
    with serve(directory, environment, url) as child:
        ready_s = time.monotonic() - began
        _pin(child.pid, 1)
        yield House(directory, upstream, url, directory, environment, child, settings), ready_s


def _pin(pid: int, core: int) -> None:
    """Only where there are two cores to choose from and the system can (Linux)."""
    if hasattr(os, "sched_setaffinity") and len(os.sched_getaffinity(0)) >= 2:
        wanted = sorted(os.sched_getaffinity(0))[core]
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), {wanted})


def memory_mb(pid: int) -> float | None:
    """Proportional set size of one process; None where the system does not tell."""
    rollup = Path(f"/proc/{pid}/smaps_rollup")
    if not rollup.exists():
        return None
    line = next(line for line in rollup.read_text().splitlines() if line.startswith("Pss:"))
    return int(line.split()[1]) / 1024


def cpu_s(pid: int) -> float | None:
    """CPU time one process has used; None where the system does not tell."""
    stat = Path(f"/proc/{pid}/stat")
    if not stat.exists():
        return None
    fields = stat.read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# ------------------------------------------------------------------------------------------------------- the figures


def series(target: Target) -> list[Figures]:
    return [measure(target, callers=callers, seconds=SECONDS) for callers in CALLERS]


def as_row(figures: Figures) -> dict[str, Any]:
    return {
        "callers": figures.callers,
        "calls_per_second": round(figures.per_second, 1),
        "p50_ms": round(figures.quantile_ms(0.5), 3),
        "p95_ms": round(figures.quantile_ms(0.95), 3),
        "p99_ms": round(figures.quantile_ms(0.99), 3),
        "answers": len(figures.latencies_ns),
        "bad": figures.bad,
    }


def print_series(name: str, figures: Sequence[Figures], base: Sequence[Figures]) -> None:
    for one, by in zip(figures, base, strict=True):
        ratio = one.per_second / by.per_second if by.per_second else 0.0
        added = one.quantile_ms(0.5) - by.quantile_ms(0.5)
        print(
            f"{name:<8}{one.callers:>8}{one.per_second:>12,.0f}{one.quantile_ms(0.5):>10.3f}{one.quantile_ms(0.99):>10.3f}"
            f"{ratio:>11.3f}x{added:>+14.3f}"
        )


def run(directory: Path) -> dict[str, Any]:
    with ExitStack() as stack:
        upstream = stack.enter_context(server("upstream.py", directory, 0))
        house, ready_s = stack.enter_context(broker(directory, upstream))
        token = house.register("bench", ["bench.echo"])
        idle_mb = memory_mb(house.broker.pid)
        measured = {"direct": series(direct(upstream))}
        before = cpu_s(house.broker.pid)
        measured["broker"] = series(tool(house.broker_url, token))
        after = cpu_s(house.broker.pid)
        loaded_mb = memory_mb(house.broker.pid)
        with server("sdk_server.py", directory, 1) as sdk:
            _wait_for(sdk)
            measured["sdk"] = series(tool(sdk, "none"))
        recorded = count_records(directory / "broker.db")
        house.command("verify")
    calls = sum(len(figures.latencies_ns) for figures in measured["broker"])
    return {
        "figures": measured,
        "ready_s": ready_s,
        "idle_mb": idle_mb,
        "loaded_mb": loaded_mb,
        # warm-up calls cost CPU too and are not in `calls`; records count them all
        "cpu_us_per_call": (after - before) / recorded * 1e6
        if after is not None and before is not None and recorded
        else None,
        "calls": calls,
        "recorded": recorded,
    }


def count_records(database: Path) -> int:
    """Calls that the store says have ended well."""
    import sqlite3

    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as db:
        return int(db.execute("SELECT count(*) FROM invocation WHERE state = 'succeeded'").fetchone()[0])


def _wait_for(url: str) -> None:
    import socket

    deadline = time.monotonic() + START_S
    while True:
        try:
            socket.create_connection(_address(url), timeout=1).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise HouseError(f"{url} does not answer") from error
            time.sleep(0.05)


def report(result: dict[str, Any]) -> list[str]:
    """Print the table. Returns what is wrong."""
    figures: dict[str, list[Figures]] = result["figures"]
    print("Records: durable (SQLite, WAL, synchronous=FULL, group commit; intent before, outcome after every call).\n")
    print(f"{'':<8}{'callers':>8}{'calls/s':>12}{'p50 ms':>10}{'p99 ms':>10}{'of direct':>12}{'added p50 ms':>14}")
    for name in ("direct", "broker", "sdk"):
        print_series(name, figures[name], figures["direct"])
    against_sdk = figures["broker"][-1].per_second / (figures["sdk"][-1].per_second or 1)
    print(f"\nThe broker at {CALLERS[-1]} callers against the SDK's own server: {against_sdk:.2f}x")
    for name, said in (
        ("ready_s", "ready after {:.1f} s"),
        ("idle_mb", "memory idle {:.0f} MB"),
        ("loaded_mb", "memory loaded {:.0f} MB"),
        ("cpu_us_per_call", "CPU per call {:.0f} µs"),
    ):
        if result[name] is not None:
            print(said.format(result[name]))
    print(f"{result['calls']} measured calls through the broker, {result['recorded']} on record, chain verified.")
    faults = [
        f"{name} at {one.callers}: {one.bad} bad answers: {one.examples}"
        for name in figures
        for one in figures[name]
        if one.bad
    ]
    if result["recorded"] < result["calls"]:
        faults.append(f"{result['calls'] - result['recorded']} calls have no record")
    return faults


def main() -> int:
    _pin(os.getpid(), 0)
    with tempfile.TemporaryDirectory(prefix="broker-bench-") as directory:
        try:
            result = run(Path(directory))
        except (HouseError, TimeoutError, subprocess.SubprocessError) as fault:
            print(f"The bench could not run: {fault}", file=sys.stderr)
            return 1
    faults = report(result)
    result["figures"] = {name: [as_row(one) for one in rows] for name, rows in result["figures"].items()}
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(*faults, sep="\n", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
