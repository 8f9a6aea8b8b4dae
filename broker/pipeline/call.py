"""The sentence: what happens to every call, in this order, with no way round it.

    authenticate → resolve → validate → authorise → admit (meter, hold, record the intent) → dispatch → inspect → record

Faces make a `Call` and await `Pipeline.perform`; a refusal or a failure is raised as a BrokerError, and by then it is
recorded. The order is policy: an unknown tool is told from nothing else before anything is looked at; a person is never
asked about a call its caller may not make (scope, rules), nor about one its quota has no room for.

Why one function and not middleware: the order can be read, a stage cannot be forgotten or skipped, and a call costs no
closures. Once a commit is asked for it may happen, so a caller that goes away at that moment must not leave an intent
without an outcome: the store's verbs end only when that is settled (ports.Store). Why a failure to record is raised
instead of the refusal it would have recorded: no answer without a record.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from time import perf_counter_ns
from typing import Any

import anyio
import anyio.lowlevel
import structlog

from broker.catalog.catalog import Catalog, Entry, PartsListed, Shelf
from broker.errors import (
    BrokerError,
    Conflict,
    Forbidden,
    InsufficientScope,
    InvalidArguments,
    Overloaded,
    RecordUnavailable,
    StateSpent,
    TaskRequired,
    Unauthenticated,
    UnknownTool,
)
from broker.model.answer import Answer
from broker.model.back import Round
from broker.model.call import PREVIEW_FACE, TASK_META, Call
from broker.model.grant import GrantUse
from broker.model.hold import HoldTerms
from broker.model.invocation import Admission, Intent, Invocation, Outcome
from broker.model.part import RESOURCE, Part
from broker.model.principal import Principal
from broker.model.quota import RESERVING
from broker.model.sketch import Sketch
from broker.model.task import EXTENSION
from broker.pipeline import held_call, limits, preview, recorder, replay
from broker.pipeline.apart import Apart, cancelled, underway
from broker.pipeline.desk import Desk
from broker.pipeline.dispatch import (
    GRACE_S,
    Patience,
    as_broker_error,
    dispatched,
    inspected,
    overdue,
    patience_s,
    sketch,
)
from broker.pipeline.granting import Grants
from broker.pipeline.tally import Tally
from broker.pipeline.tasks import Tasks
from broker.policies.rule import Verdict
from broker.ports import Backend, Clock, Store, Watch

LATE_EVERY_S = 0.5
LISTED = 64  # listings of callers that are kept
MOST_TASK_CHARACTERS = 128

log = structlog.get_logger("broker.call")


class Pipeline:
    """backends: looked up at each dispatch, so a reload may change the mapping. calls: most calls at once. results_ms:
    how long results are kept that nobody collects."""

    def __init__(
        self,
        *,
        shelf: Shelf,
        store: Store,
        desk: Desk,
        grants: Grants,
        backends: Mapping[str, Backend],
        clock: Clock,
        calls: int,
        results_ms: int,
    ) -> None:
        self._shelf = shelf
        self._store = store
        self._desk = desk
        self._grants = grants
        self._backends = backends
        self._clock = clock
        self._room = calls
        self._patience = Patience()
        self._listed: tuple[Catalog, dict[int, tuple[tuple[Entry, ...], tuple[Mapping[str, Any], ...]]]]
        self._listed = shelf.current, {}  # what the entries of this catalog's listings say
        self._unrecorded: list[Outcome] = []
        self._apart = Apart()
        self.tasks = Tasks(
            store=store,
            desk=desk,
            clock=clock,
            apart=self._apart,
            perform=self.perform,
            run=self.run_held,
            results_ms=results_ms,
        )
        self.tally = Tally()
        self.watch: Watch | None = None  # set by the assembly where calls are traced

    # ----------------------------------------------------------------------------------------- what a caller may see

    def listing(self, principal: Principal) -> tuple[Mapping[str, Any], ...]:
        """The tools/list entries of what this caller may use, in stable order; the same object while known."""
        catalog = self._shelf.current
        entries = catalog.listing(principal)
        of, known = self._listed
        if of is not catalog:
            known = {}
            self._listed = catalog, known
        found = known.get(id(entries))
        if found is not None and found[0] is entries:
            return found[1]
        listed = tuple(entry.tool.listed for entry in entries)
        if catalog.may_hold:
            listed = (*listed, held_call.LISTED)
        if any(entry.meters for entry in entries):
            listed = (*listed, limits.LISTED)
        while len(known) >= LISTED:
            known.pop(next(iter(known)))
        known[id(entries)] = entries, listed
        return listed

    def missing_scopes(self, name: str, principal: Principal) -> frozenset[str]:
        """Scopes the caller lacks for a tool that is visible to it. Empty for every other tool, known or not.

        For the 403 challenge of HTTP faces. A face that challenges still sends the call through `perform`, which
        refuses it with InsufficientScope and records that.
        """
        entry = self._shelf.current.resolve(name, principal)
        return frozenset() if entry is None else entry.tool.scopes - principal.scopes

    def parts(self, principal: Principal) -> PartsListed:
        """The resources/list, resources/templates/list and prompts/list entries of what this caller may use."""
        catalog = self._shelf.current
        parts = catalog.listed_parts(principal)
        if not any(entry.meters for entry in catalog.listing(principal)):
            return parts
        others = tuple(one for one in parts.resources if one["uri"] != limits.URI)
        return replace(parts, resources=(*others, limits.LISTED_RESOURCE))

    def is_told(self, uri: str, principal: Principal, backend: str, natural: str) -> bool:
        """Whether a caller who follows `uri` is to hear that this backend updated `natural`: it is that resource, and
        the caller could still follow it now."""
        entry = self._shelf.current.resolve_part(RESOURCE + uri, principal, expanded=True)
        if entry is None or entry.tool.backend != backend or principal.is_expired(self._clock.now_ms()):
            return False
        is_it = isinstance(part := entry.tool.action, Part) and uri.removeprefix(part.prefix) == natural
        return is_it and entry.decide(principal, {"uri": uri}, self._clock.now_ms()).outcome == "allow"

    def lacks_scopes(self, call: Call) -> bool:
        """As `missing_scopes`, for a call of any kind that a face has made but not sent yet."""
        entry = _meant(self._shelf.current, call)
        return entry is not None and not entry.tool.scopes <= call.principal.scopes

    def input_schema(self, name: str) -> Mapping[str, Any] | None:
        entry = self._shelf.current.entries.get(name)
        if entry is not None:
            return entry.tool.input_schema
        return {held_call.NAME: held_call.INPUT, limits.NAME: limits.INPUT}.get(name)

    # -------------------------------------------------------------------------------------------------- the sentence

    async def perform(self, call: Call) -> Answer:
        """Carry out one call, or say why not. Raises BrokerError only; every end is recorded before it is told.

        On cancel: a call not yet dispatched is recorded as failed with effect none; one under way as outcome_unknown,
        but one with an idempotency key goes on and keeps its answer for whoever asks again.
        """
        if self._room <= self._apart.alone:
            raise Overloaded(
                "Refused: the broker has too many calls at once (limit: calls).",
                next_step="Try again in a second.",
                limit="calls",
            )
        self._room -= 1
        if self.watch is not None:
            self.watch.began(call)
        try:
            now_ms = self._clock.now_ms()
            caller = call.principal
            if caller.expires_at_ms is not None and now_ms >= caller.expires_at_ms:  # its face has verified all else
                raise Unauthenticated("Refused: the access token has expired.", next_step="Sign in again.")
            if call.name == held_call.NAME:
                return await self._desk.answer(call, self.run_held)
            if call.confirming is not None:
                return await self._desk.confirmed(call, self.run_held)
            if call.name in (limits.NAME, limits.RESOURCE_NAME) and not call.aside:
                return await self._limits(call)
            if call.inquiry is not None:
                return await self._inquire(call)
            laps, began = call.laps_us, perf_counter_ns()
            entry = _meant(self._shelf.current, call)
            resolved = perf_counter_ns()
            laps["resolve"] = (resolved - began) // 1000
            if entry is None:
                raise await self._refuse(call, None, _unknown(call))
            invalid = _invalid(call, entry)
            validated = perf_counter_ns()
            laps["validate"] = (validated - resolved) // 1000
            if invalid is not None:
                raise await self._refuse(call, entry, invalid)
            verdict = entry.decide(caller, call.arguments, now_ms)
            if verdict.outcome == "hold":
                verdict = _holdable(call, verdict)
            authorised = perf_counter_ns()
            laps["authorise"] = (authorised - validated) // 1000
            if verdict.outcome == "deny":
                raise await self._refuse(call, entry, _forbidden(call, verdict), rule=verdict.rule)
            self._nothing_unrecorded()
            if verdict.outcome == "hold":
                intent = await self._to_hold_with_preview(call, entry, verdict)
            else:
                intent = self._intent(call, entry, verdict, now_ms)
            admission = await self._store.admit(intent)
            laps["admit"] = (perf_counter_ns() - authorised) // 1000
            self._told(call, entry, intent, admission.state)
            if admission.over is not None:
                raise limits.refusal(call.name, admission.over)
            if admission.state == "replayed":
                return await self._replay(call, entry, _held(admission))
            if admission.state != "dispatching":
                return await self._desk.wait(call, _held(admission), self.run_held)
            for state in admission.quotas:
                if state.kind in RESERVING:
                    break
            else:
                call.is_plain = True
            call.sent_as = admission.sent_as
            if intent.key or entry.derivation is not None or (call.takes_task and entry.tool.long is not None):
                answer = await self._run_apart(entry, call)
            else:
                answer = await self._run(entry, call, keep_result=False)
            return limits.beside(answer, admission.quotas) if admission.quotas else answer
        finally:
            self._room += 1

    async def _limits(self, call: Call) -> Answer:
        """What is left of the quotas that apply to this caller: `broker_limits`, or the resource of the same."""
        now_ms, catalog = self._clock.now_ms(), self._shelf.current
        entries = (*catalog.listing(call.principal), *catalog.usable_parts(call.principal))
        states = await self._store.left(limits.charges(entries, call.principal, call.task, now_ms), now_ms)
        if call.name == limits.NAME:
            return limits.answer(call.arguments, states)
        return limits.as_resource(limits.answer({}, states))

    async def _replay(self, call: Call, entry: Entry, known: Invocation) -> Answer:
        """The same call again, by its idempotency key: never dispatched, whatever became of the first."""
        if known.hold is not None:
            return replay.of_call(await self._desk.wait(call, known, self.run_held), known)
        if known.state == "dispatching" and call.takes_task and entry.tool.long is not None:
            raise underway(call.name, known.call_id)
        return await replay.replay(known, self._store, wait_s=entry.tool.timeout_s + GRACE_S)

    async def outlive(self) -> None:
        """Carry on with calls whose callers have gone away, for ever. One per pipeline."""
        await self._apart.outlive()

    async def _run_apart(self, entry: Entry, call: Call) -> Answer:
        """`_run` for a caller that may go away and ask again: by its key, or for the task."""

        async def run() -> Answer:
            answer = await self._run(entry, call, keep_result=True)
            if call.takes_task and not answer.is_final:
                self.tasks.asked(call, answer)
            return answer

        long = entry.tool.long if call.takes_task else None
        return await self._apart.run(call, run, within_s=math.inf if long is None else long.after_s)

    async def _inquire(self, call: Call) -> Answer:
        """Ask the tool's server about a task that it began: recorded as a call is, and nothing is charged again."""
        entry = _meant(self._shelf.current, call)
        if entry is None:
            raise await self._refuse(call, None, _unknown(call))
        if missing := sorted(entry.tool.scopes - call.principal.scopes):
            raise await self._refuse(call, entry, _lacking(call, missing), rule="default")
        self._nothing_unrecorded()
        at_ms, version = self._now(), self._shelf.current.version
        intent = recorder.intent(call, entry, at_ms=at_ms, policy_version=version, mac=self._store.mac)
        self._told(call, entry, intent, (await self._store.admit(intent)).state)
        return await self._run(entry, call, keep_result=False)

    async def run_held(self, entry: Entry, call: Call) -> Answer:
        """Dispatch a claimed hold; its result is kept for whoever asks. For the desk's runner only."""
        if self.watch is not None:
            self.watch.resumed(call)
        return await self._run(entry, call, keep_result=True)

    def _nothing_unrecorded(self) -> None:
        """Raises RecordUnavailable while the outcome of another call could not be written: nothing new is sent then."""
        if self._unrecorded:
            raise RecordUnavailable(
                "Refused: the outcome of an earlier call could not be recorded yet, so nothing new is sent.",
                next_step="Try again in a few seconds.",
            )

    def _intent(
        self,
        call: Call,
        entry: Entry,
        verdict: Verdict,
        now_ms: int,
        *,
        terms: HoldTerms | None = None,
        sketch: Sketch | None = None,
        grants: tuple[GrantUse, ...] = (),
    ) -> Intent:
        """What is to be committed for a call that may be made or, with terms, held, as things stand now."""
        return recorder.intent(
            call,
            entry,
            at_ms=now_ms,
            policy_version=self._shelf.current.version,
            rule=verdict.rule,
            charges=entry.charges(call.principal, call.arguments, now_ms, call.task) if entry.meters else (),
            terms=terms,
            key=replay.key_of(call) if call.meta else "",
            sketch=sketch,
            mac=self._store.mac,
            derived=None if entry.derivation is None else replay.derived_of(call, entry),
            grants=grants,
        )

    async def _to_hold(self, call: Call, entry: Entry, verdict: Verdict) -> Intent:
        """The same for a call that a person is asked about."""
        now_ms = self._clock.now_ms()
        shown = await self._sketch(call, entry, verdict)
        grants = await self._grants.uses(call, entry, verdict, now_ms)
        terms = _terms(entry, verdict, now_ms)
        return self._intent(call, entry, verdict, now_ms, terms=terms, sketch=shown, grants=grants)

    async def _to_hold_with_preview(self, call: Call, entry: Entry, verdict: Verdict) -> Intent:
        """The same; when it is going to be asked about anew, as far as one can say before it is committed, with what a
        safe call of another tool showed meanwhile."""
        intent = await self._to_hold(call, entry, verdict)
        if entry.preview is None or intent.grants or not await self._store.is_new(intent):
            return intent
        shown, previewed = await preview.made(entry, call, self._shelf, self.perform)
        return replace(await self._to_hold(call, entry, verdict), preview=shown, previewed=previewed)

    async def _sketch(self, call: Call, entry: Entry, verdict: Verdict) -> Sketch:
        """What a reviewer will be shown. What cannot be sent is refused: no person is asked about it."""
        try:
            return sketch(entry, call, self._backends)
        except BrokerError as refusal:
            raise await self._refuse(call, entry, refusal, rule=verdict.rule) from None

    async def _run(self, entry: Entry, call: Call, *, keep_result: bool) -> Answer:
        """Dispatch an admitted call and record how it ended, whatever happens.

        When that cannot be recorded after the effect, the caller is told the effect, the intent stays, and no further
        call is admitted until the outcome is written (`settle_late` keeps trying).
        """
        began = perf_counter_ns()
        begun = left = None
        try:
            if call.in_scope:
                await anyio.lowlevel.checkpoint_if_cancelled()
            if call.round is not None:
                await self._spend(call.round, call)
            begun = self._patience.begin(patience_s(call, entry.tool))
            end: Answer | BrokerError = inspected(entry, call, await dispatched(entry, call, self._backends))
        except anyio.get_cancelled_exc_class() as gone:
            if begun is not None and self._patience.is_over(begun):
                end = overdue(entry.tool)
            else:
                left, end = gone, cancelled(call, begun=begun is not None)
        except Exception as cause:  # the one place where a call's failure, ours or a backend's, becomes its outcome
            end = as_broker_error(cause)
            if end is not cause:
                end.__cause__ = cause
                log.exception("a call failed inside the broker", call_id=call.id, tool=call.name)
        finally:
            if begun is not None:
                self._patience.end(begun)
        ended, laps = perf_counter_ns(), call.laps_us
        laps["dispatch"] = laps.get("dispatch", 0) + (ended - began) // 1000
        outcome = recorder.outcome(call, end, at_ms=self._clock.now_ms(), keep_result=keep_result)
        try:
            await self._store.finish(outcome)
        except Conflict:
            # Settled by a sweep that took this process for dead: the record already says what is known.
            log.warning("a call was settled by somebody else", call_id=call.id)
        except RecordUnavailable as fault:
            self._unrecorded.append(outcome)
            log.error("an outcome waits to be recorded", call_id=call.id, reason=fault.message)
            raise _not_recorded(outcome) from fault
        finally:  # it ended so, whether that could be written or not
            recorded_us = (perf_counter_ns() - ended) // 1000
            self.tally.ended(call, entry, outcome, recorded_us)
            if self.watch is not None:
                self.watch.ended(call, entry.tool, outcome, recorded_us)
        if isinstance(end, Answer):
            return end
        try:
            raise left or end
        finally:
            del left, end  # or they would wait for the collector, knowing this frame

    async def _spend(self, round_: Round, call: Call) -> None:
        """The state that a caller sends along may be used once: what it stands for would be done again."""
        if not round_.once or await self._store.spend(round_.once, round_.until_ms):
            return
        raise StateSpent(
            f"Refused: this requestState of {call.name} has been used already. Nothing was done.",
            next_step="Call again from the beginning.",
        )

    # ------------------------------------------------------------------------------------------------------- records

    async def _refuse(self, call: Call, entry: Entry | None, refusal: BrokerError, *, rule: str = "") -> BrokerError:
        """Record a refusal and hand it back to be raised. Raises RecordUnavailable when it cannot be recorded."""
        intent = recorder.intent(
            call,
            entry,
            at_ms=self._now(),
            policy_version=self._shelf.current.version,
            rule=rule,
            refusal=refusal,
            mac=self._store.mac,
        )
        await self._store.admit(intent)
        self._told(call, entry, intent, "denied")
        return refusal

    def _told(self, call: Call, entry: Entry | None, intent: Intent, state: str) -> None:
        self.tally.decided(call, entry, intent, state)
        if self.watch is not None:
            self.watch.decided(call, None if entry is None else entry.tool, intent, state)

    async def settle_late(self) -> None:
        """Write outcomes that could not be written when their calls ended, for ever. One per pipeline."""
        while True:
            await anyio.sleep(LATE_EVERY_S)
            for outcome in tuple(self._unrecorded):
                try:
                    await self._store.finish(outcome)
                except Conflict:
                    log.warning("a call was settled by somebody else", call_id=outcome.call_id)
                except RecordUnavailable:
                    continue
                self._unrecorded.remove(outcome)  # not before: until it is written nothing new is admitted

    @property
    def room(self) -> int:
        """How many more calls are taken now."""
        return self._room - self._apart.alone

    @property
    def unrecorded(self) -> int:
        """Outcomes that wait to be written; while there are any, `/readyz` is red and nothing is admitted."""
        return len(self._unrecorded)

    def _now(self) -> int:
        return self._clock.now_ms()


