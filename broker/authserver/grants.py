"""The grants of OAuth 2.1 on Authlib, with our storage and our stricter rules.

Authlib owns the protocol (RFC 6749, 7636); here is only what it leaves open or leaves lax:

- PKCE is S256, for every client, always; a code is taken by deleting it, before anything else is looked at;
- scopes are narrowed to what client and person may have; `resource` (RFC 8707) becomes the audience;
- a refresh token is spent by compare-and-set; showing a spent one, or a spent code, ends the whole grant.

Authlib is untyped: it is spoken to here and in `server` only, and what `server` gives out is typed.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportMissingTypeStubs=false
# pyright: reportUntypedBaseClass=false, reportIncompatibleMethodOverride=false, reportIncompatibleVariableOverride=false
# Authlib has no types; every one of these comes from it.

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from hmac import compare_digest
from typing import Any, ClassVar, cast

from authlib.oauth2.rfc6749 import (
    InvalidGrantError,
    InvalidRequestError,
    InvalidScopeError,
    OAuth2Error,
    OAuth2Request,
)
from authlib.oauth2.rfc6749.grants import AuthorizationCodeGrant, ClientCredentialsGrant, RefreshTokenGrant
from authlib.oauth2.rfc6749.requests import BasicOAuth2Payload
from authlib.oauth2.rfc7636 import CodeChallenge

from broker.authserver import redirects, tokens
from broker.authserver.protocol import House, Parameters, scope_names
from broker.errors import Conflict
from broker.model.address import canonical_resource
from broker.model.directory import Account, Client, Code, Grant, RefreshToken, secret_hash

CODE_MS = 120_000
REFRESH_PREFIX = "brr_"
CONFIDENTIAL = ("client_secret_basic", "client_secret_post")


class InvalidTargetError(OAuth2Error):
    """RFC 8707 section 2."""

    error = "invalid_target"
    description = "The resource is not one of this server."


class Request(OAuth2Request):
    def __init__(self, method: str, uri: str, parameters: Parameters, authorization: str) -> None:
        super().__init__(method, uri, headers={"Authorization": authorization} if authorization else {})
        data = dict(parameters)
        self.payload = BasicOAuth2Payload(data)
        self.form_data = data
        self.asked_resources = tuple(value for name, value in parameters if name == "resource")
        self.resources: tuple[str, ...] = ()
        self.events: list[tuple[str, Mapping[str, Any]]] = []

    @property
    def args(self) -> dict[str, str]:
        return self.form_data

    @property
    def form(self) -> dict[str, str]:
        return self.form_data


class Party:
    """A client as Authlib asks about it."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.client_id = client.client_id

    def __repr__(self) -> str:
        return f"<client {self.client_id}>"

    def get_client_id(self) -> str:
        return self.client_id

    def get_default_redirect_uri(self) -> str:
        return ""  # it is always named: a request says where its answer goes

    def get_allowed_scope(self, scope: str | None) -> str:
        return scope or ""  # narrowed when it is known for whom

    def check_redirect_uri(self, redirect_uri: str) -> bool:
        return any(redirects.matches(redirect_uri, registered) for registered in self.client.redirect_uris)

    def check_client_secret(self, client_secret: str) -> bool:
        return bool(self.client.secret_hash) and compare_digest(secret_hash(client_secret), self.client.secret_hash)

    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:  # noqa: ARG002 – the same everywhere
        return method in CONFIDENTIAL if self.client.secret_hash else method == "none"

    def check_response_type(self, response_type: str) -> bool:
        return response_type == "code" and self.check_grant_type("authorization_code")

    def check_grant_type(self, grant_type: str) -> bool:
        return grant_type in self.client.grants


class _Held:
    """A code or a refresh token as Authlib asks about it."""

    def __init__(self, grant: Grant, code: Code | None = None) -> None:
        self.grant = grant
        self.code_challenge = code.code_challenge if code else ""
        self.code_challenge_method = "S256"
        self.redirect_uri = code.redirect_uri if code else ""

    def get_redirect_uri(self) -> str:
        return self.redirect_uri

    def get_scope(self) -> str:
        return " ".join(sorted(self.grant.scopes))

    def check_client(self, client: Party) -> bool:
        return self.grant.client_id == client.client_id


class S256(CodeChallenge):
    """RFC 7636 without `plain`, and for every client (OAuth 2.1 section 4.1.1)."""

    SUPPORTED_CODE_CHALLENGE_METHOD: ClassVar[list[str]] = ["S256"]

    def validate_code_challenge(self, grant: Any, redirect_uri: Any) -> None:
        data = grant.request.payload.data
        if not data.get("code_challenge") or data.get("code_challenge_method") != "S256":
            raise InvalidRequestError("PKCE with S256 is required.")
        super().validate_code_challenge(grant, redirect_uri)


