"""Callers with an access token: RFC 9068 JWTs of the embedded issuer and of the issuers in the settings.

A token chooses its issuer by `iss`; the issuer chooses keys, algorithms, audience and which claims name agent, user and
tenant. For the embedded issuer the directory has the last word each time a token is judged: a removed client or
account, a revoked token and a withdrawn scope count at once, whatever the token says.

What must not live here: how a token is read (token), where keys come from (keys), how tokens are made (authserver).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from anyio import to_thread

from broker.auth.documents import http_client
from broker.auth.keys import DirectoryKeys, HttpKeys, KeySource
from broker.auth.memory import Memory
from broker.auth.token import Claims, Unverified, claims, invalid, refused, unverified, verified
from broker.data import dataclass
from broker.errors import InsufficientScope, Unauthenticated
from broker.model.address import endpoints_in, resources
from broker.model.directory import Standing
from broker.model.principal import Principal, fingerprint
from broker.settings import Issuer

if TYPE_CHECKING:
    from broker.auth import Context

EMBEDDED_ALGORITHMS = ("ES256",)
GRANT_MARK = "."
"""A jti of the embedded issuer is `id`, or `grant.id` when a person allowed it: revoking the grant revokes them all."""

_SAME = {"EdDSA": ("EdDSA", "Ed25519")}  # RFC 9864 gave it a fully specified name; both are in use


@dataclass(frozen=True, slots=True)
class _Trust:
    """One issuer as we trust it. embedded: the directory decides about its tokens' parties."""

    keys: KeySource
    algorithms: frozenset[str]
    audience: Callable[[], tuple[str, ...]]
    settings: Issuer | None = None

    @property
    def embedded(self) -> bool:
        return self.settings is None


