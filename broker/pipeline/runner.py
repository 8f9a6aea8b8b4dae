"""What was approved, run: exactly once, by any serving broker that has the very thing that was approved.

Between an approval and its running anything may have changed. Before the call is claimed: whether the tool and what
governs it are the same here (else the hold is withdrawn). After it, when nobody else can run it any more: whether the
caller's grant holds, the rules still let it through, each reviewer may still review, and what would be sent is, byte
for byte, what was shown. Whatever fails ends the call as failed with effect none; sent again it is judged anew.

A tool with `run: on_collect` is not run here on its own: its caller collects it, and it runs then, for the credential
the caller shows at that moment.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import anyio
import orjson
import structlog

from broker.catalog.catalog import Entry, Shelf
from broker.errors import BrokerError, Conflict, Forbidden, RecordUnavailable
from broker.model.answer import Answer
from broker.model.call import Call
from broker.model.canonical import digest
from broker.model.hold import Approval, Bound, Hold, Review
from broker.model.invocation import Invocation, InvocationQuery
from broker.model.principal import Principal
from broker.pipeline import recorder
from broker.pipeline.dispatch import as_broker_error, sketch
from broker.pipeline.reviewers import approves, confirms, lacks
from broker.ports import Backend, Clock, Store

Run = Callable[[Entry, Call], Awaitable[Answer]]
Recheck = Callable[[Principal, int], Awaitable[None]]
ReviewerNow = Callable[[Approval], Awaitable[Principal | None]]

NOTICE_S = 5.0  # the longest an approval waits for the runner to look, when no change was signalled

log = structlog.get_logger("broker.runner")


class Runner:
    """recheck: raises Unauthenticated or Forbidden when the grant the principal had then holds no longer (revoked,
    expired, removed). reviewer_now: this reviewer with the scopes and groups of now; None when nobody can say."""

    def __init__(
        self,
        *,
        shelf: Shelf,
        store: Store,
        clock: Clock,
        backends: Mapping[str, Backend],
        recheck: Recheck,
        reviewer_now: ReviewerNow,
        reviewer_scope: str,
    ) -> None:
        self._shelf = shelf
        self._store = store
        self._clock = clock
        self._backends = backends
        self._recheck = recheck
        self._reviewer_now = reviewer_now
        self._reviewer_scope = reviewer_scope
        self._running: set[str] = set()  # approved calls this process is at, so that none is looked at twice

    async def run_approved(self, run: Run) -> None:
        """Claim and run what was approved, for ever. One per serving broker; several brokers share the work."""
        async with anyio.create_task_group() as tasks:
            while True:
                try:
                    for invocation in await self._store.invocations(InvocationQuery(states=("approved",), limit=1000)):
                        waits = invocation.hold is not None and invocation.hold.on_collect
                        if invocation.call_id not in self._running and not waits:
                            self._running.add(invocation.call_id)
                            tasks.start_soon(self._run_one, invocation, run)
                except RecordUnavailable as error:
                    log.warning("approved calls wait: records cannot be read", reason=error.message)
                    await anyio.sleep(1.0)
                await self._store.changed(NOTICE_S)

    async def run_collected(self, approved: Invocation, principal: Principal, run: Run) -> None:
        """Run an approved call that waits for its caller, as the caller stands now. How it ends is recorded."""
        await self._claim_and_run(approved, run, principal)

    async def _run_one(self, approved: Invocation, run: Run) -> None:
        try:
            await self._claim_and_run(approved, run)
        finally:
            self._running.discard(approved.call_id)

    async def _claim_and_run(self, approved: Invocation, run: Run, principal: Principal | None = None) -> None:
        entry = self._shelf.current.named(approved.tool)
        if entry is None or approved.hold is None:
            return  # it lives in another broker's catalog, or nowhere any more: not ours to run
        try:
            if why := self.stale(approved):
                await self._withdraw(approved, why)
                return
            claimed = await self._store.claim(approved.call_id, self._clock.now_ms())
        except RecordUnavailable as error:
            log.warning("an approved call waits: records cannot be written", reason=error.message)
            return
        if claimed is None:
            return
        call = Call(
            id=approved.call_id,
            name=approved.tool,
            arguments=orjson.loads(claimed.arguments),
            principal=principal or recorder.unpack(claimed.principal),
            face=approved.face,
            received_at_ms=approved.at_ms,
            request_id=approved.request_id,
            sent_as=claimed.sent_as,
            trace_parent=f"00-{approved.trace_id}-{'0' * 16}-01" if approved.trace_id else "",
        )
        try:
            await self._still_allowed(entry, call, approved.hold)
        except BrokerError as error:
            await self._record_refused(call, error)
            return
        try:
            await run(entry, call)
        except BrokerError as error:
            # The outcome is recorded and the caller will be told when it collects; here it is only news.
            log.info("an approved call failed", call_id=call.id, code=error.code)

    # ------------------------------------------------------------------------------------------- what may have changed

    def stale(self, held: Invocation) -> str:
        """Why this hold can never run here as it was shown, or "". A tool that is not in this catalog says nothing: it
        may be in another broker's, or come back with its server."""
        entry, hold = self._shelf.current.named(held.tool), held.hold
        if entry is None or hold is None:
            return ""
        if entry.tool.definition != held.definition:
            return f"{held.tool} changed while the call was held"
        if hold.policy and entry.policy != hold.policy:
            return f"rules, quotas or limits of {held.tool} changed while the call was held"
        return ""

    async def _withdraw(self, approved: Invocation, why: str) -> None:
        void = Review(approved.call_id, "withdraw", "broker", why, self._clock.now_ms())
        try:
            await self._store.review(void)
        except Conflict:
            log.info("decided while it was being withdrawn", call_id=approved.call_id)

    async def _still_allowed(self, entry: Entry, call: Call, hold: Hold) -> None:
        """Everything that may have changed since the hold, and is not the tool's or its rules': the quota is still
        reserved. Raises BrokerError."""
        try:
            await self._recheck(call.principal, call.received_at_ms)
        except Exception as error:  # a failing check of a grant must not let the call run
            raise as_broker_error(error) from error
        own = [one for one in hold.approvals if confirms(hold, call.principal, one)]
        for approval in (one for one in hold.approvals if one not in own):
            reviewer = await self._reviewer_now(approval)
            if reviewer is not None and (why := lacks(hold, reviewer, self._reviewer_scope, self._clock.now_ms())):
                raise Forbidden(
                    f"Refused: {approval.reviewer} may not approve {call.name} any more. {why}", next_step=AGAIN
                )
        verdict = entry.decide(call.principal, call.arguments, self._clock.now_ms())
        if verdict.outcome == "deny":
            raise Forbidden(
                f"Refused: {verdict.rule} forbids {call.name} now: {verdict.reason}", next_step="Nothing was done."
            )
        if verdict.terms is not None and not (approves(hold, verdict.terms) and verdict.terms.confirm >= bool(own)):
            raise Forbidden(
                f"Refused: {verdict.rule} now asks other reviewers than those who could approve {call.name}.",
                next_step=AGAIN,
            )
        if hold.bound and bound_of(entry, call, sketch(entry, call, self._backends).digest).digest != hold.bound:
            raise Forbidden(f"Refused: {call.name} would not be sent as it was shown to its reviewer.", next_step=AGAIN)

    async def _record_refused(self, call: Call, error: BrokerError) -> None:
        error.effect = "none"
        try:
            await self._store.finish(recorder.outcome(call, error, at_ms=self._clock.now_ms()))
        except (RecordUnavailable, Conflict) as fault:
            log.error("the refusal of an approved call is not recorded yet", call_id=call.id, reason=fault.message)


AGAIN = "Nothing was done. Send the call again if it is still wanted; it will be held anew."


def bound_of(entry: Entry, call: Call, sketch_digest: str) -> Bound:
    """What an approval of this call, as it would run now, is for."""
    return Bound(
        principal_key=call.principal.key,
        agent=call.principal.agent,
        tool=call.name,
        definition=entry.tool.definition,
        backend=entry.tool.backend,
        policy=entry.policy,
        arguments=digest(call.arguments),
        sketch=sketch_digest,
    )
