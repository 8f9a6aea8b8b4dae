"""How deciding goes: one answer, told by the console, the API and the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest

from broker.faces.deciding import stats
from broker.model.statistics import Judged
from broker.stores.sqlite import hold
from tests.command import broker
from tests.premises import House, house_with
from tests.stories.test_api import fits
from tests.stories.test_call import TOOLS
from tests.stories.test_console import browsing, sign_in
from tests.world import until_state

MINUTE = 60_000


def judged(number: int, state: str, *by: str, rule: str = "p/r", minutes: int = 1, **more: Any) -> list[Judged]:
    return [Judged(0, minutes * MINUTE if by else 0, state, rule, reviewers=by, **more)] * number


@pytest.mark.parametrize(
    ("rows", "decided", "expiry", "override"),
    [
        ([], 0, 0.0, 0.0),
        (judged(3, "held"), 0, 0.0, 0.0),
        (judged(3, "succeeded", "rita") + judged(1, "rejected", "raul"), 4, 0.0, 0.25),
        (judged(2, "succeeded", "rita") + judged(2, "succeeded", "rita", edited=True), 4, 0.0, 0.5),
        (judged(1, "failed", "rita") + judged(1, "outcome_unknown", "rita"), 2, 0.0, 0.0),
        (judged(1, "succeeded", "rita") + judged(3, "expired"), 1, 0.75, 0.0),
        (judged(1, "succeeded"), 0, 1.0, 0.0),  # let run when its time was over: nobody decided
        (judged(1, "withdrawn") + judged(1, "approved", "rita"), 1, 0.0, 0.0),
    ],
)
def test_what_was_decided_ran_out_and_was_overruled(
    rows: list[Judged], decided: int, expiry: float, override: float
) -> None:
    counts = stats(rows, 0).counts
    assert (counts.held, counts.decided) == (len(rows), decided)
    assert (counts.expiry_rate, counts.override_rate) == (expiry, override)
    assert counts.decided + counts.waiting + counts.expired + counts.withdrawn == counts.held


def test_the_median_is_of_what_people_decided() -> None:
    rows = [*judged(1, "succeeded", "a", minutes=1), *judged(1, "rejected", "a", minutes=9), *judged(5, "expired")]
    assert stats(rows, 0).counts.median_ms == 5 * MINUTE


@pytest.mark.parametrize(
    ("rows", "candidate"),
    [
        (judged(10, "succeeded", "rita"), True),
        (judged(9, "succeeded", "rita"), False),
        (judged(10, "succeeded", "rita") + judged(1, "rejected", "rita"), False),
        (judged(10, "succeeded", "rita") + judged(1, "succeeded", "rita", edited=True), False),
        (judged(10, "succeeded", "rita") + judged(1, "expired"), False),
    ],
)
def test_a_rule_is_a_candidate_for_a_grant_when_nothing_but_approving_ever_happened(
    rows: list[Judged], *, candidate: bool
) -> None:
    (rule,) = stats(rows, 0).rules
    assert rule.always_approved is candidate


def test_who_is_asked_too_much_is_named_and_who_decides_alone() -> None:
    busy = judged(8, "succeeded", "rita", groups=("desk",)) + judged(2, "expired", groups=("desk",))
    calm = judged(20, "succeeded", "raul", scopes=("pay.review",)) + judged(1, "expired", scopes=("pay.review",))
    found = stats(busy + calm, 0)
    assert [(one.scopes, one.groups, one.is_overloaded) for one in found.asked] == [
        (("pay.review",), (), False), ((), ("desk",), True),
    ]  # fmt: skip
    assert [(one.person, one.decided, one.is_overloaded) for one in found.persons] == [
        ("raul", 20, False), ("rita", 8, False),
    ]  # fmt: skip
    alone = stats(judged(9, "succeeded", "rita") + judged(3, "succeeded", "rita", "raul"), 0)
    assert [(one.person, one.is_overloaded) for one in alone.persons] == [("rita", True), ("raul", False)]


async def expire(house: House, call_id: str) -> None:
    store: Any = house.broker.store
    found = await house.broker.store.invocation(call_id)
    assert found is not None
    assert found.hold is not None
    assert await store.writer.run(hold.expire, (call_id, found.hold.expires_at_ms))


@pytest.mark.anyio
async def test_console_api_and_command_line_tell_the_same(tmp_path: Path) -> None:
    async with house_with(tmp_path, TOOLS) as house:
        house.person("rita")
        house.person("nobody", scopes=())
        ids = [await house.held(arguments={"amount": 500 + number}) for number in range(5)]
        await house.post(f"/api/holds/{ids[0]}/approve", "rita")
        await house.post(f"/api/holds/{ids[1]}/approve", "rita", {"arguments": {"amount": 50}})
        await house.post(f"/api/holds/{ids[2]}/deny", "rita", {"reason": "no"})
        await expire(house, ids[3])
        for call_id in ids[:2]:
            await until_state(house.broker, call_id, "succeeded")
        told = (await house.get("/api/stats?days=7", "rita")).json()
        assert fits("Stats", told)
        counts = {
            name: told["counts"][name] for name in ("held", "waiting", "approved", "changed", "denied", "expired")
        }
        assert counts == {"held": 5, "waiting": 1, "approved": 1, "changed": 1, "denied": 1, "expired": 1}
        assert told["counts"]["expiry_rate"] == 0.25
        assert [one["person"] for one in told["persons"]] == [f"rita@{house.url}"]
        assert (await house.get("/api/stats", "nobody")).status_code == 403
        here = await anyio.to_thread.run_sync(lambda: broker("holds", "--stats", "--days", "7", "--json", cwd=tmp_path))
        assert here.json["counts"] == told["counts"]
        assert here.json["rules"] == told["rules"]
        words = await anyio.to_thread.run_sync(lambda: broker("holds", "--stats", cwd=tmp_path))
        assert "5 calls held, 1 still waiting" in words.out
        assert "writes/large" in words.out
        async with browsing(house) as http:
            await sign_in(http, house, "rita")
            page = (await http.get("/console/insight")).text
            assert "5 calls held, 1 still waiting. People decided 3" in page
            assert "67 % were denied or changed. 1 (25 % of what ended)" in page
            assert f"<td>rita@{house.url}</td>" in page
