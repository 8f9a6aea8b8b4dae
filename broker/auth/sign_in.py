"""People who sign in to the console at an issuer of the operator's own: authorization code with PKCE, and OpenID
Connect where the issuer speaks it.

What comes back is checked for being the answer to what this browser began: `state` (by the console), `iss` (RFC 9207),
the PKCE verifier (RFC 7636), and with the scope `openid` an ID token with our nonce, for us, by this issuer (OpenID
Connect Core 3.1.3.7). Who the person is and what he may do says the access token, judged as every other (jwt).

What must not live here: browser sessions (faces/console), what a person may do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

import structlog
from starlette.requests import Request
from starlette.responses import Response

from broker.auth.documents import Documents, UnreachableError, http_client
from broker.auth.keys import HttpKeys
from broker.auth.token import LEEWAY_S, audience_of, refused, time_of, unverified, verified
from broker.errors import Overloaded, Unauthenticated
from broker.model.address import as_called
from broker.model.signin import Attempt, Grant
from broker.ports import Clock
from broker.settings import ConsoleSettings, Issuer

if TYPE_CHECKING:
    import httpx2

CALLBACK = "/console/callback"
ID_TOKEN_TYPES = ("", "jwt")

log = structlog.get_logger("broker.auth.sign_in")


class IssuerSignIn:
    """Keeps faces.console.site.Issuer."""

    def __init__(
        self,
        console: ConsoleSettings,
        issuer: Issuer,
        *,
        clock: Clock,
        base_url: Callable[[], str],
        client: Callable[[], httpx2.AsyncClient] = http_client,
    ) -> None:
        self._console = console
        self._issuer = issuer
        self._clock = clock
        self._base_url = base_url
        self._documents = Documents(issuer.issuer, client)
        self._keys = HttpKeys(issuer.issuer, issuer.jwks_uri, client)

    async def begin(self, host: str, attempt: Attempt) -> str:
        """Where to send the browser that called us by this Host header. Raises Overloaded: the issuer is away."""
        metadata = await self._metadata()
        asked = {
            "response_type": "code",
            "client_id": self._console.client_id,
            "redirect_uri": self._callback(host),
            "scope": " ".join(self._console.scopes),
            "state": attempt.state,
            "nonce": attempt.nonce,
            "code_challenge": attempt.code_challenge,
            "code_challenge_method": "S256",
        }
        asked |= self._for_resource
        where = _endpoint(metadata, "authorization_endpoint")
        return f"{where}{'&' if '?' in where else '?'}{urlencode(asked)}"

    async def finish(self, host: str, attempt: Attempt, answer: Mapping[str, str]) -> Grant:
        """The grant for what the browser came back with. Raises Unauthenticated; Overloaded."""
        metadata = await self._metadata()
        told = answer.get("iss", "")
        if told != self._issuer.issuer and (told or metadata.get("authorization_response_iss_parameter_supported")):
            raise Unauthenticated("The sign-in was answered by somebody else.", reason="wrong_issuer")
        form = {
            "grant_type": "authorization_code",
            "code": answer["code"],
            "redirect_uri": self._callback(host),
            "code_verifier": attempt.verifier,
            **self._for_resource,
        }
        grant = await self._granted(metadata, form)
        if grant is None:
            raise Unauthenticated("The sign-in is not valid any more.", reason="invalid_grant")
        if "openid" in self._console.scopes:
            await self._check_id_token(grant.id_token, attempt.nonce)
        return grant

    async def renew(self, grant: Grant) -> Grant | None:
        """A new grant when the access token has expired; None when there is none to be had. Raises Overloaded."""
        if not grant.refresh_token:
            return None
        form = {"grant_type": "refresh_token", "refresh_token": grant.refresh_token, **self._for_resource}
        new = await self._granted(await self._metadata(), form)
        if new is None:
            return None
        return Grant(new.access_token, new.refresh_token or grant.refresh_token, new.id_token or grant.id_token)

    async def end(self, _request: Request, _response: Response, grant: Grant, *, everywhere: bool) -> str:  # noqa: ARG002
        """Revoke what was granted (RFC 7009). Returns where the browser can end its session there, or "" (OpenID
        Connect RP-Initiated Logout). An issuer that is away is no reason to stay signed in here."""
        try:
            metadata = await self._metadata()
            if isinstance(where := metadata.get("revocation_endpoint"), str):
                for token in filter(None, (grant.refresh_token, grant.access_token)):
                    await self._documents.post(where, *self._as_client(metadata, {"token": token}))
        except (Overloaded, UnreachableError) as error:
            log.warning("a sign-out was not told to the issuer", issuer=self._issuer.issuer, reason=str(error))
            return ""
        end = metadata.get("end_session_endpoint")
        if not isinstance(end, str) or not end.startswith(("https://", "http://")):
            return ""
        hint = {"id_token_hint": grant.id_token} if grant.id_token else {}
        return f"{end}{'&' if '?' in end else '?'}{urlencode({'client_id': self._console.client_id, **hint})}"

    async def aclose(self) -> None:
        await self._documents.aclose()
        await self._keys.aclose()

    # -------------------------------------------------------------------------------------------------------- requests

    @property
    def _for_resource(self) -> dict[str, str]:
        """What the token is for (RFC 8707), said in each request: at some issuers, one without is for userinfo only."""
        return {"resource": self._console.resource} if self._console.resource else {}

    def _callback(self, host: str) -> str:
        return as_called(self._base_url(), host) + CALLBACK

    async def _metadata(self) -> Mapping[str, Any]:
        try:
            return await self._documents.metadata()
        except UnreachableError as error:
            log.warning("nobody can sign in: the issuer cannot be asked", issuer=self._issuer.issuer, reason=str(error))
            raise Overloaded("The issuer where people sign in cannot be reached now.") from error

    async def _granted(self, metadata: Mapping[str, Any], form: Mapping[str, str]) -> Grant | None:
        """What the token endpoint gives; None when it says no. Raises Overloaded when it cannot be asked."""
        try:
            where = _endpoint(metadata, "token_endpoint")
            status, body = await self._documents.post(where, *self._as_client(metadata, form))
        except UnreachableError as error:
            log.warning("a sign-in failed", issuer=self._issuer.issuer, reason=str(error))
            raise Overloaded("The issuer where people sign in cannot be reached now.") from error
        token = body.get("access_token")
        if status != 200 or not isinstance(token, str):
            log.warning("a sign-in failed", issuer=self._issuer.issuer, reason=str(body.get("error", status))[:64])
            return None
        more = (body.get(name, "") for name in ("refresh_token", "id_token"))
        return Grant(token, *(value if isinstance(value, str) else "" for value in more))

    def _as_client(
        self, metadata: Mapping[str, Any], form: Mapping[str, str]
    ) -> tuple[dict[str, str], tuple[str, str] | None]:
        """The form and the HTTP Basic pair by which the issuer knows us (RFC 6749 section 2.3.1)."""
        named = {**form, "client_id": self._console.client_id}
        secret = self._console.client_secret
        if not secret:
            return named, None
        if "client_secret_basic" in metadata.get("token_endpoint_auth_methods_supported", ["client_secret_basic"]):
            return dict(form), (quote(self._console.client_id, safe=""), quote(secret, safe=""))
        return {**named, "client_secret": secret}, None

    # -------------------------------------------------------------------------------------------------------- ID token

    async def _check_id_token(self, token: str, nonce: str) -> None:
        """Raises Unauthenticated unless it is this issuer's word on this very sign-in."""
        if not token:
            raise refused("came without an ID token, which the scope openid promises", "invalid_token")
        unread = unverified(token, ID_TOKEN_TYPES)
        key = await self._keys.key(unread.key_id)
        if unread.issuer != self._issuer.issuer or unread.algorithm not in self._issuer.algorithms or key is None:
            raise refused("came with an ID token that is not the issuer's", "invalid_token")
        raw = verified(unread, key)
        named, us = audience_of(raw), self._console.client_id
        if us not in named or raw.get("azp", us) != us or (len(named) > 1 and "azp" not in raw):
            raise refused("came with an ID token for another client", "wrong_audience")
        if time_of(raw, "exp") + LEEWAY_S <= self._clock.now_ms() / 1000:
            raise refused("came with an ID token that has expired", "expired")
        if raw.get("nonce") != nonce:
            raise refused("came with the ID token of another sign-in", "wrong_nonce")


def _endpoint(metadata: Mapping[str, Any], name: str) -> str:
    where = metadata.get(name)
    if not isinstance(where, str) or not where.startswith(("https://", "http://")):
        raise Overloaded(f"The issuer where people sign in names no {name}.")
    return where
