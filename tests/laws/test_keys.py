"""Where an external issuer's keys come from: what happens when the issuer changes, lies, hangs or is gone."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import anyio
import pytest
from joserfc.errors import SecurityWarning
from joserfc.jwk import ECKey, OctKey, RSAKey
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from broker.auth import keys
from broker.auth.documents import http_client
from broker.auth.keys import DirectoryKeys, HttpKeys, public_keys
from broker.model.directory import SigningKey
from broker.ports import Directory
from tests.issuing import http_serving

pytestmark = pytest.mark.anyio


class Time:
    def __init__(self) -> None:
        self.at = 1000.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    time = Time()
    monkeypatch.setattr(keys, "monotonic", time)
    monkeypatch.setattr(keys, "FETCH_S", 30)  # a busy machine is no issuer in trouble
    return time


class Issuer:
    """Serves its keys, or whatever `answer` is set to."""

    def __init__(self) -> None:
        self.one, self.two = (ECKey.generate_key("P-256", auto_kid=True) for _ in range(2))
        self.served = [self.one]
        self.headers: dict[str, str] = {}
        self.answer: Callable[[], Awaitable[Response]] | None = None
        self.asked: list[str] = []
        self.metadata: dict[str, Any] = {}

    async def jwks(self, request: Request) -> Response:
        self.asked.append(request.url.path)
        if self.answer:
            return await self.answer()
        return JSONResponse({"keys": [key.as_dict(private=False) for key in self.served]}, headers=self.headers)

    async def document(self, request: Request) -> Response:
        self.asked.append(request.url.path)
        return JSONResponse(self.metadata) if self.metadata else Response(status_code=404)

    @asynccontextmanager
    async def running(self, *, discover: bool = False) -> AsyncGenerator[HttpKeys]:
        app = Starlette(
            routes=[
                Route("/jwks", self.jwks),
                Route("/.well-known/oauth-authorization-server", self.document),
                Route("/.well-known/openid-configuration", self.document),
            ]
        )
        async with http_serving(app) as url:
            self.url = url
            source = HttpKeys(url, "" if discover else f"{url}/jwks", http_client)
            try:
                yield source
            finally:
                await source.aclose()


@pytest.fixture
def issuer() -> Issuer:
    return Issuer()


def kid(key: ECKey) -> str:
    return str(key.kid)


async def test_a_known_key_is_fetched_once(issuer: Issuer, time: Time) -> None:
    async with issuer.running() as source:
        for _ in range(5):
            assert await source.key(kid(issuer.one))
        assert issuer.asked == ["/jwks"]


async def test_an_unknown_key_makes_it_look_again_once_per_interval(issuer: Issuer, time: Time) -> None:
    async with issuer.running() as source:
        assert await source.key(kid(issuer.one))
        issuer.served.append(issuer.two)
        for _ in range(20):
            assert await source.key("nobody's") is None
        assert len(issuer.asked) == 1
        time.at += 31
        assert await source.key(kid(issuer.two)), "rotated"
        assert await source.key("nobody's") is None
        assert len(issuer.asked) == 2


async def test_many_at_once_make_one_request(issuer: Issuer, time: Time) -> None:
    async with issuer.running() as source, anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(source.key, kid(issuer.one))
    assert len(issuer.asked) == 1


async def _failing() -> Response:
    return Response(status_code=500)


async def _hanging() -> Response:
    await anyio.sleep(2)
    return Response()


async def _huge() -> Response:
    return Response(b"[" + b" " * 10_000_000 + b"]", media_type="application/json")


async def _redirecting() -> Response:
    return RedirectResponse("http://127.0.0.1:9/keys")


async def _babbling() -> Response:
    return Response(b"<html>", media_type="text/html")


async def _listing() -> Response:
    return JSONResponse([])


@pytest.mark.parametrize("answer", [_failing, _hanging, _huge, _redirecting, _babbling, _listing])
async def test_an_issuer_in_trouble_is_remembered_until_its_keys_are_too_old(
    answer: Callable[[], Awaitable[Response]], issuer: Issuer, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    issuer.headers = {"Cache-Control": "public, max-age=600"}
    async with issuer.running() as source:
        assert await source.key(kid(issuer.one))
        issuer.answer = answer
        time.at += 599
        assert await source.key(kid(issuer.one)), "cached"
        time.at += 2
        with monkeypatch.context() as hurried:
            if answer is _hanging:
                hurried.setattr(keys, "FETCH_S", 0.3)
            assert await source.key(kid(issuer.one)) is None, "closed"
            assert await source.key(kid(issuer.one)) is None
        issuer.answer = None
        time.at += 11
        assert await source.key(kid(issuer.one)), "open again"


async def test_an_issuer_that_is_down_gives_no_key_and_no_error(time: Time) -> None:
    source = HttpKeys("http://127.0.0.1:9", "http://127.0.0.1:9/jwks", http_client)
    assert await source.key("any") is None
    await source.aclose()


async def test_keys_are_found_by_the_metadata_that_names_the_issuer(issuer: Issuer, time: Time) -> None:
    async with issuer.running(discover=True) as source:
        assert await source.key(kid(issuer.one)) is None
        assert len(issuer.asked) == 2
        for metadata in (
            {"issuer": "https://other.example", "jwks_uri": f"{issuer.url}/jwks"},
            {"issuer": issuer.url, "jwks_uri": "http://keys.example/jwks"},
            {"issuer": issuer.url, "jwks_uri": "file:///etc/passwd"},
            {"issuer": issuer.url, "jwks_uri": "https://169.254.169.254/jwks"},
            {"issuer": issuer.url},
        ):
            issuer.metadata = metadata
            time.at += 11
            assert await source.key(kid(issuer.one)) is None
        assert "/jwks" not in issuer.asked
        issuer.metadata = {"issuer": issuer.url, "jwks_uri": f"{issuer.url}/jwks"}
        time.at += 11
        assert await source.key(kid(issuer.one))


def test_only_keys_that_can_be_trusted_are_taken() -> None:
    good = ECKey.generate_key("P-256", parameters={"kid": "good"})
    with pytest.warns(SecurityWarning):
        weak = RSAKey.generate_key(1024, parameters={"kid": "weak"}).as_dict(private=False)
    shared = OctKey.generate_key(256, parameters={"kid": "shared"})
    nameless = {name: value for name, value in good.as_dict(private=False).items() if name != "kid"}
    secret = {**good.as_dict(private=True), "kid": "private"}
    found = public_keys(
        {
            "keys": [
                good.as_dict(private=False),
                {**good.as_dict(private=False), "kid": "enc", "use": "enc"},
                {**good.as_dict(private=False), "kid": "broken", "x": "AA"},
                weak,
                {**weak, "n": 7},
                shared.as_dict(private=True),
                nameless,
                secret,
                {"kty": "AKP", "kid": "later"},
                {"kty": ["EC"], "kid": "odd"},
                "text",
                None,
            ]
        }
    )
    assert set(found) == {"good", "private"}
    assert not found["private"].is_private


class SlowDirectory:
    """The one key of the embedded issuer, read in a moment and not at once. Counts how often it is read."""

    def __init__(self, key: ECKey) -> None:
        self._stored = SigningKey(str(key.kid), json.dumps(key.as_dict(private=True)), created_at_ms=0)
        self.reads = 0
        self.go_on = threading.Event()

    def signing_keys(self) -> tuple[SigningKey, ...]:
        self.reads += 1
        assert self.go_on.wait(10)
        return (self._stored,)


async def test_callers_that_come_while_the_embedded_keys_are_read_wait_for_them() -> None:
    signing = ECKey.generate_key("P-256", auto_kid=True)
    directory = SlowDirectory(signing)
    source = DirectoryKeys(cast("Directory", directory))
    found: list[bool] = []

    async def ask() -> None:
        found.append(await source.key(str(signing.kid)) is not None)

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(ask)
            await anyio.wait_all_tasks_blocked()
            directory.go_on.set()
    assert found == [True] * 8
    assert directory.reads == 1
