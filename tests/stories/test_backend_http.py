"""HTTP APIs as tools, against a real server on a port: what arrives there, and what comes back."""

from __future__ import annotations

import anyio
import orjson
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from broker.backends.http import KIND
from broker.errors import BrokerError, InvalidArguments, Rejected, TimedOut, Unavailable
from broker.model.tool import Tool
from broker.ports import Backend
from tests.downstream import a_call, answering, ask, house, http_tool, listener, opened, serving, text_of

pytestmark = pytest.mark.anyio

REFUND = {
    "method": "POST",
    "path": "/orders/{order_id}/refunds",
    "query": {"expand": {"const": "lines"}},
    "headers": {"X-Tenant": "tenant"},
    "body": {"amount": "amount", "meta": {"by": {"const": "broker"}}},
}
REFUND_SCHEMA = {"order_id": {"type": "string"}, "amount": {"type": "number"}}


async def test_a_call_becomes_exactly_the_declared_request() -> None:
    async with (
        house() as where,
        answering(JSONResponse({"id": 7})) as (url, asked),
        opened(where, "http", {"base_url": f"{url}/v1", "allow_private": True}) as backend,
    ):
        tool = http_tool(REFUND, REFUND_SCHEMA, "tenant")
        call = a_call("id-1", trace_parent="00-" + "a" * 32 + "-" + "b" * 16 + "-01")
        answer = await ask(backend, tool, call, order_id="A/1 ü", amount=12.5, tenant="acme")
    request, body = asked[0]
    assert (request.method, request.scope["raw_path"]) == ("POST", b"/v1/orders/A%2F1%20%C3%BC/refunds")
    assert request.scope["query_string"] == b"expand=lines"
    assert orjson.loads(body) == {"amount": 12.5, "meta": {"by": "broker"}}
    assert answer.structured == {"id": 7}
    assert text_of(answer) == '{"id":7}'
    assert (answer.is_error, answer.status) == (False, "HTTP 200")


async def test_nothing_but_the_brokers_own_headers_leaves() -> None:
    async with (
        house() as where,
        answering(JSONResponse({})) as (url, asked),
        opened(where, "http", {"base_url": url, "allow_private": True, "headers": {"X-Shop": "1"}}) as backend,
    ):
        call = a_call("id-1", meta={"authorization": "Bearer agent"}, capabilities={"cookie": "x"})
        await ask(backend, http_tool({"method": "GET", "path": "/"}), call)
    assert dict(asked[0][0].headers) == {
        "host": url.removeprefix("http://"),
        "connection": "keep-alive",
        "accept": "application/json, text/*",
        "accept-encoding": "gzip, deflate",
        "user-agent": asked[0][0].headers["user-agent"],
        "x-shop": "1",
        "idempotency-key": "id-1",
        "x-broker-call-id": "id-1",
    }
    assert asked[0][0].headers["user-agent"].startswith("broker/")


async def test_a_header_in_latin_1_arrives_as_it_is() -> None:
    tool = http_tool({"method": "GET", "path": "/", "headers": {"X-Who": "who"}}, {"who": {"type": "string"}})
    async with house() as where, answering(JSONResponse({})) as (url, asked):
        spec = {"base_url": url, "allow_private": True, "headers": {"X-Shop": "Café"}}
        async with opened(where, "http", spec) as backend:
            await ask(backend, tool, who="Zoë")
    assert (asked[0][0].headers["x-who"], asked[0][0].headers["x-shop"]) == ("Zoë", "Café")


async def test_no_cookie_comes_back() -> None:
    cookie = JSONResponse({}, headers={"Set-Cookie": "session=other-caller; Path=/"})
    async with (
        house() as where,
        answering(cookie) as (url, asked),
        opened(where, "http", {"base_url": url, "allow_private": True}) as backend,
    ):
        for _ in range(2):
            await ask(backend, http_tool({"method": "GET", "path": "/"}))
    assert "cookie" not in asked[1][0].headers


