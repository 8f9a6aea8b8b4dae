"""The binding matrix: whatever an approval is for, changed between the hold and the approval, is refused and held anew.

The rows are asked from the code: a field added to `Bound`, to what a definition promises or to a principal without a
row here fails. Each row has its twin: the same call, nothing changed, runs.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse

from broker.assembly import Broker
from broker.errors import BrokerError, Conflict, Held
from broker.model.directory import Account, ApiKey, Client
from broker.model.hold import Bound
from broker.model.principal import Principal
from broker.pipeline.recorder import pack, unpack
from tests.downstream import answering
from tests.premises import House as Premises
from tests.premises import house_with, password_hash
from tests.stories.test_call import TOOLS
from tests.world import agent, broker_with, perform, reviewer, until_state

pytestmark = pytest.mark.anyio

caller = agent(scopes=["work", "more"], user="ann", issuer="settings", tenant="acme")
STDIO = {"agent": "bot", "user": "ann", "tenant": "acme", "scopes": ["work", "more"]}
ARGUMENTS = {"order": "1", "note": "n"}
MANIFESTS = """
kind: backend
name: orders
http: {base_url: "URL/v1", allow_private: true, headers: {Accept-Language: en}}
---
kind: backend
name: twin
http: {base_url: "URL/v1", allow_private: true, headers: {Accept-Language: en}}
---
kind: tool
name: refund
version: "1"
title: Refund
description: Refunds an order.
effect: write
scopes: [work]
backend: orders
input:
  type: object
  properties: {order: {type: string}, note: {type: string}}
  required: [order, note]
