"""Deciders race in two processes: of approve, deny, expire, withdraw and edit exactly one wins, and the call runs if
and only if an approval or an edit won, once. What ran is what the backend wrote down itself. `make test-holds` does 500
rounds and the whole of the second test; `make test` a sample of both."""

from __future__ import annotations

import os
import random
import sqlite3
import sys
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from subprocess import PIPE, Popen

import anyio
import orjson
import pytest

from broker.errors import Held
from broker.verifier import verify
from tests.ledger import Ledger, ledger_backend
from tests.world import agent, broker_with, perform, records, settings_in

pytestmark = pytest.mark.anyio

LONG = os.environ.get("BROKER_TEST_HOLDS") == "all"
ROUNDS = 500 if LONG else 24
HELD, KILLS = (200, 5) if LONG else (24, 2)
DECISIONS = ("approve", "deny", "expire", "withdraw", "edit")
RUNS = {"approve", "edit"}
ROOT = Path(__file__).parents[2]

caller = agent(scopes=["work"], user="ann", issuer="settings")
MANIFESTS = """
kind: backend
name: ledger
http: {{base_url: "http://127.0.0.1:{port}", allow_private: true}}
---
kind: tool
name: work
effect: write
scopes: [work]
backend: ledger
input: {{type: object, properties: {{n: {{type: integer}}}}, required: [n]}}
http: {{method: POST, path: /work}}
---
kind: policy
name: all
tools: [work]
rules: [{{id: ask, effect: hold, expires: 1h}}]
"""
SETTINGS = {"stdio": {"agent": "bot", "user": "ann", "scopes": ["work"]}, "hold": {"open_per_agent": 1000}}


@pytest.fixture
def ledger() -> Generator[Ledger]:
    with ledger_backend() as backend:
        yield backend


def decider(folder: Path, *options: str) -> Popen[bytes]:
    return Popen([sys.executable, "-m", "tests.decider", str(folder), *options], stdin=PIPE, stdout=PIPE, cwd=ROOT)


def line(process: Popen[bytes]) -> bytes:
    assert process.stdout is not None
    read = process.stdout.readline()
    assert read, f"the process ended with {process.wait()}"
    return read


def tell(process: Popen[bytes], call_id: str, *decisions: str) -> None:
    assert process.stdin is not None
    process.stdin.write(orjson.dumps({"call_id": call_id, "decisions": decisions}) + b"\n")
    process.stdin.flush()


async def hold(folder: Path, number: int, *, first: int = 0) -> list[str]:
    """So many held calls, in this order."""
    async with broker_with(folder, manifests_of(folder), **SETTINGS) as broker:
        ids: list[str] = []
        for n in range(first, first + number):
            with pytest.raises(Held) as error:
                await perform(broker, "work", {"n": n}, caller, may_wait=False)
            ids.append(str(error.value.facts["hold_id"]))
        return ids


def manifests_of(folder: Path) -> str:
    return (folder / "tool_manifests" / "tools.yaml").read_text()


def state_of(folder: Path) -> dict[str, str]:
    """Each call's committed state, read beside whoever writes."""
    with closing(sqlite3.connect(f"file:{folder / 'broker.db'}?mode=ro", uri=True)) as database:
        return dict(database.execute("select call_id, state from invocation").fetchall())


def undecided(folder: Path, ids: Sequence[str]) -> list[str]:
    states = state_of(folder)
    return [call_id for call_id in ids if states[call_id] == "held"]


async def settled(folder: Path, ids: list[str]) -> dict[str, str]:
    """Serve until nothing that was approved waits; then how each of these ended."""
    async with broker_with(folder, manifests_of(folder), **SETTINGS) as broker:
        with anyio.fail_after(60):
            while await records(broker, states=("approved", "dispatching")):
                await broker.store.changed(0.5)
        found = {one.call_id: one.state for one in await records(broker, limit=10_000)}
    return {call_id: found[call_id] for call_id in ids}


