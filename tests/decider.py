"""A process that decides on held calls, and runs what is approved: `python -m tests.decider FOLDER [--only-decide]`.

Says `ready`, then reads lines of JSON ({call_id, decisions}); makes these decisions at once, and answers which of them
were accepted. `expire` is a sweep by a clock that has passed the hold's end.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import orjson
import structlog

from broker.assembly import Broker
from broker.errors import Conflict
from broker.model.hold import Review
from broker.settings import Settings
from broker.settings_file import read_settings
from broker.stores.sqlite import hold
from tests.world import reviewer


async def decide(broker: Broker, call_id: str, decision: str, won: list[str]) -> None:
    try:
        if decision == "expire":
            found = await broker.store.invocation(call_id)
            assert found is not None
            assert found.hold is not None
            store: Any = broker.store
            if await store.writer.run(hold.expire, (call_id, found.hold.expires_at_ms)):
                won.append(decision)
            return
        if decision == "withdraw":
            void = Review(call_id, "withdraw", "bot", "not wanted", broker.clock.now_ms(), "test")
            await broker.store.review(void)
        else:
            await broker.desk.review(
                call_id,
                approve=decision != "deny",
                reviewer=reviewer(f"{decision}r"),
                reason="so",
                via="test",
                arguments={"n": -1} if decision == "edit" else None,
            )
        won.append(decision)
    except Conflict:
        pass


@asynccontextmanager
async def deciding(settings: Settings) -> AsyncGenerator[Broker]:
    async with Broker.open(settings, work=False) as broker, broker.reconciler.running():
        yield broker


async def main() -> None:
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # stdout is what we are asked for
    settings = read_settings(Path(sys.argv[1]) / "broker.yaml", {})
    async with deciding(settings) if "--only-decide" in sys.argv else Broker.open(settings) as broker:
        print("ready", flush=True)
        while asked := await anyio.to_thread.run_sync(sys.stdin.buffer.readline):
            said = orjson.loads(asked)
            won: list[str] = []
            async with anyio.create_task_group() as tasks:
                for decision in said["decisions"]:
                    tasks.start_soon(decide, broker, said["call_id"], decision, won)
            print(orjson.dumps({"won": won}).decode(), flush=True)


if __name__ == "__main__":
    assert os.environ.get("PYTEST_CURRENT_TEST"), "for tests only"
    anyio.run(main)
