"""Signing a person in at a remote broker: find its issuer, send the browser there, redeem the code (OAuth 2.1).

The flow of native programs: authorization code with PKCE, answered on a port of loopback (RFC 8252), for the API of the
broker alone (RFC 8707). The issuer is found as RFC 9728 and RFC 8414 say, must name itself exactly, and its answer must
be its own (RFC 9207). Without a browser on this machine the address that the browser ended at is pasted.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportMissingTypeStubs=false
# pyright: reportUnknownArgumentType=false, reportAttributeAccessIssue=false
# Authlib has no types; every one of these comes from it.

from __future__ import annotations

import secrets
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from time import monotonic, time
from typing import Any, cast
from urllib.parse import parse_qsl, urlsplit

import httpx2

from broker.errors import BrokerError, Unauthenticated, Unavailable
from broker.faces.cli.logins import Login
from broker.model.address import is_loopback

COMMAND_LINE_ID = "broker-cli"  # at an embedded issuer: authserver.own_client
PATIENCE_S = 300.0
ANSWER_S = 15.0
API = "/api"


def base_url(text: str) -> str:
    """A broker's URL as it is kept: https (http on loopback), no path. Raises Unavailable."""
    url = text.strip().rstrip("/")
    parts = urlsplit(url if "://" in url else f"https://{url}")
    plain = parts.hostname and not (parts.path or parts.query or parts.fragment or "@" in parts.netloc)
    if not plain or parts.scheme not in ("http", "https"):
        raise Unavailable(f"{text[:200]!r} is not a broker's URL.", next_step="Such as https://broker.example.")
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        raise Unavailable(f"{url[:200]} is not https: a token would travel in the clear.", next_step="Use https.")
    return f"{parts.scheme}://{parts.netloc.lower()}"


def get_json(http: httpx2.Client, url: str, what: str) -> dict[str, Any]:
    """Raises Unavailable, naming what was looked for."""
    try:
        answer = http.get(url)
        found: Any = answer.json() if answer.status_code == 200 else None
    except (httpx2.HTTPError, ValueError) as error:
        raise Unavailable(f"{url} gives no {what}: {type(error).__name__}.", next_step="Is the URL right?") from error
    if not isinstance(found, dict):
        raise Unavailable(f"{url} gives no {what} (HTTP {answer.status_code}).", next_step="Is the URL right?")
    return cast("dict[str, Any]", found)


def issuer_of(http: httpx2.Client, broker: str) -> dict[str, Any]:
    """The metadata of whoever signs people in there (RFC 9728, then RFC 8414 or OpenID Connect discovery)."""
    resource = get_json(http, f"{broker}/.well-known/oauth-protected-resource{API}", "description of a broker's API")
    issuers = resource.get("authorization_servers") or [""]
    issuer, there = str(issuers[0]), urlsplit(str(issuers[0]))
    if resource.get("resource") != broker + API or not there.netloc:
        raise Unavailable(f"{broker} calls itself {str(resource.get('resource'))[:200]!r}.", next_step="Use that URL.")
    origin, path = f"{there.scheme}://{there.netloc}", there.path.rstrip("/")
    try:
        metadata = get_json(http, f"{origin}/.well-known/oauth-authorization-server{path}", "issuer's metadata")
    except Unavailable:
        metadata = get_json(http, f"{issuer.rstrip('/')}/.well-known/openid-configuration", "issuer's metadata")
    if metadata.get("issuer") != issuer or "S256" not in metadata.get("code_challenge_methods_supported", ()):
        raise Unavailable(f"The issuer {issuer[:200]} is not as it says, or lacks PKCE.", next_step="Ask the operator.")
    return metadata


def sign_in(
    broker: str, *, client_id: str, show: Callable[[str], None], paste: Callable[[str], str] | None = None
) -> Login:
    """Sign a person in. show: given the URL to open. paste: asks for the address the browser ended at, instead of
    waiting for it here. Raises Unavailable; Unauthenticated (refused, timed out, answered by somebody else)."""
    from authlib.common.errors import AuthlibBaseError
    from authlib.integrations.httpx_client import OAuth2Client

    with httpx2.Client(timeout=ANSWER_S) as http:
        metadata = issuer_of(http, broker)
    issuer = str(metadata["issuer"])
    own = client_id or (COMMAND_LINE_ID if issuer == broker else "")
    if not own:
        raise Unauthenticated(
            f"{issuer} is not the broker's own issuer.",
            next_step="Give --client-id: a public client registered there with http://127.0.0.1/callback.",
        )
    with _Callback() as callback:
        client: Any = OAuth2Client(
            own,
            redirect_uri=callback.url,
            code_challenge_method="S256",
            token_endpoint_auth_method="none",  # noqa: S106 – a method: this client has no secret
            timeout=ANSWER_S,
        )
        verifier = secrets.token_urlsafe(48)
        resource = broker + API
        url, state = client.create_authorization_url(
            metadata["authorization_endpoint"], code_verifier=verifier, resource=resource
        )
        show(url)
        answer = _parameters(paste(url)) if paste else callback.wait(state)
        _check(answer, state, metadata)
        try:
            with client:
                token = client.fetch_token(
                    metadata["token_endpoint"], code=answer["code"], code_verifier=verifier, resource=resource
                )
        except (httpx2.HTTPError, AuthlibBaseError) as error:
            raise _refused(error) from error
    found = Login(broker, issuer, own, str(metadata["token_endpoint"]), "")
    return _with(found, token, str(metadata.get("revocation_endpoint", "")))


