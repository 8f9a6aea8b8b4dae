"""All kinds of quotas of the store against a reference that keeps every unit of every call: never apart, whatever
happens to calls and clock."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import sqlite_utils
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from broker.model.hold import Review
from broker.model.invocation import Admission
from broker.model.quota import Charge, QuotaKind
from broker.stores.sqlite import admission, hold, outcome
from broker.stores.sqlite.database import connect
from broker.stores.sqlite.ledger import Ledger
from broker.stores.sqlite.schema import MIGRATIONS
from broker.stores.sqlite.seal import Seal
from broker.stores.sqlite.transaction import Transaction
from tests.records import HOUR, NOW, concurrency, cost, count, held_intent, intent, rate
from tests.records import outcome as ended

LIMIT, WINDOW = 6, 1000
KINDS: tuple[QuotaKind, ...] = ("rate", "count", "cost", "concurrency")


class Reference:
    """Who has what: rate as a list of times, the others as call -> amount in each window."""

    def __init__(self) -> None:
        self.units: list[int] = []
        self.taken: dict[tuple[str, int], dict[str, int]] = {}

    def window(self, kind: str, now: int) -> int:
        """The calendar window of now, or a later one that was entered and is not over."""
        if kind == "concurrency":
            return 0
        entered = [starts for one, starts in self.taken if one == kind and starts + WINDOW > now]
        return max([now // WINDOW * WINDOW, *entered])

    def left(self, kind: str, now: int) -> int:
        if kind == "rate":
            at = max([now, *self.units])
            return LIMIT - sum(unit > at - WINDOW for unit in self.units)
        # A backend may report more than was reserved: then nothing is left, not less than nothing.
        return max(0, LIMIT - sum(self.taken.get((kind, self.window(kind, now)), {}).values()))

    def short(self, wanted: dict[str, int], now: int) -> str:
        return next((kind for kind, amount in wanted.items() if amount > self.left(kind, now)), "")

    def take(self, call: str, wanted: dict[str, int], now: int) -> None:
        for kind, amount in wanted.items():
            if kind == "rate":
                self.units += [max([now, *self.units])] * amount
            else:
                self.taken.setdefault((kind, self.window(kind, now)), {})[call] = amount

    def change(self, call: str, kind: str, amount: int) -> None:
        for (one, _), calls in self.taken.items():
            if one == kind and call in calls:
                calls[call] = amount


def charge(kind: QuotaKind, amount: int, now: int) -> Charge:
    starts = now // WINDOW * WINDOW
    if kind == "rate":
        return rate(LIMIT, WINDOW, amount=amount)
    if kind == "concurrency":
        return concurrency(LIMIT, amount=amount)
    if kind == "count":
        return count(LIMIT, amount=amount, starts_at_ms=starts, resets_at_ms=starts + WINDOW)
    return cost(LIMIT, amount, starts_at_ms=starts, resets_at_ms=starts + WINDOW)


class Quotas(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()
        path = Path(self.folder.name, "broker.db")
        path.touch()
        self.db = connect(path)
        self.db.execute("pragma synchronous = off")
        self.db.row_factory = None
        MIGRATIONS.apply(sqlite_utils.Database(self.db))
        self.tx = Transaction(self.db, Ledger(self.db, "chain", lambda _: None), Seal(path.with_suffix(".key")), 1000)
        self.now = NOW // WINDOW * WINDOW
        self.reference = Reference()
        self.running: list[str] = []
        self.held: dict[str, dict[str, int]] = {}  # call -> what it takes when it runs

    def teardown(self) -> None:
        self.db.close()
        self.folder.cleanup()

    @rule(step=st.integers(-1500, 1500))
    def the_clock_jumps(self, step: int) -> None:
        self.now += step

    @rule(
        wanted=st.dictionaries(st.sampled_from(KINDS), st.integers(1, LIMIT + 1), min_size=1),
        waits=st.booleans(),
    )
    def a_call_asks(self, wanted: dict[QuotaKind, int], waits: bool) -> None:
        charges = tuple(charge(kind, amount, self.now) for kind, amount in wanted.items())
        arguments = {"n": self.db.total_changes}  # never those of another hold
        make = held_intent if waits else intent
        one = make(at_ms=self.now, charges=charges, arguments=arguments)
        told: Admission = admission.admit(self.tx, one)
        now_wanted = {kind: amount for kind, amount in wanted.items() if not (waits and kind == "concurrency")}
        short = self.reference.short({**now_wanted}, self.now)
        assert (told.over.kind if told.over else "") == short
        if told.over:
            assert told.over.left == self.reference.left(short, self.now)
            return
        self.reference.take(one.call_id, {**now_wanted}, self.now)
        for state in told.quotas:
            assert state.left == self.reference.left(state.kind, self.now)
        if waits:
            self.held[one.call_id] = {kind: amount for kind, amount in wanted.items() if kind == "concurrency"}
        else:
            self.running.append(one.call_id)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), effect=st.sampled_from(("none", "done", "unknown", "lost")), spent=st.integers(-1, 9))
    def a_call_ends(self, data: st.DataObject, effect: str, spent: int) -> None:
        call = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        reported = {"EUR": spent} if spent >= 0 and effect == "done" else {}
        if effect == "lost":
            outcome.lose(self.tx, (call, self.now))
        else:
            state = {"none": "failed", "done": "succeeded", "unknown": "outcome_unknown"}[effect]
            outcome.finish(self.tx, ended(call, at_ms=self.now, state=state, effect=effect, spent=reported))
        self.reference.change(call, "concurrency", 0)
        if effect == "none":
            self.reference.change(call, "cost", 0)
        elif reported:
            self.reference.change(call, "cost", spent)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), decision=st.sampled_from(("approve", "reject", "withdraw")))
    def a_person_decides(self, data: st.DataObject, decision: str) -> None:
        call = data.draw(st.sampled_from(sorted(self.held)))
        later = self.held.pop(call)
        at_ms = NOW - 10 * HOUR  # before any hold runs out, whatever the clock says
        hold.review(self.tx, Review(call, decision, "rita", "", at_ms, "test"))  # type: ignore[arg-type]
        if decision == "approve":
            claimed = hold.claim(self.tx, (call, at_ms))
            assert (claimed is None) == (self.reference.short(later, self.now) != "")
            if claimed is not None:
                self.reference.take(call, later, self.now)
                self.running.append(call)
        else:
            self.reference.change(call, "count", 0)
            self.reference.change(call, "cost", 0)

    @invariant()
    def the_tables_hold_what_the_reference_holds(self) -> None:
        rows = self.db.execute(
            "select kind, starts_at_ms, used + reserved from quota_counter where kind <> 'rate'"
        ).fetchall()
        held = {(kind, starts): taken for kind, starts, taken in rows}
        assert held == {key: sum(calls.values()) for key, calls in self.reference.taken.items()}

    @invariant()
    def nobody_reserves_but_open_calls(self) -> None:
        rows = self.db.execute("select distinct call_id from reservation").fetchall()
        waiting = self.db.execute("select call_id from invocation where state in ('held', 'approved')").fetchall()
        assert {call for (call,) in rows} <= {*self.running, *(call for (call,) in waiting)}


TestQuotas = Quotas.TestCase
TestQuotas.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
