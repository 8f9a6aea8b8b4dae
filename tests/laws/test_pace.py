"""Who talks too much waits: in any time no more passes than the burst, the rate times that time, and one wait."""

from __future__ import annotations

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.backends import pace
from broker.backends.pace import WAIT_S, Pace

PER_S, BURST = 100.0, 40.0


class HandTime:
    """A clock that only waiting, and the test, move on."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.waits = 0

    def current_time(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.waits += 1


words = st.lists(st.tuples(st.floats(0, 2), st.floats(0.5, 20)), max_size=200)


@given(words)
def test_no_more_passes_than_its_rate_allows(said: list[tuple[float, float]]) -> None:
    time = HandTime()

    async def talk() -> None:
        one = Pace(PER_S, BURST)
        passed: list[tuple[float, float]] = []
        for quiet_s, amount in said:
            time.now += quiet_s
            await one.spend(amount)
            passed.append((time.now, amount))
        for first, (since, _) in enumerate(passed):
            for until, _ in passed[first:]:
                much = sum(amount for at, amount in passed[first:] if at <= until)
                assert much <= BURST + PER_S * (until - since + WAIT_S) + 20

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pace, "anyio", time)
        anyio.run(talk)


def test_who_is_asked_much_may_say_much() -> None:
    """A thousand calls in a second, and some words in each."""
    time = HandTime()

    async def talk() -> None:
        one = Pace()
        for _ in range(1000):
            time.now += 0.001
            one.earn()
            for _ in range(15):
                await one.spend(1)
        assert time.waits == 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pace, "anyio", time)
        anyio.run(talk)


def test_who_talks_little_never_waits_and_who_talks_without_end_waits_seldom() -> None:
    time = HandTime()

    async def talk() -> None:
        calm = Pace(PER_S, BURST)
        for _ in range(100):
            time.now += 0.02
            await calm.spend(1)
        assert time.waits == 0
        began = time.now
        loud = Pace(PER_S, BURST)
        for _ in range(1000):
            await loud.spend(1)
        assert time.now - began >= (1000 - BURST) / PER_S - WAIT_S
        assert time.waits <= 1000 / (PER_S * WAIT_S)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pace, "anyio", time)
        anyio.run(talk)
