"""The usual call, opened by an intent that names others and closed by its outcome: its record held against their text.

Almost all of a history is such calls, and reading their JSON was most of the time a verification took. Instead the very
text is put together, from the columns of the record, that the two bodies must have. What does not agree to the byte
proves nothing: it is read then, and judged column by column (`records.py`).

No text of a record passes for another: the bodies have no backslash, so no value in them holds a quote, and none in a
record may; what is put in as JSON is read as such, or stands between names of which each is in the body once.
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
_AS, _ITSELF = b'{"as":[', b'{"as":[0'
_EMPTY = ["", 0]  # `stage`, `held`
_REQUEST = b'"request_id":'
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
    if not first.startswith(_AS) or first.startswith(_ITSELF) or b"\\" in first or b"\\" in last:
        return False
    end = first.find(b"]")
    named = first[len(_AS) : end]
    try:
        highest, values = said.pair(opening[1], named)
    except ValueError:  # one says it itself, or names what it should not
        return False
    kept, laps, quotas = record[2:5]
    own = record[5 + _PLACED :]
    at_ms, changed_at_ms, digest, request_id, trace_id, state, effect, status, size, result, code, message, *rest = own
    if '"' in f"{digest}{request_id}{trace_id}{state}{effect}{status}{result}{code}{message}":
        return False
    keeps = ""
    if kept is not None:
        kept = "sha256:" + sha256(kept).hexdigest()
        keeps = '"kept":true,' if kept == digest else f'"kept":"{kept}",'
    quotas = "" if quotas == "[]" else f'"quotas":{quotas},'
    request_id = request_id and f'"request_id":"{request_id}",'
    status = status and f'"backend_status":"{status}",'
    code = code and f'"code":"{code}",'
    message = message and f'"message":"{message}",'
    size = size and f'"result_bytes":{size:d},'
    result = result and f'"result_digest":"{result}",'
    before = f'],{keeps}"set":{{"arguments_digest":"{digest}","laps_us":'.encode()
    after = f',{quotas}{request_id}"trace_id":"{trace_id}"}}}}'.encode()
    before_laps, after_laps = f'{status}{code}"effect":"{effect}"', f'{message}{size or ""}{result}"state":"{state}"'
    ended = f'{{"set":{{{before_laps},"laps_us":{laps},{after_laps}}}}}'
    return (
        record[5 : 5 + _PLACED] == values
        and last == ended.encode()
        and first.startswith(before, end)
        and first.endswith(after)
        and (_REQUEST in first) == (request_id != "")
        and _is_part(first[end + len(before) : -len(after)], laps)
        and highest < opening[2]
        and at_ms == opening[3]
        and changed_at_ms == closing[3]
        and state in _CLOSED
        and rest == _EMPTY
    )


def _is_part(some: bytes, laps: str) -> bool:
    """Whether these laps are among those, whatever they took, and both are nothing else."""
    try:
        return from_json(some).keys() <= from_json(laps.encode()).keys()
    except (AttributeError, ValueError):
        return False
