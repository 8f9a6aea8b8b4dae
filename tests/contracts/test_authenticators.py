"""What every row of AUTHENTICATORS keeps, and the gatekeeper over all of them."""

from __future__ import annotations

from collections.abc import Generator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.auth import AUTHENTICATORS, Gatekeeper, authenticators
from broker.auth.api_key import create
from broker.auth.local import principal as local_principal
from broker.authserver.tokens import Parties, mint
from broker.errors import BrokerError, InsufficientScope, RecordUnavailable, Unauthenticated
from broker.model.directory import Client
from broker.model.principal import Principal
from broker.ports import Authenticator
from tests.issuing import BASE, World, world_in

pytestmark = pytest.mark.anyio


@pytest.fixture
def world(tmp_path: Path) -> Generator[World]:
    with world_in(tmp_path) as world:
        world.directory.add_client(Client("desk", scopes=frozenset({"a"}), created_at_ms=1))
        yield world


def built(name: str, world: World) -> Authenticator:
    module, _, kind = AUTHENTICATORS[name].partition(":")
    return getattr(import_module(module), kind)(world.context)


def credential(name: str, world: World) -> str:
    """A good one of this kind; "" where there are none."""
    if name == "jwt":
        client = world.directory.client("desk")
        assert client
        now_ms = world.clock.now_ms()
        return mint(
            world.directory, BASE, Parties(client), scopes={"a"}, audience=[BASE], lifetime_s=60, now_ms=now_ms
        ).token
    if name == "api_key":
        return create(world.directory, world.clock.now_ms(), agent="desk", scopes={"a"})[0]
    return ""


@pytest.mark.parametrize("name", AUTHENTICATORS)
async def test_it_takes_its_own_kind_and_leaves_the_others(name: str, world: World) -> None:
    judge = built(name, world)
    for other in AUTHENTICATORS:
        text = credential(other, world)
        caller = await judge.authenticate(text) if text else None
        assert bool(caller) == (other == name and bool(text))
        if caller:
            assert (caller.agent, caller.scopes) == ("desk", {"a"})
            assert caller.credential_id
            assert caller.credential_id not in ("", text)
            assert await judge.recheck(caller) is True


@pytest.mark.parametrize("name", AUTHENTICATORS)
async def test_it_vouches_again_only_for_its_own(name: str, world: World) -> None:
    assert await built(name, world).recheck(Principal(agent="x", issuer="https://stranger.example")) is False


TEXTS = st.text(max_size=300) | st.builds("brk_{}".format, st.text(max_size=60)) | st.just("a.b.c") | st.just("..")


@pytest.mark.parametrize("name", AUTHENTICATORS)
@given(text=TEXTS)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_no_text_makes_it_stumble(name: str, world: World, text: str) -> None:
    try:
        assert await built(name, world).authenticate(text) is None
    except Unauthenticated as error:
        assert error.effect == "none"


async def test_the_gatekeeper_asks_each_and_refuses_the_rest(world: World) -> None:
    gatekeeper = Gatekeeper(lambda: authenticators(world.context))
    for name in AUTHENTICATORS:
        if text := credential(name, world):
            assert (await gatekeeper.authenticate(text)).agent == "desk"
    for bad in (None, "", "opaque", "Basic YTpi", "x" * 20_000, "é" * 10, "a.b.c.d.e"):
        with pytest.raises(Unauthenticated) as error:
            await gatekeeper.authenticate(bad)
        assert error.value.facts["reason"] == ("unknown" if bad else "missing")


async def test_for_tests_alone_who_comes_without_a_credential_is_somebody(world: World) -> None:
    nobody = local_principal(world.settings.stdio)
    gatekeeper = Gatekeeper(lambda: authenticators(world.context), nobody=nobody)
    assert await gatekeeper.authenticate(None) is gatekeeper.remembered(b"") is nobody
    assert Gatekeeper(lambda: authenticators(world.context)).remembered(b"") is None
    assert (await gatekeeper.authenticate(credential("jwt", world))).agent == "desk"
    for bad in ("", "opaque", "a.b.c.d.e"):
        with pytest.raises(Unauthenticated):
            await gatekeeper.authenticate(bad)


async def test_a_local_identity_stands_until_the_settings_take_its_scopes(world: World) -> None:
    def with_scopes(*scopes: str) -> World:
        told: dict[str, Any] = {"stdio": {"agent": "ide", "scopes": list(scopes)}}
        return World(world.settings.model_validate(told), world.directory, world.clock)

    before = local_principal(with_scopes("a", "b").settings.stdio)
    await Gatekeeper(lambda: authenticators(with_scopes("a", "b").context)).recheck(before)
    with pytest.raises(InsufficientScope):
        await Gatekeeper(lambda: authenticators(with_scopes("a").context)).recheck(before)


async def test_a_caller_nobody_knows_any_more_may_not_go_on(world: World) -> None:
    gatekeeper = Gatekeeper(lambda: authenticators(world.context))
    text = credential("jwt", world)
    caller = await gatekeeper.authenticate(text)
    await gatekeeper.recheck(caller)
    world.clock.at_ms += 7_200_000
    await gatekeeper.recheck(caller)  # the token has run out, the grant has not
    world.directory.remove_client("desk")
    with pytest.raises(Unauthenticated):
        await gatekeeper.recheck(caller)
    with pytest.raises(Unauthenticated):
        await gatekeeper.recheck(Principal(agent="x", issuer="https://gone.example"))


async def test_a_directory_that_cannot_be_read_lets_nobody_in(world: World) -> None:
    gatekeeper = Gatekeeper(lambda: authenticators(world.context))
    texts = [credential("jwt", world), credential("api_key", world)]
    world.directory.close()
    for text in texts:
        with pytest.raises(RecordUnavailable) as error:
            await gatekeeper.authenticate(text)
        assert isinstance(error.value, BrokerError)
        assert error.value.retryable


async def test_the_address_may_turn_out_later(world: World) -> None:
    gatekeeper = Gatekeeper(lambda: authenticators(world.context))
    client = world.directory.client("desk")
    assert client
    other = "http://127.0.0.1:40404"
    now_ms = world.clock.now_ms()
    text = mint(
        world.directory, other, Parties(client), scopes={"a"}, audience=[other], lifetime_s=60, now_ms=now_ms
    ).token
    with pytest.raises(Unauthenticated):
        await gatekeeper.authenticate(text)
    world.base = other
    assert (await gatekeeper.authenticate(text)).issuer == other
    await gatekeeper.aclose()


@pytest.mark.anyio
async def test_the_open_door_of_tests_is_for_agents_and_never_for_reviewers() -> None:
    nobody = Principal(agent="local", issuer="settings", scopes=frozenset({"broker.review"}))
    gatekeeper = Gatekeeper(tuple, nobody=nobody)
    assert await gatekeeper.authenticate(None) is nobody
    with pytest.raises(Unauthenticated):
        await gatekeeper.authenticate(None, "api")