@pytest.mark.parametrize(
    ("answer", "text", "structured"),
    [
        (JSONResponse([1, "a"]), '[1,"a"]', {"result": [1, "a"]}),
        (JSONResponse(None), "null", {"result": None}),
        (PlainTextResponse("grüß"), "grüß", None),
        (Response(b"gr\xfc\xdf", media_type="text/plain; charset=ISO-8859-1"), "grüß", None),
        (Response(status_code=204), "done (HTTP 204)", None),
        (Response(status_code=201), "done (HTTP 201)", None),
    ],
)
async def test_answers_of_each_kind(answer: Response, text: str, structured: object) -> None:
    async with (
        house() as where,
        answering(answer) as (url, _),
        opened(where, "http", {"base_url": url, "allow_private": True}) as backend,
    ):
        got = await ask(backend, http_tool({"method": "GET", "path": "/"}))
    assert (text_of(got), got.structured) == (text, structured)


@pytest.mark.parametrize(
    ("status", "says", "effect"),
    [
        (400, "did not understand", "done"), (401, "the broker's credential", "done"), (403, "does not allow", "done"),
        (404, "has nothing", "done"), (409, "present state", "done"), (418, "refused", "done"), (422, "values", "done"),
        (429, "fewer calls", "done"), (500, "failed", "done"), (502, "unknown", "unknown"), (503, "not able", "done"),
        (504, "unknown", "unknown"),
    ],
)  # fmt: skip
async def test_an_error_status_keeps_its_meaning(status: int, says: str, effect: str) -> None:
    refusal = JSONResponse({"detail": "order 7 is closed"}, status, headers={"Retry-After": "3"})
    async with (
        house() as where,
        answering(refusal) as (url, asked),
        opened(where, "http", {"base_url": url, "allow_private": True}) as backend,
    ):
        with pytest.raises(Rejected) as error:
            await ask(backend, http_tool({"method": "POST", "path": "/"}))
    assert says in error.value.message
    assert "order 7 is closed" in error.value.message
    assert (error.value.facts["http_status"], error.value.effect) == (status, effect)
    assert error.value.facts.get("retry_after_ms") == (3000 if status in (429, 503) else None)
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("header", "wait_ms"),
    [("0", 0), ("1000000000", 86_400_000), ("soon", None), ("-1", None), ("", None), ("1.5", None),
     ("Fri, 15 Jan 2027 08:00:10 GMT", 10_000), ("Fri, 15 Jan 2020 08:00:10 GMT", 0)],
)  # fmt: skip
async def test_retry_after_is_seconds_or_a_date_or_ignored(header: str, wait_ms: int | None) -> None:
    async with (
        house() as where,
        answering(Response(status_code=429, headers={"Retry-After": header})) as (url, _),
        opened(where, "http", {"base_url": url, "allow_private": True}) as backend,
    ):
        with pytest.raises(Rejected) as error:
            await ask(backend, http_tool({"method": "POST", "path": "/"}))
    assert error.value.facts.get("retry_after_ms") == wait_ms


async def test_an_error_text_shows_no_secret_of_ours() -> None:
    async def echo(request: Request) -> Response:
        return PlainTextResponse(f"bad token {request.headers['authorization']}\x1b[31m", 403)

    async with house() as where, answering(echo) as (url, _):
        where.values["${env:TOKEN}"] = "canary-token"
        credential = {"header": "Authorization", "value": "Bearer ${env:TOKEN}"}
        async with opened(where, "http", {"base_url": url, "allow_private": True, "credential": credential}) as backend:
            with pytest.raises(Rejected) as error:
                await ask(backend, http_tool({"method": "GET", "path": "/"}))
    assert "canary" not in error.value.message
    assert "bad token Bearer [redacted] [31m" in error.value.message


async def test_an_idempotent_tool_is_tried_again_under_the_same_key() -> None:
    async with (
        house() as where,
        answering(Response(status_code=503), JSONResponse({"ok": True})) as (url, asked),
        opened(where, "http", {"base_url": url, "allow_private": True}) as backend,
    ):
        answer = await ask(backend, http_tool({"method": "POST", "path": "/"}, idempotent=True))
    assert answer.structured == {"ok": True}
    assert len({request.headers["idempotency-key"] for request, _ in asked}) == 1
    assert len(asked) == 2


