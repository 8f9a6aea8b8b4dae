"""Telling people outside of held calls: from the ledger, in its order, so that nothing is forgotten and no call waits.

What is to be told is what the ledger says; each receiver follows it from a place of its own that outlives the process
(follower.py). A receiver that cannot be reached is tried again with growing pauses and holds up only itself. Each
notice that was delivered, or given up, is recorded. At least once: whoever is interrupted between delivery and the
record of it delivers again, under the same id.

What must not live here: how a notice travels (notifiers), when a call is held.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import anyio
import structlog

from broker.errors import RecordUnavailable
from broker.model.invocation import Invocation
from broker.model.notice import Notice, What
from broker.pipeline.follower import Follower
from broker.ports import Clock, Event, NotDelivered, Notifier, Store
from broker.settings import NotifyTo

UNAVAILABLE_S = 2.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0  # so that the lease is renewed in time
GIVE_UP_S = 6 * 3600.0
TRIES_FOR_GOOD = 5  # of what the receiver says it will never take

KINDS: Mapping[str, What] = {
    "held": "held",
    "review": "decided",
    "escalation": "escalated",
    "expiring": "expiring",
    "expiry": "expired",
    "withdrawal": "withdrawn",
}
_DECISIONS = {"approve": "approved", "reject": "denied", "withdraw": "withdrawn"}  # of a Review, for people

log = structlog.get_logger("broker.notify")


class Notices:
    """base_url: where the console is, for links."""

    def __init__(self, store: Store, clock: Clock, base_url: Callable[[], str]) -> None:
        self._store = store
        self._clock = clock
        self._base_url = base_url

    async def serve(self, to: NotifyTo, notifier: Notifier) -> None:
        """Follow the ledger for one receiver, for ever."""
        follower = Follower(self._store, self._clock, f"notify:{to.name}")
        kinds = [kind for kind, what in KINDS.items() if what in to.events]
        while True:
            try:
                for event in await follower.next(kinds, 100):
                    if not await self._hand_on(event, follower, to, notifier):
                        break
                else:
                    await follower.pause()
            except RecordUnavailable as error:
                log.warning("notices wait: records cannot be used", to=to.name, reason=error.message)
                await anyio.sleep(UNAVAILABLE_S)

    async def _hand_on(self, event: Event, follower: Follower, to: NotifyTo, notifier: Notifier) -> bool:
        invocation = await self._store.invocation(event.call_id)
        if invocation is not None and not await self._deliver(
            self._notice(event, invocation, to), follower, to, notifier
        ):
            return False
        return await follower.handed_on(event.id)

    async def _deliver(self, notice: Notice, follower: Follower, to: NotifyTo, notifier: Notifier) -> bool:
        """Until it is delivered or given up; False when another process has taken the place meanwhile."""
        began, pause_s, tries = anyio.current_time(), FIRST_PAUSE_S, 0
        while True:
            tries += 1
            try:
                await notifier.send(notice)
            except NotDelivered as fault:
                why, for_good = str(fault), fault.for_good
            else:
                await self._note("notified", notice, to, tries)
                return True
            if anyio.current_time() - began > GIVE_UP_S or (for_good and tries >= TRIES_FOR_GOOD):
                log.error("a notice was given up", to=to.name, call_id=notice.document["call_id"], why=why)
                await self._note("notice_failed", notice, to, tries, why=why)
                return True
            log.warning("a notice was not delivered; it is tried again", to=to.name, in_s=pause_s, why=why)
            await anyio.sleep(pause_s)
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
            if not await follower.hold_on():
                return False

    async def _note(self, kind: str, notice: Notice, to: NotifyTo, tries: int, **more: str) -> None:
        facts = {"to": to.name, "notice": notice.id, "call_id": notice.document["call_id"], "tries": tries, **more}
        await self._store.note(kind, facts)

    def _notice(self, event: Event, invocation: Invocation, to: NotifyTo) -> Notice:
        hold = invocation.hold
        what = KINDS[event.kind]
        document: dict[str, Any] = {
            "call_id": invocation.call_id,
            "at_ms": event.at_ms,
            "tool": invocation.tool,
            "effect": invocation.tool_effect,
            "backend": invocation.backend,
            "agent": invocation.agent,
            "user": invocation.user,
            "tenant": invocation.tenant,
            "rule": invocation.rule,
            "reason": hold.reason if hold else "",
            "expires_at_ms": hold.expires_at_ms if hold else 0,
            "state": invocation.state,
            "link": f"{self._base_url()}/console/holds/{invocation.call_id}",
        }
        if what == "decided":
            decided = event.body.get("hold", {})
            document["decision"] = _DECISIONS.get(event.body.get("decision", ""), "decided")
            document |= {name: decided.get(name, "") for name in ("reviewer", "review_reason")}
        if to.arguments and invocation.kept is not None:
            document["arguments"] = invocation.kept
        return Notice(event.name, what, event.at_ms, document)
