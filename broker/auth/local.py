"""Over stdio the program that starts the broker is the identity: it stands in the settings; nothing proves it more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.errors import InsufficientScope
from broker.model.principal import Principal
from broker.settings import StdioIdentity

if TYPE_CHECKING:
    from broker.auth import Context

ISSUER = "settings"


def principal(identity: StdioIdentity) -> Principal:
    """Who calls over stdio, by the `stdio` section of the settings."""
    return Principal(
        agent=identity.agent,
        user=identity.user,
        tenant=identity.tenant,
        issuer=ISSUER,
        scopes=frozenset(identity.scopes),
        groups=frozenset(identity.groups),
    )


class Local:
    """Vouches for nobody by credential; says whether a local principal of before is still the one in the settings."""

    def __init__(self, context: Context) -> None:
        self._now = principal(context.settings.stdio)

    async def authenticate(self, credential: str) -> Principal | None:  # noqa: ARG002 – there is none of its kind
        return None

    def remembered(self, mark: bytes) -> Principal | None:  # noqa: ARG002 – as above
        return None

    async def recheck(
        self,
        principal: Principal,
        since_ms: int | None = None,  # noqa: ARG002 – its names are the settings' own
    ) -> bool:
        """See ports.Authenticator. Another process may have been started with another identity: that one stands."""
        if principal.issuer != ISSUER:
            return False
        lost = principal.scopes - self._now.scopes
        if principal.key == self._now.key and lost:
            raise InsufficientScope("The settings no longer give the caller every scope it had.", missing=sorted(lost))
        return True

    async def aclose(self) -> None:
        """Nothing is open."""
