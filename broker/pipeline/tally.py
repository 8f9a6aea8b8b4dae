"""What happened to calls, in sums: counted where a decision or an outcome is settled, told when somebody asks.

Counting is a few dictionary steps a call; wording, types and units belong to whoever tells it (faces/metrics.py). No
arguments, no users, no ids: a label is a name of the catalog, an agent, or one of our own words, and of each kind there
are at most LABELS; what is one too many is counted under OTHER. A name nobody knows is never a label, since its sender
chose it; neither is a resource's URI.

Why not prometheus_client, which would do all of this: each increment and each observation takes it a lock and an
object, and a call makes about ten. Measured side by side it costs a call five times what this does, and a tenth of a
second to import.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping
from typing import Literal

from broker.catalog.catalog import Entry
from broker.model.call import Call
from broker.model.invocation import Intent, Outcome

LABELS = 500
OTHER = "(other)"
UNKNOWN = "(unknown)"

# Upper bounds in microseconds: from what a stage of ours takes to what a slow backend does.
BOUNDS_US = (50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
             2_500_000, 5_000_000, 10_000_000, 30_000_000, 60_000_000)  # fmt: skip

Decision = Literal["allow", "hold", "deny", "attach", "replay"]
_DECISIONS: Mapping[str, Decision] = {
    "dispatching": "allow", "held": "hold", "denied": "deny", "attached": "attach", "replayed": "replay",
}  # fmt: skip


class Spread:
    """How long something took: how many times in each of BOUNDS_US and above, and the sum."""

    __slots__ = ("counts", "sum_us")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_US) + 1)
        self.sum_us = 0

    def add(self, took_us: int) -> None:
        self.counts[bisect_left(BOUNDS_US, took_us)] += 1
        self.sum_us += took_us


class Tally:
    """The sums since the process began. Written by the event loop only."""

    def __init__(self) -> None:
        self.decisions = defaultdict[tuple[str, str, str], int](int)  # (tool, decision, code)
        self.rules = defaultdict[tuple[str, str], int](int)  # (rule, decision)
        self.agents = defaultdict[tuple[str, str], int](int)  # (agent, decision)
        self.outcomes = defaultdict[tuple[str, str, str, str], int](int)  # (tool, backend, state, code)
        self.spent = defaultdict[tuple[str, str], int](int)  # (tool, unit)
        self.stages = defaultdict[str, Spread](Spread)
        self.backends = defaultdict[str, Spread](Spread)
        self.turned_away = defaultdict[str, int](int)  # requests that never became a call, by our own word for why
        self._known: dict[str, set[str]] = {"tool": set(), "agent": set(), "rule": set(), "unit": set()}

    def decided(self, call: Call, entry: Entry | None, intent: Intent, state: str) -> None:
        """What was committed for an intent. state: of the Admission."""
        decision, known = _DECISIONS[state], self._known
        code = intent.refusal[0] if intent.refusal else "over_quota" if decision == "deny" else ""
        rule, agent = intent.called.rule, intent.caller.agent
        if rule not in known["rule"]:
            rule = self.label("rule", rule)
        if agent not in known["agent"]:
            agent = self.label("agent", agent)
        self.decisions[self._tool(call, entry), decision, code] += 1
        self.rules[rule, decision] += 1
        self.agents[agent, decision] += 1
        if decision == "deny":
            self._time(call)

    def ended(self, call: Call, entry: Entry, outcome: Outcome, recorded_us: int) -> None:
        """How a dispatched call ended. recorded_us: what it took to commit that."""
        tool, backend, laps = self._tool(call, entry), entry.tool.backend, call.laps_us
        self.outcomes[tool, backend, outcome.state, outcome.code] += 1
        self._time(call)
        # Twice as `Spread.add`, whose call would cost more than its work.
        spread = self.stages["record"]
        spread.counts[bisect_left(BOUNDS_US, recorded_us)] += 1
        spread.sum_us += recorded_us
        if "dispatch" in laps:
            spread, took_us = self.backends[backend], laps["dispatch"]
            spread.counts[bisect_left(BOUNDS_US, took_us)] += 1
            spread.sum_us += took_us
        if outcome.spent:
            for unit, amount in outcome.spent.items():
                self.spent[tool, self.label("unit", unit)] += amount

    def turn_away(self, kind: str) -> None:
        self.turned_away[kind] += 1

    def _time(self, call: Call) -> None:
        stages = self.stages
        for stage, took_us in call.laps_us.items():  # as above
            spread = stages[stage]
            spread.counts[bisect_left(BOUNDS_US, took_us)] += 1
            spread.sum_us += took_us

    def _tool(self, call: Call, entry: Entry | None) -> str:
        if call.asked != "tool":
            return f"({call.asked})"
        if entry is None:
            return UNKNOWN
        name = entry.tool.name
        return name if name in self._known["tool"] else self.label("tool", name)

    def label(self, kind: str, value: str) -> str:
        known = self._known[kind]
        if value in known:
            return value
        if len(known) >= LABELS:
            return OTHER
        known.add(value)
        return value
