"""Standing grants: proposed from a hold, confirmed by another person, used exactly so often, revoked at once."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import to_thread

from broker.assembly import Broker
from broker.errors import Conflict, Forbidden, Held, InvalidArguments
from broker.model.directory import ApiKey, Client
from broker.model.grant import Grant
from broker.model.principal import Principal
from broker.pipeline.granting import Bounds, Whose
from broker.pipeline.granting import whose as find_whose
from broker.verifier import verify
from tests.command import Said
from tests.command import broker as command
from tests.premises import house_with
from tests.records import HOUR
from tests.stories.test_api import fits
from tests.stories.test_cli_remote import login
from tests.world import agent, perform, records, reviewer, settings_in

caller = agent(scopes=["work"], user="ann", issuer="settings")
STDIO = {"agent": "bot", "user": "ann", "scopes": ["work"]}

TOOLS = """
kind: backend
name: notes
static: {}
---
kind: tool
name: pay
effect: write
scopes: [work]
backend: notes
input: {type: object, properties: {amount: {type: number}, to: {type: string}}, required: [amount]}
static: {text: paid}
---
kind: policy
name: money
tools: [pay]
rules:
  - {id: never, when: "args.amount > 1000.0", effect: deny, reason: too much}
  - {id: ask, effect: hold%s}
