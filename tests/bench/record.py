"""What a long record costs: how fast it verifies and in how much memory, how long a question takes, how soon a broker
is ready with it, and how many bytes it has.

    python -m tests.bench.record [FOLDER] [--calls 500000]

A broker's database in FOLDER is made when it is not there: two entries a call, by the store's own functions. Then
`broker verify` reads all of it, which must find nothing wrong; every question of the operators' page is asked of the
store, the first time after the kernel was told to forget the file; and `broker serve` is started and asked for
`/readyz`. It ends with 1 when something was found that is not wrong, or a level is not reached: LEVELS.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import orjson

from broker.model.invocation import InvocationQuery
from broker.model.question import Condition
from broker.stores.sqlite import digest, queries, questions
from broker.stores.sqlite.database import connect, migrate
from broker.stores.sqlite.schema import MIGRATIONS
from examples.demo.port import free_port
from tests.bench.seed import DAY_MS, seed

FOLDER = Path(".bench") / "record"
CALLS, HELD = 500_000, 1_000
LEVELS = {"entries/s": 100_000, "MB": 100, "question ms": 300, "ready s": 2.0}
SETTINGS = "listen: {port: %d}\nwatch: false\n"


@dataclass
class _Step:
    """What a job of the writer has, as far as the digest needs it."""

    db: Any


def verified(folder: Path) -> tuple[bool, int, float, int]:
    """Whether it is sound, how many entries, in how many seconds, and most MB of any of its processes."""
    began = time.perf_counter()
    told = subprocess.run(
        [sys.executable, "-m", "broker", "verify", "--json"], cwd=folder, capture_output=True, check=False
    )
    took = time.perf_counter() - began
    found = orjson.loads(told.stdout)
    if not found["ok"]:
        print(found["fault"], file=sys.stderr)
    return found["ok"], found["entries"], took, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024


def asked(path: Path) -> dict[str, tuple[float, float]]:
    """Each question, and how many milliseconds it took from a cold file and again."""
    now_ms = int(time.time() * 1000)
    above = (Condition(("amount",), ">", 100),)
    one_day = InvocationQuery(agent="agent-01", user="user-07", since_ms=now_ms - 2 * DAY_MS, until_ms=now_ms - DAY_MS)
    todo: dict[str, Callable[[Any], Any]] = {
        "agent for user, a day": lambda db: queries.some(db, one_day),
        "refunds above 100": lambda db: queries.some(db, InvocationQuery(tool="orders_refund", where=above)),
        "above 498, any tool": lambda db: queries.some(
            db, InvocationQuery(where=(Condition(("amount",), ">", 498),), scan=10_000)
        ),
        "refused, by rule": lambda db: questions.sums(db, InvocationQuery(states=("denied",)), "rule"),
        "cost, by tool": lambda db: questions.sums(db, InvocationQuery(), "tool"),
        "time, by backend": lambda db: questions.sums(db, InvocationQuery(), "backend"),
        "calls, by user": lambda db: questions.sums(db, InvocationQuery(), "user"),
        "words": lambda db: queries.some(db, InvocationQuery(words="telephone 4711")),
    }
    took: dict[str, tuple[float, float]] = {}
    for name, ask in todo.items():
        forget(path)
        times: list[float] = []
        with closing(connect(path)) as db:
            db.row_factory = None
            for _ in range(3):
                began = time.perf_counter()
                ask(db)
                times.append((time.perf_counter() - began) * 1000)
        took[name] = times[0], min(times[1:])
    return took


def forget(path: Path) -> None:
    """Have the kernel read the file from the disk again."""
    if not path.exists():
        return
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def catch_up(path: Path) -> float:
    """What a serving broker does beside the calls: take in all there is. Seconds."""
    began = time.perf_counter()
    with closing(connect(path)) as db:
        db.row_factory = None
        db.execute("pragma synchronous = off")
        while True:
            db.execute("begin immediate")
            taken = digest.step(_Step(db), 5_000)  # type: ignore[arg-type]
            db.execute("commit")
            if not taken:
                return time.perf_counter() - began


def ready(folder: Path) -> float:
    """Seconds from starting `broker serve` to `/readyz` saying so, after a kill -9."""
    port = free_port()
    (folder / "broker.yaml").write_text(SETTINGS % port)
    (folder / "tool_manifests").mkdir(exist_ok=True)
    forget(folder / "broker.db")
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "broker", "serve"], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip # noqa: E501
    try:
        while process.poll() is None:
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2) as answer:
                if answer.status == 200:
                    return time.perf_counter() - began
            time.sleep(0.01)
        raise RuntimeError("the broker ended")
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure a long record.")
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER)
    parser.add_argument("--calls", type=int, default=CALLS)
    options = parser.parse_args()
    folder: Path = options.folder
    path = folder / "broker.db"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "broker.yaml").touch()
    if not path.exists():
        print(f"making {options.calls:,} calls; this takes some minutes")
        seed(path, options.calls, held=HELD)
    migrate(path, MIGRATIONS)
    print(f"caught up in {catch_up(path):.1f} s")
    with closing(connect(path)) as db:
        (calls,) = db.execute("select count(*) from invocation").fetchone()
    size = path.stat().st_size
    print(f"{calls:,} calls, {size / 2**20:,.0f} MiB, {size / calls:,.0f} bytes a call")
    missed: list[str] = []
    ok, entries, took, mb = verified(folder)
    rate = entries / took
    print(f"verified {entries:,} entries in {took:.1f} s: {rate:,.0f} a second, {mb} MB, sound: {ok}")
    missed += [] if ok else ["a sound record was taken for none"]
    missed += [f"{rate:,.0f} entries/s"] if rate < LEVELS["entries/s"] else []
    missed += [f"{mb} MB"] if mb >= LEVELS["MB"] else []
    for name, (cold, warm) in asked(path).items():
        print(f"  {name:24} {cold:6.0f} ms first, {warm:6.0f} ms again")
        missed += [f"{name}: {cold:.0f} ms"] if cold > LEVELS["question ms"] else []
    with TemporaryDirectory() as empty:
        starts = [(ready(folder), ready(Path(empty))) for _ in range(3)]
    long, none = (min(times) for times in zip(*starts, strict=True))
    print(f"ready in {long:.2f} s after a kill, {none:.2f} s without any record")
    missed += [f"ready in {long:.2f} s"] if long > LEVELS["ready s"] else []
    print("missed: " + "; ".join(missed) if missed else "every level reached")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
