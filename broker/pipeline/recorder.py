"""From a call in flight to what is written about it: the intent before, the outcome after.

Nothing is decided here. What a record may keep of the arguments is the catalog's business (`Entry.kept`); an argument's
value reaches a record in no other way, and never a log.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import orjson

from broker.catalog.catalog import Entry
from broker.errors import BackendError, BrokerError
from broker.model.answer import Answer
from broker.model.call import Call
from broker.model.canonical import canonical, digest_of
from broker.model.grant import GrantUse
from broker.model.hold import HoldTerms
from broker.model.invocation import Called, Caller, Intent, Outcome
from broker.model.principal import Principal
from broker.model.quota import Charge
from broker.model.sketch import Sketch
from broker.policies.record import Kept, Mac


def intent(
    call: Call,
    entry: Entry | None,
    *,
    at_ms: int,
    policy_version: str,
    rule: str = "",
    charges: tuple[Charge, ...] = (),
    terms: HoldTerms | None = None,
    refusal: BrokerError | None = None,
    key: str = "",
    sketch: Sketch | None = None,
    derived: tuple[str, int] | None = None,
    mac: Mac,
    grants: tuple[GrantUse, ...] = (),
) -> Intent:
    """What is committed before anything leaves. entry is None when the tool could not be resolved. key: as sent.
    sketch: of a call that is to be held. derived: the key its tool makes of the arguments, and how long it stands, in
    milliseconds. mac: `Store.mac`."""
    arguments = canonical(call.arguments)
    digest = digest_of(arguments)
    kept = entry.redaction.kept(call.arguments, arguments, mac) if entry else Kept()
    principal, clear = call.principal, kept.clear
    if entry is None:
        called = Called(call.name[:128], "", "", "", "", rule, policy_version, "digest")
    else:
        called = entry.called(rule, policy_version)
    if aside := call.aside:
        called = called._replace(tool=aside + called.tool)
    intent = Intent(  # positional, in the order of its fields: this runs for every call
        call.id,
        at_ms,
        Caller(
            call.face, principal.agent, principal.user, principal.tenant, principal.issuer, principal.key,
            principal.credential_id,
        ),
        called,
        call.request_id,
        call.trace_id if call.trace_parent else "",
        digest,
        clear,
        "" if clear is None else digest if clear is arguments else digest_of(clear),
        kept.sealed,
        kept.macs,
        charges,
        call.laps_us,
    )  # fmt: skip
    if refusal is not None:
        intent.refusal = (refusal.code, refusal.stage, refusal.sentence)
    if key:
        intent.key = digest_of(key.encode())
    if derived is not None:
        intent.derived, intent.derived_ms = derived
    if terms is not None:
        intent.terms, intent.grants = terms, grants
        intent.arguments, intent.principal = arguments, pack(principal)
        intent.policy = entry.policy if entry else ""
    if sketch is not None:
        intent.sketch, intent.sketch_digest = sketch.packed(), sketch.digest
    return intent


def outcome(call: Call, end: Answer | BrokerError, *, at_ms: int, keep_result: bool = False) -> Outcome:
    """How a dispatched call ended. An answer that is itself an error (`isError`) counts as failed; what nobody can say
    the end of is outcome_unknown. keep_result: for whoever asks later."""
    if isinstance(end, Answer):
        result = end.encoded()
        state, code = ("failed", "tool_error") if end.is_error else ("succeeded", "")
        kept = result if keep_result else b""
        return Outcome(  # positional, in the order of its fields: this runs for every call
            call.id, at_ms, state, "done", code, "", end.status, digest_of(result), len(result), kept, end.spent,
            call.laps_us, call.is_plain,
        )  # fmt: skip
    return Outcome(
        call_id=call.id,
        at_ms=at_ms,
        state="outcome_unknown" if end.effect == "unknown" else "failed",
        effect=end.effect,
        code=end.code,
        message=end.recorded,
        backend_status=str(end.facts.get("http_status", "")) if isinstance(end, BackendError) else "",
        laps_us=call.laps_us,
        is_plain=call.is_plain,
    )


_SETS = ("scopes", "groups", "endpoints")


def pack(principal: Principal) -> bytes:
    """The principal as JSON, to run a held call later under the very identity that asked. Sealed by the store."""
    sets = {name: sorted(getattr(principal, name)) for name in _SETS}
    facts = {**asdict(principal), **sets}
    del facts["key"]  # made of others
    return orjson.dumps(facts)


def unpack(packed: bytes) -> Principal:
    fields: dict[str, Any] = orjson.loads(packed)
    fields |= {name: frozenset(fields.get(name, ())) for name in _SETS}
    return Principal(**fields)