class AccessTokens:
    def __init__(self, context: Context, source: Callable[[Issuer], KeySource] | None = None) -> None:
        """source: the keys of an external issuer; HTTP if not given."""
        self._context = context
        self._memory = Memory(context.directory, context.clock)
        self.remembered = self._memory.at_once  # see ports.Authenticator
        make = source or _http_keys
        self._external = {issuer.issuer: self._trust(issuer, make(issuer)) for issuer in context.settings.auth.issuers}
        self._embedded = (
            _Trust(
                keys=DirectoryKeys(context.directory),
                algorithms=frozenset(EMBEDDED_ALGORITHMS),
                audience=self._own_resources,
            )
            if context.settings.auth.embedded.enabled
            else None
        )

    async def authenticate(self, credential: str) -> Principal | None:
        """See ports.Authenticator. A JWE and an opaque token are none of ours.

        Raises RecordUnavailable when the directory cannot be read.
        """
        if credential.count(".") != 2:
            return None
        key = fingerprint(credential)
        known = await self._memory.recall(key)
        if known is not None:
            return known
        generation = self._memory.generation
        principal = await self._judge(credential)
        self._memory.keep(key, principal, generation)
        return principal

    async def recheck(self, principal: Principal, since_ms: int | None = None) -> bool:
        """See ports.Authenticator. The embedded issuer's grants are looked up, so a call may outlive its access
        token, not its grant; of an external issuer nothing but the token is known, so the token's end is the grant's.
        """
        trust = self._trusted(principal.issuer)
        if trust is None:
            return False
        if not trust.embedded:
            if principal.is_expired(self._context.clock.now_ms()):
                raise refused("has expired", "expired")
            return True
        standing = await self._standing(principal.agent, principal.user, principal.credential_id)
        _check(standing, principal.user, since_ms)
        lost = principal.scopes - _allowed(standing, principal.scopes)
        if lost:
            raise InsufficientScope("The caller no longer has every scope it had.", missing=sorted(lost))
        return True

    async def aclose(self) -> None:
        for trust in self._external.values():
            await trust.keys.aclose()

    def _trust(self, issuer: Issuer, keys: KeySource) -> _Trust:
        audience = tuple(issuer.audience)
        return _Trust(
            keys=keys,
            algorithms=frozenset(
                name for algorithm in issuer.algorithms for name in _SAME.get(algorithm, (algorithm,))
            ),
            audience=(lambda: audience) if audience else self._own_resources,
            settings=issuer,
        )

    def _own_resources(self) -> tuple[str, ...]:
        return resources(self._context.base_url())

    def _trusted(self, issuer: str) -> _Trust | None:
        if self._embedded is not None and issuer == self._context.base_url():
            return self._embedded
        return self._external.get(issuer)

    async def _judge(self, credential: str) -> Principal:
        token = unverified(credential)
        trust = self._trusted(token.issuer)
        if trust is None:
            raise invalid()
        try:
            return await self._vouched(token, trust)
        except Unauthenticated as refusal:
            refusal.facts["issuer"] = token.issuer  # one we know; for records in sum
            raise

    async def _vouched(self, token: Unverified, trust: _Trust) -> Principal:
        if token.algorithm not in trust.algorithms:
            raise invalid()
        key = await trust.keys.key(token.key_id)
        if key is None:
            raise invalid()
        raw = verified(token, key)
        if raw.get("iss") != token.issuer:
            raise invalid()
        known = claims(raw, audience=trust.audience(), now_ms=self._context.clock.now_ms())
        endpoints = endpoints_in(self._context.base_url(), known.audience)
        if trust.settings is not None:
            return replace(_external_principal(known, trust.settings), endpoints=endpoints)
        return replace(await self._embedded_principal(known, token.issuer), endpoints=endpoints)

    async def _embedded_principal(self, known: Claims, issuer: str) -> Principal:
        user = known.subject if known.subject != known.client_id else ""
        standing = await self._standing(known.client_id, user, known.token_id)
        _check(standing, user, known.issued_at_ms)
        party = standing.account if user else standing.client
        return Principal(
            agent=known.client_id,
            user=user,
            tenant=known.name("tenant"),
            issuer=issuer,
            scopes=_allowed(standing, known.scopes),
            groups=known.names("groups") & (party.groups if party else frozenset()),
            owner=standing.client.owner if standing.client else "",
            credential_id=known.token_id,
            expires_at_ms=known.expires_at_ms,
        )

    async def _standing(self, client_id: str, user: str, token_id: str) -> Standing:
        ids = {token_id, token_id.partition(GRANT_MARK)[0]}
        return await to_thread.run_sync(self._context.directory.standing, client_id, user, sorted(ids))


def _http_keys(issuer: Issuer) -> KeySource:
    return HttpKeys(issuer.issuer, issuer.jwks_uri, http_client)


def _check(standing: Standing, user: str, issued_at_ms: int | None = None) -> None:
    """Raises Unauthenticated unless the token is not revoked and its client and account are the ones it was made for.

    A party created after the token was issued bears the same name but is another.
    """
    parties = [standing.client, standing.account] if user else [standing.client]
    if standing.revoked or any(party is None or party.disabled for party in parties):
        raise refused("has been revoked", "revoked")
    if issued_at_ms is not None and any(party and party.created_at_ms > issued_at_ms + 999 for party in parties):
        raise refused("has been revoked", "revoked")


def _allowed(standing: Standing, scopes: frozenset[str]) -> frozenset[str]:
    if standing.client is not None and standing.client.scopes is not None:
        scopes &= standing.client.scopes
    return scopes & standing.account.scopes if standing.account is not None else scopes


def _external_principal(known: Claims, issuer: Issuer) -> Principal:
    agent = known.name(issuer.agent_claim)
    if not agent:
        raise refused(f"lacks the claim {issuer.agent_claim!r} that names the agent", "invalid_claim")
    user = known.name(issuer.user_claim)
    return Principal(
        agent=agent,
        user=user if user != agent else "",
        tenant=known.name(issuer.tenant_claim),
        issuer=issuer.issuer,
        scopes=known.scopes,
        groups=known.names(issuer.groups_claim),
        credential_id=known.token_id,
        expires_at_ms=known.expires_at_ms,
    )
