"""Schemathesis against the served API and its published description: every check it knows, generated requests, good and
bad. What it finds is either a fault of the API or a lie of the description; there is no list of exceptions here. Three
things are told to it: 422 answers what fits the schema and yet means nothing, which a schema cannot say (a condition
without a tool, arguments that the tool's own schema refuses); 400 is for what does not fit. And which ids there are, so
that it reaches each operation; what leads from one to another is said by the links of the description. And not to warn
that its phase of coverage, which takes no names from here, met refusals alone at `POST /api/grants`: no schema knows
which tools and rules there are. What is drawn for it is mostly accepted.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path

import anyio
import orjson
import pytest

from broker.pipeline.granting import Bounds, Whose
from tests.premises import House, house_with
from tests.stories.test_call import TOOLS
from tests.world import reviewer

pytestmark = pytest.mark.anyio

# For each operation and phase. A gate that fails by chance teaches nobody: by default the same requests are made each
# time; who names a number of examples hunts, with others every time.
EXAMPLES = os.environ.get("BROKER_TEST_FUZZ_EXAMPLES", "")
DRAWN = (
    ["--max-examples", EXAMPLES] if EXAMPLES else ["--max-examples", "6", "--seed", "1", "--generation-deterministic"]
)
PATIENCE_S = 600
EACH = 12  # holds, grants and calls to be used up by each operation
ANYTHING = """
---
kind: tool
name: note_any
effect: read
backend: notes
input: {type: object, additionalProperties: true}
static: {text: "whatever"}
---
kind: quota
name: anything
tools: [note_any]
count: {limit: 10000, per: day}
by: [agent]
"""
SETTINGS = """
[checks]
positive_data_acceptance.expected-statuses = ["2xx", "401", "403", "404", "409", "422", "429", "503"]
"""
# What each operation is given, mostly: parameter -> dictionary.
GIVEN: Mapping[str, Mapping[str, str]] = {
    "getHold": {"path.id": "seen"},
    "getInvocation": {"path.id": "seen"},
    "readPayload": {"path.id": "seen"},
    "approveHold": {"path.id": "approved"},
    "denyHold": {"path.id": "denied"},
    "proposeGrant": {
        "path.id": "granted", "body.until_ms": "soon", "body.when": "any", "body.amount": "one", "body.total": "some",
    },
    "draftGrant": {
        "body.tool": "held", "body.rule": "rules", "body.agent": "agents", "body.user": "users", "body.when": "any",
        "body.until_ms": "soon", "body.amount": "one", "body.total": "some",
    },
    "approveGrant": {"path.id": "agreed"},
    "rejectGrant": {"path.id": "rejected"},
    "revokeGrant": {"path.id": "revoked"},
    "callTool": {"body.tool": "tools"},
    "getCall": {"path.id": "own"},
    "withdrawCall": {"path.id": "back"},
}  # fmt: skip


@pytest.fixture
async def house(tmp_path: Path) -> AsyncGenerator[House]:
    async with house_with(tmp_path, TOOLS + ANYTHING, hold={"open_per_agent": 1000}) as house:
        house.person("rita", ["broker.review", "broker.audit", "notes.write"])
        yield house


async def things(house: House) -> dict[str, Sequence[str | int]]:
    """What is there to be asked for, in dictionaries."""
    number = 500

    async def held(names: Sequence[str]) -> dict[str, Sequence[str | int]]:
        nonlocal number
        found: dict[str, Sequence[str | int]] = {}
        for name in names:
            ids: list[str] = []
            for _ in range(EACH):
                number += 1
                ids.append(await house.held(arguments={"amount": number}, name=f"bot-{number}"))
            found[name] = ids
        return found

    async def called() -> str:
        nonlocal number
        number += 1
        answer = await house.post("/api/calls", "rita", {"tool": "note_write", "arguments": {"amount": number}})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["call_id"])

    async def granted() -> str:
        until_ms = house.broker.clock.now_ms() + 3_600_000
        bot = Whose("", "bot", "settings", "ann", ("ann", "bot"))
        bounds = Bounds(5, until_ms)
        named = {"tool": "note_write", "rule": "writes/large"}
        return (await house.broker.grants.draft(reviewer("raul"), bot, bounds, **named, via="test")).grant_id

    return {
        **await held(["seen", "approved", "denied", "granted"]),
        **{name: [await granted() for _ in range(EACH)] for name in ("agreed", "rejected", "revoked")},
        **{name: [await called() for _ in range(EACH)] for name in ("own", "back")},
        "tools": ["note_any", "note_any", "note_write"],
        "held": ["note_write"],
        "agents": ["bot"],
        "users": ["ann"],
        "rules": ["writes/large"],
        "soon": [house.broker.clock.now_ms() + 3_600_000],
        "any": ["true"],
        "one": ["1.0"],
        "some": ["100"],
    }


def settings(dictionaries: Mapping[str, Sequence[str | int]]) -> str:
    """As TOML, of which JSON's strings, numbers and lists are a part."""
    lines = [SETTINGS]
    for name, values in dictionaries.items():
        lines += [f"[dictionaries.{name}]", f"values = {orjson.dumps(values).decode()}"]
    for operation, parameters in GIVEN.items():
        lines += ["[[operations]]", f'include-operation-id = "{operation}"']
        if operation == "draftGrant":
            lines.append("warnings = false")
        if not EXAMPLES and not any(name.startswith("path.") for name in parameters):
            lines.append(f"generation.max-examples = {EACH}")  # only a good body leads anywhere
        lines.append("[operations.parameters]")
        for name, values in parameters.items():
            share = 0.8 if name == "path.id" else 1.0  # of what is drawn; the phase of coverage has all else
            lines.append(f'"{name}" = {{ dictionary = "{values}", probability = {share} }}')
    return "\n".join(lines)


async def test_what_the_description_promises_is_what_the_api_does(house: House, tmp_path: Path) -> None:
    (tmp_path / "schemathesis.toml").write_text(settings(await things(house)))
    command = [
        str(Path(sys.executable).with_name("st")), "run", f"{house.url}/api/openapi.json",
        "--header", f"Authorization: Bearer {house.token('rita')}",
        "--checks", "all", *DRAWN, "--no-color", "--report", "ndjson",
        "--report-dir", str(tmp_path / "report"),
    ]  # fmt: skip
    with anyio.fail_after(PATIENCE_S):
        ended = await anyio.run_process(command, check=False, stderr=subprocess.STDOUT, cwd=tmp_path)
    said = ended.stdout.decode(errors="replace")
    assert ended.returncode == 0, said[-20_000:]
    assert "No issues found" in said, said[-20_000:]  # and no operation was met with refusals alone
