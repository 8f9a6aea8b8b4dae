"""Traces by OpenTelemetry (extra `otel`): one for each call, from the agent's span through our stages to the backend.

    tools/call NAME      (server; child of the agent's span)
    ├── resolve, validate, authorise, admit
    ├── hold             from the asking to the run, or to the end without one, when a person had to decide
    ├── tools/call NAME  (client; what the backend is told as its parent)
    └── record

Spans are made when a stage is over, from the times that are measured anyway: no context is entered, and without this
module a call does nothing for it. The ids follow from the call's id (SHA-256), so a held call that runs days later, in
another process, goes on in its own trace with nothing kept for that.

Attributes: names of OpenTelemetry's conventions for MCP and GenAI where there are any, `broker.*` for the rest. Never
an argument, a result, a user or a message that could hold one.
"""

from __future__ import annotations

import hashlib
from time import time_ns
from typing import Any

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from broker.model.call import Call
from broker.model.invocation import Intent, Invocation, Outcome
from broker.model.tool import Tool
from broker.settings import Traces

SAMPLED = 0x01
_STAGES = ("authenticate", "resolve", "validate", "authorise", "admit")
_METHODS = {"tool": "tools/call", "resource": "resources/read", "prompt": "prompts/get"}
_HELD = "held_run"  # the span of a run that goes on in an earlier trace


def span_id(call_id: str, what: str) -> int:
    """8 bytes that follow from the call and the span's place; never 0."""
    return int.from_bytes(hashlib.sha256(f"{call_id}:{what}".encode()).digest()[:8], "big") or 1


