"""Other people's pages in the browser of somebody who is signed in: what they can make it send changes nothing, what
they can frame shows nothing, and a session they planted is worth nothing.

What they try is taken from the broker's own table of routes, so that a new route is tried too. One hostile page is on
another site (`localhost`), one on the same site (`127.0.0.1` with another port), to which a browser sends the cookies.
"""

from __future__ import annotations

import json
import re
import sqlite3
import threading
from collections import Counter
from collections.abc import AsyncGenerator, Generator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import anyio
import pytest
from playwright.async_api import Browser, Page, Response
from starlette.routing import Route

from tests.browser import chromium, needed, window
from tests.consoles import ORDERS
from tests.premises import House, house_with
from tests.world import reviewer, until_state

pytestmark = [pytest.mark.anyio, needed]

DECISIONS = ("approve", "deny", "edit", "reject", "revoke")
GUESSES = {
    "decision": "allow", "name": "rita", "reason": "because", "sure": "yes",
    "arguments": "{}", "csrf": "0" * 64, "everywhere": "yes", "count": "5", "days": "5", "when": "true",
    "_method": "DELETE",
}  # fmt: skip
ENCODINGS = ("application/x-www-form-urlencoded", "multipart/form-data", "text/plain")
FETCHES = 3  # of FARM's script, for each target
REFUSED = {400, 401, 403, 404, 405, 406, 411, 413, 415, 421, 422, 429}
FARM = """<!doctype html><title>farm</title><body><script>
const targets = %s, encodings = %s, guesses = %s;
window.read = []; window.sent = 0;
for (const [number, url] of targets.entries()) {
    const frame = document.createElement('iframe'), form = document.createElement('form');
    frame.name = 'f' + document.querySelectorAll('iframe').length;
    Object.assign(form, {method: 'post', action: url, target: frame.name});
    form.enctype = encodings[number %% encodings.length];
    for (const [name, value] of Object.entries(guesses)) {
        const field = document.createElement('input');
        Object.assign(field, {type: 'hidden', name, value});
        form.append(field);
    }
    document.body.append(frame, form);
    HTMLFormElement.prototype.submit.call(form);
}
const ask = (url, options) => fetch(url, {credentials: 'include', ...options}).then(
    (answer) => { if (answer.type !== 'opaque') window.read.push(url); }, () => {}).then(() => { window.sent += 1; });
const text = new URLSearchParams(guesses).toString();
for (const url of targets) {
    ask(url, {method: 'POST', mode: 'no-cors', body: text, headers: {'Content-Type': 'text/plain'}});
    ask(url, {method: 'POST', mode: 'cors', body: '{}', headers: {'Content-Type': 'application/json'}});
    ask(url, {method: 'DELETE', mode: 'cors'});
    navigator.sendBeacon(url, new URLSearchParams(guesses));
}
</script>"""
FRAMES = """<!doctype html><title>frames</title><iframe src="/own"></iframe>%s<object data="%s/console"></object>
<embed src="%s/console">"""


@pytest.fixture
async def house(tmp_path: Path) -> AsyncGenerator[House]:
    async with house_with(tmp_path, ORDERS) as house:
        house.person("rita")
        yield house


@pytest.fixture
async def browser() -> AsyncGenerator[Browser]:
    async with chromium() as browser:
        yield browser


