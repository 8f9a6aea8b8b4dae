"""Which access tokens are accepted, and which are not: each row a class of attack, beside the token that is good."""

from __future__ import annotations

import hmac
import warnings
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from joserfc.jwk import OKPKey, RSAKey
from joserfc.jws import JWSRegistry
from joserfc.util import urlsafe_b64decode

from broker.auth import Gatekeeper
from broker.auth.jwt import AccessTokens
from broker.auth.keys import public_keys
from broker.auth.token import Unverified, signed_payload
from broker.authserver.tokens import Parties, issue, mint
from broker.errors import Unauthenticated
from broker.model.directory import Account, Client
from tests.issuing import BASE, GONE, ISSUER, START_MS, ForeignIssuer, OneKey, World, forget, part, signed, world_in

pytestmark = pytest.mark.anyio
NOW_S = START_MS // 1000
WYCHEPROOF = Path(__file__).parents[3] / "shared/data/wycheproof/testvectors_v1/json_web_signature_test.json"

GOOD: dict[str, dict[str, Any]] = {
    "as the issuer makes it": {},
    "a list of audiences with ours in it": {"aud": ["https://other.example", f"{BASE}/sse"]},
    "the broker as a whole": {"aud": BASE},
    "loopback in another spelling": {"aud": "http://localhost:8750/mcp"},
    "expired within the leeway": {"exp": NOW_S - 29},
    "issued by a clock a little ahead": {"iat": NOW_S + 29},
    "fractions of a second": {"exp": NOW_S + 0.5},
    "no scope at all": {"scope": GONE},
    "not before, and it is after": {"nbf": NOW_S},
}

BAD_CLAIMS: dict[str, dict[str, Any]] = {
    **{f"no {name}": {name: GONE} for name in ("exp", "aud", "iss", "sub", "client_id", "iat", "jti")},
    **{f"{name} empty": {name: ""} for name in ("aud", "iss", "sub", "client_id", "jti")},
    **{f"{name} not text": {name: 1} for name in ("aud", "iss", "sub", "client_id", "jti", "scope", "tenant")},
    "exp past": {"exp": NOW_S - 31},
    "exp as text": {"exp": str(NOW_S + 600)},
    "exp as boolean": {"exp": True},
    "exp null": {"exp": None},
    "exp ten years ahead": {"exp": NOW_S + 10 * 365 * 86_400},
    "exp beyond any number": {"exp": 2**70},
    "exp negative": {"exp": -1},
    "iat in the future": {"iat": NOW_S + 3600},
    "iat as text": {"iat": str(NOW_S)},
    "nbf in the future": {"nbf": NOW_S + 3600},
    "another audience": {"aud": "https://other.example/mcp"},
    "a prefix of our audience": {"aud": "http://127.0.0.1:875"},
    "our audience as a prefix": {"aud": f"{BASE}/mcp/more"},
    "our audience with a slash": {"aud": f"{BASE}/mcp/"},
    "another port of loopback": {"aud": "http://127.0.0.1:8751/mcp"},
    "an audience list with a number": {"aud": [f"{BASE}/mcp", 1]},
    "an empty audience list": {"aud": []},
    "another issuer": {"iss": "https://evil.example"},
    "the issuer with a slash": {"iss": ISSUER + "/"},
    "an invisible character in a name": {"sub": "ann\u200b"},
    "a line break in a name": {"client_id": "desk\nbot"},
    "a name without end": {"sub": "a" * 300},
    "groups as text": {"groups": "support"},
    "groups of numbers": {"groups": [1]},
    "600 scopes": {"scope": " ".join(f"s{number}" for number in range(600))},
}

