"""Holds: how a held call waits, who may decide it, and how an approved one runs exactly once.

A hold is an invocation in state `held`; nothing about it lives only in memory. Three parties meet here:

- the caller waits a bounded time, or asks again later, and is told how it ended (`wait`, `collect`);
- the reviewer decides once (`review`); the store's compare-and-set makes one of several deciders win;
- the runner of any serving broker whose catalog still has the very definition claims what was approved, checks again
  all that may have changed since, and dispatches it from the store, whether or not the caller is still there.

What must not live here: how a decision reaches a person (notifiers, console), and what is written (recorder).
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import anyio
import orjson
import structlog

from broker.catalog.catalog import Catalog, Entry, Shelf
from broker.errors import (
    BackendError,
    BrokerError,
    Conflict,
    Denied,
    Expired,
    Forbidden,
    Held,
    OutcomeUnknown,
    RecordUnavailable,
    UnknownHold,
    Withdrawn,
)
from broker.model.answer import Answer
from broker.model.call import Call
from broker.model.hold import Hold, HoldTerms, Review
from broker.model.invocation import Invocation, InvocationQuery
from broker.model.principal import Principal
from broker.pipeline import held_call, recorder
from broker.pipeline.dispatch import as_broker_error
from broker.ports import Clock, Collected, Store

Run = Callable[[Entry, Call], Awaitable[Answer]]
Recheck = Callable[[Principal], Awaitable[None]]

PROGRESS_EVERY_S = 2.0
NOTICE_S = 5.0  # the longest an approval waits for the runner to look, when no change was signalled

log = structlog.get_logger("broker.desk")


class Desk:
    """run: dispatches an admitted call and records its outcome. recheck: raises Unauthenticated or Forbidden when the
    principal's grant no longer holds (revoked, expired, removed)."""

    def __init__(
        self, *, shelf: Shelf, store: Store, clock: Clock, reviewer_scope: str, wait_s: float, recheck: Recheck
    ) -> None:
        self._shelf = shelf
        self._store = store
        self._clock = clock
        self._reviewer_scope = reviewer_scope
        self._wait_s = wait_s
        self._recheck = recheck
        self._running: set[str] = set()  # approved calls this process is at, so that none is looked at twice

    # ------------------------------------------------------------------------------------------------- the reviewer

    async def review(
        self, call_id: str, *, approve: bool, reviewer: Principal, reason: str = "", via: str
    ) -> Invocation:
        """One person's decision on one held call. Returns the invocation as decided.

        Raises UnknownHold; Forbidden when the reviewer is the requester (by person: user, agent or owner under any
        spelling) or lacks what the rule asks for; Conflict when it was decided or expired before. Refused attempts are
        recorded.
        """
        invocation = await self._store.invocation(call_id)
        if invocation is None or invocation.hold is None:
            raise UnknownHold(
                f"There is no held call {call_id[:64]!r}.", next_step="`broker holds` lists the open ones."
            )
        objection = self.objection(invocation.hold, reviewer)
        if objection:
            await self._store.note(
                "review_refused", {"call_id": call_id, "reviewer": name_of(reviewer), "via": via, "why": objection}
            )
            raise Forbidden(objection, next_step="Another person has to decide.", hold_id=call_id)
        return await self._store.review(
            Review(
                call_id=call_id,
                decision="approve" if approve else "reject",
                reviewer=name_of(reviewer),
                reason=reason,
                at_ms=self._clock.now_ms(),
                via=via,
            )
        )

    def objection(self, hold: Hold, reviewer: Principal) -> str:
        """Why this person may not decide, or ""."""
        if reviewer.persons & set(hold.persons):
            return "The requester of a call may not review it."
        if hold.scopes or hold.groups:
            if reviewer.scopes & set(hold.scopes) or reviewer.groups & set(hold.groups):
                return ""
            asked = [f"scope {scope}" for scope in hold.scopes] + [f"group {group}" for group in hold.groups]
            return f"Reviewing this call takes {' or '.join(asked)}."
        if self._reviewer_scope in reviewer.scopes:
            return ""
        return f"Reviewing takes the scope {self._reviewer_scope}."

    # --------------------------------------------------------------------------------------------------- the caller

    async def wait(self, call: Call, held: Invocation) -> Answer:
        """Wait a bounded time for the decision and the result; then say how it stands.

        Returns the result of the call that ran. Raises Held when it is not decided in time, otherwise how it ended.
        On cancel: the hold stays; the caller may collect it later.
        """
        deadline = anyio.current_time() + (self._wait_s if call.may_wait else 0.0)
        step, next_progress = 0, anyio.current_time()
        while True:
            collected = await self._collect(held.call_id, call.principal)
            answer = _ended(collected)
            if answer is not None:
                return answer
            now = anyio.current_time()
            if now >= deadline:
                raise self._still_open(collected.invocation)
            if call.progress and now >= next_progress:
                step, next_progress = step + 1, now + PROGRESS_EVERY_S
                await call.progress(step, None, f"Held for approval: {held.hold.reason if held.hold else ''}".strip())
            await self._store.changed(min(PROGRESS_EVERY_S, deadline - now))

    async def answer(self, call: Call) -> Answer:
        """`broker_held_call`: the result of a held call, or how it stands. Same errors as `wait`; UnknownHold."""
        hold_id, withdraw = held_call.read(call.arguments)
        collected = await self._collect(hold_id, call.principal)
        if withdraw and collected.invocation.state in ("held", "approved"):
            await self._store.review(
                Review(
                    call_id=hold_id,
                    decision="withdraw",
                    reviewer=name_of(call.principal),
                    reason="withdrawn by the caller",
                    at_ms=self._clock.now_ms(),
                    via=call.face,
                )
            )
            collected = await self._collect(hold_id, call.principal)
        answer = _ended(collected)
        return held_call.as_tool_answer(answer if answer is not None else await self.wait(call, collected.invocation))

    async def _collect(self, hold_id: str, principal: Principal) -> Collected:
        collected = await self._store.collect(hold_id, principal.key, self._clock.now_ms())
        if collected is None:
            raise UnknownHold("You have no held call with this id.", next_step="Use the hold id you were given.")
        return collected

    def _still_open(self, held: Invocation) -> Held:
        """How an open hold stands; once it is approved nobody but the record can say that nothing has been done."""
        hold, entry = held.hold, self._shelf.current.entries.get(held.tool)
        expires_at_ms = hold.expires_at_ms if hold else 0
        left_s = max(0, math.ceil((expires_at_ms - self._clock.now_ms()) / 1000))
        stands = {
            "approved": "has been approved and runs as soon as a serving broker takes it. Nothing has been done yet.",
            "dispatching": "has been approved and is under way.",
        }.get(
            held.state,
            f"waits for a person's approval ({hold.reason if hold else 'a rule asks for it'}; rule {held.rule}). "
            f"Nothing has been done yet. It expires in {_spoken(left_s)}.",
        )
        error = Held(
            f"Held: {held.tool} {stands} Hold id {held.call_id}.",
            next_step=f'Go on with other work and call {held_call.NAME} with {{"id": "{held.call_id}"}} later to get '
            "the result; sending the same call again attaches to this hold.",
            promised=entry is not None and entry.tool.output_schema is not None,
            hold_id=held.call_id,
            expires_at_ms=expires_at_ms,
            rule=held.rule,
            state=held.state,
        )
        if held.state == "dispatching":
            error.effect = "unknown"
        return error

    # --------------------------------------------------------------------------------------------------- the runner

    async def run_approved(self, run: Run) -> None:
        """Claim and run what was approved, for ever. One per serving broker; several brokers share the work."""
        async with anyio.create_task_group() as tasks:
            while True:
                try:
                    for invocation in await self._store.invocations(InvocationQuery(states=("approved",), limit=1000)):
                        if invocation.call_id not in self._running:
                            self._running.add(invocation.call_id)
                            tasks.start_soon(self._run_one, invocation, run)
                except RecordUnavailable as error:
                    log.warning("approved calls wait: records cannot be read", reason=error.message)
                    await anyio.sleep(1.0)
                await self._store.changed(NOTICE_S)

    async def _run_one(self, approved: Invocation, run: Run) -> None:
        try:
            await self._claim_and_run(approved, run)
        finally:
            self._running.discard(approved.call_id)

    async def _claim_and_run(self, approved: Invocation, run: Run) -> None:
        entry = self._entry(approved)
        if entry is None:
            return  # its definition lives in another broker's catalog, or nowhere any more: not ours to run
        try:
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
            principal=recorder.unpack(claimed.principal),
            face=approved.face,
            received_at_ms=approved.at_ms,
            request_id=approved.request_id,
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

    async def _still_allowed(self, entry: Entry, call: Call, hold: Hold | None) -> None:
        """Everything that may have changed since the hold: the grant, the scopes, the rules, who has to approve. The
        definition is the same by the way the entry was found, and the quota is still reserved."""
        try:
            await self._recheck(call.principal)
        except Exception as error:  # a failing check of a grant must not let the call run
            raise as_broker_error(error) from error
        verdict = entry.decide(call.principal, call.arguments, self._clock.now_ms())
        if verdict.outcome == "deny":
            raise Forbidden(
                f"Refused: rules changed while {call.name} was held; now {verdict.rule} forbids it: {verdict.reason}",
                next_step="Nothing was done.",
            )
        if verdict.terms is not None and hold is not None and _approvers(verdict.terms) != _approvers(hold):
            raise Forbidden(
                f"Refused: {verdict.rule} now asks other reviewers than those who could approve {call.name}.",
                next_step="Nothing was done. Send the call again if it is still wanted; it will be held anew.",
            )

    async def _record_refused(self, call: Call, error: BrokerError) -> None:
        error.effect = "none"
        try:
            await self._store.finish(recorder.failed(call.id, error, at_ms=self._clock.now_ms(), laps_us=call.laps_us))
        except (RecordUnavailable, Conflict) as fault:
            log.error("the refusal of an approved call is not recorded yet", call_id=call.id, reason=fault.message)

    def _entry(self, approved: Invocation) -> Entry | None:
        entry = self._shelf.current.named(approved.tool)
        return entry if entry is not None and entry.tool.definition == approved.definition else None

    # ------------------------------------------------------------------------------------------------------- reload

    async def withdraw_changed(self, old: Catalog, new: Catalog) -> list[Invocation]:
        """After a reload, withdraw holds of tools whose definition is gone: nobody could run them as shown."""
        kept = {entry.tool.definition for entry in new.everything()}
        gone = {entry.tool.definition for entry in old.everything()} - kept
        withdrawn: list[Invocation] = []
        if not gone:
            return withdrawn
        for invocation in await self._store.invocations(InvocationQuery(states=("held", "approved"), limit=100_000)):
            if invocation.definition in gone:
                try:
                    withdrawn.append(await self._store.review(self._void(invocation)))
                except Conflict:
                    log.info("decided while it was being withdrawn", call_id=invocation.call_id)
        return withdrawn

    def _void(self, invocation: Invocation) -> Review:
        return Review(
            call_id=invocation.call_id,
            decision="withdraw",
            reviewer="broker",
            reason=f"{invocation.tool} changed or was removed while the call was held",
            at_ms=self._clock.now_ms(),
            via="reload",
        )


