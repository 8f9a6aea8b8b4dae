"""Whom the broker knows by itself: accounts of people, clients (agents), API keys, and what it has given to them.

Nothing here holds a secret in the clear but `SigningKey.private_jwk`: passwords are argon2 hashes, every other secret
is 256 random bits of which only the SHA-256 is kept (a hash of random bits needs no salt and no slowness).
"""

from __future__ import annotations

import hashlib

from broker.data import dataclass


def secret_hash(secret: str) -> str:
    """64 hex digits: how random secrets (keys, codes, refresh tokens, session cookies, client secrets) are kept."""
    return hashlib.sha256(secret.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Account:
    """A person who can sign in. name is also the `sub` of tokens; what `person()` folds together is one account."""

    name: str
    password_hash: str = ""  # argon2id in PHC form; "": cannot sign in
    scopes: frozenset[str] = frozenset()  # the most any token for this person can carry
    groups: frozenset[str] = frozenset()
    tenant: str = ""
    disabled: bool = False
    created_at_ms: int = 0  # 0: set when it is added


@dataclass(frozen=True, slots=True)
class Client:
    """An OAuth client, that is an agent. scopes None: no limit of its own (dynamic clients), the person's counts."""

    client_id: str
    name: str = ""  # for display; self-asserted when dynamic
    secret_hash: str = ""  # "": a public client
    grants: tuple[str, ...] = ("client_credentials",)
    redirect_uris: tuple[str, ...] = ()
    scopes: frozenset[str] | None = frozenset()
    groups: frozenset[str] = frozenset()  # of the agent when it acts for itself
    tenant: str = ""
    owner: str = ""  # the person responsible, who may not review its calls
    dynamic: bool = False
    disabled: bool = False
    created_at_ms: int = 0  # 0: set when it is added


@dataclass(frozen=True, slots=True)
class ApiKey:
    """key_id is public and part of the key; key_hash is `secret_hash` of the whole key. Both "" until it is made."""

    agent: str
    key_id: str = ""
    key_hash: str = ""
    user: str = ""  # an account's name: the key then also ends with the account
    tenant: str = ""
    scopes: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset()
    owner: str = ""
    created_at_ms: int = 0  # 0: set when it is added
    expires_at_ms: int = 0  # 0: never
    revoked_at_ms: int = 0  # 0: not revoked


@dataclass(frozen=True, slots=True)
class Grant:
    """What one person allowed one client, once. id stays the same from the code through every refresh."""

    grant_id: str
    client_id: str
    account: str
    scopes: frozenset[str]
    resources: tuple[str, ...]  # RFC 8707; what `aud` may be


@dataclass(frozen=True, slots=True)
class Code:
    """An authorisation code waiting to be redeemed, once."""

    code_hash: str
    grant: Grant
    redirect_uri: str  # as in the request, "" when it had none
    code_challenge: str  # S256, always
    expires_at_ms: int


@dataclass(frozen=True, slots=True)
class RefreshToken:
    token_hash: str
    grant: Grant
    expires_at_ms: int
    used_at_ms: int = 0  # 0: still good; otherwise showing it again is a theft or a bug, and ends the grant


@dataclass(frozen=True, slots=True)
class BrowserSession:
    """A person signed in with a browser. The cookie is the secret."""

    cookie_hash: str
    account: str
    expires_at_ms: int


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A key of the embedded issuer. Of those not retired the newest signs; a retired one verifies until it is gone."""

    kid: str
    private_jwk: str  # JSON
    created_at_ms: int
    retires_at_ms: int = 0  # 0: in use; otherwise verifies until then


@dataclass(frozen=True, slots=True)
class Standing:
    """What the directory says now about the parties of a token it once issued. None: not known (any more)."""

    client: Client | None
    account: Account | None
    revoked: bool
