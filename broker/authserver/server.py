"""The authorization server as the endpoints use it: typed in and out, Authlib inside.

A client that fails to authenticate hears one and the same answer, whoever it says it is. Authlib is synchronous: call
from a worker thread. It logs tokens at debug level, so its loggers are kept above that.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportMissingTypeStubs=false
# pyright: reportUntypedBaseClass=false, reportIncompatibleMethodOverride=false, reportIncompatibleVariableOverride=false
# Authlib has no types; every one of these comes from it.

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, cast

from authlib.oauth2.rfc6749 import AuthorizationServer, InvalidClientError, InvalidGrantError, OAuth2Error
from authlib.oauth2.rfc7009 import RevocationEndpoint
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet, KeySetSerialization

from broker.authserver import keys, own_client
from broker.authserver.grants import (
    CONFIDENTIAL,
    REFRESH_PREFIX,
    S256,
    ClientCredentials,
    CodeGrant,
    Party,
    RefreshGrant,
    Request,
)
from broker.authserver.protocol import Asked, House, Parameters, Reply, scope_names
from broker.data import dataclass
from broker.model.directory import Account, Client, secret_hash

logging.getLogger("authlib").setLevel(logging.INFO)


class Server:
    """The protocol, typed. Methods block; each answers every input with a Reply, or `authorisation` with an Asked."""

    def __init__(self, house: House) -> None:
        self._server = _AuthlibServer(house)

    def token(self, parameters: Parameters, authorization: str) -> Reply:
        return self._reply("POST", "/oauth/token", parameters, authorization, self._server.create_token_response)

    def revoke(self, parameters: Parameters, authorization: str) -> Reply:
        run = partial(self._server.create_endpoint_response, "revocation")
        return self._reply("POST", "/oauth/revoke", parameters, authorization, run)

    def authorisation(self, parameters: Parameters) -> Asked | Reply:
        """Judge an authorisation request. A Reply with a location is for the client, one without for the person."""
        request = self._request("GET", "/oauth/authorize", parameters)
        try:
            grant = self._server.get_consent_grant(request)
        except OAuth2Error as error:
            return cast("Reply", self._server.handle_error_response(request, error))
        except ValueError:
            return _malformed()
        return Asked(
            client=cast("Client", grant.client.client),
            redirect_uri=cast("str", grant.redirect_uri),
            scopes=scope_names(request.form.get("scope")),
            resources=request.resources,
            grant=grant,
        )

    def answer(self, asked: Asked, account: Account | None) -> Reply:
        """Give the client its code, or, with None, the person's no."""
        grant = asked.grant
        return cast("Reply", self._server.create_authorization_response(grant.request, grant_user=account, grant=grant))

    def _request(self, method: str, path: str, parameters: Parameters, authorization: str = "") -> Request:
        return Request(method, self._server.house.base_url() + path, parameters, authorization)

    def _reply(
        self, method: str, path: str, parameters: Parameters, authorization: str, run: Callable[[Any], Any]
    ) -> Reply:
        request = self._request(method, path, parameters, authorization)
        try:
            reply = cast("Reply", run(request))
        except OAuth2Error as error:
            reply = cast("Reply", self._server.handle_error_response(request, error))
        except ValueError:
            return _malformed()  # bytes that Authlib cannot decode, or would quote in an error
        return Reply(reply.status, reply.body, reply.headers, tuple(request.events))


def _malformed() -> Reply:
    return Reply(400, {"error": "invalid_request"}, {})


class _AuthlibServer(AuthorizationServer):
    def __init__(self, house: House) -> None:
        super().__init__()
        self.house = house
        self.register_grant(CodeGrant, [S256()])
        self.register_grant(RefreshGrant)
        self.register_grant(ClientCredentials)
        self.register_endpoint(_Revocation)

    def query_client(self, client_id: str) -> Party | None:
        client = own_client.find(self.house.directory, client_id)
        return None if client is None or client.disabled else Party(client)

    def authenticate_client(self, request: Request, methods: Sequence[str], endpoint: str = "token") -> Party:
        try:
            return cast("Party", super().authenticate_client(request, methods, endpoint))
        except InvalidClientError:
            raise InvalidClientError(status_code=401, description="The client is not known here.") from None

    def save_token(self, token: Any, request: Any) -> None:
        """Stored where it is made."""

    def send_signal(self, name: str, *args: Any, **kwargs: Any) -> None:
        """Nobody listens."""

    def create_oauth2_request(self, request: Request) -> Request:
        return request

    def handle_response(self, status: int, body: Any, headers: Iterable[tuple[str, str]]) -> Reply:
        return Reply(status, cast("Mapping[str, Any]", body or {}), dict(headers))


class _Revocation(RevocationEndpoint):
    """RFC 7009. An unknown token is answered like a revoked one."""

    CLIENT_AUTH_METHODS: ClassVar[list[str]] = [*CONFIDENTIAL, "none"]

    def authenticate_token(self, request: Request, client: Party) -> _Revocable | None:
        self.check_params(request, client)
        house, text = cast("House", self.server.house), request.form["token"]
        if text.startswith(REFRESH_PREFIX):
            found = house.directory.refresh_token(secret_hash(text), client.client_id)
            until_ms = house.clock.now_ms() + keys.OUTLIVES_MS
            return None if found is None else _Revocable(client.client_id, found.grant.grant_id, until_ms)
        revocable = _access_token(house, text)
        if revocable is not None and revocable.client_id != client.client_id:
            raise InvalidGrantError("The token was not issued to this client.")
        return revocable

    def revoke_token(self, token: _Revocable, request: Request) -> None:
        house = cast("House", self.server.house)
        house.directory.revoke(token.token_id, token.until_ms)
        request.events.append(("token_revoked", {"client_id": token.client_id, "token_id": token.token_id}))


@dataclass(frozen=True, slots=True)
class _Revocable:
    client_id: str
    token_id: str  # a jti, or a grant's id
    until_ms: int


def _access_token(house: House, text: str) -> _Revocable | None:
    """One of our own access tokens, expired or not; None for any other text."""
    try:
        public = KeySet.import_key_set(cast("KeySetSerialization", keys.jwks(house.directory)))
        claims = jwt.decode(text, public, algorithms=[keys.ALGORITHM]).claims
        return _Revocable(claims["client_id"], claims["jti"], (claims["exp"] + 60) * 1000)
    except (JoseError, ValueError, KeyError, TypeError):
        return None
