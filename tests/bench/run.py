"""Calls per second, latency, CPU, memory and start of the broker beside others, in one run on one machine.

What is measured is in `systems.py`. All systems run at once, each on the stub; the load goes round them again and
again, a short piece each time, and the median of the pieces is told: so whatever else the machine does meets all of
them alike, and the ratios mean more than the digits. Every answer is checked; at the end the records are counted and
verified, and a call without a record fails the bench. Generator and stub share a core; what is measured has the other.

Writes `.bench/result.json` and `.bench/chart.svg`. `BENCH=quick` measures less, in under a minute.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from compileall import compile_dir
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from examples.demo.house import HouseError
from tests.bench import peers, systems
from tests.bench.chart import chart
from tests.bench.disk import commit_ms
from tests.bench.load import Figures, NoCompilerError, compiled, measure
from tests.bench.systems import PLACE, SkippedError, System, count_records, cpu_s, memory_mb, pin, stored_bytes
from tests.bench.wire import EXPECTED
from tests.bench.zoo import beside_the_zoo

QUICK = os.environ.get("BENCH") == "quick"
CALLERS = (1, 16, 64)
ROUNDS = 2 if QUICK else 5
PIECE_S = 0.4 if QUICK else 0.8
CATALOGS = (1, 1000) if QUICK else (1, 10, 1000, 10_000)
SLOW_ROUNDS, SLOW_S = 2, 4.0  # of gateways that answer some tens of calls a second

Maker = Callable[[], AbstractContextManager[System]]


@dataclass(frozen=True, slots=True)
class Point:
    """One system at one number of callers. cpu_us: of the system's process, for each call that was answered."""

    per_second: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    cpu_us: float
    answers: int
    bad: int


def makers(folder: Path, upstream: int) -> Mapping[str, Maker]:
    most: dict[str, Maker] = {
        "sdk": lambda: systems.sdk(folder, upstream),
        "broker": lambda: systems.broker(folder, upstream),
        "broker mcp": lambda: systems.broker(folder, upstream, mcp=True, name="broker mcp"),
        "unrecorded": lambda: systems.broker(folder, upstream, recorded=False, name="unrecorded"),
    }
    if QUICK:
        return most
    return most | {
        "sdk proxy": lambda: systems.sdk(folder, upstream, proxy=True),
        "fastmcp tuned": lambda: peers.fastmcp(folder, upstream, tuned=True),
    }


def slow_makers(folder: Path, upstream: int) -> Mapping[str, Maker]:
    """Measured after the others: what they do when nobody asks them would be in the figures of those."""
    return {
        "fastmcp": lambda: peers.fastmcp(folder, upstream, tuned=False),
        "mcp-hangar": lambda: peers.hangar(folder, upstream),
        "contextforge": lambda: peers.contextforge(folder, upstream),
    }


