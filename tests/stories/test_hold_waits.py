"""A hold as clients meet it that declare neither tasks nor URLs: a wait with progress as long as may be, then its id.

The same hold as a task is in test_tasks, as a question to the user in test_confirm, as 202 in test_api_calls.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.library import Reading, client_of, reading
from tests.stories.test_tasks import CALLER, STDIO, TOOLS
from tests.world import records, reviewer

pytestmark = pytest.mark.anyio

WAYS = [(mode, transport) for mode in ("legacy", "auto") for transport in ("http", "sse")]


async def decide(house: Reading, heard: anyio.Event, *, approve: bool) -> None:
    """By a person, once the agent has been told that one is waited for."""
    await heard.wait()
    (waiting,) = await records(house.broker, states=("held",))
    await house.broker.desk.review(
        waiting.call_id, approve=approve, reviewer=reviewer(), reason="" if approve else "too much", via="test"
    )


@pytest.mark.parametrize(("mode", "transport"), WAYS)
@pytest.mark.parametrize("approve", [True, False], ids=["approved", "denied"])
async def test_a_client_that_waits_hears_of_the_hold_and_then_how_it_ended(
    mode: str, transport: str, approve: bool, tmp_path: Path
) -> None:
    heard, told = anyio.Event(), list[str]()

    async def step(progress: float, total: float | None, message: str | None) -> None:
        told.append(str(message))
        heard.set()

    async with (
        reading(tmp_path, manifests=TOOLS, issuer="settings", stdio=STDIO) as house,
        client_of(house, transport, mode, token=CALLER) as client,
        anyio.create_task_group() as people,
    ):
        people.start_soon(lambda: decide(house, heard, approve=approve))
        answer = await client.call_tool("note_write", {"amount": 500}, progress_callback=step)
        assert "large ones need a person" in told[0]
        assert answer.is_error is not approve
        assert ("written" if approve else "too much") in str(answer.content)
        assert [one.state for one in await records(house.broker)] == ["succeeded" if approve else "rejected"]


@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_a_client_that_waited_long_enough_collects_by_id(mode: str, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"issuer": "settings", "stdio": STDIO, "hold": {"wait_s": 0.1}}
    async with (
        reading(tmp_path, manifests=TOOLS, **keys) as house,
        client_of(house, mode=mode, token=CALLER) as client,
    ):
        held = await client.call_tool("note_write", {"amount": 500})
        assert not held.is_error
        assert "Held" in str(held.content)
        now = anyio.Event()
        now.set()
        await decide(house, now, approve=False)
        said: Any = held.structured_content
        hold_id = said["hold_id"]
        ended = await client.call_tool("broker_held_call", {"id": hold_id})
        assert ended.is_error
        assert "too much" in str(ended.content)
