"""A process of callers that spend a shared budget: `python -m tests.spender FOLDER CALLERS`.

Each caller asks for costs of 7, 3 and 1 in turn until a cost of 1 has no room in the budget any more. Prints `ready`,
and `done` at the end. It is meant to be killed.
"""

from __future__ import annotations

import itertools
import random
import sys
from pathlib import Path

import anyio

from broker.assembly import Broker
from broker.errors import BrokerError, Conflict, OverQuota
from broker.settings_file import read_settings
from tests.world import agent, perform

COSTS = (7, 3, 1)


async def main(folder: Path, callers: int) -> None:
    async def spend(number: int) -> None:
        who = agent(f"bot-{number}", scopes=["work"])
        for turn in itertools.count():
            cost = COSTS[turn % 3]
            try:
                await perform(broker, "work", {"cost": cost}, who)
            except OverQuota as over:
                if over.facts["quota"] == "budget" and cost == 1:
                    return
                await anyio.sleep(random.uniform(0.1, 0.4))
            except Conflict:
                raise
            except BrokerError:
                continue  # slow, failing or gone: that is what the backend is for

    async with Broker.open(read_settings(folder / "broker.yaml", {})) as broker:
        print("ready", flush=True)
        async with anyio.create_task_group() as tasks:
            for number in range(callers):
                tasks.start_soon(spend, number)
    print("done", flush=True)


if __name__ == "__main__":
    anyio.run(main, Path(sys.argv[1]), int(sys.argv[2]))
