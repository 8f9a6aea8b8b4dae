"""Reading a resource, getting a prompt and completing a value at a downstream server: what is sent, what counts as an
answer.

The result is relayed whole, with fields nobody here knows; only what is no answer at all is refused. A resource that
the catalog calls otherwise than its server (two servers offer the same URI) gets the catalog's URI in its contents.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from broker.model.call import Call
from broker.model.part import Part


def request_of(part: Part, arguments: Mapping[str, Any], call: Call) -> tuple[str, dict[str, Any]]:
    """The method and its params, without `_meta`."""
    if call.completing is not None:
        key, kind = ("name", "ref/prompt") if part.family == "prompts" else ("uri", "ref/resource")
        return "completion/complete", {"ref": {"type": kind, key: part.natural}, **call.completing}
    if part.family == "prompts":
        params: dict[str, Any] = {"name": part.natural}
        return "prompts/get", {**params, "arguments": dict(arguments)} if arguments else params
    return "resources/read", {"uri": natural_uri(part, arguments)}


def natural_uri(part: Part, arguments: Mapping[str, Any]) -> str:
    """The URI as its server calls it."""
    return str(arguments["uri"]).removeprefix(part.prefix)


def fault_of(part: Part, result: Mapping[str, Any], *, completing: bool) -> str:
    """Why this is no answer to such a request, as the end of a sentence; "" when it is one."""
    if completing:
        completion: Any = result.get("completion")
        values: Any = cast("Mapping[str, Any]", completion).get("values") if isinstance(completion, Mapping) else None
        return "" if isinstance(values, list) else "has no completion values"
    key = "messages" if part.family == "prompts" else "contents"
    found: Any = result.get(key)
    if not isinstance(found, list) or not all(isinstance(one, Mapping) for one in cast("list[Any]", found)):
        return f"has no {key}"
    return ""


def renamed(part: Part, result: dict[str, Any]) -> dict[str, Any]:
    """The result with the URIs of the catalog."""
    contents: Any = result.get("contents")
    if part.prefix and isinstance(contents, list):
        result["contents"] = [_with_prefix(part.prefix, one) for one in cast("list[dict[str, Any]]", contents)]
    return result


def _with_prefix(prefix: str, content: dict[str, Any]) -> dict[str, Any]:
    uri = content.get("uri")
    return {**content, "uri": prefix + uri} if isinstance(uri, str) else content
