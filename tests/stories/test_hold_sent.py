"""What is approved is what is sent: the broker's own rendering of a held call, compared with what arrives."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import orjson
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse

from broker.assembly import Broker
from broker.errors import Conflict, Held, InvalidArguments
from broker.model.sketch import Sketch
from broker.verifier import verify
from tests.downstream import answering
from tests.world import agent, broker_with, perform, records, reviewer, until_state

caller = agent(scopes=["work"], user="ann", issuer="settings", tenant="acme")
STDIO = {"agent": "bot", "user": "ann", "tenant": "acme", "scopes": ["work"]}

TOOL = """
kind: backend
name: orders
http:
  base_url: {url}/v1
  allow_private: true
  headers: {{Accept-Language: en}}
  credential: {{header: X-Api-Key, value: "${{env:ORDERS_KEY}}"}}
---
kind: tool
name: orders_refund
effect: write
scopes: [work]
backend: orders
input:
  type: object
  properties: {{order: {{type: string}}, note: {{type: string}}, lang: {{type: string}}, tag: {{type: string}}}}
  required: [order, note]
inject: {{by: caller.user, call: call.id}}
http:
  method: POST
  path: /orders/{{order}}/refunds
  query: {{lang: lang}}
  headers: {{X-Tag: tag}}
  body: {{note: note, by: by, call: call}}
---
kind: policy
name: refunds
tools: [orders_refund]
rules: [{{id: all, when: "true", effect: hold}}]
"""
# Bidirectional and zero-width characters, a name that looks like another, a tail nobody reads, a path that would climb.
HOSTILE: list[dict[str, str]] = [
    {"order": "1002", "note": "fine"},
    {"order": "..%2f..\u202e/etc", "note": "zero\u200bwidth \u2066hidden\u2069"},
    {"order": "а\u0301", "note": "x" * 200_000, "lang": "en&admin=1", "tag": "\xe9"},
    {"order": "?#", "note": 'a "quote" and a \\ and \n a line', "lang": "%00"},
]


@asynccontextmanager
async def house(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncGenerator[tuple[Broker, list[tuple[Request, bytes]]]]:
    monkeypatch.setenv("ORDERS_KEY", "s3cret-of-orders")
    async with (
        answering(JSONResponse({"refunded": True})) as (url, asked),
        broker_with(folder, TOOL.format(url=url), stdio=STDIO) as broker,
    ):
        yield broker, asked


async def held(broker: Broker, **arguments: Any) -> str:
    with pytest.raises(Held) as error:
        await perform(broker, "orders_refund", arguments, caller, may_wait=False)
    return str(error.value.facts["hold_id"])


async def sketch_of(broker: Broker, hold_id: str) -> Sketch:
    packed = (await broker.store.held(hold_id)).sketch
    assert packed is not None
    return Sketch.unpack(packed)


@pytest.mark.anyio
@pytest.mark.parametrize("arguments", HOSTILE)
async def test_what_arrives_is_what_the_reviewer_was_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, str]
) -> None:
    async with house(tmp_path, monkeypatch) as (broker, asked):
        hold_id = await held(broker, **arguments)
        shown = await sketch_of(broker, hold_id)
        recorded = await broker.store.invocation(hold_id)
        assert recorded is not None
        assert recorded.hold is not None
        assert recorded.hold.sketch_digest == shown.digest
        await broker.desk.review(hold_id, approve=True, reviewer=reviewer(), via="test")
        await until_state(broker, hold_id, "succeeded")
        ((request, body),) = asked
        path, query = request.scope["raw_path"].decode(), request.scope["query_string"].decode()
        url = f"http://{request.headers['host']}{path}{'?' if query else ''}{query}"
        assert (request.method, url, body.decode()) == (shown.method, shown.target, shown.body)
        arrived = [name.decode().lower() for name, _ in request.scope["headers"]]
        framing = {"host", "connection", "content-length"}
        assert [name for name in arrived if name not in framing] == [name.lower() for name in shown.headers]
        assert "X-Api-Key" in shown.headers
        assert "s3cret-of-orders" not in shown.packed().decode()


@pytest.mark.anyio
async def test_what_would_be_sent_otherwise_than_it_was_shown_is_not_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house(tmp_path, monkeypatch) as (broker, asked):
        hold_id = await held(broker, order="1", note="n")
        other: Any = broker.backends["orders"]
        monkeypatch.setattr(other._headers, "_fixed", {**other._headers._fixed, "x-more": (b"X-More", b"1")})
        await broker.desk.review(hold_id, approve=True, reviewer=reviewer(), via="test")
        refused = await until_state(broker, hold_id, "failed")
        assert (refused.code, refused.effect, asked) == ("forbidden", "none", [])
        assert "would not be sent as it was shown" in refused.message


@pytest.mark.anyio
async def test_a_call_that_could_not_be_sent_is_refused_before_anybody_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house(tmp_path, monkeypatch) as (broker, _):
        with pytest.raises(InvalidArguments, match="part of the path"):
            await perform(broker, "orders_refund", {"order": "..", "note": "n"}, caller, may_wait=False)
        (refused,) = await records(broker)
        assert (refused.state, refused.code) == ("denied", "invalid_arguments")


# ------------------------------------------------------------------------------------------------------------- editing

EDITED = """
kind: backend
name: notes
static: {}
---
kind: tool
name: pay
effect: write
scopes: [work]
backend: notes
record: redacted
input:
  type: object
  properties: {amount: {type: number}, to: {type: string}}
  required: [amount]
  additionalProperties: false
