"""OAuth client credentials (RFC 6749 section 4.4, with RFC 8707 `resource`) for a backend.

An access token is kept until shortly before it expires, and renewed by one call while the others wait for it. Authlib
makes the token request; the renewal is ours, because Authlib's own drops `resource`. Imported by `credential.outbound`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import anyio
import httpx2
from authlib.integrations.base_client import OAuthError
from authlib.integrations.httpx_client import AsyncOAuth2Client

from broker.backends.address import Origin
from broker.backends.credential import OAuth, Outbound, no_credential
from broker.backends.decoding import short
from broker.backends.exchange import EXCHANGE, Cut, Exchange
from broker.backends.placement import header_fault
from broker.backends.spec import filled_now
from broker.backends.transport import Wire, quiet
from broker.data import dataclass
from broker.ports import Secrets

TOKEN_BYTES = 262_144
TOKEN_S = 10.0
EARLY_S = 30.0  # a token is renewed this long before it expires
FALLBACK_LIFETIME_S = 300.0  # RFC 6749 section 5.1: expires_in is only recommended


@dataclass(frozen=True, slots=True)
class _Token:
    value: str
    renew_at: float  # anyio's clock


class ClientCredentials(Outbound):
    """One token for a backend, renewed by one call at a time; a 401 on a token that was kept renews it once."""

    def __init__(self, backend: str, spec: OAuth, secrets: Secrets, tls: Any) -> None:
        quiet()
        self._backend = backend
        self._spec = spec
        self._secrets = secrets
        self._token: _Token | None = None
        self._masked: tuple[str, ...] = ()
        self._turn = anyio.Lock()
        self._wire = Wire(
            backend,
            Origin.parse(spec.token_url, allow_private=spec.allow_private),
            allow_private=spec.allow_private,
            cap=TOKEN_BYTES,
            connections=2,
            connect_s=TOKEN_S,
            tls=tls,
            subject=f"The authorization server of backend {backend!r}",
        )

    @property
    def masked(self) -> tuple[str, ...]:
        return self._masked

    async def aclose(self) -> None:
        await self._wire.aclose()

    def at_once(self) -> tuple[str, str] | None:
        """See Outbound."""
        token = self._usable(None)
        return None if token is None else ("Authorization", f"Bearer {token.value}")

    async def header(self) -> tuple[str, str]:
        """See Outbound. Raises Unavailable when no token can be had."""
        return "Authorization", f"Bearer {(await self._fresh(instead_of=None)).value}"

    async def renewed(self, refused: str) -> tuple[str, str] | None:
        """See Outbound: the token may have been revoked before its time."""
        token = self._token
        if token is None or refused != f"Bearer {token.value}":
            return None
        again = await self._fresh(instead_of=token)
        return None if again.value == token.value else ("Authorization", f"Bearer {again.value}")

    async def _fresh(self, *, instead_of: _Token | None) -> _Token:
        if (token := self._usable(instead_of)) is not None:
            return token
        async with self._turn:
            if (token := self._usable(instead_of)) is not None:
                return token  # another call renewed it while this one waited
            self._token = await self._ask()
            self._masked = (self._token.value,)
            return self._token

    def _usable(self, instead_of: _Token | None) -> _Token | None:
        token = self._token
        return token if token and token is not instead_of and anyio.current_time() < token.renew_at else None

    async def _ask(self) -> _Token:
        # An exchange of its own: bytes to the authorization server are not bytes to the backend.
        mark = EXCHANGE.set(Exchange(anyio.current_time() + TOKEN_S))
        try:
            with anyio.fail_after(TOKEN_S):
                answer = await self._request()
        except TimeoutError:
            raise no_credential(self._backend, "its authorization server did not answer in time") from None
        except Cut as cut:
            raise no_credential(self._backend, cut.error.message) from None
        finally:
            EXCHANGE.reset(mark)
        value, kind = answer.get("access_token"), answer.get("token_type", "Bearer")
        if (
            not isinstance(value, str)
            or not value
            or header_fault(value)
            or not value.isascii()
            or str(kind).lower() != "bearer"
        ):
            raise no_credential(self._backend, "its authorization server gave no bearer token")
        lifetime = answer.get("expires_in")
        lasts_s = float(lifetime) if isinstance(lifetime, int | float) and lifetime > 0 else FALLBACK_LIFETIME_S
        early_s = min(EARLY_S, lasts_s / 2)
        return _Token(value, anyio.current_time() + min(lasts_s, 86_400.0) - early_s)

    async def _request(self) -> Mapping[str, Any]:
        try:
            secret = await filled_now(self._spec.client_secret, self._secrets)
        except LookupError as error:
            raise no_credential(self._backend, str(error.args[0]) if error.args else "its secret is missing") from None
        parameters = {name: value for name in ("scope", "resource") if (value := getattr(self._spec, name))}
        client: Any = AsyncOAuth2Client(
            self._spec.client_id,
            secret.strip(),
            token_endpoint_auth_method=self._spec.method,
            transport=_Borrowed(self._wire),
            trust_env=False,
        )
        try:
            async with client:
                token: Any = await client.fetch_token(
                    self._spec.token_url, grant_type="client_credentials", **parameters
                )
            return cast("Mapping[str, Any]", token)
        except OAuthError as error:
            words = short(str(cast("Any", error).error or "an error"), (secret,), 80)
            raise no_credential(self._backend, f"its authorization server answered {words!r}") from None
        except (httpx2.HTTPError, ValueError):  # a 5xx; a body that is not JSON
            raise no_credential(self._backend, "its authorization server gave no answer that can be read") from None


class _Borrowed(httpx2.AsyncBaseTransport):
    """A wire that closing the client does not close."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        return await self._wire.handle_async_request(request)
