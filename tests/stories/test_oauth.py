"""The embedded authorization server, told through a real HTTP server, a browser that posts forms, and real clients."""

from __future__ import annotations

import base64
import logging
import re
import secrets
import socket
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

import httpx2
import pytest
from joserfc.util import urlsafe_b64decode
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from broker.auth import Context, Gatekeeper, authenticators
from broker.auth.challenge import bearer, challenge, metadata_url
from broker.auth.metadata import routes as metadata_routes
from broker.authserver import routes
from broker.authserver.accounts import hashed
from broker.authserver.clients import create as add_client
from broker.errors import RecordUnavailable, Unauthenticated
from broker.model.address import as_called
from broker.model.directory import Account, Client
from broker.settings import Settings
from broker.stores.sqlite.directory import SqliteDirectory
from tests.issuing import MovableClock, forget, http_serving

pytestmark = pytest.mark.anyio
SCOPES = ("orders.read", "orders.refund")
PASSWORD = "correct horse battery"
BACK = "http://127.0.0.1:1455/callback"


@dataclass
class House:
    url: str
    directory: SqliteDirectory
    gatekeeper: Gatekeeper
    clock: MovableClock
    http: httpx2.AsyncClient
    notes: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list[tuple[str, Mapping[str, Any]]])
    notes_fail: bool = False

    async def note(self, kind: str, facts: Mapping[str, Any]) -> None:
        if self.notes_fail:
            raise RecordUnavailable("The records cannot be written.")
        self.notes.append((kind, facts))

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.notes]

    async def token(self, auth: tuple[str, str] | None = None, **form: Any) -> httpx2.Response:
        return await self.http.post("/oauth/token", data=form, auth=auth)  # pyright: ignore[reportArgumentType]

    def forget(self) -> None:
        forget(self.gatekeeper)


@asynccontextmanager
async def house_in(folder: Path, **settings: Any) -> AsyncGenerator[House]:
    """Authorization server, metadata, and one protected endpoint that says who calls."""
    bound = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{bound.getsockname()[1]}"
    told = Settings.model_validate(settings)
    clock = MovableClock()
    directory = SqliteDirectory.open(folder / "broker.db", clock=clock)
    gatekeeper = Gatekeeper(lambda: authenticators(Context(told, directory, clock, lambda: url)))

    async def whoami(request: Request) -> Response:
        base = as_called(url, request.headers["host"])
        try:
            caller = await gatekeeper.authenticate(bearer(request.headers.getlist("authorization")))
        except Unauthenticated as error:
            value = challenge(resource_metadata=metadata_url(base, "/mcp"), scopes=SCOPES)
            return Response(error.sentence, status_code=401, headers={"WWW-Authenticate": value})
        return JSONResponse({"agent": caller.agent, "user": caller.user, "scopes": sorted(caller.scopes)})

    async with httpx2.AsyncClient(base_url=url, trust_env=False, timeout=10) as http:
        house = House(url, directory, gatekeeper, clock, http)
        app = Starlette(
            routes=[
                *routes(told, directory, lambda: SCOPES, house.note, lambda: url, clock=clock),
                *metadata_routes(told, lambda: SCOPES, lambda: url),
                Route("/mcp", whoami, methods=["GET", "POST"]),
            ]
        )
        async with http_serving(app, bound):
            yield house
    await gatekeeper.aclose()
    directory.close()


@pytest.fixture(scope="module")
def password_hash() -> str:
    return hashed(PASSWORD)


@pytest.fixture
async def house(tmp_path: Path, password_hash: str) -> AsyncGenerator[House]:
    async with house_in(tmp_path) as house:
        house.directory.add_account(Account("ann", password_hash, scopes=frozenset({"orders.read", "broker.review"})))
        yield house


def bot(house: House) -> tuple[str, str]:
    """A confidential client that acts for itself, and for people."""
    client = Client(
        "support-bot",
        grants=("client_credentials", "authorization_code", "refresh_token"),
        redirect_uris=(BACK,),
        scopes=frozenset(SCOPES),
    )
    stored, secret = add_client(house.directory, client)
    return stored.client_id, secret


