"""Every era of client, over every transport, with every era of server behind: nobody notices the broker between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import orjson
import pytest
from mcp.client.client import Client

from tests.asking import ABLE, CALLER, MANIFEST, Asking, Speaks
from tests.asking_child import Child
from tests.library import Reading, client_of, reading

pytestmark = pytest.mark.anyio

STDIO: dict[str, Any] = {"stdio": {"agent": "ann"}}
CELLS = [
    (mode, transport, speaks)
    for mode in ("legacy", "auto")
    for transport in ("http", "sse", "stdio")
    for speaks in ("handshake", "modern", "both")
    if speaks != "both" or transport == "http"  # which era a server with both is spoken to is no transport's matter
]


@pytest.mark.parametrize(("mode", "transport", "speaks"), CELLS)
async def test_progress_cancellation_questions_and_changes_pass(
    mode: str, transport: str, speaks: Speaks, tmp_path: Path
) -> None:
    server = Asking(speaks)
    async with reading(tmp_path, server, manifests=MANIFEST, **STDIO) as house:
        await everything_passes(house, server, mode, transport)


@pytest.mark.parametrize("mode", ["legacy", "auto"])
@pytest.mark.parametrize("speaks", ["handshake", "modern"])
async def test_the_same_passes_with_a_child_of_the_brokers_behind(mode: str, speaks: Speaks, tmp_path: Path) -> None:
    server = Child(tmp_path / "child", speaks)
    command = orjson.dumps(server.command).decode()
    root = orjson.dumps(str(Path(__file__).parents[2])).decode()
    backend = f"kind: backend\nname: library\nmcp: {{command: {command}, cwd: {root}}}\n---\n"
    async with reading(tmp_path, manifests=backend + MANIFEST, **STDIO) as house:
        await listed(house, "progress")
        await everything_passes(house, server, mode, "http")


async def listed(house: Reading, tool: str) -> None:
    with anyio.fail_after(20):
        while tool not in house.broker.shelf.current.entries:
            await anyio.sleep(0.02)


async def everything_passes(house: Reading, server: Asking | Child, mode: str, transport: str) -> None:
    heard, speaks = anyio.Event(), server.speaks

    async def hear(message: Any) -> None:
        if getattr(message, "method", "") == "notifications/tools/list_changed":
            heard.set()

    async with client_of(house, transport, mode, token=CALLER, message_handler=hear, **ABLE) as client:
        assert {tool.name for tool in (await client.list_tools()).tools} >= {"name", "progress"}
        await progress_comes(client)
        answer = await client.call_tool("name", {})
        assert "Ann" in str(answer.content)
        await a_call_is_cancelled(client, server)
        await a_change_is_told(client, server, heard, listens=mode == "auto")
        spoken = {era for tool, era in server.asked if tool == "name"}
        own = "modern" if mode == "auto" else "handshake"
        assert spoken == {own if speaks == "both" else speaks}


async def progress_comes(client: Client) -> None:
    steps: list[Any] = []

    async def step(progress: float, total: float | None, message: str | None) -> None:
        steps.append((progress, total, message))

    await client.call_tool("progress", {}, progress_callback=step)
    with anyio.fail_after(5):
        while not steps:
            await anyio.sleep(0.01)
    assert steps == [(1, 2, "half")]


async def a_call_is_cancelled(client: Client, server: Asking | Child) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.call_tool, "wait")
        await server.entered.wait()
        tasks.cancel_scope.cancel()
    with anyio.fail_after(10):
        await server.cancelled.wait()


async def a_change_is_told(client: Client, server: Asking | Child, heard: anyio.Event, *, listens: bool) -> None:
    listening = anyio.Event()

    async def listen() -> None:
        async with client.listen(tools_list_changed=True) as events:
            listening.set()
            async for _ in events:
                heard.set()

    async with anyio.create_task_group() as tasks:
        if listens:
            tasks.start_soon(listen)
            await listening.wait()
        for number in range(40):  # a stream of the handshake eras opens some time after the handshake
            if not heard.is_set():
                await server.grow(f"new_{number}")
                with anyio.move_on_after(0.5):
                    await heard.wait()
        assert heard.is_set()
        tasks.cancel_scope.cancel()
    assert any(tool.name.startswith("new_") for tool in (await client.list_tools()).tools)
