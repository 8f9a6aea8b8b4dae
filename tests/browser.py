"""A real browser for tests: Debian's Chromium by Playwright; where it is missing, the tests say so and do not run.

Every request the browser makes and every dialog it opens is noted, so that a test can say that there was none to
another origin.
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from playwright.async_api import Browser, Page, ViewportSize, async_playwright

from tests.premises import PASSWORD, House

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
needed = pytest.mark.skipif(not CHROMIUM, reason="no Chromium here: apt-get install chromium")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
PHONE: ViewportSize = {"width": 320, "height": 640}  # the least that WCAG 2.2 asks for (1.4.10)
DESK: ViewportSize = {"width": 1180, "height": 560}


@dataclass
class Window:
    """One browser of one person. strange: requests to other origins, dialogs, errors of scripts and of the policy."""

    page: Page
    house: House
    strange: list[str] = field(default_factory=list[str])

    async def go(self, path: str = "/console") -> None:
        await self.page.goto(self.house.url + path)

    async def sign_in(self, name: str, path: str = "/console") -> None:
        await self.go(path)
        await self.page.fill("#name", name)
        await self.page.fill("#password", PASSWORD)
        await self.page.click("button[type=submit]")
        await self.page.wait_for_url(f"{self.house.url}/console**")

    async def text(self) -> str:
        return await self.page.inner_text("main")


@asynccontextmanager
async def chromium() -> AsyncGenerator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        try:
            yield browser
        finally:
            await browser.close()


@asynccontextmanager
async def window(
    browser: Browser, house: House, viewport: ViewportSize = DESK, **options: Any
) -> AsyncGenerator[Window]:
    """A person's browser: cookies of its own."""
    context = await browser.new_context(viewport=viewport, **options)
    page = await context.new_page()
    page.set_default_timeout(10_000)
    opened = Window(page, house)

    def requested(url: str) -> None:
        if not url.startswith((house.url + "/", "data:")):
            opened.strange.append(f"request: {url}")

    def said(kind: str, text: str) -> None:
        if kind == "error" and "status of 4" not in text:
            opened.strange.append(f"console: {text}")

    async def dialog(box: Any) -> None:
        opened.strange.append(f"dialog: {box.message}")
        await box.dismiss()

    page.on("request", lambda request: requested(request.url))
    page.on("console", lambda message: said(message.type, message.text))
    page.on("pageerror", lambda error: opened.strange.append(f"error: {error}"))
    page.on("dialog", dialog)
    try:
        yield opened
    finally:
        await context.close()