class Pkce:
    def __init__(self) -> None:
        self.verifier = secrets.token_urlsafe(48)
        digest = sha256(self.verifier.encode()).digest()
        self.challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def request_of(client: str, pkce: Pkce, **changes: str) -> str:
    asked = {
        "response_type": "code",
        "client_id": client,
        "redirect_uri": BACK,
        "code_challenge": pkce.challenge,
        "code_challenge_method": "S256",
        "state": "st&te",
        "scope": "orders.read orders.refund",
        **changes,
    }
    return urlencode({name: value for name, value in asked.items() if value})


def fields_of(page: httpx2.Response) -> dict[str, str]:
    """The hidden fields of the first form."""
    hidden = re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', page.text.split("</form>")[0])
    return {name: unescape(value) for name, value in hidden}


async def sign_in(house: House, query: str, name: str = "ann", password: str = PASSWORD) -> httpx2.Response:
    page = await house.http.get(f"/oauth/authorize?{query}")
    assert page.status_code == 200, page.text
    assert "Sign in" in page.text
    answer = await house.http.post("/oauth/sign-in", data={**fields_of(page), "name": name, "password": password})
    return await house.http.get(answer.headers["location"]) if answer.status_code == 303 else answer


async def consent(house: House, page: httpx2.Response, decision: str = "allow") -> dict[str, str]:
    answer = await house.http.post("/oauth/authorize", data={**fields_of(page), "decision": decision})
    assert answer.status_code == 303, answer.text
    location = answer.headers["location"]
    assert location.startswith(BACK + "?")
    return dict(parse_qsl(urlsplit(location).query))


async def code_for(house: House, client_id: str, pkce: Pkce, **changes: str) -> str:
    query = request_of(client_id, pkce, **changes)
    page = await house.http.get(f"/oauth/authorize?{query}")
    if "Sign in" in page.text:
        page = await sign_in(house, query)
    answer = await consent(house, page)
    assert answer["iss"] == house.url
    assert answer["state"] == "st&te"
    return answer["code"]


async def whoami(house: House, token: str) -> httpx2.Response:
    return await house.http.get("/mcp", headers={"Authorization": f"Bearer {token}"})


def claims_of(token: str) -> dict[str, Any]:
    import json

    return json.loads(urlsafe_b64decode(token.split(".")[1].encode()))


# ----------------------------------------------------------------------------------------------------------- metadata


async def test_the_metadata_documents_agree(house: House) -> None:
    refused = await house.http.get("/mcp")
    assert refused.status_code == 401
    where = re.search(r'resource_metadata="([^"]+)"', refused.headers["www-authenticate"])
    assert where
    assert 'scope="orders.read orders.refund"' in refused.headers["www-authenticate"]
    assert "error=" not in refused.headers["www-authenticate"]
    resource = (await house.http.get(where[1])).json()
    assert resource["resource"] == f"{house.url}/mcp"
    assert resource["authorization_servers"] == [house.url]
    assert resource["scopes_supported"] == list(SCOPES)
    server = (await house.http.get(f"{house.url}/.well-known/oauth-authorization-server")).json()
    assert server == (await house.http.get("/.well-known/openid-configuration")).json()
    assert server["issuer"] == house.url
    assert server["code_challenge_methods_supported"] == ["S256"]
    assert "offline_access" not in server["scopes_supported"]
    assert server["authorization_response_iss_parameter_supported"] is True
    assert server["registration_endpoint"] == f"{house.url}/oauth/register"
    keys = (await house.http.get(server["jwks_uri"])).json()["keys"]
    assert [(key["kty"], key["alg"], key["use"]) for key in keys] == [("EC", "ES256", "sig")]
    assert "d" not in keys[0]


async def test_each_endpoint_has_its_own_metadata_in_the_callers_spelling(house: House) -> None:
    for path in ("/mcp", "/sse", ""):
        await _metadata_of(house, path)


async def _metadata_of(house: House, path: str) -> None:
    where = f"/.well-known/oauth-protected-resource{path}"
    assert (await house.http.get(where)).json()["resource"] == house.url + path
    port = urlsplit(house.url).port
    called = await house.http.get(where, headers={"Host": f"localhost:{port}"})
    assert called.json()["resource"] == f"http://localhost:{port}{path}"
    stranger = await house.http.get(where, headers={"Host": "evil.example"})
    assert stranger.json()["resource"] == house.url + path


