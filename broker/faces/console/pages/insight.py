"""How deciding goes: calls and holds over time, how long people take, how long backends take, what is spent."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from starlette.responses import Response

from broker.errors import Malformed
from broker.faces import bodies
from broker.faces.console.visit import Visit
from broker.faces.deciding import stats
from broker.model.quota import spoken
from broker.model.statistics import CallSums, Judged, Span, Spent

HOUR_MS, DAY_MS = 3_600_000, 86_400_000
SPANS: Mapping[str, tuple[int, int]] = {"day": (HOUR_MS, 24), "week": (6 * HOUR_MS, 28), "month": (DAY_MS, 30)}
REFUSED = ("denied", "rejected", "expired", "withdrawn")
QUOTAS = 8  # charts of spending, the most used first


@dataclass(frozen=True, slots=True)
class Chart:
    """rows: where a slot begins, and a value for each series. unit: of the values, as the page writes it."""

    title: str
    unit: str
    series: tuple[str, ...]
    rows: Sequence[tuple[int, tuple[float, ...]]]

    @property
    def is_empty(self) -> bool:
        return not any(any(values) for _, values in self.rows)


async def show(visit: Visit) -> Response:
    visit.office.must_oversee(visit.who)
    chosen = bodies.query(visit.request, ("span",)).get("span", "week")
    if chosen not in SPANS:
        raise Malformed(f"There is no span {chosen[:40]!r}.", next_step=f"Spans: {', '.join(SPANS)}.")
    span = span_until(visit.office.clock.now_ms(), *SPANS[chosen])
    store, within = visit.office.store, visit.who.tenant
    sums = await store.call_sums(within, span)
    judged = await store.judged(within, span.since_ms)
    spent = [one for one in await store.spent(span.since_ms) if visit.office.counts(visit.who, one.bucket)]
    return await visit.page(
        "insight.html",
        spans=SPANS,
        chosen=chosen,
        looked_from_ms=sums.looked_from_ms if sums.looked_from_ms > span.since_ms else 0,
        charts=[*of_calls(sums, span), *of_holds(judged, span), *of_spending(spent, span)],
        deciding=stats(judged, span.since_ms),
    )


def span_until(now_ms: int, step_ms: int, slots: int) -> Span:
    """Whole slots, the last of which is now's."""
    return Span(now_ms // step_ms * step_ms - (slots - 1) * step_ms, step_ms, slots)


def of_calls(sums: CallSums, span: Span) -> list[Chart]:
    def row(states: Mapping[str, int]) -> tuple[float, ...]:
        refused = sum(states.get(state, 0) for state in REFUSED)
        done, failed = states.get("succeeded", 0), states.get("failed", 0) + states.get("outcome_unknown", 0)
        return done, failed, refused

    times = span.starts()
    called = [(at_ms, row(slot.states)) for at_ms, slot in zip(times, sums.slots, strict=True)]
    took = [(at_ms, (slot.p50_us / 1000, slot.p95_us / 1000)) for at_ms, slot in zip(times, sums.slots, strict=True)]
    return [
        Chart("Calls", "calls", ("succeeded", "failed or unknown", "refused"), called),
        Chart("Time of the backends", "ms", ("half are faster", "19 of 20 are faster"), took),
    ]


def of_holds(judged: Sequence[Judged], span: Span) -> list[Chart]:
    slots: list[Counter[str]] = [Counter() for _ in range(span.slots)]
    times: list[list[int]] = [[] for _ in range(span.slots)]

    def slot_of(at_ms: int) -> int:
        return (at_ms - span.since_ms) // span.step_ms

    for one in judged:
        asked, answered = slot_of(one.at_ms), slot_of(one.decided_at_ms)
        if 0 <= asked < span.slots:
            slots[asked]["held"] += 1
            slots[asked]["expired"] += one.state == "expired"
        if 0 <= answered < span.slots:
            slots[answered]["denied" if one.state == "rejected" else "approved"] += 1
            times[answered].append(one.decided_at_ms - one.at_ms)
    names = ("held", "approved", "denied", "expired")
    counted = [(at_ms, tuple(slot[name] for name in names)) for at_ms, slot in zip(span.starts(), slots, strict=True)]
    waited = [
        (at_ms, (median(took) / 60_000 if took else 0,)) for at_ms, took in zip(span.starts(), times, strict=True)
    ]
    return [Chart("Holds", "calls", names, counted), Chart("Time to decide", "minutes", ("median",), waited)]


def of_spending(spent: Sequence[Spent], span: Span) -> list[Chart]:
    """A chart for each quota, over all its buckets. Windows are as the quota has them."""
    sums: dict[tuple[str, str], Counter[int]] = defaultdict(Counter)
    for one in spent:
        slot = (one.starts_at_ms - span.since_ms) // span.step_ms
        if 0 <= slot < span.slots:
            sums[one.quota, one.unit][slot] += one.used
    charts: list[Chart] = []
    for (quota, unit), used in sorted(sums.items(), key=lambda item: -sum(item[1].values()))[:QUOTAS]:
        rows = [(at_ms, (float(spoken(used[slot], unit)[0]),)) for slot, at_ms in enumerate(span.starts())]
        charts.append(Chart(f"Used of {quota}", spoken(0, unit)[1], ("used",), rows))
    return charts
