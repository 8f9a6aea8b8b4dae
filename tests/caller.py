"""A process of callers for tests of several brokers: `python -m tests.caller FOLDER TOOL CALLERS [KEY]`.

Each caller calls until its quota is used up, or for ever. Prints one line when it is ready, and at the end how many
calls were answered and how many refused. KEY: the idempotency key of all calls.
"""

from __future__ import annotations

import sys
from pathlib import Path

import anyio
import orjson

from broker.assembly import Broker
from broker.errors import BackendError, OverQuota
from broker.model.call import IDEMPOTENCY_META
from broker.settings_file import read_settings
from tests.world import agent, perform


async def main(folder: Path, tool: str, callers: int, key: str = "") -> None:
    answered = refused = 0
    meta = {IDEMPOTENCY_META: key} if key else {}

    async def call_on(number: int) -> None:
        nonlocal answered, refused
        turn = 0
        while True:
            turn += 1
            try:
                await perform(
                    broker, tool, {"n": number * 1_000_000 + turn}, agent(f"bot-{number}", scopes=["work"]), meta=meta
                )
            except OverQuota:
                refused += 1
                return
            except BackendError:
                continue
            answered += 1

    async with Broker.open(read_settings(folder / "broker.yaml", {})) as broker:
        print("ready", flush=True)
        async with anyio.create_task_group() as tasks:
            for number in range(callers):
                tasks.start_soon(call_on, number)
    print(orjson.dumps({"answered": answered, "refused": refused}).decode(), flush=True)


if __name__ == "__main__":
    anyio.run(main, Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), *sys.argv[4:])
