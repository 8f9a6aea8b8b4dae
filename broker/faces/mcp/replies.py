"""What the gate itself answers: JSON-RPC in one serialisation, with the HTTP status its code has.

Refusals before a call exists carry the whole sentence in the body, as JSON-RPC errors, because clients show nothing
else of them. Where neither JSON-RPC nor MCP defines a code, the error's code is the HTTP status: outside the range that
JSON-RPC reserves, and what it is.

What must not live here: refusals of calls, which are tool results (`broker.faces.refusal`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import orjson

from broker.faces.mcp.request import RawHeaders, Send
from broker.faces.mcp.strict import RequestId

# The kinds of refusals told to `on_refused`: stable words, for records in sum.
KINDS = (
    "foreign_host",
    "foreign_origin",
    "bad_header",
    "bad_method",
    "unauthenticated",
    "token_in_query",
    "bad_media_type",
    "not_acceptable",
    "too_large",
    "overloaded",
    "slow_body",
    "parse_error",
    "invalid_request",
    "header_mismatch",
    "unsupported_version",
    "id_in_use",
    "no_session",
    "stream_ended",
)

JSON_HEADERS: list[tuple[bytes, bytes]] = [
    (b"content-type", b"application/json"),
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
]
JSON_LINES = b"".join(b"%s: %s\r\n" % line for line in JSON_HEADERS)
STREAM_HEADERS: list[tuple[bytes, bytes]] = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
]
CLOSE = (b"connection", b"close")

HTTP_STATUS = {-32700: 400, -32600: 400, -32602: 400, -32601: 404, -32020: 400, -32021: 400, -32022: 400}


def _plain(value: Any) -> Any:
    """What orjson does not know by itself: read-only views of mappings, as catalogs and answers may hold them."""
    if isinstance(value, Mapping):
        return dict(cast("Mapping[str, Any]", value))
    raise TypeError(type(value).__name__)


def result_body(request_id: RequestId | None, result: Any) -> bytes:
    return orjson.dumps({"jsonrpc": "2.0", "id": request_id, "result": result}, default=_plain)


def encoded_body(request_id: RequestId | None, meta: bytes, encoded: bytes) -> bytes:
    """A modern result that is JSON already, and has neither `resultType` nor `_meta`. meta: its `_meta`, as JSON."""
    return b'{"jsonrpc":"2.0","id":%s,"result":{"resultType":"complete","_meta":%s,%s}' % (
        orjson.dumps(request_id), meta, encoded[1:],
    )  # fmt: skip


def error_body(request_id: RequestId | None, code: int, message: str, data: Any = None) -> bytes:
    error: dict[str, Any] = {"code": code, "message": message}
    if data is not None:
        error["data"] = data
    return orjson.dumps({"jsonrpc": "2.0", "id": request_id, "error": error})


async def send_body(send: Send, status: int, body: bytes, headers: RawHeaders = ()) -> None:
    """One whole JSON response."""
    lines = [*JSON_HEADERS, (b"content-length", b"%d" % len(body)), *headers]
    await send({"type": "http.response.start", "status": status, "headers": lines})
    await send({"type": "http.response.body", "body": body})


class Stop(Exception):
    """A request refused before it became a call.

    kind: one of KINDS, "" when it is recorded elsewhere. status, code: give the JSON-RPC code where MCP defines one,
    otherwise the HTTP status; the other follows. request_id: None while the body has not been read, or has none that
    can be answered.
    """

    def __init__(
        self,
        kind: str,
        sentence: str,
        *,
        status: int = 0,
        code: int = 0,
        data: Any = None,
        headers: RawHeaders = (),
        request_id: RequestId | None = None,
    ) -> None:
        super().__init__(sentence)
        self.kind = kind
        code = code or status
        self.status = status or HTTP_STATUS.get(code, 400)
        self.body = error_body(request_id, code, sentence, data)
        self.headers = headers
