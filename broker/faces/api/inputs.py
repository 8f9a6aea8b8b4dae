"""What a request says beside its path, judged by the very schemas that the description publishes.

One judge for the query and for the body, so that the description cannot promise other than what is done. What must not
live here: what an operation does with it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jsonschema_rs
from starlette.requests import Request

from broker.errors import Malformed
from broker.faces import bodies
from broker.faces.api.operation import Operation
from broker.settings import Limits

_INTEGER = re.compile(r"-?[0-9]{1,16}", re.ASCII)
SAID_CHARS = 200


def schema_of(properties: Mapping[str, Any], required: tuple[str, ...] = ()) -> dict[str, Any]:
    """Of a JSON object with these members and no others."""
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(required),
        "additionalProperties": False,
    }


class Inputs:
    """The compiled judges of one operation."""

    def __init__(self, operation: Operation, limits: Limits) -> None:
        self._operation = operation
        self._limits = limits
        self._headers = jsonschema_rs.validator_for(schema_of(operation.headers))
        self._query = jsonschema_rs.validator_for(schema_of(operation.parameters))
        self._body = jsonschema_rs.validator_for(schema_of(operation.body, operation.required))

    def query(self, request: Request) -> dict[str, Any]:
        """The parameters, as the types of their schemas; an empty text or list counts as absent. Raises Malformed."""
        given: dict[str, Any] = {}
        for name, text in bodies.fields(request, self._operation.parameters).items():
            value = _typed(text, self._operation.parameters[name].get("type", "string"))
            if value not in ("", []):
                given[name] = value
        _judge(self._query, given, "parameter")
        return given

    def headers(self, request: Request) -> dict[str, str]:
        """Those the operation names, as far as they are sent. Raises Malformed, also for one that is there twice."""
        given: dict[str, str] = {}
        for name in self._operation.headers:
            sent = request.headers.getlist(name)
            if len(sent) > 1:
                raise Malformed(f"The header {name} is there twice.")
            given |= dict.fromkeys([name], sent[0]) if sent else {}
        _judge(self._headers, given, "header")
        return given

    async def body(self, request: Request) -> dict[str, Any]:
        """The members of the JSON object; {} for an empty body where nothing is required. Raises Malformed."""
        # A call's arguments may be as large here as they may be for agents.
        most = self._limits.body_bytes if "arguments" in self._operation.body else bodies.BODY_BYTES
        given = await bodies.json_object(request, self._operation.body, self._limits, most_bytes=most)
        _judge(self._body, given, "member")
        return given


def _typed(text: str, kind: str) -> Any:
    """Text of a URL as what its schema asks for, unchanged where it is no such thing (the judge then says so)."""
    if kind == "integer":
        return int(text) if _INTEGER.fullmatch(text) else (text or None)
    if kind == "boolean":
        return {"true": True, "false": False}.get(text, text or None)
    if kind == "array":  # style `form`, not exploded: commas between
        return text.split(",") if text else []
    return text


def _judge(validator: Any, given: Mapping[str, Any], what: str) -> None:
    for error in validator.iter_errors(given):
        place = "/".join(str(step) for step in error.instance_path)
        raise Malformed(
            f"The {what} {place} is not valid: {error.message[:SAID_CHARS]}."
            if place
            else f"{error.message[:SAID_CHARS]}.",
            next_step="See /api/openapi.json.",
        )
