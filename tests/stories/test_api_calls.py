"""Calls over REST, by an ordinary HTTP client: answered at once, or 202 and a place to ask, until it has ended."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest

from tests.premises import House, house_with
from tests.stories.test_api import fits
from tests.stories.test_call import QUOTA, TOOLS
from tests.world import records, until_state

pytestmark = pytest.mark.anyio


@pytest.fixture
async def house(tmp_path: Path) -> AsyncGenerator[House]:
    async with house_with(tmp_path, TOOLS + QUOTA) as house:
        house.person("rita")
        house.person("ann", scopes=["notes.write"])
        house.person("carl", scopes=["notes.write"])
        yield house


async def call(house: House, tool: str, user: str = "ann", *, key: str = "", **arguments: Any) -> httpx2.Response:
    headers = {"Authorization": f"Bearer {house.token(user)}"} | ({"Idempotency-Key": key} if key else {})
    return await house.http.post("/api/calls", json={"tool": tool, "arguments": arguments}, headers=headers)


async def test_a_call_that_needs_nobody_is_answered(house: House) -> None:
    answer = await call(house, "note_read", topic="x")
    assert answer.status_code == 200
    assert fits("Call", answer.json())
    assert answer.json()["result"]["content"] == [{"type": "text", "text": "a note"}]
    (record,) = await records(house.broker)
    assert (record.call_id, record.face, record.agent, record.user) == (
        answer.json()["call_id"], "api", "ann-tool", "ann",
    )  # fmt: skip
    later = (await house.get(f"/api/calls/{record.call_id}", "ann")).json()
    assert (later["state"], later["result"]) == ("succeeded", None)  # an answer that was given is not kept


async def test_a_held_call_is_202_and_its_location_tells_how_it_ends(house: House) -> None:
    waits = await call(house, "note_write", amount=500)
    assert (waits.status_code, waits.json()["state"], waits.json()["code"]) == (202, "held", "held")
    assert fits("Call", waits.json())
    where = waits.headers["location"]
    assert int(waits.headers["retry-after"]) > 0
    again = await call(house, "note_write", amount=500)
    assert (again.status_code, again.headers["location"]) == (202, where)  # attached, not held twice
    assert (await house.get(where, "ann")).status_code == 202
    hold_id = waits.json()["call_id"]
    approved = await house.post(f"/api/holds/{hold_id}/approve", "rita")
    assert approved.status_code == 200
    with anyio.fail_after(10):
        while (polled := await house.get(where, "ann")).status_code == 202:
            await anyio.sleep(0.02)
    assert fits("Call", polled.json())
    assert (polled.status_code, polled.json()["state"]) == (200, "succeeded")
    assert polled.json()["result"]["content"] == [{"type": "text", "text": "written"}]
    for other in ("rita", "carl"):  # who decided may see the call, and not its answer here
        assert (await house.get(where, other)).status_code == 404


async def test_a_denial_reaches_the_caller_with_its_reason(house: House) -> None:
    waits = await call(house, "note_write", amount=500)
    where = waits.headers["location"]
    await house.post(f"/api/holds/{waits.json()['call_id']}/deny", "rita", {"reason": "too much at once"})
    told = await house.get(where, "ann")
    assert told.status_code == 200
    assert fits("Call", told.json())
    assert (told.json()["state"], told.json()["code"]) == ("rejected", "denied_by_reviewer")
    assert "too much at once" in told.json()["message"]
    assert told.json()["hold"]["review_reason"] == "too much at once"


async def test_a_caller_takes_its_held_call_back_and_nobody_else_does(house: House) -> None:
    where = (await call(house, "note_write", amount=500)).headers["location"]
    assert (await house.post(f"{where}/withdraw", "carl")).status_code == 404
    back = await house.post(f"{where}/withdraw", "ann")
    assert (back.status_code, back.json()["state"], back.json()["code"]) == (200, "withdrawn", "hold_withdrawn")
    ran = (await call(house, "note_read", topic="x")).json()["call_id"]
    assert (await house.post(f"/api/calls/{ran}/withdraw", "ann")).status_code == 404


async def test_a_call_sent_again_with_its_key_is_done_once(house: House) -> None:
    first = await call(house, "note_write", key="order-7", amount=5)
    second = await call(house, "note_write", key="order-7", amount=5)
    assert first.json()["call_id"] == second.json()["call_id"]
    assert second.json()["result"]["content"] == first.json()["result"]["content"]
    other = await call(house, "note_write", key="order-7", amount=6)
    assert (other.status_code, other.json()["code"]) == (409, "conflict")
    assert len(await records(house.broker, states=("succeeded",))) == 1
    kept = await house.get(f"/api/calls/{first.json()['call_id']}", "ann")
    assert kept.json()["result"]["content"] == first.json()["result"]["content"]


async def test_every_refusal_has_its_status_and_its_code(house: House) -> None:
    async def refused(status: int, code: str, answer: httpx2.Response) -> httpx2.Response:
        assert (answer.status_code, answer.json()["code"]) == (status, code)
        assert fits("Error", answer.json())
        assert answer.headers["content-type"] == "application/json"
        return answer

    unknown = await refused(404, "unknown_tool", await call(house, "note_riddle"))
    recorded = await house.broker.store.invocation(unknown.json()["call_id"])
    assert recorded is not None
    assert recorded.state == "denied"
    await refused(422, "invalid_arguments", await call(house, "note_read", topic=1))
    await refused(403, "forbidden", await call(house, "note_write", amount=-1))
    lacks = await refused(403, "insufficient_scope", await call(house, "note_write", "rita", amount=1))
    assert 'error="insufficient_scope"' in lacks.headers["www-authenticate"]
    assert "notes.write" in lacks.headers["www-authenticate"]
    for amount in (1, 2):
        assert (await call(house, "note_write", amount=amount)).status_code == 200
    over = await refused(429, "over_quota", await call(house, "note_write", amount=3))
    assert int(over.headers["retry-after"]) > 0
    nobody = await house.http.post("/api/calls", json={"tool": "note_read"})
    await refused(401, "unauthenticated", nobody)


@pytest.mark.parametrize(
    "body",
    [
        b'{"tool":"note_read","tool":"note_write"}',
        b'{"tool":"note_write","arguments":{"amount":1,"amount":500}}',
        b'{"tool":"note_write","arguments":{"amount":1e400}}',
        b'{"tool":"note_write","arguments":{"amount":36893488147419103232}}',
        b'{"tool":"note_write","arguments":{"amount":NaN}}',
        b'{"tool":"note_read","arguments":{"topic":"\\ud800"}}',
        b'{"tool":"note_read","arguments":[]}',
        b'{"tool":"note_read","approved":true}',
        b'{"arguments":{}}',
        b"[" * 5000,
        b'\xef\xbb\xbf{"tool":"note_read"}',
    ],
)
async def test_what_could_be_read_in_two_ways_is_no_call(house: House, body: bytes) -> None:
    headers = {"Authorization": f"Bearer {house.token('ann')}", "Content-Type": "application/json"}
    answer = await house.http.post("/api/calls", content=body, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed_request")
    assert await records(house.broker) == []
    whole = await house.http.post(
        "/api/calls", content=b'{"tool":"note_read","arguments":{"topic":"x"}}', headers=headers
    )
    assert whole.status_code == 200


async def test_a_key_that_is_there_twice_or_is_no_key_is_refused(house: House) -> None:
    token = ("Authorization", f"Bearer {house.token('ann')}")
    for keys in (["a", "b"], ["k" * 256], ["ä"]):
        headers = [token, *(("Idempotency-Key", key.encode()) for key in keys)]
        sent: Any = [(name, value) for name, value in headers]
        answer = await house.http.post("/api/calls", json={"tool": "note_read"}, headers=sent)
        assert (answer.status_code, answer.json()["code"]) == (400, "malformed_request"), keys
    assert await records(house.broker) == []


async def test_a_call_collected_by_its_caller_runs_when_it_is(tmp_path: Path) -> None:
    collected = TOOLS.replace("effect: write\nscopes", "effect: write\nrun: on_collect\nscopes")
    async with house_with(tmp_path, collected) as house:
        house.person("rita")
        house.person("ann", scopes=["notes.write"])
        where = (await call(house, "note_write", amount=500)).headers["location"]
        await house.post(f"/api/holds/{where.rpartition('/')[2]}/approve", "rita")
        await until_state(house.broker, where.rpartition("/")[2], "approved")
        done = await house.get(where, "ann")
        assert (done.status_code, done.json()["state"]) == (200, "succeeded")
        assert done.json()["result"]["content"] == [{"type": "text", "text": "written"}]
