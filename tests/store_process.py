"""A process of its own that uses the store, for tests with several: `python -m tests.store_process VERB DATABASE`.

Every verb says `ready` when its store is open and goes on when it reads a line; what it prints then is the verb's.
"""

from __future__ import annotations

import itertools
import os
import resource
import sys
import time
from pathlib import Path

import anyio
import anyio.to_thread
import structlog

from broker.errors import RecordUnavailable
from broker.ports import Store
from tests.records import HOUR, concurrency, cost, count, intent, open_store, outcome, rate

TASKS = 16
ROUNDS = 5
LIMIT = 200


class SystemClock:
    def now_ms(self) -> int:
        return int(time.time() * 1000)


def say(*words: object) -> None:
    print(*words, flush=True)


async def told_to_go_on() -> None:
    say("ready")
    await anyio.to_thread.run_sync(sys.stdin.readline)


async def compete(store: Store) -> None:
    """16 tasks ask for more than the quotas have; prints how much of each was admitted: count, rate, cost."""
    taken = [0, 0, 0]
    today = {"starts_at_ms": 0, "resets_at_ms": 2**50}

    async def one() -> None:
        for amount in itertools.islice(itertools.cycle((7, 3, 1)), ROUNDS):
            charges = (count(LIMIT, **today), rate(LIMIT, window_ms=HOUR), cost(LIMIT, amount, **today))
            for place, charge in enumerate(charges):
                admission = await store.admit(intent(at_ms=SystemClock().now_ms(), charges=(charge,)))
                if admission.state == "dispatching":
                    taken[place] += charge.amount

    async with anyio.create_task_group() as tasks:
        for _ in range(TASKS):
            tasks.start_soon(one)
    say(*taken)


async def work(store: Store) -> None:
    """Calls without end, half of them finished; prints `admitted ID` and `finished ID` once that is durable."""

    async def one(number: int) -> None:
        while True:
            charges = (concurrency(1000), cost(10**9, 10, starts_at_ms=0, resets_at_ms=2**50))
            call = intent(at_ms=SystemClock().now_ms(), charges=charges)
            await store.admit(call)
            say("admitted", call.call_id)
            if number % 2:
                await store.finish(outcome(call.call_id, at_ms=SystemClock().now_ms(), spent={"EUR": 3}))
                say("finished", call.call_id)
            else:
                await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks:
        for number in range(TASKS):
            tasks.start_soon(one, number)


async def fill(store: Store, path: Path) -> None:
    """The disk takes no more, then it does; prints what happened to the calls."""
    await store.admit(intent())
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    size = Path(f"{path}-wal").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 4096, hard))
    refused = 0
    for _ in range(100):
        try:
            await store.admit(intent(arguments={"text": "x" * 10_000}))
        except RecordUnavailable:
            refused += 1
            if refused == 3:
                break
    say("refused", refused, "fault" if store.fault else "no fault")
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    with anyio.fail_after(10):
        while store.fault:
            await anyio.sleep(0.01)
    say("healed", (await store.admit(intent())).state)


async def main() -> None:
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # stdout is what we are asked for
    verb, path = sys.argv[1], Path(sys.argv[2])
    assert path.name == "broker.db"
    store = await open_store(path.parent, SystemClock())
    try:
        await told_to_go_on()
        if verb == "compete":
            await compete(store)
        elif verb == "work":
            await work(store)
        else:
            await fill(store, path)
    finally:
        await store.aclose()


if __name__ == "__main__":
    assert os.environ.get("PYTEST_CURRENT_TEST"), "for tests only"
    anyio.run(main)
