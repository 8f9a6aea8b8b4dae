"""One call, one trace: from the agent's span to the backend, received by a real OTLP/HTTP receiver."""

from __future__ import annotations

import gzip
import sqlite3
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anyio
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from broker.errors import BrokerError, SettingsError
from broker.model.hold import Review
from tests.downstream import answering
from tests.premises import House, house_with
from tests.records import open_store
from tests.world import agent, perform, settings_in, until_state

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(find_spec("opentelemetry.sdk") is None, reason="the extra otel is not installed"),
]

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SECRET = "hunter2-in-an-argument"


def tools(url: str) -> str:
    return f"""
kind: backend
name: orders
http: {{base_url: "{url}", allow_private: true}}
---
kind: tool
name: refund
effect: write
scopes: [notes.write]
backend: orders
input:
  type: object
  properties: {{amount: {{type: number}}, note: {{type: string}}}}
  required: [amount]
  additionalProperties: false
http: {{method: POST, path: /refunds}}
---
kind: policy
name: care
tools: [refund]
rules:
  - {{id: large, when: args.amount > 100.0, effect: hold, reason: large amounts need a person}}
"""


@dataclass
class Collector:
    spans: list[Any] = field(default_factory=list[Any])
    raw: bytes = b""

    async def __call__(self, request: Request) -> Response:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        body = await request.body()
        body = gzip.decompress(body) if request.headers.get("content-encoding") == "gzip" else body
        assert request.headers["x-key"] == "collector-key"
        self.raw += body
        message: Any = ExportTraceServiceRequest()
        message.ParseFromString(body)
        for resource in message.resource_spans:
            assert ("service.name", "broker") in {(a.key, a.value.string_value) for a in resource.resource.attributes}
            self.spans += [span for scope in resource.scope_spans for span in scope.spans]
        return Response(b"", media_type="application/x-protobuf")

    def named(self, name: str, kind: int | None = None) -> Any:
        (found,) = [span for span in self.spans if span.name == name and kind in (None, span.kind)]
        return found


HANDED_ON = """select 1 from follower join entry e on e.id <= upto
    where name = 'traces:holds' and e.call_id = ? and e.kind = 'review'"""
SERVER, CLIENT = 2, 3  # SpanKind of the protocol


def facts(span: Any) -> dict[str, Any]:
    return {one.key: one.value.string_value or one.value.int_value for one in span.attributes}


@dataclass
class Traced:
    house: House
    collector: Collector
    asked: list[Any]


@asynccontextmanager
async def traced(folder: Path, **keys: Any) -> AsyncGenerator[Traced]:
    """All spans have arrived when it has been left."""
    collector = Collector()
    async with answering(JSONResponse({"ok": True})) as (url, asked), answering(collector) as (otlp, _):
        to = {"url": f"{otlp}/v1/traces", "headers": ["x-key: collector-key"], **keys}
        async with house_with(folder, tools(url), traces=to) as house:
            house.person("rita")
            yield Traced(house, collector, asked)


async def refund(house: House, amount: float, **more: Any) -> None:
    caller = agent("bot", user="ann", scopes=["notes.write"], issuer="settings")
    await perform(house.broker, "refund", {"amount": amount, "note": SECRET}, caller, may_wait=False, **more)


async def test_a_call_is_one_trace_from_the_agent_to_the_backend(tmp_path: Path) -> None:
    async with traced(tmp_path) as it:
        await refund(it.house, 5, trace_parent=f"00-{TRACE}-{PARENT}-01")
    request, sent = it.collector.named("tools/call refund", SERVER), it.collector.named("tools/call refund", CLIENT)
    assert {span.trace_id.hex() for span in it.collector.spans} == {TRACE}
    assert request.parent_span_id.hex() == PARENT
    stages = {span.name for span in it.collector.spans} - {"tools/call refund"}
    assert stages == {"resolve", "validate", "authorise", "admit", "record"}
    assert {span.parent_span_id for span in it.collector.spans if span is not request} == {request.span_id}
    ((received, _),) = it.asked
    assert received.headers["traceparent"] == f"00-{TRACE}-{sent.span_id.hex()}-01"
    told = {
        "mcp.method.name": "tools/call",
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "refund",
        "gen_ai.agent.name": "bot",
        "broker.state": "succeeded",
    }
    assert facts(request).items() >= told.items()
    assert (facts(sent)["broker.backend"], facts(sent)["http.response.status_code"]) == ("orders", 200)
    assert SECRET.encode() not in it.collector.raw and b"ann" not in it.collector.raw