# -------------------------------------------------------------------------------------------------- client credentials


@pytest.mark.parametrize("way", ["basic", "post"])
async def test_an_agent_gets_a_token_for_itself(way: str, house: House) -> None:
    client_id, secret = bot(house)
    body = {} if way == "basic" else {"client_id": client_id, "client_secret": secret}
    answer = await house.token(
        (client_id, secret) if way == "basic" else None, grant_type="client_credentials", scope="orders.read", **body
    )
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    token = answer.json()
    assert (token["token_type"], token["scope"], token["expires_in"]) == ("Bearer", "orders.read", 3600)
    assert "refresh_token" not in token
    claims = claims_of(token["access_token"])
    assert claims["aud"] == [f"{house.url}/mcp", f"{house.url}/sse", f"{house.url}/api", house.url]
    assert (await whoami(house, token["access_token"])).json() == {
        "agent": "support-bot",
        "user": "",
        "scopes": ["orders.read"],
    }
    kind, facts = house.notes[-1]
    assert kind == "token_issued"
    assert facts["token_id"] == claims["jti"]


async def test_scopes_are_narrowed_never_widened(house: House) -> None:
    auth = bot(house)
    some = await house.token(auth, grant_type="client_credentials", scope="orders.read everything")
    assert some.json()["scope"] == "orders.read"
    every = await house.token(auth, grant_type="client_credentials")
    assert every.json()["scope"] == "orders.read orders.refund"
    none = await house.token(auth, grant_type="client_credentials", scope="everything")
    assert (none.status_code, none.json()["error"]) == (400, "invalid_scope")


async def test_who_fails_to_authenticate_hears_the_same_answer_whoever_it_is(house: House) -> None:
    client_id, secret = bot(house)
    assert (await house.token((client_id, secret), grant_type="client_credentials")).status_code == 200
    wrong = [
        await house.token((client_id, "guess"), grant_type="client_credentials"),
        await house.token(("nobody", secret), grant_type="client_credentials"),
        await house.token((client_id, ""), grant_type="client_credentials"),
        await house.token(None, grant_type="client_credentials", client_id=client_id),
        await house.token(None, grant_type="client_credentials"),
    ]
    assert {answer.status_code for answer in wrong} == {401}
    assert len({answer.text for answer in wrong}) == 1
    assert house.kinds().count("token_refused") == 1, "recorded in sum"


async def test_a_token_is_for_the_resource_it_was_asked_for(house: House) -> None:
    auth = bot(house)
    narrow = await house.token(auth, grant_type="client_credentials", resource=f"{house.url}/sse")
    assert claims_of(narrow.json()["access_token"])["aud"] == [f"{house.url}/sse"]
    slash = await house.token(auth, grant_type="client_credentials", resource=f"{house.url}/")
    assert claims_of(slash.json()["access_token"])["aud"] == [house.url]
    foreign = await house.token(auth, grant_type="client_credentials", resource="https://other.example/mcp")
    assert (foreign.status_code, foreign.json()["error"]) == (400, "invalid_target")


MALFORMED = [
    b"grant_type=client_credentials&grant_type=client_credentials",
    b"grant_type=%ff",
    b"grant_type=a%00b",
    b"\xff\xfe",
    b"",
    b"grant_type=password&username=a&password=b",
    b'grant_type="%5c%22',
    b"a=b&" * 200,
    b"grant_type=client_credentials&scope=" + b"x" * 70_000,
]


async def test_a_malformed_token_request_is_a_plain_refusal(house: House) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    for body in MALFORMED:
        answer = await house.http.post("/oauth/token", content=body, headers=headers)
        assert answer.status_code in (400, 401, 413), body[:80]
        assert answer.json()["error"]


async def test_a_token_request_must_be_a_form(house: House) -> None:
    assert (await house.http.post("/oauth/token", json={"grant_type": "client_credentials"})).status_code == 415


