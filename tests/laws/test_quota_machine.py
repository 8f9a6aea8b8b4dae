"""All kinds of quotas of the store against a reference that keeps every unit of every call: never apart, whatever
happens to calls and clock."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from broker.model.hold import Review
from broker.model.invocation import Admission
from broker.model.quota import Charge
from broker.stores.sqlite import admission, hold, outcome
from broker.stores.sqlite.database import connect
from broker.stores.sqlite.ledger import Ledger
from broker.stores.sqlite.rows import Rows
from broker.stores.sqlite.schema import MIGRATIONS
from broker.stores.sqlite.seal import Seal
from broker.stores.sqlite.transaction import Transaction
from tests.records import HOUR, NOW, breaker, concurrency, cost, count, held_intent, intent, rate
from tests.records import outcome as ended

LIMIT, WINDOW, COOL = 6, 1000, 700
BREAKERS = ("repeat", "errors")
KINDS = ("rate", "count", "cost", "concurrency", "errors", "repeat 1", "repeat 2")  # the repeats are of two calls


class Reference:
    """Who has what: the sliding kinds as lists of times, the others as call -> amount in each window."""

    def __init__(self) -> None:
        self.units: dict[str, list[int]] = {}  # rate, errors, and each repeated call -> when
        self.taken: dict[tuple[str, int], dict[str, int]] = {}

    def window(self, kind: str, now: int) -> int:
        """The calendar window of now, or a later one that was entered and is not over."""
        if kind == "concurrency":
            return 0
        entered = [starts for one, starts in self.taken if one == kind and starts + WINDOW > now]
        return max([now // WINDOW * WINDOW, *entered])

    def inside(self, kind: str, now: int) -> list[int]:
        units = self.units.get(kind, [])
        return [unit for unit in units if unit > max([now, *units]) - WINDOW]

    def is_open(self, kind: str, now: int) -> bool:
        """Whether a breaker lets nothing through: its last LIMIT units were within a window, the last not long ago."""
        units = self.units.get(kind, [])
        near = len(units) >= LIMIT and units[-LIMIT] > units[-1] - WINDOW
        return near and now < units[-1] + COOL

    def left(self, kind: str, now: int) -> int:
        if kind.startswith(BREAKERS) and self.is_open(kind, now):
            return 0
        if kind.startswith(("rate", *BREAKERS)):
            return max(0, LIMIT - len(self.inside(kind, now)))
        # A backend may report more than was reserved: then nothing is left, not less than nothing.
        return max(0, LIMIT - sum(self.taken.get((kind, self.window(kind, now)), {}).values()))

    def is_short(self, kind: str, amount: int, now: int) -> bool:
        return self.is_open(kind, now) if kind.startswith(BREAKERS) else amount > self.left(kind, now)

    def short(self, wanted: dict[str, int], now: int) -> str:
        return next((kind for kind, amount in wanted.items() if self.is_short(kind, amount, now)), "")

    def add(self, kind: str, amount: int, now: int) -> None:
        units = self.units.setdefault(kind, [])
        units += [max([now, *units])] * amount

    def take(self, call: str, wanted: dict[str, int], now: int) -> None:
        for kind, amount in wanted.items():
            if kind.startswith(("rate", "repeat")):
                self.add(kind, amount, now)
            elif kind != "errors":
                self.taken.setdefault((kind, self.window(kind, now)), {})[call] = amount

    def change(self, call: str, kind: str, amount: int) -> None:
        for (one, _), calls in self.taken.items():
            if one == kind and call in calls:
                calls[call] = amount


def charge(name: str, amount: int, now: int) -> Charge:
    starts = now // WINDOW * WINDOW
    kind, _, which = name.partition(" ")
    if kind in BREAKERS:
        return breaker(kind, LIMIT, WINDOW, COOL, bucket=f"agent=bot,call={which}")
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
        MIGRATIONS.apply(self.db)
        rows, seal = Rows(self.db), Seal(path.with_suffix(".key"))
        self.tx = Transaction(rows, Ledger(rows, "chain", lambda _: None), seal, 1000)
        self.now = NOW // WINDOW * WINDOW
        self.reference = Reference()
        self.running: list[str] = []
        self.watched = set[str]()  # those whose failure counts
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
    def a_call_asks(self, wanted: dict[str, int], waits: bool) -> None:
        wanted = {kind: {"repeat": 1, "errors": 0}.get(kind.split()[0], amount) for kind, amount in wanted.items()}
        charges = tuple(charge(kind, amount, self.now) for kind, amount in wanted.items())
        arguments = {"n": self.db.total_changes}  # never those of another hold
        make = held_intent if waits else intent
        one = make(at_ms=self.now, charges=charges, arguments=arguments)
        told: Admission = admission.admit(self.tx, one)
        now_wanted = {kind: amount for kind, amount in wanted.items() if not (waits and kind == "concurrency")}
        short = self.reference.short({**now_wanted}, self.now)
        assert (told.over.kind if told.over else "") == short.split(" ")[0]
        if told.over:
            assert told.over.left == self.reference.left(short, self.now)
            assert told.over.retry_after_ms > 0 or wanted[short] > LIMIT
            return
        self.reference.take(one.call_id, {**now_wanted}, self.now)
        for kind, state in zip(now_wanted, told.quotas, strict=True):
            # What is told of a breaker that has just been tripped is how many were left, which is none.
            assert state.left == self.reference.left(kind, self.now)
        if waits:
            self.held[one.call_id] = {kind: amount for kind, amount in wanted.items() if kind == "concurrency"}
        else:
            self.running.append(one.call_id)
        if "errors" in wanted:
            self.watched.add(one.call_id)

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
        if call in self.watched and effect in ("none", "unknown"):
            self.reference.add("errors", 1, self.now)
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
            "select kind, starts_at_ms, used + reserved from quota_counter "
            "where kind in ('count', 'cost', 'concurrency')"
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
