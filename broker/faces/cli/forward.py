"""`broker export --follow`: each entry of the record, handed on in order, to stdout, a webhook or an OTLP collector.

At least once: the place of this name is moved when what was handed on has been taken (written and flushed, or answered
with 2xx). After an interruption the last batch may come again, with the same ids (`event`): whoever keeps those counts
nothing twice. Nothing is skipped, since the place is never moved past what was not taken.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from time import time
from typing import Any, Protocol

import anyio
import httpx2
import orjson

from broker import __version__
from broker.data import dataclass
from broker.errors import Problem, SettingsError
from broker.faces.cli.output import json_line, tell
from broker.faces.cli.records import Records, open_records
from broker.faces.formats import cef_line, csv_lines
from broker.faces.text import safe
from broker.faces.words import as_document
from broker.model.invocation import Invocation
from broker.notifiers.webhook import key_of, signature
from broker.pipeline.follower import Follower
from broker.ports import Event
from broker.secrets import Secrets

BATCH = 200
LEASE_S = 5.0  # how long a killed one keeps its place from the next
ANSWER_S = 10.0
LONGEST_PAUSE_S = 30.0
_SEVERITIES = {"succeeded": 9, "held": 10, "denied": 13, "failed": 13, "rejected": 13, "outcome_unknown": 17}  # OTLP's


@dataclass(frozen=True, slots=True)
class Wanted:
    form: str
    name: str
    from_first: bool
    webhook: str
    secret: str
    otlp: str


@dataclass(frozen=True, slots=True)
class Told:
    """One entry, and the call it is about, as it stands now."""

    event: Event
    call: Invocation | None

    def document(self) -> dict[str, Any]:
        facts = {"event": self.event.name, "kind": self.event.kind, "at_ms": self.event.at_ms}
        return {**facts, "call": as_document(self.call)} if self.call else {**facts, "facts": self.event.body}


class Sink(Protocol):
    async def hand_on(self, batch: Sequence[Told]) -> str:
        """Why it was not taken; "" when it was."""
        ...


async def forward(config: Path | None, wanted: Wanted) -> None:
    """For ever, or until SIGTERM or SIGINT. Raises SettingsError for a secret that is none."""
    async with open_records(config) as records, httpx2.AsyncClient(timeout=ANSWER_S, trust_env=False) as http:
        sink = _sink(wanted, records, http)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_until_signal, tasks.cancel_scope)
            tasks.start_soon(_forward, records, wanted, sink)


async def _forward(records: Records, wanted: Wanted, sink: Sink) -> None:
    follower = Follower(
        records.store, records.clock, f"export:{wanted.name}", lease_s=LEASE_S, from_first=wanted.from_first
    )
    while not await follower.hold_on():
        tell(f"Another process has the place of {safe(wanted.name)}; waiting for it to end.")
        await anyio.sleep(LEASE_S / 2)
    to = "webhook" if wanted.webhook else "otlp" if wanted.otlp else "stdout"
    await records.store.note("export", {"follow": wanted.name, "format": wanted.form, "to": to, "via": "cli"})
    while True:
        batch = [Told(event, await _call(records, event)) for event in await follower.next((), BATCH)]
        if not batch:
            await follower.pause()
        elif await _taken(batch, follower, sink):
            await follower.handed_on(batch[-1].event.id)


async def _call(records: Records, event: Event) -> Invocation | None:
    return await records.store.invocation(event.call_id) if event.call_id else None


async def _taken(batch: Sequence[Told], follower: Follower, sink: Sink) -> bool:
    """Until it is taken; False when the place has become another's."""
    pause_s = 1.0
    while True:
        why = await sink.hand_on(batch)
        if not why:
            return True
        tell(f"Not taken ({safe(why)}); again in {pause_s:g} s. Nothing is lost.")
        slept_s = 0.0
        while slept_s < pause_s:
            if not await follower.hold_on():
                return False
            step_s = min(LEASE_S / 4, pause_s - slept_s)
            await anyio.sleep(step_s)
            slept_s += step_s
        pause_s = min(pause_s * 2, LONGEST_PAUSE_S)


