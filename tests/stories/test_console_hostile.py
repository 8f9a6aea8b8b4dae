"""Text that wants to be more than text, in every field that an agent, a server, a manifest or a person controls.

Each string is put into each field below, and every page that shows it is opened in a real browser: no dialog, no
script, no request to another origin, no page that is not itself, nothing invisible left invisible.

- agents: names of agents and users, arguments (names and values), names of tools that do not exist;
- manifests: titles, descriptions, owners, schemas, reasons of rules; names of manifest files;
- servers: their own name, names, titles, descriptions and schemas of their tools, results, refusals, errors, what they
  say when they die; previews;
- people: reasons of approvals and denials, notes and conditions of grants, changed arguments; names of registered
  clients and their owners, in the console and where consent is asked; what stands in a URL.

Names of tools, quotas, policies and backends in manifests are names: laws/test_manifest.py says what is refused.
"""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import cycle
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from broker.errors import BrokerError
from broker.faces.console import PAGES
from broker.faces.text import is_unsafe
from broker.model.directory import Client
from broker.model.invocation import InvocationQuery
from tests import hostile
from tests.browser import Window, chromium, needed, window
from tests.consoles import VECTORS
from tests.premises import House, house_with
from tests.world import agent, perform, reviewer

pytestmark = [pytest.mark.anyio, needed]

LIST = Path(__file__).parents[2].parent / "shared" / "data" / "blns" / "blns.json"
NAUGHTY: list[str] = [*VECTORS, *(json.loads(LIST.read_text("utf-8")) if LIST.exists() else ())]
TOGETHER = 40  # strings in one call's arguments
REASON_CHARS = 1000
STRANGERS = """[...document.querySelectorAll('main *')].filter((one) =>
    /^(SCRIPT|STYLE|IFRAME|IMG|SVG|LINK|META|OBJECT|EMBED|BASE)$/i.test(one.tagName)
    || [...one.attributes].some((attribute) => /^on/i.test(attribute.name)
        || /^(src|href|action)$/i.test(attribute.name) && !/^(\\/console|\\/oauth|#|\\?)/.test(attribute.value))
    ).map((one) => one.outerHTML.slice(0, 300))"""
FRAME = "[...document.body.children].map((one) => one.tagName).join(' ')"
RAGGED = """[...document.querySelectorAll('main table:has(thead)')].flatMap((table) => [...table.tBodies[0].rows]
    .filter((row) => row.cells.length !== table.tHead.rows[0].cells.length && !row.querySelector('[colspan]'))
    .map((row) => row.outerHTML.slice(0, 300)))"""


def printable(text: str, most: int) -> str:
    """As much of it as a manifest may say: the reader refuses control characters."""
    return "".join(one for one in text if one.isprintable())[:most].strip() or "nothing"


def some(strings: Sequence[str], number: int) -> Iterator[list[str]]:
    for begin in range(0, len(strings), number):
        yield list(strings[begin : begin + number])


def packed(most: int) -> list[str]:
    """All strings, as many together as go into so many characters; of the very long ones the beginning."""
    texts = ["a "]
    for one in NAUGHTY:
        text = one[: most - 3]
        if len(texts[-1]) + len(text) + 1 > most:
            texts.append("a ")
        texts[-1] = f"{texts[-1]}{text} "[:most]
    return texts


async def is_itself(rita: Window, path: str, *, rows: str = "", number: int = 0) -> None:
    """rows: what there must be so many of."""
    await rita.go(path)
    assert await rita.page.evaluate(FRAME) == "A HEADER MAIN DIALOG FOOTER", path
    assert await rita.page.locator("header nav li").count() == len(PAGES), path
    assert await rita.page.locator("h1").count() == 1, path
    assert await rita.page.locator("form[action='/console/sign-out']").count() == 1, path
    assert await rita.page.evaluate(STRANGERS) == [], path
    assert await rita.page.evaluate(RAGGED) == [], path
    shown = await rita.page.evaluate("document.title + document.querySelector('main').innerHTML")
    assert [f"{ord(one):x}" for one in shown if is_unsafe(one) and one != "\n"] == [], path
    if rows:
        assert await rita.page.locator(rows).count() == number, path
    assert rita.strange == [], path


async def every_call(rita: Window) -> int:
    """Through all pages of the feed; how many calls they show."""
    following, seen = "/console/calls", 0
    while following:
        await is_itself(rita, following)
        seen += await rita.page.locator(".calls tbody tr").count()
        older = rita.page.locator("a[rel=next]")
        following = await older.get_attribute("href") or "" if await older.count() else ""
    return seen


@asynccontextmanager
async def looking(house: House) -> AsyncGenerator[Window]:
    async with chromium() as browser, window(browser, house) as rita:
        await rita.sign_in("rita")
        yield rita


