"""How the broker identifies itself to a backend: its own credential, never anything of the agent's.

Two ways: a constant header with a secret in it, and OAuth client credentials (RFC 6749 section 4.4, with RFC 8707
`resource`). Secrets are read at use and not kept, so a rotated secret file works from the next call on; an access token
is kept until shortly before it expires and renewed by one call while the others wait for it.

Authlib makes the token request; the renewal is ours, because Authlib's own drops `resource`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Literal, Self, cast

import anyio
import httpx2
from pydantic import Field, model_validator

from broker.backends.address import Origin
from broker.backends.decoding import short
from broker.backends.exchange import EXCHANGE, Cut, Exchange
from broker.backends.placement import header_fault
from broker.backends.spec import SecretText, Section, filled_now, secrets_in
from broker.backends.transport import Wire
from broker.data import dataclass
from broker.errors import BackendError, Unavailable
from broker.ports import Secrets

TOKEN_BYTES = 262_144
TOKEN_S = 10.0
EARLY_S = 30.0  # a token is renewed this long before it expires
FALLBACK_LIFETIME_S = 300.0  # RFC 6749 section 5.1: expires_in is only recommended


class OAuth(Section):
    """OAuth client credentials."""

    token_url: str = Field(description="The authorization server's token endpoint.")
    client_id: str = Field(min_length=1, description="The broker's client id there.")
    client_secret: SecretText = Field(description="Its secret, by reference.")
    scope: str = Field(default="", description="Scopes to ask for, separated by spaces.")
    resource: str = Field(default="", description="RFC 8707 resource indicator.")
    method: Literal["client_secret_basic", "client_secret_post"] = Field(
        default="client_secret_basic", description="How the client proves itself."
    )
    allow_private: bool = Field(default=False, description="The token endpoint is on loopback or in a private network.")

    @model_validator(mode="after")
    def _judged(self) -> Self:
        Origin.parse(self.token_url, allow_private=self.allow_private)
        return self


class Credential(Section):
    """`header` and `value`, or `oauth`."""

    header: str = Field(default="", description="The header that carries the credential, such as Authorization.")
    value: SecretText | None = Field(
        default=None, description='Its value with a secret by reference: "Bearer ${env:TOKEN}".'
    )
    oauth: OAuth | None = Field(default=None, description="OAuth client credentials instead.")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        constant = bool(self.header) and self.value is not None
        if constant == (self.oauth is not None) or (self.oauth is not None and (self.header or self.value)):
            raise ValueError("a credential is either `header` with `value`, or `oauth`")
        if self.header and not may_carry(self.header):
            raise ValueError(f"{self.header!r} cannot carry a credential")
        return self


def may_carry(header: str) -> bool:
    """Whether a credential may stand in this header: one that neither frames the message nor is the broker's own."""
    framing = {"host", "connection", "content-length", "content-type", "transfer-encoding", "te", "upgrade", "trailer"}
    plain = header.isascii() and header.replace("-", "").replace("_", "").isalnum()
    return plain and header.lower() not in framing | {"idempotency-key", "x-broker-call-id", "user-agent", "accept"}


class Outbound(httpx2.Auth, ABC):
    """What goes into each request, and which texts must never be shown. An httpx2.Auth for the library's clients."""

    @abstractmethod
    async def header(self) -> tuple[str, str]:
        """Name and value for the next request. Raises Unavailable when there is none; nothing is sent then."""

    async def renewed(self, refused: str) -> tuple[str, str] | None:  # noqa: ARG002 – for those that can renew
        """Another one to try once after a 401 on this value, which means the request was not carried out; None when
        there is none. Raises Unavailable."""
        return None

    async def async_auth_flow(self, request: httpx2.Request) -> AsyncGenerator[httpx2.Request, httpx2.Response]:
        """See httpx2.Auth. Raises Unavailable."""
        name, value = await self.header()
        request.headers[name] = value
        response = yield request
        if response.status_code == 401 and (again := await self.renewed(value)) is not None:
            request.headers[again[0]] = again[1]
            yield request

    @property
    def masked(self) -> tuple[str, ...]:
        """The secrets last sent; empty before the first request."""
        return ()

    async def aclose(self) -> None:
        """Close what it opened."""