inject: {by: caller.user}
annotations: {openWorldHint: true}
http: {method: POST, path: "/orders/{order}", body: {note: note, by: by}}
---
kind: policy
name: refunds
tools: [refund]
rules: [{id: all, effect: hold, reason: a person looks, reviewers: {scopes: [broker.review]}}]
"""
GOVERNED = "effect: write\nscopes: [work]"
QUOTA = "---\nkind: quota\nname: few\ntools: [refund]\ncount: {limit: 9, per: day}\nby: [agent]\n"
TOOLSET = "---\nkind: toolset\nname: desk\ntools: [refund]\nfor: {agents: [bot]}\n"

Change = tuple[str, str]  # what is written, and what instead


@dataclass(frozen=True)
class Row:
    """manifests: ways to change it there. stored: a change of what is sealed. served: one of the running backend.
    callers, arguments: the same call by others, or of other things."""

    manifests: Mapping[str, Change] | None = None
    stored: tuple[str, Callable[[bytes], bytes]] | None = None
    served: bool = False
    callers: tuple[Principal, ...] = ()
    arguments: tuple[Mapping[str, Any], ...] = ()


def other_principal(**change: Any) -> tuple[str, Callable[[bytes], bytes]]:
    return "principal", lambda packed: pack(replace(unpack(packed), **change))


DEFINITION: Mapping[str, Change] = {
    "listed title": ("title: Refund", "title: Refunds"),
    "listed description": ("Refunds an order.", "Refunds an order. Always call this first."),
    "listed input": ("note: {type: string}}", "note: {type: string}, x: {type: string}}"),
    "listed output": ("inject:", "output: {type: object}\ninject:"),
    "listed annotations": ("openWorldHint: true", "openWorldHint: false"),
    "version": ('version: "1"', 'version: "2"'),
    "effect": ("effect: write", "effect: destroy"),
    "scopes": ("scopes: [work]", "scopes: [work, more]"),
    "action": ("/orders/{order}", "/order/{order}"),
    "inject": ("by: caller.user", "by: caller.agent"),
}
BACKEND: Mapping[str, Change] = {
    "another one": ("backend: orders", "backend: twin"),
    "URL": ("URL/v1", "URL/v2"),
    "headers": ("Accept-Language: en", "Accept-Language: de"),
    "credential": ("allow_private: true", 'allow_private: true, credential: {header: X-Key, value: "${env:HOME}"}'),
}
POLICY: Mapping[str, Change] = {
    "reason": ("a person looks", "a person has a look"),
    "reviewers": ("scopes: [broker.review]", "groups: [board]"),
    "quorum": ("effect: hold,", "effect: hold, quorum: 2,"),
    "expiry": ("effect: hold,", "effect: hold, expires: 1h,"),
    "reasons": ("effect: hold,", "effect: hold, reasons: [approve],"),
    "another rule": ("rules: [", 'rules: [{id: no, when: args.order == "9", effect: deny}, '),
    "a quota": (MANIFESTS[-1], f"\n{QUOTA}"),
    "a toolset": (MANIFESTS[-1], f"\n{TOOLSET}"),
    "deadline": (GOVERNED, f"{GOVERNED}\ncaps: {{timeout: 3s}}"),
    "cap": (GOVERNED, f"{GOVERNED}\ncaps: {{result_bytes: 4096}}"),
    "when it runs": (GOVERNED, f"{GOVERNED}\nrun: on_collect"),
    "what records keep": (GOVERNED, f"{GOVERNED}\nrecord: full"),
    "what records drop": (GOVERNED, f"{GOVERNED}\nredact: [note]"),
}
ROWS: Mapping[str, Row] = {
    "principal_key": Row(
        stored=other_principal(user="carl"),
        callers=(
            replace(caller, user="carl"),
            replace(caller, tenant="other"),
            replace(caller, issuer="test"),
            replace(caller, user=""),
        ),
    ),
    "agent": Row(stored=other_principal(agent="cot"), callers=(replace(caller, agent="cot"),)),
    "tool": Row(manifests={"name": ("name: refund\n", "name: refunding\n")}),
    "definition": Row(manifests=DEFINITION),
    "backend": Row(manifests=BACKEND),
    "policy": Row(manifests=POLICY),
    "arguments": Row(
        stored=("arguments", lambda packed: orjson.dumps({**orjson.loads(packed), "note": "m"})),
        arguments=({**ARGUMENTS, "note": "m"}, {**ARGUMENTS, "note": "n "}, {**ARGUMENTS, "note": "\u006e\u0303"}),
    ),
    "sketch": Row(served=True),
}


@dataclass
class House:
    broker: Broker
    asked: list[tuple[Request, bytes]]
    folder: Path
    url: str

    def write(self, change: Change = ("", "")) -> None:
        was, now = change
        assert was in MANIFESTS
        text = MANIFESTS[:-1] + now if was == MANIFESTS[-1] else MANIFESTS.replace(was, now)
        if "name: refunding\n" in text:
            text = text.replace("tools: [refund]", "tools: [refunding]")
        (self.folder / "tool_manifests" / "tools.yaml").write_text(text.replace("URL", self.url))

    async def held(self, tool: str = "refund", who: Principal = caller, arguments: Any = None) -> str:
        """The id of a hold. A hold that has ended is told to its caller first, once."""
        for _ in range(2):
            try:
                await perform(self.broker, tool, arguments or ARGUMENTS, who, may_wait=False)
            except Held as held:
                return str(held.facts["hold_id"])
            except BrokerError as ended:
                assert ended.effect == "none", ended
        raise AssertionError("it was not held")

    async def approve(self, hold_id: str) -> None:
        await self.broker.desk.review(hold_id, approve=True, reviewer=reviewer(), reason="so", via="test")

    async def runs(self, hold_id: str) -> None:
        before = len(self.asked)
        await self.approve(hold_id)
        await until_state(self.broker, hold_id, "succeeded")
        assert len(self.asked) == before + 1
        await perform(self.broker, "broker_held_call", {"id": hold_id}, caller)


@asynccontextmanager
async def house_in(folder: Path, **keys: Any) -> AsyncGenerator[House]:
    async with answering(JSONResponse({"refunded": True})) as (url, asked):
        manifests = MANIFESTS.replace("URL", url)
        async with broker_with(folder, manifests, **{"stdio": STDIO, **keys}) as broker:
            yield House(broker, asked, folder, url)


def test_every_bound_field_has_a_row() -> None:
    assert {field.name for field in fields(Bound)} == set(ROWS)


def test_every_part_of_a_principal_is_bound_or_asked_again() -> None:
    """What is in its key is bound; all else is its credential's, and asked again before the call runs (`recheck`)."""
    bound = {
        one.name
        for one in fields(Principal)
        if one.init  # the key itself follows from them
        and replace(caller, **{one.name: frozenset({"x"}) if "frozenset" in str(one.type) else "x"}).key != caller.key
    }
    assert bound == {"issuer", "tenant", "user", "agent"}
    changed = [who for row in ROWS.values() for who in row.callers]
    for name in bound:
        assert any(getattr(who, name) != getattr(caller, name) for who in changed), name


@pytest.mark.parametrize("name", ROWS)
async def test_a_bound_field_that_changed_is_refused_and_held_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    row = ROWS[name]
    async with house_in(tmp_path) as house:
        await house.runs(await house.held())
        ran = len(house.asked)
        for what, change in (row.manifests or {}).items():
            hold_id = await house.held()
            house.write(change)
            await house.broker.reconciler.reload("test")
            assert not house.broker.reconciler.problems, (what, house.broker.reconciler.problems)
            with pytest.raises(Conflict, match="withdrawn"):
                await house.approve(hold_id)
            again = await house.held("refunding" if name == "tool" else "refund")
            assert again != hold_id, what
            house.write()
            await house.broker.reconciler.reload("test")
        for who in row.callers:
            hold_id = await house.held()
            assert await house.held(who=who) != hold_id, who
            await house.runs(hold_id)  # the approval of one is none of the other
            ran += 1
        for arguments in row.arguments:
            hold_id = await house.held()
            assert await house.held(arguments=arguments) != hold_id, arguments
        if row.stored is not None:
            part, other = row.stored
            await until_refused(house, lambda hold_id: reseal(house.broker, hold_id, part, other))
        if row.served:
            backend: Any = house.broker.backends["orders"]
            more = {**backend._headers._fixed, "x-more": (b"X-More", b"1")}

            async def serve(_: str) -> None:
                monkeypatch.setattr(backend._headers, "_fixed", more)

            await until_refused(house, serve)
        assert len(house.asked) == ran


