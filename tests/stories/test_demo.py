"""The demo as a whole, and one story for each sentence of it, through real faces: one house, started once.

Stories that use up something (a quota, an order's balance) have an agent or an order of their own.
"""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest

from examples.demo.agent import Agent, Era, connected
from examples.demo.house import House, HouseError, open_house

README = Path(__file__).parents[2] / "README.md"
DEMO_S = 60
RUN_S = 20.0
SUPPORT = ("orders.read", "orders.refund", "handbook.read")
ERAS: tuple[Era, ...] = ("2026-07-28", "legacy")


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Generator[House]:
    with open_house(tmp_path_factory.mktemp("demo") / "house", hold_wait_s=0.2) as opened:
        opened.add_person("rita", ["refunds.review"])
        opened.add_person("olga", ["orders.read"])
        yield opened


@pytest.fixture(scope="module")
def tokens(house: House) -> dict[str, str]:
    return {
        "support-bot": house.register("support-bot", SUPPORT),
        "report-bot": house.register("report-bot", ["orders.read"]),
    }


@asynccontextmanager
async def agent(house: House, tokens: dict[str, str], name: str, era: Era = "2026-07-28") -> AsyncGenerator[Agent]:
    with anyio.fail_after(60):
        async with connected(name, house.mcp_url, tokens[name], era) as one:
            yield one


def refund(order_id: str, amount: float, reason: str = "It broke") -> dict[str, Any]:
    return {"order_id": order_id, "amount": amount, "reason": reason}


def arrivals(house: House, call_id: str) -> int:
    return sum(request["call_id"] == call_id for request in house.refund_log())


def record(house: House, call_id: str) -> dict[str, Any]:
    return house.json("log", call_id)


async def run_of(house: House, call_id: str) -> None:
    """Until the order service has heard of this call."""
    with anyio.fail_after(RUN_S):
        while not arrivals(house, call_id):
            await anyio.sleep(0.05)


# ---------------------------------------------------------------------------------------------------------- the demo


