"""What happens in the demo, in order. Each step says what it is, does it, and checks that it came out as told."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from typing import Any

from .agent import Agent, Reply, connected
from .house import House
from .narrator import Deviation, asks, expect, expect_in, hears, note, say, shown, step

SUPPORT = ("orders.read", "orders.refund", "handbook.read")
REPORTS = ("orders.read",)
RUN_S = 20.0


async def play(house: House) -> None:
    step(1, "A house with real things in it")
    note(f"An order service, an HTTP API with its own database and its own credential: {house.orders_url}")
    note(f"A git repository, read by the real mcp-server-git: {house.handbook}")
    note("The real mcp-server-time. The broker starts and watches both MCP servers.")
    note(f"The broker in front of all three: {house.mcp_url}")
    shown("broker serve", house.words())

    step(2, "Two agents and a reviewer are registered")
    support_token = house.register("support-bot", SUPPORT)
    reports_token = house.register("report-bot", REPORTS)
    house.add_person("rita", ["refunds.review"])
    note(f"support-bot holds the scopes {', '.join(SUPPORT)}; report-bot only {', '.join(REPORTS)}.")
    note("rita is a person; she may decide on refunds. Neither agent can.")

    async with AsyncExitStack() as stack:
        support = await stack.enter_async_context(connected("support-bot", house.mcp_url, support_token, "2026-07-28"))
        reports = await stack.enter_async_context(connected("report-bot", house.mcp_url, reports_token, "legacy"))
        await lists(support, reports)
        await reads(house, support, reports)
        await refused_for_scope(house, reports)
        await out_of_quota(reports)
        await held_and_approved(house, support)
    recorded(house)


async def lists(support: Agent, reports: Agent) -> None:
    step(3, "Each agent lists its tools: one catalog, and everyone sees only what is theirs")
    of_support, of_reports = await support.tools(), await reports.tools()
    note(f"support-bot (protocol 2026-07-28) sees {', '.join(of_support)}")
    note(f"report-bot (handshake protocol) sees {', '.join(of_reports)}")
    wanted = [
        "broker_held_call",
        "broker_limits",
        "get_current_time",
        "git_log",
        "git_show",
        "orders_get",
        "orders_list",
        "orders_refund",
    ]
    expect("the tools of support-bot", wanted, sorted(of_support))
    wanted = ["broker_held_call", "broker_limits", "convert_time", "get_current_time", "orders_get", "orders_list"]
    expect("the tools of report-bot", wanted, sorted(of_reports))


async def reads(house: House, support: Agent, reports: Agent) -> None:
    step(4, "They read: from the HTTP API, from git, from the clock")
    order = await call(support, "orders_get", {"order_id": "1002"})
    expect_in("order 1002", "Office chair", order.text)
    history = await call(support, "git_log", {"repo_path": str(house.handbook), "max_count": 1})
    expect_in("the last change of the handbook", "above 50 EUR a person decides", history.text)
    clock = await call(reports, "get_current_time", {"timezone": "Europe/Berlin"})
    expect_in("the time in Berlin", "Europe/Berlin", clock.text)
    orders = await call(reports, "orders_list", {"status": "paid"})
    expect_in("the paid orders", "1003", orders.text)


async def refused_for_scope(house: House, reports: Agent) -> None:
    step(5, "report-bot tries a refund. It lacks the scope, and hears which one")
    refused = await call(reports, "orders_refund", {"order_id": "1003", "amount": 5, "reason": "Why not"}, refused=True)
    expect_in("the scope that is missing", "orders.refund", refused.text)
    expect("refund requests that reached the order service", [], house.refund_log())
    note("The order service has heard nothing of it: its own log of refund requests is empty.")


async def out_of_quota(reports: Agent) -> None:
    step(6, "report-bot asks for the time too often: three a minute are allowed, and it has asked once")
    for zone in ("Asia/Tokyo", "America/New_York"):
        answer = await call(reports, "get_current_time", {"timezone": zone})
        expect_in("the time", zone, answer.text)
    refused = await call(reports, "get_current_time", {"timezone": "Europe/Paris"}, refused=True)
    expect("the refusal", ("over_quota", "clock-minute"), (refused.code, refused.facts.get("quota")))
    expect("whether anything happened", "none", refused.facts.get("effect"))


async def held_and_approved(house: House, support: Agent) -> None:
    small: dict[str, Any] = {"order_id": "1003", "amount": 10, "reason": "One notebook was torn"}
    large: dict[str, Any] = {"order_id": "1002", "amount": 120, "reason": "The armrest is broken"}

    step(7, "support-bot refunds: a small sum runs at once, a large one is held for a person")
    expect_in("the small refund", "10", (await call(support, "orders_refund", small)).text)
    held = await call(support, "orders_refund", large)
    expect("the large refund", "held", held.code)
    hold_id = str(held.facts["hold_id"])
    again = await call(support, "orders_refund", large)
    expect("the same call sent again attaches to its hold", hold_id, again.facts.get("hold_id"))
    note("The agent is free to do other things meanwhile; no connection waits. Sending it again did not ask twice.")
    expect("refund requests with this call id at the order service", 0, arrivals(house, hold_id))

    step(8, "rita looks at what waits for her, and approves")
    shown("broker holds", house.command("holds"))
    shown(f"broker approve {hold_id} --reviewer rita", house.approve(hold_id, "rita"))
    wait_until_run(house, hold_id)
    expect("refund requests with this call id at the order service", 1, arrivals(house, hold_id))
    note("The broker ran it once, by itself. The order service's own log shows one request with this call id.")

    step(9, "support-bot collects the result")
    result = await call(support, "broker_held_call", {"id": hold_id})
    expect_in("the result of the refund", "120", result.text)
    expect("requests at the order service after collecting", 1, arrivals(house, hold_id))


def recorded(house: House) -> None:
    step(10, "Everything is on record: who, what, by which rule, how it ended")
    shown("broker log", house.command("log"), lines=16)
    shown("broker verify", house.command("verify"))
    note("The records form a chain: change one byte of one row, and verify says which.")


def closing(house: House, *, stays: bool) -> None:
    step(11, "Your own agent")
    shown("broker connect claude-code --print", house.command("connect", "claude-code", "--print"), lines=20)
    if stays:
        password = house.add_person("sam", SUPPORT)
        note(f"It asks you to sign in: name sam, password {password}. sam may do what support-bot may.")
        note(f"What it does then shows here: broker --config {house.settings} log --follow")
        note(f"And what it would refund above 50 EUR waits here: broker --config {house.settings} holds")
    say("", "Everything came out as told.")
    if stays:
        say("Everything keeps running. Ctrl-C ends it.")


async def call(agent: Agent, tool: str, arguments: dict[str, Any], *, refused: bool = False) -> Reply:
    """One call, told as it goes. Raises Deviation when an answer was expected and a refusal came, or the reverse."""
    asks(agent.name, tool, arguments)
    reply = await agent.call(tool, arguments)
    hears(reply.text)
    expect(f"whether {tool} was refused", refused, reply.is_error)
    return reply


def arrivals(house: House, call_id: str) -> int:
    """How often a call reached the order service, by the service's own log."""
    return sum(call_id == request["call_id"] for request in house.refund_log())


def wait_until_run(house: House, call_id: str) -> None:
    deadline = time.monotonic() + RUN_S
    while arrivals(house, call_id) == 0:
        if time.monotonic() > deadline:
            raise Deviation("an approved call runs by itself", "one request at the order service", f"none in {RUN_S} s")
        time.sleep(0.1)