class Bench:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._load = compiled("load", PLACE)
        self.skipped: dict[str, str] = {}
        self.faults: list[str] = []

    def piece(
        self,
        system: System,
        request: bytes,
        expected: bytes,
        callers: int,
        seconds: float,
        warmup_s: float = 0.1,
    ) -> tuple[Figures, float]:
        before = cpu_s(system.pid)
        figures = measure(
            self._load,
            self._folder,
            system.port,
            request,
            expected,
            callers=callers,
            seconds=seconds,
            warmup_s=warmup_s,
        )
        return figures, (cpu_s(system.pid) - before) / max(1, figures.sent) * 1e6

    def point(self, system: System, pieces: Sequence[tuple[Figures, float]]) -> Point:
        bad = sum(figures.bad for figures, _ in pieces)
        if bad:
            words = next(figures.words for figures, _ in pieces if figures.bad)
            told = f"{system.name}: {bad} bad answers: {words[:600]}"
            if _is_ours(system.name):
                self.faults.append(told)
            else:  # it is in the table all the same; what it answered well is what counts there
                print(told, file=sys.stderr)
        return Point(
            median(figures.per_second for figures, _ in pieces),
            median(figures.p50_ms for figures, _ in pieces),
            median(figures.p95_ms for figures, _ in pieces),
            median(figures.p99_ms for figures, _ in pieces),
            median(cpu for _, cpu in pieces),
            sum(figures.answers for figures, _ in pieces),
            bad,
        )

    def begun(self, stack: ExitStack, chosen: Mapping[str, Maker]) -> list[System]:
        """Those that start here; of the others, why not."""
        found: list[System] = []
        for name, make in chosen.items():
            try:
                found.append(stack.enter_context(make()))
            except (SkippedError, HouseError, ValueError, OSError, subprocess.SubprocessError) as reason:
                if _is_ours(name) or name == "sdk":
                    raise
                self.skipped[name] = str(reason).splitlines()[0][:200]
        return found

    def calls(self) -> dict[str, dict[str, Any]]:
        """A row for each system."""
        rows = self._calls(makers, ROUNDS, PIECE_S, 0.1)
        slow = self._calls(slow_makers, SLOW_ROUNDS, SLOW_S, 0.0) if not QUICK else {}
        return {**slow, **rows}

    def _calls(
        self,
        chosen: Callable[[Path, int], Mapping[str, Maker]],
        rounds: int,
        seconds: float,
        warmup_s: float,
    ) -> dict[str, dict[str, Any]]:
        """warmup_s: what was sent in it does not count; 0 where an answer takes longer than that."""
        with ExitStack() as stack:
            stub = stack.enter_context(systems.stub(self._folder))
            found = [stub, *self.begun(stack, chosen(self._folder, stub.port))]
            rows: dict[str, dict[str, Any]] = {
                one.name: {"ready_s": one.ready_s, "idle_mb": one.idle_mb or memory_mb(one.pid)} for one in found
            }
            for callers in CALLERS:
                pieces: dict[str, list[tuple[Figures, float]]] = {one.name: [] for one in found}
                for _ in range(rounds):
                    for one in tuple(found):
                        try:
                            pieces[one.name].append(self.piece(one, one.call, EXPECTED, callers, seconds, warmup_s))
                        except (OSError, subprocess.SubprocessError) as fault:
                            if _is_ours(one.name) or one.name == "sdk":
                                raise
                            self.skipped[one.name] = f"broke off at {callers} callers: {fault}"[:200]
                            found.remove(one)
                            del rows[one.name]
                for one in found:
                    rows[one.name][str(callers)] = self.point(one, pieces[one.name])
            for one in found:
                rows[one.name]["loaded_mb"] = memory_mb(one.pid)
            for one in found:
                if one.database is not None and one.name != "unrecorded":
                    self.check_records(one, rows[one.name])
            return rows

    def check_records(self, system: System, row: dict[str, Any]) -> None:
        assert system.database is not None
        answered = sum(row[str(callers)].answers for callers in CALLERS)
        recorded = count_records(system.database)
        row["record_bytes"] = (stored_bytes(system.database) - system.stored_bytes) / max(1, recorded)
        if recorded < answered:
            self.faults.append(f"{system.name}: {answered - recorded} calls have no record")
        verified = subprocess.run(
            [sys.executable, "-m", "broker", "verify", "--config", str(system.database.with_name("broker.yaml"))],
            capture_output=True,
            text=True,
            check=False,
        )
        if verified.returncode:
            self.faults.append(f"{system.name}: the record does not verify: {verified.stdout}{verified.stderr}")

    def catalogs(self) -> dict[str, dict[str, Any]]:
        """Lists of many tools, and a call beside them."""
        rows: dict[str, dict[str, Any]] = {}
        for tools in CATALOGS:
            with ExitStack() as stack:
                stub = stack.enter_context(systems.stub(self._folder, tools))
                name = f"broker {tools}"
                one = stack.enter_context(systems.broker(self._folder, stub.port, mcp=True, name=name))
                self._listed(one, tools)
                lists = [self.piece(one, one.listing, b'"tools":', 1, PIECE_S) for _ in range(ROUNDS)]
                calls = [self.piece(one, one.call, EXPECTED, 16, PIECE_S) for _ in range(ROUNDS)]
                rows[str(tools)] = {
                    "list": self.point(one, lists),
                    "call": self.point(one, calls),
                    "loaded_mb": memory_mb(one.pid),
                }
        return rows

    def _listed(self, system: System, tools: int) -> None:
        """Wait until the import has brought them all."""
        until = time.monotonic() + 60
        needle = b"_%05d" % (tools - 1) if tools > 1 else b"echo"
        while True:
            figures, _ = self.piece(system, system.listing, needle, 1, 0.05)
            if not figures.bad:
                return
            if time.monotonic() > until:
                raise HouseError(f"the broker does not list {tools} tools: {figures.words[:300]}")
            time.sleep(0.3)


def _is_ours(name: str) -> bool:
    return name.startswith(("broker", "unrecorded", "direct"))


