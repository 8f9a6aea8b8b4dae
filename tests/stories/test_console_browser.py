"""The console in a real browser: a hold seen, decided and run; two people at once."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import anyio
import pytest
from playwright.async_api import Browser, Route, expect

from broker.errors import Denied
from tests.browser import PHONE, chromium, needed, window
from tests.consoles import ORDERS
from tests.premises import House, house_with
from tests.world import agent, perform, until_state

pytestmark = [pytest.mark.anyio, needed]


@pytest.fixture
async def house(tmp_path: Path) -> AsyncGenerator[House]:
    async with house_with(tmp_path, ORDERS) as house:
        for name in ("rita", "raul"):
            house.person(name)
        yield house


@pytest.fixture
async def browser() -> AsyncGenerator[Browser]:
    async with chromium() as browser:
        yield browser


def refund(amount: float, reason: str = "The armrest is broken") -> dict[str, object]:
    return {"order_id": "1002", "amount": amount, "reason": reason}


async def test_a_hold_appears_by_itself_is_approved_and_the_page_says_what_happened(
    house: House, browser: Browser
) -> None:
    async with window(browser, house) as rita:
        await rita.sign_in("rita")
        await expect(rita.page.locator("h1")).to_have_text("Nothing to decide")
        hold_id = await house.held("orders_refund", refund(120))
        await expect(rita.page.locator("h1")).to_have_text("1 call to decide")
        await expect(rita.page).to_have_title("(1) Inbox – broker")
        card = await rita.page.inner_text("[data-card]")
        for answer in ("bot for ann", "write", "orders", "refunds above 50 EUR", '"amount": 120', "left"):
            assert answer in card
        await rita.page.click("[data-open]")
        assert await rita.page.evaluate("document.activeElement.tagName") == "BODY"
        await rita.page.click("text=Approve: run orders_refund now")
        await rita.page.wait_for_selector("#hold[data-state=succeeded]")
        assert "Approved and done." in await rita.text()
        answer = await perform(
            house.broker,
            "broker_held_call",
            {"id": hold_id},
            agent(user="ann", scopes=["notes.write"], issuer="settings"),
        )
        assert answer.content[0]["text"] == "refunded"
        assert rita.strange == []


async def test_of_two_people_one_decides_and_the_other_sees_who_was_first(house: House, browser: Browser) -> None:
    hold_id = await house.held("orders_refund", refund(300))
    async with window(browser, house) as rita, window(browser, house, java_script_enabled=False) as raul:
        await rita.sign_in("rita", f"/console/holds/{hold_id}")
        await raul.sign_in("raul", f"/console/holds/{hold_id}")  # without script nothing tells him in time
        await rita.page.click("button.yes")
        await until_state(house.broker, hold_id, "succeeded")
        await raul.page.fill("#reason", "too much")
        await raul.page.click("button.no")
        told = await raul.text()
        assert "Your decision came too late" in told
        assert "Decided by rita@" in told
        assert (rita.strange, raul.strange) == ([], [])


async def test_the_keys_choose_open_and_deny_and_the_reason_reaches_the_agent(house: House, browser: Browser) -> None:
    await house.held("orders_refund", refund(100, "first"))
    hold_id = await house.held("orders_refund", refund(200, "second"))
    async with window(browser, house) as rita:
        await rita.sign_in("rita")
        await rita.page.wait_for_selector("[data-card]")
        for key in ("j", "j", "k", "j", "d"):
            await rita.page.keyboard.press(key)
        await rita.page.wait_for_url(f"**/holds/{hold_id}#deny")
        await rita.page.wait_for_timeout(800)  # keys count only once the page has been there for a moment
        await rita.page.keyboard.press("d")
        await rita.page.keyboard.type("a d j k are letters here")
        await rita.page.keyboard.press("Tab")
        await rita.page.keyboard.press("Enter")
        await rita.page.wait_for_selector("#hold[data-state=rejected]")
        with pytest.raises(Denied) as denied:
            caller = agent(user="ann", scopes=["notes.write"], issuer="settings")
            await perform(house.broker, "broker_held_call", {"id": hold_id}, caller)
        assert "a d j k are letters here" in denied.value.sentence
        assert rita.strange == []


async def test_a_hold_that_expires_while_it_is_looked_at_says_so(house: House, browser: Browser) -> None:
    hold_id = await house.held("orders_refund", refund(90))
    async with window(browser, house) as rita:
        await rita.sign_in("rita", f"/console/holds/{hold_id}")
        await rita.page.fill("#reason", "half a sent")
        await house.broker.store.sweep(house.broker.clock.now_ms() + 5 * 3_600_000)
        await rita.page.wait_for_selector("#hold[data-state=expired]")
        assert "Nobody decided in time" in await rita.text()


async def test_what_is_cut_says_so_and_can_be_seen_whole(house: House, browser: Browser) -> None:
    many = {f"line {number:04}": number for number in range(500)}
    hold_id = await house.held("orders_refund", {**refund(500), "more": many})
    async with window(browser, house) as rita:
        await rita.sign_in("rita", f"/console/holds/{hold_id}")
        assert "cut here" in await rita.text()
        assert "line 0499" not in await rita.text()
        await rita.page.click("text=more lines")
        await rita.page.wait_for_url("**all=1")
        assert "line 0499" in await rita.text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_every_page_fits_a_phone(house: House, browser: Browser, scheme: str) -> None:
    hold_id = await house.held("orders_refund", refund(500, "x" * 300))
    async with window(browser, house, viewport=PHONE, color_scheme=scheme) as rita:
        await rita.sign_in("rita")
        for path in ("", f"/holds/{hold_id}", "/calls", f"/calls/{hold_id}", "/catalog", "/quotas", "/backends"):
            await rita.go("/console" + path)
            width = await rita.page.evaluate("document.documentElement.scrollWidth")
            assert width <= PHONE["width"], path
        assert rita.strange == []


async def test_a_page_says_when_it_is_not_live_and_catches_up_by_itself(house: House, browser: Browser) -> None:
    async with window(browser, house) as rita:
        await rita.sign_in("rita")
        live = rita.page.locator("#live")
        await expect(live).to_have_text("Live")
        cut = "**/console/events"
        await rita.page.route(cut, lambda route: route.abort())
        await rita.page.reload()
        await expect(live).to_contain_text("Not live since")
        await house.held("orders_refund", refund(120))
        await rita.page.unroute(cut)
        await expect(rita.page.locator("h1")).to_have_text("1 call to decide", timeout=20_000)
        await expect(live).to_have_text("Live")


async def test_the_keys_lead_to_the_filters_and_tell_what_they_are(house: House, browser: Browser) -> None:
    for number in range(3):
        await house.held("orders_refund", refund(100 + number), name=f"bot-{number}")
    async with window(browser, house) as rita:
        await rita.sign_in("rita")
        await rita.page.keyboard.press("?")
        assert "to the filters" in await rita.page.inner_text("dialog[open]")
        await rita.page.keyboard.press("a")  # nothing but the list is listening now
        await rita.page.keyboard.press("Escape")
        await rita.page.keyboard.press("/")
        assert await rita.page.evaluate("document.activeElement.name") == "tool"
        await rita.page.select_option("select[name=agent]", "bot-1")
        await rita.page.wait_for_url("**/console?agent=bot-1")
        assert "1 of 3: agent is bot-1" in await rita.text()
        await house.held("orders_refund", refund(300), name="bot-1")
        await expect(rita.page.locator("h1")).to_have_text("4 calls to decide")
        await expect(rita.page.locator("[data-card]")).to_have_count(2)  # what is new is filtered too
        assert rita.strange == []


async def test_a_reviewer_changes_the_arguments_sees_the_difference_and_the_agent_is_told(
    house: House, browser: Browser
) -> None:
    hold_id = await house.held("orders_refund", {**refund(120, "late \u202etxt"), "more": {"kept": "as it is"}})
    async with window(browser, house) as rita:
        await rita.sign_in("rita", f"/console/holds/{hold_id}")
        await rita.page.click("text=Change the arguments")
        written = await rita.page.input_value("#arguments")
        assert "\u202e" not in written and "\\u202e" in written
        await rita.page.fill("#arguments", "not JSON")
        await rita.page.click("text=See what would change")
        assert "The arguments are not JSON" in await rita.text()
        await rita.page.click("text=Change the arguments")
        await rita.page.fill("#arguments", written.replace("120", "60"))
        await rita.page.click("text=See what would change")
        assert "amount changed 120 60" in " ".join((await rita.page.inner_text(".diff tbody")).split())
        assert await rita.page.locator(".diff tbody tr").count() == 1  # what came back from the form means the same
        await rita.page.click("text=Approve as changed: run orders_refund now")
        await rita.page.wait_for_selector("#hold[data-state=succeeded]")
        told = await rita.text()
        assert "changed before approving" in told and "rita@" in told
        answer = await perform(
            house.broker,
            "broker_held_call",
            {"id": hold_id},
            agent(user="ann", scopes=["notes.write"], issuer="settings"),
        )
        assert "60" in str(answer.content)
        assert rita.strange == []


async def test_a_grant_is_proposed_by_one_agreed_to_by_another_and_ended(house: House, browser: Browser) -> None:
    hold_id = await house.held("orders_refund", refund(120))
    async with window(browser, house) as rita, window(browser, house) as raul:
        await rita.sign_in("rita", f"/console/holds/{hold_id}")
        await rita.page.click("text=Let calls like this run without asking")
        assert "args.amount <= 120" in await rita.page.input_value("#when")
        await rita.page.fill("#when", "args.amount <= 150")
        await rita.page.fill("#grant-reason", "always approved")
        await rita.page.click("text=Propose the grant")
        await rita.page.wait_for_url("**/console/grants")
        assert "You have approved it already" in await rita.text()
        await raul.sign_in("raul", "/console/grants")
        await raul.page.click("text=Approve this grant")
        assert "active" in await raul.text()
        caller = agent("bot", user="ann", scopes=["notes.write"], issuer="settings")
        answer = await perform(house.broker, "orders_refund", refund(140), caller)
        assert answer.content[0]["text"] == "refunded"
        await raul.go("/console/grants")
        assert "1 of 10 calls used" in await raul.text()
        await raul.page.fill("input[name=reason]", "no more")
        await raul.page.click("text=Revoke: calls are held again")
        await raul.go("/console/grants?ended=1")
        assert "no more" in await raul.text()
        assert (rita.strange, raul.strange) == ([], [])


async def test_a_grant_is_written_from_nothing_and_what_was_wrong_is_said_beside_what_was_written(
    house: House, browser: Browser
) -> None:
    async with window(browser, house) as rita, window(browser, house) as raul:
        await rita.sign_in("rita", "/console/grants")
        await rita.page.click("text=Write a grant")
        await rita.page.select_option("#what", "orders_refund refunds/large")
        await rita.page.fill("#agent", "bot")
        await rita.page.select_option("#issuer", "settings")
        await rita.page.fill("#when", "args.amount <=")
        await rita.page.fill("#grant-reason", "the summer sale")
        await rita.page.click("text=Propose this grant")
        assert "do not compile" in await rita.text()
        assert await rita.page.input_value("#agent") == "bot"
        await rita.page.fill("#when", "args.amount <= 200.0")
        await rita.page.click("text=Propose this grant")
        await rita.page.wait_for_selector("article.card")
        assert "bot for whomever it acts for" in await rita.text()
        await raul.sign_in("raul", "/console/grants")
        await raul.page.click("text=Approve this grant")
        assert "active" in await raul.text()
        caller = agent("bot", user="ann", scopes=["notes.write"], issuer="settings")
        assert (await perform(house.broker, "orders_refund", refund(140), caller)).content[0]["text"] == "refunded"
        assert (rita.strange, raul.strange) == ([], [])


async def test_in_a_slow_network_a_button_says_it_is_at_work_and_is_pressed_once(
    house: House, browser: Browser
) -> None:
    hold_id = await house.held("orders_refund", refund(120))
    async with window(browser, house) as rita:
        await rita.sign_in("rita", f"/console/holds/{hold_id}")
        sent, gate = list[str](), anyio.Event()

        async def slow(route: Route) -> None:
            sent.append(route.request.url)
            await gate.wait()
            await route.continue_()

        await rita.page.route("**/approve", slow)
        await rita.page.evaluate(
            "addEventListener('submit', ({submitter, defaultPrevented}) => setTimeout(() => sessionStorage.setItem("
            "defaultPrevented ? 'again' : 'first', submitter.getAttribute('aria-busy'))))"
        )
        await rita.page.evaluate("for (let n = 0; n < 3; n += 1) document.querySelector('button.yes').click()")
        gate.set()
        await rita.page.wait_for_selector("#hold[data-state=succeeded]")
        assert await rita.page.evaluate("({...sessionStorage})") == {"first": "true", "again": "true"}
        assert len(sent) == 1
        assert rita.strange == []