@contextmanager
def hostile(pages: dict[str, str], cookies: tuple[str, ...] = ()) -> Generator[int]:
    """A web server of somebody else's; its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            for cookie in cookies:
                self.send_header("Set-Cookie", cookie)
            self.end_headers()
            self.wfile.write(pages.get(self.path, "").encode())

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 – the library's name
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server.server_port
        finally:
            server.shutdown()


def paths(house: House, method: str, hold_id: str, grant_id: str = "x") -> list[str]:
    """Every path of the table that this method may be asked of, filled with ids and words that mean something."""
    found: set[str] = set()
    for route in house.routes:
        if not isinstance(route, Route) or (route.methods and method not in route.methods) or "{rest" in route.path:
            continue
        for decision in DECISIONS if "{decision" in route.path else ("",):
            path = re.sub(r"{decision[^}]*}", decision, route.path)
            found.add(re.sub(r"{[^}]*}", grant_id if "/grants/" in path else hold_id, path))
    return sorted(found)


def stands(house: House, folder: Path) -> dict[str, int]:
    """What was ever decided or changed: entries of the record by kind, but for refusals that are counted."""
    with closing(sqlite3.connect(folder / "broker.db")) as db:
        kinds = dict(db.execute("select kind, count(*) from entry group by kind").fetchall())
        kinds |= dict(db.execute("select 'state ' || state, count(*) from invocation group by state").fetchall())
        kinds |= dict(db.execute("select 'grant ' || state, count(*) from standing_grant group by state").fetchall())
    kinds["clients"] = len(house.broker.directory.clients())
    return {kind: number for kind, number in kinds.items() if not kind.endswith("_refused")}


async def answered(page: Page, url: str, targets: set[str]) -> Counter[tuple[str, str, int]]:
    """Open the page and wait until its scripts are done and each target was posted to; method, URL, status of each."""
    statuses: Counter[tuple[str, str, int]] = Counter()

    def note(response: Response) -> None:
        if not response.url.startswith(url):
            statuses[response.request.method, response.url, response.status] += 1

    page.on("response", note)
    await page.goto(url, wait_until="commit")
    with anyio.move_on_after(45):
        while await page.evaluate("window.sent ?? 0") < len(targets) * FETCHES:
            await anyio.sleep(0.2)
        while not targets <= {url for method, url, _ in statuses if method == "POST"}:
            await anyio.sleep(0.2)
    await anyio.sleep(0.5)
    page.remove_listener("response", note)
    return statuses


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
async def test_no_form_script_or_beacon_of_another_page_changes_anything(
    name: str, house: House, browser: Browser, tmp_path: Path
) -> None:
    hold_id = await house.held("orders_refund", {"order_id": "1002", "amount": 500})
    until_ms = house.broker.clock.now_ms() + 86_400_000
    grant = await house.broker.grants.propose(
        reviewer("raul"), call_id=hold_id, count=1, until_ms=until_ms, reason="x", via="x"
    )
    targets = [house.url + path for path in paths(house, "POST", hold_id, grant.grant_id)]
    assert f"{house.url}/console/holds/{hold_id}/approve" in targets
    assert f"{house.url}/console/grants/{grant.grant_id}/approve" in targets
    assert f"{house.url}/console/sign-out" in targets
    targets += [f"{house.url}/mcp", f"{house.url}/sse"]
    async with window(browser, house) as rita:
        await rita.sign_in("rita")
        before = stands(house, tmp_path)
        with hostile({"/": FARM % (json.dumps(targets), json.dumps(ENCODINGS), json.dumps(GUESSES))}) as port:
            statuses = await answered(rita.page, f"http://{name}:{port}/", set(targets))
            assert await rita.page.evaluate("window.read") == []
        tried = {url for method, url, _ in statuses if method == "POST"}
        assert tried >= set(targets)
        assert {status for method, _, status in statuses if method == "POST"} <= REFUSED
        mine = {
            status for method, url, status in statuses if method == "POST" and url.startswith(house.url + "/console")
        }
        assert mine == ({400, 404} if name == "127.0.0.1" else {401, 404})  # with her cookies, and without
        assert stands(house, tmp_path) == before
        page = await rita.page.context.new_page()
        await page.goto(f"{house.url}/console/holds/{hold_id}")  # still signed in, and her own click decides
        await page.click("button.yes")
        assert (await until_state(house.broker, hold_id, "succeeded")).state == "succeeded"


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
async def test_no_page_can_be_framed_or_held_by_the_page_that_opened_it(
    name: str, house: House, browser: Browser
) -> None:
    hold_id = await house.held("orders_refund", {"order_id": "1002", "amount": 500})
    shown = [path for path in paths(house, "GET", hold_id) if path.startswith(("/console", "/oauth"))]
    assert f"/console/holds/{hold_id}" in shown
    frames = "".join(f'<iframe src="{house.url}{path}"></iframe>' for path in shown)
    opener = f"<script>window.other = open('{house.url}/console')</script>"
    pages = {"/": FRAMES % (frames, house.url, house.url), "/own": "<p>framed</p>", "/opens": opener}
    async with window(browser, house) as rita:
        await rita.sign_in("rita")
        with hostile(pages) as port:
            await rita.page.goto(f"http://{name}:{port}/", wait_until="commit")
            await rita.page.frame_locator("iframe >> nth=0").locator("p").wait_for()
            await anyio.sleep(2)
            texts = [await frame.evaluate("document.documentElement.innerText") for frame in rita.page.frames[1:]]
            assert [text for text in texts if "framed" in text] == texts[:1]
            assert len(texts) > len(shown)
            assert not [text for text in texts if "Approve" in text or "Sign" in text or "decide" in text]
            async with rita.page.context.expect_page() as opened:
                await rita.page.goto(f"http://{name}:{port}/opens")
            await (await opened.value).wait_for_selector("h1")
            assert await rita.page.evaluate("window.other.closed")  # Cross-Origin-Opener-Policy


async def test_a_session_that_somebody_planted_is_worth_nothing_after_the_sign_in(
    house: House, browser: Browser
) -> None:
    async with window(browser, house) as mallory, window(browser, house) as rita:
        await mallory.go()  # his sign-in under way: cookies that the broker itself made
        his = await mallory.page.context.cookies()
        assert {one["name"].partition("-")[0] for one in his} == {"console", "broker"}  # pyright: ignore[reportTypedDictNotRequiredAccess]
        planted = tuple(f"{one['name']}={one['value']}; Path=/" for one in his)  # pyright: ignore[reportTypedDictNotRequiredAccess]
        with hostile({}, planted) as port:
            await rita.page.goto(f"http://127.0.0.1:{port}/")
        assert {one["value"] for one in await rita.page.context.cookies()} == {one["value"] for one in his}  # pyright: ignore[reportTypedDictNotRequiredAccess]
        await rita.sign_in("rita")
        await rita.page.wait_for_selector("#inbox")
        hers = await rita.page.context.cookies()
        assert not {one["value"] for one in hers} & {one["value"] for one in his}  # pyright: ignore[reportTypedDictNotRequiredAccess]
        await mallory.go()
        assert await mallory.page.locator("h1").inner_text() == "Sign in"
        await rita.page.click("text=Sign out")
        await rita.page.wait_for_url("**/console/signed-out")
        await rita.page.go_back()
        await rita.page.wait_for_selector("h1")
        assert await rita.page.locator("#inbox").count() == 0  # nothing is kept to go back to
        await rita.page.context.add_cookies(hers)  # pyright: ignore[reportArgumentType]
        await rita.go()
        assert await rita.page.locator("h1").inner_text() == "Sign in"