async def test_what_cannot_be_recorded_is_not_given_out(house: House) -> None:
    auth = bot(house)
    house.notes_fail = True
    answer = await house.token(auth, grant_type="client_credentials")
    assert answer.status_code == 503
    assert "access_token" not in answer.text


# --------------------------------------------------------------------------------------------------------- signing in


async def test_a_person_signs_in_consents_and_the_agent_acts_for_them(house: House) -> None:
    client_id, secret = bot(house)
    pkce = Pkce()
    page = await sign_in(house, request_of(client_id, pkce))
    for shown in ("support-bot", BACK, "orders.read", "will not get", "orders.refund", "ann"):
        assert shown in page.text
    answer = await consent(house, page)
    token = await house.token(
        (client_id, secret),
        grant_type="authorization_code",
        code=answer["code"],
        redirect_uri=BACK,
        code_verifier=pkce.verifier,
    )
    assert token.status_code == 200, token.text
    assert token.json()["scope"] == "orders.read"
    caller = await whoami(house, token.json()["access_token"])
    assert caller.json() == {"agent": "support-bot", "user": "ann", "scopes": ["orders.read"]}
    assert house.kinds() == ["sign_in", "consent", "token_issued"]


async def test_pages_carry_no_script_and_cannot_be_framed(house: House) -> None:
    client_id, _ = bot(house)
    page = await house.http.get(f"/oauth/authorize?{request_of(client_id, Pkce())}")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert "<script" not in page.text
    assert "style=" not in page.text
    cookie = page.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    assert (await house.http.get("/oauth/style.css")).headers["content-type"].startswith("text/css")


async def test_a_no_is_told_to_the_client_with_our_name(house: House) -> None:
    client_id, _ = bot(house)
    page = await sign_in(house, request_of(client_id, Pkce()))
    answer = await consent(house, page, "deny")
    assert (answer["error"], answer["iss"], answer["state"]) == ("access_denied", house.url, "st&te")


BAD_REQUESTS: list[tuple[dict[str, str], str]] = [
    ({"code_challenge": ""}, "invalid_request"),
    ({"code_challenge_method": "plain"}, "invalid_request"),
    ({"code_challenge_method": ""}, "invalid_request"),
    ({"code_challenge": "short"}, "invalid_request"),
    ({"response_type": "token"}, "unsupported_response_type"),
    ({"resource": "https://other.example"}, "invalid_target"),
]


async def test_a_bad_request_goes_back_to_the_client(house: House) -> None:
    client_id, _ = bot(house)
    for changes, error in BAD_REQUESTS:
        answer = await house.http.get(f"/oauth/authorize?{request_of(client_id, Pkce(), **changes)}")
        assert answer.status_code == 303, answer.text
        told = parse_qs(urlsplit(answer.headers["location"]).query)
        assert answer.headers["location"].startswith(BACK)
        assert (told["error"], told["iss"]) == ([error], [house.url])


DOUBTFUL: list[dict[str, str]] = [
    {"redirect_uri": "https://evil.example/callback"},
    {"redirect_uri": BACK + "/more"},
    {"redirect_uri": "http://127.0.0.1:1455@evil.example/callback"},
    {"redirect_uri": "http://localhost:1455/callback"},
    {"redirect_uri": BACK + '"><script>'},
    {"redirect_uri": ""},
    {"client_id": "nobody"},
    {"client_id": ""},
    {"response_type": 'co"de'},
]


async def test_a_request_with_a_doubtful_way_back_is_answered_here(house: House) -> None:
    client_id, _ = bot(house)
    for changes in DOUBTFUL:
        answer = await house.http.get(f"/oauth/authorize?{request_of(client_id, Pkce(), **changes)}")
        assert answer.status_code == 400, changes
        assert "location" not in answer.headers
        assert "<script" not in answer.text


async def test_a_parameter_given_twice_is_refused(house: House) -> None:
    client_id, _ = bot(house)
    query = request_of(client_id, Pkce())
    assert (await house.http.get(f"/oauth/authorize?{query}")).status_code == 200
    assert (await house.http.get(f"/oauth/authorize?{query}&scope=all")).status_code == 400


