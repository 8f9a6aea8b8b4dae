"""The REST API, told through a real server: who may see and decide what, and that the description tells the truth."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncGenerator
from contextlib import closing
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from broker import __version__
from broker.errors import BrokerError
from broker.faces.api.errors import STATUS
from broker.faces.api.openapi import SCHEMAS, document
from broker.faces.api.operations import OPERATIONS
from broker.faces.cli.invocation import detail
from broker.model.directory import Client
from tests.house.test_errors import raised
from tests.premises import House, house_with
from tests.stories.test_call import QUOTA, TOOLS
from tests.world import agent, perform, until_state

pytestmark = pytest.mark.anyio


@pytest.fixture
async def house(tmp_path: Path) -> AsyncGenerator[House]:
    async with house_with(tmp_path, TOOLS + QUOTA) as house:
        house.person("rita")
        house.person("ann")  # the person the agent acts for
        house.person("olga", tenant="other")
        house.person("nobody", scopes=())
        yield house


def fits(schema: str, value: Any) -> bool:
    whole = {"$ref": f"#/components/schemas/{schema}", "components": {"schemas": SCHEMAS}}
    validator = jsonschema_rs.validator_for(whole)
    assert validator.is_valid(value), [str(error) for error in validator.iter_errors(value)]
    return True


async def test_a_held_call_is_listed_read_approved_and_runs_once(house: House) -> None:
    hold_id = await house.held()
    listed = (await house.get("/api/holds", "rita")).json()
    assert fits("Holds", listed)
    assert [one["call_id"] for one in listed["items"]] == [hold_id]
    one = (await house.get(f"/api/holds/{hold_id}", "rita")).json()
    assert fits("HoldInFull", one)
    assert (one["arguments"], one["may_decide"]) == ({"amount": 500}, True)
    waits = (await house.get(f"/api/invocations/{hold_id}", "rita")).json()["timeline"]
    assert [step["what"] for step in waits if step["at_ms"]] == ["received", "held"]  # once, and nothing after it
    found = await house.broker.store.invocation(hold_id)
    assert found is not None
    assert [line for line in detail(found) if "held" in line][1:] == [detail(found)[-1]]
    approved = await house.post(f"/api/holds/{hold_id}/approve", "rita")
    assert approved.status_code == 200
    assert fits("Hold", approved.json())
    await until_state(house.broker, hold_id, "succeeded")
    told = (await house.get(f"/api/invocations/{hold_id}", "rita")).json()
    assert fits("InvocationInFull", told)
    assert told["hold"]["reviewer"] == f"rita@{house.url}"
    assert [step["what"] for step in told["timeline"]][-1] == "succeeded"
    late = await house.post(f"/api/holds/{hold_id}/deny", "rita", {"reason": "too late"})
    assert (late.status_code, late.json()["code"]) == (409, "conflict")


async def test_a_denial_needs_a_reason_which_is_recorded(house: House) -> None:
    hold_id = await house.held()
    assert (await house.post(f"/api/holds/{hold_id}/deny", "rita", {"reason": " \n "})).status_code == 403
    denied = await house.post(f"/api/holds/{hold_id}/deny", "rita", {"reason": "too much"})
    assert (denied.json()["state"], denied.json()["hold"]["review_reason"]) == ("rejected", "too much")


async def test_the_requester_sees_the_hold_and_may_not_decide_it(house: House) -> None:
    hold_id = await house.held()
    seen = (await house.get(f"/api/holds/{hold_id}", "ann")).json()
    assert not seen["may_decide"]
    refused = await house.post(f"/api/holds/{hold_id}/approve", "ann")
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    assert (await house.post(f"/api/holds/{hold_id}/approve", "rita")).status_code == 200


@pytest.mark.parametrize("user", ["olga", "nobody"])
async def test_what_one_may_not_see_does_not_exist(house: House, user: str) -> None:
    hold_id = await house.held()
    missing = "0" * 36
    for path in ("/api/holds/{}", "/api/invocations/{}"):
        answer = await house.get(path.format(hold_id), user)
        never = await house.get(path.format(missing), user)
        assert (answer.status_code, answer.json()) == (
            404,
            {**never.json(), "message": never.json()["message"].replace(missing, hold_id)},
        )
        assert (await house.get(path.format(hold_id), "rita")).status_code == 200
    assert (await house.post(f"/api/holds/{hold_id}/approve", user)).status_code == 404
    for path in ("/api/holds", "/api/invocations", "/api/quotas"):
        assert (await house.get(path, user)).json()["items"] == []


async def test_calls_are_paged_and_filtered_and_a_page_of_few_rights_is_whole(house: House) -> None:
    for number in range(5):
        await perform(
            house.broker, "note_read", {"topic": str(number)}, agent("reader", user="nobody", issuer=house.url)
        )
    await perform(house.broker, "note_read", {"topic": "x"}, agent("other"))
    for user, expected in (("rita", 6), ("nobody", 5)):
        ids: list[str] = []
        before = ""
        while True:
            page = (await house.get(f"/api/invocations?limit=2&before={before}", user)).json()
            assert fits("Invocations", page)
            ids += [one["call_id"] for one in page["items"]]
            if not (before := page["next"]):
                break
        assert len(ids) == len(set(ids)) == expected, user
    assert len((await house.get("/api/invocations?agent=other", "rita")).json()["items"]) == 1
    assert (await house.get("/api/invocations?state=failed,held", "rita")).json()["items"] == []


SEALED = """
---
kind: tool
name: note_seal
effect: read
backend: notes
record: {fields: {order_id: hmac, reason: full}}
input: {type: object, properties: {order_id: {type: integer}, reason: {type: string}}, additionalProperties: false}
static: {text: done}
"""


async def test_a_call_is_found_by_what_nobody_reads_and_read_by_an_auditor_on_record(tmp_path: Path) -> None:
    async with house_with(tmp_path, TOOLS + SEALED) as house:
        house.person("rita")
        house.person("audrey", scopes=["broker.audit"])
        house.person("olga", scopes=["broker.audit"], tenant="other")
        caller = agent("bot", user="ann", issuer="settings")
        for order in (123, 124):
            await perform(house.broker, "note_seal", {"order_id": order, "reason": f"canary {order}"}, caller)
        (found,) = (await house.get("/api/invocations?arg=order_id=123", "rita")).json()["items"]
        assert found["kept"]["reason"] == "[sealed]"
        assert (await house.get("/api/invocations?arg=order_id=125", "rita")).json()["items"] == []
        assert (await house.get("/api/invocations?arg=order_id", "rita")).status_code == 400
        path = f"/api/invocations/{found['call_id']}/payload"
        read = (await house.post(path, "audrey")).json()
        assert fits("Payload", read)
        assert read == {"arguments": {"reason": "canary 123"}}
        assert [(await house.post(path, one)).status_code for one in ("rita", "olga")] == [403, 404]
    with closing(sqlite3.connect(tmp_path / "broker.db")) as db:
        reads = [json.loads(row[0]) for row in db.execute("select body from entry where kind = 'payload_read'")]
    assert [(one["call_id"], one["by"][:6], one["via"]) for one in reads] == [(found["call_id"], "audrey", "api")]


async def test_quotas_and_the_catalog_are_those_of_the_caller(house: House) -> None:
    caller = agent("bot", user="ann", scopes=["notes.write"], issuer="settings")
    await perform(house.broker, "note_write", {"amount": 1}, caller)
    quotas = (await house.get("/api/quotas", "rita")).json()
    assert fits("Quotas", quotas)
    assert [(one["quota"], one["bucket"], one["left"]) for one in quotas["items"]] == [("two-writes", "agent=bot", 1)]
    assert (await house.get("/api/quotas", "nobody")).json()["items"] == []
    catalog = (await house.get("/api/catalog", "rita")).json()
    assert fits("Catalog", catalog)
    missing = {one["name"]: one["missing_scopes"] for one in catalog["items"]}
    assert missing["note_write"] == ["notes.write"]
    assert missing["note_read"] == []


async def test_a_token_for_one_door_does_not_open_the_other(house: House) -> None:
    directory = house.broker.directory
    from broker.authserver.tokens import Parties, mint

    directory.add_client(client := Client("narrow", scopes=None))
    account = directory.account("rita")
    assert account is not None

    def token(*paths: str) -> str:
        return mint(
            directory, house.url, Parties(client, account), scopes=["broker.review"],
            audience=[house.url + path for path in paths], lifetime_s=60, now_ms=house.broker.clock.now_ms() + 1000,
        ).token  # fmt: skip

    async def status(path: str, *paths: str) -> int:
        answer = await house.http.request(
            "GET" if path == "/api/holds" else "POST", path, headers={"Authorization": f"Bearer {token(*paths)}"}
        )
        return answer.status_code

    assert await status("/api/holds", "/mcp") == 401
    assert await status("/api/holds", "/api") == 200
    assert await status("/api/holds", "") == 200
    assert await status("/mcp", "/api") == 401
    assert await status("/mcp", "/mcp") != 401


async def test_without_a_token_the_way_to_one_is_told(house: House) -> None:
    answer = await house.http.get("/api/holds")
    assert answer.status_code == 401
    assert answer.json()["code"] == "unauthenticated"
    where = f"{house.url}/.well-known/oauth-protected-resource/api"
    assert f'resource_metadata="{where}"' in answer.headers["www-authenticate"]
    metadata = (await house.http.get(where)).json()
    assert (metadata["resource"], metadata["authorization_servers"]) == (f"{house.url}/api", [house.url])


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/holds?limit=0&colour=red", 400),
        ("GET", "/api/holds?limit=100000", 400),
        ("GET", "/api/invocations?state=sleeping", 400),
        ("GET", "/api/invocations?tool=a&tool=b", 400),
        ("DELETE", "/api/holds", 405),
        ("POST", "/api/nothing", 404),
        ("GET", "/api/nothing", 404),
        ("GET", "/api", 404),
        ("POST", "/api/holds/x/approve", 404),
    ],
)
async def test_what_is_asked_wrongly_is_refused_in_json(house: House, method: str, path: str, status: int) -> None:
    token = house.token("rita")
    answer = await house.http.request(method, path, headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code == status
    assert fits("Error", answer.json())


@pytest.mark.parametrize("body", [b"[]", b'{"reason":"a","reason":"b"}', b'{"reason":1}', b'{"why":"x"}', b"{"])
async def test_a_body_that_is_not_what_is_described_decides_nothing(house: House, body: bytes) -> None:
    hold_id = await house.held()
    headers = {"Authorization": f"Bearer {house.token('rita')}", "Content-Type": "application/json"}
    answer = await house.http.post(f"/api/holds/{hold_id}/deny", content=body, headers=headers)
    assert answer.status_code == 400
    kept = await house.broker.store.invocation(hold_id)
    assert kept is not None
    assert kept.state == "held"


async def test_the_description_is_published_and_is_of_the_routes_there_are(house: House) -> None:
    published = (await house.http.get("/api/openapi.json")).json()
    assert published == document(__version__, house.url)
    described = {(method.upper(), path) for path, methods in published["paths"].items() for method in methods}
    assert described == {(operation.method, operation.path) for operation in OPERATIONS}
    for operation in OPERATIONS:
        answer = await house.http.request(operation.method, operation.path.replace("{id}", "x"))
        assert answer.status_code == 401, operation.name


@pytest.mark.parametrize("cls", raised(), ids=lambda cls: cls.code)
def test_every_error_has_a_status(cls: type[BrokerError]) -> None:
    assert 200 <= STATUS[cls.code] < 600