async def test_waiting_for_a_person_is_a_span_of_its_own_in_the_same_trace(tmp_path: Path) -> None:
    async with traced(tmp_path) as it:
        with pytest.raises(BrokerError) as held:
            await refund(it.house, 500, trace_parent=f"00-{TRACE}-{PARENT}-01")
        hold_id = str(held.value.facts["hold_id"])
        await anyio.sleep(0.2)
        await it.house.post(f"/api/holds/{hold_id}/approve", "rita")
        await until_state(it.house.broker, hold_id, "succeeded")
    request, wait = it.collector.named("tools/call refund", SERVER), it.collector.named("hold")
    sent = it.collector.named("tools/call refund", CLIENT)
    assert {span.trace_id.hex() for span in it.collector.spans} == {TRACE}
    assert wait.parent_span_id == sent.parent_span_id == request.span_id
    assert wait.end_time_unix_nano - wait.start_time_unix_nano > 150_000_000
    assert wait.end_time_unix_nano <= sent.start_time_unix_nano + 50_000_000
    assert facts(request)["broker.state"] == "held"
    ((received, _),) = it.asked
    assert received.headers["traceparent"].split("-")[2] == sent.span_id.hex()


@pytest.mark.parametrize("by", ["console", "command"])
async def test_a_wait_that_ends_without_a_run_is_a_span_too(tmp_path: Path, by: str) -> None:
    async with traced(tmp_path) as it:
        with pytest.raises(BrokerError) as held:
            await refund(it.house, 500, trace_parent=f"00-{TRACE}-{PARENT}-01")
        hold_id = str(held.value.facts["hold_id"])
        await anyio.sleep(0.2)
        if by == "console":
            await it.house.post(f"/api/holds/{hold_id}/deny", "rita", {"reason": "no"})
        else:  # another process, which traces nothing
            store = await open_store(tmp_path)
            now_ms = it.house.broker.clock.now_ms()
            await store.review(Review(hold_id, "reject", "rita", "no", now_ms, "cli"))
            await store.aclose()
        await until_state(it.house.broker, hold_id, "rejected")
        with anyio.fail_after(10), closing(sqlite3.connect(tmp_path / "broker.db")) as db:
            while db.execute(HANDED_ON, (hold_id,)).fetchone() is None:
                await anyio.sleep(0.05)
    wait = it.collector.named("hold")
    assert wait.trace_id.hex() == TRACE
    assert wait.parent_span_id == it.collector.named("tools/call refund", SERVER).span_id
    assert wait.end_time_unix_nano - wait.start_time_unix_nano > 150_000_000
    assert facts(wait)["broker.state"] == "rejected"
    assert it.asked == []


async def test_a_refusal_is_an_error_with_its_code_and_a_name_nobody_knows_is_no_name(tmp_path: Path) -> None:
    async with traced(tmp_path) as it:
        with suppress(BrokerError):
            await perform(it.house.broker, "no-such-tool-at-all", {"x": SECRET}, agent("bot"))
        with suppress(BrokerError):
            await refund(it.house, "much")  # type: ignore[arg-type]
    errors = sorted(facts(span)["error.type"] for span in it.collector.spans if span.kind == SERVER)
    assert errors == ["invalid_arguments", "unknown_tool"]
    assert b"no-such-tool-at-all" not in it.collector.raw and SECRET.encode() not in it.collector.raw


async def test_the_agent_decides_whether_its_trace_is_kept(tmp_path: Path) -> None:
    async with traced(tmp_path) as it:
        await refund(it.house, 5, trace_parent=f"00-{TRACE}-{PARENT}-00")
        await refund(it.house, 6)
    assert TRACE not in {span.trace_id.hex() for span in it.collector.spans}
    assert len([span for span in it.collector.spans if span.kind == SERVER]) == 1
    assert it.asked[0][0].headers["traceparent"].endswith("-00")
    call_id = it.asked[1][0].headers["x-broker-call-id"]
    assert it.asked[1][0].headers["traceparent"].split("-")[1] == call_id.replace("-", "")


async def test_a_collector_that_is_away_costs_no_call(tmp_path: Path) -> None:
    async with answering(JSONResponse({})) as (url, asked):
        keys = {"url": "http://127.0.0.1:9/v1/traces"}
        async with house_with(tmp_path, tools(url), traces=keys) as house:
            for amount in range(1, 5):
                await refund(house, amount)
        assert len(asked) == 4


def test_a_header_without_a_value_is_refused_with_the_settings(tmp_path: Path) -> None:
    with pytest.raises(SettingsError):
        settings_in(tmp_path, "", traces={"url": "http://127.0.0.1:1", "headers": ["hunter2"]})
