"""Manifests change while the broker serves: all of it or nothing, calls under way unharmed, every reload on record."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import anyio
import orjson
import pytest

from broker.errors import ManifestError, UnknownTool
from tests.world import broker_with, perform, records

NOTES = """
kind: backend
name: notes
static: {}
---
kind: tool
name: first
effect: read
backend: notes
static: {text: one}
"""
SECOND = "kind: tool\nname: second\neffect: read\nbackend: notes\nstatic: {text: two}\n"
BROKEN = SECOND.replace("effect: read", "efect: raed")


def entries(folder: Path, kind: str) -> list[dict[str, object]]:
    database = sqlite3.connect(folder / "broker.db")
    try:
        rows = database.execute("select body from entry where kind = ? order by at_ms", (kind,)).fetchall()
    finally:
        database.close()
    return [orjson.loads(body) for (body,) in rows]


@pytest.mark.anyio
async def test_a_new_file_is_served_without_a_restart_and_the_reload_is_on_record(tmp_path: Path) -> None:
    async with broker_with(tmp_path, NOTES, watch=True) as broker:
        with pytest.raises(UnknownTool):
            await perform(broker, "second")
        await anyio.sleep(0.3)  # the watcher has begun: it has no way to say so
        (tmp_path / "tool_manifests" / "second.yaml").write_text(SECOND)
        with anyio.fail_after(20):
            while "second" not in broker.shelf.current.entries:
                await broker.store.changed(0.2)
        assert (await perform(broker, "second")).content[0]["text"] == "two"
    reload = entries(tmp_path, "reload")[-1]
    assert (reload["cause"], reload["added"], reload["removed"]) == ("files changed", ["second"], [])


@pytest.mark.anyio
async def test_a_broken_file_changes_nothing_and_says_where(tmp_path: Path) -> None:
    async with broker_with(tmp_path, NOTES, watch=True) as broker:
        version = broker.shelf.current.version
        await anyio.sleep(0.3)  # as above
        (tmp_path / "tool_manifests" / "second.yaml").write_text(BROKEN)
        with anyio.fail_after(20):
            while not broker.reconciler.problems:
                await broker.store.changed(0.2)
        assert broker.shelf.current.version == version
        assert (await perform(broker, "first")).content[0]["text"] == "one"
        assert any("second.yaml:3:1" in problem and "effect" in problem for problem in broker.reconciler.problems)
    assert entries(tmp_path, "reload_refused")[-1]["cause"] == "files changed"


@pytest.mark.anyio
async def test_calls_under_way_are_not_harmed_by_reloads_good_or_bad(tmp_path: Path) -> None:
    async with broker_with(tmp_path, NOTES) as broker:
        done = anyio.Event()
        answered = 0

        async def call_on() -> None:
            nonlocal answered
            while not done.is_set():
                assert (await perform(broker, "first")).content[0]["text"] == "one"
                answered += 1

        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(call_on)
            for turn in range(10):
                text = SECOND if turn % 3 else BROKEN
                (tmp_path / "tool_manifests" / "second.yaml").write_text(text)
                with contextlib.suppress(ManifestError):
                    await broker.reconciler.reload("test")
            done.set()
        assert answered >= 8
        assert {record.state for record in await records(broker, limit=100_000)} == {"succeeded"}