def renew(login: Login) -> Login:
    """A new access token for the same sign-in. Raises Unauthenticated when it has ended."""
    from authlib.common.errors import AuthlibBaseError
    from authlib.integrations.httpx_client import OAuth2Client

    if not login.refresh_token:
        raise _ended(login)
    client: Any = OAuth2Client(login.client_id, token_endpoint_auth_method="none", timeout=ANSWER_S)  # noqa: S106
    try:
        with client:
            token = client.refresh_token(
                login.token_endpoint, refresh_token=login.refresh_token, resource=login.broker + API
            )
    except AuthlibBaseError as error:
        raise _ended(login) from error
    except httpx2.HTTPError as error:
        raise _refused(error) from error
    return _with(login, token, login.revocation_endpoint)


def sign_out(login: Login) -> bool:
    """Tell the issuer (RFC 7009); whether it heard."""
    if not login.revocation_endpoint:
        return False
    form = {"client_id": login.client_id, "token": login.refresh_token or login.access_token}
    try:
        with httpx2.Client(timeout=ANSWER_S) as http:
            return http.post(login.revocation_endpoint, data=form).status_code == 200
    except httpx2.HTTPError:
        return False


def _with(login: Login, token: dict[str, Any], revocation_endpoint: str) -> Login:
    lifetime_s = token.get("expires_in")
    return Login(
        login.broker,
        login.issuer,
        login.client_id,
        login.token_endpoint,
        access_token=str(token["access_token"]),
        refresh_token=str(token.get("refresh_token") or login.refresh_token),
        expires_at_s=int(time() + lifetime_s) if isinstance(lifetime_s, int | float) else 0,
        revocation_endpoint=revocation_endpoint,
    )


def _check(answer: dict[str, str], state: str, metadata: dict[str, Any]) -> None:
    if not secrets.compare_digest(answer.get("state", "").encode(), state.encode()):
        raise Unauthenticated("That is the answer to another request.", next_step="Run `broker login` again.")
    named = metadata.get("authorization_response_iss_parameter_supported") or "iss" in answer
    if named and answer.get("iss") != metadata["issuer"]:
        raise Unauthenticated("The sign-in was answered by somebody else.", next_step="Tell the operator.")
    if "code" not in answer:
        why = f"{answer.get('error', 'no code')}: {answer.get('error_description', '')}".strip(": ")[:200]
        raise Unauthenticated(f"The sign-in was refused ({why}).", next_step="Run `broker login` again.")


def _refused(error: Exception) -> BrokerError:
    return Unauthenticated(
        f"The issuer gave no token ({str(error)[:200] or type(error).__name__}).", next_step="Run `broker login` again."
    )


def _ended(login: Login) -> Unauthenticated:
    return Unauthenticated(
        f"Your sign-in at {login.broker} has ended.", next_step=f"Run `broker login {login.broker}` again."
    )


def _parameters(address: str) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(address.strip()).query))


class _Callback:
    """A port of loopback that takes one answer of a browser."""

    def __init__(self) -> None:
        self._answer: dict[str, str] = {}
        self._expected = [""]
        answer, expected = self._answer, self._expected

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                known, given = urlsplit(self.path).path == "/callback", _parameters(self.path)
                if known and given.get("state") == expected[0]:  # any page may call this port
                    answer.update(given)
                body = b"You can close this window and go back to the terminal." if known else b"Nothing is here."
                self.send_response(200 if known else 404)
                self.send_header("Content-Type", "text/plain; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Cache-Control", "no-store")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 – the base class's name
                """Say nothing: the path holds the code."""

            timeout = 5

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/callback"

    def wait(self, state: str) -> dict[str, str]:
        """The answer with this state. Raises Unauthenticated when none comes."""
        self._expected[0] = state
        deadline = monotonic() + PATIENCE_S
        while not self._answer:
            self._server.timeout = deadline - monotonic()
            if self._server.timeout <= 0:
                raise Unauthenticated("Nobody signed in within five minutes.", next_step="Run `broker login` again.")
            self._server.handle_request()
        return self._answer

    def __enter__(self) -> _Callback:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.server_close()
