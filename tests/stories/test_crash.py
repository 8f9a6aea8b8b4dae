"""Killed before and after every sync and every send: after the restart and the client's retry the invariants hold.

A sample of the points here; all of them with `make test-crash` (BROKER_TEST_CRASH=all). The oracle is the backend's own
ledger (tests/ledger.py): what arrived there is what happened.
"""

from __future__ import annotations

import faulthandler
import os
from collections import Counter
from collections.abc import Callable, Generator
from functools import cache
from pathlib import Path
from typing import Any

import anyio
import orjson
import pytest

from broker.model.call import IDEMPOTENCY_META
from broker.model.canonical import digest_of
from broker.model.invocation import Invocation, InvocationQuery
from broker.model.quota import QuotaState
from broker.verifier import verify
from tests.command import broker
from tests.crashing import Serving, copy_of, house
from tests.ledger import Ledger, ledger_backend
from tests.records import open_store
from tests.shim import compiled
from tests.store_process import SystemClock

ALL = os.environ.get("BROKER_TEST_CRASH") == "all"
SAMPLE = 4  # points of each story in a run of all tests
ARRIVED = {"dispatching", "succeeded", "failed", "outcome_unknown"}
NEVER_SENT = {"denied", "held", "rejected", "expired", "withdrawn"}
LIMIT = 50

SETTINGS = "listen: {port: 0}\nwatch: false\nhold: {wait_s: 0}\n"
MANIFESTS = """
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
---
kind: tool
name: metered
effect: write
scopes: [work]
backend: ledger
input: {type: object, properties: {n: {type: integer}}, required: [n]}
http: {method: POST, path: /work}
---
kind: policy
name: care
tools: [work]
rules:
  - {id: big, when: args.n > 50, effect: hold, reason: a person must look}
---
kind: quota
name: daily
tools: [metered]
count: {limit: LIMIT, per: month}
by: [agent]
---
kind: quota
name: money
tools: [metered]
cost: {limit: "LIMIT", per: month, amount: "1", currency: EUR}
by: [agent]
---
kind: quota
name: at-once
tools: [metered]
concurrency: {limit: 2, lease: 60s}
by: [agent]
""".replace("LIMIT", str(LIMIT))


def plain(serving: Serving) -> list[dict[str, Any]]:
    return [serving.call("work", {"n": 1})]


def metered(serving: Serving) -> list[dict[str, Any]]:
    return [serving.call("metered", {"n": 1}), serving.call("metered", {"n": 2})]


def held(serving: Serving) -> list[dict[str, Any]]:
    said = serving.call("work", {"n": 500})["structuredContent"]
    assert said["code"] == "held", said
    approved = broker("approve", said["hold_id"], "--wait", "0", cwd=serving.folder)
    assert "Approved" in approved.out, approved.err
    for _ in range(500):
        result = serving.call("broker_held_call", {"id": said["hold_id"]})
        if result["structuredContent"].get("code") != "held":
            return [result]
        anyio.run(anyio.sleep, 0.02)
    raise AssertionError("the approved call never runs")


def keyed(serving: Serving) -> list[dict[str, Any]]:
    """The client names its call, so that its retries are that call; then it asks once more on purpose."""
    meta = {IDEMPOTENCY_META: "order 4711"}
    return [serving.call("metered", {"n": 1}, **meta), serving.call("metered", {"n": 1}, **meta)]


STORIES: dict[str, Callable[[Serving], list[dict[str, Any]]]] = {
    "plain": plain,
    "metered": metered,
    "held": held,
    "keyed": keyed,
}
AT_MOST = {"keyed": 1}  # calls that may arrive, however often the client had to ask


@pytest.fixture(scope="module")
def ledger() -> Generator[Ledger]:
    with ledger_backend() as backend:
        yield backend


