"""Waits for a person that end without a run, told to whoever traces calls.

A call that runs after its approval is told of when it runs. One that is rejected, expires or is withdrawn never comes
back here, and who ended it may have been another process; so it is the ledger that is followed, from one place for all
brokers on it. What must not live here: what a trace looks like.
"""

from __future__ import annotations

import anyio
import structlog

from broker.errors import RecordUnavailable
from broker.pipeline.follower import Follower
from broker.ports import Clock, Store, Watch

NAME = "traces:holds"
KINDS = ("review", "expiry", "withdrawal")
NEVER_RUN = ("rejected", "expired", "withdrawn")
UNAVAILABLE_S = 2.0

log = structlog.get_logger("broker.traces")


async def tell_waits(store: Store, clock: Clock, watch: Watch) -> None:
    """Follow the ledger, for ever."""
    follower = Follower(store, clock, NAME)
    while True:
        try:
            for event in await follower.next(KINDS, 100):
                invocation = await store.invocation(event.call_id)
                if invocation is not None and invocation.state in NEVER_RUN:
                    watch.waited(invocation)
                if not await follower.handed_on(event.id):
                    break
            else:
                await follower.pause()
        except RecordUnavailable as error:
            log.warning("waits are not traced: records cannot be used", reason=error.message)
            await anyio.sleep(UNAVAILABLE_S)