async def test_a_loopback_redirect_may_use_any_port(house: House) -> None:
    client_id, _ = bot(house)
    other = "http://127.0.0.1:60001/callback"
    page = await sign_in(house, request_of(client_id, Pkce(), redirect_uri=other))
    assert other in page.text


async def test_a_form_from_elsewhere_is_refused(house: House) -> None:
    client_id, _ = bot(house)
    page = await sign_in(house, request_of(client_id, Pkce()))
    good = {**fields_of(page), "decision": "allow"}
    assert good["csrf"]
    for form, headers in (
        ({**good, "csrf": ""}, {}),
        ({**good, "csrf": "0" * 64}, {}),
        (good, {"Origin": "https://evil.example"}),
        (good, {"Origin": "null"}),
        (good, {"Origin": house.url + ".evil.example"}),
        (good, {"Sec-Fetch-Site": "cross-site"}),
        (good, {"Content-Type": "text/plain"}),
        (good, {"Cookie": ""}),
    ):
        content = urlencode(form)
        sent = {"Content-Type": "application/x-www-form-urlencoded", **headers}
        answer = await house.http.post("/oauth/authorize", content=content, headers=sent)
        assert answer.status_code in (403, 415), (headers, answer.text)
    assert "consent" not in house.kinds()
    assert (await consent(house, page))["code"], "the twin is good"


async def test_the_cookie_of_before_the_sign_in_is_worth_nothing_after(house: House) -> None:
    client_id, _ = bot(house)
    query = request_of(client_id, Pkce())
    await house.http.get(f"/oauth/authorize?{query}")
    before = dict(house.http.cookies)
    page = await sign_in(house, query)
    after = dict(house.http.cookies)
    assert before.keys() == after.keys()
    assert before != after
    async with httpx2.AsyncClient(base_url=house.url, cookies=before, trust_env=False) as thief:
        assert "Sign in" in (await thief.get(f"/oauth/authorize?{query}")).text
    form = fields_of(page)
    await house.http.post("/oauth/sign-out", data=form)
    async with httpx2.AsyncClient(base_url=house.url, cookies=after, trust_env=False) as late:
        assert "Sign in" in (await late.get(f"/oauth/authorize?{query}")).text, "ended on the server"


async def test_a_wrong_password_and_an_unknown_name_look_the_same_and_are_slowed_down(house: House) -> None:
    client_id, _ = bot(house)
    query = request_of(client_id, Pkce())
    wrong = await sign_in(house, query, password="not this one")
    unknown = await sign_in(house, query, name="nobody")
    assert wrong.status_code == unknown.status_code == 403
    assert wrong.text.replace(fields_of(wrong)["csrf"], "") == unknown.text.replace(fields_of(unknown)["csrf"], "")
    for _ in range(4):
        await sign_in(house, query, password="not this one")
    slowed = await sign_in(house, query)
    assert slowed.status_code == 429
    assert int(slowed.headers["retry-after"]) <= 61
    assert house.kinds().count("sign_in_refused") == 6


async def test_hostile_text_is_shown_as_text(house: House) -> None:
    name = "<script>alert(1)</script>\u202egnp.exe"
    registered = await register(house, client_name=name)
    page = await sign_in(house, request_of(registered["client_id"], Pkce(), state="x"))
    assert "<script" not in page.text
    assert "&lt;script&gt;" in page.text
    assert "\u202e" not in page.text


# ---------------------------------------------------------------------------------------------------- codes and tokens


async def exchange(house: House, auth: tuple[str, str], given: str, pkce: Pkce, **changes: str) -> httpx2.Response:
    form = {"code": given, "redirect_uri": BACK, "code_verifier": pkce.verifier, **changes}
    return await house.token(auth, grant_type="authorization_code", **form)


async def test_a_code_shown_twice_ends_everything_it_gave(house: House) -> None:
    auth, pkce = bot(house), Pkce()
    code = await code_for(house, auth[0], pkce)
    first = await exchange(house, auth, code, pkce)
    assert first.status_code == 200
    assert (await whoami(house, first.json()["access_token"])).status_code == 200
    again = await exchange(house, auth, code, pkce)
    assert (again.status_code, again.json()["error"]) == (400, "invalid_grant")
    house.forget()
    assert (await whoami(house, first.json()["access_token"])).status_code == 401
    refresh = await house.token(auth, grant_type="refresh_token", refresh_token=first.json()["refresh_token"])
    assert refresh.json()["error"] == "invalid_grant"


