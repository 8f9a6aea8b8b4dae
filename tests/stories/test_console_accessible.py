"""Every page of the console before axe-core, which knows WCAG: on a desk and on a phone, in the light and in the dark.

In two of these looks all its rules are asked; in the other two those that the look decides. BROKER_TEST_BROWSER=all
asks all rules in all four.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import pytest

from broker.model.directory import Client
from tests.browser import DESK, PHONE, Window, chromium, needed, window
from tests.consoles import ORDERS
from tests.premises import House, house_with
from tests.screenshots import PAGES, live

pytestmark = [pytest.mark.anyio, needed]

RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
OF_LOOKS = ["color-contrast", "target-size", "link-in-text-block", "scrollable-region-focusable"]
OTHER = {"light": "dark", "dark": "light"}
WHOLE = os.environ.get("BROKER_TEST_BROWSER") == "all"
TARGETS = """[...document.querySelectorAll('a, button, input:not([type=hidden]), select, textarea, summary')]
    .filter((one) => {
        const box = one.getBoundingClientRect();
        const isText = getComputedStyle(one).display === 'inline';
        return box.width && !isText && (box.width < 24 || box.height < 24);
    }).map((one) => one.outerHTML)"""  # WCAG 2.2, 2.5.8: links in a line of text are excepted


@pytest.fixture
async def house(tmp_path: Path) -> AsyncGenerator[House]:
    stdio = {"agent": "support-bot", "user": "ann", "scopes": ["notes.write"]}
    async with house_with(tmp_path, ORDERS, stdio=stdio) as house:
        house.person("rita")
        house.broker.directory.add_client(Client("support-bot", scopes=frozenset({"notes.write"})))
        yield house


async def faults(opened: Window, kind: str = "tag", values: Sequence[str] = RULES) -> list[str]:
    """What axe finds on the page by these rules, each with the first element it is about."""
    axe = files("axe_playwright_python").joinpath("axe.min.js").read_text("utf-8")
    await opened.page.evaluate(axe)
    found: dict[str, Any] = await opened.page.evaluate(
        "([type, values]) => axe.run(document, {runOnly: {type, values}})", [kind, values]
    )
    return [f"{one['id']}: {one['help']}: {one['nodes'][0]['html'][:200]}" for one in found["violations"]]


async def faults_in_every_light(opened: Window, scheme: Any) -> list[str]:
    found = await faults(opened)
    await opened.page.emulate_media(color_scheme=cast("Any", OTHER[scheme]))
    found += await faults(opened) if WHOLE else await faults(opened, "rule", OF_LOOKS)
    await opened.page.emulate_media(color_scheme=scheme)
    return found


@pytest.mark.parametrize(("scheme", "size"), [("light", "desk"), ("dark", "phone")])
async def test_no_page_keeps_anybody_out(house: House, scheme: Any, size: str) -> None:
    hold_id = await live(house)
    viewport = PHONE if size == "phone" else DESK
    # Without motion: colours that are on their way from one look to the other are neither's.
    look: dict[str, Any] = {"viewport": viewport, "color_scheme": scheme, "reduced_motion": "reduce"}
    async with chromium() as browser, window(browser, house, **look) as rita:
        await rita.go()
        assert await faults(rita) == []
        await rita.sign_in("rita")
        paths = {"inbox": "", "hold": f"/holds/{hold_id}", "call": f"/calls/{hold_id}", "nothing": "/nothing"}
        for name in (*PAGES, "nothing"):
            await rita.go(f"/console{paths.get(name, f'/{name}')}")
            assert await faults_in_every_light(rita, scheme) == [], name
            assert await rita.page.evaluate(TARGETS) == [], name
            width = await rita.page.evaluate("document.documentElement.scrollWidth")
            assert width <= viewport["width"], name
        await rita.go("/console/insight")
        await rita.page.click("summary >> nth=0")
        await rita.page.keyboard.press("?")
        assert await faults(rita) == []


async def test_axe_finds_what_is_wrong(house: House) -> None:
    async with chromium() as browser, window(browser, house) as rita:
        await rita.sign_in("rita")
        await rita.page.evaluate("document.querySelector('main').append(document.createElement('button'))")
        assert any(one.startswith("button-name") for one in await faults(rita))