class _Minting:
    """What the grants share: turning what was granted into tokens."""

    server: Any
    request: Any

    @property
    def house(self) -> House:
        return cast("House", self.server.house)

    def resources(self, allowed: Sequence[str] | None) -> tuple[str, ...]:
        """What the request names by RFC 8707, in canonical form; otherwise all that is allowed (None: ours)."""
        base_url = self.house.base_url()
        named: list[str] = []
        for asked in cast("Request", self.request).asked_resources:
            resource = canonical_resource(base_url, asked)
            if resource is None or (allowed and resource not in allowed):
                raise InvalidTargetError
            named.append(resource)
        return tuple(dict.fromkeys(named)) or tuple(allowed or ())

    def response(self, parties: tokens.Parties, scopes: frozenset[str], grant: Grant | None) -> dict[str, Any]:
        house = self.house
        embedded = house.settings.auth.embedded
        audience = self.resources(grant.resources if grant else None)
        minted = tokens.mint(
            house.directory,
            house.base_url(),
            parties,
            scopes=scopes,
            audience=audience or tokens.default_audience(house.base_url()),
            lifetime_s=embedded.access_token_s,
            now_ms=house.clock.now_ms(),
            grant_id=grant.grant_id if grant else "",
        )
        self.request.events.append(
            (
                "token_issued",
                {
                    "client_id": parties.client.client_id,
                    "user": parties.account.name if parties.account else "",
                    "token_id": minted.token_id,
                    "scopes": sorted(scopes),
                },
            )
        )
        answer: dict[str, Any] = {
            "access_token": minted.token,
            "token_type": "Bearer",
            "expires_in": minted.expires_in_s,
            "scope": " ".join(sorted(scopes)),
        }
        if grant is not None and "refresh_token" in parties.client.grants:
            answer["refresh_token"] = self._refresh_token(grant)
        return answer

    def _refresh_token(self, grant: Grant) -> str:
        token = REFRESH_PREFIX + secrets.token_urlsafe(32)
        lifetime_ms = self.house.settings.auth.embedded.refresh_token_s * 1000
        expires_at_ms = self.house.clock.now_ms() + lifetime_ms
        try:
            self.house.directory.add_refresh_token(RefreshToken(secret_hash(token), grant, expires_at_ms))
        except Conflict:
            raise InvalidGrantError("The grant has been revoked.") from None
        return token


class CodeGrant(_Minting, AuthorizationCodeGrant):
    TOKEN_ENDPOINT_AUTH_METHODS: ClassVar[list[str]] = [*CONFIDENTIAL, "none"]

    @staticmethod
    def validate_authorization_redirect_uri(request: Any, client: Party) -> str:
        redirect_uri = request.payload.redirect_uri
        if not redirect_uri or not client.check_redirect_uri(redirect_uri):
            raise InvalidRequestError("The redirect URI is not one of the client's.")
        return cast("str", redirect_uri)

    def validate_authorization_request(self) -> str:
        redirect_uri = super().validate_authorization_request()
        try:
            self.request.resources = self.resources(None)
        except InvalidTargetError as error:
            error.redirect_uri = redirect_uri
            raise
        return redirect_uri

    def generate_authorization_code(self) -> str:
        return secrets.token_urlsafe(32)

    def save_authorization_code(self, code: str, request: Any) -> None:
        account, client = cast("Account", request.user), cast("Client", request.client.client)
        parties = tokens.Parties(client, account)
        grant = Grant(
            grant_id=secrets.token_urlsafe(16),
            client_id=client.client_id,
            account=account.name,
            scopes=parties.granted(scope_names(request.payload.scope), self.house.scopes()),
            resources=request.resources,
        )
        self.house.directory.add_code(
            Code(
                code_hash=secret_hash(code),
                grant=grant,
                redirect_uri=request.payload.redirect_uri or "",
                code_challenge=request.payload.data["code_challenge"],
                expires_at_ms=self.house.clock.now_ms() + CODE_MS,
            )
        )

    def query_authorization_code(self, code: str, client: Party) -> _Held | None:
        spent = self.house.directory.spend_code(secret_hash(code), client.client_id)
        return None if spent is None else _Held(spent.grant, spent)

    def delete_authorization_code(self, authorization_code: Any) -> None:
        """Taken by `query_authorization_code`."""

    def authenticate_user(self, authorization_code: _Held) -> Account | None:
        return _usable(self.house.directory.account(authorization_code.grant.account))

    def generate_token(self, *, user: Account, **_: Any) -> dict[str, Any]:
        grant = cast("_Held", self.request.authorization_code).grant
        parties = tokens.Parties(self.request.client.client, user)
        return self.response(parties, parties.granted(grant.scopes, grant.scopes) & grant.scopes, grant)


class RefreshGrant(_Minting, RefreshTokenGrant):
    TOKEN_ENDPOINT_AUTH_METHODS: ClassVar[list[str]] = [*CONFIDENTIAL, "none"]

    def authenticate_refresh_token(self, refresh_token: str) -> _Held | None:
        found = self.house.directory.refresh_token(secret_hash(refresh_token), self.request.client.client_id)
        return None if found is None else _Held(found.grant)

    def authenticate_user(self, refresh_token: _Held) -> Account:
        account = _usable(self.house.directory.account(refresh_token.grant.account))
        if account is None:
            raise InvalidGrantError("The grant has been revoked.")
        return account

    def issue_token(self, user: Account, refresh_token: _Held) -> dict[str, Any]:
        grant = refresh_token.grant
        client_id = self.request.client.client_id
        if not self.house.directory.spend_refresh_token(secret_hash(self.request.form["refresh_token"]), client_id):
            raise InvalidGrantError
        parties = tokens.Parties(self.request.client.client, user)
        wanted = scope_names(self.request.payload.scope) or grant.scopes
        return self.response(parties, parties.granted(wanted, grant.scopes) & wanted, grant)

    def revoke_old_credential(self, refresh_token: Any) -> None:
        """Spent by `issue_token`."""


class ClientCredentials(_Minting, ClientCredentialsGrant):
    TOKEN_ENDPOINT_AUTH_METHODS: ClassVar[list[str]] = [*CONFIDENTIAL]

    def generate_token(self, *, scope: str | None, **_: Any) -> dict[str, Any]:
        parties = tokens.Parties(self.request.client.client)
        wanted = scope_names(scope)
        granted = parties.granted(wanted, self.house.scopes())
        if wanted and not granted:
            raise InvalidScopeError("The client may have none of these scopes.")
        return self.response(parties, granted, None)


def _usable(account: Account | None) -> Account | None:
    return None if account is None or account.disabled else account