def _approvers(terms: HoldTerms | Hold) -> tuple[frozenset[str], frozenset[str]]:
    return frozenset(terms.scopes), frozenset(terms.groups)


def name_of(principal: Principal) -> str:
    """How a person stands in records: user (or agent) and who vouches for the name."""
    return (
        f"{principal.user or principal.agent}@{principal.issuer}"
        if principal.issuer
        else principal.user or principal.agent
    )


def _ended(collected: Collected) -> Answer | None:
    """The answer of a held call that ended with one; None while it is open. Raises how it ended otherwise."""
    invocation = collected.invocation
    if collected.result:
        return Answer.from_result(orjson.loads(collected.result), status=invocation.backend_status)
    ended = _ENDINGS.get(invocation.state)
    if ended is None:
        return None
    raise ended(invocation)


def _denied(invocation: Invocation) -> BrokerError:
    hold = invocation.hold
    words = f": {hold.review_reason}" if hold and hold.review_reason else "."
    return Denied(
        f"Refused: {hold.reviewer if hold else 'the reviewer'} denied {invocation.tool} (hold {invocation.call_id})"
        f"{words} Nothing was done.".replace("..", "."),
        next_step="Do not send the same call again; change the request or ask the person you work for.",
        **_facts(invocation),
    )


def _expired(invocation: Invocation) -> BrokerError:
    return Expired(
        f"Refused: nobody decided on {invocation.tool} in time (hold {invocation.call_id}). Nothing was done.",
        next_step="Send the call again if it is still wanted; it will be held anew.",
        **_facts(invocation),
    )


