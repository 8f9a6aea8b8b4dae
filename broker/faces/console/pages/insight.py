"""How deciding goes: calls and holds over time, how long people take, how long backends take, what is spent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median

from starlette.responses import Response

from broker.faces.console.charts import SPANS, Chart, chosen_span, of_spending
from broker.faces.console.visit import Visit
from broker.faces.deciding import stats
from broker.model.statistics import CallSums, Judged, Span

REFUSED = ("denied", "rejected", "expired", "withdrawn")


async def show(visit: Visit) -> Response:
    visit.office.must_oversee(visit.who)
    chosen, span = chosen_span(visit)
    store, within = visit.office.store, visit.who.tenant
    sums = await store.call_sums(within, span)
    judged = await store.judged(within, span.since_ms)
    return await visit.page(
        "insight.html",
        spans=SPANS,
        chosen=chosen,
        looked_from_ms=sums.looked_from_ms if sums.looked_from_ms > span.since_ms else 0,
        charts=[*of_calls(sums, span), *of_holds(judged, span), *await of_spending(visit, span)],
        deciding=stats(judged, span.since_ms),
    )


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
