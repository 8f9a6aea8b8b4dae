"""`/metrics`: what the broker did and how it stands, in Prometheus's text format (version 0.0.4).

FAMILIES is every metric there is; the dashboard, the alert rules and the documentation are held against it. Sums are of
this process since it began; what is asked of the records (open calls, quotas) is the same at every broker on them.

Who may read it: names of tools and agents are told here, so nobody but operators may. `metrics` in the settings says
who that is. What must not live here: counting (pipeline/tally.py), users, arguments, ids, buckets of quotas.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from time import time

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from broker import __version__
from broker.data import dataclass
from broker.errors import BrokerError, RecordUnavailable, Unauthenticated
from broker.faces.office import Office
from broker.model.address import is_loopback
from broker.model.quota import QuotaState
from broker.pipeline.tally import BOUNDS_US, LABELS, OTHER, Spread, Tally
from broker.ports import OpenCalls

PATH = "/metrics"
SCOPE = "broker.metrics"
MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
STATES = ("up", "starting", "degraded", "down")
_BOUNDS = tuple(f"{bound / 1_000_000:g}" for bound in BOUNDS_US)
_BORN_S = time()

# name -> (type, what it is); names of counters end in _total, and units are in names, as Prometheus wants it
FAMILIES: Mapping[str, tuple[str, str]] = {
    "broker_info": ("gauge", "1, with the version."),
    "broker_ready": ("gauge", "1 while calls can be served, as /readyz says."),
    "broker_decisions_total": ("counter", "Calls decided, by tool, decision and error code."),
    "broker_rule_decisions_total": ("counter", "Calls decided, by the rule that decided."),
    "broker_agent_decisions_total": ("counter", "Calls decided, by agent."),
    "broker_calls_total": ("counter", "Calls that were sent and have ended, by tool, backend, state and error code."),
    "broker_requests_refused_total": ("counter", "Requests that never became a call, by reason."),
    "broker_stage_seconds": ("histogram", "Time a call spent in each stage."),
    "broker_backend_seconds": ("histogram", "Time a backend took for a call."),
    "broker_spent_total": ("counter", "What calls cost as backends reported it, by tool and unit."),
    "broker_quota_used_ratio": ("gauge", "How much of a quota is used in its fullest bucket, 0 to 1."),
    "broker_quota_buckets": ("gauge", "Buckets of a quota that are in use."),
    "broker_backend_state": ("gauge", "1 for the state each backend is in."),
    "broker_open_calls": ("gauge", "Calls that have not ended, by state."),
    "broker_oldest_hold_seconds": ("gauge", "How long the oldest hold has been waiting for a decision."),
    "broker_record_queue": ("gauge", "Changes that wait to be written."),
    "broker_record_lag_seconds": ("gauge", "How long the transaction under way has taken so far."),
    "broker_record_commits_total": ("counter", "Transactions committed."),
    "broker_record_changes_total": ("counter", "Changes in these transactions: their mean size is the ratio."),
    "broker_record_commit_seconds_total": ("counter", "Time these transactions took."),
    "broker_record_fault": ("gauge", "1 while records cannot be written and calls are refused."),
    "broker_outcomes_unrecorded": ("gauge", "Outcomes of calls that wait to be written."),
    "broker_catalog_tools": ("gauge", "Tools that are served."),
    "broker_catalog_problems": ("gauge", "Problems of the last reload that was refused; 0 when all is served."),
    "process_start_time_seconds": ("gauge", "When the process began, in seconds since 1970."),
    "process_cpu_seconds_total": ("counter", "Processor time used."),
    "process_resident_memory_bytes": ("gauge", "Memory used."),
    "process_open_fds": ("gauge", "Open file descriptors."),
}

Samples = Iterator[tuple[str, Mapping[str, str], float]]
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})


@dataclass(frozen=True, slots=True)
class Metrics:
    """bearer: the credential in the values of all Authorization headers, None without one; raises Malformed."""

    office: Office
    tally: Tally
    not_ready: Callable[[], Sequence[str]]
    unrecorded: Callable[[], int]
    problems: Callable[[], Sequence[str]]
    bearer: Callable[[list[str]], str | None]

    def routes(self) -> list[Route]:
        return [] if self.office.settings.metrics == "off" else [Route(PATH, self._answer, methods=["GET"])]

    async def _answer(self, request: Request) -> Response:
        try:
            if not self._is_open:
                who = await self.office.authenticate(self.bearer(request.headers.getlist("authorization")), "api")
                if SCOPE not in who.scopes:
                    return PlainTextResponse(f"This takes the scope {SCOPE}.\n", 403)
            text = await self.text()
        except RecordUnavailable as error:
            return PlainTextResponse(error.sentence + "\n", 503)
        except Unauthenticated as error:
            return PlainTextResponse(error.sentence + "\n", 401, {"WWW-Authenticate": f'Bearer scope="{SCOPE}"'})
        except BrokerError as error:
            return PlainTextResponse(error.sentence + "\n", 400)
        return Response(text, media_type=None, headers={"Content-Type": MEDIA_TYPE, "Cache-Control": "no-store"})

    @property
    def _is_open(self) -> bool:
        """Behind a proxy every peer is on loopback, so a peer's address proves nothing there."""
        settings = self.office.settings
        return settings.metrics == "loopback" and is_loopback(settings.listen.host) and not settings.public_url

    async def text(self) -> str:
        """The whole exposition. While the records cannot be read, what is asked of them is left out."""
        office = self.office
        now_ms = office.clock.now_ms()
        try:
            calls, quotas = await office.store.open_calls(), await office.store.quotas(now_ms)
        except RecordUnavailable:
            calls, quotas = None, list[QuotaState]()
        lines: list[str] = []
        told = ""
        for name, labels, value in self._samples(calls, quotas, now_ms):
            family = name if name in FAMILIES else name.rpartition("_")[0]
            if family != told:
                kind, what = FAMILIES[family]
                lines += [f"# HELP {family} {what}", f"# TYPE {family} {kind}"]
                told = family
            inner = ",".join(f'{label}="{text.translate(_ESCAPES)}"' for label, text in labels.items())
            lines.append(f"{name}{{{inner}}} {value:.15g}" if inner else f"{name} {value:.15g}")
        return "\n".join(lines) + "\n"

    def _samples(self, calls: OpenCalls | None, quotas: Sequence[QuotaState], now_ms: int) -> Samples:
        tally, store = self.tally, self.office.store
        yield "broker_info", {"version": __version__}, 1
        yield "broker_ready", {}, not self.not_ready()
        yield from _counted("broker_decisions_total", ("tool", "decision", "code"), tally.decisions)
        yield from _counted("broker_rule_decisions_total", ("rule", "decision"), tally.rules)
        yield from _counted("broker_agent_decisions_total", ("agent", "decision"), tally.agents)
        yield from _counted("broker_calls_total", ("tool", "backend", "state", "code"), tally.outcomes)
        for reason, number in tally.turned_away.items():
            yield "broker_requests_refused_total", {"reason": reason}, number
        yield from _spreads("broker_stage_seconds", "stage", tally.stages)
        yield from _spreads("broker_backend_seconds", "backend", tally.backends)
        yield from _counted("broker_spent_total", ("tool", "unit"), tally.spent)
        yield from _quotas(quotas)
        for name, backend in self.office.backends.items():
            for state in STATES:
                yield "broker_backend_state", {"backend": name, "state": state}, backend.health.state == state
        if calls is not None:
            for state in ("held", "approved", "dispatching"):
                yield "broker_open_calls", {"state": state}, getattr(calls, state)
            waits_ms = now_ms - calls.oldest_hold_ms if calls.oldest_hold_ms else 0
            yield "broker_oldest_hold_seconds", {}, max(0, waits_ms) / 1000
        load = store.load
        yield "broker_record_queue", {}, load.waiting
        yield "broker_record_lag_seconds", {}, load.lag_s
        yield "broker_record_commits_total", {}, load.batches
        yield "broker_record_changes_total", {}, load.jobs
        yield "broker_record_commit_seconds_total", {}, load.commit_s
        yield "broker_record_fault", {}, bool(store.fault)
        yield "broker_outcomes_unrecorded", {}, self.unrecorded()
        yield "broker_catalog_tools", {}, len(self.office.shelf.current.entries)
        yield "broker_catalog_problems", {}, len(self.problems())
        yield from _process()