@pytest.fixture(scope="module")
def told() -> str:
    """What the demo prints when it is not in a terminal."""
    done = subprocess.run(
        [sys.executable, "-m", "broker", "demo"],
        capture_output=True,
        text=True,
        timeout=DEMO_S,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "NO_COLOR": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_demo_tells_the_whole_story_in_less_than_a_minute_and_ends(told: str) -> None:
    assert told.rstrip().endswith("Everything came out as told.")
    for word in ("Refused", "Held", "Approved and done", "clock-minute", "broker verify"):
        assert word in told


def test_the_picture_in_the_readme_is_what_the_demo_prints(told: str) -> None:
    picture = re.search(r"<!-- from the demo -->\n```text\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    assert picture
    printed = iter(" ".join(line.split()) for line in told.splitlines())
    for line in picture[1].splitlines():
        if line.strip() != "…":
            pattern = ".*".join(re.escape(" ".join(part.split())) for part in line.split("…"))
            assert any(re.match(pattern, one) for one in printed), f"the demo did not print: {line}"


def test_in_a_terminal_the_demo_keeps_serving_until_it_is_interrupted() -> None:
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, "-m", "broker", "demo"])
    said = b""
    deadline = time.monotonic() + DEMO_S
    while b"Ctrl-C ends it" not in said:
        assert select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))[0], said.decode()
        said += os.read(terminal, 65536)
    url = re.search(rb'"url": "(http://[^"]+)/mcp"', said)
    assert url
    assert httpx2.get(f"{url[1].decode()}/readyz", timeout=10).status_code == 200
    os.write(terminal, b"\x03")
    with contextlib.suppress(OSError):  # what a terminal says when its last program has ended
        while os.read(terminal, 65536):
            pass
    _, status = os.waitpid(child, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 0
    with pytest.raises(httpx2.TransportError):
        httpx2.get(f"{url[1].decode()}/readyz", timeout=10)


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGHUP])
def test_a_demo_that_is_ended_from_outside_leaves_nothing_running(tmp_path: Path, sent: signal.Signals) -> None:
    demo = subprocess.Popen(
        [sys.executable, "-m", "examples.demo", "--keep", str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=README.parent,
    )
    assert demo.stdout
    url = next(found[1] for line in demo.stdout if (found := re.search(r"MCP +(http://\S+)/mcp", line)))
    assert httpx2.get(f"{url}/healthz", timeout=10).status_code == 200
    demo.send_signal(sent)
    demo.communicate(timeout=DEMO_S)
    with pytest.raises(httpx2.TransportError):
        httpx2.get(f"{url}/healthz", timeout=10)


def test_a_demo_that_does_not_come_out_as_told_says_so_and_fails(tmp_path: Path) -> None:
    (tmp_path / "something").touch()
    done = subprocess.run(
        [sys.executable, "-m", "examples.demo", "--keep", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=DEMO_S,
        check=False,
    )
    assert done.returncode == 1
    assert "is not empty" in done.stdout


# --------------------------------------------------------------------------------------------- a story per sentence


@pytest.mark.anyio
@pytest.mark.parametrize("era", ERAS)
async def test_an_agent_sees_only_what_is_its_own(house: House, tokens: dict[str, str], era: Era) -> None:
    async with agent(house, tokens, "report-bot", era) as reports:
        names = await reports.tools()
        own = {"broker_held_call", "broker_limits"}
        assert set(names) == {"orders_list", "orders_get", "get_current_time", "convert_time", *own}
        unknown = await reports.call("no_such_tool", {})
        foreign = await reports.call("git_log", {"repo_path": str(house.handbook)})
        assert unknown.is_error
        assert foreign.text.replace("git_log", "no_such_tool") == unknown.text


@pytest.mark.anyio
@pytest.mark.parametrize("era", ERAS)
async def test_an_agent_reads_an_api_a_repository_and_a_clock(house: House, tokens: dict[str, str], era: Era) -> None:
    async with agent(house, tokens, "support-bot", era) as support:
        assert "Office chair" in (await support.call("orders_get", {"order_id": "1002"})).text
        history = await support.call("git_log", {"repo_path": str(house.handbook), "max_count": 1})
        assert "above 50 EUR a person decides" in history.text
        assert "Asia/Tokyo" in (await support.call("get_current_time", {"timezone": "Asia/Tokyo"})).text


@pytest.mark.anyio
@pytest.mark.parametrize("era", ERAS)
async def test_a_refund_without_the_scope_is_refused_and_never_sent(
    house: House, tokens: dict[str, str], era: Era
) -> None:
    before = house.refund_log()
    async with agent(house, tokens, "report-bot", era) as reports:
        refused = await reports.call("orders_refund", refund("1003", 5))
    assert refused.is_error
    assert "orders.refund" in refused.text
    assert house.refund_log() == before
    [denied] = house.json("log", "--agent", "report-bot", "--state", "denied", "--limit", "1")
    assert denied["code"] == "insufficient_scope"


@pytest.mark.anyio
async def test_a_quota_runs_out_and_says_which_and_when_to_come_back(house: House, tokens: dict[str, str]) -> None:
    async with agent(house, tokens, "report-bot") as reports:
        answers = [await reports.call("get_current_time", {"timezone": "UTC"}) for _ in range(4)]
    refused = [one for one in answers if one.is_error]
    assert refused
    last = refused[-1]
    assert (last.code, last.facts["quota"], last.facts["effect"]) == ("over_quota", "clock-minute", "none")
    assert 0 < last.facts["retry_after_ms"] <= 60_000


@pytest.mark.anyio
@pytest.mark.parametrize("era", ERAS)
async def test_a_small_refund_runs_at_once(house: House, tokens: dict[str, str], era: Era) -> None:
    async with agent(house, tokens, "support-bot", era) as support:
        answer = await support.call("orders_refund", refund("1005", 1.5, f"small, {era}"))
    assert not answer.is_error
    assert "1.5" in answer.text


@pytest.mark.anyio
@pytest.mark.parametrize("era", ERAS)
async def test_a_large_refund_is_held_approved_run_once_and_collected(
    house: House, tokens: dict[str, str], era: Era
) -> None:
    wanted = refund("1004", 60, f"large, {era}")
    async with agent(house, tokens, "support-bot", era) as support:
        held = await support.call("orders_refund", wanted)
        assert (held.code, held.is_error) == ("held", False)
        hold_id = held.facts["hold_id"]
        assert arrivals(house, hold_id) == 0
        assert (await support.call("orders_refund", wanted)).facts["hold_id"] == hold_id
        assert json.loads(house.command("holds", "--json"))[0]["arguments"] == wanted
        assert "Approved and done" in house.approve(hold_id, "rita")
        await run_of(house, hold_id)
        collected = await support.call("broker_held_call", {"id": hold_id})
        assert not collected.is_error
        assert "60" in collected.text
    assert arrivals(house, hold_id) == 1
    told = record(house, hold_id)
    assert (told["state"], told["agent"], told["tool"]) == ("succeeded", "support-bot", "orders_refund")


@pytest.mark.anyio
async def test_a_person_without_the_reviewers_scope_cannot_approve(house: House, tokens: dict[str, str]) -> None:
    async with agent(house, tokens, "support-bot") as support:
        held = await support.call("orders_refund", refund("1002", 70, "olga may not"))
        with pytest.raises(HouseError, match=r"refunds\.review"):
            house.approve(held.facts["hold_id"], "olga")
        assert arrivals(house, held.facts["hold_id"]) == 0
        withdrawn = await support.call("broker_held_call", {"id": held.facts["hold_id"], "withdraw": True})
        assert withdrawn.code == "hold_withdrawn"


@pytest.mark.anyio
async def test_a_very_large_refund_is_forbidden_and_asks_no_person(house: House, tokens: dict[str, str]) -> None:
    async with agent(house, tokens, "support-bot") as support:
        refused = await support.call("orders_refund", refund("1004", 501))
    assert (refused.code, refused.facts["rule"]) == ("forbidden", "refunds/never")
    assert house.json("holds") == []


@pytest.mark.anyio
async def test_the_records_tell_the_story_and_verify(house: House, tokens: dict[str, str]) -> None:
    async with agent(house, tokens, "support-bot") as support:
        await support.call("orders_list", {})
    calls = house.json("log", "--agent", "support-bot", "--tool", "orders_list")
    assert calls[-1]["state"] == "succeeded"
    house.command("verify")
    everything = house.command("log", "--json", "--limit", "1000") + house.command("export")
    assert house.environment["ORDERS_TOKEN"] not in everything
    assert tokens["support-bot"] not in everything


def test_the_order_service_wants_its_own_credential_and_got_it_from_the_broker_alone(house: House) -> None:
    log = (house.directory / "orders.log").read_text()
    assert house.environment["ORDERS_TOKEN"] not in log
    assert house.environment["ORDERS_TOKEN"] not in (house.directory / "broker.log").read_text()


def test_connecting_an_agents_program_prints_an_entry_with_the_address_of_the_house(house: House) -> None:
    entry = json.loads(house.command("connect", "claude-code", "--json"))
    assert entry["entry"]["url"] == house.mcp_url
