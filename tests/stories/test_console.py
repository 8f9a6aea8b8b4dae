"""The console, told over HTTP: who gets in, whose forms count, what a stranger learns. The browser's part is in
test_console_browser."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest

from broker.faces.console.pages.hold import previewed
from broker.model.invocation import InvocationQuery
from tests.consoles import ORDERS
from tests.premises import PASSWORD, House, house_with
from tests.world import agent, perform, records, until_state

pytestmark = pytest.mark.anyio


@pytest.fixture
async def house(tmp_path: Path) -> AsyncGenerator[House]:
    async with house_with(tmp_path, ORDERS) as house:
        house.person("rita")
        house.person("olga", tenant="other")
        yield house


@asynccontextmanager
async def browsing(house: House) -> AsyncGenerator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=house.url, trust_env=False, timeout=10, follow_redirects=True) as http:
        yield http


def hidden(page: httpx2.Response, name: str) -> str:
    found = re.search(rf'name="{name}" value="([^"]*)"', page.text)
    assert found, page.text
    return found[1].replace("&amp;", "&")


async def sign_in(http: httpx2.AsyncClient, house: House, name: str, path: str = "/console") -> httpx2.Response:
    page = await http.get(path)
    form = {"name": name, "password": PASSWORD, "csrf": hidden(page, "csrf"), "request": hidden(page, "request")}
    return await http.post("/oauth/sign-in", data=form, headers={"Origin": house.url})


def cookie(http: httpx2.AsyncClient) -> str:
    return next(value for name, value in http.cookies.items() if name.startswith("console"))


async def hold(house: House) -> str:
    return await house.held("orders_refund", {"order_id": "1002", "amount": 500})


async def test_whoever_signs_in_lands_where_he_wanted_with_a_new_cookie(house: House) -> None:
    hold_id = await hold(house)
    async with browsing(house) as http:
        planted = "p" * 43
        http.cookies.set(f"console-{house.url.rpartition(':')[2]}", planted, domain="127.0.0.1")
        landed = await sign_in(http, house, "rita", f"/console/holds/{hold_id}")
        assert landed.url.path == f"/console/holds/{hold_id}"
        assert "Approve: run orders_refund now" in landed.text
        assert cookie(http) != planted
        async with browsing(house) as thief:
            thief.cookies.set(f"console-{house.url.rpartition(':')[2]}", planted, domain="127.0.0.1")
            assert (await thief.get("/console", follow_redirects=False)).status_code == 303


async def test_signing_out_ends_it_on_the_server_here_and_at_the_issuer(house: House) -> None:
    async with browsing(house) as http:
        page = await sign_in(http, house, "rita")
        kept = dict(http.cookies)
        out = await http.post("/console/sign-out", data={"csrf": hidden(page, "csrf")}, headers={"Origin": house.url})
        assert out.status_code == 200
        for name, value in kept.items():
            http.cookies.set(name, value, domain="127.0.0.1")
        assert "<h1>Sign in</h1>" in (await http.get("/console")).text


async def test_a_person_whose_account_ends_is_out_at_the_next_click(house: House) -> None:
    async with browsing(house) as http:
        assert (await sign_in(http, house, "rita")).status_code == 200
        house.broker.directory.remove_account("rita")
        with anyio.fail_after(10):
            while (await http.get("/console", follow_redirects=False)).status_code == 200:
                await anyio.sleep(0.2)


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({}, 303),
        ({"csrf": "0" * 64}, 400),
        ({"csrf": ""}, 400),
        ({"Origin": "https://evil.example"}, 400),
        ({"Origin": "null"}, 400),
        ({"Origin": None}, 400),
        ({"Sec-Fetch-Site": "cross-site"}, 400),
        ({"Sec-Fetch-Site": "same-site"}, 400),
        ({"Content-Type": "text/plain"}, 400),
        ({"Cookie": ""}, 401),
    ],
)
async def test_only_a_form_of_ours_decides(house: House, change: dict[str, Any], status: int) -> None:
    hold_id = await hold(house)
    async with browsing(house) as http:
        page = await sign_in(http, house, "rita", f"/console/holds/{hold_id}")
        form = {"csrf": change.get("csrf", hidden(page, "csrf"))}
        headers = {"Origin": house.url, "Content-Type": "application/x-www-form-urlencoded"}
        headers |= {name: value for name, value in change.items() if name != "csrf" and value is not None}
        headers = {name: value for name, value in headers.items() if name not in change or change[name] is not None}
        answer = await http.post(
            f"/console/holds/{hold_id}/approve",
            data=form,
            headers=headers,
            follow_redirects=False,
        )
    assert answer.status_code == status
    state = (await until_state(house.broker, hold_id, "succeeded" if status == 303 else "held")).state
    assert (state == "succeeded") == (status == 303)


async def test_a_get_decides_nothing(house: House) -> None:
    hold_id = await hold(house)
    async with browsing(house) as http:
        await sign_in(http, house, "rita")
        for decision in ("approve", "deny"):
            await http.get(f"/console/holds/{hold_id}/{decision}")
            await http.request("HEAD", f"/console/holds/{hold_id}/{decision}")
    assert await until_state(house.broker, hold_id, "held")


async def test_another_tenants_record_does_not_exist(house: House) -> None:
    hold_id = await hold(house)
    async with browsing(house) as http:
        await sign_in(http, house, "olga")
        for path in (f"/console/holds/{hold_id}", f"/console/calls/{hold_id}"):
            assert (await http.get(path)).status_code == 404
        for path in ("/console", "/console/calls"):
            page = await http.get(path)
            assert page.status_code == 200
            assert hold_id not in page.text


@pytest.mark.parametrize(
    "then", ["https://evil.example", "//evil.example", "/\\evil.example", "/console\\evil", "/consoles", "/oauth/token"]
)
async def test_signing_in_leads_nowhere_else(house: House, then: str) -> None:
    async with browsing(house) as http:
        page = await http.get("/console/sign-in", params={"then": then})
        form = {"name": "rita", "password": PASSWORD, "csrf": hidden(page, "csrf"), "request": hidden(page, "request")}
        landed = await http.post("/oauth/sign-in", data=form, headers={"Origin": house.url})
        assert str(landed.url) == f"{house.url}/console"


async def test_a_sign_in_that_another_browser_began_opens_nothing(house: House) -> None:
    async with browsing(house) as attacker, browsing(house) as victim:
        page = await attacker.get("/console")
        form = {"name": "olga", "password": PASSWORD, "csrf": hidden(page, "csrf"), "request": hidden(page, "request")}
        step = await attacker.post("/oauth/sign-in", data=form, headers={"Origin": house.url}, follow_redirects=False)
        back = await attacker.get(step.headers["location"], follow_redirects=False)
        callback = back.headers["location"]
        assert "/console/callback?" in callback
        assert (await victim.get(callback)).status_code == 400
        assert (await attacker.get(callback)).status_code == 400  # a state is taken once, whoever showed it


async def test_every_answer_forbids_what_pages_do_not_need(house: House) -> None:
    hold_id = await hold(house)
    async with browsing(house) as http:
        await sign_in(http, house, "rita")
        paths = ["", "/calls", f"/calls/{hold_id}", f"/holds/{hold_id}", "/catalog", "/quotas", "/backends", "/record"]
        for path in [*paths, "/nothing", "/static/console.js", "/static/NOTICE", "/static/..%2f__init__.py"]:
            page = await http.get("/console" + path)
            policy = page.headers["content-security-policy"]
            assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy, path
            assert page.headers["x-content-type-options"] == "nosniff"
            assert (page.status_code == 200) == (path in (*paths, "/static/console.js")), path


async def test_the_record_is_verified_on_request(house: House) -> None:
    await hold(house)
    async with browsing(house) as http:
        await sign_in(http, house, "rita")
        page = await http.get("/console/record")
        found = await http.post("/console/record", data={"csrf": hidden(page, "csrf")}, headers={"Origin": house.url})
        assert "<b>Sound.</b>" in found.text


async def test_the_inbox_is_sorted_by_what_expires_first_filtered_by_its_url_and_paged(house: House) -> None:
    for number in range(30):
        await house.held("orders_refund", {"order_id": "1002", "amount": 100 + number}, name=f"bot-{number % 3}")
    async with browsing(house) as http:
        await sign_in(http, house, "rita")
        first = await http.get("/console")
        assert "<h1>30 calls to decide</h1>" in first.text
        shown = re.findall(r'id="card-([^"]+)"', first.text)
        assert len(shown) == 25
        waiting = await house.broker.store.invocations(InvocationQuery(states=("held",), oldest_first=True))
        assert shown == [one.call_id for one in waiting[:25]]  # all of one rule, so the oldest expires first
        following = re.search(r'href="(/console\?[^"]+)" rel="next"', first.text)
        assert following
        rest = await http.get(following[1].replace("&amp;", "&"))
        assert re.findall(r'id="card-([^"]+)"', rest.text) == [one.call_id for one in waiting[25:]]
        some = await http.get("/console?agent=bot-1&tool=orders_refund")
        assert len(re.findall(r'id="card-', some.text)) == 10
        assert "10 of 30: " in some.text
        assert "<h1>30 calls to decide</h1>" in some.text  # a filter never hides that more waits
        none = await http.get("/console?agent=bot-1' or 1=1 --")
        assert "0 of 30: " in none.text
        assert (await http.get("/console?sort=tool")).status_code == 400


async def test_a_reviewer_of_some_holds_sees_those_and_counts_those(house: House) -> None:
    house.person("raul", ["refunds.review"])
    await house.held("orders_refund", {"order_id": "1", "amount": 500})
    await house.held("orders_refund", {"order_id": "2", "amount": 5000})
    async with browsing(house) as http:
        page = await sign_in(http, house, "raul")
        assert "<h1>1 call to decide</h1>" in page.text
        assert "5000" in page.text
        assert "<title>(1) Inbox" in page.text
        assert "(1)</option>" not in page.text  # nor is there anything to choose


async def test_calls_are_filtered_by_their_url_and_a_wrong_filter_is_said(house: House) -> None:
    hold_id = await hold(house)
    async with browsing(house) as http:
        await sign_in(http, house, "rita")
        assert hold_id in (await http.get("/console/calls?state=held&tool=orders_refund")).text
        assert hold_id not in (await http.get("/console/calls?state=failed")).text
        assert hold_id not in (await http.get("/console/calls?tool=%25' or 1=1 --")).text
        assert (await http.get("/console/calls?state=asleep")).status_code == 400
        assert (await http.get("/console/calls?sort=tool;drop")).status_code == 400


async def test_a_person_sees_his_own_calls_however_his_name_is_spelled_and_nobody_elses(house: House) -> None:
    house.person("raul", ["refunds.review"])
    calls: dict[str, str] = {}
    for user in ("ＲAUL", "raul", "paul", ""):  # the first in fullwidth and capitals: the same person
        await perform(house.broker, "orders_get", {"order_id": "1"}, agent(user=user, issuer=house.url))
        (calls[user],) = [one.call_id for one in await records(house.broker, limit=1)]
    async with browsing(house) as http:
        await sign_in(http, house, "raul")
        shown = re.findall(r'href="/console/calls/([0-9a-f-]{36})"', (await http.get("/console/calls")).text)
        assert shown == [calls["raul"], calls["ＲAUL"]]
        for older in ("", f"?before={calls['raul']}"):
            table = (await http.get(f"/console/calls.csv{older}")).text
            assert (calls["raul"] in table) == (not older)
            assert calls["ＲAUL"] in table
            assert calls["paul"] not in table and calls[""] not in table


async def test_quotas_show_what_is_left_and_what_was_used_over_time_of_ones_own(house: House) -> None:
    house.person("raul", [])
    caller = agent(user="raul", issuer="settings", scopes=["notes.write"])
    await perform(house.broker, "orders_refund", {"order_id": "1", "amount": 10}, caller)
    async with browsing(house) as rita, browsing(house) as raul:
        page = await sign_in(rita, house, "rita", "/console/quotas?span=month")
        assert "Used of refunds-a-day as a table" in page.text
        assert re.search(r'<td class="number">1</td></tr>\n</tbody>', page.text)  # today
        assert "Last month</a>" in page.text
        assert (await rita.get("/console/quotas?span=century")).status_code == 400
        assert "Used of refunds-a-day" not in (await sign_in(raul, house, "raul", "/console/quotas")).text


@pytest.mark.parametrize(
    ("result", "lines"),
    [
        ({"content": [{"type": "text", "text": "one\ntwo\u202e"}], "isError": False}, ["one", "two\\u{202e}"]),
        ({"content": [{"type": "text", "text": '{"a":1}'}], "structuredContent": {"a": 1}}, ["{", '  "a": 1', "}"]),
        (
            {"content": [{"type": "text", "text": '{"a":2}'}], "structuredContent": {"a": 1}},
            ["{", '  "a": 2', "}", "{", '  "a": 1', "}"],
        ),
        ({"content": [], "_meta": {}}, ["{", '  "content": [],', '  "_meta": {}', "}"]),
        (
            {"content": [{"type": "text", "text": "x", "y": 1}]},
            ["{", '  "type": "text",', '  "text": "x",', '  "y": 1', "}"],
        ),
        ({"content": [{"type": "text", "text": "\ud800"}]}, ["\\u{d800}"]),
        ("odd", ['"odd"']),
    ],
    ids=range(7),
)
def test_a_preview_is_shown_as_what_it_says_and_nothing_of_it_is_left_out(result: Any, lines: list[str]) -> None:
    assert previewed(result) == lines