BAD_HEADERS: dict[str, dict[str, Any]] = {
    **{f"alg {name!r}": {"alg": name} for name in ("none", "None", "nOnE", "", "es256", "ES384", "HS256", 1, None)},
    "alg absent": {"alg": GONE},
    "typ absent": {"typ": GONE},
    "typ JWT": {"typ": "JWT"},
    "typ of an id token": {"typ": "id+jwt"},
    "typ a list": {"typ": ["at+jwt"]},
    "kid absent": {"kid": GONE},
    "kid a path": {"kid": "../../../../dev/null"},
    "kid SQL": {"kid": "' or 1=1 --"},
    "kid empty": {"kid": ""},
    "kid a number": {"kid": 1},
    "kid long": {"kid": "k" * 10_000},
    "crit unknown": {"crit": ["exp-ed"], "exp-ed": 1},
    "crit empty": {"crit": []},
    "crit known": {"crit": ["alg"]},
    "payload not encoded": {"crit": ["b64"], "b64": False},
    "b64 alone": {"b64": False},
}


@pytest.fixture
def issuer() -> ForeignIssuer:
    return ForeignIssuer()


@pytest.fixture
def world(tmp_path: Path, issuer: ForeignIssuer) -> Any:
    with world_in(tmp_path, issuers=[issuer.settings]) as world:
        yield world


async def accepted(judge: AccessTokens, token: str) -> Any:
    """The principal, or None when refused; anything else that is raised is a failure of the test."""
    try:
        return await Gatekeeper(lambda: [judge]).authenticate(token)
    except Unauthenticated as error:
        assert len(token) < 20 or token not in error.sentence
        return None


@pytest.mark.parametrize("name", GOOD)
async def test_a_good_token_is_accepted(name: str, world: World, issuer: ForeignIssuer) -> None:
    assert await accepted(issuer.judge(world), issuer.token(**GOOD[name]))


async def test_a_token_says_who_calls(world: World, issuer: ForeignIssuer) -> None:
    caller = await accepted(issuer.judge(world), issuer.token())
    assert (caller.agent, caller.user, caller.tenant, caller.issuer) == ("desk", "ann", "acme", ISSUER)
    assert caller.scopes == {"orders.read", "orders.refund"}
    assert caller.groups == {"support"}
    assert caller.credential_id == "t1"
    assert caller.expires_at_ms == (NOW_S + 630) * 1000


async def test_an_agent_for_itself_has_no_user(world: World, issuer: ForeignIssuer) -> None:
    assert (await accepted(issuer.judge(world), issuer.token(sub="desk"))).user == ""


async def test_scopes_are_literal(world: World, issuer: ForeignIssuer) -> None:
    caller = await accepted(issuer.judge(world), issuer.token(scope="* orders:* a\tb Orders.Read"))
    assert caller.scopes == {"*", "orders:*", "a\tb", "Orders.Read"}


@pytest.mark.parametrize("name", BAD_CLAIMS)
async def test_a_token_with_bad_claims_is_refused(name: str, world: World, issuer: ForeignIssuer) -> None:
    assert await accepted(issuer.judge(world), issuer.token()), "the twin is good"
    assert not await accepted(issuer.judge(world), issuer.token(**BAD_CLAIMS[name]))


@pytest.mark.parametrize("name", BAD_HEADERS)
async def test_a_token_with_a_bad_header_is_refused(name: str, world: World, issuer: ForeignIssuer) -> None:
    assert not await accepted(issuer.judge(world), issuer.token(header=BAD_HEADERS[name]))


@pytest.mark.parametrize("kind", ["AT+JWT", "application/at+jwt"])
async def test_the_type_may_be_spelled_as_a_media_type(kind: str, world: World, issuer: ForeignIssuer) -> None:
    assert await accepted(issuer.judge(world), issuer.token(header={"typ": kind}))


async def test_keys_and_addresses_in_the_header_are_ignored(world: World, issuer: ForeignIssuer) -> None:
    stranger = ForeignIssuer()
    own = {"jwk": stranger.key.as_dict(), "jku": "https://evil.example/k", "x5u": "https://evil.example", "x5c": ["AA"]}
    assert await accepted(issuer.judge(world), issuer.token(header=own)), "ignored, not obeyed"
    forged = stranger.token(header={**own, "kid": issuer.key.kid})
    assert not await accepted(issuer.judge(world), forged)
    assert not await accepted(issuer.judge(world), stranger.token(header=own))


