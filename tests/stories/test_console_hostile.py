"""Text that wants to be more than text, in every field that an agent, a server or a manifest controls.

The strings are our own vectors and, where it is present, the Big List of Naughty Strings. They are shown on every page
of the console in a real browser: no dialog, no script, no request to another origin, no page that is not itself.
"""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from broker.errors import BrokerError
from broker.model.invocation import InvocationQuery
from tests.browser import Window, chromium, needed, window
from tests.consoles import VECTORS
from tests.premises import House, house_with
from tests.world import agent, perform, reviewer

pytestmark = [pytest.mark.anyio, needed]

LIST = Path(__file__).parents[2].parent / "shared" / "data" / "blns" / "blns.json"
NAUGHTY = [*VECTORS, *(json.loads(LIST.read_text("utf-8")) if LIST.exists() else ())]
TOGETHER = 40  # strings in one call's arguments
STRANGERS = """[...document.querySelectorAll('main *')].filter((one) =>
    /^(SCRIPT|STYLE|IFRAME|IMG|SVG|LINK|META|OBJECT|EMBED|BASE)$/i.test(one.tagName)
    || [...one.attributes].some((attribute) => /^on/i.test(attribute.name)
        || /^(src|href|action)$/i.test(attribute.name) && !/^(\\/console|#|\\?)/.test(attribute.value))
    ).map((one) => one.outerHTML.slice(0, 300))"""


def printable(text: str, most: int) -> str:
    """As much of it as a manifest may say: the reader refuses control characters."""
    return "".join(one for one in text if one.isprintable())[:most].strip() or "nothing"


def manifests() -> str:
    """A tool for each string, in the words that a manifest may choose; a server that dies with strings on its lips."""
    documents: list[dict[str, Any]] = [{"kind": "backend", "name": "fixed", "static": {}}]
    dying = f"import sys; sys.stderr.write({' '.join(VECTORS[:8])!r}); sys.exit(1)"
    documents.append({"kind": "backend", "name": "dying", "mcp": {"command": [sys.executable, "-c", dying]}})
    for number, text in enumerate(NAUGHTY):
        words = printable(text, 200)
        documents.append(
            {
                "kind": "tool",
                "name": f"tool_{number}",
                "owner": "somebody",
                "title": words[:60],
                "description": words,
                "effect": "write",
                "backend": "fixed",
                "input": {"type": "object", "properties": {"more": {"type": "object", "description": words}}},
                "static": {"text": "done"},
                "record": "full",
            }
        )
    documents.append(
        {
            "kind": "policy",
            "name": "all",
            "tools": ["tool_0", "tool_1"],
            "rules": [
                {"id": "held", "when": "true", "effect": "hold", "reason": printable(" ".join(VECTORS[:6]), 400)}
            ],
        }
    )
    of = {"tools": ["tool_0", "tool_2"], "by": ["agent", "user"]}
    documents.append({"kind": "quota", "name": "each", **of, "count": {"limit": 900, "per": "day"}})
    return "\n---\n".join(json.dumps(document, ensure_ascii=True) for document in documents)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncGenerator[House]:
    async with house_with(tmp_path, manifests(), hold={"open_per_agent": 1000}) as house:
        house.person("rita")
        yield house


def bundles() -> Iterator[list[str]]:
    for begin in range(0, len(NAUGHTY), TOGETHER):
        yield NAUGHTY[begin : begin + TOGETHER]


async def is_itself(rita: Window, path: str) -> None:
    await rita.go(path)
    assert await rita.page.evaluate(STRANGERS) == [], path
    assert await rita.page.locator("h1").count() == 1, path
    assert await rita.page.locator("form[action='/console/sign-out']").count() == 1, path
    assert rita.strange == [], path


async def test_hostile_text_is_only_text_in_every_field_and_on_every_page(house: House) -> None:
    holds: list[str] = []
    for number, some in enumerate(bundles()):
        arguments = {"more": {text[:200]: [text, {"deep": text}] for text in some}}
        holds.append(await house.held("tool_0", arguments, name=printable(some[0], 100)))
        await house.held("tool_1", {"more": {"number": number}}, name=f"bot {number}")
    for number, text in enumerate(NAUGHTY):
        caller = agent(text[:200], user=text[:200], scopes=["notes.write"])
        with suppress(BrokerError):  # some are no names: what matters is what the pages make of what was recorded
            await perform(house.broker, ("tool_2", text[:64])[number % 2], {"more": {"text": text}}, caller)
    waiting = await house.broker.store.queue_counts(InvocationQuery(within=""))
    assert sum(one.count for one in waiting) == 2 * len(holds)
    async with chromium() as browser, window(browser, house) as rita:
        await rita.sign_in("rita")
        for hold_id, reason in zip(holds, NAUGHTY, strict=False):
            await is_itself(rita, f"/console/holds/{hold_id}?all=1")
            by = reviewer("rita" + printable(reason, 40))
            await house.broker.desk.review(hold_id, approve=False, reviewer=by, reason=reason, via="console")
            await is_itself(rita, f"/console/holds/{hold_id}")
        for path in ("", "/catalog", "/quotas", "/agents", "/backends", "/insight", "/record", f"/calls/{holds[0]}"):
            await is_itself(rita, f"/console{path}")
        following = "/console/calls"
        while following:
            await is_itself(rita, following)
            older = rita.page.locator("a[rel=next]")
            following = await older.get_attribute("href") or "" if await older.count() else ""
        shown = await rita.text()
        assert "\u202e" not in shown
