"""From a call in flight to what is written about it: the intent before, the outcome after.

Nothing is decided here. What a record may keep of the arguments is the catalog's business (`Entry.kept`); an argument's
value reaches a record in no other way, and never a log.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

import orjson

from broker.catalog.catalog import Entry
from broker.errors import BackendError, BrokerError
from broker.model.answer import Answer
from broker.model.call import Call
from broker.model.canonical import canonical, digest_of
from broker.model.grant import GrantUse
from broker.model.hold import HoldTerms
from broker.model.invocation import Intent, Outcome
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
    charges: Sequence[Charge] = (),
    terms: HoldTerms | None = None,
    refusal: BrokerError | None = None,
    key: str = "",
    sketch: Sketch | None = None,
    derived: tuple[str, int] = ("", 0),
    mac: Mac,
    grants: tuple[GrantUse, ...] = (),
) -> Intent:
    """What is committed before anything leaves. entry is None when the tool could not be resolved. key: as sent.
    sketch: of a call that is to be held. derived: the key its tool makes of the arguments, and how long it stands, in
    milliseconds. mac: `Store.mac`."""
    arguments = canonical(call.arguments)
    kept = entry.redaction.kept(call.arguments, arguments, mac) if entry else Kept()
    tool = entry.tool if entry else None
    caller = call.principal
    return Intent(
        call_id=call.id,
        at_ms=at_ms,
        face=call.face,
        agent=caller.agent,
        user=caller.user,
        tenant=caller.tenant,
        issuer=caller.issuer,
        principal_key=caller.key,
        credential_id=caller.credential_id,
        request_id=call.request_id,
        trace_id=call.trace_id if call.trace_parent else "",
        tool=call.aside + (tool.name if tool else call.name[:128]),
        tool_version=tool.version if tool else "",
        tool_effect=tool.effect if tool else "",
        definition=tool.definition if tool else "",
        backend=tool.backend if tool else "",
        rule=rule,
        policy_version=policy_version,
        arguments_digest=digest_of(arguments),
        record=tool.record if tool else "digest",
        kept=kept.clear,
        sealed=kept.sealed,
        macs=kept.macs,
        charges=tuple(charges),
        terms=terms,
        arguments=arguments if terms else b"",
        principal=pack(caller) if terms else b"",
        refusal=(refusal.code, refusal.stage, refusal.sentence) if refusal else None,
        laps_us=call.laps_us,
        key=digest_of(key.encode()) if key else "",
        policy=entry.policy if entry and terms else "",
        sketch=sketch.packed() if sketch else b"",
        sketch_digest=sketch.digest if sketch else "",
        derived=derived[0],
        derived_ms=derived[1],
        grants=grants,
    )


def succeeded(
    call_id: str, answer: Answer, *, at_ms: int, laps_us: dict[str, int], keep_result: bool, is_plain: bool = False
) -> Outcome:
    """The outcome of a call whose backend answered; an answer that is itself an error (`isError`) counts as failed."""
    result = answer.encoded()
    return Outcome(
        call_id=call_id,
        at_ms=at_ms,
        state="failed" if answer.is_error else "succeeded",
        effect="done",
        code="tool_error" if answer.is_error else "",
        backend_status=answer.status,
        result_digest=digest_of(result),
        result_bytes=len(result),
        result=result if keep_result else b"",
        spent=answer.spent,
        laps_us=laps_us,
        is_plain=is_plain,
    )


def failed(call_id: str, error: BrokerError, *, at_ms: int, laps_us: dict[str, int], is_plain: bool = False) -> Outcome:
    """The outcome of a call that ended in an error. Nobody can say how it ended: outcome_unknown, not failed."""
    state: Literal["failed", "outcome_unknown"] = "outcome_unknown" if error.effect == "unknown" else "failed"
    return Outcome(
        call_id=call_id,
        at_ms=at_ms,
        state=state,
        effect=error.effect,
        code=error.code,
        message=error.recorded,
        backend_status=str(error.facts.get("http_status", "")) if isinstance(error, BackendError) else "",
        laps_us=laps_us,
        is_plain=is_plain,
    )


_SETS = ("scopes", "groups", "endpoints")


def pack(principal: Principal) -> bytes:
    """The principal as JSON, to run a held call later under the very identity that asked. Sealed by the store."""
    sets = {name: sorted(getattr(principal, name)) for name in _SETS}
    return orjson.dumps({**asdict(principal), **sets})


def unpack(packed: bytes) -> Principal:
    fields: dict[str, Any] = orjson.loads(packed)
    fields |= {name: frozenset(fields.get(name, ())) for name in _SETS}
    return Principal(**fields)
