"""Making access tokens: who gets which scopes for which resources, and the signed result (RFC 9068).

Granted is what was asked for, and the client may have, and the person may have: narrowed, never widened. Nothing asked
for means everything allowed. What must not live here: the protocol by which tokens are asked for (grants).
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterable, Sequence
from time import time

from joserfc import jwt

from broker.authserver.keys import ALGORITHM, signing_key
from broker.data import dataclass
from broker.errors import Forbidden, InvalidArguments
from broker.model.address import ENDPOINTS
from broker.model.directory import Account, Client
from broker.ports import Directory
from broker.settings import Settings

MOST_S = 86_400


@dataclass(frozen=True, slots=True)
class Minted:
    token: str
    token_id: str  # jti
    expires_in_s: int


@dataclass(frozen=True, slots=True)
class Parties:
    """Whom a token is for: a client, and the person it acts for, or None when it acts for itself."""

    client: Client
    account: Account | None = None

    def granted(self, requested: Collection[str], catalog: Iterable[str]) -> frozenset[str]:
        """catalog: every scope a tool asks for; the limit of clients that have none of their own (dynamic ones)."""
        allowed = frozenset(catalog) if self.client.scopes is None else self.client.scopes
        if self.account is not None:
            allowed &= self.account.scopes
        return allowed & frozenset(requested) if requested else allowed


def default_audience(base_url: str) -> tuple[str, ...]:
    """All of the broker's resources, for whoever names none (RFC 8707 is optional for clients)."""
    return tuple(base_url + path for path in ENDPOINTS)


def mint(
    directory: Directory,
    issuer: str,
    parties: Parties,
    *,
    scopes: Collection[str],
    audience: Sequence[str],
    lifetime_s: int,
    now_ms: int,
    grant_id: str = "",
) -> Minted:
    """A signed access token. grant_id: the grant it belongs to, so that revoking the grant revokes it. Blocks."""
    client, account = parties.client, parties.account
    own_id = secrets.token_urlsafe(16)
    token_id = f"{grant_id}.{own_id}" if grant_id else own_id
    now_s = now_ms // 1000
    claims: dict[str, object] = {
        "iss": issuer,
        "sub": account.name if account else client.client_id,
        "client_id": client.client_id,
        "aud": list(audience),
        "scope": " ".join(sorted(scopes)),
        "groups": sorted(account.groups if account else client.groups),
        "iat": now_s,
        "exp": now_s + lifetime_s,
        "jti": token_id,
    }
    tenant = account.tenant if account else client.tenant
    if tenant:
        claims["tenant"] = tenant
    key = signing_key(directory, now_ms)
    header = {"alg": ALGORITHM, "typ": "at+jwt", "kid": key.kid}
    token = jwt.encode(header, claims, key, algorithms=[ALGORITHM], default_type=None)
    return Minted(token, token_id, lifetime_s)


def issue(
    directory: Directory,
    settings: Settings,
    base_url: str,
    *,
    client_id: str,
    scopes: Iterable[str] | None = None,
    user: str | None = None,
    lifetime_s: int | None = None,
) -> str:
    """An access token for an operator to hand out, without any protocol. Blocks on the disk.

    scopes None: all that client and user may have. lifetime_s None: as in the settings.
    Raises Forbidden for an unknown client or user, and (with `missing`) for scopes they may not have; InvalidArguments
    for a token that would live longer than a day.
    """
    client = directory.client(client_id)
    if client is None or client.disabled:
        raise Forbidden(f"There is no client {client_id[:64]!r}.", next_step="`broker client add` makes one.")
    account = directory.account(user) if user else None
    if user and (account is None or account.disabled):
        raise Forbidden(f"There is no account {user[:64]!r}.", next_step="`broker user add` makes one.")
    parties = Parties(client, account)
    wanted = frozenset(scopes or ())
    everything = account.scopes if account else frozenset[str]()
    granted = parties.granted(wanted, everything)
    missing = sorted(wanted - granted)
    if missing:
        raise Forbidden(
            f"The client or the account may not have {', '.join(missing)}.",
            missing=missing,
            next_step="Give the scopes to both first.",
        )
    embedded = settings.auth.embedded
    if (lifetime_s or 0) > MOST_S:
        raise InvalidArguments(
            f"An access token lives {MOST_S} seconds at most.", next_step="For longer: `broker token --api-key`."
        )
    return mint(
        directory,
        base_url,
        parties,
        scopes=granted,
        audience=default_audience(base_url),
        lifetime_s=lifetime_s or embedded.access_token_s,
        now_ms=int(time() * 1000),
    ).token
