"""`resources/read`, `prompts/get` and `completion/complete`: from a request to a `Call`, and from its end to an answer.

They go through the pipeline's one door as tool calls do. What differs is how a refusal is told: there is no result a
model would read, so it is a JSON-RPC error with the whole sentence in its message, because clients show nothing else.
Where neither JSON-RPC nor MCP has a code for it, the code is the HTTP status of what happened, as everywhere in this
face. A server's own error keeps its code.

What must not live here: the SDK (`relay` registers its handlers).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal, cast

import structlog

from broker.data import dataclass
from broker.errors import BrokerError, Internal, Malformed, UnknownTool
from broker.faces.mcp.agreement import INVALID_PARAMS
from broker.faces.mcp.calls import build_call, protocol_error
from broker.faces.mcp.ports import House
from broker.faces.refusal import as_result
from broker.model.call import Call
from broker.model.part import PROMPT, RESOURCE

RESOURCE_NOT_FOUND = -32002  # of the handshake eras; the modern one has INVALID_PARAMS for it

# By the error's code: what happened, as an HTTP status. Others are 500.
_STATUS: Mapping[str, int] = {
    "unauthenticated": 401,
    "forbidden": 403,
    "insufficient_scope": 403,
    "denied_by_reviewer": 403,
    "hold_expired": 403,
    "hold_withdrawn": 403,
    "unknown_hold": 404,
    "held": 202,
    "conflict": 409,
    "over_quota": 429,
    "overloaded": 503,
    "record_unavailable": 503,
    "backend_unavailable": 503,
    "backend_timed_out": 504,
    "backend_rejected": 502,
    "backend_broken": 502,
    "backend_error": 502,
    "answer_withheld": 502,
}

log = structlog.get_logger("broker.mcp")


@dataclass(frozen=True, slots=True)
class _Asked:
    kind: Literal["resource", "prompt"]
    name: str
    arguments: Mapping[str, Any]
    completing: Mapping[str, Any] | None = None
    follow: bool = False


def build_part_call(method: str, params: Mapping[str, Any], **known: Any) -> Call:
    """As `build_call`, of a request of one of METHODS. known: what `build_call` takes by name.

    Raises Malformed (fact `rpc_code` -32602) when the params are not of the method's shape.
    """
    asked = METHODS[method](params)
    call = build_call({"name": asked.name, "arguments": asked.arguments, "_meta": params.get("_meta")}, **known)
    call.asked, call.completing, call.follow = asked.kind, asked.completing, asked.follow
    return call


def _read(params: Mapping[str, Any]) -> _Asked:
    uri = _text(params, "uri")
    return _Asked("resource", RESOURCE + uri, {"uri": uri})


def _follow(params: Mapping[str, Any]) -> _Asked:
    return replace(_read(params), follow=True)


def _get(params: Mapping[str, Any]) -> _Asked:
    return _Asked("prompt", PROMPT + _text(params, "name"), _mapping(params, "arguments"))


def _complete(params: Mapping[str, Any]) -> _Asked:
    """Judged with the arguments known so far: those of the context, and the one being completed."""
    reference, argument, context = _mapping(params, "ref"), _mapping(params, "argument"), _mapping(params, "context")
    completing = {"argument": argument, **({"context": context} if context else {})}
    known = {**_mapping(context, "arguments"), _text(argument, "name"): _text(argument, "value")}
    if reference.get("type") == "ref/prompt":
        return _Asked("prompt", PROMPT + _text(reference, "name"), known, completing)
    if reference.get("type") == "ref/resource":
        return _Asked("resource", RESOURCE + _text(reference, "uri"), known, completing)
    raise Malformed("params.ref.type must be ref/prompt or ref/resource", rpc_code=INVALID_PARAMS)


METHODS: Mapping[str, Callable[[Mapping[str, Any]], _Asked]] = {
    "resources/read": _read,
    "resources/subscribe": _follow,
    "prompts/get": _get,
    "completion/complete": _complete,
}


def _text(params: Mapping[str, Any], key: str) -> str:
    value = params.get(key)
    if not isinstance(value, str):
        raise Malformed(f"params: {key} must be a string", rpc_code=INVALID_PARAMS)
    return value


def _mapping(params: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = params.get(key)
    if value is not None and not isinstance(value, dict):
        raise Malformed(f"params: {key} must be an object", rpc_code=INVALID_PARAMS)
    return cast("dict[str, Any]", value or {})


async def perform_part(house: House, call: Call) -> dict[str, Any]:
    """The result, with every field its server gave. Raises BrokerError only.

    On cancel: the pipeline has recorded the call's end when this leaves.
    """
    try:
        answer = await house.pipeline.perform(call)
    except BrokerError:
        raise
    except Exception:  # the wire's edge: whatever went wrong in here, the agent gets an answer and the log the details
        log.exception("a read failed outside the pipeline's care", call_id=call.id)
        raise Internal("Refused: the broker failed.", next_step="Give the call id to the operator.") from None
    result = house.rounds.result(answer, call)
    for field in ("content", "isError"):  # of tool results
        result.pop(field, None)
    return result


def as_error(error: BrokerError, call: Call, *, modern: bool) -> tuple[int, str, Any]:
    """code, message and data of the JSON-RPC error."""
    if isinstance(error, UnknownTool):
        missing = call.asked == "resource" and call.completing is None
        data = {"uri": call.name.removeprefix(RESOURCE)} if missing else None
        return (RESOURCE_NOT_FOUND if missing and not modern else INVALID_PARAMS), error.message, data
    code = error.facts.get("rpc_code") or (INVALID_PARAMS if error.code == "invalid_arguments" else 0)
    if known := protocol_error(error, call):
        return known
    if code == RESOURCE_NOT_FOUND and modern:
        code = INVALID_PARAMS
    told = as_result(error, call.id)
    return code or _STATUS.get(error.code, 500), told["content"][0]["text"], told["structuredContent"]