async def test_a_duplicate_key_is_refused(world: World, issuer: ForeignIssuer) -> None:
    claims = orjson.dumps(issuer.claims())
    assert await accepted(issuer.judge(world), issuer.sign(issuer.header(), claims))
    twice = claims[:-1] + b',"sub":"root"}'
    assert not await accepted(issuer.judge(world), issuer.sign(issuer.header(), twice))
    header = orjson.dumps(issuer.header())[:-1] + b',"alg":"ES256"}'
    assert not await accepted(issuer.judge(world), issuer.sign(header, claims))


@pytest.mark.parametrize("payload", [b"[]", b"null", b'"x"', b"{", b"", b'{"exp":NaN}', b"[" * 5000, b"\xff\xfe"])
async def test_a_payload_that_is_no_json_object_is_refused(payload: bytes, world: World, issuer: ForeignIssuer) -> None:
    assert not await accepted(issuer.judge(world), issuer.sign(issuer.header(), payload))
    assert not await accepted(issuer.judge(world), issuer.sign(payload, issuer.claims()))


async def test_a_public_key_is_no_hmac_secret(world: World, tmp_path: Path) -> None:
    key = RSAKey.generate_key(2048, auto_kid=True)
    issuer = ForeignIssuer()
    judge = AccessTokens(world.context, source=lambda _: OneKey(key))
    for secret in (key.as_pem(private=False), key.as_der(private=False), b""):
        header = {"alg": "HS256", "typ": "at+jwt", "kid": key.kid}
        forged = signed(header, {**issuer.claims(), "iss": ISSUER}, _hs256(secret))
        assert not await accepted(judge, forged)


def _hs256(secret: bytes) -> Callable[[bytes], bytes]:
    return lambda message: hmac.new(secret, message, sha256).digest()


async def test_an_algorithm_must_fit_its_key(world: World) -> None:
    issuer = ForeignIssuer()
    rsa = RSAKey.generate_key(2048, auto_kid=True)
    judge = AccessTokens(world.context, source=lambda _: OneKey(rsa))
    for name, good in (("RS256", True), ("PS256", True), ("ES256", False), ("EdDSA", False), ("RS512", False)):
        signing = JWSRegistry.algorithms["PS256" if name == "PS256" else "RS256"]
        token = signed(issuer.header(alg=name, kid=rsa.kid), issuer.claims(), lambda m, s=signing: s.sign(m, rsa))
        assert bool(await accepted(judge, token)) is good, name


@pytest.mark.parametrize("name", ["EdDSA", "Ed25519"])
async def test_ed25519_is_accepted_under_both_names_without_a_warning(name: str, world: World) -> None:
    issuer = ForeignIssuer()
    key = OKPKey.generate_key("Ed25519", auto_kid=True)
    judge = AccessTokens(world.context, source=lambda _: OneKey(key))
    signing = JWSRegistry.algorithms["Ed25519"]
    token = signed(issuer.header(alg=name, kid=key.kid), issuer.claims(), lambda message: signing.sign(message, key))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert await accepted(judge, token)


async def test_a_changed_or_cut_token_is_refused(world: World, issuer: ForeignIssuer) -> None:
    token = issuer.token()
    header, payload, signature = token.split(".")
    other = part(issuer.claims(sub="root")).decode()
    for bad in (
        f"{header}.{other}.{signature}",
        f"{header}.{payload}.",
        f"{header}.{payload}.{signature[:-4]}",
        f"{header}.{payload}.{signature}=",
        f"{header}.{payload}.{signature}.{signature}",
        f"{header}.{payload}",
        f"{header}..{signature}",
        f".{payload}.{signature}",
        f"{token} ",
        f"{token}\n",
        f"{header}.{payload}.{'A' * 86}",  # r = s = 0
        "..",
        "....",
    ):
        assert not await accepted(issuer.judge(world), bad)
    assert await accepted(issuer.judge(world), token)