class Tracer:
    """See ports.Watch. Made once; `close` sends what is left, within 5 s."""

    def __init__(self, settings: Traces, version: str, exporter: SpanExporter | None = None) -> None:
        headers = dict(header.split(": ", 1) for header in settings.headers)
        self._processor = BatchSpanProcessor(
            exporter or OTLPSpanExporter(endpoint=settings.url, headers=headers, timeout=5)
        )
        self._resource = Resource.create({"service.name": "broker", "service.version": version})
        self._scope = InstrumentationScope("broker", version)
        self._every = round(1 / settings.sample)

    def close(self) -> None:
        self._processor.shutdown()

    # ------------------------------------------------------------------------------------------------ the call's way

    def began(self, call: Call) -> None:
        """Take up the agent's trace, or begin one; from here on `trace_parent` is what backends are told."""
        _, trace_id, parent, flags = call.trace_parent.split("-")[:4] if call.trace_id else ("", "", "", "")
        if not trace_id:
            trace_id = call.id.replace("-", "")
            flags = "01" if int(trace_id[-8:], 16) % self._every == 0 else "00"
        call.parent_span = parent
        call.trace_parent = f"00-{trace_id}-{span_id(call.id, 'dispatch'):016x}-{flags}"

    def resumed(self, call: Call) -> None:
        """A held call runs now: the wait is over, and its trace goes on."""
        trace_id = call.trace_id or call.id.replace("-", "")
        call.trace_parent = f"00-{trace_id}-{span_id(call.id, 'dispatch'):016x}-01"
        call.parent_span = _HELD
        began_ns = call.received_at_ms * 1_000_000
        self._span(call, "hold", began_ns, time_ns(), {"broker.call.id": call.id})

    def decided(self, call: Call, tool: Tool | None, intent: Intent, state: str) -> None:
        if state == "dispatching":
            return  # told when it has ended
        code = intent.refusal[0] if intent.refusal else "over_quota" if state == "denied" else ""
        self._request(call, tool, {"broker.state": state, "broker.rule": intent.called.rule}, code, time_ns())

    def ended(self, call: Call, tool: Tool, outcome: Outcome, recorded_us: int) -> None:
        now_ns = time_ns()
        recorded_at_ns = now_ns - recorded_us * 1000
        sent_at_ns = recorded_at_ns - call.laps_us.get("dispatch", 0) * 1000
        facts = {
            "broker.backend": tool.backend,
            "broker.effect": outcome.effect,
            **({"http.response.status_code": int(outcome.backend_status[5:8])} if _is_http(outcome) else {}),
        }
        self._span(
            call,
            "dispatch",
            sent_at_ns,
            recorded_at_ns,
            {**_named(call, tool), **facts},
            code=outcome.code,
            kind=SpanKind.CLIENT,
        )
        self._span(call, "record", recorded_at_ns, now_ns, {})
        if call.parent_span != _HELD:
            self._request(call, tool, {"broker.state": outcome.state}, outcome.code, now_ns)

    def waited(self, held: Invocation) -> None:
        trace_id = held.trace_id or held.call_id.replace("-", "")
        self._emit(
            "hold",
            _context(trace_id, span_id(held.call_id, "hold"), remote=False),
            _context(trace_id, span_id(held.call_id, ""), remote=False),
            (held.at_ms * 1_000_000, held.changed_at_ms * 1_000_000),
            {"broker.call.id": held.call_id, "broker.state": held.state},
        )

    # --------------------------------------------------------------------------------------------------------- spans

    def _request(self, call: Call, tool: Tool | None, facts: dict[str, Any], code: str, end_ns: int) -> None:
        """The whole request, and the stages before the dispatch, one after the other."""
        at_ns = began_ns = min(call.received_at_ms * 1_000_000, end_ns)
        for stage in _STAGES:
            if (took_us := call.laps_us.get(stage)) is not None:
                self._span(call, stage, at_ns, at_ns + took_us * 1000, {})
                at_ns += took_us * 1000
        identity = {
            "broker.call.id": call.id,
            "gen_ai.agent.name": call.principal.agent,
            **({"jsonrpc.request.id": call.request_id} if call.request_id else {}),
            "network.transport": "pipe" if call.face == "mcp-stdio" else "tcp",
        }
        facts = {**_named(call, tool), **identity, **facts}
        self._span(call, "", began_ns, max(end_ns, at_ns), facts, code=code, kind=SpanKind.SERVER)

    def _span(
        self,
        call: Call,
        what: str,
        start_ns: int,
        end_ns: int,
        facts: dict[str, Any],
        *,
        code: str = "",
        kind: SpanKind = SpanKind.INTERNAL,
    ) -> None:
        """what: the span's place in the call; "" is the request itself, under which the others are."""
        _, trace_id, _, flags = call.trace_parent.split("-")[:4]
        if not int(flags, 16) & SAMPLED:
            return
        within = span_id(call.id, "") if what else int(call.parent_span or "0", 16)
        name = f"{_METHODS[call.asked]} {_name(call, facts)}".rstrip() if what in ("", "dispatch") else what
        context = _context(trace_id, span_id(call.id, what), remote=False)
        parent = _context(trace_id, within, remote=not what) if within else None
        self._emit(name, context, parent, (start_ns, end_ns), facts, code=code, kind=kind)

    def _emit(
        self,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        times_ns: tuple[int, int],
        facts: dict[str, Any],
        *,
        code: str = "",
        kind: SpanKind = SpanKind.INTERNAL,
    ) -> None:
        self._processor.on_end(
            ReadableSpan(
                name=name,
                context=context,
                parent=parent,
                resource=self._resource,
                attributes={**facts, **({"error.type": code} if code else {})},
                kind=kind,
                status=Status(StatusCode.ERROR if code else StatusCode.UNSET),
                start_time=times_ns[0],
                end_time=max(times_ns),
                instrumentation_scope=self._scope,
            )
        )


def _context(trace_id: str, span: int, *, remote: bool) -> SpanContext:
    return SpanContext(int(trace_id, 16), span, is_remote=remote, trace_flags=TraceFlags(SAMPLED))


def _is_http(outcome: Outcome) -> bool:
    return outcome.backend_status.startswith("HTTP ") and outcome.backend_status[5:8].isdigit()


def _name(call: Call, facts: dict[str, Any]) -> str:
    """A tool of the catalog; what was sent and is not one, and a resource's URI, are no part of a name."""
    return str(facts.get("gen_ai.tool.name", "")) if call.asked == "tool" else ""


def _named(call: Call, tool: Tool | None) -> dict[str, Any]:
    named: dict[str, Any] = {"mcp.method.name": _METHODS[call.asked]}
    if call.asked == "tool":
        named["gen_ai.operation.name"] = "execute_tool"
        if tool is not None:
            named |= {"gen_ai.tool.name": tool.name, "broker.tool.effect": tool.effect}
    return named
