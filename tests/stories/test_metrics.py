"""`/metrics` as Prometheus reads it: through a real server, parsed by Prometheus's own client library."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from broker.errors import BrokerError, Held
from broker.faces.metrics import FAMILIES
from broker.pipeline import tally as tallies
from broker.pipeline.tally import OTHER, Tally
from tests.premises import House, house_with
from tests.stories.test_call import QUOTA, TOOLS
from tests.world import agent, perform, until_state

pytestmark = pytest.mark.anyio


async def scrape(house: House, **headers: str) -> Mapping[tuple[str, frozenset[tuple[str, str]]], float]:
    answer = await house.http.get("/metrics", headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    found: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    for family in text_string_to_metric_families(answer.text):
        assert {family.name, f"{family.name}_total"} & FAMILIES.keys()
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found, f"told twice: {key}"
            found[key] = sample.value
    return found


def of(found: Mapping[tuple[str, frozenset[tuple[str, str]]], float], name: str, **labels: str) -> float:
    """The sum of the samples with these labels."""
    fitting = [v for (n, ls), v in found.items() if n == name and labels.items() <= dict(ls).items()]
    assert fitting, f"no sample {name} {labels}"
    return sum(fitting)


async def test_what_happened_to_calls_is_counted(tmp_path: Path) -> None:
    async with house_with(tmp_path, TOOLS + QUOTA) as house:
        writer = agent("bot", user="ann", scopes=["notes.write"])
        await perform(house.broker, "note_read", {"topic": "a"}, agent("reader"))
        await perform(house.broker, "note_write", {"amount": 5}, writer)
        with contextlib.suppress(BrokerError):
            await perform(house.broker, "note_write", {"amount": -5}, writer)
        with contextlib.suppress(BrokerError):
            await perform(house.broker, "no_such_tool", {"secret": "s"}, writer)
        with contextlib.suppress(Held):
            await perform(house.broker, "note_write", {"amount": 500}, writer, may_wait=False)
        found = await scrape(house)
    assert of(found, "broker_decisions_total", tool="note_write", decision="allow") == 1
    assert of(found, "broker_decisions_total", tool="note_write", decision="deny", code="forbidden") == 1
    assert of(found, "broker_decisions_total", tool="note_write", decision="hold") == 1
    assert of(found, "broker_decisions_total", tool="(unknown)", code="unknown_tool") == 1
    assert of(found, "broker_rule_decisions_total", rule="writes/never-negative", decision="deny") == 1
    assert of(found, "broker_agent_decisions_total", agent="bot") == 4
    assert of(found, "broker_calls_total", backend="notes", state="succeeded") == 2
    assert of(found, "broker_stage_seconds_count", stage="dispatch") == 2
    assert of(found, "broker_stage_seconds_count", stage="record") == 2
    assert of(found, "broker_backend_seconds_bucket", backend="notes", le="+Inf") == 2
    assert of(found, "broker_open_calls", state="held") == 1
    assert of(found, "broker_quota_used_ratio") > 0
    assert of(found, "broker_backend_state", backend="notes", state="up") == 1
    assert of(found, "broker_record_changes_total") >= of(found, "broker_record_commits_total") > 0
    assert of(found, "broker_ready") == 1
    assert "no_such_tool" not in str(found)
    assert "secret" not in str(found)
    assert "ann" not in {value for _, labels in found for _, value in labels}


async def test_a_held_call_that_ran_is_counted_when_it_ends(tmp_path: Path) -> None:
    async with house_with(tmp_path, TOOLS) as house:
        house.person("rita")
        hold_id = await house.held()
        await house.post(f"/api/holds/{hold_id}/approve", "rita")
        await until_state(house.broker, hold_id, "succeeded")
        found = await scrape(house)
    assert of(found, "broker_calls_total", tool="note_write", state="succeeded") == 1
    assert of(found, "broker_open_calls", state="held") == 0


async def test_requests_that_are_no_call_are_counted_by_our_words(tmp_path: Path) -> None:
    async with house_with(tmp_path, TOOLS) as house:
        assert (await house.http.post("/mcp", content=b"{}")).status_code == 401
        found = await scrape(house)
    assert of(found, "broker_requests_refused_total") == 1


async def test_off_loopback_and_by_setting_it_takes_the_scope(tmp_path: Path) -> None:
    async with house_with(tmp_path, TOOLS, metrics="scope") as house:
        house.person("op", ["broker.metrics"])
        house.person("rita")
        refused = await house.http.get("/metrics")
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, 'Bearer scope="broker.metrics"')
        assert (await house.get("/metrics", "rita")).status_code == 403
        assert (await house.get("/metrics", "op")).status_code == 200
        two = [("Authorization", "Bearer a"), ("Authorization", "Bearer b")]
        assert (await house.http.get("/metrics", headers=two)).status_code == 400


async def test_behind_a_proxy_every_peer_is_on_loopback_so_the_scope_is_asked_for(tmp_path: Path) -> None:
    async with house_with(tmp_path, TOOLS, public_url="https://broker.example") as house:
        assert (await house.http.get("/metrics", headers={"Host": "broker.example"})).status_code == 401


async def test_it_can_be_off_and_is_never_told_to_a_foreign_host(tmp_path: Path) -> None:
    async with house_with(tmp_path, TOOLS) as house:
        assert (await house.http.get("/metrics", headers={"Host": "evil.example"})).status_code == 421
        assert (await house.http.post("/metrics")).status_code == 405
    (tmp_path / "off").mkdir()
    async with house_with(tmp_path / "off", TOOLS, metrics="off") as house:
        assert (await house.http.get("/metrics")).status_code == 404


def test_labels_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tallies, "LABELS", 3)
    tally = Tally()
    told = [tally.label("agent", f"agent-{number}") for number in range(5)]
    assert told == ["agent-0", "agent-1", "agent-2", OTHER, OTHER]
    assert tally.label("agent", "agent-1") == "agent-1"