static: {text: paid}
---
kind: policy
name: money
tools: [pay]
rules:
  - {id: never, when: "args.amount > 1000.0", effect: deny, reason: too much}
  - {id: large, when: "args.amount > 500.0", effect: hold, reviewers: {groups: [board]}}
  - {id: middle, when: "args.amount > 50.0 && args.amount <= 500.0", effect: hold}
  - {id: small, when: "args.amount <= 50.0", effect: allow}
---
kind: quota
name: budget
tools: [pay]
cost: {currency: EUR, limit: 600, per: month, amount: args.amount}
by: []
"""


async def asked_to_pay(broker: Broker, amount: float = 300.0) -> str:
    with pytest.raises(Held) as error:
        await perform(broker, "pay", {"amount": amount}, caller, may_wait=False)
    return str(error.value.facts["hold_id"])


async def edit(broker: Broker, hold_id: str, name: str = "rita", **arguments: Any) -> Any:
    return await broker.desk.review(
        hold_id, approve=True, reviewer=reviewer(name), reason="less is enough", via="test", arguments=arguments
    )


@pytest.mark.anyio
async def test_a_reviewer_changes_the_call_it_runs_changed_and_the_agent_is_told(tmp_path: Path) -> None:
    async with broker_with(tmp_path, EDITED, stdio=STDIO) as broker:
        hold_id = await asked_to_pay(broker)
        before = await broker.store.invocation(hold_id)
        edited = await edit(broker, hold_id, amount=40.0, to="Bo")
        assert before is not None
        assert edited.arguments_digest != before.arguments_digest
        done = await until_state(broker, hold_id, "succeeded")
        assert done.kept == {"amount": 40.0, "to": "Bo"}
        assert done.hold is not None
        assert done.hold.edited_by == "rita@test"
        parts = await broker.store.held(hold_id)
        assert orjson.loads(parts.before or b"") == {"amount": 300.0}
        (budget,) = await broker.store.quotas(broker.clock.now_ms())
        assert budget.left == 560_000_000  # what the changed call costs, and not what the first would have
        answer = await perform(broker, "broker_held_call", {"id": hold_id}, caller)
        assert answer.meta is not None
        assert answer.meta["dev.broker/changed"] == {
            "by": "rita@test",
            "changes": [
                {"path": "amount", "kind": "changed", "was": 300.0, "now": 40.0},
                {"path": "to", "kind": "added", "was": None, "now": "Bo"},
            ],
        }
        assert "amount: 300.0 became 40.0" in answer.content[-1]["text"]
    assert verify(tmp_path / "broker.db").fault is None


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"amount": 2000.0}, "money/never forbids"),
        ({"amount": 501.0}, "asks other reviewers"),
        ({"amount": "much"}, "not valid"),
        ({"amount": 300.0, "more": 1}, "not valid"),
        ({"amount": 300.0}, "nothing is changed"),
    ],
)
async def test_an_edit_the_caller_could_not_have_made_here_is_refused(
    tmp_path: Path, arguments: dict[str, Any], error: str
) -> None:
    async with broker_with(tmp_path, EDITED, stdio=STDIO) as broker:
        hold_id = await asked_to_pay(broker)
        with pytest.raises(Exception, match=error):
            await edit(broker, hold_id, **arguments)
        untouched = await broker.store.invocation(hold_id)
        assert untouched is not None
        assert untouched.state == "held"
        assert await broker.store.held_arguments(hold_id) == b'{"amount":300.0}'


@pytest.mark.anyio
async def test_an_edit_that_costs_more_than_is_left_changes_nothing(tmp_path: Path) -> None:
    async with broker_with(tmp_path, EDITED, stdio=STDIO) as broker:
        hold_id = await asked_to_pay(broker, 100.0)
        await asked_to_pay(broker, 450.0)
        with pytest.raises(Exception, match="quota budget"):
            await edit(broker, hold_id, amount=200.0)
        (budget,) = await broker.store.quotas(broker.clock.now_ms())
        assert budget.left == 50_000_000
        await edit(broker, hold_id, amount=150.0)
        assert (await until_state(broker, hold_id, "succeeded")).effect == "done"


@pytest.mark.anyio
async def test_of_an_edit_and_an_approval_one_wins(tmp_path: Path) -> None:
    async with broker_with(tmp_path, EDITED, stdio=STDIO) as broker:
        for round_ in range(10):
            hold_id = await asked_to_pay(broker, 51.0 + round_ / 10)
            won: list[str] = []

            async def decide(name: str, amount: float, hold_id: str = hold_id, won: list[str] = won) -> None:
                try:
                    if amount:
                        await edit(broker, hold_id, name, amount=amount)
                    else:
                        await broker.desk.review(hold_id, approve=True, reviewer=reviewer(name), via="test")
                    won.append(name)
                except Conflict:
                    pass

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(decide, "rita", 1.0)
                tasks.start_soon(decide, "raul", 0.0)
            (winner,) = won
            done = await until_state(broker, hold_id, "succeeded")
            assert done.hold is not None
            assert (done.kept["amount"] == 1.0) == (winner == "rita") == bool(done.hold.edited_by)
