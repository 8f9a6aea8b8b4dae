"""A zoo of hostile servers behind one broker, all met at the same time: each call ends with its own error within its
deadline, the well ones beside them answer correctly all along, and the broker's memory stays within bounds.

How much slower the well ones become is measured by `make bench`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx2
import orjson
import pytest

from tests.command import running
from tests.serving import modern, modern_call, modern_headers
from tests.zoo import BEASTS, HEALTHY, Beast, manifests, serving

GRACE_S = 15.0  # beyond a call's deadline, for a machine with other work
MEMORY_BYTES = 320 * 1024 * 1024  # the broker's own 100 MB, and what the zoo may cost

pytestmark = pytest.mark.anyio


class Served:
    def __init__(self, folder: Path, url: str, pid: int, http: httpx2.AsyncClient) -> None:
        self.folder = folder
        self.url = url
        self._pid = pid
        self._http = http

    async def call(self, beast: Beast) -> dict[str, Any]:
        """The result of its tool; with progress, where progress is how it misbehaves."""
        more = {"progressToken": "p"} if beast.way == "progress" else {}
        headers = modern_headers("tools/call", beast.tool)
        del headers["Authorization"]
        with anyio.fail_after(beast.timeout_s + GRACE_S):
            answer = await self._http.post(self.url, json=modern_call(beast.tool, **more), headers=headers)
        last = answer.text.rpartition("data: ")[2] if "event-stream" in answer.headers["content-type"] else answer.text
        said = orjson.loads(last)
        return said["result"] if "result" in said else {"isError": True, "content": said["error"]}

    async def tools(self) -> set[str]:
        headers = modern_headers("tools/list")
        del headers["Authorization"]
        answer = await self._http.post(self.url, json=modern("tools/list"), headers=headers)
        return {
            entry["name"]
            for entry in orjson.loads(answer.text.rpartition("data: ")[2] or answer.text)["result"]["tools"]
        }

    @property
    def memory(self) -> int:
        """The most bytes that were ever resident."""
        status = Path(f"/proc/{self._pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024


@asynccontextmanager
async def served(folder: Path, text: str) -> AsyncGenerator[Served]:
    (folder / "tool_manifests").mkdir()
    (folder / "tool_manifests" / "tools.yaml").write_text(text)
    (folder / "broker.yaml").write_text("watch: false\ntesting: {open: true}\nstdio: {scopes: [zoo]}\n")
    with running("serve", "--port", "0", cwd=folder) as process:
        assert process.stderr is not None
        told = next(line for line in process.stderr if "/mcp" in line)
        url = f"http://127.0.0.1:{told.split('/mcp')[0].rpartition(':')[2]}/mcp"
        async with httpx2.AsyncClient(timeout=60, limits=httpx2.Limits(max_connections=500)) as http:
            yield Served(folder, url, process.pid, http)


async def test_each_beast_hurts_its_own_call_and_nobody_elses(tmp_path: Path) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("memory is read from /proc, which is not there")
    ended: list[tuple[str, str, str]] = []
    answered = 0

    async def meet(beast: Beast) -> None:
        said = await house.call(beast)
        told = said.get("structuredContent", {})
        ended.append((beast.name, told.get("code", ""), told.get("effect", "")))

    async def be_well(until: anyio.Event) -> None:
        nonlocal answered
        while not until.is_set():
            for one in HEALTHY:
                said = await house.call(one)
                assert not said["isError"], (one.name, said)
                assert "fine" in str(said["content"]), said
                answered += 1

    with serving() as well, serving() as beasts:
        async with served(tmp_path, manifests(well, beasts)) as house:
            await settled(house, [*HEALTHY, *(beast for beast in BEASTS if beast.expected is not None)])
            over = anyio.Event()
            async with anyio.create_task_group() as watching:
                watching.start_soon(be_well, over)
                async with anyio.create_task_group() as tasks:
                    for beast in BEASTS:
                        if beast.expected is not None:
                            tasks.start_soon(meet, beast)
                over.set()
            print(f"{len(ended)} hostile calls, {answered} good ones; {house.memory >> 20} MB at most")
            assert sorted(ended) == sorted((beast.name, *beast.expected) for beast in BEASTS if beast.expected)
            assert answered >= 2 * len(HEALTHY)
            assert house.memory < MEMORY_BYTES


async def settled(house: Served, beasts: list[Beast]) -> None:
    """Until the tools of these are there."""
    with anyio.fail_after(60):
        expected = {beast.tool for beast in beasts}
        while not expected <= await house.tools():
            await anyio.sleep(0.1)