"""


@asynccontextmanager
async def house(folder: Path, rule: str = "") -> AsyncGenerator[Broker]:
    async with Broker.open(settings_in(folder, TOOLS % rule, stdio=STDIO)) as broker:
        yield broker
    assert verify(folder / "broker.db").fault is None


async def pay(broker: Broker, amount: float, who: Principal = caller, **more: Any) -> str:
    """How it ended: its result's text, or the code of the refusal and the hold's id."""
    try:
        answer = await perform(broker, "pay", {"amount": amount, **more}, who, may_wait=False)
    except Held as held:
        return f"held {held.facts['hold_id']}"
    return str(answer.content[0]["text"])


async def propose(broker: Broker, name: str = "rita", asked: float = 50.0, **bounds: Any) -> Grant:
    held = (await pay(broker, asked)).removeprefix("held ")
    given: dict[str, Any] = {
        "count": 3,
        "when": "args.amount <= 100.0",
        "until_ms": broker.clock.now_ms() + HOUR,
        **bounds,
    }
    made = await broker.grants.propose(reviewer(name), call_id=held, via="test", **given)
    await broker.desk.review(held, approve=False, reviewer=reviewer(), reason="not this one", via="test")
    return made


async def confirm(broker: Broker, grant: Grant, name: str = "raul", decision: Any = "approve") -> Grant:
    return await broker.grants.decide(reviewer(name), grant.grant_id, decision=decision, reason="fine", via="test")


@pytest.mark.anyio
async def test_a_confirmed_grant_lets_calls_within_its_bounds_run_so_often(tmp_path: Path) -> None:
    async with house(tmp_path) as broker:
        grant = await propose(broker)
        assert (await pay(broker, 10.0)).startswith("held")  # one person is not enough
        assert (await confirm(broker, grant)).state == "active"
        assert (await pay(broker, 101.0)).startswith("held")
        assert [await pay(broker, 20.0 + n) for n in range(3)] == ["paid"] * 3
        assert (await pay(broker, 30.0)).startswith("held")
        ran = await records(broker, states=("succeeded",))
        assert {one.rule for one in ran} == {f"grant/{grant.grant_id}"}


@pytest.mark.anyio
async def test_a_grant_takes_two_persons_and_none_of_them_is_the_caller(tmp_path: Path) -> None:
    async with house(tmp_path) as broker:
        grant = await propose(broker)
        for name in ("rita", "RITA", " ｒｉｔａ"):
            with pytest.raises(Conflict, match="approved the grant"):
                await confirm(broker, grant, name)
        for name in ("ann", "Ann ", "bot"):
            with pytest.raises(Forbidden, match="Whose calls"):
                await confirm(broker, grant, name)
        with pytest.raises(Forbidden, match=r"scope broker\.review"):
            await broker.grants.decide(
                reviewer("x", scopes=()), grant.grant_id, decision="approve", reason="", via="test"
            )
        with pytest.raises(Forbidden, match="Whose calls"):
            await propose(broker, "ann", 51.0)


@pytest.mark.anyio
async def test_a_rule_that_asks_three_persons_asks_three_for_a_grant(tmp_path: Path) -> None:
    async with house(tmp_path, ", quorum: 3") as broker:
        grant = await propose(broker)
        assert (await confirm(broker, grant, "raul")).state == "proposed"
        assert (await pay(broker, 20.0)).startswith("held")
        assert (await confirm(broker, grant, "ruth")).state == "active"
        assert await pay(broker, 21.0) == "paid"


@pytest.mark.anyio
async def test_a_revoked_grant_covers_nothing_from_then_on(tmp_path: Path) -> None:
    async with house(tmp_path) as broker:
        grant = await confirm(broker, await propose(broker))
        assert await pay(broker, 20.0) == "paid"
        revoked = await confirm(broker, grant, "rita", "revoke")
        assert (revoked.state, revoked.ended_by) == ("revoked", "rita@test")
        assert (await pay(broker, 21.0)).startswith("held")
        with pytest.raises(Conflict, match="already revoked"):
            await confirm(broker, grant, "ruth")


@pytest.mark.anyio
async def test_a_grant_covers_its_own_agent_and_user_and_never_overrides_a_denial(tmp_path: Path) -> None:
    async with house(tmp_path) as broker:
        await confirm(broker, await propose(broker, when="true", count=10))
        assert (await pay(broker, 1.0, agent("other", scopes=["work"], user="ann", issuer="settings"))).startswith(
            "held"
        )
        assert (await pay(broker, 1.0, agent(scopes=["work"], user="bea", issuer="settings"))).startswith("held")
        assert (await pay(broker, 1.0, agent(scopes=["work"], user="ann", issuer="else"))).startswith("held")
        with pytest.raises(Forbidden, match="money/never"):
            await pay(broker, 2000.0)
        assert await pay(broker, 1.0) == "paid"


@pytest.mark.anyio
async def test_what_all_its_calls_cost_together_has_an_end(tmp_path: Path) -> None:
    async with house(tmp_path) as broker:
        grant = await propose(broker, when="true", count=100, amount="args.amount", total="100")
        await confirm(broker, grant)
        assert [await pay(broker, amount) for amount in (60.0, 40.0)] == ["paid", "paid"]
        assert (await pay(broker, 0.000001)).startswith("held")
        found = await broker.store.grant(grant.grant_id)
        assert found is not None
        assert (found.used, found.spent) == (2, 100_000_000)


@pytest.mark.anyio
async def test_many_callers_use_a_grant_exactly_so_often(tmp_path: Path) -> None:
    async with house(tmp_path) as broker:
        await confirm(broker, await propose(broker, count=7))
        ended: list[str] = []

        async def one(number: int) -> None:
            ended.append((await pay(broker, 1.0 + number))[:4])

        async with anyio.create_task_group() as tasks:
            for number in range(30):
                tasks.start_soon(one, number)
        assert (ended.count("paid"), ended.count("held")) == (7, 23)


@pytest.mark.anyio
async def test_a_grant_is_for_the_tool_and_the_reviewers_it_was_made_for(tmp_path: Path) -> None:
    async with house(tmp_path) as broker:
        await confirm(broker, await propose(broker))
        settings_in(tmp_path, TOOLS % ", reviewers: {groups: [board]}")
        await broker.reconciler.reload("test")
        assert (await pay(broker, 20.0)).startswith("held")
        settings_in(tmp_path, (TOOLS % "").replace("text: paid", "text: bought"))
        await broker.reconciler.reload("test")
        assert (await pay(broker, 21.0)).startswith("held")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("bounds", "why"),
    [
        ({"when": "args.amount <"}, "do not compile"),
        ({"when": "args.amount <= 10.0"}, "does not meet the bounds"),
        ({"count": 0}, "1 to"),
        ({"until_ms": 5}, "ends in the future"),
        ({"amount": "args.amount", "total": "x"}, "no decimal"),
        ({"amount": "args.amount", "total": "1"}, "does not meet the bounds"),
    ],
)
async def test_bounds_that_make_no_sense_are_refused(tmp_path: Path, bounds: dict[str, Any], why: str) -> None:
    async with house(tmp_path) as broker:
        with pytest.raises(InvalidArguments, match=why):
            await propose(broker, **bounds)
        assert await broker.store.grants(None) == []


def whose(user: str = "ann", **more: Any) -> Whose:
    persons = tuple(sorted(Principal("bot", user=user, owner="otto").persons))
    return replace(Whose("", "bot", "settings", user, persons), **more)


@pytest.mark.anyio
async def test_a_grant_can_be_written_before_any_call_was_held(tmp_path: Path) -> None:
    async with house(tmp_path) as broker:
        bounds = Bounds(2, broker.clock.now_ms() + HOUR, "args.amount <= 100.0")
        made = await broker.grants.draft(reviewer(), whose(), bounds, tool="pay", rule="money/ask", via="test")
        assert (made.state, made.quorum, made.from_hold) == ("proposed", 2, "")
        for name in ("ann", "bot", "otto"):
            with pytest.raises(Forbidden, match="Whose calls"):
                await confirm(broker, made, name)
        assert (await confirm(broker, made)).state == "active"
        assert await pay(broker, 20.0) == "paid"
        assert (await pay(broker, 101.0)).startswith("held")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"rule": "money/never"}, "no rule"),  # it does not hold
        ({"rule": "money/other"}, "no rule"),
        ({"tool": "other"}, "no rule"),
        ({"who": reviewer("x", scopes=())}, "no rule"),  # in the same words
        ({"who": reviewer("ann")}, "Whose calls"),
        ({"whose": whose(agent="")}, "one agent"),
        ({"bounds": Bounds(0, 2**50)}, "1 to 100000 calls"),
        ({"bounds": Bounds(1, 1)}, "ends in the future"),
    ],
    ids=lambda one: one if isinstance(one, str) else ",".join(one),
)
async def test_a_grant_that_is_nothing_or_not_ones_to_give_is_not_written(
    change: dict[str, Any], why: str, tmp_path: Path
) -> None:
    async with house(tmp_path) as broker:
        given: dict[str, Any] = {
            "who": reviewer(),
            "whose": whose(),
            "bounds": Bounds(1, broker.clock.now_ms() + HOUR),
            **change,
        }
        named = {"tool": "pay", "rule": "money/ask"} | {key: change[key] for key in ("tool", "rule") if key in change}
        with pytest.raises((Forbidden, InvalidArguments), match=why):
            await broker.grants.draft(given["who"], given["whose"], given["bounds"], via="test", **named)
        assert await broker.store.grants(None) == []


@pytest.mark.anyio
async def test_a_grant_for_whomever_an_agent_acts_for_is_not_for_those_who_agreed_to_it(tmp_path: Path) -> None:
    async with house(tmp_path) as broker:
        bounds = Bounds(9, broker.clock.now_ms() + HOUR)
        made = await broker.grants.draft(reviewer(), whose(""), bounds, tool="pay", rule="money/ask", via="test")
        await confirm(broker, made)
        for name, runs in (("ann", True), ("RITA", False), ("raul", False), ("ruth", True)):
            caller = agent(scopes=["work"], user=name, issuer="settings")
            assert ((await pay(broker, 20.0, caller)) == "paid") == runs, name


@pytest.mark.anyio
async def test_who_answers_for_an_agent_has_no_say_in_its_grants(tmp_path: Path) -> None:
    async with house(tmp_path) as broker:
        broker.directory.add_client(Client("bot", owner="Olga"))
        broker.directory.add_api_key(ApiKey("Bot", "key-1", owner="karl", user="kim"))
        broker.directory.add_api_key(ApiKey("bot", "key-2", owner="else", tenant="other"))
        calls = find_whose(broker.directory, "", "bot", "settings", "ann")
        assert calls.persons == ("ann", "bot", "karl", "kim", "olga")


@pytest.mark.anyio
async def test_every_face_proposes_confirms_and_ends_grants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / ".config"))
    async with house_with(tmp_path, TOOLS % "", stdio=STDIO) as house:
        for name in ("rita", "raul"):
            house.person(name)
        body = {
            "tool": "pay", "rule": "money/ask", "agent": "bot", "user": "ann", "issuer": "settings", "count": 5,
            "until_ms": house.broker.clock.now_ms() + HOUR,
        }  # fmt: skip
        made = await house.post("/api/grants", "raul", body)
        assert fits("Grant", made.json()), made.text
        assert (made.json()["state"], made.json()["may_decide"]) == ("proposed", False)
        grant_id = made.json()["grant_id"]
        await login(house, tmp_path, monkeypatch)  # as rita
        there = ["--broker", house.url]

        async def grants(*words: str) -> Said:
            return await to_thread.run_sync(lambda: command("grants", *words, cwd=tmp_path))

        assert grant_id in (await grants("list", *there)).out
        confirmed = await grants("approve", grant_id, *there)
        assert (confirmed.code, confirmed.out.split(":")[0]) == (0, "Active"), confirmed.err
        assert await pay(house.broker, 5) == "paid"
        no_reason = await grants("revoke", grant_id, *there)
        assert (no_reason.code, "needs a reason" in no_reason.err) == (1, True)
        assert (await grants("revoke", grant_id, "--reason", "over", *there)).code == 0
        held = (await pay(house.broker, 6)).removeprefix("held ")
        like = ["--count", "2", "--for", "1h"]
        from_hold = await grants("propose", held, *like, "--json", *there)
        assert (from_hold.json["from_hold"], from_hold.json["user"]) == (held, "ann"), from_hold.err
        named = ["--tool", "pay", "--rule", "money/ask", "--agent", "bot", "--any-user"]
        here = await grants("propose", *named, *like, "--json")
        assert (here.json["user"], here.json["issuer"]) == ("", "http://127.0.0.1:0"), here.err  # as its settings say
        there_too = await grants("propose", *named, *like, "--json", *there)
        assert (there_too.json["user"], there_too.json["issuer"]) == ("", house.url), there_too.err
        neither = await grants("propose", "--tool", "pay", *like)
        assert (neither.code, "--agent" in neither.err) == (2, True)