def _counted(name: str, labels: tuple[str, ...], sums: Mapping[tuple[str, ...], int]) -> Samples:
    for values, number in sums.items():
        yield name, dict(zip(labels, values, strict=True)), number


def _spreads(name: str, label: str, spreads: Mapping[str, Spread]) -> Samples:
    for value, spread in spreads.items():
        *within, total = accumulate(spread.counts)
        for bound, number in zip(_BOUNDS, within, strict=True):
            yield f"{name}_bucket", {label: value, "le": bound}, number
        yield f"{name}_bucket", {label: value, "le": "+Inf"}, total
        yield f"{name}_sum", {label: value}, spread.sum_us / 1_000_000
        yield f"{name}_count", {label: value}, total


def _quotas(quotas: Sequence[QuotaState]) -> Samples:
    """By quota and kind: buckets are made of users and tenants, which are no labels."""
    fullest: dict[tuple[str, str], float] = {}
    buckets: dict[tuple[str, str], int] = {}
    for state in quotas:
        key = (state.quota if state.quota in {k[0] for k in buckets} or len(buckets) < LABELS else OTHER, state.kind)
        used = 1 - state.left / state.limit if state.limit else 1.0
        fullest[key] = max(fullest.get(key, 0.0), used)
        buckets[key] = buckets.get(key, 0) + 1
    yield from _counted("broker_quota_used_ratio", ("quota", "kind"), fullest)  # pyright: ignore[reportArgumentType]
    yield from _counted("broker_quota_buckets", ("quota", "kind"), buckets)


def _process() -> Samples:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    yield "process_start_time_seconds", {}, _BORN_S
    yield "process_cpu_seconds_total", {}, usage.ru_utime + usage.ru_stime
    try:
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 – the kernel's, not a file of ours
            pages = int(file.read().split()[1])
        yield "process_resident_memory_bytes", {}, pages * os.sysconf("SC_PAGE_SIZE")
        yield "process_open_fds", {}, len(os.listdir("/proc/self/fd"))  # noqa: PTH208 – as above
    except OSError:
        return  # not Linux
