"""A reviewer as the directory knows them now: between an approval and its running, an account may lose its role.

Only accounts of the embedded issuer can be asked about. Who came by another way (another issuer, a key, the system's
user) was vouched for when deciding, and nobody can be asked again; their approval stands until the hold expires.
"""

from __future__ import annotations

from collections.abc import Callable

import anyio.to_thread

from broker.model.hold import Approval
from broker.model.principal import Principal
from broker.ports import Directory


class Reviewers:
    """base_url: the embedded issuer's name, known when the broker listens."""

    def __init__(self, directory: Directory, base_url: Callable[[], str]) -> None:
        self._directory = directory
        self._base_url = base_url

    async def now(self, approval: Approval) -> Principal | None:
        """None: not ours to say. Who is gone or disabled has no scopes and no groups. Raises RecordUnavailable."""
        if approval.issuer != self._base_url():
            return None
        name = approval.reviewer.removesuffix(f"@{approval.issuer}")
        account = await anyio.to_thread.run_sync(self._directory.account, name)
        if account is None or account.disabled:
            return Principal(agent=name, user=name, issuer=approval.issuer)
        return Principal(agent=name, user=name, issuer=approval.issuer, scopes=account.scopes, groups=account.groups)