BAD_EXCHANGES: list[dict[str, str]] = [
    {"code_verifier": "x" * 43},
    {"code_verifier": ""},
    {"redirect_uri": "http://127.0.0.1:1/callback"},
    {"redirect_uri": ""},
    {"code": "x" * 43},
    {"resource": "https://other.example"},
]


async def test_a_code_needs_its_verifier_and_its_redirect(house: House) -> None:
    auth, pkce = bot(house), Pkce()
    for changes in BAD_EXCHANGES:
        code = await code_for(house, auth[0], pkce)
        bad = await exchange(house, auth, code, pkce, **changes)
        assert bad.status_code == 400, changes
        assert bad.json()["error"] in ("invalid_grant", "invalid_request", "invalid_target")


async def test_a_code_belongs_to_its_client_and_to_its_minute(house: House) -> None:
    auth, pkce = bot(house), Pkce()
    grants = ("client_credentials", "authorization_code")
    _, other_secret = add_client(house.directory, Client("other", grants=grants, redirect_uris=(BACK,)))
    code = await code_for(house, auth[0], pkce)
    assert (await exchange(house, ("other", other_secret), code, pkce)).json()["error"] == "invalid_grant"
    assert (await exchange(house, auth, code, pkce)).status_code == 200
    late = await code_for(house, auth[0], pkce)
    house.clock.at_ms += 121_000
    assert (await exchange(house, auth, late, pkce)).json()["error"] == "invalid_grant"


async def test_refresh_tokens_rotate_and_showing_an_old_one_ends_the_grant(house: House) -> None:
    auth, pkce = bot(house), Pkce()
    first = (await exchange(house, auth, await code_for(house, auth[0], pkce), pkce)).json()
    second = (await house.token(auth, grant_type="refresh_token", refresh_token=first["refresh_token"])).json()
    assert second["refresh_token"] != first["refresh_token"]
    assert second["scope"] == "orders.read"
    third = (await house.token(auth, grant_type="refresh_token", refresh_token=second["refresh_token"])).json()
    assert (await whoami(house, third["access_token"])).status_code == 200
    stolen = await house.token(auth, grant_type="refresh_token", refresh_token=first["refresh_token"])
    assert (stolen.status_code, stolen.json()["error"]) == (400, "invalid_grant")
    ended = await house.token(auth, grant_type="refresh_token", refresh_token=third["refresh_token"])
    assert ended.json()["error"] == "invalid_grant"
    house.forget()
    assert (await whoami(house, third["access_token"])).status_code == 401


async def test_a_refresh_cannot_widen_and_follows_the_account(house: House) -> None:
    auth, pkce = bot(house), Pkce()
    first = (await exchange(house, auth, await code_for(house, auth[0], pkce), pkce)).json()
    wider = await house.token(
        auth, grant_type="refresh_token", refresh_token=first["refresh_token"], scope="orders.read broker.review"
    )
    assert wider.json()["error"] == "invalid_scope"
    house.directory.update_account(Account("ann", disabled=True))
    gone = await house.token(auth, grant_type="refresh_token", refresh_token=first["refresh_token"])
    assert gone.json()["error"] == "invalid_grant"


async def test_a_client_can_revoke_what_is_its_own(house: House) -> None:
    auth, pkce = bot(house), Pkce()
    given = (await exchange(house, auth, await code_for(house, auth[0], pkce), pkce)).json()
    _, other_secret = add_client(house.directory, Client("other"))
    stranger = await house.http.post(
        "/oauth/revoke", data={"token": given["access_token"]}, auth=("other", other_secret)
    )
    assert stranger.json()["error"] == "invalid_grant"
    assert (await house.http.post("/oauth/revoke", data={"token": "never seen"}, auth=auth)).status_code == 200
    assert (await whoami(house, given["access_token"])).status_code == 200
    assert (await house.http.post("/oauth/revoke", data={"token": given["access_token"]}, auth=auth)).status_code == 200
    house.forget()
    assert (await whoami(house, given["access_token"])).status_code == 401
    renewed = (await house.token(auth, grant_type="refresh_token", refresh_token=given["refresh_token"])).json()
    answer = await house.http.post("/oauth/revoke", data={"token": renewed["refresh_token"]}, auth=auth)
    assert answer.status_code == 200
    house.forget()
    assert (await whoami(house, renewed["access_token"])).status_code == 401, "the whole grant"