async def test_a_huge_token_is_refused_before_it_is_looked_at(world: World, issuer: ForeignIssuer) -> None:
    keys = OneKey(issuer.key)
    judge = AccessTokens(world.context, source=lambda _: keys)
    assert not await accepted(judge, issuer.token(junk="x" * 1_000_000))
    assert keys.asked == 0


@given(st.text(max_size=200) | st.from_regex(r"[A-Za-z0-9_\-]{0,40}(\.[A-Za-z0-9_\-]{0,40}){2}", fullmatch=True))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_any_text_is_refused_in_good_order(world: World, issuer: ForeignIssuer, text: str) -> None:
    assert not await accepted(issuer.judge(world), text)


@given(st.dictionaries(st.sampled_from(["typ", "alg", "kid", "crit", "zip"]), st.none() | st.integers() | st.text()))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_no_header_makes_it_stumble(world: World, issuer: ForeignIssuer, changes: dict[str, Any]) -> None:
    caller = await accepted(issuer.judge(world), issuer.token(header=changes))
    assert caller is None or changes.keys() <= {"zip"}


# ------------------------------------------------------------------------------------------------ the embedded issuer


@pytest.fixture
def home(tmp_path: Path) -> Any:
    with world_in(tmp_path) as world:
        world.directory.add_client(
            Client("desk", scopes=frozenset({"orders.read", "orders.refund"}), owner="olga", created_at_ms=1)
        )
        world.directory.add_account(
            Account("ann", scopes=frozenset({"orders.read", "x"}), groups=frozenset({"support"}), created_at_ms=1)
        )
        yield world


def minted(world: World, user: bool = True, **more: Any) -> str:
    client, account = world.directory.client("desk"), world.directory.account("ann")
    assert client
    assert account
    parties = Parties(client, account if user else None)
    told: dict[str, Any] = {"scopes": {"orders.read", "orders.refund"}, "audience": [BASE], "lifetime_s": 600, **more}
    return mint(world.directory, BASE, parties, now_ms=world.clock.now_ms(), **told).token


async def test_a_token_of_the_embedded_issuer_is_narrowed_by_what_its_parties_may_now(home: World) -> None:
    judge = AccessTokens(home.context)
    caller = await accepted(judge, minted(home))
    assert (caller.agent, caller.user, caller.owner, caller.issuer) == ("desk", "ann", "olga", BASE)
    assert caller.scopes == {"orders.read"}
    assert caller.groups == {"support"}
    itself = await accepted(judge, minted(home, user=False))
    assert (itself.agent, itself.user) == ("desk", "")
    assert itself.scopes == {"orders.read", "orders.refund"}


def _remove_client(world: World) -> None:
    assert world.directory.remove_client("desk")


def _remove_account(world: World) -> None:
    assert world.directory.remove_account("ANN")


def _disable_account(world: World) -> None:
    assert world.directory.update_account(Account("ann", disabled=True))


def _revoke_token(world: World) -> None:
    world.directory.revoke("g1", world.clock.now_ms() + 600_000)


def _replace_client(world: World) -> None:
    """Another one of the same name is not the one the token was made for."""
    world.directory.remove_client("desk")
    world.clock.at_ms += 2000
    world.directory.add_client(Client("desk", scopes=frozenset({"orders.read"})))


@pytest.mark.parametrize("end", [_remove_client, _remove_account, _disable_account, _revoke_token, _replace_client])
async def test_what_ends_a_grant_ends_its_remembered_tokens(end: Callable[[World], None], home: World) -> None:
    judge = AccessTokens(home.context)
    token = minted(home, grant_id="g1")
    caller = await accepted(judge, token)
    assert caller
    assert await judge.recheck(caller)
    end(home)
    forget(judge)
    assert not await accepted(judge, token)


