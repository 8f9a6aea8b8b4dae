"""What an error status of the other side means for the caller, in one sentence; the same for HTTP and MCP backends."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from broker.backends.decoding import short
from broker.errors import Rejected
from broker.model.back import PASSED_ON

INVALID_PARAMS = -32602

LONGEST_RETRY_AFTER_MS = 86_400_000
_OPERATOR = "Only the operator of the broker can change that."

# status: (what it means, what to do)
_MEANINGS: Mapping[int, tuple[str, str]] = {
    400: ("did not understand the request", "Check the arguments."),
    401: ("does not accept the broker's credential", _OPERATOR),
    403: ("does not allow the broker's account to do this", _OPERATOR),
    404: ("has nothing under this address", "Check the arguments."),
    409: ("refused because of the present state", "Read the present state, then decide."),
    422: ("did not accept the values", "Check the arguments."),
    429: ("asks for fewer calls", "Wait before you try again."),
    502: ("could not reach what is behind it; whether it was done is unknown", "Check before you try again."),
    503: ("is not able to answer now", "Try again later."),
    504: ("waited too long for what is behind it; whether it was done is unknown", "Check before you try again."),
}


def rejected(backend: str, status: int, headers: Mapping[str, str], words: str, now_ms: int) -> Rejected:
    """The error for an answer with this status. words: its own message, already made safe (decoding.short), or ""."""
    if 300 <= status < 400:
        meaning, step = "answered with a redirect, which is not followed", _OPERATOR
    else:
        meaning, step = _MEANINGS.get(status, ("failed" if status >= 500 else "refused", ""))
    facts: dict[str, object] = {"http_status": status}
    wait_ms = retry_after_ms(headers.get("retry-after", ""), now_ms)
    if wait_ms is not None and status in (429, 503):
        facts["retry_after_ms"] = wait_ms
    said = f" It says: {words}" if words else ""
    error = Rejected(f"Backend {backend!r} {meaning} (HTTP {status}).{said}", said=words, next_step=step, **facts)
    if status in (502, 504):
        error.effect = "unknown"  # a proxy answered, and what it asked may have been done
    return error


def retry_after_ms(header: str, now_ms: int) -> int | None:
    """RFC 9110 section 10.2.3: seconds or a date. None for anything else; at most a day."""
    header = header.strip()
    if header.isascii() and header.isdigit() and len(header) < 12:
        return min(int(header) * 1000, LONGEST_RETRY_AFTER_MS)
    try:
        at = parsedate_to_datetime(header)
    except (TypeError, ValueError):
        return None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    wait_ms = round((at - datetime.fromtimestamp(now_ms / 1000, UTC)).total_seconds() * 1000)
    return min(max(wait_ms, 0), LONGEST_RETRY_AFTER_MS)


def refused(backend: str, code: int, message: str, data: Any) -> Rejected:
    """The error for a JSON-RPC error of a server. data: kept only where the caller has to see it."""
    words = short(message)
    return Rejected(
        f"Backend {backend!r} refused: {words} (code {code}).",
        said=words,
        next_step="Check the arguments." if code == INVALID_PARAMS else "",
        rpc_code=code,
        **({"rpc_data": data} if code in PASSED_ON else {}),
    )
