"""`broker`, on a store that admits and forgets: what it does not do is what recording costs.

For the bench only. The product has no way to turn its records off, and this file is not part of it: quotas are not
counted, nothing is written for a call, and every call is admitted at once.
"""

from __future__ import annotations

import sys

from broker.model.invocation import Admission, Intent, Outcome
from broker.model.quota import QuotaState
from broker.stores import STORES
from broker.stores.sqlite.store import SqliteStore

_LEFT = QuotaState("bench-day", "", "count", 1_000_000_000, 1_000_000_000)


class Unrecorded(SqliteStore):
    """Everything as in the real one, but calls leave no trace."""

    async def admit(self, intent: Intent) -> Admission:
        return Admission("dispatching", quotas=(_LEFT,))

    async def finish(self, outcome_: Outcome) -> None:
        pass


if __name__ == "__main__":
    STORES["sqlite"] = "tests.bench.unrecorded:Unrecorded"  # type: ignore[index]  # a table like any, read when the broker opens
    from broker.__main__ import main

    sys.exit(main())