async def test_no_secret_is_logged_even_at_debug(house: House, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        auth, pkce = bot(house), Pkce()
        code = await code_for(house, auth[0], pkce)
        given = (await exchange(house, auth, code, pkce)).json()
        await exchange(house, (auth[0], "guessed-secret"), code, pkce)
    ours = [record for record in caplog.records if not record.name.startswith("http")]  # the client of this test
    logged = "\n".join(record.getMessage() for record in ours)
    noted = str(house.notes)
    tokens = (given["access_token"], given["refresh_token"])
    for secret in (auth[1], code, *tokens, PASSWORD, pkce.verifier, "guessed-secret"):
        assert secret not in logged
        assert secret not in noted


# ------------------------------------------------------------------------------------------------ dynamic registration


async def register(house: House, **changes: Any) -> dict[str, Any]:
    document = {
        "redirect_uris": [BACK],
        "client_name": "Claude Code",
        "token_endpoint_auth_method": "none",
        "grant_types": ["authorization_code", "refresh_token"],
        "response_types": ["code"],
        **changes,
    }
    answer = await house.http.post("/oauth/register", json=document)
    return {**answer.json(), "status": answer.status_code}


async def test_a_client_registers_itself_and_a_person_signs_in_with_it(house: House) -> None:
    registered = await register(house)
    assert registered["status"] == 201
    assert registered["client_id"].startswith("dyn-claude-code-")
    assert "client_secret" not in registered
    pkce = Pkce()
    page = await sign_in(house, request_of(registered["client_id"], pkce, scope="", resource=f"{house.url}/mcp"))
    assert "nobody has checked the name" in page.text
    answer = await consent(house, page)
    token = await house.token(
        None,
        grant_type="authorization_code",
        client_id=registered["client_id"],
        code=answer["code"],
        redirect_uri=BACK,
        code_verifier=pkce.verifier,
        resource=f"{house.url}/mcp",
    )
    given = token.json()
    assert given["scope"] == "orders.read", "of the catalog, what the person holds: not the right to review"
    assert claims_of(given["access_token"])["aud"] == [f"{house.url}/mcp"]
    assert (await whoami(house, given["access_token"])).json()["user"] == "ann"
    again = await house.http.get(f"/oauth/authorize?{request_of(registered['client_id'], Pkce())}")
    assert "Allow" in again.text, "asked each time"
    assert house.kinds()[0] == "client_registered"


async def test_a_registered_client_may_have_a_secret(house: House) -> None:
    registered = await register(house, token_endpoint_auth_method="client_secret_post")
    assert registered["client_secret"]
    pkce = Pkce()
    code = await code_for(house, registered["client_id"], pkce)
    none = {"client_id": registered["client_id"], "code": code, "redirect_uri": BACK, "code_verifier": pkce.verifier}
    assert (await house.token(None, grant_type="authorization_code", **none)).status_code == 401
    with_secret = {**none, "client_secret": registered["client_secret"]}
    assert (await house.token(None, grant_type="authorization_code", **with_secret)).status_code == 200
    refused = await house.token((registered["client_id"], registered["client_secret"]), grant_type="client_credentials")
    assert refused.json()["error"] == "unauthorized_client"


UNTRUSTED = [
    "http://evil.example/callback",
    "javascript:alert(1)",
    "data:text/html,x",
    "https://user@host.example/",
    "https://host.example/#fragment",
    "http://127.0.0.1.evil.example/",
    "/relative",
    "",
    "https://host.example/\\evil",
    "https://host.example/ x",
    "https:///nohost",
]


async def test_a_redirect_that_cannot_be_trusted_is_not_registered(house: House) -> None:
    for uri in UNTRUSTED:
        assert (await register(house, redirect_uris=[uri]))["error"] == "invalid_redirect_uri", uri


KNOWN_KINDS = [
    "http://localhost:3118/callback",
    "http://[::1]/cb",
    "https://app.example/cb?x=1",
    "cursor://auth/callback",
]


async def test_a_redirect_of_a_known_kind_is_registered(house: House) -> None:
    for uri in KNOWN_KINDS:
        assert (await register(house, redirect_uris=[uri]))["redirect_uris"] == [uri]


BAD_REGISTRATIONS: list[dict[str, Any]] = [
    {"redirect_uris": []},
    {"redirect_uris": "x"},
    {"redirect_uris": [BACK] * 11},
    {"client_name": 7},
    {"token_endpoint_auth_method": "private_key_jwt"},
    {"grant_types": ["client_credentials"]},
    {"response_types": ["token"]},
]


async def test_a_bad_registration_is_refused(house: House) -> None:
    for changes in BAD_REGISTRATIONS:
        error = (await register(house, **changes))["error"]
        assert error in ("invalid_redirect_uri", "invalid_client_metadata"), changes


async def test_registration_is_for_one_machine_only(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    async with house_in(tmp_path / "a", public_url="https://broker.example") as exposed:
        assert (await register(exposed))["status"] == 403
        assert "registration_endpoint" not in (await exposed.http.get("/.well-known/oauth-authorization-server")).json()
    async with house_in(tmp_path / "b", auth={"embedded": {"registration": "off"}}) as closed:
        assert (await register(closed))["status"] == 403


async def test_the_settings_turn_the_server_off(tmp_path: Path) -> None:
    async with house_in(tmp_path, auth={"embedded": {"enabled": False}}) as house:
        assert (await house.http.get("/.well-known/oauth-authorization-server")).status_code == 404
        assert (await house.token(None, grant_type="client_credentials")).status_code == 404


async def test_only_the_origins_of_the_settings_may_read_answers(tmp_path: Path) -> None:
    async with house_in(tmp_path, allowed_origins=["http://localhost:6274"]) as house:
        for origin, allowed in (("http://localhost:6274", True), ("https://evil.example", False)):
            asked = await house.http.options("/oauth/token", headers={"Origin": origin})
            assert ("access-control-allow-origin" in asked.headers) is allowed


# ----------------------------------------------------------------------------------------------------- the SDK's client


async def test_the_sdk_signs_in_by_itself(house: House) -> None:
    """Discovery, registration, PKCE, consent and token, driven by the official client."""
    from mcp.client.auth import AuthorizationCodeResult, OAuthClientProvider
    from mcp.shared.auth import OAuthClientInformationFull, OAuthClientMetadata, OAuthToken
    from pydantic import AnyUrl

    class Storage:
        tokens: OAuthToken | None = None
        info: OAuthClientInformationFull | None = None

        async def get_tokens(self) -> OAuthToken | None:
            return self.tokens

        async def set_tokens(self, tokens: OAuthToken) -> None:
            self.tokens = tokens

        async def get_client_info(self) -> OAuthClientInformationFull | None:
            return self.info

        async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
            self.info = client_info

    came_back: dict[str, str] = {}

    async def go(url: str) -> None:
        page = await sign_in(house, urlsplit(url).query)
        came_back.update(await consent(house, page))

    async def back() -> AuthorizationCodeResult:
        return AuthorizationCodeResult.model_validate(came_back)

    wanted = OAuthClientMetadata(redirect_uris=[AnyUrl(BACK)], client_name="sdk")
    storage = Storage()
    provider = OAuthClientProvider(f"{house.url}/mcp", wanted, storage, go, back)
    async with httpx2.AsyncClient(auth=provider, trust_env=False, timeout=20) as client:
        answer = await client.get(f"{house.url}/mcp")
        assert answer.status_code == 200, answer.text
        assert answer.json()["user"] == "ann"
        assert answer.json()["scopes"] == ["orders.read"]
    assert storage.tokens
    assert storage.tokens.refresh_token
