"""From a `tools/call` request to a `Call`, and from its end to what an agent is told; the same for every transport.

A refusal is a tool result, so that the model reads it, with two exceptions: an unknown tool is a JSON-RPC error in
either era, and missing scopes or a dead token are an HTTP challenge where there is HTTP.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

import structlog
import uuid_utils

from broker.data import dataclass
from broker.errors import (
    BrokerError,
    Held,
    InsufficientScope,
    Internal,
    Malformed,
    Rejected,
    StateSpent,
    TaskRequired,
    Unauthenticated,
    Underway,
    UnknownTool,
)
from broker.faces.mcp import confirming
from broker.faces.mcp.agreement import (
    CAPABILITIES_KEY,
    CLIENT_KEY,
    INVALID_PARAMS,
    LOG_LEVEL_KEY,
    SERVER_KEY,
    SUBSCRIPTION_KEY,
    VERSION_KEY,
)
from broker.faces.mcp.ports import House
from broker.faces.mcp.strict import RequestId
from broker.faces.refusal import as_result
from broker.model.answer import Answer
from broker.model.back import PASSED_ON, Back
from broker.model.call import Call, Progress
from broker.model.principal import Principal
from broker.model.task import EXTENSION, TASK, takes_tasks
from broker.pipeline import held_call

# Between this client and this server only (1.5 of the protocol's duties of intermediaries): never passed on.
OWN_META = frozenset({VERSION_KEY, CAPABILITIES_KEY, CLIENT_KEY, LOG_LEVEL_KEY, SUBSCRIPTION_KEY, "progressToken"})

NAME_CHARACTERS = 128

MISSING_CAPABILITY = -32021
REQUIRED_TASKS: Mapping[str, Any] = {"requiredCapabilities": {"extensions": {EXTENSION: {}}}}

PROTOCOL_ERRORS = (Rejected, StateSpent, TaskRequired)
"""Errors of which some are JSON-RPC errors (`protocol_error`)."""

TRACE_CHARACTERS = 128
# W3C Trace Context, section 3.2: version, trace-id, parent-id, flags, and what later versions may append.
_TRACE_PARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-[!-~]*)?")

log = structlog.get_logger("broker.mcp")


@dataclass(frozen=True, slots=True)
class Declared:
    """What a request's `_meta` says. meta: what of it is for whoever the call goes to. trace_parent: None where it says
    nothing, "" where it says what is none."""

    capabilities: Mapping[str, Any]
    takes_tasks: bool
    meta: Mapping[str, Any]
    trace_parent: str | None


def declared(meta: Mapping[str, Any], capabilities: Mapping[str, Any] | None = None) -> Declared:
    """capabilities: of the session; None reads them from this `_meta`."""
    given: Any = meta.get(CAPABILITIES_KEY) if capabilities is None else capabilities
    known = cast("dict[str, Any]", given) if isinstance(given, dict) else {}
    passed_on = {key: value for key, value in meta.items() if key not in OWN_META}
    trace = trace_parent_of(meta["traceparent"]) if "traceparent" in meta else None
    return Declared(known, takes_tasks(known), passed_on, trace)


def build_call(
    params: Mapping[str, Any],
    *,
    principal: Principal,
    face: str,
    now_ms: int,
    request_id: RequestId | None,
    capabilities: Mapping[str, Any] | None = None,
    trace_parent: str = "",
    progress: Progress | None = None,
    back: Back | None = None,
) -> Call:
    """params: of a `tools/call` request. capabilities: of the session; None reads them from the request's `_meta`.

    Identity comes from `principal` alone; nothing in `_meta` can change it. Raises Malformed (fact `rpc_code` -32602)
    when the name is no string or the arguments are no object.
    """
    name, raw_arguments, raw_meta = params.get("name"), params.get("arguments"), params.get("_meta")
    if not isinstance(name, str) or not isinstance(raw_arguments, dict | None):
        raise Malformed("params.name must be a string and params.arguments an object", rpc_code=INVALID_PARAMS)
    said = declared(cast("dict[str, Any]", raw_meta) if isinstance(raw_meta, dict) else {}, capabilities)
    is_modern = back is None or back.session is None
    arguments = cast("dict[str, Any]", raw_arguments or {})
    call = made(
        name, arguments, said, principal=principal, face=face, now_ms=now_ms, request_id=request_id,
        trace_parent=trace_parent_of(trace_parent),
    )  # fmt: skip
    call.takes_task = call.takes_task and is_modern
    call.progress, call.back = progress, back
    return call


def made(
    name: str,
    arguments: dict[str, Any],
    said: Declared,
    *,
    principal: Principal,
    face: str,
    now_ms: int,
    request_id: RequestId | None,
    trace_parent: str = "",
) -> Call:
    """A call of the modern era. trace_parent: of the header, judged; what the `_meta` has takes precedence."""
    return Call(  # positional, in the order of its fields: this runs for every call
        str(uuid_utils.uuid7()),
        name,
        arguments,
        principal,
        face,
        now_ms,
        "" if request_id is None else str(request_id),
        trace_parent if said.trace_parent is None else said.trace_parent,
        said.meta,
        said.capabilities,
        said.takes_tasks and name != held_call.NAME,
        True,
    )


def trace_parent_of(value: object) -> str:
    """A traceparent as backends may be sent it, in a header; "" for anything else (section 4.2: it is ignored)."""
    if not isinstance(value, str) or len(value) > TRACE_CHARACTERS:
        return ""
    return value if _TRACE_PARENT.fullmatch(value) else ""


async def perform(house: House, call: Call) -> dict[str, Any]:
    """The tool result of this call, be it an answer or a refusal. Raises as `answered` does."""
    ended = await answered(house, call)
    return as_told(house, ended, call) if isinstance(ended, Answer) else ended


def as_told(house: House, answer: Answer, call: Call) -> dict[str, Any]:
    """The answer as a result; what is to be come back with (a state, the id of a task) sealed."""
    is_task = answer.more.get("resultType") == TASK
    return house.tasks.relayed(answer, call) if is_task else house.rounds.result(answer, call)


async def answered(house: House, call: Call) -> Answer | dict[str, Any]:
    """The answer to this call, the tool result that tells a refusal, or the task it goes on as.

    Raises UnknownTool, InsufficientScope and Unauthenticated, which each transport tells in its own way, and what
    `protocol_error` knows; nothing else. On cancel: the pipeline has recorded the call's end when this leaves.
    """
    try:
        return await house.pipeline.perform(call)
    except Exception as error:  # noqa: BLE001 – `ended_otherwise` judges it
        return await ended_otherwise(house, call, error)


async def ended_otherwise(house: House, call: Call, error: Exception) -> Answer | dict[str, Any]:
    """What `answered` gives, or raises, for a call of which the pipeline has raised this. A call that its own user may
    confirm may end with the question to do so."""
    try:
        try:
            if not isinstance(error, Held) or not error.facts.get("confirm"):
                raise error
            if not call.can_visit or call.confirming is not None:
                raise error
            return await confirming.elicited(house, error, call)
        except (Held, Underway) as begun:
            if not call.takes_task:
                raise
            return await house.tasks.created(begun, call)
    except (UnknownTool, InsufficientScope, Unauthenticated):
        raise
    except BrokerError as refusal:
        if protocol_error(refusal, call) is not None:
            raise
        return as_result(refusal, call.id)
    except Exception:  # the wire's edge: whatever went wrong in here, the agent gets an answer and the log the details
        log.exception("a call failed outside the pipeline's care", call_id=call.id)
        failure = Internal("Refused: the broker failed.", next_step="Ask the operator; do not send the call again.")
        failure.effect = "unknown"
        return as_result(failure, call.id)


def protocol_error(error: BrokerError, call: Call) -> tuple[int, str, Any] | None:
    """Code, message and data of an end that is a JSON-RPC error and no tool result: one that programs act upon, because
    a client library lacks a capability, has to visit a URL, or sent a state along that is good for nothing."""
    if isinstance(error, TaskRequired) and (call.back is None or call.back.session is None):
        return MISSING_CAPABILITY, error.sentence, REQUIRED_TASKS
    if isinstance(error, StateSpent):
        return INVALID_PARAMS, error.sentence, {"reason": "invalid_request_state"}
    if not isinstance(error, Rejected):
        return None
    code = error.facts.get("rpc_code")
    if code in PASSED_ON:
        return code, error.said, error.facts.get("rpc_data")
    return (INVALID_PARAMS, error.sentence, None) if code == INVALID_PARAMS and call.round is not None else None


def modern_result(result: dict[str, Any], server_info: Mapping[str, str]) -> dict[str, Any]:
    """The result as the 2026-07-28 wire wants it: with `resultType`, and `serverInfo` naming the broker alone."""
    result.setdefault("resultType", "complete")
    result["_meta"] = {**(result.get("_meta") or {}), SERVER_KEY: server_info}
    return result


def without_server(result: dict[str, Any]) -> dict[str, Any]:
    """The result without a downstream server's own `serverInfo`, so that the SDK puts the broker's there."""
    meta: Mapping[str, Any] | None = result.get("_meta")
    if meta and SERVER_KEY in meta:
        result["_meta"] = {key: value for key, value in meta.items() if key != SERVER_KEY}
    return result


def unknown_tool(name: str) -> str:
    """The one sentence for every tool a caller may not see."""
    return f"Unknown tool: {name[:NAME_CHARACTERS]}"
