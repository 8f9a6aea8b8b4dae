"""The tools that the conformance suite calls, one function each; what they offer is in TOOLS.

What must not live here: calls of several rounds (`rounds`), and how the server is put together (`server`).
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import anyio
import mcp_types
from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPDeprecationWarning, MCPError

from tests.conformance.rounds import Result, text

Context = ServerRequestContext[Any, Any]
Does = Callable[[Context, Mapping[str, Any]], Awaitable[Result]]

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGP4z8DwHwAFAAH/iZk9HQAAAABJRU5ErkJggg=="
WAV = "UklGRiQAAABXQVZFZm10IBAAAAABAAEAQB8AAEAfAAABAAgAZGF0YQAAAAA="
PAUSE_S = 0.05  # so that what is said meanwhile is seen to arrive meanwhile
RECONNECT_S = 0.2
MISSING_CAPABILITY = -32021

IMAGE: Result = {"type": "image", "data": PNG, "mimeType": "image/png"}


@dataclass(frozen=True, slots=True)
class Offered:
    does: Does
    description: str
    schema: Mapping[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})


def _of(**properties: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"type": "object", "properties": properties, "required": [*properties]}


def _always(*content: Result) -> Does:
    async def does(_context: Context, _arguments: Mapping[str, Any]) -> Result:
        return {"content": [*content]}

    return does


def _resource(uri: str, mime: str, said: str) -> Result:
    return {"type": "resource", "resource": {"uri": uri, "mimeType": mime, "text": said}}


async def error_handling(_context: Context, _arguments: Mapping[str, Any]) -> Result:
    return {**text("This tool always fails, and says so."), "isError": True}


async def log(context: Context, said: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MCPDeprecationWarning)  # deprecated and still owed
        await context.session.send_log_message("info", said, related_request_id=context.request_id)  # pyright: ignore[reportDeprecated]


async def logging(context: Context, _arguments: Mapping[str, Any]) -> Result:
    for said in ("Tool execution started", "Tool processing data", "Tool execution completed"):
        await log(context, said)
        await anyio.sleep(PAUSE_S)
    return text("Said three things on the way.")


async def progress(context: Context, _arguments: Mapping[str, Any]) -> Result:
    for percent in (0, 50, 100):
        await context.session.report_progress(percent, 100, f"{percent} of 100")
        await anyio.sleep(PAUSE_S)
    return text("Came to the end.")


async def sampling(context: Context, arguments: Mapping[str, Any]) -> Result:
    said = mcp_types.SamplingMessage(
        role="user", content=mcp_types.TextContent(type="text", text=str(arguments.get("prompt")))
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MCPDeprecationWarning)
        answer = await context.session.create_message([said], max_tokens=100, related_request_id=context.request_id)  # pyright: ignore[reportDeprecated]
    words = answer.content.text if isinstance(answer.content, mcp_types.TextContent) else "something that is no text"
    return text(f"LLM response: {words}")


async def _elicit(context: Context, message: str, properties: Mapping[str, Any]) -> Result:
    schema: dict[str, Any] = {"type": "object", "properties": properties, "required": [*properties]}
    answer = await context.session.elicit_form(message, schema, related_request_id=context.request_id)
    return text(f"User response: action={answer.action}, content={json.dumps(answer.content)}")


async def elicitation(context: Context, arguments: Mapping[str, Any]) -> Result:
    fields = {"username": {"type": "string"}, "email": {"type": "string"}}
    return await _elicit(context, str(arguments.get("message")), fields)


async def elicitation_defaults(context: Context, _arguments: Mapping[str, Any]) -> Result:
    status = {"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"}
    fields = {
        "name": {"type": "string", "default": "John Doe"},
        "age": {"type": "integer", "default": 30},
        "score": {"type": "number", "default": 95.5},
        "status": status,
        "verified": {"type": "boolean", "default": True},
    }
    return await _elicit(context, "Please look over your details", fields)


def _titled(word: str, *titles: str) -> list[dict[str, str]]:
    return [{"const": f"{word}{n}", "title": title} for n, title in enumerate(titles, 1)]


async def elicitation_enums(context: Context, _arguments: Mapping[str, Any]) -> Result:
    plain = ["option1", "option2", "option3"]
    old, names = ["opt1", "opt2", "opt3"], ["Option One", "Option Two", "Option Three"]
    choices = _titled("value", "First Choice", "Second Choice", "Third Choice")
    fields = {
        "untitledSingle": {"type": "string", "enum": plain},
        "titledSingle": {"type": "string", "oneOf": choices},
        "legacyEnum": {"type": "string", "enum": old, "enumNames": names},
        "untitledMulti": {"type": "array", "items": {"type": "string", "enum": plain}},
        "titledMulti": {"type": "array", "items": {"anyOf": choices}},
    }
    return await _elicit(context, "Please choose", fields)


async def missing_capability(context: Context, _arguments: Mapping[str, Any]) -> Result:
    declared = context.session.client_capabilities
    if declared is None or declared.sampling is None:
        needed: dict[str, Any] = {"requiredCapabilities": {"sampling": {}}}
        raise MCPError(MISSING_CAPABILITY, "This tool needs a client that samples", needed)
    return text("This client samples.")


async def reconnection(context: Context, _arguments: Mapping[str, Any]) -> Result:
    await log(context, "Before the stream closes")
    if context.close_sse_stream is not None:
        await context.close_sse_stream()
    await anyio.sleep(RECONNECT_S)
    await log(context, "After the stream closed")
    return text("This came after the stream had closed.")


async def mirrored(_context: Context, arguments: Mapping[str, Any]) -> Result:
    return text(f"region={arguments.get('region')}")


SCHEMA_2020_12: Mapping[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {
        "address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
        }
    },
    "properties": {
        "name": {"type": "string"},
        "address": {"$ref": "#/$defs/address"},
        "contactMethod": {"type": "string", "enum": ["phone", "email"]},
        "phone": {"type": "string"},
        "email": {"type": "string"},
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}
_HEADER_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {"region": {"type": "string", "x-mcp-header": "Region"}},
}

_SIMPLE = {"type": "text", "text": "This is a simple text response for testing."}
_WITHIN = _resource("test://embedded-resource", "text/plain", "This is an embedded resource content.")
_MIXED = (
    {"type": "text", "text": "Three kinds of content:"},
    IMAGE,
    _resource("test://mixed-content-resource", "application/json", '{"test": "data", "value": 123}'),
)

TOOLS: Mapping[str, Offered] = {
    "test_simple_text": Offered(_always(_SIMPLE), "One text"),
    "test_image_content": Offered(_always(IMAGE), "One image"),
    "test_audio_content": Offered(_always({"type": "audio", "data": WAV, "mimeType": "audio/wav"}), "One sound"),
    "test_embedded_resource": Offered(_always(_WITHIN), "A resource within the answer"),
    "test_multiple_content_types": Offered(_always(*_MIXED), "Text, image and resource in one answer"),
    "test_tool_with_logging": Offered(logging, "Logs while it works"),
    "test_logging_tool": Offered(logging, "Logs while it works, to whoever asked for it"),
    "test_error_handling": Offered(error_handling, "Fails"),
    "test_tool_with_progress": Offered(progress, "Reports its progress"),
    "test_sampling": Offered(sampling, "Asks the client's model", _of(prompt={"type": "string"})),
    "test_elicitation": Offered(elicitation, "Asks the user", _of(message={"type": "string"})),
    "test_elicitation_sep1034_defaults": Offered(elicitation_defaults, "Asks the user, with defaults"),
    "test_elicitation_sep1330_enums": Offered(elicitation_enums, "Asks the user to choose"),
    "test_missing_capability": Offered(missing_capability, "Needs a client that samples"),
    "test_reconnection": Offered(reconnection, "Closes its stream on the way"),
    "test_x_mcp_header": Offered(mirrored, "Has an argument that is mirrored in a header", _HEADER_SCHEMA),
    "json_schema_2020_12_tool": Offered(_always(_SIMPLE), "Has a schema of many keywords", SCHEMA_2020_12),
}
