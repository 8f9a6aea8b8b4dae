"""Who calls. Agent, user and tenant are three identities, never folded into one.

`agent` is the software (OAuth client, API key, configured stdio client), `user` the person it acts for ("" when it acts
for itself), `tenant` the organisation ("" when there is only one). They come from verified credentials only: never from
`clientInfo`, `_meta` or a header.
"""

from __future__ import annotations

import hashlib
import unicodedata
from functools import lru_cache

from broker.data import dataclass, field
from broker.model.canonical import canonical


@lru_cache(maxsize=4096)
def person(name: str) -> str:
    """A name as identity checks compare it: spelling variants (case, width, composition) are one person."""
    return unicodedata.normalize("NFKC", name).casefold().strip()


def fingerprint(credential: str) -> bytes:
    """What a credential is remembered by, so that none stays in memory longer than its request."""
    return hashlib.sha256(credential.encode()).digest()


@dataclass(frozen=True, slots=True)
class Principal:
    agent: str
    user: str = ""
    tenant: str = ""
    issuer: str = ""  # who vouches: an OAuth issuer URL, "api-key", "settings"
    scopes: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset()
    owner: str = ""  # the person who owns the agent's registration, "" when unknown; may not review its calls
    credential_id: str = ""  # a token's jti or a key's id, for revocation and records; never the credential
    expires_at_ms: int | None = None
    endpoints: frozenset[str] = frozenset()  # of `address.ENDPOINTS`, which its token is for; empty: not bound to any
    key: str = field(init=False, compare=False, repr=False)
    """Stable identity across tokens and sessions: what holds, sessions and idempotency belong to."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", canonical([self.issuer, self.tenant, self.user, self.agent]).decode())

    @property
    def persons(self) -> frozenset[str]:
        """Every name under which this principal must not decide on its own call."""
        return frozenset(person(name) for name in (self.user, self.agent, self.owner) if name)

    def is_expired(self, now_ms: int) -> bool:
        return self.expires_at_ms is not None and now_ms >= self.expires_at_ms