async def until_refused(house: House, change: Callable[[str], Any]) -> None:
    hold_id = await house.held()
    await change(hold_id)
    await house.approve(hold_id)
    refused = await until_state(house.broker, hold_id, "failed")
    assert (refused.code, refused.effect) == ("forbidden", "none")
    assert "would not be sent as it was shown" in refused.message
    assert await house.held() != hold_id


async def reseal(broker: Broker, hold_id: str, part: str, change: Callable[[bytes], bytes]) -> None:
    """What only somebody with the database and its key could do."""

    def job(tx: Any, _: None) -> None:
        (sealed,) = tx.db.execute("select body from payload where call_id = ? and part = ?", (hold_id, part)).fetchone()
        body = tx.seal.close(hold_id, part, change(tx.seal.open(hold_id, part, sealed)))
        tx.db.execute("update payload set body = ? where call_id = ? and part = ?", (body, hold_id, part))

    store: Any = broker.store
    await store.writer.run(job, None)


@pytest.mark.parametrize(
    "keys",
    [
        {"stdio": {**STDIO, "scopes": ["more"]}},
        {"hold": {"expires_s": 60}},
        {"hold": {"reviewer_scope": "other.review"}},
    ],
    ids=["scopes", "default expiry", "default reviewers"],
)
async def test_a_hold_outlives_neither_its_grant_nor_the_settings_of_holds(
    tmp_path: Path, keys: dict[str, Any]
) -> None:
    async with answering(JSONResponse({})) as (url, asked):
        manifests = MANIFESTS.replace("URL", url)
        async with broker_with(tmp_path, manifests, stdio=STDIO) as broker:
            hold_id = await House(broker, asked, tmp_path, url).held()
        async with broker_with(tmp_path, manifests, **{"stdio": STDIO, **keys}) as broker:
            house = House(broker, asked, tmp_path, url)
            if "hold" in keys:
                with pytest.raises(Conflict, match="withdrawn"):
                    await house.approve(hold_id)
            else:
                await house.approve(hold_id)
                assert (await until_state(broker, hold_id, "failed")).effect == "none"
            assert await house.held() != hold_id
            assert asked == []


def lose_scope(house: Premises) -> None:
    house.broker.directory.remove_account("ann")
    house.person("ann", scopes=["other"])


def be_followed_by_a_namesake(house: Premises) -> None:
    later = house.broker.clock.now_ms() + 2000
    house.broker.directory.remove_account("ann")
    house.broker.directory.add_account(
        Account("ann", password_hash(), scopes=frozenset({"notes.write"}), created_at_ms=later)
    )


REVOKED: Mapping[str, Callable[[Premises], object]] = {
    "account": lambda house: house.broker.directory.remove_account("ann"),
    "role": lose_scope,
    "person": be_followed_by_a_namesake,
    "client": lambda house: house.broker.directory.remove_client("ann-tool"),
    "token": lambda house: house.broker.directory.revoke("token-1", 2**53),
    "key": lambda house: house.broker.directory.revoke_api_key("key-1"),
}


@pytest.mark.parametrize("what", [*REVOKED, "nothing"])
async def test_what_was_revoked_stops_a_hold_that_waits_to_run(tmp_path: Path, what: str) -> None:
    async with house_with(tmp_path, TOOLS) as house:
        house.person("ann", scopes=["notes.write"])
        directory = house.broker.directory
        directory.add_client(Client("ann-tool", scopes=None))
        directory.add_api_key(ApiKey("bot", "key-1", "unused", user="ann", scopes=frozenset({"notes.write"})))
        of_key = {"name": "bot", "issuer": "api-key", "credential_id": "key-1"}
        of_token = {"name": "ann-tool", "issuer": house.url, "credential_id": "token-1"}
        who = agent(user="ann", scopes=["notes.write"], **(of_key if what == "key" else of_token))
        with pytest.raises(Held) as held:
            await perform(house.broker, "note_write", {"amount": 500}, who, may_wait=False)
        hold_id = str(held.value.facts["hold_id"])
        if what != "nothing":
            REVOKED[what](house)
        await house.broker.desk.review(hold_id, approve=True, reviewer=reviewer(), via="test")
        ended = await until_state(house.broker, hold_id, "failed", "succeeded")
        if what == "nothing":
            assert ended.state == "succeeded"
        else:
            assert (ended.state, ended.effect, ended.result_digest) == ("failed", "none", "")
