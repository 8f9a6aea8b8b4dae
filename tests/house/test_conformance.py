"""The comparison behind `make test-wire` sees what is worse, and its server offers what it says, without npm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mcp.client.client import Client

from tests.conformance import suite
from tests.conformance.server import build
from tests.downstream import serving

WHEN = "2026-11-23T21-58-03-674Z"


def results(folder: Path, **scenarios: list[tuple[str, str]]) -> suite.Findings:
    """What one run of the suite leaves behind: a folder per scenario, checks as (id, status)."""
    for scenario, checks in scenarios.items():
        path = folder / f"server-{scenario}-{WHEN}" / "checks.json"
        path.parent.mkdir(parents=True)
        told = [{"id": id_, "name": id_.upper(), "status": status, "errorMessage": "why"} for id_, status in checks]
        path.write_text(json.dumps(told))
    return suite.read(folder)


def keys(found: list[suite.Check]) -> list[str]:
    return [check.key for check in found]


def test_worse_is_what_passed_or_failed_otherwise_and_not_what_only_tells(tmp_path: Path) -> None:
    direct = results(
        tmp_path / "a",
        same=[("one", "SUCCESS"), ("two", "FAILURE"), ("note", "INFO")],
        less=[("gone", "SUCCESS"), ("twice", "SUCCESS"), ("twice", "SUCCESS"), ("turned", "SUCCESS")],
        better=[("three", "FAILURE"), ("four", "WARNING")],
    )
    other = results(
        tmp_path / "b",
        same=[("one", "SUCCESS"), ("two", "FAILURE"), ("other", "INFO"), ("left-out", "SKIPPED")],
        less=[("twice", "SUCCESS"), ("turned", "WARNING"), ("new", "FAILURE")],
        better=[("three", "SUCCESS")],
    )
    assert keys(suite.worse(direct, other)) == [
        "less:gone:GONE",
        "less:new:NEW",
        "less:turned:TURNED",
        "less:twice:TWICE",
    ]
    assert suite.worse(direct, direct) == []
    assert (direct.of("less"), other.of("less")) == ((4, 0), (1, 2))


def test_a_baseline_excuses_exactly_what_it_names(tmp_path: Path) -> None:
    direct = results(tmp_path / "a", x=[("one", "SUCCESS"), ("two", "SUCCESS"), ("three", "SUCCESS")])
    found = results(tmp_path / "b", x=[("one", "FAILURE"), ("two", "FAILURE"), ("three", "SUCCESS")])
    path = tmp_path / "known"
    assert suite.baseline(path) == {}
    path.write_text("# All of it.\n\n# Not built.\nx:one:ONE\nx:three:THREE\n")
    known = suite.baseline(path)
    assert known == {"x:one:ONE": "Not built.", "x:three:THREE": "Not built."}
    surprises = dict(suite.judge(suite.worse(direct, found), known))
    assert sorted(surprises) == ["x:three:THREE", "x:two:TWO"]
    assert "take it out" in surprises["x:three:THREE"]

    suite.write_baseline(path, "All of it.", keys(suite.worse(direct, found)), known)
    assert suite.baseline(path) == {"x:one:ONE": "Not built.", "x:two:TWO": "to be told"}


def test_every_reason_in_the_baselines_is_told() -> None:
    folder = Path(suite.__file__).parent
    paths = sorted(folder.glob("*.baseline"))
    assert paths
    for path in paths:
        assert all(reason not in ("", "to be told") for reason in suite.baseline(path).values()), path.name


@pytest.mark.anyio
@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
async def test_the_server_offers_tools_prompts_and_resources_in_both_eras(mode: Any) -> None:
    server = build()
    async with serving(server.streamable_http_app()) as url, Client(f"{url}/mcp", mode=mode) as client:
        names = {tool.name for tool in (await client.list_tools()).tools}
        assert {"test_simple_text", "test_input_required_result_multi_round", "json_schema_2020_12_tool"} <= names
        answer = await client.call_tool("test_simple_text", {})
        assert "simple text" in str(answer.content[0])
        assert "test_simple_prompt" in {prompt.name for prompt in (await client.list_prompts()).prompts}
        read = await client.read_resource("test://template/7/data")
        assert '"id": "7"' in str(read.contents[0])
        await client.call_tool("test_trigger_tool_change", {})
        assert "test_dynamic_tool" in {tool.name for tool in (await client.list_tools()).tools}