def tool(name: str, words: str, **more: Any) -> dict[str, Any]:
    shape = {"type": "object", "properties": {"more": {"type": "object", "description": words}}}
    told = {"owner": words[:120], "title": words[:200], "description": words, "effect": "write", "backend": "fixed"}
    return {"kind": "tool", "name": name, **told, "input": shape, "static": {"text": words}, "record": "full", **more}


def manifests() -> str:
    """Tools in whose words is each string; a server that dies with strings on its lips."""
    dying = f"import sys; sys.stderr.write({' '.join(VECTORS[:8])!r}); sys.exit(1)"
    rule = {"id": "held", "when": "true", "effect": "hold", "reason": printable(" ".join(VECTORS[:6]), 400)}
    documents: list[dict[str, Any]] = [
        {"kind": "backend", "name": "fixed", "static": {}},
        {"kind": "backend", "name": "dying", "mcp": {"command": [sys.executable, "-c", dying]}},
        *(tool(f"tool_{number}", printable(text, 1000)) for number, text in enumerate(packed(200))),
        {"kind": "policy", "name": "all", "tools": ["tool_0", "tool_1"], "rules": [rule]},
        {"kind": "quota", "name": "each", "tools": ["*"], "by": ["agent", "user"], "count": {"limit": 9, "per": "day"}},
    ]
    return "\n---\n".join(json.dumps(document, ensure_ascii=True) for document in documents)


async def test_what_agents_and_manifests_say_is_only_text(tmp_path: Path) -> None:
    async with house_with(tmp_path, manifests(), hold={"open_per_agent": 1000}) as house:
        house.person("rita")
        holds: list[str] = []
        for number, together in enumerate(some(NAUGHTY, TOGETHER)):
            arguments = {"more": {text[:200]: [text, {"deep": text}] for text in together}}
            holds.append(await house.held("tool_0", arguments, name=printable(together[0], 100)))
            await house.held("tool_1", {"more": {"number": number}}, name=f"bot {number}")
        alone = [*VECTORS, *packed(200)]
        for number, text in enumerate(alone):
            caller = agent(text[:200], user=text[:200], scopes=["notes.write"])
            with suppress(BrokerError):  # some are no names: what matters is what the pages make of what was recorded
                await perform(house.broker, ("tool_2", text[:64])[number % 2], {"more": {"text": text}}, caller)
        waiting = await house.broker.store.queue_counts(InvocationQuery(within=""))
        assert sum(one.count for one in waiting) == 2 * len(holds)
        async with looking(house) as rita:
            for hold_id, reason in zip(holds, NAUGHTY, strict=False):
                await is_itself(rita, f"/console/holds/{hold_id}?all=1")
                await rita.page.fill("#reason", f"no: {reason[:900]}".replace("\x00", ""))
                await rita.page.click("button.no")
                await rita.page.wait_for_selector("#hold[data-state=rejected]")
                assert await rita.page.evaluate(STRANGERS) == []
            await is_itself(rita, "/console", rows="[data-card]", number=len(holds))
            await is_itself(rita, "/console/catalog", rows="article.tool", number=len(packed(200)))
            paths = ("quotas", "agents", "backends", "insight", "record", "grants", f"calls/{holds[0]}")
            for path in paths:
                await is_itself(rita, f"/console/{path}")
            assert await every_call(rita) == 2 * len(holds) + len(alone)
            echoes = ("calls?state=", "catalog?as=", "insight?span=", "calls?agent=", "?tool=", "nothing/")
            for text, path in zip(VECTORS[:16], cycle(echoes), strict=False):
                await rita.go(f"/console/{path}{quote(text, safe='')}")
                assert await rita.page.evaluate(STRANGERS) == []
            assert rita.strange == []


