"""Holds: how a held call waits, who may decide on it, and how its caller hears of it.

A hold is an invocation in state `held`; nothing about it lives only in memory. Three parties meet over it:

- the caller waits a bounded time, or asks again later, and is told how it ended (`wait`, `answer`);
- the reviewer decides (`review`, and `edit` with other arguments); the store's compare-and-set makes one of several
  deciders win, and counts a quorum by persons;
- the runner (runner.py) runs what was approved, once.

What must not live here: how a decision reaches a person (notifiers, console), and what is written (recorder).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import anyio
import structlog

from broker.catalog.catalog import Catalog, Shelf
from broker.errors import Conflict, Forbidden, Held, StateSpent, UnknownHold
from broker.model.answer import Answer
from broker.model.call import Call
from broker.model.hold import Review
from broker.model.invocation import Invocation, InvocationQuery
from broker.model.principal import Principal
from broker.pipeline import editing, endings, held_call
from broker.pipeline.reviewers import CONSOLE, confirms, lacks, name_of, voter
from broker.pipeline.runner import Run, Runner
from broker.ports import Backend, Clock, Collected, Store

PROGRESS_EVERY_S = 2.0
REASON_CHARS = 1_000

log = structlog.get_logger("broker.desk")


class Desk:
    """runner: runs here what its caller must collect to have it run."""

    def __init__(
        self,
        *,
        shelf: Shelf,
        store: Store,
        clock: Clock,
        backends: Mapping[str, Backend],
        runner: Runner,
        reviewer_scope: str,
        wait_s: float,
    ) -> None:
        self._shelf = shelf
        self._store = store
        self._clock = clock
        self._backends = backends
        self._runner = runner
        self._reviewer_scope = reviewer_scope
        self._wait_s = wait_s

    # ------------------------------------------------------------------------------------------------- the reviewer

    async def review(
        self,
        call_id: str,
        *,
        approve: bool,
        reviewer: Principal,
        reason: str = "",
        via: str,
        arguments: Mapping[str, Any] | None = None,
    ) -> Invocation:
        """One person's decision on one held call. Returns the invocation as decided, or still held while a quorum is
        not complete.

        arguments: approve the call with these instead of its own. They are judged as if the caller had sent them, and
        an act of theirs that would not have come to these reviewers is not theirs to approve.

        Raises UnknownHold; Forbidden when the reviewer is the requester (by person: user, agent or owner under any
        spelling), lacks what the rule asks for or gives no reason where one is asked; Conflict when it was decided or
        expired before, or cannot run as shown any more; for other arguments InvalidArguments and OverQuota, too.
        Refused attempts are recorded.
        """
        invocation = await self._store.invocation(call_id)
        if invocation is None or invocation.hold is None:
            raise UnknownHold(
                f"There is no held call {call_id[:64]!r}.", next_step="`broker holds` lists the open ones."
            )
        objection = self.objection(invocation, reviewer, via=via)
        if not objection and arguments is not None and self.objection(invocation, reviewer):
            objection = "Who confirms a call of one's own agent may not change it."
        if objection:
            await self._store.note(
                "review_refused", {"call_id": call_id, "reviewer": name_of(reviewer), "via": via, "why": objection}
            )
            raise Forbidden(objection, next_step="Another person has to decide.", hold_id=call_id)
        words = " ".join(reason.split())[:REASON_CHARS]
        if not words and ("approve" if approve else "deny") in invocation.hold.reasons:
            what = "An approval" if approve else "A denial"
            raise Forbidden(f"{what} of this call needs a reason.", next_step="Say in one sentence why.")
        decision = Review(
            call_id=call_id,
            decision="approve" if approve else "reject",
            reviewer=name_of(reviewer),
            reason=words,
            at_ms=self._clock.now_ms(),
            via=via,
            persons=tuple(sorted(voter(reviewer))),
            issuer=reviewer.issuer,
        )
        if approve and invocation.state == "held":
            await self._void_if_stale(invocation)
        if arguments is None or not approve:
            return await self._store.review(decision)
        parts = await self._store.held(call_id)
        entry = self._shelf.current.named(invocation.tool)
        edit = editing.judged(
            invocation,
            parts,
            entry,
            arguments,
            decision,
            backends=self._backends,
            now_ms=self._clock.now_ms(),
            mac=self._store.mac,
        )
        return await self._store.edit(edit)

    def objection(self, held: Invocation, reviewer: Principal, *, via: str = "") -> str:
        """Why this person may not decide, or "". via: how; the caller's own user may by the console alone."""
        hold = held.hold
        assert hold is not None, "only of held calls"  # noqa: S101
        if via == CONSOLE and confirms(hold, held, reviewer):
            return ""
        if reviewer.persons & set(hold.persons):
            return "The requester of a call may not review it."
        return lacks(hold, reviewer, self._reviewer_scope, self._clock.now_ms())

    async def _void_if_stale(self, invocation: Invocation) -> None:
        """Withdraw a hold that could not run as it is shown: its tool, or what governs it, is another one here now."""
        why = self._runner.stale(invocation)
        if why:
            await self._store.review(_void(invocation, why, self._clock.now_ms()))
            raise Conflict(
                f"The held call {invocation.call_id} was withdrawn: {why}.",
                next_step="If its caller sends it again, it is judged by what is in force now.",
                state="withdrawn",
                reviewer="broker",
                reviewed_at_ms=self._clock.now_ms(),
            )

    # --------------------------------------------------------------------------------------------------- the caller

    async def wait(self, call: Call, held: Invocation, run: Run) -> Answer:
        """Wait a bounded time for the decision and the result; then say how it stands.

        run: how an approved call that its caller collects is run here. Returns the result of the call that ran. Raises
        Held when it is not decided in time, otherwise how it ended. On cancel: the hold stays; the caller may collect
        it later.
        """
        to_confirm = call.confirming is None and call.can_visit and held.hold is not None and held.hold.confirm
        told_at_once = call.takes_task or to_confirm
        deadline = anyio.current_time() + (self._wait_s if call.may_wait and not told_at_once else 0.0)
        step, next_progress = 0, anyio.current_time()
        while True:
            collected = await self.stands(held.call_id, call.principal, run)
            answer = endings.ended(collected)
            if answer is not None:
                return answer
            now = anyio.current_time()
            if now >= deadline:
                raise self.still_open(collected.invocation)
            if call.progress and now >= next_progress:
                step, next_progress = step + 1, now + PROGRESS_EVERY_S
                await call.progress(step, None, f"Held for approval: {held.hold.reason if held.hold else ''}".strip())
            await self._store.changed(min(PROGRESS_EVERY_S, deadline - now))

    async def stands(self, hold_id: str, principal: Principal, run: Run) -> Collected:
        """A held call as its caller may see it now; one that its caller collects has run then. Raises UnknownHold."""
        collected = await self._collect(hold_id, principal)
        held = collected.invocation
        if held.state == "approved" and held.hold is not None and held.hold.on_collect:
            await self._runner.run_collected(held, principal, run)
            collected = await self._collect(hold_id, principal)
        return collected

    async def confirmed(self, call: Call, run: Run) -> Answer:
        """The caller comes back after its user was shown where to confirm (`call.confirming`). Same errors as `wait`,
        UnknownHold, and StateSpent when it came back with this before."""
        asked = call.confirming
        assert asked is not None, "only calls that come back"  # noqa: S101
        if asked.once and not await self._store.spend(asked.once, asked.until_ms):
            raise StateSpent(
                f"Refused: this requestState of {call.name} has been used already. Nothing was done.",
                next_step="Call again from the beginning.",
            )
        held = (await self._collect(asked.hold_id, call.principal)).invocation
        if asked.declined and held.state in ("held", "approved"):
            await self._withdraw(held, call)
        return await self.wait(call, held, run)

    async def _withdraw(self, held: Invocation, call: Call) -> None:
        """Raises Conflict."""
        await self._store.review(
            Review(
                call_id=held.call_id,
                decision="withdraw",
                reviewer=name_of(call.principal),
                reason="withdrawn by the caller",
                at_ms=self._clock.now_ms(),
                via=call.face,
            )
        )

    async def answer(self, call: Call, run: Run) -> Answer:
        """`broker_held_call`: the result of a held call, or how it stands; without an id, the caller's open holds. Same
        errors as `wait`; UnknownHold."""
        hold_id, withdraw = held_call.read(call.arguments)
        if not hold_id:
            return held_call.listing(await self._open_of(call.principal), self._clock.now_ms())
        collected = await self._collect(hold_id, call.principal)
        if withdraw and collected.invocation.state in ("held", "approved"):
            await self._withdraw(collected.invocation, call)
            collected = await self._collect(hold_id, call.principal)
        answer = endings.ended(collected)
        return held_call.as_tool_answer(
            answer if answer is not None else await self.wait(call, collected.invocation, run)
        )

    async def _open_of(self, principal: Principal) -> list[Invocation]:
        query = InvocationQuery(
            states=("held", "approved", "dispatching"),
            principal_key=principal.key,
            held_only=True,
            limit=held_call.LISTED_HOLDS,
        )
        return await self._store.invocations(query)

    async def _collect(self, hold_id: str, principal: Principal) -> Collected:
        collected = await self._store.collect(hold_id, principal.key, self._clock.now_ms())
        if collected is None:
            raise UnknownHold("You have no held call with this id.", next_step="Use the hold id you were given.")
        return collected

    def still_open(self, held: Invocation) -> Held:
        """How an open hold stands; once it is approved nobody but the record can say that nothing has been done."""
        hold, entry = held.hold, self._shelf.current.entries.get(held.tool)
        expires_at_ms = hold.expires_at_ms if hold else 0
        left_s = max(0, math.ceil((expires_at_ms - self._clock.now_ms()) / 1000))
        given = f" {len(hold.approvals)} of {hold.quorum} approvals are given." if hold and hold.approvals else ""
        stands = {
            "approved": "has been approved and runs as soon as a serving broker takes it. Nothing has been done yet.",
            "dispatching": "has been approved and is under way.",
        }.get(
            held.state,
            f"waits for a person's approval ({hold.reason if hold else 'a rule asks for it'}; rule {held.rule}).{given}"
            f" Nothing has been done yet. It expires in {endings.spoken(left_s)}.",
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
            **({"confirm": True} if held.state == "held" and hold and hold.confirm else {}),
        )
        if held.state == "dispatching":
            error.effect = "unknown"
        return error

    # ------------------------------------------------------------------------------------------------------- reload

    async def withdraw_changed(self, old: Catalog, new: Catalog) -> list[Invocation]:
        """After a reload, withdraw holds of tools whose definition, or what governs them, is gone: nobody could run
        them as they were shown and under the rules that held them."""
        kept = {(entry.tool.definition, entry.policy) for entry in new.everything()}
        gone = {(entry.tool.definition, entry.policy) for entry in old.everything()} - kept
        withdrawn: list[Invocation] = []
        if not gone:
            return withdrawn
        for invocation in await self._store.invocations(InvocationQuery(states=("held", "approved"), limit=100_000)):
            if invocation.hold is not None and (invocation.definition, invocation.hold.policy) in gone:
                why = self._runner.stale(invocation) or f"{invocation.tool} was removed while the call was held"
                try:
                    withdrawn.append(
                        await self._store.review(_void(invocation, why, self._clock.now_ms(), via="reload"))
                    )
                except Conflict:
                    log.info("decided while it was being withdrawn", call_id=invocation.call_id)
        return withdrawn


def _void(invocation: Invocation, why: str, at_ms: int, *, via: str = "") -> Review:
    return Review(call_id=invocation.call_id, decision="withdraw", reviewer="broker", reason=why, at_ms=at_ms, via=via)
