"""How the broker identifies itself to a backend: its own credential, never anything of the agent's.

Two ways: a constant header with a secret in it, and OAuth client credentials (RFC 6749 section 4.4, with RFC 8707
`resource`). Secrets are read at use and not kept, so a rotated secret file works from the next call on.

What must not live here: how a token is asked for (client_credentials).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from broker.backends.address import Origin
from broker.backends.placement import header_fault
from broker.backends.spec import SecretText, Section, filled, filled_now, secrets_in, waits
from broker.errors import BackendError, Unavailable
from broker.ports import Secrets


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


class Outbound(ABC):
    """What goes into each request, and which texts must never be shown."""

    def at_once(self) -> tuple[str, str] | None:
        """As `header`, where nothing has to be waited for, which costs a call a deadline of its own; None otherwise."""
        return None

    @abstractmethod
    async def header(self) -> tuple[str, str]:
        """Name and value for the next request. Raises Unavailable when there is none; nothing is sent then."""

    async def renewed(self, refused: str) -> tuple[str, str] | None:  # noqa: ARG002 – for those that can renew
        """Another one to try once after a 401 on this value, which means the request was not carried out; None when
        there is none. Raises Unavailable."""
        return None

    @property
    def masked(self) -> tuple[str, ...]:
        """The secrets last sent; empty before the first request."""
        return ()

    async def aclose(self) -> None:
        """Close what it opened."""
        return  # most open nothing


class ConstantHeader(Outbound):
    """backend: its name, for errors."""

    def __init__(self, backend: str, header: str, value: str, secrets: Secrets) -> None:
        self._backend = backend
        self._header = header
        self._value = value
        self._secrets = secrets
        self._last = ""
        self._masked: tuple[str, ...] = ()

    @property
    def masked(self) -> tuple[str, ...]:
        return self._masked

    def at_once(self) -> tuple[str, str] | None:
        """See Outbound. Raises Unavailable as `header`."""
        if waits(self._value):
            return None
        try:
            return self._header, self._judged(filled(self._value, self._secrets))
        except LookupError as error:
            raise self._missing(error) from None

    async def header(self) -> tuple[str, str]:
        """See Outbound. Raises Unavailable when the secret cannot be read or cannot stand in a header."""
        try:
            return self._header, self._judged(await filled_now(self._value, self._secrets))
        except LookupError as error:
            raise self._missing(error) from None

    def _judged(self, text: str) -> str:
        value = text.strip()
        if value != self._last:
            if fault := header_fault(value) or ("" if value.isascii() else "is not ASCII"):
                raise no_credential(self._backend, f"its secret {fault}")
            self._masked = secrets_in(self._value.strip(), value)
            self._last = value
        return value

    def _missing(self, error: LookupError) -> BackendError:
        return no_credential(self._backend, str(error.args[0]) if error.args else "its secret is missing")


def no_credential(backend: str, why: str) -> BackendError:
    """Why nothing can be sent to this backend."""
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
        from broker.backends.client_credentials import ClientCredentials  # late: two libraries nobody else needs

        return ClientCredentials(backend, spec.oauth, secrets, tls)
    return ConstantHeader(backend, spec.header, spec.value or "", secrets)
