"""A reviewer sees what a held call would come to: a safe call made as its caller, before the hold is shown."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import orjson
import pytest

from broker.assembly import Broker
from broker.errors import Held, ManifestError
from broker.model.hold import Preview
from broker.model.invocation import Invocation
from broker.pipeline import preview
from broker.pipeline.granting import Bounds, Whose
from broker.verifier import verify
from tests.command import broker as command
from tests.premises import house_with
from tests.stories.test_console import browsing, sign_in
from tests.world import agent, broker_with, perform, records, reviewer, settings_in, until_state

pytestmark = pytest.mark.anyio

caller = agent(scopes=["work", "look"], user="ann", issuer="settings")
STDIO = {"agent": "bot", "user": "ann", "scopes": ["work", "look"]}
HOSTILE = "<script>alert(1)</script>\\u202e\\u200b EUR 12"
MANIFESTS = """
kind: backend
name: notes
static: {}
---
kind: tool
name: quote
effect: read
scopes: [look]
backend: notes
input: {type: object, properties: {sum: {type: number}, dry: {type: boolean}}, required: [sum]}
static: {text: "%(text)s"}
---
kind: tool
name: pay
effect: write
scopes: [work]
backend: notes
input: {type: object, properties: {amount: {type: number}}, required: [amount]}
preview: {tool: quote, arguments: {sum: amount}}
static: {text: paid}
---
kind: policy
name: money
tools: [pay]
rules: [{id: all, effect: hold}]
%(more)s
"""
QUOTA = "---\nkind: quota\nname: looks\ntools: [quote]\ncount: {limit: 1, per: day}\nby: [agent]\n"
NEVER = '---\nkind: policy\nname: no-looks\ntools: [quote]\nrules: [{id: no, when: "args.sum > 0.0", effect: deny}]\n'
ASKS = '---\nkind: policy\nname: looks-ask\ntools: [quote]\nrules: [{id: ask, when: "args.sum > 0.0", effect: hold}]\n'


def manifests(*, text: str = HOSTILE, more: str = "") -> str:
    return MANIFESTS % {"text": text, "more": more}


async def held(broker: Broker, amount: float = 12, who: Any = caller) -> Invocation:
    with pytest.raises(Held) as error:
        await perform(broker, "pay", {"amount": amount}, who, may_wait=False)
    found = await broker.store.invocation(str(error.value.facts["hold_id"]))
    assert found is not None
    return found


def preview_of(one: Invocation) -> Preview:
    assert one.hold is not None
    assert one.hold.preview is not None
    return one.hold.preview


async def test_a_hold_shows_what_it_would_come_to_and_records_the_digest(tmp_path: Path) -> None:
    async with broker_with(tmp_path, manifests(), stdio=STDIO) as broker:
        hold = await held(broker)
        shown = preview_of(hold)
        previewed = (await broker.store.held(hold.call_id)).previewed
        assert previewed is not None
        assert "EUR 12" in orjson.loads(previewed)["content"][0]["text"]
        made = await broker.store.invocation(shown.call_id)
        assert made is not None
        assert (made.tool, made.state, made.face, made.request_id) == ("quote", "succeeded", "preview", hold.call_id)
        assert (made.principal_key, made.result_digest) == (hold.principal_key, shown.digest)
        assert made.kept == {"sum": 12}
        await broker.desk.review(hold.call_id, approve=True, reviewer=reviewer(), via="test")
        await until_state(broker, hold.call_id, "succeeded")
        assert (await broker.store.held(hold.call_id)).previewed is None  # ended: the digest stays, the payload goes
        assert preview_of(await until_state(broker, hold.call_id, "succeeded")) == shown
    with closing(sqlite3.connect(tmp_path / "broker.db")) as database:
        (entry,) = database.execute("select body from entry where call_id = ? and kind = 'held'", (hold.call_id,))
    assert orjson.loads(entry[0])["hold"]["bound"]["preview"]["digest"] == shown.digest
    assert verify(tmp_path / "broker.db").fault is None


async def test_the_same_call_again_is_not_previewed_again(tmp_path: Path) -> None:
    async with broker_with(tmp_path, manifests(), stdio=STDIO) as broker:
        first = await held(broker)
        assert (await held(broker)).call_id == first.call_id
        assert len(await records(broker, tool="quote")) == 1
        await held(broker, 13)
        assert len(await records(broker, tool="quote")) == 2


@pytest.mark.parametrize(
    ("more", "who", "why", "state"),
    [
        (NEVER, caller, "no-looks/no forbids this call of quote", "denied"),
        (ASKS, caller, "No person is asked about a completion, a subscription or a preview", "denied"),
        ("", agent(scopes=["work"], user="ann", issuer="settings"), "needs the scope look", "denied"),
        (QUOTA, caller, "quota looks", "denied"),
    ],
    ids=["a rule denies it", "a rule would hold it", "its caller lacks a scope", "its quota is used up"],
)
async def test_a_preview_is_a_call_like_any_other_and_what_becomes_of_it_blocks_nothing(
    tmp_path: Path, more: str, who: Any, why: str, state: str
) -> None:
    async with broker_with(tmp_path, manifests(more=more), stdio=STDIO) as broker:
        if more == QUOTA:
            await perform(broker, "quote", {"sum": 1}, caller)
        hold = await held(broker, who=who)
        shown = preview_of(hold)
        assert why in shown.failed
        assert shown.digest == ""
        made = await broker.store.invocation(shown.call_id)
        assert made is not None
        assert made.state == state
        assert hold.state == "held"
        await broker.desk.review(hold.call_id, approve=True, reviewer=reviewer(), via="test")
        assert (await until_state(broker, hold.call_id, "succeeded", "failed")).state == "succeeded"


async def never(*_: Any) -> None:
    await anyio.sleep_forever()


async def test_a_preview_that_is_slow_or_large_is_shown_as_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with broker_with(tmp_path, manifests(text="x" * 70_000), stdio=STDIO) as broker:
        assert "bytes, and a preview 65536 at most" in preview_of(await held(broker)).failed
        backend: Any = broker.backends["notes"]
        monkeypatch.setattr(preview, "LONGEST_S", 0.05)
        monkeypatch.setattr(backend, "call", never)
        hold = await held(broker, 13)
        assert "took longer than 0.05 s" in preview_of(hold).failed
        cut_off = await until_state(broker, preview_of(hold).call_id, "outcome_unknown")
        assert cut_off.tool == "quote"


async def test_a_call_that_a_standing_grant_lets_run_is_not_previewed(tmp_path: Path) -> None:
    async with broker_with(tmp_path, manifests(), stdio=STDIO) as broker:
        calls = Whose("", "bot", "settings", "ann", ("ann", "bot"))
        bounds = Bounds(1, broker.clock.now_ms() + 3_600_000)
        named = {"tool": "pay", "rule": "money/all"}
        grant = await broker.grants.draft(reviewer(), calls, bounds, **named, via="test")
        await broker.grants.decide(reviewer("raul"), grant.grant_id, decision="approve", reason="", via="test")
        await perform(broker, "pay", {"amount": 1}, caller)
        assert await records(broker, tool="quote") == []
        await held(broker, 2)  # it is used up: somebody is asked again, and shown
        assert len(await records(broker, tool="quote")) == 1


async def test_other_arguments_have_no_preview_of_the_old_ones(tmp_path: Path) -> None:
    more = manifests().replace("effect: hold}", "effect: hold, quorum: 2}")
    async with broker_with(tmp_path, more, stdio=STDIO) as broker:
        hold = await held(broker)
        edited = await broker.desk.review(
            hold.call_id, approve=True, reviewer=reviewer(), reason="so", via="test", arguments={"amount": 11}
        )
        assert edited.hold is not None
        assert edited.hold.preview is None
        assert (await broker.store.held(hold.call_id)).previewed is None


async def test_every_face_shows_it_as_text(tmp_path: Path) -> None:
    async with house_with(tmp_path, manifests(), stdio=STDIO) as house:
        house.person("rita")
        hold = await held(house.broker)
        one = (await house.get(f"/api/holds/{hold.call_id}", "rita")).json()
        assert one["hold"]["preview"] == {
            "tool": "quote", "call_id": preview_of(hold).call_id, "digest": preview_of(hold).digest, "failed": "",
        }  # fmt: skip
        assert "EUR 12" in one["previewed"]["content"][0]["text"]
        async with browsing(house) as http:
            page = (await sign_in(http, house, "rita", f"/console/holds/{hold.call_id}")).text
            assert "Preview by quote" in page
            assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
            assert "<script>alert(1)" not in page
            assert "\u202e" not in page
        shown = await anyio.to_thread.run_sync(lambda: command("holds", cwd=tmp_path))
        assert "preview     quote says:" in shown.out
        assert "\\u{202e}" in shown.out
        assert "\u202e" not in shown.out


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("{tool: pay}", "pay does not only read"),
        ("{tool: quotes}", "there is no tool 'quotes'; did you mean 'quote'"),
        ("{tool: quote, arguments: {sums: amount}}", "quote has no argument 'sums'"),
        ("{tool: quote, arguments: {sum: amounts}}", "pay has no argument 'amounts'"),
        ("{tool: quote}", "quote requires 'sum'"),
        ("{tool: broker_limits}", "there is no tool 'broker_limits'"),
    ],
)
def test_a_preview_that_is_not_safe_or_cannot_be_made_is_refused_with_the_manifest(
    tmp_path: Path, said: str, why: str
) -> None:
    changed = manifests().replace("{tool: quote, arguments: {sum: amount}}", said)

    async def start() -> None:
        async with Broker.open(settings_in(tmp_path, changed)):
            raise AssertionError("it started")

    with pytest.raises(ManifestError) as error:
        anyio.run(start)
    assert why in str(error.value)
    assert "preview." in str(error.value)