def _meant(catalog: Catalog, call: Call) -> Entry | None:
    """What the call names, if it exists for its caller."""
    if call.asked == "tool":
        return catalog.resolve(call.name, call.principal)
    return catalog.resolve_part(call.name, call.principal, expanded=call.completing is None)


def _invalid(call: Call, entry: Entry) -> BrokerError | None:
    """Why this call cannot be made as it was sent; None when it can."""
    if call.meta:
        try:
            replay.key_of(call)
            _check_task(call)
        except InvalidArguments as refusal:
            return refusal
    faults = entry.faults(call.arguments) if call.completing is None else ()  # only part of them is known then
    if faults:
        return InvalidArguments(
            f"Refused: the arguments of {call.name} are not valid: {'; '.join(faults)}.",
            next_step="Correct them and call again; nothing was done.",
            faults=list(faults),
        )
    long = entry.tool.long
    if long is not None and long.required and not call.takes_task and call.face.startswith("mcp-"):
        return TaskRequired(
            f"Refused: {call.name} takes long and runs as a task only, and this client did not declare {EXTENSION}. "
            "Nothing was done.",
            next_step="Call it with a client that takes tasks.",
        )
    return None


def _holdable(call: Call, verdict: Verdict) -> Verdict:
    """The verdict that holds this call, or denies it where it cannot be held."""
    if call.aside or call.face == PREVIEW_FACE:
        reason = "No person is asked about a completion, a subscription or a preview."
    elif call.round is not None:
        reason = "A call that its server has asked about cannot be held; call again from the beginning."
    else:
        return verdict
    return replace(verdict, outcome="deny", reason=reason, terms=None)