@pytest.mark.parametrize(("tool", "status", "times"), [("write", 503, 1), ("read", 503, 3), ("read", 500, 1)])
async def test_what_is_not_idempotent_or_not_listed_is_not_tried_again(tool: str, status: int, times: int) -> None:
    async with house() as where, answering(Response(status_code=status)) as (url, asked):
        spec = {"base_url": url, "allow_private": True, "retry": {"attempts": 3}}
        async with opened(where, "http", spec) as backend:
            with pytest.raises(Rejected):
                await ask(backend, http_tool({"method": "GET", "path": "/"}, effect=tool))
    assert len(asked) == times


async def test_an_earlier_attempt_that_left_is_not_forgotten() -> None:
    async def hang(_: Request) -> Response:
        await anyio.sleep(20)
        return Response()

    async with (
        house() as where,
        answering(Response(status_code=503), hang) as (url, _),
        opened(where, "http", {"base_url": url, "allow_private": True, "timeout": "400ms"}) as backend,
    ):
        with pytest.raises(TimedOut) as error:
            await ask(backend, http_tool({"method": "GET", "path": "/"}, effect="read"))
    assert error.value.effect == "unknown"


async def test_a_backend_nobody_listens_for_is_unavailable_and_then_left_alone_until_it_is_back() -> None:
    closed = listener()
    port = closed.getsockname()[1]
    closed.close()
    tool = http_tool({"method": "POST", "path": "/"})

    async def fine(_: Request) -> Response:
        return JSONResponse({})

    async with (
        house() as where,
        opened(where, "http", {"base_url": f"http://127.0.0.1:{port}", "allow_private": True}) as backend,
    ):
        assert backend.health.state == "up"
        for _ in range(5):
            with pytest.raises(Unavailable, match="refused") as error:
                await ask(backend, tool)
            assert error.value.effect == "none"
        assert (backend.health.state, backend.health.detail) == ("down", "connection refused")
        with pytest.raises(Unavailable, match="5 times in a row"):
            await ask(backend, tool)
        async with serving(Starlette(routes=[Route("/", fine, methods=["POST"])]), port):
            with anyio.fail_after(10):
                await until_back(backend, tool)
        assert backend.health.detail == ""


async def until_back(backend: Backend, tool: Tool) -> None:
    while True:
        try:
            await ask(backend, tool)
            return
        except Unavailable as refused:
            await anyio.sleep(refused.facts["retry_after_ms"] / 1000)


async def test_a_full_bulkhead_names_its_limit_and_sends_nothing() -> None:
    release = anyio.Event()
    entered = anyio.Event()

    async def wait(_: Request) -> Response:
        entered.set()
        await release.wait()
        return JSONResponse({})

    async with house() as where, answering(wait) as (url, asked):
        spec = {"base_url": url, "allow_private": True, "concurrent": 1, "queue_timeout": "10ms"}
        async with opened(where, "http", spec) as backend, anyio.create_task_group() as tasks:
            tool = http_tool({"method": "POST", "path": "/"})
            tasks.start_soon(ask, backend, tool)
            await entered.wait()
            with pytest.raises(Unavailable, match="concurrent") as error:
                await ask(backend, tool)
            assert error.value.effect == "none"
            release.set()
        assert len(asked) == 1


async def test_a_missing_secret_sends_nothing_and_a_rotated_one_works_at_once() -> None:
    async with house() as where, answering(JSONResponse({})) as (url, asked):
        credential = {"header": "X-Api-Key", "value": "${file:key}"}
        async with opened(where, "http", {"base_url": url, "allow_private": True, "credential": credential}) as backend:
            tool = http_tool({"method": "GET", "path": "/"})
            with pytest.raises(Unavailable, match="file:key"):
                await ask(backend, tool)
            assert not asked
            for secret in ("first", "second"):
                where.values["${file:key}"] = secret + "\n"
                await ask(backend, tool)
    assert [request.headers["x-api-key"] for request, _ in asked] == ["first", "second"]


