"""The usual call, opened by an intent that names others and closed by its outcome: its record held against their text.

Almost all of a history is such calls, and reading their JSON was most of the time a verification took. Instead the very
text is put together, from the columns of the record, that the two bodies must have. What does not agree to the byte
proves nothing: it is read then, and judged column by column (`records.py`).

No text of a record passes for another: the bodies have no backslash, so no value in them holds a quote, and none in a
record may; what is put in as JSON is read as such, or stands between names of which each is in the body once. Where an
intent says itself who calls, as the first with each token does, values that may hold quotes are put in as JSON writes
them, and none of the others may hold a quote or a backslash.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Any

from jiter import from_json

from broker.verifier.said import CALLED_OWN, CALLER_OWN, Common, Said

# The columns of a row of a record, in the order in which they are compared.
COLUMNS = (
    *CALLER_OWN, *CALLED_OWN, "at_ms", "changed_at_ms", "arguments_digest", "request_id", "trace_id", "state", "effect",
    "backend_status", "result_bytes", "result_digest", "code", "message", "stage", "held",
)  # fmt: skip
_AS = '{"as":['
_REQUEST, _LAPS = '"request_id":', '"laps_us":'
_CLOSED = frozenset({"succeeded", "failed"})
_DIGITS = b"0123456789"
_KNOWN = 4096  # pairs of shapes of laps
_parts: dict[tuple[bytes, bytes], bool] = {}

Entry = tuple[int, str, int, int, str, str, str, bytes, bytes]
"""(id, chain, seq, at_ms, kind, call_id, body, prev, hash)"""

Row = tuple[Any, ...]
"""(id, call_id, kept arguments, laps_us, quotas, caller, called, COLUMNS…)"""


def agrees(said: Said, opening: Entry, record: Row, closing: Entry) -> bool:
    """Whether the call is over and these two entries say exactly what its record holds, also of the kept arguments.

    False: nobody knows yet.
    """
    _, chain, seq, opened_at_ms, _, _, first, _, _ = opening
    _, _, _, closed_at_ms, _, _, last, _, _ = closing
    (
        _, _, kept, laps, quotas, caller, called, agent, user, tenant, credential_id, tool, rule, writer,
        at_ms, changed_at_ms, digest, request_id, trace_id, state, effect, status, size, result, code, message, stage,
        held,
    ) = record  # fmt: skip
    if not first.startswith(_AS) or "\\" in last:
        return False
    if '"' in f"{digest}{request_id}{trace_id}{state}{effect}{status}{result}{code}{message}":
        return False
    end = first.find("]")
    named, _, also = first[len(_AS) : end].partition(",")
    who = agent, user, tenant, credential_id
    keeps = ""
    if kept is not None:
        kept = "sha256:" + sha256(kept).hexdigest()
        keeps = '"kept":true,' if kept == digest else f'"kept":"{kept}",'
    at = first.find(_LAPS, end) + len(_LAPS)
    before = first[at : first.find("}", at) + 1]  # the laps until it was admitted
    asked = "" if quotas == "[]" else f'"quotas":{quotas},'
    request = request_id and f'"request_id":"{request_id}",'
    try:
        if named == "0":
            own = "".join(who)
            if '"' in own or "\\" in f"{own}{digest}{request_id}{trace_id}{quotas}":
                return False
            face, issuer, principal_key = said.callers.words(caller)
            opens = (
                f'"agent":"{agent}","arguments_digest":"{digest}","credential_id":"{credential_id}","face":{face},'
                f'"issuer":{issuer},"laps_us":{before},"principal_key":{principal_key},{asked}{request}'
                f'"tenant":"{tenant}","trace_id":"{trace_id}","user":"{user}"'
            )
        elif "\\" in first or _agreed(said.callers, chain, named, caller, seq) != who:
            return False
        else:
            opens = f'"arguments_digest":"{digest}","laps_us":{before},{asked}{request}"trace_id":"{trace_id}"'
        if _agreed(said.called, chain, also, called, seq) != (tool, rule, writer):
            return False
    except ValueError:  # one says it itself, names what it should not, or the record does
        return False
    status = status and f'"backend_status":"{status}",'
    code = code and f'"code":"{code}",'
    message = message and f'"message":"{message}",'
    size = f'"result_bytes":{size:d},' if size else ""
    result = result and f'"result_digest":"{result}",'
    agreed = (
        last
        == f'{{"set":{{{status}{code}"effect":"{effect}","laps_us":{laps},{message}{size}{result}"state":"{state}"}}}}'
        and first[end:] == f'],{keeps}"set":{{{opens}}}}}'
        and (request_id != "" or _REQUEST not in first)
        and _is_part(before, laps)
        and at_ms == opened_at_ms
        and changed_at_ms == closed_at_ms
        and state in _CLOSED
        and stage == ""
        and held == 0
    )
    if agreed and named == "0":
        said.callers.learn(chain, seq, caller, who)
    return agreed


def _agreed(common: Common, chain: str, named: str, id_: int, seq: int) -> tuple[Any, ...]:
    """What a record has itself where the intent `named`, before `seq`, and this row agree. Raises ValueError."""
    before, own = common.agreed.get((chain, named, id_)) or common.agree(chain, named, id_)
    return own if before < seq else ()


def _is_part(some: str, laps: str) -> bool:
    """Whether these laps are among those, whatever they took, and both are nothing else. What is the same without its
    digits is judged once: all of `laps` stands in an entry as it is, so nobody but its writer chose them."""
    shapes = some.encode().translate(None, _DIGITS), laps.encode().translate(None, _DIGITS)
    known = _parts.get(shapes)
    if known is None:
        if len(_parts) == _KNOWN:
            _parts.clear()
        known = _parts[shapes] = _keys_are_part(some, laps)
    return known


def _keys_are_part(some: str, laps: str) -> bool:
    try:
        return from_json(some.encode()).keys() <= from_json(laps.encode()).keys()
    except (AttributeError, ValueError):
        return False
