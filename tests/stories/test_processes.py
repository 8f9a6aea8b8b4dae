"""Several brokers on one SQLite file, and brokers that are killed: quotas stay exact, nothing runs twice or unseen."""

from __future__ import annotations

import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

import httpx2
import orjson
import pytest

from broker.model.call import IDEMPOTENCY_META
from broker.pipeline.replay import REPLAYED_META
from broker.verifier import verify
from tests.command import running
from tests.crashing import house
from tests.ledger import Ledger, ledger_backend
from tests.serving import modern_call, modern_headers
from tests.world import broker_with, records, settings_in

ROOT = Path(__file__).parents[2]
ADMITTED = 1_000


def callers(folder: Path, tool: str, number: int) -> Popen[bytes]:
    command = [sys.executable, "-m", "tests.caller", str(folder), tool, str(number)]
    return Popen(command, stdout=PIPE, cwd=ROOT)


QUOTA = f"""
kind: backend
name: notes
static: {{}}
---
kind: tool
name: work
effect: write
scopes: [work]
backend: notes
input: {{type: object, properties: {{n: {{type: integer}}}}, required: [n]}}
static: {{text: done}}
---
kind: quota
name: shared
count: {{limit: {ADMITTED}, per: month}}
by: []
"""


@pytest.mark.anyio
async def test_sixty_four_callers_in_four_processes_get_exactly_what_the_quota_has(tmp_path: Path) -> None:
    settings_in(tmp_path, QUOTA)
    processes = [callers(tmp_path, "work", 16) for _ in range(4)]
    told = [orjson.loads(process.communicate(timeout=90)[0].splitlines()[-1]) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    assert sum(one["answered"] for one in told) == ADMITTED
    assert sum(one["refused"] for one in told) == 64
    async with broker_with(tmp_path, QUOTA) as broker:
        states = Counter(record.state for record in await records(broker, limit=10_000))
        (left,) = await broker.store.quotas(broker.clock.now_ms())
    assert states == {"succeeded": ADMITTED, "denied": 64}
    assert left.left == 0
    assert verify(tmp_path / "broker.db", None).ok


@pytest.fixture
def ledger() -> Generator[Ledger]:
    with ledger_backend() as backend:
        yield backend


@pytest.mark.anyio
async def test_after_kills_at_random_every_call_that_arrived_is_on_record_and_none_arrived_twice(
    tmp_path: Path, ledger: Ledger
) -> None:
    manifests = f"""
kind: backend
name: ledger
http: {{base_url: "http://127.0.0.1:{ledger.server_port}", allow_private: true}}
---
kind: tool
name: work
effect: write
scopes: [work]
backend: ledger
input: {{type: object, properties: {{n: {{type: integer}}}}, required: [n]}}
http: {{method: POST, path: /work}}
"""
    settings_in(tmp_path, manifests)
    chance = random.Random(7)
    for _ in range(6):
        process = callers(tmp_path, "work", 8)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        with process:
            before = len(ledger.received)
            wanted = before + chance.randrange(5, 60)
            while len(ledger.received) < wanted:
                assert process.poll() is None
            process.send_signal(signal.SIGKILL)
    async with broker_with(tmp_path, manifests) as broker:
        recovered = broker.recovered
        known = {record.call_id: record.state for record in await records(broker, limit=100_000)}
    arrived = Counter(ledger.received)
    assert len(arrived) > 30
    assert max(arrived.values()) == 1
    assert {known.get(call_id) for call_id in arrived} <= {"succeeded", "outcome_unknown"}
    assert "dispatching" not in known.values()
    assert recovered or "outcome_unknown" in known.values()
    assert verify(tmp_path / "broker.db", None).ok


KEYED = """
kind: backend
name: ledger
http: {base_url: "http://127.0.0.1:PORT", allow_private: true}
---
kind: tool
name: work
effect: write
scopes: [work]
backend: ledger
input: {type: object, properties: {n: {type: integer}}, required: [n]}
http: {method: POST, path: /work}
"""
KEYS, DUPLICATES = 20, 20


@contextmanager
def serving(folder: Path, name: str) -> Generator[int]:
    """`broker serve` in a process of its own; its port."""
    with (folder / name).open("w") as said, running("serve", "--port", "0", cwd=folder, stderr=said) as process:
        until = time.monotonic() + 30
        while "/mcp" not in (told := (folder / name).read_text()):
            assert time.monotonic() < until and process.poll() is None, told
            time.sleep(0.05)
        yield int(told.split("/mcp")[0].rpartition(":")[2])


def test_duplicates_released_at_once_to_two_processes_are_done_once(tmp_path: Path, ledger: Ledger) -> None:
    manifests = KEYED.replace("PORT", str(ledger.server_port))
    credential = house(tmp_path / "house", manifests, "watch: false\nlisten: {port: 0}\n")
    headers = modern_headers("tools/call", "work", token=credential)
    released = threading.Barrier(DUPLICATES)

    def send(port: int, n: int) -> Any:
        body = modern_call("work", {"n": n}, **{IDEMPOTENCY_META: f"key {n}"})
        return httpx2.post(f"http://127.0.0.1:{port}/mcp", json=body, headers=headers, timeout=30).json()["result"]

    def caller(number: int) -> list[tuple[int, Any]]:
        """At each turn all callers send the same key, half of them to either broker."""
        told: list[tuple[int, Any]] = []
        for n in range(KEYS):
            released.wait(60)
            told.append((n, send(ports[number % 2], n)))
        return told

    with (
        serving(tmp_path / "house", "first") as first,
        serving(tmp_path / "house", "second") as second,
        ThreadPoolExecutor(DUPLICATES) as threads,
    ):
        ports = (first, second)
        told = [one for some in threads.map(caller, range(DUPLICATES)) for one in some]
    assert len(ledger.received) == KEYS
    for n in range(KEYS):
        same = [result for key, result in told if key == n]
        assert len(same) == DUPLICATES
        assert len({orjson.dumps(result["content"]) for result in same}) == 1, same
        assert sum(REPLAYED_META not in result.get("_meta", {}) for result in same) == 1
    assert verify(tmp_path / "house" / "broker.db", None).ok
