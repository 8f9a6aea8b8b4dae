"""Clocks that jump and differ: no window is given twice, nothing is given back, an edge belongs to one window only."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from broker.assembly import Broker
from broker.clock import FileClock
from broker.errors import OverQuota
from broker.settings import Settings
from tests.records import HOUR, MINUTE, HandClock
from tests.world import a_call, agent, settings_in

pytestmark = pytest.mark.anyio

TOOL = """
kind: backend
name: notes
static: {}
---
kind: tool
name: look
effect: read
backend: notes
static: {text: looked}
---
kind: quota
name: q
LIMITS
by: []
"""


def ms(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1000)


def settings(folder: Path, limits: str, **keys: Any) -> Settings:
    folder.mkdir(exist_ok=True)
    return settings_in(folder, TOOL.replace("LIMITS", limits), **keys)


async def admitted(broker: Broker, calls: int = 1) -> int:
    count = 0
    for _ in range(calls):
        try:
            await broker.pipeline.perform(a_call("look", {}, agent()))
        except OverQuota:
            continue
        count += 1
    return count


EDGES = [
    ("count: {limit: 1, per: minute}", "2026-06-01T10:00:00+00:00", "2026-06-01T10:01:00+00:00"),
    ("count: {limit: 1, per: hour}", "2026-06-01T10:00:00+00:00", "2026-06-01T11:00:00+00:00"),
    ("count: {limit: 1, per: week}", "2026-06-01T00:00:00+00:00", "2026-06-08T00:00:00+00:00"),
    ("count: {limit: 1, per: month}", "2026-01-31T12:00:00+00:00", "2026-02-01T00:00:00+00:00"),
    ("count: {limit: 1, per: month}", "2028-02-29T12:00:00+00:00", "2028-03-01T00:00:00+00:00"),
    # a day of 23 hours, one of 25, and one whose midnight does not exist
    ("count: {limit: 1, per: day, timezone: Europe/Berlin}", "2026-03-29T00:00:00+01:00", "2026-03-30T00:00:00+02:00"),
    ("count: {limit: 1, per: day, timezone: Europe/Berlin}", "2026-10-25T00:00:00+02:00", "2026-10-26T00:00:00+01:00"),
    ("count: {limit: 1, per: day, timezone: Africa/Cairo}", "2026-04-23T00:00:00+02:00", "2026-04-24T01:00:00+03:00"),
    ("rate: {limit: 1, per: 1m}", "2026-03-29T01:59:30+01:00", "2026-03-29T03:00:30+02:00"),
    (
        'cost: {limit: 1, per: day, amount: "1.00", currency: EUR}',
        "2026-06-01T00:00:00+00:00",
        "2026-06-02T00:00:00+00:00",
    ),
    ("tokens: {limit: 7, per: day, amount: 4}", "2026-06-01T00:00:00+00:00", "2026-06-02T00:00:00+00:00"),
]


@pytest.mark.parametrize(("limits", "begins", "ends"), EDGES)
async def test_the_last_millisecond_is_of_the_old_window_and_the_next_of_the_new(
    tmp_path: Path, limits: str, begins: str, ends: str
) -> None:
    clock = HandClock(ms(begins))
    async with Broker.open(settings(tmp_path, limits), clock=clock) as broker:
        assert await admitted(broker, 2) == 1
        clock.at_ms = ms(ends) - 1
        assert await admitted(broker) == 0
        clock.at_ms = ms(ends)
        assert await admitted(broker, 2) == 1
        clock.at_ms = ms(ends) + 1
        assert await admitted(broker) == 0


@pytest.mark.parametrize("limits", ["count: {limit: 10, per: hour}", "rate: {limit: 10, per: 1h}"])
@pytest.mark.parametrize("off", ["+3600", "-3600"])
async def test_of_two_brokers_one_is_an_hour_off_and_no_window_is_given_twice(
    tmp_path: Path, limits: str, off: str
) -> None:
    (tmp_path / "wrong").mkdir()
    for name in ("right", "wrong"):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "now").write_text("2026-06-01T10:30:00Z")
    keys: dict[str, Any] = {"database": "../broker.db", "testing": {"clock_file": "now"}}
    hour = 11 if off == "+3600" else 9
    (tmp_path / "wrong" / "now").write_text(f"2026-06-01T{hour:02}:30:00Z")
    async with (
        Broker.open(settings(tmp_path / "right", limits, **keys)) as right,
        Broker.open(settings(tmp_path / "wrong", limits, **keys)) as wrong,
    ):
        assert await admitted(right, 12) == 10
        ahead = await admitted(wrong, 12)
        assert ahead == (10 if hour == 11 else 0), "who is ahead enters the next window early, who is behind none"
        assert await admitted(right, 3) == 0, "and that gives nothing back"
        (tmp_path / "right" / "now").write_text("2026-06-01T11:29:00Z")
        assert await admitted(right, 12) == (0 if ahead else 10 if "count" in limits else 0), "nor a window twice"
        (tmp_path / "right" / "now").write_text("2026-06-01T12:30:00Z")
        assert await admitted(right, 12) == 10


async def test_a_clock_that_is_set_back_and_forth_gives_no_more_than_its_windows(tmp_path: Path) -> None:
    clock = HandClock(ms("2026-06-01T10:30:00+00:00"))
    async with Broker.open(settings(tmp_path, "count: {limit: 3, per: hour}"), clock=clock) as broker:
        total = 0
        for step in (0, -HOUR, HOUR, 0, -HOUR, HOUR, -2 * HOUR, 2 * HOUR, MINUTE, -MINUTE):
            clock.at_ms = ms("2026-06-01T10:30:00+00:00") + step
            total += await admitted(broker, 5)
        assert total == 9, "of three hours that were entered: 10, 11 and 12"


def test_a_file_moves_the_clock_or_stops_it_and_nonsense_does_neither(tmp_path: Path) -> None:
    file = tmp_path / "now"
    clock, system = FileClock(file), FileClock(tmp_path / "none")

    def ahead_s() -> float:
        return round((clock.now_ms() - system.now_ms()) / 1000)

    assert ahead_s() == 0
    for said, moved in (("+3600", 3600), ("-7200.0\n", -7200), ("soon", -7200), ("", -7200), ("+nan", -7200)):
        file.write_text(said)
        assert ahead_s() == moved, said
    file.write_text("2026-03-29T01:59:59.999+01:00")
    assert clock.now_ms() == clock.now_ms() == ms("2026-03-29T01:59:59.999+01:00")
    file.write_text("2026-03-29T01:59:59")  # of which zone?
    assert clock.now_ms() == ms("2026-03-29T01:59:59.999+01:00")
    file.unlink()
    assert ahead_s() == 0