async def test_a_good_token_is_judged_once(home: World) -> None:
    judge = AccessTokens(home.context)
    token = minted(home)
    first = await accepted(judge, token)
    assert await accepted(judge, token) is first
    home.clock.at_ms += 59_000
    assert await accepted(judge, token) is first
    home.clock.at_ms += 2_000
    again = await accepted(judge, token)
    assert again is not first
    assert again == first
    home.clock.at_ms += 700_000
    assert not await accepted(judge, token)


async def test_a_narrower_scope_counts_for_a_remembered_token(home: World) -> None:
    judge = AccessTokens(home.context)
    token = minted(home)
    assert (await accepted(judge, token)).scopes == {"orders.read"}
    home.directory.update_account(Account("ann", scopes=frozenset({"x"})))
    forget(judge)
    assert (await accepted(judge, token)).scopes == set()


async def test_a_token_of_before_a_rotation_stays_good_and_new_ones_are_found(home: World) -> None:
    from broker.authserver.keys import rotate

    judge = AccessTokens(home.context)
    old = minted(home)
    assert await accepted(judge, old)
    rotate(home.directory, home.clock.now_ms())
    fresh = AccessTokens(home.context)
    assert await accepted(fresh, old)
    assert await accepted(fresh, minted(home))
    assert len(home.directory.signing_keys()) == 2


async def test_the_embedded_issuer_turned_off_vouches_for_nobody(home: World) -> None:
    token = minted(home)
    assert await accepted(AccessTokens(home.context), token)
    closed = World(home.settings.model_validate({"auth": {"embedded": {"enabled": False}}}), home.directory, home.clock)
    assert not await accepted(AccessTokens(closed.context), token)


async def test_an_operator_can_issue_a_token_and_only_what_is_allowed(home: World) -> None:
    from broker.errors import Forbidden, InvalidArguments

    clocked = Client("now", scopes=frozenset({"a"}))
    home.directory.add_client(clocked)
    token = issue(home.directory, home.settings, BASE, client_id="now", lifetime_s=60)
    home.clock.at_ms = int(orjson.loads(_payload(token))["iat"]) * 1000 + 1000
    home.directory.update_client(Client("now", scopes=frozenset({"a"}), created_at_ms=1))
    for wrong in ({"client_id": "nobody"}, {"client_id": "now", "scopes": ["b"]}, {"client_id": "now", "user": "bob"}):
        with pytest.raises(Forbidden):
            issue(home.directory, home.settings, BASE, **wrong)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InvalidArguments):
        issue(home.directory, home.settings, BASE, client_id="now", lifetime_s=90_000)


def _payload(token: str) -> bytes:
    return urlsafe_b64decode(token.split(".")[1].encode())


# ------------------------------------------------------------------------------------------------------ other people's


def _vectors() -> list[Any]:
    if not WYCHEPROOF.exists():
        return [pytest.param(None, marks=pytest.mark.skip(reason=f"no {WYCHEPROOF.name} beside the repository"))]
    groups = orjson.loads(WYCHEPROOF.read_bytes())["testGroups"]
    wanted = ("ES256", "RS256", "PS256")
    return [
        pytest.param((group["public"], test), id=f"{group['comment']}-{test['tcId']}")
        for group in groups
        if group.get("public", {}).get("alg") in wanted
        for test in group["tests"]
    ]


@pytest.mark.parametrize("vector", _vectors())
async def test_wycheproof_signatures(vector: Any) -> None:
    """What they call invalid is refused, always; what they call valid is accepted, if the key is one we would take.

    Two of their valid ones are signed with another algorithm than their key is for; we insist.
    """
    jwk, test = vector
    keys = list(public_keys({"keys": [{**jwk, "kid": "k"}]}).values())
    try:
        signed_payload(Unverified(test["jws"], "", jwk["alg"], "k"), *keys)
        assert test["result"] == "valid", test["comment"]
    except (Unauthenticated, TypeError) as error:
        fits = jwk["alg"] in str(urlsafe_b64decode(test["jws"].split(".")[0].encode()))
        assert test["result"] != "valid" or not keys or not fits, (test["comment"], error)
