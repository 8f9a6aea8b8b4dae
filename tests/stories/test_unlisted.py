"""What a caller may not see is what does not exist, to the byte: over each way in, in each way of not being there."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.premises import House, house_with
from tests.serving import modern, modern_call, modern_headers

pytestmark = pytest.mark.anyio

# Names of one length, so that sizes can be compared too.
TOOLS = """
kind: backend
name: notes
static: {}
---
kind: backend
name: absent
mcp: {command: [/nowhere/at/all]}
---
kind: tool
name: seen
effect: read
backend: notes
input: {type: object}
static: {text: here}
---
kind: tool
name: forbidden_tool
effect: destroy
backend: notes
input: {type: object, properties: {n: {type: integer}}, required: [n]}
static: {text: gone}
---
kind: tool
name: somebodyelses1
effect: read
backend: notes
input: {type: object}
static: {text: theirs}
---
kind: tool
name: scoped_elsewhe
effect: read
scopes: [of.others]
backend: notes
input: {type: object}
static: {text: theirs}
---
kind: import
name: absent
backend: absent
take: [not_yet_there1]
effect: read
---
kind: policy
name: others
tools: [forbidden_tool]
rules: [{id: olga, when: caller.user == 'olga', effect: allow}]
---
kind: toolset
name: mine
for: {users: [rita]}
tools: [seen, forbidden_tool]
---
kind: toolset
name: theirs
for: {users: [olga]}
tools: [somebodyelses1, scoped_elsewhe]
"""
UNSEEN = ("never_was_there", "forbidden_tool", "somebodyelses1", "scoped_elsewhe", "not_yet_there1")
ARGUMENTS: tuple[dict[str, Any], ...] = ({}, {"n": 1}, {"n": "no"})


@pytest.fixture
async def house(tmp_path: Path) -> AsyncGenerator[House]:
    async with house_with(tmp_path, TOOLS) as house:
        house.person("rita")
        house.person("olga", ("of.others",))
        yield house


def plain(answer: httpx2.Response, name: str) -> tuple[int, list[tuple[str, str]], str]:
    """Status, headers and body, without what is of this one call: its name, its id, the time."""
    body = re.sub(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}", "ID", answer.text)
    headers = [(key, value) for key, value in answer.headers.items() if key not in ("date", "content-length")]
    return answer.status_code, sorted(headers), body.replace(name, "NAME")


async def test_every_way_of_not_being_there_looks_the_same(house: House) -> None:
    token = house.token("rita")
    looks: dict[str, set[str]] = {name: set() for name in UNSEEN}
    for name in UNSEEN:
        for place, arguments in enumerate(ARGUMENTS):
            headers = modern_headers("tools/call", name, token=token)
            answer = await house.http.post("/mcp", json=modern_call(name, arguments), headers=headers)
            looks[name].add(f"{place} {plain(answer, name)}")
            completing = {"ref": {"type": "ref/prompt", "name": name}, "argument": {"name": "a", "value": "b"}}
            headers = modern_headers("completion/complete", token=token)
            answer = await house.http.post("/mcp", json=modern("completion/complete", completing), headers=headers)
            looks[name].add(f"completion {plain(answer, name)}")
    first = looks[UNSEEN[0]]
    assert len(first) > 1
    for name in UNSEEN:
        assert looks[name] == first, name
    listed = await house.http.post("/mcp", json=modern("tools/list"), headers=modern_headers("tools/list", token=token))
    assert not [name for name in UNSEEN if name in listed.text]
    assert "seen" in listed.text


async def test_who_may_see_one_of_them_calls_it(house: House) -> None:
    headers = modern_headers("tools/call", "somebodyelses1", token=house.token("olga"))
    answer = await house.http.post("/mcp", json=modern_call("somebodyelses1"), headers=headers)
    assert "theirs" in answer.text
