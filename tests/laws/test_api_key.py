"""API keys: what a good one carries, and every way in which one is not good."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from broker.auth import Gatekeeper
from broker.auth.api_key import ApiKeys, create
from broker.errors import InsufficientScope, Unauthenticated
from broker.model.directory import Account
from tests.issuing import START_MS, World, forget, world_in

pytestmark = pytest.mark.anyio


@pytest.fixture
def world(tmp_path: Path) -> Generator[World]:
    with world_in(tmp_path) as world:
        scopes = frozenset({"orders.read", "orders.refund"})
        world.directory.add_account(
            Account("ann", scopes=scopes, groups=frozenset({"support"}), created_at_ms=START_MS - 1)
        )
        yield world


def key_for(world: World, user: str = "ann", expires_at_ms: int = 0) -> str:
    text, _ = create(
        world.directory,
        world.clock.now_ms(),
        agent="nightly",
        user=user,
        tenant="acme",
        scopes={"orders.read", "reports.read"},
        groups={"support", "ops"},
        owner="olga",
        expires_at_ms=expires_at_ms,
    )
    return text


async def test_a_key_says_who_calls_and_carries_no_more_than_its_account(world: World) -> None:
    caller = await ApiKeys(world.context).authenticate(key_for(world))
    assert caller
    assert (caller.agent, caller.user, caller.tenant, caller.issuer) == ("nightly", "ann", "acme", "api-key")
    assert caller.scopes == {"orders.read"}
    assert caller.groups == {"support"}
    assert caller.owner == "olga"
    alone = await ApiKeys(world.context).authenticate(key_for(world, user=""))
    assert alone
    assert alone.scopes == {"orders.read", "reports.read"}


async def test_only_a_hash_is_kept(world: World, tmp_path: Path) -> None:
    text = key_for(world)
    assert re.fullmatch(r"brk_[0-9a-f]{12}_[\w-]{43}", text)
    dump = "\n".join(sqlite3.connect(tmp_path / "broker.db").iterdump())
    assert text[4:16] in dump
    assert text[17:] not in dump


def _revoke(world: World, text: str) -> None:
    assert world.directory.revoke_api_key(text[4:16])
    assert not world.directory.revoke_api_key(text[4:16]), "once"


def _expire(world: World, _: str) -> None:
    world.clock.at_ms += 10_000


def _disable(world: World, _: str) -> None:
    world.directory.update_account(Account("ann", disabled=True, created_at_ms=1))


def _remove(world: World, _: str) -> None:
    world.directory.remove_account("ann")


def _replace(world: World, _: str) -> None:
    world.directory.remove_account("ann")
    world.clock.at_ms += 1
    world.directory.add_account(Account("ann", scopes=frozenset({"orders.read"})))


@pytest.mark.parametrize("end", [_revoke, _expire, _disable, _remove, _replace])
async def test_what_ends_a_key_ends_it_though_it_was_good_a_moment_ago(
    end: Callable[[World, str], None], world: World
) -> None:
    keys = ApiKeys(world.context)
    text = key_for(world, expires_at_ms=START_MS + 10_000)
    caller = await keys.authenticate(text)
    assert caller
    assert await keys.recheck(caller)
    end(world, text)
    forget(keys)
    with pytest.raises(Unauthenticated):
        await keys.authenticate(text)
    with pytest.raises(Unauthenticated):
        await keys.recheck(caller)


async def test_a_lost_scope_is_noticed_when_a_call_is_checked_again(world: World) -> None:
    keys = ApiKeys(world.context)
    caller = await keys.authenticate(key_for(world))
    assert caller
    world.directory.update_account(Account("ann", created_at_ms=1))
    with pytest.raises(InsufficientScope) as error:
        await keys.recheck(caller)
    assert error.value.missing == ("orders.read",)


async def test_a_key_that_is_almost_right_is_unknown(world: World) -> None:
    text = key_for(world)
    keys = ApiKeys(world.context)
    flipped = text[:-1] + ("A" if text[-1] != "A" else "B")
    for wrong in (flipped, text[:-1], text + "A", text.upper(), text.replace("brk_", "brk_0"), "brk_", text + "\n"):
        with pytest.raises(Unauthenticated) as error:
            await Gatekeeper(lambda: [keys]).authenticate(wrong)
        assert text[17:] not in error.value.sentence
    assert await keys.authenticate(text)


async def test_the_settings_turn_keys_off(world: World, tmp_path: Path) -> None:
    text = key_for(world)
    closed = World(world.settings.model_validate({"auth": {"api_keys": False}}), world.directory, world.clock)
    with pytest.raises(Unauthenticated):
        await ApiKeys(closed.context).authenticate(text)
    assert await ApiKeys(world.context).authenticate(text)
