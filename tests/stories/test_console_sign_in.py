"""Signing in to the console somewhere else: at an OpenID issuer, and at another broker; what is no answer to what this
browser began opens nothing."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from joserfc.jwk import ECKey

from broker.model.directory import Client
from tests.consoles import ORDERS
from tests.issuer import CLIENT, issuing
from tests.issuing import GONE
from tests.premises import PASSWORD, House, house_with
from tests.world import until_state

pytestmark = pytest.mark.anyio

STRANGER = ECKey.generate_key("P-256", auto_kid=True)


@asynccontextmanager
async def browsing(house: House) -> AsyncGenerator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=house.url, trust_env=False, timeout=10, follow_redirects=True) as http:
        yield http


def hidden(page: httpx2.Response, name: str) -> str:
    found = re.search(rf'name="{name}" value="([^"]*)"', page.text)
    assert found, page.text
    return found[1].replace("&amp;", "&")


async def post(http: httpx2.AsyncClient, house: House, path: str, page: httpx2.Response, **form: str) -> Any:
    data = {"csrf": hidden(page, "csrf"), **form}
    return await http.post(path, data=data, headers={"Origin": house.url})


async def test_a_person_signs_in_at_the_operators_issuer_decides_and_signs_out(tmp_path: Path) -> None:
    async with issuing() as issuer, house_with(tmp_path, ORDERS, **issuer.settings) as house, browsing(house) as http:
        hold_id = await house.held("orders_refund", {"order_id": "1002", "amount": 500})
        page = await http.get(f"/console/holds/{hold_id}")
        assert page.url.path == f"/console/holds/{hold_id}"
        assert "Approve: run orders_refund now" in page.text
        await post(http, house, f"/console/holds/{hold_id}/approve", page)
        decided = await until_state(house.broker, hold_id, "succeeded")
        assert decided.hold is not None
        assert decided.hold.reviewer == f"rita@{issuer.url}"
        out = await post(http, house, "/console/sign-out", page)
        assert f'href="{issuer.url}/end?client_id={CLIENT}&amp;id_token_hint=' in out.text
        assert issuer.revoked[0] == "r1"
        assert len(issuer.revoked) == 2
        assert (await http.get("/console", follow_redirects=False)).status_code == 303


@pytest.mark.parametrize(
    "lie",
    [
        {"callback": {"iss": "https://evil.example"}},
        {"callback": {"iss": GONE}},
        {"callback": {"state": "of somebody else"}},
        {"callback": {"code": "stolen"}},
        {"callback": {"code": GONE, "error": "access_denied"}},
        {"reply": {"id_token": GONE}},
        {"reply": {"id_token": 7}},
        {"reply": {"access_token": GONE}},
        {"reply": {"access_token": "opaque"}},
        {"id": {"nonce": "another sign-in"}},
        {"id": {"nonce": GONE}},
        {"id": {"aud": "another-client"}},
        {"id": {"aud": [CLIENT, "another-client"]}},
        {"id": {"azp": "another-client"}},
        {"id": {"iss": "https://evil.example"}},
        {"id": {"exp": 1}},
        {"id": {"exp": GONE}},
        {"key": {"JWT": STRANGER}},
        {"key": {"at+jwt": STRANGER}},
        {"access": {"aud": "https://elsewhere.example"}},
        {"access": {"exp": 1}},
        {"access": {"iss": "https://evil.example"}},
    ],
    ids=lambda lie: " ".join(f"{part}:{','.join(fields)}" for part, fields in lie.items()),
)
async def test_what_is_not_the_answer_to_this_sign_in_opens_nothing(lie: dict[str, Any], tmp_path: Path) -> None:
    async with issuing() as issuer, house_with(tmp_path, ORDERS, **issuer.settings) as house, browsing(house) as http:
        issuer.lie = lie
        assert (await http.get("/console")).status_code in (400, 401)
        issuer.lie = {}
        assert (await http.get("/console", follow_redirects=False)).status_code == 303
        assert (await http.get("/console")).status_code == 200


async def test_an_expired_token_is_renewed_once_however_many_pages_ask(tmp_path: Path) -> None:
    async with (
        issuing(access_s=-27) as issuer,  # 30 s of leeway: good for three
        house_with(tmp_path, ORDERS, **issuer.settings) as house,
        browsing(house) as http,
    ):
        assert (await http.get("/console")).status_code == 200
        await anyio.sleep(3.1)
        codes: list[int] = []

        async def look() -> None:
            codes.append((await http.get("/console", follow_redirects=False)).status_code)

        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(look)
        assert codes == [200] * 5
        assert issuer.refreshed == 1


async def test_an_issuer_that_is_away_is_said_and_signing_out_still_works(tmp_path: Path) -> None:
    async with issuing() as issuer:
        settings = issuer.settings
    async with house_with(tmp_path, ORDERS, **settings) as house, browsing(house) as http:
        page = await http.get("/console")
        assert page.status_code == 503
        assert "cannot be reached" in page.text


async def test_another_broker_can_be_the_issuer(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    async with house_with(tmp_path / "b", ORDERS) as issuer:
        issuer.person("rita")
        console = {"issuer": issuer.url, "client_id": "desk", "scopes": ["broker.review"], "resource": issuer.url}
        trusted = [{"issuer": issuer.url, "audience": [issuer.url]}]
        async with (
            house_with(tmp_path / "a", ORDERS, auth={"issuers": trusted}, console=console) as house,
            browsing(house) as http,
        ):
            callback = f"{house.url}/console/callback"
            known = Client("desk", grants=("authorization_code",), redirect_uris=(callback,), scopes=None)
            issuer.broker.directory.add_client(known)
            page = await http.get("/console")
            form = {"name": "rita", "password": PASSWORD, "request": hidden(page, "request")}
            consent = await post(http, issuer, f"{issuer.url}/oauth/sign-in", page, **form)
            form = {"request": hidden(consent, "request"), "decision": "allow"}
            landed = await post(http, issuer, f"{issuer.url}/oauth/authorize", consent, **form)
            assert str(landed.url) == f"{house.url}/console"
            assert "Nothing to decide" in landed.text
            assert "rita" in landed.text


async def test_signing_out_everywhere_ends_every_browser_of_this_person_and_of_nobody_else(tmp_path: Path) -> None:
    async with (
        issuing() as issuer,
        house_with(tmp_path, ORDERS, **issuer.settings) as house,
        browsing(house) as here,
        browsing(house) as there,
        browsing(house) as other,
    ):
        page = await here.get("/console/me")
        await there.get("/console")
        assert "2 browsers" in (await here.get("/console/me")).text
        issuer.user = "raul"
        await other.get("/console")
        await post(here, house, "/console/sign-out", page, everywhere="yes")
        for http, status in ((here, 303), (there, 303), (other, 200)):
            assert (await http.get("/console", follow_redirects=False)).status_code == status


@pytest.mark.parametrize(("accept", "status"), [("text/html,*/*;q=0.8", 303), ("*/*", 200), ("application/json", 200)])
async def test_the_root_leads_people_to_the_inbox_and_tells_programs_what_this_is(
    accept: str, status: int, tmp_path: Path
) -> None:
    async with house_with(tmp_path, ORDERS) as house:
        answer = await house.http.get("/", headers={"Accept": accept})
        assert answer.status_code == status
        assert answer.headers.get("location") == ("/console" if status == 303 else None)
