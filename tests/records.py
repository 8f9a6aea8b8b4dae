"""Intents, outcomes and a clock for tests of the store: valid in every field, changed where a test says so."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import orjson
from uuid_utils import uuid7

from broker.model.canonical import canonical, digest_of
from broker.model.hold import HoldTerms
from broker.model.invocation import Called, Caller, Intent, Outcome
from broker.model.principal import Principal
from broker.model.quota import Charge
from broker.ports import Clock, Store
from broker.stores import STORES

NOW = 1_790_000_000_000
MINUTE = 60_000
HOUR = 60 * MINUTE


@dataclass(slots=True)
class HandClock:
    """ports.Clock that stands still until it is moved."""

    at_ms: int = NOW

    def now_ms(self) -> int:
        return self.at_ms


async def open_store(folder: Path, clock: Clock | None = None, *, kind: str = "sqlite", **options: Any) -> Store:
    module, _, name = STORES[kind].partition(":")
    return await getattr(import_module(module), name).open(folder / "broker.db", clock=clock or HandClock(), **options)


def intent(
    *, at_ms: int = NOW, arguments: Any = None, agent: str = "bot", user: str = "ann", owner: str = "", **change: Any
) -> Intent:
    principal = Principal(agent=agent, user=user, tenant="acme", issuer="test", owner=owner)
    packed = canonical({} if arguments is None else arguments)
    held = change.get("terms") is not None
    fields: dict[str, Any] = {
        "call_id": str(uuid7()),
        "at_ms": at_ms,
        "face": "mcp-http",
        "agent": agent,
        "user": user,
        "tenant": "acme",
        "issuer": "test",
        "principal_key": principal.key,
        "credential_id": "jti-1",
        "request_id": "7",
        "trace_id": "0af7651916cd43dd8448eb211c80319c",
        "tool": "orders_refund",
        "tool_version": "1",
        "tool_effect": "write",
        "definition": "sha256:definition",
        "backend": "orders",
        "rule": "refunds/small",
        "policy_version": "sha256:catalog",
        "arguments_digest": digest_of(packed),
        "record": "redacted",
        "kept": packed,
        "arguments": packed if held else b"",
        "principal": orjson.dumps({"agent": agent, "user": user, "owner": owner}) if held else b"",
        "laps_us": {"resolve": 3},
    }
    fields |= change
    caller = Caller(*(fields.pop(name) for name in Caller._fields))
    called = Called(*(fields.pop(name) for name in Called._fields))
    kept = fields["kept"]
    kept_digest = "" if kept is None else digest_of(kept)
    return Intent(**fields, caller=caller, called=called, kept_digest=kept_digest)


def said_by(one: Intent) -> dict[str, Any]:
    """What it says by name."""
    return {**asdict(one), **one.caller._asdict(), **one.called._asdict()}


def held_intent(*, expires_in_ms: int = HOUR, **change: Any) -> Intent:
    return intent(terms=HoldTerms(reason="a person must look", expires_in_ms=expires_in_ms), **change)


def outcome(call_id: str, *, at_ms: int = NOW + 5, **change: Any) -> Outcome:
    fields: dict[str, Any] = {
        "call_id": call_id,
        "at_ms": at_ms,
        "state": "succeeded",
        "effect": "done",
        "backend_status": "HTTP 200",
        "result_digest": "sha256:result",
        "result_bytes": 2,
        "laps_us": {"dispatch": 900},
    }
    return Outcome(**{**fields, **change})


def count(limit: int, **change: Any) -> Charge:
    day: dict[str, Any] = {"starts_at_ms": NOW - HOUR, "resets_at_ms": NOW + HOUR}
    fields: dict[str, Any] = {"quota": "daily", "bucket": "agent=bot", "kind": "count", "limit": limit}
    return Charge(**{**fields, **day, **change})


def rate(limit: int, window_ms: int = MINUTE, **change: Any) -> Charge:
    fields: dict[str, Any] = {
        "quota": "per-minute",
        "bucket": "agent=bot",
        "kind": "rate",
        "limit": limit,
        "window_ms": window_ms,
    }
    return Charge(**{**fields, **change})


def cost(limit: int, amount: int, **change: Any) -> Charge:
    fields: dict[str, Any] = {"quota": "money", "kind": "cost", "unit": "EUR", "amount": amount}
    return count(limit, **{**fields, **change})


def concurrency(limit: int, **change: Any) -> Charge:
    fields: dict[str, Any] = {
        "quota": "at-once",
        "bucket": "agent=bot",
        "kind": "concurrency",
        "limit": limit,
        "window_ms": MINUTE,
    }
    return Charge(**{**fields, **change})


def breaker(kind: str, limit: int, window_ms: int, cool_down_ms: int, **change: Any) -> Charge:
    """kind: `repeat` or `errors`."""
    fields: dict[str, Any] = {
        "quota": kind,
        "bucket": "agent=bot",
        "kind": kind,
        "limit": limit,
        "amount": 1 if kind == "repeat" else 0,
        "window_ms": window_ms,
        "cool_down_ms": cool_down_ms,
        "unit": "calls" if kind == "repeat" else "failures",
    }
    return Charge(**{**fields, **change})