def _withdrawn(invocation: Invocation) -> BrokerError:
    why = invocation.hold.review_reason if invocation.hold else ""
    return Withdrawn(
        f"Refused: the held call of {invocation.tool} was withdrawn (hold {invocation.call_id}): {why}. "
        "Nothing was done.",
        next_step="Ask for the tool list again and send a new call if it is still wanted.",
        **_facts(invocation),
    )


def _failed(invocation: Invocation) -> BrokerError:
    error = BackendError(invocation.message or f"{invocation.tool} failed.", **_facts(invocation))
    error.effect = invocation.effect
    return error


def _unknown(invocation: Invocation) -> BrokerError:
    return OutcomeUnknown(
        invocation.message
        or f"{invocation.tool} was sent, then the broker was interrupted; whether it was done is unknown.",
        next_step="Check before you try again." if not invocation.message else "",
        **_facts(invocation),
    )


def _delivered(invocation: Invocation) -> BrokerError:
    return UnknownHold(
        f"{invocation.tool} ran and {invocation.state}; its result is no longer kept (hold {invocation.call_id}).",
        next_step="The record of the call remains.",
        **_facts(invocation),
    )


_ENDINGS: Mapping[str, Callable[[Invocation], BrokerError]] = {
    "rejected": _denied,
    "expired": _expired,
    "withdrawn": _withdrawn,
    "failed": _failed,
    "outcome_unknown": _unknown,
    "succeeded": _delivered,
}


def _facts(invocation: Invocation) -> dict[str, Any]:
    facts: dict[str, Any] = {"hold_id": invocation.call_id, "state": invocation.state}
    if invocation.hold and invocation.hold.reviewer:
        facts["reviewer"] = invocation.hold.reviewer
    if invocation.code:
        facts["cause"] = invocation.code
    return facts


def _spoken(seconds: int) -> str:
    for unit, size in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= 2 * size - size // 2:
            return f"{round(seconds / size)} {unit}s"
    return f"{seconds} seconds"
