"""A process of callers for tests of several brokers on one database: `python -m tests.caller FOLDER TOOL CALLERS`.

Each caller calls until its quota is used up, or for ever. Prints one line when it is ready, and at the end how many
calls were answered and how many refused.
"""

from __future__ import annotations

import sys
from pathlib import Path

import anyio
import orjson

from broker.assembly import Broker
from broker.errors import BackendError, OverQuota
from broker.settings import read_settings
from tests.world import agent, perform


async def main(folder: Path, tool: str, callers: int) -> None:
    answered = refused = 0

    async def call_on(number: int) -> None:
        nonlocal answered, refused
        turn = 0
        while True:
            turn += 1
            try:
                await perform(broker, tool, {"n": number * 1_000_000 + turn}, agent(f"bot-{number}", scopes=["work"]))
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
    anyio.run(main, Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