async def test_what_servers_say_is_only_text(tmp_path: Path) -> None:
    strings = tmp_path / "strings.json"
    said = [*VECTORS, *packed(250)]  # of a longer message the broker keeps an excerpt
    strings.write_text(json.dumps([*said, *NAUGHTY[len(VECTORS) :]]), "ascii")
    command = [sys.executable, "-I", "-S", hostile.__file__, str(strings)]
    asked = {"say": {"type": "integer"}, "way": {"type": "string"}}
    documents: list[dict[str, Any]] = [
        {"kind": "backend", "name": "hostile", "mcp": {"command": command}},
        {"kind": "import", "name": "all", "backend": "hostile", "take": ["*"], "effect": "read"},
        {"kind": "backend", "name": "fixed", "static": {}},
        tool("previewed", "x", input={"type": "object", "properties": asked}, preview={"tool": "t0"}),
        {"kind": "policy", "name": "all", "tools": ["previewed"], "rules": [{"id": "held", "effect": "hold"}]},
    ]
    (tmp_path / "tool_manifests").mkdir()
    named = tmp_path / "tool_manifests" / "<img src=x onerror=alert(1)> \u202e.yaml"
    named.write_text(json.dumps({**documents[1], "name": "odd", "take": ["not_offered"]}))
    async with house_with(tmp_path, "\n---\n".join(map(json.dumps, documents)), limits={"drain_s": 1}) as house:
        house.person("rita")
        offered = [name for name in house.broker.shelf.current.entries if name[0] == "t" and name[1:].isdigit()]
        assert len(offered) > len(NAUGHTY) // 2
        for number, way in zip(range(len(said)), cycle(("result", "refuse", "error")), strict=False):
            with suppress(BrokerError):
                await perform(house.broker, "t0", {"say": number, "way": way})
        async with looking(house) as rita:
            await is_itself(rita, "/console/catalog")
            assert await rita.page.locator("article.tool").count() >= len(offered)
            assert "does not offer" in await rita.text()
            await is_itself(rita, "/console/backends", rows="main tbody tr", number=2)
            assert await every_call(rita) == len(said)
            for call_id in await rita.page.eval_on_selector_all(
                ".calls a", "all => all.slice(0, 6).map((one) => one.pathname)"
            ):
                await is_itself(rita, call_id)
            for number, way in zip(range(0, len(said), 12), cycle(("result", "refuse", "error")), strict=False):
                hold_id = await house.held("previewed", {"say": number, "way": way})
                await is_itself(rita, f"/console/holds/{hold_id}")
                assert "Preview by t0" in await rita.text()


async def test_what_people_write_is_only_text(tmp_path: Path) -> None:
    async with house_with(tmp_path, manifests(), hold={"open_per_agent": 1000}) as house:
        house.person("rita")
        reasons = packed(REASON_CHARS)
        now_ms, last = house.broker.clock.now_ms(), ""
        for number, reason in enumerate(reasons):
            hold_id = await house.held("tool_0", {"more": {"text": printable(reason, 200)}}, name=f"bot-{number}")
            when = f"args.more.text == {json.dumps(printable(reason, 200), ensure_ascii=False)}"
            grant = await house.broker.grants.propose(
                reviewer("raul"), call_id=hold_id, when=when, count=2, until_ms=now_ms + 60_000, reason=reason, via="x"
            )
            for decision in ("approve", "revoke")[: 1 + number % 2]:
                await house.broker.grants.decide(
                    reviewer("rosa"), grant.grant_id, decision=decision, reason=reason, via="x"
                )
            client = Client(f"c{number}", name=reason[:64], owner=reason[64:128], dynamic=True, scopes=None)
            house.broker.directory.add_client(client)
            await house.broker.desk.review(hold_id, approve=True, reviewer=reviewer("raul"), reason=reason, via="x")
            last = hold_id
        async with looking(house) as rita:
            await is_itself(rita, "/console/grants?ended=1", rows="article.card", number=len(reasons))
            await is_itself(rita, "/console/agents", rows="main tbody tr", number=2 * len(reasons))
            await is_itself(rita, "/console/catalog?as=c0")
            await is_itself(rita, f"/console/holds/{last}")
            assert await every_call(rita) == len(reasons)
            hold_id = await house.held("tool_1", {"more": {}})
            await is_itself(rita, f"/console/holds/{hold_id}")
            await rita.page.click("text=Change the arguments")
            await rita.page.fill("#arguments", json.dumps({"more": {text[:80]: text[:300] for text in NAUGHTY[:40]}}))
            await rita.page.click("text=See what would change")
            assert await rita.page.evaluate(STRANGERS) == []
            assert await rita.page.locator(".diff tbody tr").count() == len({text[:80] for text in NAUGHTY[:40]})
            for number, text in enumerate(VECTORS[:12]):
                await consented(house, rita, f"d{number}", text)


async def consented(house: House, rita: Window, client_id: str, name: str) -> None:
    """The page that asks whether an agent may act for a person, with what the agent calls itself."""
    registration = {"client_name": name, "redirect_uris": ["http://127.0.0.1:9/back"], "token_endpoint_auth_method": "none"}  # fmt: skip # noqa: E501
    registered = (await house.http.post("/oauth/register", json=registration)).json()
    asked = {"response_type": "code", "client_id": registered["client_id"], "redirect_uri": "http://127.0.0.1:9/back"}
    challenge = {"code_challenge": "x" * 43, "code_challenge_method": "S256", "state": "s", "resource": house.url}
    await rita.go(f"/oauth/authorize?{urlencode({**asked, **challenge})}")
    assert await rita.page.locator("h1").inner_text() != ""
    assert await rita.page.locator("form").count() == 2, client_id
    assert await rita.page.evaluate(STRANGERS) == []
    assert await rita.page.evaluate("[...document.body.children].map((one) => one.tagName).join()") == "MAIN"
    shown = await rita.page.evaluate("document.title + document.querySelector('main').innerHTML")
    assert [f"{ord(one):x}" for one in shown if is_unsafe(one) and one != "\n"] == []
    assert rita.strange == []
