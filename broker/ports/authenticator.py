"""Who calls.

The ways to tell: `auth.AUTHENTICATORS`.
"""

from __future__ import annotations

from typing import Protocol

from broker.model.principal import Principal


class Authenticator(Protocol):
    async def authenticate(self, credential: str) -> Principal | None:
        """Who presents this bearer credential; None when this kind of credential is not ours to judge.

        Raises Unauthenticated (a sentence without the credential) when it is ours and not valid: unknown, expired,
        revoked, wrong audience, badly signed. Raises nothing else for any input, in bounded time; RecordUnavailable
        when it cannot be found out now.
        """
        ...

    def remembered(self, mark: bytes) -> Principal | None:
        """Whom it has vouched for lately by the credential of this fingerprint (`principal.fingerprint`), if that still
        counts and nothing has to be read to say so; None otherwise."""
        ...

    async def recheck(self, principal: Principal, since_ms: int | None = None) -> bool:
        """Whether the grant behind a principal we once vouched for still holds; False when it was not ours. since_ms:
        when it last did; what bears the same name and came after that is another.

        For calls that run long after they were authenticated. Raises Unauthenticated (revoked, removed, ended) or
        InsufficientScope (it lost scopes it had).
        """
        ...
