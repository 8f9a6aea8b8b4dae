"""Other arguments for a held call: judged exactly as if its caller had sent them, before anything is changed.

An edit is approved by who makes it, so it must not reach further than the reviewer's own word does: what rules deny, or
hold for other reviewers, is refused; what they allow or hold for these is fine. The caller is told what was changed, by
whom; the record keeps both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any, cast

import orjson

from broker.catalog.catalog import Entry
from broker.errors import Conflict, Forbidden, InvalidArguments
from broker.model.call import Call
from broker.model.canonical import canonical, digest_of
from broker.model.hold import Change, Edit, Review
from broker.model.invocation import Invocation
from broker.pipeline import recorder
from broker.pipeline.dispatch import sketch
from broker.pipeline.reviewers import approves
from broker.pipeline.runner import bound_of
from broker.policies.record import Mac
from broker.ports import Backend, HeldParts


def judged(
    held: Invocation,
    parts: HeldParts,
    entry: Entry | None,
    arguments: Mapping[str, Any],
    review: Review,
    *,
    backends: Mapping[str, Backend],
    now_ms: int,
    mac: Mac,
) -> Edit:
    """The edit for the store. mac: `Store.mac`. Raises Conflict (it has ended, or its tool is not served here),
    InvalidArguments, Forbidden."""
    hold = held.hold
    if hold is None or parts.arguments is None or parts.principal is None:
        raise Conflict(f"The held call {held.call_id} waits no longer: {held.state}.", state=held.state)
    if entry is None:
        raise Conflict(
            f"{held.tool} is not served here, so other arguments for it cannot be judged.",
            next_step="Ask a broker that serves it, or decide on the call as it is.",
            state=held.state,
        )
    call = Call(
        id=held.call_id,
        name=held.tool,
        arguments=dict(arguments),
        principal=recorder.unpack(parts.principal),
        face=held.face,
        received_at_ms=held.at_ms,
        request_id=held.request_id,
    )
    if faults := entry.faults(call.arguments):
        raise InvalidArguments(
            f"Refused: the changed arguments of {held.tool} are not valid: {'; '.join(faults)}.", faults=list(faults)
        )
    before = orjson.loads(parts.arguments)
    changes = list(changed(before, call.arguments))
    if not changes:
        raise InvalidArguments("Refused: nothing is changed.", next_step="Approve the call as it is.")
    verdict = entry.decide(call.principal, call.arguments, now_ms)
    if verdict.outcome == "deny":
        raise Forbidden(
            f"Refused: {verdict.rule} forbids this call of {held.tool} with the changed arguments: {verdict.reason}",
            next_step="Change them further, or approve or deny the call as it is.",
        )
    if verdict.terms is not None and not approves(hold, verdict.terms):
        raise Forbidden(
            f"Refused: with the changed arguments {verdict.rule} asks other reviewers.",
            next_step="Deny the call with a word on what to ask for instead.",
        )
    shown, packed = sketch(entry, call, backends), canonical(call.arguments)
    kept = entry.redaction.kept(call.arguments, packed, mac)
    return Edit(
        review=review,
        arguments=packed,
        arguments_digest=digest_of(packed),
        bound=bound_of(entry, call, shown.digest).digest,
        policy=entry.policy,
        sketch=shown.packed(),
        sketch_digest=shown.digest,
        changes=orjson.dumps([asdict(one) for one in changes]),
        kept=kept.clear,
        sealed=kept.sealed,
        macs=kept.macs,
        charges=entry.charges(call.principal, call.arguments, now_ms),
    )


def changed(was: Any, now: Any, path: str = "") -> Iterator[Change]:
    """What is different, value by value; a list of another length is different as a whole."""
    if isinstance(was, dict) and isinstance(now, dict):
        before, after = cast("dict[str, Any]", was), cast("dict[str, Any]", now)
        for name in [*before, *(name for name in after if name not in before)]:
            at = f"{path}.{name}" if path else name
            if name not in after:
                yield Change(at, "removed", was=before[name])
            elif name not in before:
                yield Change(at, "added", now=after[name])
            else:
                yield from changed(before[name], after[name], at)
    elif isinstance(was, list) and isinstance(now, list) and len(cast("list[Any]", was)) == len(cast("list[Any]", now)):
        for number, (one, other) in enumerate(zip(cast("list[Any]", was), cast("list[Any]", now), strict=True)):
            yield from changed(one, other, f"{path}.{number}" if path else str(number))
    elif canonical(was) != canonical(now):
        yield Change(path, "changed", was, now)
