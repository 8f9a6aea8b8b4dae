"""The usual call, opened by an intent that names others and closed by its outcome: its record held against their text.

Almost all of a history is such calls, and reading their JSON was most of the time a verification took. Instead the very
text is put together, from the columns of the record, that the two bodies must have. What does not agree to the byte
proves nothing: it is read then, and judged column by column (`records.py`).

No text of a record passes for another: the bodies have no backslash, so no value in them holds a quote, and each name
stands in them once; a value of the record that holds one makes a text with more of them.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Any

from jiter import from_json

from broker.verifier.said import CALLED, CALLER, Said

_PLACED = len(CALLER) + len(CALLED) - 2  # the first of COLUMNS; on `state` and `effect` the outcome has the last word
# The columns of a row of a record, in the order in which they are compared.
COLUMNS = (*CALLER, *CALLED[:-2], "at_ms", "changed_at_ms", "arguments_digest", "request_id", "trace_id", "state",
           "effect", "backend_status", "result_bytes", "result_digest", "code", "message", "stage", "held")  # fmt: skip
_AS = b'{"as":['
_EMPTY = ["", "", "", 0]
_CLOSED = frozenset({"succeeded", "failed"})

Entry = tuple[int, str, int, int, str, str, bytes, bytes, bytes]
"""(id, chain, seq, at_ms, kind, call_id, body, prev, hash)"""

Row = tuple[Any, ...]
"""(id, call_id, kept arguments, laps_us, quotas, COLUMNS…)"""


def agrees(said: Said, opening: Entry, closing: Entry, record: Row) -> bool:
    """Whether the call is over and these two entries say exactly what its record holds, also of the kept arguments.

    False: nobody knows yet.
    """
    first, last = opening[6], closing[6]
    if not first.startswith(_AS) or b"\\" in first or b"\\" in last:
        return False
    end = first.find(b"]")
    named = first[len(_AS) : end]
    try:
        highest, values = said.pair(opening[1], named)
    except ValueError:  # one says it itself, or names what it should not
        return False
    kept, laps, quotas = record[2:5]
    at_ms, changed_at_ms, digest, request_id, trace_id, state, effect, status, size, result, *rest = record[
        5 + _PLACED :
    ]
    keeps = ""
    if kept is not None:
        kept = "sha256:" + sha256(kept).hexdigest()
        keeps = '"kept":true,' if kept == digest else f'"kept":"{kept}",'
    quotas = "" if quotas == "[]" else f'"quotas":{quotas},'
    request_id = request_id and f'"request_id":"{request_id}",'
    status = status and f'"backend_status":"{status}",'
    before = f'],{keeps}"set":{{"arguments_digest":"{digest}","laps_us":'.encode()
    after = f',{quotas}{request_id}"trace_id":"{trace_id}"}}}}'.encode()
    outcome = (
        f'{{"set":{{{status}"effect":"{effect}","laps_us":{laps},"result_bytes":{size:d},"result_digest":"{result}",'
        f'"state":"{state}"}}}}'
    )
    return (
        record[5 : 5 + _PLACED] == values
        and last == outcome.encode()
        and first.startswith(before, end)
        and first.endswith(after)
        and _is_part(first[end + len(before) : -len(after)], laps)
        and highest < opening[2]
        and at_ms == opening[3]
        and changed_at_ms == closing[3]
        and state in _CLOSED
        and rest == _EMPTY
    )


def _is_part(some: bytes, laps: str) -> bool:
    """Whether these laps are among those, whatever they took."""
    try:
        return from_json(some).keys() <= from_json(laps.encode()).keys()
    except (AttributeError, ValueError):
        return False