async def _until_signal(scope: anyio.CancelScope) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            scope.cancel()
            return


# --------------------------------------------------------------------------------------------------------------- sinks


def _sink(wanted: Wanted, records: Records, http: httpx2.AsyncClient) -> Sink:
    if wanted.otlp:
        return Otlp(wanted.otlp, http)
    if not wanted.webhook:
        return Lines(wanted.form)
    try:
        key = key_of(Secrets(records.settings.directory).resolve(wanted.secret))
    except (LookupError, ValueError) as error:
        raise SettingsError([Problem("--secret", 0, 0, str(error.args[0]))]) from error
    return Webhook(wanted.webhook, key, http)


@dataclass(frozen=True, slots=True)
class Lines:
    form: str

    async def hand_on(self, batch: Sequence[Told]) -> str:
        """csv and cef are of calls only: an entry about none has no line there, several about one have one."""
        calls = {one.call.call_id: one.call for one in batch if one.call is not None}.values()
        if self.form == "csv":
            sys.stdout.writelines(csv_lines(calls, heading=False))
        elif self.form == "cef":
            sys.stdout.writelines(f"{cef_line(one)}\n" for one in calls)
        else:
            sys.stdout.writelines(f"{json_line(one.document())}\n" for one in batch)
        sys.stdout.flush()
        return ""


@dataclass(frozen=True, slots=True)
class Webhook:
    """A POST of the batch as one JSON document, signed as notices are (docs/notifications.md)."""

    url: str
    key: bytes
    http: httpx2.AsyncClient

    async def hand_on(self, batch: Sequence[Told]) -> str:
        name, timestamp = batch[-1].event.name, int(time())
        body = orjson.dumps({"type": "record.entries", "id": name, "data": [one.document() for one in batch]})
        return await _post(
            self.http,
            self.url,
            body,
            {
                "webhook-id": name,
                "webhook-timestamp": str(timestamp),
                "webhook-signature": signature(self.key, name, timestamp, body),
            },
        )


@dataclass(frozen=True, slots=True)
class Otlp:
    """OTLP 1.x over HTTP in its JSON form, one log record an entry; needs no library."""

    url: str
    http: httpx2.AsyncClient

    async def hand_on(self, batch: Sequence[Told]) -> str:
        scope = {"scope": {"name": "broker", "version": __version__}, "logRecords": [_log_record(one) for one in batch]}
        resource = {"attributes": _attributes({"service.name": "broker", "service.version": __version__})}
        body = orjson.dumps({"resourceLogs": [{"resource": resource, "scopeLogs": [scope]}]})
        return await _post(self.http, self.url, body, {})


def _log_record(told: Told) -> dict[str, Any]:
    call, event = told.call, told.event
    facts = {"broker.event.id": event.name, "broker.event.kind": event.kind}
    if call is not None:
        facts |= {
            "broker.call.id": call.call_id, "broker.state": call.state, "broker.rule": call.rule,
            "broker.backend": call.backend, "gen_ai.tool.name": call.tool, "gen_ai.agent.name": call.agent,
            "error.type": call.code,
        }  # fmt: skip
    return {
        "timeUnixNano": str(event.at_ms * 1_000_000),
        "observedTimeUnixNano": str(int(time() * 1000) * 1_000_000),
        "severityNumber": _SEVERITIES.get(call.state, 9) if call else 9,
        "body": {"stringValue": json_line(told.document())},
        "attributes": _attributes({name: value for name, value in facts.items() if value}),
        **({"traceId": call.trace_id} if call and call.trace_id else {}),
    }


def _attributes(facts: dict[str, str]) -> list[dict[str, Any]]:
    return [{"key": key, "value": {"stringValue": value}} for key, value in facts.items()]


async def _post(http: httpx2.AsyncClient, url: str, body: bytes, headers: dict[str, str]) -> str:
    try:
        answer = await http.post(url, content=body, headers={"content-type": "application/json", **headers})
    except httpx2.HTTPError as error:
        return type(error).__name__
    return "" if 200 <= answer.status_code < 300 else f"HTTP {answer.status_code}"