async def test_of_five_decisions_in_two_processes_one_wins_and_the_effect_follows_it(
    tmp_path: Path, ledger: Ledger
) -> None:
    settings_in(tmp_path, MANIFESTS.format(port=ledger.server_port), **SETTINGS)
    ids = await hold(tmp_path, ROUNDS)
    chance = random.Random(20)
    winners: dict[str, str] = {}
    deciders = [decider(tmp_path), decider(tmp_path)]
    try:
        for process in deciders:
            assert line(process) == b"ready\n"
        for call_id in ids:
            order = chance.sample(DECISIONS, chance.randint(2, len(DECISIONS)))  # a withdrawal is quick and wins often
            split = chance.randrange(1, len(order))
            for process, mine in zip(deciders, (order[:split], order[split:]), strict=True):
                tell(process, call_id, *mine)
            won = [name for process in deciders for name in orjson.loads(line(process))["won"]]
            # What is approved and has not run may still be withdrawn or expire; nothing else follows anything.
            void = [name for name in won if name in ("withdraw", "expire")]
            decided = [name for name in won if name not in void]
            assert won
            assert len(void) <= 1 >= len(decided), won
            assert "deny" not in won or not void, won
            winners[call_id] = (void or decided)[0]
        states = await settled(tmp_path, ids)  # before they end: a call that is cut off is an outcome nobody knows
    finally:
        for process in deciders:
            process.kill()
            process.communicate()
    ended = {"deny": "rejected", "expire": "expired", "withdraw": "withdrawn", **dict.fromkeys(RUNS, "succeeded")}
    assert {call_id: ended[name] for call_id, name in winners.items()} == states
    assert Counter(ledger.received) == Counter(call_id for call_id, name in winners.items() if name in RUNS)
    assert RUNS & set(winners.values())
    assert set(winners.values()) - RUNS
    assert verify(tmp_path / "broker.db").fault is None


@pytest.mark.parametrize("killed", ["who only decides", "who decides and runs"])
async def test_holds_outlive_kills_and_what_ran_is_what_was_approved(
    tmp_path: Path, ledger: Ledger, killed: str
) -> None:
    """Who only decides (`broker approve` is such a process) may be killed at any moment, in the middle of a commit too:
    the backend's log is the approved set. A broker killed between its claim and the answer leaves a call of which
    nobody can say whether it was done: there the log and these are the approved set, and nothing is sent twice."""
    settings_in(tmp_path, MANIFESTS.format(port=ledger.server_port), **SETTINGS)
    ids = await hold(tmp_path, HELD)
    approved, expiring, left = ids[: HELD // 2], ids[HELD // 2 : HELD * 3 // 4], ids[HELD * 3 // 4 :]
    chance = random.Random(4)
    cut_off: list[int] = []
    for kill in range(1, KILLS + 1):
        process = decider(tmp_path, *(["--only-decide"] if killed == "who only decides" else []))
        try:
            assert line(process) == b"ready\n"
            share = undecided(tmp_path, approved[: len(approved) * kill // (KILLS + 1)])
            for call_id in share:
                tell(process, call_id, "approve")  # without waiting: the kill may come before, amid or after it
            await anyio.sleep(chance.random() * 0.1)
        finally:
            process.kill()
            process.communicate()
        states = state_of(tmp_path)
        cut_off.append(sum(states[call_id] in ("held", "approved") for call_id in share))
    assert max(cut_off) > 0, "no kill came before everything was done"
    serving = decider(tmp_path)
    try:
        assert line(serving) == b"ready\n"
        for decision, whom in (("approve", undecided(tmp_path, approved)), ("expire", expiring)):
            for call_id in whom:
                tell(serving, call_id, decision)
                assert orjson.loads(line(serving))["won"] == [decision]
        found = await settled(tmp_path, ids)
    finally:
        serving.kill()
        serving.communicate()
    arrived = Counter(ledger.received)
    assert max(arrived.values()) == 1
    unknown = {call_id for call_id, state in found.items() if state == "outcome_unknown"}
    if killed == "who only decides":
        assert set(arrived) == set(approved)
        assert not unknown
    assert set(arrived) | unknown == set(approved)
    assert {call_id for call_id in ids if found[call_id] == "succeeded"} == set(arrived) - unknown
    assert {found[call_id] for call_id in expiring} == {"expired"}
    assert {found[call_id] for call_id in left} == {"held"}
    assert verify(tmp_path / "broker.db").fault is None