class ConstantHeader(Outbound):
    """backend: its name, for errors."""

    def __init__(self, backend: str, header: str, value: str, secrets: Secrets) -> None:
        self._backend = backend
        self._header = header
        self._value = value
        self._secrets = secrets
        self._masked: tuple[str, ...] = ()

    @property
    def masked(self) -> tuple[str, ...]:
        return self._masked

    async def header(self) -> tuple[str, str]:
        """See Outbound. Raises Unavailable when the secret cannot be read or cannot stand in a header."""
        try:
            value = (await filled_now(self._value, self._secrets)).strip()
        except LookupError as error:
            raise _no_credential(self._backend, str(error.args[0]) if error.args else "its secret is missing") from None
        if fault := header_fault(value) or ("" if value.isascii() else "is not ASCII"):
            raise _no_credential(self._backend, f"its secret {fault}")
        self._masked = secrets_in(self._value.strip(), value)
        return self._header, value


@dataclass(frozen=True, slots=True)
class _Token:
    value: str
    renew_at: float  # anyio's clock


class ClientCredentials(Outbound):
    """One token for a backend, renewed by one call at a time; a 401 on a token that was kept renews it once."""

    def __init__(self, backend: str, spec: OAuth, secrets: Secrets, tls: Any) -> None:
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
            raise _no_credential(self._backend, "its authorization server did not answer in time") from None
        except Cut as cut:
            raise _no_credential(self._backend, cut.error.message) from None
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
            raise _no_credential(self._backend, "its authorization server gave no bearer token")
        lifetime = answer.get("expires_in")
        lasts_s = float(lifetime) if isinstance(lifetime, int | float) and lifetime > 0 else FALLBACK_LIFETIME_S
        early_s = min(EARLY_S, lasts_s / 2)
        return _Token(value, anyio.current_time() + min(lasts_s, 86_400.0) - early_s)

    async def _request(self) -> Mapping[str, Any]:
        # Imported here: only backends with OAuth pay for it.
        from authlib.integrations.base_client import OAuthError
        from authlib.integrations.httpx_client import AsyncOAuth2Client

        try:
            secret = await filled_now(self._spec.client_secret, self._secrets)
        except LookupError as error:
            raise _no_credential(self._backend, str(error.args[0]) if error.args else "its secret is missing") from None
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
            raise _no_credential(self._backend, f"its authorization server answered {words!r}") from None
        except (httpx2.HTTPError, ValueError):  # a 5xx; a body that is not JSON
            raise _no_credential(self._backend, "its authorization server gave no answer that can be read") from None


class _Borrowed(httpx2.AsyncBaseTransport):
    """A wire that closing the client does not close."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        return await self._wire.handle_async_request(request)


def _no_credential(backend: str, why: str) -> BackendError:
    return Unavailable(
        f"The broker has no credential for backend {backend!r}: {why.rstrip('.')}. Nothing was sent to it.",
        next_step="Only the operator of the broker can change that.",
    )


def header_name(spec: Credential | None) -> str:
    """The name of the header a credential goes into; "" without one."""
    return "" if spec is None else spec.header or "Authorization"


def outbound(backend: str, spec: Credential | None, secrets: Secrets, tls: Any) -> Outbound | None:
    """The auth for a manifest's `credential`; None when it has none. tls: for the token endpoint."""
    if spec is None:
        return None
    if spec.oauth is not None:
        return ClientCredentials(backend, spec.oauth, secrets, tls)
    return ConstantHeader(backend, spec.header, spec.value or "", secrets)