def report(result: Mapping[str, Any]) -> None:
    calls: Mapping[str, Any] = result["calls"]
    print(f"{result['machine']}, {result['at']}. Records: SQLite, WAL, synchronous=FULL, group commit; intent before,")
    print("outcome after every call. Calls of one echo tool; medians of pieces taken in turn.\n")
    print(f"{'':<15}{'callers':>8}{'calls/s':>10}{'p50 ms':>9}{'p95 ms':>9}{'p99 ms':>9}{'CPU us':>9}{'of sdk':>9}")
    for name, row in calls.items():
        for callers in CALLERS:
            point, by = row[str(callers)], calls["sdk"][str(callers)]
            ratio = point.per_second / by.per_second if by.per_second else 0
            print(
                f"{name if callers == CALLERS[0] else '':<15}{callers:>8}{point.per_second:>10,.0f}{point.p50_ms:>9.2f}"
                f"{point.p95_ms:>9.2f}{point.p99_ms:>9.2f}{point.cpu_us:>9.0f}{ratio:>8.2f}x"
            )
    print(f"\n{'':<15}{'ready s':>10}{'idle MB':>10}{'loaded MB':>11}{'bytes a record':>16}")
    for name, row in calls.items():
        kept = f"{row['record_bytes']:>16,.0f}" if "record_bytes" in row else ""
        print(f"{name:<15}{row['ready_s']:>10.2f}{row['idle_mb']:>10.0f}{row['loaded_mb']:>11.0f}{kept}")
    print(f"\n{'tools':>8}{'list p50 ms':>13}{'list CPU ms':>13}{'call CPU us':>13}{'loaded MB':>11}")
    for tools, row in result["catalogs"].items():
        print(
            f"{tools:>8}{row['list'].p50_ms:>13.2f}{row['list'].cpu_us / 1000:>13.2f}{row['call'].cpu_us:>13.0f}"
            f"{row['loaded_mb']:>11.0f}"
        )
    print("\nA healthy MCP server behind the broker, 8 callers:")
    for name, figures in result["zoo"].items():
        print(f"  {name:<8} p50 {figures.p50_ms:.2f} ms, p99 {figures.p99_ms:.2f} ms, {figures.bad} bad answers")
    print(
        "\nThe disk, one row committed by nobody else: p50 {:.2f} ms, p99 {:.2f} ms. A call waits for two.".format(
            *result["disk"]
        )
    )
    print("\nLevels:")
    for said, reached, level in result["levels"]:
        print(f"  {said:<58}{reached:>10.2f}   level {level}")
    for name, reason in result["skipped"].items():
        print(f"Not measured: {name} ({reason})")


def levels(calls: Mapping[str, Any], catalogs: Mapping[str, Any]) -> list[tuple[str, float, str]]:
    """What issue and docs ask for, as (words, what was reached, the level)."""

    def rate(name: str, callers: int = 64) -> float:
        return calls[name][str(callers)].per_second

    broker, one = calls["broker"], calls["broker"]["1"]
    found = [
        ("calls/s against the SDK's own server, 64 callers", rate("broker") / rate("sdk"), ">= 2.5"),
        ("records on against off, 64 callers", rate("broker") / rate("unrecorded"), ">= 0.7"),
        ("records on against off, 16 callers", rate("broker", 16) / rate("unrecorded", 16), ">= 0.5"),
        ("added p50 at one caller, ms", one.p50_ms - calls["direct"]["1"].p50_ms, "<= 0.5"),
        ("p99 at one caller, ms", one.p99_ms, "<= 1.2"),
        ("ready, s", broker["ready_s"], "<= 0.6"),
        ("loaded, MB", broker["loaded_mb"], "<= 60"),
    ]
    found += [
        (f"calls/s against {name}, 64 callers", rate("broker mcp") / rate(name), level)
        for name, level in (("fastmcp tuned", ">= 40"), ("fastmcp", ">= 300"), ("contextforge", ">= 200"))
        if name in calls and rate(name)
    ]
    found += [
        (f"CPU of a list of {tools} tools, ms", catalogs[tools]["list"].cpu_us / 1000, level)
        for tools, level in (("1000", "<= 1"), ("10000", "<= 20"))
        if tools in catalogs
    ]
    largest = max(catalogs, key=int)
    flat = catalogs[largest]["call"].cpu_us / catalogs["1"]["call"].cpu_us
    return [*found, (f"CPU of a call beside {largest} tools against 1", flat, "<= 1.05")]


def zoo_level(alone: Figures, beside: Figures) -> list[tuple[str, float, str]]:
    return [("p99 of a healthy backend beside the zoo, against alone", beside.p99_ms / alone.p99_ms, "<= 1.2")]


def main() -> int:
    compile_dir(PLACE.parent / "broker", quiet=1)  # as an installed broker is
    pin(os.getpid(), 0)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="broker-bench-") as directory:
        try:
            bench = Bench(Path(directory))
            disk = commit_ms(Path(directory))
            calls, catalogs = bench.calls(), bench.catalogs()
            zoo = beside_the_zoo(Path(directory), 1.0 if QUICK else 4.0)
        except (HouseError, NoCompilerError, TimeoutError, subprocess.SubprocessError) as fault:
            print(f"The bench could not run: {fault}", file=sys.stderr)
            print(getattr(fault, "stderr", "") or "", file=sys.stderr)
            return 1
    result = {
        "at": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, CPython {platform.python_version()}",
        "calls": calls,
        "catalogs": catalogs,
        "disk": disk,
        "zoo": {"alone": zoo[0], "beside": zoo[1]},
        "levels": levels(calls, catalogs) + zoo_level(*zoo),
        "skipped": bench.skipped,
        "took_s": time.monotonic() - began,
    }
    report(result)
    PLACE.mkdir(exist_ok=True)
    (PLACE / "result.json").write_text(systems.as_json(result) + "\n")
    (PLACE / "chart.svg").write_text(chart(calls, CALLERS))
    print(f"\nTook {result['took_s']:.0f} s; written: .bench/result.json, .bench/chart.svg")
    print(*bench.faults, sep="\n", file=sys.stderr)
    return 1 if bench.faults else 0


if __name__ == "__main__":
    sys.exit(main())
