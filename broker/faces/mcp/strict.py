"""The one JSON reader for what agents send, the same on HTTP and stdio.

Stricter than the parsers behind it, because what is refused here cannot be read in two ways later: UTF-8 without a byte
order mark, no key twice, no NaN or Infinity in any spelling (`1e400` too), no lone surrogate, nothing after the value.
A filter, an approver and a backend must all see the same call. Integers keep all their digits or are refused: 64 bits
are what canonical JSON, SQL and other languages carry exactly. Depth, number of values and the id are capped; each
refusal names the setting.

What must not live here: anything of MCP beyond the JSON-RPC envelope; a write side.
"""

from __future__ import annotations

import math
from typing import Any, Literal, Protocol, TypeGuard, cast

import jiter
import orjson

from broker.data import dataclass
from broker.errors import Malformed

PARSE_ERROR = -32700
INVALID_REQUEST = -32600

LEAST_INTEGER = -(2**63)
GREATEST_INTEGER = 2**64 - 1  # what orjson writes exactly

RequestId = str | int


class JsonLimits(Protocol):
    """The settings read here (`broker.settings.Limits`)."""

    @property
    def json_depth(self) -> int: ...
    @property
    def json_nodes(self) -> int: ...
    @property
    def json_string_bytes(self) -> int: ...
    @property
    def id_bytes(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Message:
    """One JSON-RPC message. id: None for a notification. params: {} when absent. A response carries its own members in
    `raw` only.
    """

    kind: Literal["request", "notification", "response"]
    method: str
    id: RequestId | None
    params: dict[str, Any]
    raw: dict[str, Any]


def read_message(body: bytes, limits: JsonLimits) -> Message:
    """Raises Malformed with fact `rpc_code`: -32700 when it is not JSON, -32600 when it is not one JSON-RPC message or
    over a limit (fact `limit` names the setting).
    """
    return as_message(read_json(body, limits), limits)


def read_json(body: bytes, limits: JsonLimits) -> Any:
    """The value of strict JSON text. Raises Malformed as `read_message` does."""
    # What is written again as it came needs no further look: a key that is there twice, a number that is not exact or a
    # blank would not come back. Each value and each level takes a byte, so a short text is within the limits.
    if (
        len(body) <= min(limits.json_nodes, limits.json_string_bytes)
        and body.count(b"{") + body.count(b"[") <= limits.json_depth
    ):
        try:
            same: Any = orjson.loads(body)
        except ValueError:
            same = None  # the other reader knows why
        if body[:1] == b"{" and orjson.dumps(same) == body:
            return same
    # Every comma outside strings separates two values, so counting them refuses a million keys before they are built.
    if body.count(b",") >= limits.json_nodes and _commas_outside_strings(body) >= limits.json_nodes:
        raise _over("json_nodes", f"more than {limits.json_nodes} values")
    try:
        value: Any = jiter.from_json(
            body,
            allow_inf_nan=False,
            catch_duplicate_keys=True,
            cache_mode="none",  # what is read may be secret and must not stay in the parser's cache
        )
    except ValueError as fault:
        raise _unreadable(str(fault), limits) from None
    _judge(value, limits)
    if len(body) > limits.json_string_bytes:  # otherwise no string in it can be longer
        _judge_strings(value, limits.json_string_bytes)
    return value


def as_message(value: Any, limits: JsonLimits) -> Message:
    """The JSON-RPC envelope of a value. Raises Malformed (-32600): batches, ids that are no string or integer, params
    that are no object.
    """
    if not isinstance(value, dict):
        raise _invalid("a message is one JSON object; batches are not accepted")
    raw = cast("dict[str, Any]", value)
    if raw.get("jsonrpc") != "2.0":
        raise _invalid('"jsonrpc" must be "2.0"')
    identifier = _identifier(raw, limits) if "id" in raw else None
    if "method" not in raw:
        if identifier is None or ("result" in raw) == ("error" in raw):
            raise _invalid("a message has a method, or an id and either a result or an error")
        if not (isinstance(raw.get("result"), dict) or _is_error(raw.get("error"))):
            raise _invalid("a result is an object, an error one with a code and a message")
        return Message("response", "", identifier, {}, raw)
    method, params = raw["method"], raw.get("params")
    if not isinstance(method, str):
        raise _invalid("the method must be a string")
    if not isinstance(params, dict | None):
        raise _invalid("the params must be an object")
    known = cast("dict[str, Any]", params or {})
    return Message("notification" if identifier is None else "request", method, identifier, known, raw)


def _is_error(value: Any) -> bool:
    """JSON-RPC 2.0 section 5.1."""
    if not isinstance(value, dict):
        return False
    code, message = (cast("dict[str, Any]", value).get(key) for key in ("code", "message"))
    return isinstance(code, int) and not isinstance(code, bool) and isinstance(message, str)


def _identifier(raw: dict[str, Any], limits: JsonLimits) -> RequestId:
    identifier = raw["id"]
    if is_id(identifier, limits):
        return identifier
    if isinstance(identifier, str):
        raise _over("id_bytes", f"an id longer than {limits.id_bytes} bytes")
    raise _invalid("the id must be a string or an integer")


def is_id(value: Any, limits: JsonLimits) -> TypeGuard[RequestId]:
    """Whether this may be the id of a request."""
    if value.__class__ is str:
        # A UTF-8 text is at most four times as many bytes as characters: most ids need no encoding to be measured.
        return len(value) * 4 <= limits.id_bytes or len(value.encode()) <= limits.id_bytes
    return value.__class__ is int


def _judge(value: Any, limits: JsonLimits) -> None:
    """Level by level, so that a hostile nesting costs no stack; stops at the first limit."""
    kind = value.__class__  # the parser makes no subclasses
    if kind is not dict and kind is not list:
        _judge_number(value)
        return
    level: list[Any] = [value]  # objects and arrays
    depth, nodes = 0, 1
    while level:
        depth += 1
        if depth > limits.json_depth:
            raise _over("json_depth", f"nesting deeper than {limits.json_depth}")
        below: list[Any] = []
        for container in level:
            nodes += len(container)
            kind = container.__class__
            for item in container.values() if kind is dict else container:
                kind = item.__class__
                if kind is dict or kind is list:
                    below.append(item)
                elif kind is not str:
                    _judge_number(item)
            if nodes > limits.json_nodes:
                raise _over("json_nodes", f"more than {limits.json_nodes} values")
        level = below


def _judge_strings(value: Any, most: int) -> None:
    """Keys too. For a value that `_judge` has found shallow."""
    if isinstance(value, dict):
        for key, item in cast("dict[str, Any]", value).items():
            _judge_strings(key, most)
            _judge_strings(item, most)
    elif isinstance(value, list):
        for item in cast("list[Any]", value):
            _judge_strings(item, most)
    elif isinstance(value, str) and len(value) * 4 > most and len(value.encode()) > most:
        raise _over("json_string_bytes", f"a string longer than {most} bytes")


def _judge_number(item: Any) -> None:
    if type(item) is float and not math.isfinite(item):
        raise _malformed("a number is beyond what JSON readers agree on", PARSE_ERROR)
    if type(item) is int and not LEAST_INTEGER <= item <= GREATEST_INTEGER:
        raise _over("integers of 64 bits", "an integer beyond 64 bits; send it as a string")


def _commas_outside_strings(body: bytes) -> int:
    """Exact for valid JSON: without escapes, every second piece between quotes is outside a string."""
    pieces = body.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
    return b"".join(pieces[::2]).count(b",")


def _unreadable(fault: str, limits: JsonLimits) -> Malformed:
    if "recursion limit" in fault:
        return _over("json_depth", f"nesting deeper than {limits.json_depth}")
    # The parser quotes a doubled key, which is the sender's own text and may be long: only the place is told.
    what, _, place = fault.rpartition(" at line ")
    if "duplicate key" in what:
        # Grammatical, but read differently by different readers (RFC 8259 section 4), so a limit of ours.
        why = f"a key appears twice at line {place} (limit: unique_keys)"
        return _malformed(why, PARSE_ERROR, limit="unique_keys")
    return _malformed(fault[:80], PARSE_ERROR)


def _malformed(what: str, rpc_code: int, **facts: Any) -> Malformed:
    return Malformed(
        f"Refused: the message is not strict JSON: {what}." if rpc_code == PARSE_ERROR else f"Refused: {what}.",
        next_step="Nothing was done.",
        rpc_code=rpc_code,
        **facts,
    )


def _invalid(what: str) -> Malformed:
    return _malformed(f"not a JSON-RPC message: {what}", INVALID_REQUEST)


def _over(limit: str, what: str) -> Malformed:
    return _malformed(f"the message has {what} (limit: {limit})", INVALID_REQUEST, limit=limit)
