"""Whether what a downstream server lists and answers is as MCP has it, so that a client of every era can read it.

The SDK refuses a whole list for one entry that is not, and an answer only when it is about to be sent: an agent would
then be told of a broken broker what the record calls done. So each is judged when it comes, and what is wrong costs its
server alone. What no revision knows is no fault; nothing is taken away here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import mcp_types as types
from mcp_types.methods import validate_server_result
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS
from pydantic import BaseModel, ValidationError

_ENTRIES: Mapping[str, type[BaseModel]] = {
    "tools/list": types.Tool,
    "resources/list": types.Resource,
    "resources/templates/list": types.ResourceTemplate,
    "prompts/list": types.Prompt,
}
_STRICTEST = HANDSHAKE_PROTOCOL_VERSIONS[-1]  # what it takes the modern era takes, too


def entry_fault(method: str, entry: Mapping[str, Any]) -> str:
    """The member of an entry of this list that is not as MCP has it; "" when all are."""
    try:
        _ENTRIES[method].model_validate(entry, by_name=False)
    except ValidationError as error:
        return str(error.errors()[0]["loc"][0])
    return ""


def result_fault(method: str, result: Mapping[str, Any]) -> str:
    """The same of a result, as a path such as `content.0`. Its structured content is not judged here."""
    if method == "tools/call" and _is_plain(result):
        return ""
    if not isinstance(result.get("isError"), bool | None):  # pydantic takes a word for one of both
        return "isError"
    try:
        validate_server_result(method, _STRICTEST, {**result, "structuredContent": None})
    except ValidationError as error:
        return ".".join(str(step) for step in error.errors()[0]["loc"][:2])
    return ""


def _is_plain(result: Mapping[str, Any]) -> bool:
    """Whether it is a tool's result of nothing but plain texts, as nearly all are."""
    content: Any = result.get("content")
    if type(content) is not list or type(result.get("isError", False)) is not bool or "_meta" in result:
        return False
    return all(
        type(block) is dict and len(block) == 2 and block.get("type") == "text" and type(block.get("text")) is str
        for block in cast("list[dict[str, Any]]", content)
    )
