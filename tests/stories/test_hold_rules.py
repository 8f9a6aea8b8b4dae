"""What a holding rule may ask: several persons, reasons, others after a while, working hours, and what expiry means."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import pytest

from broker.assembly import Broker
from broker.errors import Conflict, Forbidden, Held, ManifestError, OverQuota
from broker.model.directory import Account
from broker.model.hold import Review
from broker.model.principal import Principal
from broker.verifier import verify
from tests.records import HOUR, NOW, HandClock
from tests.world import agent, perform, reviewer, settings_in, until_state

caller = agent(scopes=["work"], user="ann", issuer="settings")
STDIO = {"agent": "bot", "user": "ann", "scopes": ["work"]}

TOOLS = """
kind: backend
name: notes
static: {}
---
kind: tool
name: pay
effect: %(effect)s
scopes: [work]
backend: notes
%(more)s
input: {type: object, properties: {amount: {type: number}}, required: [amount]}
static: {text: paid}
---
kind: policy
name: money
tools: [pay]
rules: [{id: all, effect: hold, %(rule)s}]
"""


@asynccontextmanager
async def house(
    folder: Path, rule: str, *, effect: str = "write", more: str = "", clock: HandClock | None = None
) -> AsyncGenerator[Broker]:
    manifests = TOOLS % {"rule": rule, "effect": effect, "more": more}
    async with Broker.open(settings_in(folder, manifests, stdio=STDIO), clock=clock) as broker:
        yield broker
    assert verify(folder / "broker.db").fault is None


async def held(broker: Broker, amount: float = 1) -> str:
    with pytest.raises(Held) as error:
        await perform(broker, "pay", {"amount": amount}, caller, may_wait=False)
    return str(error.value.facts["hold_id"])


async def decide(broker: Broker, hold_id: str, who: Principal, *, approve: bool = True, **more: Any) -> str:
    reason = more.pop("reason", "looked at it")
    decided = await broker.desk.review(hold_id, approve=approve, reviewer=who, reason=reason, via="test", **more)
    return decided.state


@pytest.mark.anyio
async def test_two_of_several_must_approve_and_one_person_counts_once(tmp_path: Path) -> None:
    async with house(tmp_path, "quorum: 2") as broker:
        hold_id = await held(broker)
        assert await decide(broker, hold_id, reviewer("rita")) == "held"
        aliases = ["rita", "RITA", " rita ", "Rita", "ｒｉｔａ"]
        for alias in aliases:
            with pytest.raises(Conflict, match="approved the held call"):
                await decide(broker, hold_id, reviewer(alias))
        owned = Principal(agent="key-7", owner="Rita", issuer="api-key", scopes=frozenset({"broker.review"}))
        with pytest.raises(Conflict, match="approved the held call"):
            await decide(broker, hold_id, owned)
        with pytest.raises(Held, match=r"1 of 2 approvals are given"):
            await perform(broker, "broker_held_call", {"id": hold_id}, caller, may_wait=False)
        assert await decide(broker, hold_id, reviewer("raul")) == "approved"
        done = await until_state(broker, hold_id, "succeeded")
        assert done.hold is not None
        assert [one.reviewer for one in done.hold.approvals] == ["rita@test", "raul@test"]


@pytest.mark.anyio
async def test_of_a_quorum_one_is_enough_to_deny(tmp_path: Path) -> None:
    async with house(tmp_path, "quorum: 3") as broker:
        hold_id = await held(broker)
        await decide(broker, hold_id, reviewer("rita"))
        assert await decide(broker, hold_id, reviewer("raul"), approve=False) == "rejected"


@pytest.mark.anyio
async def test_an_edit_voids_the_approvals_of_what_it_changed(tmp_path: Path) -> None:
    async with house(tmp_path, "quorum: 2") as broker:
        hold_id = await held(broker)
        await decide(broker, hold_id, reviewer("rita"))
        assert await decide(broker, hold_id, reviewer("raul"), arguments={"amount": 2}) == "held"
        with pytest.raises(Conflict):
            await decide(broker, hold_id, reviewer("raul"))
        assert await decide(broker, hold_id, reviewer("rita")) == "approved"
        assert (await until_state(broker, hold_id, "succeeded")).kept == {"amount": 2}


@pytest.mark.anyio
async def test_a_decision_without_the_reason_its_rule_asks_for_is_none(tmp_path: Path) -> None:
    async with house(tmp_path, "reasons: [approve]") as broker:
        hold_id = await held(broker)
        with pytest.raises(Forbidden, match="An approval of this call needs a reason"):
            await decide(broker, hold_id, reviewer(), reason=" \n ")
        assert await decide(broker, hold_id, reviewer(), approve=False, reason="") == "rejected"


@pytest.mark.anyio
async def test_after_a_while_others_may_decide_as_well(tmp_path: Path) -> None:
    clock = HandClock()
    rule = "reviewers: {groups: [desk]}, expires: 4h, escalate: {after: 1h, reviewers: {groups: [board]}}"
    async with house(tmp_path, rule, clock=clock) as broker:
        hold_id = await held(broker)
        boss = reviewer("boss", scopes=(), groups=("board",))
        with pytest.raises(Forbidden, match=r"takes group desk\.$"):
            await decide(broker, hold_id, boss)
        clock.at_ms += HOUR
        with pytest.raises(Forbidden, match="group board or group desk"):
            await decide(broker, hold_id, reviewer("else", scopes=(), groups=("other",)))
        assert await decide(broker, hold_id, boss) == "approved"


@pytest.mark.anyio
async def test_an_agent_has_so_many_holds_of_one_rule_open(tmp_path: Path) -> None:
    async with house(tmp_path, "open_per_agent: 2") as broker:
        first = await held(broker, 1)
        await held(broker, 2)
        with pytest.raises(OverQuota, match="open_holds for agent=bot,rule=money/all"):
            await held(broker, 3)
        await decide(broker, first, reviewer(), approve=False)
        await held(broker, 3)


@pytest.mark.anyio
async def test_expiry_lets_a_read_run_where_its_rule_says_so(tmp_path: Path) -> None:
    clock = HandClock()
    async with house(tmp_path, "on_expiry: allow, expires: 1h", effect="read", clock=clock) as broker:
        hold_id = await held(broker)
        clock.at_ms += HOUR
        await broker.store.sweep(clock.at_ms)
        done = await until_state(broker, hold_id, "succeeded")
        assert done.hold is not None
        assert (done.hold.reviewer, done.hold.review_reason[:14]) == ("broker", "nobody decided")


def test_expiry_never_lets_a_write_run(tmp_path: Path) -> None:
    async def opened() -> None:
        async with house(tmp_path, "on_expiry: allow"):
            pass

    with pytest.raises(ManifestError, match=r"on_expiry: allow is for tools that only read; pay does not"):
        anyio.run(opened)


@pytest.mark.anyio
async def test_time_outside_of_working_hours_does_not_count(tmp_path: Path) -> None:
    friday, monday = (
        datetime(2026, 9, 25, 17, tzinfo=UTC),
        datetime(2026, 9, 28, 11, tzinfo=UTC),
    )  # 19:00, 13:00 in Berlin
    clock = HandClock(round(friday.timestamp() * 1000))
    hours = 'hours: {begin: "09:00", end: "17:00", timezone: Europe/Berlin}, expires: 4h'
    async with house(tmp_path, hours, clock=clock) as broker:
        found = await broker.store.invocation(await held(broker))
        assert found is not None
        assert found.hold is not None
        assert found.hold.expires_at_ms == monday.timestamp() * 1000


@pytest.mark.anyio
async def test_what_its_caller_must_collect_runs_when_it_does(tmp_path: Path) -> None:
    async with house(tmp_path, "quorum: 1", more="run: on_collect") as broker:
        hold_id = await held(broker)
        await decide(broker, hold_id, reviewer())
        await broker.store.changed(0.3)
        waiting = await broker.store.invocation(hold_id)
        assert waiting is not None
        assert waiting.state == "approved"
        answer = await perform(broker, "broker_held_call", {"id": hold_id}, caller)
        assert answer.content[0]["text"] == "paid"
        with pytest.raises(Exception, match="no held call"):
            await perform(broker, "broker_held_call", {"id": hold_id}, agent("other"))


@pytest.mark.anyio
async def test_an_agent_lists_its_own_open_holds(tmp_path: Path) -> None:
    async with house(tmp_path, "quorum: 1") as broker:
        ids = {await held(broker, 1), await held(broker, 2)}
        listed = await perform(broker, "broker_held_call", {}, caller)
        assert listed.structured is not None
        assert {one["id"] for one in listed.structured["holds"]} == ids
        others = await perform(broker, "broker_held_call", {}, agent("other"))
        assert others.structured == {"holds": []}


@pytest.mark.anyio
async def test_a_reviewer_who_lost_the_role_before_the_call_ran_has_not_approved_it(tmp_path: Path) -> None:
    manifests = TOOLS % {"rule": "quorum: 1", "effect": "write", "more": ""}
    settings = settings_in(tmp_path, manifests, stdio=STDIO)
    async with Broker.open(settings, work=False) as broker:
        async with broker.reconciler.running():
            hold_id = await held(broker)
        account = Account(
            name="rita",
            password_hash="",
            scopes=frozenset({"broker.review"}),
            groups=frozenset(),
            tenant="",
            created_at_ms=NOW,
        )
        broker.directory.add_account(account)
        rita = Principal(
            agent="console", user="rita", issuer=broker.where.base_url(), scopes=frozenset({"broker.review"})
        )
        assert await decide(broker, hold_id, rita) == "approved"
        broker.directory.remove_account("rita")
    async with Broker.open(settings) as broker:
        refused = await until_state(broker, hold_id, "failed")
        assert (refused.effect, refused.code) == ("none", "forbidden")
        assert "may not approve pay any more" in refused.message


# --------------------------------------------------------------------------------------------------- requester, person


ALIASES = [
    Principal(agent="console", user="ann", issuer="settings"),
    Principal(agent="console", user="ANN", issuer="https://sso.example"),
    Principal(agent="console", user=" Ann ", issuer="os"),
    Principal(agent="console", user="ａｎｎ", issuer="https://sso.example"),
    Principal(agent="other-client", user="ann", tenant="else"),
    Principal(agent="ann", issuer="api-key"),
    Principal(agent="key-7", owner="ann", issuer="api-key"),
    Principal(agent="key-7", owner="Ann", user="carl", issuer="api-key"),
    Principal(agent="bot", issuer="api-key"),
    Principal(agent="BOT", user="rita", issuer="https://sso.example"),
    Principal(agent="console", user="bot"),
    Principal(agent="console", user="Bot ", groups=frozenset({"board"})),
]


@pytest.mark.anyio
async def test_twelve_aliases_of_the_requester_cannot_approve_their_own_call(tmp_path: Path) -> None:
    assert len(ALIASES) == 12
    async with house(tmp_path, "quorum: 1") as broker:
        hold_id = await held(broker)
        for alias in ALIASES:
            scopes = frozenset({"broker.review", "work"})
            for approve in (True, False):
                with pytest.raises(Forbidden, match="requester"):
                    await decide(broker, hold_id, replace(alias, scopes=scopes), approve=approve)
        untouched = await broker.store.invocation(hold_id)
        assert untouched is not None
        assert untouched.state == "held"
        assert await decide(broker, hold_id, reviewer()) == "approved"


@pytest.mark.anyio
async def test_the_store_itself_counts_a_person_once(tmp_path: Path) -> None:
    async with house(tmp_path, "quorum: 2") as broker:
        hold_id = await held(broker)
        for _ in range(2):
            review = Review(hold_id, "approve", "rita", "", broker.clock.now_ms(), persons=("rita",))
            try:
                decided = await broker.store.review(review)
            except Conflict:
                continue
            assert decided.state == "held"
        found = await broker.store.invocation(hold_id)
        assert found is not None
        assert found.state == "held"
