"""A client that names its call may send it again: it happens once, and whoever asks again is told what became of it."""

from __future__ import annotations

import signal
import sys
from collections.abc import Generator
from pathlib import Path
from subprocess import PIPE, Popen
from threading import Event

import anyio
import pytest

from broker.assembly import Broker
from broker.errors import (
    Conflict,
    Denied,
    Held,
    InFlight,
    InvalidArguments,
    ManifestError,
    OutcomeUnknown,
    OverQuota,
    Unavailable,
)
from broker.model.answer import Answer
from broker.model.call import IDEMPOTENCY_META
from broker.pipeline.replay import REPLAYED_META, replay
from broker.stores.sqlite.idempotency import KEPT_MS
from broker.verifier import verify
from tests.catalogs import catalog_of
from tests.ledger import Ledger, ledger_backend
from tests.records import HOUR, HandClock
from tests.world import a_call, agent, broker_with, perform, records, reviewer, settings_in, until_state

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).parents[2]
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
caps: {timeout: 5s}
---
kind: policy
name: care
rules:
  - {id: big, when: args.n > 50, effect: hold, reason: a person must look}
---
kind: quota
name: monthly
count: {limit: 20, per: month}
by: [agent]
"""


@pytest.fixture
def ledger() -> Generator[Ledger]:
    with ledger_backend() as backend:
        yield backend


@pytest.fixture
def manifests(ledger: Ledger) -> str:
    return MANIFESTS.replace("PORT", str(ledger.server_port))


async def send(broker: Broker, key: object, n: int = 1, name: str = "bot", issuer: str = "settings") -> Answer:
    call = a_call("work", {"n": n}, agent(name, scopes=["work"], issuer=issuer), meta={IDEMPOTENCY_META: key})
    with anyio.fail_after(20):
        return await broker.pipeline.perform(call)


async def test_a_hundred_duplicates_of_twenty_calls_arrive_twenty_times(
    tmp_path: Path, ledger: Ledger, manifests: str
) -> None:
    answers: dict[int, list[Answer]] = {number: [] for number in range(20)}

    async def one(broker: Broker, number: int) -> None:
        answers[number].append(await send(broker, f"key {number}", number))

    async with broker_with(tmp_path, manifests) as first, broker_with(tmp_path, manifests) as second:
        async with anyio.create_task_group() as tasks:
            for turn in range(100):
                for number in answers:
                    tasks.start_soon(one, (first, second)[turn % 2], number)
        assert len(await records(first, limit=10_000)) == 20, "a duplicate is no call of its own"
        (left,) = await first.store.quotas(first.clock.now_ms())
        assert left.left == 0, "and takes nothing of a quota"
        with pytest.raises(OverQuota):
            await send(first, "key 20", 20)
    assert len(ledger.received) == 20
    for same in answers.values():
        assert len({repr(answer.content) for answer in same}) == 1
        assert sum(REPLAYED_META not in (answer.meta or {}) for answer in same) == 1
    async with broker_with(tmp_path, manifests) as again:  # after a restart too
        answer = await send(again, "key 3", 3)
        assert answer.content == answers[3][0].content
    assert len(ledger.received) == 20
    assert verify(tmp_path / "broker.db", None).ok


async def test_a_key_is_for_one_call_of_one_principal(tmp_path: Path, ledger: Ledger, manifests: str) -> None:
    async with broker_with(tmp_path, manifests) as broker:
        await send(broker, "k", 1)
        with pytest.raises(Conflict) as refused:
            await send(broker, "k", 2)
        assert refused.value.effect == "none"
        assert [record.code for record in await records(broker, states=("denied",))] == ["conflict"]
        await send(broker, "k", 2, "other-bot")
        await send(broker, "another", 2)
        await send(broker, "k", 1)
    assert len(ledger.received) == 3


@pytest.mark.parametrize("key", ["", "x" * 256, 7, ["k"], {"a": 1}, True])
async def test_what_is_no_key_is_refused_and_recorded(
    tmp_path: Path, ledger: Ledger, manifests: str, key: object
) -> None:
    async with broker_with(tmp_path, manifests) as broker:
        with pytest.raises(InvalidArguments):
            await send(broker, key)
        assert [record.code for record in await records(broker)] == ["invalid_arguments"]
        assert ledger.received == []
        await send(broker, "é" * 255)
        await send(broker, None)
    assert len(ledger.received) == 2


async def test_the_key_and_the_answer_lie_in_no_clear_text_and_go_after_their_time(
    tmp_path: Path, ledger: Ledger, manifests: str
) -> None:
    clock = HandClock()
    async with Broker.open(settings_in(tmp_path, manifests), clock=clock) as broker:
        first = await send(broker, "canary-4711")
        record = (await records(broker))[0]
        result = await broker.store.result(record.call_id)
        assert result is not None and b"number" in result
        for file in (file for file in tmp_path.glob("broker.db*") if file.is_file()):
            assert b"canary-4711" not in file.read_bytes()
            assert result not in file.read_bytes()
        clock.at_ms += KEPT_MS // 2
        await tidied(broker)
        assert (await send(broker, "canary-4711")).content == first.content
        clock.at_ms += KEPT_MS
        await tidied(broker)
        assert await broker.store.result(record.call_id) is None
        await send(broker, "canary-4711")
    assert len(ledger.received) == 2


async def tidied(broker: Broker) -> None:
    broker.store._tidy_at = 0.0  # type: ignore[attr-defined]  # now, and not in a minute
    await broker.store.sweep(broker.clock.now_ms())


async def test_while_the_call_is_under_way_its_retry_waits_for_it_and_then_says_so(
    tmp_path: Path, ledger: Ledger, manifests: str
) -> None:
    arrived, go_on = held_back(ledger)
    answers: list[Answer] = []
    async with broker_with(tmp_path, manifests.replace("timeout: 5s", "timeout: 30s")) as broker:

        async def one() -> None:
            answers.append(await send(broker, "k"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one)
            await arrived.wait()
            tasks.start_soon(one)
            under_way = (await records(broker))[0]
            with pytest.raises(InFlight) as told:
                await replay(under_way, broker.store, wait_s=0)
            assert told.value.retryable
            assert told.value.effect == "unknown"
            go_on.set()
    assert len(ledger.received) == 1
    assert answers[0].content == answers[1].content


async def test_what_was_never_sent_may_be_tried_again_with_its_key(
    tmp_path: Path, ledger: Ledger, manifests: str
) -> None:
    nobody = manifests.replace(str(ledger.server_port), "9")
    async with broker_with(tmp_path, nobody) as broker:
        with pytest.raises(Unavailable):
            await send(broker, "k")
    async with broker_with(tmp_path, manifests) as broker:
        await send(broker, "k")
        await send(broker, "k")
    assert len(ledger.received) == 1


async def test_an_unknown_outcome_stays_unknown_for_its_key(tmp_path: Path, ledger: Ledger, manifests: str) -> None:
    settings_in(tmp_path, manifests)

    def kill_it() -> None:
        process.send_signal(signal.SIGKILL)

    ledger.on_receipt = kill_it
    command = [sys.executable, "-m", "tests.caller", str(tmp_path), "work", "1", "k"]
    process = Popen(command, stdout=PIPE, cwd=ROOT)
    with process:
        await anyio.to_thread.run_sync(process.communicate)
    ledger.on_receipt = lambda: None
    assert len(ledger.received) == 1
    async with broker_with(tmp_path, manifests) as broker:
        for _ in range(2):
            with pytest.raises(OutcomeUnknown):
                await send(broker, "k", 1, "bot-0", "test")
    assert len(ledger.received) == 1


async def test_a_held_call_keeps_its_answer_for_its_key_after_it_was_collected(
    tmp_path: Path, ledger: Ledger, manifests: str
) -> None:
    desk = {"agent": "bot", "scopes": ["work"]}  # the settings vouch for the caller, so that its hold may run
    async with broker_with(tmp_path, manifests, hold={"wait_s": 0}, stdio=desk) as broker:
        hold_id = await held(broker, "yes", 60)
        assert await held(broker, "yes", 60) == hold_id
        await broker.desk.review(hold_id, approve=True, reviewer=reviewer(), via="test")
        await until_state(broker, hold_id, "succeeded")
        first = await send(broker, "yes", 60)
        assert (await send(broker, "yes", 60)).content == first.content, "collected already"
        assert first.meta and first.meta[REPLAYED_META] == hold_id
    assert len(ledger.received) == 1


async def test_a_persons_no_stays_a_no_for_its_key(tmp_path: Path, ledger: Ledger, manifests: str) -> None:
    async with broker_with(tmp_path, manifests, hold={"wait_s": 0}) as broker:
        hold_id = await held(broker, "no", 61)
        await broker.desk.review(hold_id, approve=False, reviewer=reviewer(), reason="no", via="test")
        for _ in range(2):
            with pytest.raises(Denied):
                await send(broker, "no", 61)
        assert await held(broker, "another", 61) != hold_id
    assert ledger.received == []


async def held(broker: Broker, key: str, n: int) -> str:
    with pytest.raises(Held) as told:
        await send(broker, key, n)
    return told.value.facts["hold_id"]


DERIVED = """
kind: backend
name: ledger
http: {base_url: "http://127.0.0.1:PORT", allow_private: true}
---
kind: tool
name: refund
effect: write
scopes: [work]
backend: ledger
idempotency: {from: [order], within: 24h}
input: {type: object, properties: {order: {type: string}, amount: {type: number}}, required: [order, amount]}
http: {method: POST, path: /refunds}
caps: {timeout: 5s}
"""


async def refund(broker: Broker, order: str, amount: float, key: str = "", name: str = "bot") -> Answer:
    meta = {IDEMPOTENCY_META: key} if key else {}
    call = a_call("refund", {"order": order, "amount": amount}, agent(name, scopes=["work"]), meta=meta)
    with anyio.fail_after(20):
        return await broker.pipeline.perform(call)


async def test_a_tool_names_its_call_by_arguments_and_the_agent_need_not(tmp_path: Path, ledger: Ledger) -> None:
    clock = HandClock()
    settings = settings_in(tmp_path, DERIVED.replace("PORT", str(ledger.server_port)))
    async with Broker.open(settings, clock=clock) as broker:
        first = await refund(broker, "A", 5)
        assert (await refund(broker, "A", 5)).content == first.content
        with pytest.raises(Conflict) as refused:
            await refund(broker, "A", 6)
        assert "made" in refused.value.next_step or "makes the key" in refused.value.next_step
        assert len(ledger.received) == 1
        await refund(broker, "B", 5)
        await refund(broker, "A", 6, name="other-bot")
        assert len(ledger.received) == 3
        clock.at_ms += 24 * HOUR - 1
        assert (await refund(broker, "A", 5)).content == first.content
        clock.at_ms += 1
        await refund(broker, "A", 6)
        assert len(ledger.received) == 4, "a day later it is a new act"


async def test_a_clients_own_key_is_no_way_round_the_tools(tmp_path: Path, ledger: Ledger) -> None:
    async with broker_with(tmp_path, DERIVED.replace("PORT", str(ledger.server_port))) as broker:
        first = await refund(broker, "A", 5, "k1")
        assert (await refund(broker, "A", 5, "k2")).content == first.content
        with pytest.raises(Conflict):
            await refund(broker, "B", 5, "k1")
        with pytest.raises(Conflict):
            await refund(broker, "A", 6, "k3")
        await refund(broker, "B", 6, "k3")
    assert len(ledger.received) == 2


async def test_a_hundred_duplicates_of_twenty_derived_calls_arrive_twenty_times(tmp_path: Path, ledger: Ledger) -> None:
    manifests = DERIVED.replace("PORT", str(ledger.server_port))
    async with (
        broker_with(tmp_path, manifests) as one,
        broker_with(tmp_path, manifests) as two,
        anyio.create_task_group() as tasks,
    ):
        for turn in range(100):
            for order in range(20):
                tasks.start_soon(refund, (one, two)[turn % 2], str(order), 1)
    async with broker_with(tmp_path, manifests) as again:
        await refund(again, "7", 1)
    assert len(ledger.received) == 20
    assert verify(tmp_path / "broker.db", None).ok


@pytest.mark.parametrize(
    ("names", "fault"),
    [("[ordre]", "args.ordre is not an argument"), ("[note]", "args.note is optional"), ("[]", "at least 1")],
)
def test_a_key_is_made_of_required_arguments_only(tmp_path: Path, names: str, fault: str) -> None:
    wrong = DERIVED.replace("[order], within", f"{names}, within").replace(
        "amount: {", "note: {type: string}, amount: {"
    )
    for backend in (
        'http: {base_url: "http://127.0.0.1:PORT", allow_private: true}',
        "http: {method: POST, path: /refunds}\n",
    ):
        wrong = wrong.replace(backend, "static: {}" if "base" in backend else "static: {text: done}\n")
    with pytest.raises(ManifestError) as told:
        catalog_of(tmp_path, wrong)
    assert fault in str(told.value)


def held_back(ledger: Ledger) -> tuple[anyio.Event, Event]:
    """The ledger answers only once the second event is set; the first says that it was asked."""
    arrived, go_on = anyio.Event(), Event()
    token = anyio.lowlevel.current_token()

    def hold_back() -> None:
        anyio.from_thread.run_sync(arrived.set, token=token)
        go_on.wait(20)

    ledger.on_receipt = hold_back
    return arrived, go_on


async def test_every_attempt_of_a_keyed_call_is_one_to_its_backend(
    tmp_path: Path, ledger: Ledger, manifests: str
) -> None:
    nobody = manifests.replace(str(ledger.server_port), "9")
    async with broker_with(tmp_path, nobody) as broker:
        for _ in range(2):
            with pytest.raises(Unavailable):
                await send(broker, "k")
        first = (await records(broker, oldest_first=True))[0].call_id
    async with broker_with(tmp_path, manifests) as broker:
        await send(broker, "k")
        await send(broker, "another", 2)
        second = (await records(broker))[0].call_id
    assert ledger.received == [first, second]


async def test_so_it_is_with_one_that_a_grant_lets_run(tmp_path: Path, free_port: int) -> None:
    async with broker_with(tmp_path, MANIFESTS.replace("PORT", str(free_port))) as broker:
        with pytest.raises(Held) as held:
            await perform(broker, "work", {"n": 60}, agent(scopes=["work"], issuer="settings"), may_wait=False)
        grant = await broker.grants.propose(
            reviewer(),
            call_id=str(held.value.facts["hold_id"]),
            count=9,
            when="args.n < 90",
            until_ms=broker.clock.now_ms() + HOUR,
            via="test",
        )
        await broker.grants.decide(reviewer("raul"), grant.grant_id, decision="approve", reason="fine", via="test")
        with pytest.raises(Unavailable):
            await send(broker, "k", 61)
        first = (await records(broker))[0].call_id
        with ledger_backend(free_port) as ledger:
            await send(broker, "k", 61)
            await send(broker, "k", 61)
    assert ledger.received == [first]


async def test_a_keyed_call_goes_on_when_its_client_goes_away_and_its_retry_is_given_the_answer(
    tmp_path: Path, ledger: Ledger, manifests: str
) -> None:
    arrived, go_on = held_back(ledger)
    async with broker_with(tmp_path, manifests, limits={"calls": 2}) as broker:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send, broker, "k")
            await arrived.wait()
            tasks.cancel_scope.cancel()
        assert [record.state for record in await records(broker)] == ["dispatching"]
        assert broker.pipeline.room == 1, "it still has its place"
        go_on.set()
        answer = await send(broker, "k")
        assert answer.meta and REPLAYED_META in answer.meta
        assert [record.state for record in await records(broker)] == ["succeeded"]
        assert broker.pipeline.room == 2
    assert len(ledger.received) == 1


async def test_a_call_without_a_key_ends_with_its_client(tmp_path: Path, ledger: Ledger, manifests: str) -> None:
    arrived, go_on = held_back(ledger)
    async with broker_with(tmp_path, manifests) as broker:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send, broker, None)
            await arrived.wait()
            tasks.cancel_scope.cancel()
        go_on.set()
        assert [record.state for record in await records(broker)] == ["outcome_unknown"]


async def test_a_broker_that_ends_does_not_wait_for_keyed_calls_left_alone(
    tmp_path: Path, ledger: Ledger, manifests: str
) -> None:
    arrived, go_on = held_back(ledger)
    long = manifests.replace("timeout: 5s", "timeout: 30s")
    with anyio.fail_after(15):
        async with broker_with(tmp_path, long) as broker, anyio.create_task_group() as tasks:
            tasks.start_soon(send, broker, "k")
            await arrived.wait()
            tasks.cancel_scope.cancel()
    go_on.set()
    async with broker_with(tmp_path, manifests) as broker:
        with pytest.raises(OutcomeUnknown):
            await send(broker, "k")
    assert len(ledger.received) == 1
