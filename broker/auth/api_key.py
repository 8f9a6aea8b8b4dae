"""Callers with an API key: for programs that cannot do OAuth. Random, scoped, expiring, revocable.

`brk_` + 12 hex digits (the id: public, in lists and records) + `_` + 256 random bits in base64url. The prefix lets
secret scanners find a lost key. Only the SHA-256 is stored; random bits need nothing slower.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from hmac import compare_digest
from typing import TYPE_CHECKING

from anyio import to_thread

from broker.auth.memory import Memory
from broker.errors import InsufficientScope, Unauthenticated
from broker.model.directory import Account, ApiKey, secret_hash
from broker.model.principal import Principal, fingerprint
from broker.ports import Directory

if TYPE_CHECKING:
    from broker.auth import Context

ISSUER = "api-key"
PREFIX = "brk_"

_FORM = re.compile(r"brk_([0-9a-f]{12})_[A-Za-z0-9_-]{43}", re.ASCII)


def create(
    directory: Directory,
    now_ms: int,
    *,
    agent: str,
    user: str = "",
    tenant: str = "",
    scopes: Iterable[str] = (),
    groups: Iterable[str] = (),
    owner: str = "",
    expires_at_ms: int = 0,
) -> tuple[str, ApiKey]:
    """Make and store a key; its text is returned here and never again. Blocks on the disk.

    user: an account; the key then carries no more than the account and ends with it. expires_at_ms 0: never.
    """
    key_id = secrets.token_hex(6)
    text = f"{PREFIX}{key_id}_{secrets.token_urlsafe(32)}"
    key = ApiKey(
        agent=agent,
        key_id=key_id,
        key_hash=secret_hash(text),
        user=user,
        tenant=tenant,
        scopes=frozenset(scopes),
        groups=frozenset(groups),
        owner=owner,
        created_at_ms=now_ms,
        expires_at_ms=expires_at_ms,
    )
    directory.add_api_key(key)
    return text, key


class ApiKeys:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._memory = Memory(context.directory, context.clock)
        self.remembered = self._memory.at_once  # see ports.Authenticator

    async def authenticate(self, credential: str) -> Principal | None:
        """See ports.Authenticator. Raises RecordUnavailable when the directory cannot be read."""
        if not credential.startswith(PREFIX):
            return None
        form = _FORM.fullmatch(credential)
        if form is None or not self._context.settings.auth.api_keys:
            raise _unknown()
        remembered = fingerprint(credential)
        principal = await self._memory.recall(remembered)
        if principal is None:
            generation = self._memory.generation
            principal = await to_thread.run_sync(self._look_up, form.group(1), credential)
            self._memory.keep(remembered, principal, generation)
        return principal

    async def recheck(
        self,
        principal: Principal,
        since_ms: int | None = None,  # noqa: ARG002 – the id of a key is never used again
    ) -> bool:
        """See ports.Authenticator."""
        if principal.issuer != ISSUER:
            return False
        now = await to_thread.run_sync(self._principal, principal.credential_id)
        lost = principal.scopes - now.scopes
        if lost:
            raise InsufficientScope("The API key no longer has every scope it had.", missing=sorted(lost))
        return True

    async def aclose(self) -> None:
        """Nothing is open."""

    def _look_up(self, key_id: str, credential: str) -> Principal:
        key = self._context.directory.api_key(key_id)
        stored = key.key_hash if key else ""
        if not compare_digest(secret_hash(credential), stored):
            raise _unknown()
        return self._principal(key_id)

    def _principal(self, key_id: str) -> Principal:
        key = self._context.directory.api_key(key_id)
        if key is None or not self._context.settings.auth.api_keys:
            raise _unknown()
        if key.revoked_at_ms:
            raise Unauthenticated("The API key has been revoked.", next_step="Ask for a new one.", reason="revoked")
        if key.expires_at_ms and self._context.clock.now_ms() >= key.expires_at_ms:
            raise Unauthenticated("The API key has expired.", next_step="Ask for a new one.", reason="expired")
        account = self._account(key)
        return Principal(
            agent=key.agent,
            user=account.name if account else "",
            tenant=key.tenant,
            issuer=ISSUER,
            scopes=key.scopes & account.scopes if account else key.scopes,
            groups=key.groups & account.groups if account else key.groups,
            owner=key.owner,
            credential_id=key.key_id,
            expires_at_ms=key.expires_at_ms or None,
        )

    def _account(self, key: ApiKey) -> Account | None:
        if not key.user:
            return None
        account = self._context.directory.account(key.user)
        if account is None or account.disabled or account.created_at_ms > key.created_at_ms:
            raise Unauthenticated(
                "The account of this API key is gone.", next_step="Ask for a new key.", reason="revoked"
            )
        return account


def _unknown() -> Unauthenticated:
    return Unauthenticated(
        "The API key is not valid here.", next_step="Check it, or ask for a new one.", reason="unknown"
    )
