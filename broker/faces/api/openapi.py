"""The published description of the API (OpenAPI 3.1), made from the table of operations and our own types.

Schemas say what is always there; answers may carry more. Source: https://spec.openapis.org/oas/v3.1.0
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, get_args

from broker.faces.api.errors import STATUS
from broker.faces.api.inputs import schema_of
from broker.faces.api.operation import Operation
from broker.faces.api.operations import OPERATIONS, STATES
from broker.model.grant import GRANT_TRANSITIONS
from broker.model.quota import QuotaKind

ALWAYS = ("malformed_request", "unauthenticated", "record_unavailable", "internal")

_NUMBER: Mapping[str, Any] = {"type": "number", "minimum": 0}
_TEXT: Mapping[str, Any] = {"type": "string"}
_COUNT: Mapping[str, Any] = {"type": "integer", "minimum": 0}
_FLAG: Mapping[str, Any] = {"type": "boolean"}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _all(*parts: Any) -> dict[str, Any]:
    return {"allOf": list(parts)}


def _list(name: str, **more: Any) -> dict[str, Any]:
    return _object(items={"type": "array", "items": _ref(name)}, **more)


_NEXT = {"type": "string", "description": "`before` of the next page; empty on the last."}
_ARGUMENTS = {"description": "Exactly what will be sent while it is open; then what the record keeps, or null."}

SCHEMAS: Mapping[str, Mapping[str, Any]] = {
    "Error": _object(
        message=_TEXT,
        code={"enum": sorted(STATUS)},
        stage=_TEXT,
        effect={"enum": ["none", "unknown", "done"]},
        retryable=_FLAG,
    ),
    "Invocation": _object(
        call_id=_TEXT,
        at={"type": "string", "format": "date-time"},
        state={"enum": list(STATES)},
        **dict.fromkeys(("at_ms", "changed_at_ms", "result_bytes"), _COUNT),
        **dict.fromkeys(("face", "agent", "user", "tenant", "issuer", "tool", "tool_version", "tool_effect"), _TEXT),
        **dict.fromkeys(("backend", "rule", "policy_version", "definition", "arguments_digest", "code"), _TEXT),
        **dict.fromkeys(("stage", "message", "backend_status", "result_digest"), _TEXT),
        effect={"enum": ["none", "unknown", "done"]},
        duration_ms={"type": "number", "minimum": 0},
        quotas={"type": "array", "items": {"type": "object"}},
        hold={"anyOf": [{"type": "null"}, _ref("Terms")]},
    ),
    "Terms": _object(
        reason=_TEXT,
        expires_at_ms=_COUNT,
        scopes={"type": "array", "items": _TEXT},
        groups={"type": "array", "items": _TEXT},
        reviewer=_TEXT,
        review_reason=_TEXT,
        reviewed_at_ms=_COUNT,
        collected_at_ms=_COUNT,
        quorum={"type": "integer", "minimum": 1},
        reasons={"type": "array", "items": {"enum": ["approve", "deny"]}},
        escalates_at_ms=_COUNT,
        escalation_scopes={"type": "array", "items": _TEXT},
        escalation_groups={"type": "array", "items": _TEXT},
        on_expiry={"enum": ["reject", "allow"]},
        on_collect=_FLAG,
        approvals={"type": "array", "items": _ref("Approval")},
        sketch_digest=_TEXT,
        preview={"anyOf": [{"type": "null"}, _ref("Preview")]},
        edited_by=_TEXT,
    ),
    "Grant": _object(
        grant_id=_TEXT,
        state={"enum": list(GRANT_TRANSITIONS)},
        **dict.fromkeys(("at_ms", "changed_at_ms", "until_ms", "count", "used", "spent", "total"), _COUNT),
        **dict.fromkeys(("tenant", "agent", "issuer", "user", "tool", "definition", "rule", "when", "amount"), _TEXT),
        **dict.fromkeys(("reason", "from_hold", "ended_by", "ended_reason", "objection"), _TEXT),
        quorum={"type": "integer", "minimum": 2},
        approvals={"type": "array", "items": _ref("Approval")},
        may_decide=_FLAG,
    ),
    "Grants": _list("Grant"),
    "Approval": _object(reviewer=_TEXT, reason=_TEXT, at_ms=_COUNT, via=_TEXT),
    "Preview": _object(tool=_TEXT, call_id=_TEXT, digest=_TEXT, failed=_TEXT),
    "Sketch": _object(method=_TEXT, target=_TEXT, headers={"type": "array", "items": _TEXT}, body=_TEXT, digest=_TEXT),
    "Change": _object(path=_TEXT, kind={"enum": ["changed", "added", "removed"]}),
    "Hold": _all(_ref("Invocation"), _object(may_decide=_FLAG, objection=_TEXT)),
    "HoldInFull": _all(
        _ref("Hold"),
        _object(
            arguments=_ARGUMENTS,
            sketch={"anyOf": [{"type": "null"}, _ref("Sketch")], "description": "What will be sent, while it is open."},
            previewed={"description": "The answer of the safe call made beforehand, while it is open, or null."},
            changes={"type": "array", "items": _ref("Change")},
        ),
    ),
    "Holds": _list("Hold", next=_NEXT),
    "Call": _object(
        call_id=_TEXT,
        tool=_TEXT,
        state={"enum": list(STATES)},
        effect={"enum": ["none", "unknown", "done"]},
        code=_TEXT,
        message=_TEXT,
        hold={"anyOf": [{"type": "null"}, _ref("Terms")]},
        result={
            "anyOf": [{"type": "null"}, {"type": "object"}],
            "description": "The MCP result (content, structuredContent, isError), as long as it is kept for you.",
        },
    ),
    "Invocations": _list("Invocation", next=_NEXT),
    "InvocationInFull": _all(_ref("Invocation"), _object(timeline={"type": "array", "items": _ref("Step")})),
    "Step": _object(what=_TEXT, at_ms=_COUNT, took_us=_COUNT, detail=_TEXT),
    "Sum": _object(
        name=_TEXT,
        **dict.fromkeys(("calls", "refused", "failed", "unknown", "sent"), _COUNT),
        mean_ms=_NUMBER,
        slowest_ms=_NUMBER,
        spent={"type": "object", "additionalProperties": _COUNT},
    ),
    "Sums": _list("Sum"),
    "Counts": _object(
        **dict.fromkeys(("held", "waiting", "approved", "changed", "denied", "expired", "withdrawn"), _COUNT),
        **dict.fromkeys(("median_ms", "expiry_rate", "override_rate"), _NUMBER),
    ),
    "Payload": _object(arguments={"anyOf": [{"type": "null"}, {"type": "object"}]}),
    "Stats": _object(
        since_ms={"type": "integer"},
        counts=_ref("Counts"),
        rules={"type": "array", "items": _object(rule=_TEXT, counts=_ref("Counts"), always_approved=_FLAG)},
        asked={
            "type": "array",
            "items": _object(
                scopes={"type": "array", "items": _TEXT},
                groups={"type": "array", "items": _TEXT},
                counts=_ref("Counts"),
                is_overloaded=_FLAG,
            ),
        },
        persons={
            "type": "array",
            "items": _object(person=_TEXT, decided=_COUNT, share=_NUMBER, is_overloaded=_FLAG),
        },
    ),
    "Quota": _object(
        quota=_TEXT,
        bucket=_TEXT,
        kind={"enum": list(get_args(QuotaKind))},
        limit=_COUNT,
        left={"type": "integer"},
        unit=_TEXT,
        resets_at_ms=_COUNT,
        retry_after_ms=_COUNT,
    ),
    "Quotas": _list("Quota", next={"type": "string", "description": "`after` of the next page; empty on the last."}),
    "Tool": _object(
        name=_TEXT,
        inputSchema={"type": "object"},
        version=_TEXT,
        owner=_TEXT,
        effect={"enum": ["read", "write", "destroy"]},
        backend=_TEXT,
        scopes={"type": "array", "items": _TEXT},
        missing_scopes={"type": "array", "items": _TEXT},
        definition=_TEXT,
    ),
    "Catalog": _list("Tool", version=_TEXT),
}


def document(version: str, base_url: str) -> dict[str, Any]:
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
        "info": {
            "title": "broker",
            "version": version,
            "description": "Holds, calls, quotas and the catalog. What you may not see does not exist for you.",
        },
        "servers": [{"url": base_url}],
        "security": [{"bearer": []}],
        "paths": paths,
        "components": {
            "schemas": SCHEMAS,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
    }


def _operation(operation: Operation) -> dict[str, Any]:
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "maxLength": 128}}
        for name in re.findall(r"\{(\w+)\}", operation.path)
    ]
    parameters += [_parameter(name, schema) for name, schema in operation.parameters.items()]
    parameters += [{"name": name, "in": "header", "schema": schema} for name, schema in operation.headers.items()]
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "parameters": parameters,
        "responses": _responses(operation),
    }
    if operation.body:
        schema = schema_of(operation.body, operation.required)
        described["requestBody"] = {
            "required": bool(operation.required),
            "content": {"application/json": {"schema": schema}},
        }
    return described


def _parameter(name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    written = {"style": "form", "explode": False} if schema.get("type") == "array" else {}
    return {"name": name, "in": "query", "schema": schema, **written}


def _responses(operation: Operation) -> dict[str, Any]:
    responses: dict[str, Any] = {"200": {"description": "Done.", **_content(operation.answer)}}
    if operation.leads_to:
        responses["200"]["links"] = {
            name: {"operationId": name, "parameters": {"id": f"$response.body#{place}"}}
            for name, place in operation.leads_to.items()
        }
    if operation.accepts:
        ways = {"Location": {"schema": _TEXT}, "Retry-After": {"schema": _TEXT}}
        responses["202"] = {**responses["200"], "description": "Not ended yet: ask at the Location.", "headers": ways}
    for code in (*ALWAYS, *operation.codes):
        status = str(STATUS[code])
        known = responses.get(status, {"description": "", **_content("Error")})
        responses[status] = {**known, "description": f"{known['description']} `{code}`".strip()}
    return responses


def _content(schema: str) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": _ref(schema)}}}
