"""Pictures of the console's pages for docs/, from a broker with a little life in it: `make screenshots`."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import anyio

from broker.errors import BrokerError
from broker.model.directory import Client
from tests.browser import CHROMIUM, PHONE, Window, chromium, window
from tests.consoles import ORDERS
from tests.premises import House, house_with
from tests.world import agent, perform, reviewer, until_state

FOLDER = Path(__file__).parents[1] / "docs" / "console"
CALM = ORDERS.replace(" <b onmouseover=alert(1)>", "").replace(" <script>alert('description')</script>", "")
QUOTED = (
    CALM.replace("record: redacted\n", "record: redacted\npreview: {tool: refund_quote}\n", 1)
    + """
---
kind: tool
name: refund_quote
owner: payments
title: What a refund would come to
description: Says what would be paid back, and changes nothing.
effect: read
scopes: [notes.write]
backend: orders
input: {type: object, properties: {order_id: {type: string}, amount: {type: number}}}
static: {structured: {paid: 349.00, refunded_before: 0, would_be_left: 229.00, currency: EUR}}
"""
)
VOUCHED = {"agent": "support-bot", "user": "ann", "scopes": ["notes.write"]}


def refund(order: str, amount: float, reason: str) -> dict[str, object]:
    return {"order_id": order, "amount": amount, "reason": reason}


async def live(house: House) -> str:
    """Calls of every kind; returns a hold that waits."""
    bot = agent("support-bot", user="ann", scopes=["notes.write"], issuer="settings")
    for order in ("1002", "1003"):
        await perform(house.broker, "orders_get", {"order_id": order}, bot)
    await perform(house.broker, "orders_refund", refund("1001", 20, "Delivered late"), bot)
    with contextlib.suppress(BrokerError):
        await perform(house.broker, "orders_refund", refund("1002", 10, "Goodwill"), agent("report-bot"))
    for order, amount, approve, why in (
        ("1005", 80, True, "checked with the customer"),
        ("1006", 900, False, "the customer has been paid already"),
    ):
        decided = await house.held("orders_refund", refund(order, amount, "Damaged"), name="support-bot")
        await house.broker.desk.review(decided, approve=approve, reviewer=reviewer("raul"), reason=why, via="console")
        await until_state(house.broker, decided, "succeeded", "rejected")
    await house.held(
        "orders_refund", refund("1003", 64.5, "Wrong size \u2066\u202egpj.exe\u2069 (see attached)"), name="support-bot"
    )
    return await house.held("orders_refund", refund("1002", 120, "The armrest is broken"), name="support-bot")


async def granted(house: House, hold_id: str) -> None:
    """A standing grant that another person has agreed to, and used once."""
    when = 'args.amount <= 130.0 && args.reason == "The armrest is broken"'
    until_ms = house.broker.clock.now_ms() + 7 * 86_400_000
    grant = await house.broker.grants.propose(
        reviewer("raul"),
        call_id=hold_id,
        when=when,
        count=20,
        until_ms=until_ms,
        reason="approved each time",
        via="console",
    )
    await house.broker.grants.decide(reviewer("rosa"), grant.grant_id, decision="approve", reason="", via="console")
    bot = agent("support-bot", user="ann", scopes=["notes.write"], issuer="settings")
    await perform(house.broker, "orders_refund", refund("1009", 75, "The armrest is broken"), bot)


PAGES = (
    "inbox",
    "hold",
    "grants",
    "calls",
    "call",
    "catalog",
    "quotas",
    "agents",
    "backends",
    "insight",
    "record",
    "me",
)


async def shoot(opened: Window, path: str, name: str) -> None:
    await opened.go(path)
    await opened.page.wait_for_load_state("load")
    await opened.page.wait_for_selector("#live[data-live=true]")
    await opened.page.screenshot(path=FOLDER / f"{name}.png", full_page=True)


async def shoot_all(opened: Window, hold_id: str, suffix: str) -> None:
    """Every page as this window shows it."""
    await opened.go()
    await opened.page.screenshot(path=FOLDER / f"sign-in{suffix}.png")
    await opened.sign_in("rita")
    paths = {"inbox": "", "hold": f"/holds/{hold_id}", "call": f"/calls/{hold_id}"}
    for name in PAGES:
        await shoot(opened, f"/console{paths.get(name, f'/{name}')}", f"{name}{suffix}")


async def main() -> None:
    if not CHROMIUM:
        sys.exit("make screenshots needs Chromium: apt-get install chromium")
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    with tempfile.TemporaryDirectory() as folder:
        async with house_with(Path(folder), QUOTED, stdio=VOUCHED) as house, chromium() as browser:
            house.person("rita")
            house.broker.directory.add_client(Client("support-bot", scopes=frozenset({"notes.write"}), owner="ann"))
            house.person("raul")
            hold_id = await live(house)
            await granted(house, hold_id)
            async with window(browser, house) as rita:
                await shoot_all(rita, hold_id, "")
            async with window(browser, house, color_scheme="dark") as rita:
                await shoot_all(rita, hold_id, "-dark")
            async with window(browser, house, viewport=PHONE, color_scheme="dark") as rita:
                await shoot_all(rita, hold_id, "-phone")
            async with window(browser, house) as rita:
                await rita.sign_in("rita", f"/console/holds/{hold_id}")
                await rita.page.click("button.yes")
                await rita.page.wait_for_selector("#hold[data-state=succeeded]")
                await rita.page.screenshot(path=FOLDER / "hold-done.png", full_page=True)
    smaller()


def smaller() -> None:
    """Pictures of text have few colours: where pngquant is there, they take a third."""
    if shutil.which("pngquant"):
        pictures = sorted(map(str, FOLDER.glob("*.png")))
        subprocess.run(["pngquant", "--force", "--ext", ".png", "--skip-if-larger", "64", *pictures], check=False)


if __name__ == "__main__":
    anyio.run(main)
