"""What several pages draw: a figure over a span of time, as a table that `static/charts.js` draws as lines."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from broker.data import dataclass
from broker.errors import Malformed
from broker.faces import bodies
from broker.faces.console.visit import Visit
from broker.model.quota import spoken
from broker.model.statistics import Span

HOUR_MS, DAY_MS = 3_600_000, 86_400_000
SPANS: Mapping[str, tuple[int, int]] = {"day": (HOUR_MS, 24), "week": (6 * HOUR_MS, 28), "month": (DAY_MS, 30)}
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


def chosen_span(visit: Visit) -> tuple[str, Span]:
    """The name and slots of the span that the URL asks for. Raises Malformed."""
    chosen = bodies.query(visit.request, ("span",)).get("span", "week")
    if chosen not in SPANS:
        raise Malformed(f"There is no span {chosen[:40]!r}.", next_step=f"Spans: {', '.join(SPANS)}.")
    return chosen, span_until(visit.office.clock.now_ms(), *SPANS[chosen])


def span_until(now_ms: int, step_ms: int, slots: int) -> Span:
    """Whole slots, the last of which is now's."""
    return Span(now_ms // step_ms * step_ms - (slots - 1) * step_ms, step_ms, slots)


async def of_spending(visit: Visit, span: Span) -> list[Chart]:
    """A chart for each calendar quota, over all its buckets that this person may see. Windows are as it has them."""
    sums: dict[tuple[str, str], Counter[int]] = defaultdict(Counter)
    for one in await visit.office.store.spent(span.since_ms):
        if not visit.office.counts(visit.who, one.bucket):
            continue
        slot = (one.starts_at_ms - span.since_ms) // span.step_ms
        if 0 <= slot < span.slots:
            sums[one.quota, one.unit][slot] += one.used
    charts: list[Chart] = []
    for (quota, unit), used in sorted(sums.items(), key=lambda item: -sum(item[1].values()))[:QUOTAS]:
        rows = [(at_ms, (float(spoken(used[slot], unit)[0]),)) for slot, at_ms in enumerate(span.starts())]
        charts.append(Chart(f"Used of {quota}", spoken(0, unit)[1], ("used",), rows))
    return charts
