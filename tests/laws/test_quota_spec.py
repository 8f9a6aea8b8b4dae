"""Quotas as written: exact money, calendar windows, buckets; and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from broker.model.principal import Principal
from broker.model.quota import Charge
from broker.policies.amount import micro, reported
from broker.policies.bucket import Asked, Key, buckets
from broker.policies.calendar import window
from broker.policies.quota import Meter, QuotaSpec, meter

TOOL = {"tool.name": "t", "tool.version": "1", "tool.owner": "o", "tool.effect": "write", "tool.backend": "b"}
BOT = Principal(agent="bot", user="Ann", tenant="acme")


def ms(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1000)


def told(at_ms: int, zone: str) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).astimezone(ZoneInfo(zone)).isoformat(timespec="minutes")


def quota(**parts: Any) -> QuotaSpec:
    return QuotaSpec.model_validate({"name": "q", "by": ["agent"], **parts}, strict=True)


def charge(one: Meter, arguments: dict[str, Any], now: int) -> Charge:
    (only,) = one.charges(Asked(BOT, arguments, TOOL), now)
    return only


def bucket(by: Sequence[Key], caller: Principal, tool: dict[str, str]) -> str:
    (only,) = buckets(by, frozenset(), Asked(caller, {}, tool))
    return only


def test_each_kind_of_quota_becomes_its_charge() -> None:
    now = ms("2026-11-15T10:30:00+00:00")
    rate = charge(meter(quota(rate={"limit": 60, "per": "1m"})), {}, now)
    assert (rate.quota, rate.kind, rate.limit, rate.amount, rate.window_ms) == ("q", "rate", 60, 1, 60_000)
    assert (rate.bucket, rate.unit) == ("agent=bot", "calls")
    count = charge(meter(quota(count={"limit": 5, "per": "day", "timezone": "Europe/Berlin"})), {}, now)
    assert (count.kind, count.window_ms) == ("count", 0)
    assert told(count.starts_at_ms, "Europe/Berlin") == "2026-11-15T00:00+01:00"
    assert told(count.resets_at_ms, "Europe/Berlin") == "2026-11-16T00:00+01:00"
    held = charge(meter(quota(concurrency={"limit": 5, "lease": "90s"})), {}, now)
    assert (held.kind, held.limit, held.window_ms) == ("concurrency", 5, 90_000)
    cost = {"limit": "100.00", "per": "month", "currency": "EUR"}
    fixed = charge(meter(quota(cost={**cost, "amount": "0.02"})), {}, now)
    assert (fixed.kind, fixed.limit, fixed.amount, fixed.unit) == ("cost", 100_000_000, 20_000, "eur_micro")
    computed = meter(quota(cost={**cost, "amount": "args.amount * 2.0"}))
    assert charge(computed, {"amount": 1.25}, now).amount == 2_500_000


@pytest.mark.parametrize(
    ("parts", "word"),
    [
        ({}, "exactly one of"),
        ({"rate": {"limit": 1, "per": "1m"}, "count": {"limit": 1, "per": "day"}}, "exactly one of"),
        ({"rate": {"limit": 0, "per": "1m"}}, "greater than or equal to 1"),
        ({"rate": {"limit": -1, "per": "1m"}}, "greater than or equal to 1"),
        ({"rate": {"limit": 1e300, "per": "1m"}}, "valid integer"),
        ({"rate": {"limit": True, "per": "1m"}}, "valid integer"),
        ({"rate": {"limit": "5", "per": "1m"}}, "valid integer"),
        ({"rate": {"limit": 10**10, "per": "1m"}}, "less than or equal"),
        ({"rate": {"limit": 1, "per": "1h30"}}, "duration"),
        ({"rate": {"limit": 1, "per": "0s"}}, "duration"),
        ({"rate": {"limit": 1, "per": -5}}, "duration"),
        ({"rate": {"limit": 1, "per": "1m", "burst": 2}}, "Extra inputs"),
        ({"count": {"limit": 1, "per": "fortnight"}}, "'minute', 'hour', 'day', 'week' or 'month'"),
        ({"count": {"limit": 1, "per": "day", "timezone": "Europe/Berlim"}}, "did you mean 'Europe/Berlin'?"),
        ({"count": {"limit": 1, "per": "day", "timezone": "../../etc/passwd"}}, "unknown time zone"),
        ({"count": {"limit": 1, "per": "hour", "timezone": "Europe/Berlin"}}, "day, week and month only"),
        ({"rate": {"limit": 1, "per": "1m"}, "by": ["agent", "agent"]}, "twice"),
        ({"rate": {"limit": 1, "per": "1m"}, "by": ["person"]}, "'agent', 'user', 'tenant', 'group'"),
        ({"rate": {"limit": 1, "per": "1m"}, "by": ["group"]}, "belong together"),
        ({"rate": {"limit": 1, "per": "1m"}, "groups": ["sales"]}, "belong together"),
        ({"rate": {"limit": 1, "per": "1m"}, "by": ["group"], "groups": ["g"] * 17}, "at most 16"),
        ({"rate": {"limit": 1, "per": "1m"}, "by": ["task"]}, "callers choose their task"),
        ({"rate": {"limit": 1, "per": "1m"}, "by": ["task", "tool"]}, "callers choose their task"),
        ({"repeat": {"limit": 1, "per": "1m", "cool_down": "1m"}}, "greater than or equal to 2"),
        ({"repeat": {"limit": 5, "per": "1m"}}, "Field required"),
        ({"errors": {"limit": 0, "per": "1m", "cool_down": "1m"}}, "greater than or equal to 1"),
        ({"tokens": {"limit": 0, "per": "day", "amount": 1}}, "tokens is between"),
        ({"tokens": {"limit": "1e16", "per": "day", "amount": 1}}, "tokens is"),
        ({"tokens": {"limit": 10, "per": "day", "amount": 1.5}}, "whole"),
        ({"tokens": {"limit": 10, "per": "day", "amount": -1}}, "tokens is between"),
        ({"tokens": {"limit": 10, "per": "day", "amount": float("nan")}}, "tokens is between"),
        ({"tokens": {"limit": 10, "per": "day", "amount": "args.n >"}}, "Syntax error"),
        ({"rate": {"limit": 1, "per": "1m"}, "tools": ["a"], "owner": ["b"]}, "one of `tools`"),
    ],
)
def test_what_is_no_quota_is_refused(parts: dict[str, Any], word: str) -> None:
    with pytest.raises(ValidationError) as error:
        quota(**parts)
    assert word in str(error.value)


@pytest.mark.parametrize(
    ("written", "exact"),
    [
        ("100.00", 100_000_000),
        (100, 100_000_000),
        (0.1, 100_000),
        ("0.000001", 1),
        ("1e3", 1_000_000_000),
        (" 2.5 ", 2_500_000),
    ],
)
def test_money_is_exact(written: object, exact: int) -> None:
    assert micro(written) == exact


@pytest.mark.parametrize(
    "written",
    [0, -1, "0", "-0.01", "0.0000001", 1e-9, 0.1 + 0.2, float("nan"), float("inf"), "NaN", "Infinity", 1e300, "1e30",
     "", "x",     "1,5", True, None, [1], "1" * 5000, 1_000_000_001],
)  # fmt: skip
def test_what_is_not_exact_money_is_refused(written: object) -> None:
    with pytest.raises(ValueError, match=r"money|decimal"):
        micro(written)


@given(st.decimals(min_value="0.000001", max_value=1_000_000, places=6))
def test_any_decimal_of_six_places_is_kept_to_the_last(amount: Any) -> None:
    assert micro(str(amount)) == int(amount * 1_000_000)


@pytest.mark.parametrize("value", [0, -1, 1e-9, "x", None, [1], 1e30, True])
def test_an_amount_that_is_no_price_is_an_objection(value: Any) -> None:
    one = meter(quota(cost={"limit": 5, "per": "day", "amount": "args.amount", "currency": "EUR"}))
    assert "cannot be computed" in one.objection(Asked(BOT, {"amount": value}, TOOL), 0)
    assert "cannot be computed" in one.objection(Asked(BOT, {}, TOOL), 0)
    assert one.objection(Asked(BOT, {"amount": "0.02"}, TOOL), 0) == ""


@pytest.mark.parametrize("amount", ["0", "-1", "NaN", "1e-9", "args.x >", "caller.agnt", "args.x > 1", 0, True, None])
def test_a_constant_or_expression_that_cannot_be_a_price_is_refused_at_load(amount: Any) -> None:
    with pytest.raises(ValidationError):
        quota(cost={"limit": 5, "per": "day", "amount": amount, "currency": "EUR"})


@pytest.mark.parametrize(
    ("period", "zone", "now", "start", "end"),
    [
        ("minute", "UTC", "2026-03-29T00:59:59+00:00", "2026-03-29T00:59+00:00", "2026-03-29T01:00+00:00"),
        ("hour", "UTC", "2026-03-29T00:59:59+00:00", "2026-03-29T00:00+00:00", "2026-03-29T01:00+00:00"),
        # the day the clock is put forward has 23 hours, the day it is put back has 25
        ("day", "Europe/Berlin", "2026-03-29T12:00:00+02:00", "2026-03-29T00:00+01:00", "2026-03-30T00:00+02:00"),
        ("day", "Europe/Berlin", "2026-10-25T12:00:00+01:00", "2026-10-25T00:00+02:00", "2026-10-26T00:00+01:00"),
        # midnight itself is skipped: the day begins at the first instant after
        ("day", "Africa/Cairo", "2026-04-24T12:00:00+03:00", "2026-04-24T01:00+03:00", "2026-04-25T00:00+03:00"),
        # midnight comes twice: the day begins with the first
        ("day", "America/Havana", "2026-11-01T12:00:00-05:00", "2026-11-01T00:00-04:00", "2026-11-02T00:00-05:00"),
        ("week", "Europe/Berlin", "2026-11-22T23:59:59+01:00", "2026-11-16T00:00+01:00", "2026-11-23T00:00+01:00"),
        ("week", "Europe/Berlin", "2026-11-23T00:00:00+01:00", "2026-11-23T00:00+01:00", "2026-11-30T00:00+01:00"),
        ("month", "Europe/Berlin", "2028-02-29T12:00:00+01:00", "2028-02-01T00:00+01:00", "2028-03-01T00:00+01:00"),
        ("month", "America/New_York", "2026-12-31T23:59:59-05:00", "2026-12-01T00:00-05:00", "2027-01-01T00:00-05:00"),
    ],
)  # fmt: skip
def test_a_calendar_window_begins_and_ends_at_local_midnight(
    period: Any, zone: str, now: str, start: str, end: str
) -> None:
    first, last = window(period, UTC if zone == "UTC" else ZoneInfo(zone), ms(now))
    assert (told(first, zone), told(last, zone)) == (start, end)


@given(
    st.sampled_from(["minute", "hour", "day", "week", "month"]),
    st.sampled_from(["UTC", "Europe/Berlin", "Africa/Cairo", "America/Havana", "Australia/Lord_Howe",
                     "Pacific/Apia", "America/St_Johns"]),
    st.integers(ms("1995-01-01T00:00:00+00:00"), ms("2035-01-01T00:00:00+00:00")),
)  # fmt: skip
def test_every_instant_lies_in_one_window_and_windows_follow_one_another(period: Any, zone: str, now: int) -> None:
    place = ZoneInfo(zone)
    start, end = window(period, place, now)
    assert start <= now < end
    assert window(period, place, start) == (start, end)
    assert window(period, place, end - 1) == (start, end)
    assert window(period, place, end)[0] == end
    assert window(period, place, start - 1)[1] == start


def test_a_bucket_is_one_persons_whatever_the_spelling_and_nobody_elses() -> None:
    by = ("agent", "user", "tenant", "tool", "backend")
    assert bucket(by, BOT, TOOL) == "agent=bot,user=ann,tenant=acme,tool=t,backend=b"
    assert bucket(by, Principal(agent="BOT", user="ANN ", tenant="Ａcme"), TOOL) == bucket(by, BOT, TOOL)
    assert bucket(("user",), Principal(agent="a"), TOOL) != bucket(("user",), Principal(agent="b"), TOOL)
    forged = Principal(agent="x,user=ann", user="")
    assert bucket(("agent", "user"), forged, TOOL) != bucket(("agent", "user"), Principal(agent="x", user="ann"), TOOL)
    assert bucket((), BOT, TOOL) == ""


@given(st.text(max_size=20), st.text(max_size=20), st.text(max_size=20), st.text(max_size=20))
def test_two_buckets_are_equal_only_for_equal_people(a: str, b: str, c: str, d: str) -> None:
    from broker.model.principal import person

    first, second = Principal(agent=a, tenant=b), Principal(agent=c, tenant=d)
    same = (person(a), person(b)) == (person(c), person(d))
    assert (bucket(("agent", "tenant"), first, TOOL) == bucket(("agent", "tenant"), second, TOOL)) is same


def test_a_window_that_is_kept_is_left_when_time_leaves_it_in_either_direction() -> None:
    one = meter(quota(count={"limit": 5, "per": "hour"}))
    for hour in (1, 1, 2, 1, 0):
        taken = charge(one, {}, hour * 3_600_000 + 5)
        assert (taken.starts_at_ms, taken.resets_at_ms) == (hour * 3_600_000, (hour + 1) * 3_600_000)


def test_tokens_are_counted_whole_and_a_breaker_is_of_one_call_or_of_failures() -> None:
    day = {"limit": 1000, "per": "day"}
    fixed = charge(meter(quota(tokens={**day, "amount": 40})), {}, 0)
    assert (fixed.kind, fixed.limit, fixed.amount, fixed.unit) == ("cost", 1000, 40, "tokens")
    computed = meter(quota(tokens={**day, "amount": "args.most"}))
    assert charge(computed, {"most": 7}, 0).amount == 7
    assert computed.objection(Asked(BOT, {"most": 0.5}, TOOL), 0)
    loop = {"limit": 3, "per": "5m", "cool_down": "10m"}
    repeat = meter(quota(repeat=loop))
    one = charge(repeat, {"n": 1}, 0)
    assert (one.kind, one.limit, one.amount, one.window_ms, one.cool_down_ms) == ("repeat", 3, 1, 300_000, 600_000)
    assert one.bucket.startswith("agent=bot,call=")
    assert charge(repeat, {"n": 1}, 9).bucket == one.bucket != charge(repeat, {"n": 2}, 0).bucket
    failing = charge(meter(quota(errors=loop)), {}, 0)
    assert (failing.kind, failing.amount, failing.bucket, failing.unit) == ("errors", 0, "agent=bot", "failures")


def test_who_is_in_several_groups_is_charged_in_each_that_the_quota_names() -> None:
    one = meter(quota(rate={"limit": 5, "per": "1m"}, by=["group", "tool"], groups=["Sales", "support"]))

    def whose(*groups: str) -> list[str]:
        asked = Asked(Principal(agent="a", groups=frozenset(groups)), {}, TOOL)
        return [taken.bucket for taken in one.charges(asked, 0)]

    assert whose("support", "sales", "others") == ["group=sales,tool=t", "group=support,tool=t"]
    assert whose("SUPPORT", "support") == ["group=support,tool=t"]
    assert whose("others") == whose() == []


def test_a_task_and_a_model_are_what_the_call_says() -> None:
    one = meter(quota(rate={"limit": 5, "per": "1m"}, by=["agent", "task", "model"]))

    def whose(task: str, arguments: dict[str, Any]) -> str:
        return one.charges(Asked(BOT, arguments, TOOL, task), 0)[0].bucket

    assert whose("t,1", {"model": "GPT-5"}) == "agent=bot,task=t%2C1,model=gpt-5"
    assert whose("", {"model": 7}) == whose("", {}) == "agent=bot,task=,model="
    assert len(whose("", {"model": "m" * 10_000})) < 200


@pytest.mark.parametrize(
    ("said", "unit", "used"),
    [
        (12, "tokens", 12),
        (0, "tokens", 0),
        (1.2, "tokens", 2),
        ("17", "tokens", 17),
        (0.0000001, "eur_micro", 1),
        ("1.5", "eur_micro", 1_500_000),
        (1e300, "tokens", 10**15),
        (-1, "tokens", None),
        (float("nan"), "tokens", None),
        (float("inf"), "eur_micro", None),
        ("many", "tokens", None),
        (True, "tokens", None),
        (None, "tokens", None),
        ([3], "tokens", None),
    ],
)
def test_what_a_backend_reports_is_rounded_up_and_what_is_no_number_is_not_taken(
    said: Any, unit: str, used: int | None
) -> None:
    assert reported(said, unit) == used