class TokenServer:
    """An authorization server and an API in one: tokens token-1, token-2, …; only the last one is accepted."""

    def __init__(self) -> None:
        self.forms: list[bytes] = []
        self.refuses = False
        self.valid = ""
        self.app = Starlette(routes=[Route("/token", self.token, methods=["POST"]), Route("/api", self.api)])

    async def token(self, request: Request) -> Response:
        self.forms.append(await request.body())
        if self.refuses:
            return JSONResponse({"error": "invalid_client", "error_description": "canary-secret"}, 401)
        self.valid = f"token-{len(self.forms)}"
        return JSONResponse({"access_token": self.valid, "token_type": "Bearer", "expires_in": 3600})

    async def api(self, request: Request) -> Response:
        fine = request.headers.get("authorization") == f"Bearer {self.valid}"
        return JSONResponse({"fine": fine}, 200 if fine else 401)


async def test_client_credentials_are_asked_for_once_and_renewed_when_refused() -> None:
    server = TokenServer()
    async with house() as where, serving(server.app) as url:
        where.values["${env:SECRET}"] = "canary-secret"
        oauth = {
            "token_url": f"{url}/token",
            "client_id": "broker",
            "client_secret": "${env:SECRET}",
            "scope": "orders.read",
            "resource": "https://api.example",
            "allow_private": True,
        }
        async with opened(
            where, "http", {"base_url": url, "allow_private": True, "credential": {"oauth": oauth}}
        ) as backend:
            tool = http_tool({"method": "GET", "path": "/api"})
            async with anyio.create_task_group() as tasks:
                for _ in range(10):
                    tasks.start_soon(ask, backend, tool)
            assert len(server.forms) == 1
            assert b"resource=https%3A%2F%2Fapi.example" in server.forms[0]
            assert b"scope=orders.read" in server.forms[0]
            server.valid = "revoked"
            assert (await ask(backend, tool)).structured == {"fine": True}
            assert len(server.forms) == 2

            server.refuses, server.valid = True, "revoked again"
            with pytest.raises(Unavailable, match="invalid_client") as error:
                await ask(backend, tool)
            assert "canary" not in error.value.message


async def test_a_value_its_place_cannot_carry_is_refused_before_anything_leaves() -> None:
    async with (
        house() as where,
        answering(JSONResponse({})) as (url, asked),
        opened(where, "http", {"base_url": url, "allow_private": True}) as backend,
    ):
        with pytest.raises(InvalidArguments) as error:
            await ask(backend, http_tool(REFUND, REFUND_SCHEMA, "tenant"), order_id="..", amount=1, tenant="t")
    assert error.value.effect == "none"
    assert not asked


async def test_a_redirect_to_another_server_is_not_followed_there() -> None:
    async with (
        house() as where,
        answering(JSONResponse({})) as (other, reached),
        answering(RedirectResponse(other)) as (url, _),
        opened(where, "http", {"base_url": url, "allow_private": True}) as backend,
    ):
        with pytest.raises(Rejected, match="redirect"):
            await ask(backend, http_tool({"method": "GET", "path": "/"}))
    assert not reached


@pytest.mark.parametrize(
    "spec",
    [
        {"base_url": "http://api.example"},
        {"base_url": "https://127.0.0.1"},
        {"base_url": "https://a@api.example"},
        {"base_url": "https://api.example", "headers": {"Authorization": "x"}},
        {"base_url": "https://api.example", "headers": {"X-A": "a\nb"}},
        {"base_url": "https://api.example", "credential": {"header": "Authorization", "value": "Bearer literal"}},
        {"base_url": "https://api.example", "credential": {"header": "Host", "value": "${env:X}"}},
        {"base_url": "https://api.example", "credential": {}},
        {"base_url": "https://api.example", "tls": {"verify": False}},
        {"base_url": "https://api.example", "timeout": "1h30"},
        {"base_url": "https://api.example", "timout": "1s"},
        {"base_url": "https://api.example", "concurrent": 0},
    ],
)
def test_a_wrong_backend_is_refused_at_load(spec: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        KIND.Spec.model_validate(spec)
    assert KIND.Spec.model_validate({"base_url": "https://api.example", "timeout": "5s"})


async def test_tls_is_verified(tmp_path: object) -> None:
    async with house() as where, answering(JSONResponse({})) as (url, _):
        spec = {"base_url": url.replace("http:", "https:"), "allow_private": True}
        async with opened(where, "http", spec) as backend:
            with pytest.raises(BrokerError) as error:
                await ask(backend, http_tool({"method": "GET", "path": "/"}))
    assert isinstance(error.value, Unavailable)
    assert error.value.effect == "none"