def _forbidden(call: Call, verdict: Verdict) -> Forbidden:
    if verdict.missing:
        return _lacking(call, verdict.missing, verdict.rule)
    return Forbidden(
        f"Refused: rule {verdict.rule} forbids this call of {call.name}: {verdict.reason} Nothing was done.",
        next_step="Do not send the same call again.",
        rule=verdict.rule,
    )


def _terms(entry: Entry, verdict: Verdict, now_ms: int) -> HoldTerms | None:
    """Of a call that is to be held: what its rule asks, beginning now, and how its tool runs."""
    terms = verdict.begun(now_ms)
    return replace(terms, on_collect=True) if terms is not None and entry.tool.on_collect else terms


def _unknown(call: Call) -> UnknownTool:
    """The one answer for what is unknown and what is invisible, by what was asked for."""
    kind, name = ("tool", call.name) if call.asked == "tool" else call.name.split(":", 1)
    return UnknownTool(f"Unknown {kind}: {name[:128]}")


def _check_task(call: Call) -> None:
    """Raises InvalidArguments."""
    named = call.meta.get(TASK_META)
    if named is not None and (not isinstance(named, str) or not 0 < len(named) <= MOST_TASK_CHARACTERS):
        raise InvalidArguments(
            f"Refused: `_meta` key {TASK_META} is not a text of 1 to {MOST_TASK_CHARACTERS} characters.",
            next_step="Correct it and call again; nothing was done.",
        )


def _lacking(call: Call, missing: Sequence[str], rule: str = "default") -> InsufficientScope:
    names = " ".join(missing)
    return InsufficientScope(
        f"Refused: {call.name} needs the scope {names}, which this token does not carry. Nothing was done.",
        missing=missing,
        next_step="Ask for a token with this scope, or ask the operator to grant it.",
        rule=rule,
        missing_scopes=list(missing),
    )


def _held(admission: Admission) -> Invocation:
    assert admission.invocation is not None, "a held admission carries its invocation"  # noqa: S101 – the port's promise
    return admission.invocation


def _not_recorded(outcome: Outcome) -> RecordUnavailable:
    error = RecordUnavailable(
        f"The call was sent and ended ({outcome.state}), but that could not be recorded yet.",
        next_step="Do not send it again; the record will follow. Call id " + outcome.call_id + ".",
    )
    error.effect = outcome.effect
    return error
