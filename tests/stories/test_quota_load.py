"""Check of the exactness of quotas under everything at once: many callers in several processes, costs of 1, 3 and 7, a
backend that is slow, fails and breaks off, and a process killed every two seconds. Never above the limit; and when what
the dead had reserved is free, exactly usable up to it.

`make test` does a small one; `make test-quota` does 256 callers in 4 processes.
"""

from __future__ import annotations

import faulthandler
import os
import random
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Generator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from select import select
from subprocess import PIPE, Popen

import orjson
import pytest

from broker.errors import BrokerError, OverQuota
from broker.verifier import verify
from tests.world import agent, broker_with, perform, records, settings_in

ROOT = Path(__file__).parents[2]
FULL = os.environ.get("BROKER_TEST_QUOTA") == "all"
CALLERS, PROCESSES, LIMIT, EVERY_S = (64, 4, 100_000, 2.0) if FULL else (16, 2, 2_000, 1.0)
NEARLY = LIMIT * (99 if FULL else 90) // 100  # then all are killed, and what they had reserved must be usable
AT_ONCE = 200 if FULL else 24

MANIFESTS = f"""
kind: backend
name: ledger
http: {{base_url: "http://127.0.0.1:PORT", allow_private: true, concurrent: 64}}
---
kind: tool
name: work
effect: write
scopes: [work]
backend: ledger
input: {{type: object, properties: {{cost: {{type: integer, minimum: 1}}}}, required: [cost]}}
http: {{method: POST, path: /work}}
caps: {{timeout: 2s}}
---
kind: quota
name: budget
tokens: {{limit: {LIMIT}, per: month, amount: args.cost}}
by: []
---
kind: quota
name: at-once
concurrency: {{limit: {AT_ONCE}, lease: 60s}}
by: []
"""


class Flaky(ThreadingHTTPServer):
    """Writes down what it is asked for, then answers, or is slow, or fails, or breaks off."""

    daemon_threads = True
    request_queue_size = 1024

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.asked: list[int] = []
        self.chance = random.Random(11)

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: brokers are killed."""


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        assert isinstance(self.server, Flaky)
        body = orjson.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.append(body["cost"])
        fate = self.server.chance.random()
        if fate < 0.05:
            time.sleep(0.3)
        if fate > 0.97:
            self.close_connection = True
            return
        self.send_response(500 if fate > 0.90 else 200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 – the library's name
        """Say nothing."""


@contextmanager
def flaky() -> Generator[Flaky]:
    with Flaky() as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        serving.start()
        try:
            yield server
        finally:
            server.shutdown()
            serving.join()


@dataclass
class Watch:
    """Looks at the counters all the time, from outside, through the file."""

    database: Path
    above: list[tuple[str, int]] = field(default_factory=list[tuple[str, int]])
    looks: int = 0
    most: dict[str, int] = field(default_factory=dict[str, int])
    _over: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def watching(self) -> Generator[None]:
        thread = threading.Thread(target=self._look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def has_spent(self, amount: int, *, within_s: float) -> bool:
        """Whether so much of the budget is taken; waits at most so long for it."""
        until = time.monotonic() + within_s
        while time.monotonic() < until:
            if self.most.get("budget", 0) >= amount:
                return True
            time.sleep(0.01)
        return False

    def _look(self) -> None:
        limits = {"budget": LIMIT, "at-once": AT_ONCE}
        with closing(sqlite3.connect(f"{self.database.as_uri()}?mode=ro", uri=True, timeout=30)) as db:
            while not self._over.wait(0.02):
                for quota, taken in db.execute("select quota, used + reserved from quota_counter").fetchall():
                    self.looks += 1
                    self.most[quota] = max(taken, self.most.get(quota, 0))
                    if taken > limits[quota]:
                        self.above.append((quota, taken))


def spender(folder: Path) -> Popen[bytes]:
    return Popen([sys.executable, "-m", "tests.spender", str(folder), str(CALLERS)], stdout=PIPE, cwd=ROOT)


def is_ready(process: Popen[bytes]) -> bool:
    """It has said so; what it said is left where it is."""
    assert process.stdout is not None
    return bool(select([process.stdout], [], [], 0)[0])


@pytest.mark.anyio
async def test_however_they_die_callers_spend_no_more_than_the_budget_and_in_the_end_all_of_it(tmp_path: Path) -> None:
    if FULL:
        faulthandler.dump_traceback_later(1200, exit=True)  # it takes minutes, on purpose
    chance, killed = random.Random(5), 0
    database = tmp_path / "broker.db"
    with flaky() as backend:
        manifests = MANIFESTS.replace("PORT", str(backend.server_port))
        settings_in(tmp_path, manifests)
        async with broker_with(tmp_path, manifests):
            """Makes the file, so that it can be watched from the beginning."""
        watch = Watch(database)
        with watch.watching():
            working = [spender(tmp_path) for _ in range(PROCESSES)]
            while not watch.has_spent(NEARLY, within_s=EVERY_S):
                if not all(is_ready(process) for process in working):
                    continue  # on a slow machine they would else die before they were born
                victim = working.pop(chance.randrange(len(working)))
                assert victim.poll() is None, "nobody is done before the budget is"
                victim.send_signal(signal.SIGKILL)
                victim.communicate()
                killed += 1
                working.append(spender(tmp_path))  # begins when it is ready; the others go on
            for process in working:
                process.send_signal(signal.SIGKILL)
                process.communicate()
        assert watch.above == []
        assert watch.most.get("at-once", 0) > 0, "it was looked at while calls were under way"
        assert killed > 0
        assert sum(backend.asked) <= LIMIT

        async with broker_with(tmp_path, manifests) as broker:  # its start settles what the dead left
            who = agent("last", scopes=["work"])
            states = {state.quota: state for state in await broker.store.quotas(broker.clock.now_ms())}
            assert "at-once" not in states, "every place is free"
            left = states["budget"].left
            assert left > 0
            for _ in range(10 * left):  # what a failed call was not sent for comes back, so some of these may
                states = {state.quota: state for state in await broker.store.quotas(broker.clock.now_ms())}
                if states["budget"].left == 0:
                    break
                try:
                    await perform(broker, "work", {"cost": 1}, who)
                except BrokerError as error:
                    assert not isinstance(error, OverQuota), "there was room"
            with pytest.raises(OverQuota):
                await perform(broker, "work", {"cost": 1}, who)
            every = await records(broker, limit=1_000_000)
        spent = sum(_cost(record.kept) for record in every if record.state != "denied" and record.effect != "none")
        assert spent == LIMIT, "to the last, and each as its record says"
        assert sum(backend.asked) <= LIMIT
        assert {record.state for record in every} <= {"succeeded", "failed", "outcome_unknown", "denied"}
    assert verify(database, None).ok
    print(f"{len(every)} calls, {killed} kills, {watch.looks} looks, most {watch.most}, {left} left for the end")


def _cost(kept: object) -> int:
    assert isinstance(kept, dict)
    return int(kept["cost"])  # pyright: ignore[reportUnknownArgumentType]
