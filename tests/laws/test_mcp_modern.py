"""A plain call of the 2026-07-28 revision over HTTP: what is sent, which answers count, what an error says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import anyio
import orjson
import pytest
from starlette.requests import Request
from starlette.responses import Response

from broker.backends.address import Origin
from broker.backends.credential import Outbound
from broker.backends.exchange import Exchange
from broker.backends.mcp_modern import ModernCalls
from broker.backends.pace import Pace
from broker.backends.upstream import Upstream
from broker.errors import AnswerWithheld, BrokerError, Rejected, TimedOut
from tests.downstream import answering

pytestmark = pytest.mark.anyio

ID = 41
DONE: dict[str, Any] = {"content": [], "resultType": "complete"}
Step = tuple[float, float | None, str | None]


def frame(**fields: Any) -> bytes:
    return orjson.dumps({"jsonrpc": "2.0", "id": ID, **fields})


def event(data: bytes) -> bytes:
    return b"event: message\r\ndata: " + data + b"\r\n\r\n"


def progress(token: object, step: object) -> bytes:
    params = {"progressToken": token, "progress": step, "total": 2, "message": "half"}
    return event(orjson.dumps({"jsonrpc": "2.0", "method": "notifications/progress", "params": params}))


class Noted(Pace):
    """spent: for how many messages."""

    spent = 0.0

    async def spend(self, amount: float) -> None:
        self.spent += amount


async def call(
    *answers: Response,
    auth: Outbound | None = None,
    steps: list[Step] | None = None,
    pace: Pace | None = None,
    within_s: float = 30,
) -> tuple[dict[str, Any] | BrokerError, list[tuple[Request, bytes]]]:
    """What one call ends in, and what the server was asked."""

    async def tell(done: float, total: float | None, message: str | None) -> None:
        assert steps is not None
        steps.append((done, total, message))

    async with answering(*answers) as (url, asked):
        origin = Origin.parse(url, allow_private=True)
        upstream = Upstream(
            "The peer", origin, allow_private=True, cap=100_000, connections=2, connect_s=within_s, tls=None
        )
        calls = ModernCalls("peer", "/mcp", upstream, auth, lambda: 0, pace=pace or Pace())
        exchange = Exchange(anyio.current_time() + within_s, {"Idempotency-Key": "k"})
        try:
            with anyio.fail_after(within_s):
                params = {"name": "t", "arguments": {"a": 1}, "_meta": {}}
                headers = {"Mcp-Name": "t"}
                return await calls.call(ID, params, headers, exchange, None if steps is None else tell), asked
        except TimeoutError:
            return exchange.overdue("peer", within_s), asked
        except BrokerError as error:
            return error, asked
        finally:
            await upstream.aclose()


def json(body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(body, status, headers, "application/json")


def events(*parts: bytes) -> Response:
    return Response(b"".join(parts), media_type="text/event-stream")


def one_event(body: bytes) -> Response:
    return events(event(body))


async def test_one_post_carries_the_call() -> None:
    result, asked = await call(json(frame(result=DONE)))
    assert result == DONE
    request, body = asked[0]
    assert (request.method, request.url.path) == ("POST", "/mcp")
    assert orjson.loads(body) == {
        "jsonrpc": "2.0",
        "id": ID,
        "method": "tools/call",
        "params": {"name": "t", "arguments": {"a": 1}, "_meta": {}},
    }
    assert request.headers["accept"] == "application/json, text/event-stream"
    assert (request.headers["mcp-name"], request.headers["idempotency-key"]) == ("t", "k")


async def test_progress_of_this_call_is_passed_on_and_of_no_other() -> None:
    steps: list[Step] = []
    parts = (progress(ID, 1), progress(7, 1), progress(ID, "x"), progress(ID, True), event(frame(result=DONE)))
    result, _ = await call(events(*parts, progress(ID, 2)), steps=steps)
    assert result == DONE
    assert steps == [(1.0, 2.0, "half")]


async def test_what_is_no_answer_counts_as_talk_and_the_answer_does_not() -> None:
    pace = Noted()
    for _ in range(3):
        result, _ = await call(one_event(frame(result=DONE)), pace=pace)
        assert (result, pace.spent) == (DONE, 0)
    result, _ = await call(events(progress(7, 1), progress(ID, 1), event(frame(result=DONE))), pace=pace)
    assert (result, pace.spent) == (DONE, 2)


@pytest.mark.parametrize("other", [ID + 1, str(ID), None, float(ID), True])
@pytest.mark.parametrize("dress", [json, one_event])
async def test_an_answer_with_another_id_is_none(other: object, dress: Callable[[bytes], Response]) -> None:
    answer = dress(orjson.dumps({"jsonrpc": "2.0", "id": other, "result": DONE}))
    result, _ = await call(answer, within_s=0.5)
    assert isinstance(result, TimedOut)


@pytest.mark.parametrize(
    "body",
    [
        b"null", b"[]", b"1", b'{"jsonrpc":"1.0","id":41,"result":{}}', frame(), frame(result=[]), frame(result=None),
        frame(result=DONE, error={"code": 1, "message": "x"}), frame(error={"code": "1", "message": "x"}),
        frame(error={"code": 1}), frame(result=DONE) + b"{}", b'{"jsonrpc":"2.0","id":41,"id":41,"result":{}}',
    ],
)  # fmt: skip
async def test_what_is_no_answer_is_withheld(body: bytes) -> None:
    for response in (json(body), events(event(body))):
        result, _ = await call(response)
        assert isinstance(result, AnswerWithheld), result


@pytest.mark.parametrize("status", [200, 400, 404, 500])
async def test_an_error_keeps_its_code(status: int) -> None:
    refused = frame(error={"code": -32602, "message": "no\nsuch tool"})
    result, _ = await call(json(refused, status))
    assert isinstance(result, Rejected)
    assert (result.facts["rpc_code"], "no such tool" in result.message) == (-32602, True)


async def test_a_status_of_a_proxy_counts_more_than_its_body() -> None:
    result, _ = await call(json(frame(error={"code": 1, "message": "x"}), 429, {"Retry-After": "2"}))
    assert isinstance(result, Rejected)
    assert (result.facts["http_status"], result.facts["retry_after_ms"]) == (429, 2000)


class Renewing(Outbound):
    """Tokens first and second."""

    async def header(self) -> tuple[str, str]:
        return "Authorization", "Bearer first"

    async def renewed(self, refused: str) -> tuple[str, str] | None:
        return ("Authorization", "Bearer second") if refused == "Bearer first" else None


async def test_a_refused_token_is_renewed_once() -> None:
    for answers, times in (
        ((Response(status_code=401), json(frame(result=DONE))), 2),
        ((Response(status_code=401),), 2),
    ):
        result, asked = await call(*answers, auth=Renewing())
        assert (result == DONE) == (len(answers) == 2)
        assert [request.headers["authorization"] for request, _ in asked] == ["Bearer first", "Bearer second"][:times]