@pytest.fixture(scope="module")
def template(ledger: Ledger, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("house") / "template"
    compiled()
    return folder, house(folder, MANIFESTS.replace("PORT", str(ledger.server_port)), SETTINGS)


@cache
def points_of(name: str, template: tuple[Path, str], folder: Path) -> str:
    """The points of a story that nothing disturbs, from the start of the broker to its end."""
    serving = Serving(copy_of(template[0], folder / f"{name}-undisturbed"), template[1])
    try:
        for result in STORIES[name](serving):
            assert result["structuredContent"]["number"] >= 1, result
        assert serving.stop() == 0
        assert serving.deaths == 0
        return serving.shim.points
    finally:
        serving.kill()


def chosen(points: str) -> list[tuple[int, bool]]:
    """(point, after): all of them, or a sample spread over the story that differs between before and after."""
    every = [(number + 1, after) for number in range(len(points)) for after in (False, True)]
    return every if ALL else every[:: max(1, len(every) // SAMPLE)]


@pytest.mark.parametrize("name", STORIES)
def test_killed_at_any_sync_or_send_nothing_runs_unseen_or_twice(
    name: str, template: tuple[Path, str], ledger: Ledger, tmp_path: Path
) -> None:
    points = points_of(name, template, tmp_path)
    assert "f" in points and "s" in points
    died = 0
    for point, after in chosen(points):
        where = f"{name}, {'after' if after else 'before'} point {point} of {points}"
        faulthandler.dump_traceback_later(60, exit=True)  # the deadline of each point; together they may take longer
        before = len(ledger.received)
        serving = Serving(copy_of(template[0], tmp_path / f"{point}-{after}"), template[1])
        serving.shim.kill_at(point, after=after)
        try:
            answers = STORIES[name](serving)
            serving.stop()
            assert serving.deaths <= 1, where
            died += serving.deaths
        finally:
            serving.kill()
        records, quotas = anyio.run(_settled, serving.folder)
        assert len(ledger.received) - before <= AT_MOST.get(name, 99), f"P3: {where}"
        check(records, quotas, ledger.received[before:], answers, where)
        assert verify(serving.folder / "broker.db", None).ok, where  # I6
    print(f"{name}: {len(chosen(points))} places over {points}, killed at {died}")
    assert died >= len(chosen(points)) * 2 // 3  # how commits are grouped may differ, so some points are not reached


async def _settled(folder: Path) -> tuple[list[Invocation], list[QuotaState]]:
    """What the records say after a restart has cleaned up."""
    store = await open_store(folder, SystemClock())
    try:
        await store.sweep(SystemClock().now_ms())
        records = await store.invocations(InvocationQuery(limit=1000))
        return records, await store.quotas(SystemClock().now_ms())
    finally:
        await store.aclose()


def check(
    records: list[Invocation],
    quotas: list[QuotaState],
    arrived: list[str],
    answers: list[dict[str, Any]],
    where: str,
) -> None:
    known = {record.call_id: record for record in records}
    for call_id, times in Counter(arrived).items():
        assert call_id in known and known[call_id].state in ARRIVED, f"I1: {where}"
        assert times == 1, f"I2: {where}"
    for record in records:
        assert record.state not in NEVER_SENT or record.call_id not in arrived, f"I4: {where}"
        assert record.state != "dispatching", f"P2: {where}"
    acknowledged = {digest(answer) for answer in answers if not answer["isError"]}
    assert acknowledged <= {record.result_digest for record in records if record.state == "succeeded"}, f"I3: {where}"
    ran = sum(record.tool == "metered" and record.state != "denied" for record in records)
    left = {quota.quota: quota for quota in quotas}
    assert "at-once" not in left, f"I5, nothing runs any more: {where}"
    if ran:
        assert left["daily"].left == LIMIT - ran, f"I5: {where}"
        spent = LIMIT * 10**6 - left["money"].left
        assert spent == 10**6 * ran, f"I5: {where}"


def digest(result: dict[str, Any]) -> str:
    """Of a result as the backend's answer was recorded, without what the wire puts around it."""
    return digest_of(orjson.dumps({key: value for key, value in result.items() if key not in ("resultType", "_meta")}))
