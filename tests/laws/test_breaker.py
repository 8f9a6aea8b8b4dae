"""When a backend is left alone, and when it is asked again."""

from __future__ import annotations

import pytest

from broker.backends.breaker import FAILURES, Breaker
from broker.errors import Unavailable


class Now:
    at = 0.0

    def __call__(self) -> float:
        return self.at


def broken(now: Now) -> Breaker:
    breaker = Breaker("orders", now)
    for _ in range(FAILURES):
        breaker.enter()
        breaker.failed("connection refused")
    return breaker


def test_it_opens_after_failures_in_a_row_and_says_why() -> None:
    with pytest.raises(Unavailable, match="connection refused") as refused:
        broken(Now()).enter()
    assert refused.value.effect == "none"
    assert refused.value.facts["retry_after_ms"] > 0


def test_one_success_in_between_keeps_it_closed() -> None:
    breaker = Breaker("orders", Now())
    for _ in range(FAILURES * 3):
        breaker.failed("no")
        breaker.succeeded()
    breaker.enter()


def test_after_the_pause_one_call_may_try_and_a_success_closes_it() -> None:
    now = Now()
    breaker = broken(now)
    now.at = 1.0
    breaker.enter()
    with pytest.raises(Unavailable):
        breaker.enter()  # the probe is under way
    breaker.succeeded()
    breaker.enter()
    assert breaker.reason == ""


def test_a_failed_probe_doubles_the_pause_up_to_a_minute() -> None:
    now = Now()
    breaker = broken(now)
    for pause in (1, 2, 4, 8, 16, 32, 60, 60):
        now.at += pause - 0.01
        with pytest.raises(Unavailable):
            breaker.enter()
        now.at += 0.01
        breaker.enter()
        breaker.failed("still refused")


def test_a_probe_that_was_given_up_lets_the_next_call_try() -> None:
    now = Now()
    breaker = broken(now)
    now.at = 1.0
    breaker.enter()
    breaker.left()
    breaker.enter()
