"""Which URLs are this broker, which redirects are trusted, what a challenge says, and what is unsafe off loopback."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from broker.auth.challenge import bearer, challenge, metadata_url, protected_resource
from broker.authserver import redirects, unsafe
from broker.errors import Malformed
from broker.model.address import as_called, base_url, canonical_resource, is_loopback, resources
from broker.model.directory import Account
from broker.settings import Settings
from tests.issuing import BASE, World, world_in

PUBLIC = "https://broker.example"


@pytest.fixture
def world(tmp_path: Path) -> Generator[World]:
    with world_in(tmp_path) as world:
        yield world


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "LOCALHOST", "::1", "[::1]"])
def test_loopback_is_recognised(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "example.com", "127.0.0.1.example", "2130706433", "0x7f.1"])
def test_nothing_else_is_loopback(host: str) -> None:
    assert not is_loopback(host)


def test_a_broker_on_loopback_is_itself_under_each_spelling() -> None:
    assert f"{BASE}/mcp" in resources(BASE)
    assert "http://localhost:8750/sse" in resources(BASE)
    assert "http://[::1]:8750" in resources(BASE)
    assert "http://localhost:8751/mcp" not in resources(BASE)
    assert resources(PUBLIC) == (f"{PUBLIC}/mcp", f"{PUBLIC}/sse", f"{PUBLIC}/api", PUBLIC)


def test_a_resource_is_recognised_exactly() -> None:
    assert canonical_resource(BASE, f"{BASE}/mcp") == f"{BASE}/mcp"
    assert canonical_resource(BASE, f"{BASE}/") == BASE
    for other in (f"{BASE}/mcp/", f"{BASE}/other", f"{BASE}//", "http://127.0.0.1:875", "", "/mcp", f"{PUBLIC}/mcp"):
        assert canonical_resource(BASE, other) is None


def test_the_callers_spelling_is_kept_only_when_it_is_ours() -> None:
    assert as_called(BASE, "localhost:8750") == "http://localhost:8750"
    assert as_called(BASE, "LocalHost:8750") == "http://localhost:8750"
    for foreign in ("localhost", "localhost:1", "evil.example:8750", "localhost:8750@evil", ""):
        assert as_called(BASE, foreign) == BASE
    assert as_called(PUBLIC, "localhost") == PUBLIC


def test_a_base_url_comes_from_the_settings() -> None:
    assert base_url("", "127.0.0.1", 1) == "http://127.0.0.1:1"
    assert base_url("", "::1", 1) == "http://[::1]:1"
    assert base_url(f"{PUBLIC}/", "0.0.0.0", 1) == PUBLIC


# ---------------------------------------------------------------------------------------------------------- challenges


def test_one_bearer_token_is_read() -> None:
    assert bearer([]) is None
    assert bearer(["Bearer abc.DEF-1_2~+/=="]) == "abc.DEF-1_2~+/=="
    assert bearer(["bearer  abc"]) == "abc"


@pytest.mark.parametrize(
    "headers",
    [
        ["Bearer a", "Bearer a"],
        ["Bearer a, Bearer b"],
        ["Bearer\ta"],
        ["Bearer a b"],
        ["Bearer "],
        ["Bearer"],
        [""],
        ["Basic YTpi"],
        ["Bearer é"],
        ["a"],
        [" Bearer a"],
        ["Bearer a\n"],
    ],
)
def test_what_is_not_one_bearer_token_is_refused(headers: list[str]) -> None:
    with pytest.raises(Malformed):
        bearer(headers)


def test_a_challenge_names_what_is_needed() -> None:
    where = metadata_url(BASE, "/mcp")
    assert where == f"{BASE}/.well-known/oauth-protected-resource/mcp"
    assert challenge(resource_metadata=where) == f'Bearer resource_metadata="{where}"'
    needed = challenge(resource_metadata=where, error="insufficient_scope", scopes=["b", "a"], description='say "x"\n')
    assert needed == (
        f'Bearer error="insufficient_scope", error_description="say ?x??", scope="a b", resource_metadata="{where}"'
    )


def test_a_resource_document_names_its_issuers() -> None:
    document = protected_resource(BASE, "/sse", issuers=[BASE, "https://idp.example"], scopes=["b", "a"])
    assert document["resource"] == f"{BASE}/sse"
    assert document["authorization_servers"] == [BASE, "https://idp.example"]
    assert document["scopes_supported"] == ["a", "b"]
    assert "scopes_supported" not in protected_resource(BASE, "", issuers=[BASE], scopes=[])


# ----------------------------------------------------------------------------------------------------------- redirects


@pytest.mark.parametrize(
    ("requested", "registered", "same"),
    [
        ("https://a.example/cb", "https://a.example/cb", True),
        ("http://127.0.0.1:9/cb", "http://127.0.0.1/cb", True),
        ("http://localhost:9/cb?x=1", "http://localhost:8/cb?x=1", True),
        ("http://127.0.0.1:9/cb?x=1", "http://127.0.0.1/cb", False),
        ("http://127.0.0.1:9/other", "http://127.0.0.1/cb", False),
        ("http://localhost:9/cb", "http://127.0.0.1/cb", False),
        ("https://127.0.0.1:9/cb", "https://127.0.0.1/cb", False),
        ("https://a.example:444/cb", "https://a.example/cb", False),
        ("http://127.0.0.1:9/cb#x", "http://127.0.0.1/cb", False),
        ("http://x@127.0.0.1:9/cb", "http://127.0.0.1/cb", False),
        ("http://127.0.0.1:99999/cb", "http://127.0.0.1/cb", False),
        ("https://A.example/cb", "https://a.example/cb", False),
        ("cursor://auth/cb", "cursor://auth/cb", True),
        ("cursor://auth/cb/", "cursor://auth/cb", False),
    ],
)
def test_a_redirect_is_the_registered_one_or_not(requested: str, registered: str, same: bool) -> None:
    assert redirects.matches(requested, registered) is same


# -------------------------------------------------------------------------------------------------------------- safety


OPEN: dict[str, Any] = {"testing": {"open": True}}


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"listen": {"host": "0.0.0.0"}}, ["public_url", "broker user add"]),
        ({"listen": {"host": "10.0.0.1"}, "public_url": PUBLIC}, ["broker user add"]),
        ({"public_url": "http://broker.example"}, ["https", "broker user add"]),
        ({"public_url": f"{PUBLIC}/path"}, ["without path", "broker user add"]),
        ({"public_url": PUBLIC, "auth": {"embedded": {"enabled": False}}}, ["auth.issuers"]),
        ({"public_url": PUBLIC, "auth": {"issuers": [{"issuer": "https://idp.example"}]}}, []),
        ({"public_url": PUBLIC, "auth": {"issuers": [{"issuer": "https://idp.example"}]}, **OPEN}, ["testing.open"]),
        ({"listen": {"host": "0.0.0.0"}, **OPEN}, ["testing.open", "public_url", "broker user add"]),
        (
            {"listen": {"host": "0.0.0.0"}, "testing": {"clock_file": "now"}},
            ["testing.clock_file", "public_url", "user add"],
        ),
        ({"testing": {"clock_file": "now"}}, []),
        (OPEN, []),
        ({}, []),
        ({"listen": {"host": "localhost"}}, []),
    ],
)
def test_off_loopback_everything_missing_is_named(told: dict[str, Any], words: list[str], world: World) -> None:
    problems = unsafe(Settings.model_validate(told), world.directory)
    assert len(problems) == len(words), problems
    for word, problem in zip(words, problems, strict=True):
        assert word in problem


def test_an_account_that_can_sign_in_makes_it_safe(world: World) -> None:
    told = Settings.model_validate({"listen": {"host": "0.0.0.0"}, "public_url": PUBLIC})
    world.directory.add_account(Account("nobody"))
    assert unsafe(told, world.directory)
    world.directory.add_account(Account("ann", password_hash="x"))
    assert unsafe(told, world.directory) == []
