"""A server with every name that the scenarios of the official conformance suite ask for, in both protocol eras.

It is what the broker is compared with: the suite runs against it directly and through the broker, and both must say the
same. Nothing here knows the broker. Prints its URL once it listens; ends with SIGTERM.

    tools       one function each in `tools`, those of several rounds in `rounds`, those that run as tasks in `tasks`
    changes     `test_trigger_tool_change` adds a tool or takes it away again, `test_trigger_prompt_change` a prompt
"""

from __future__ import annotations

import argparse
import json
import re
import socket
from collections.abc import Mapping
from typing import Any, cast

import mcp_types
import uvicorn
from mcp.server.caching import CacheHint
from mcp.server.lowlevel.server import Server
from mcp.server.request_state import RequestStateBoundary, RequestStateSecurity
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler, PromptsListChanged, ToolsListChanged
from mcp.shared.exceptions import MCPError
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from tests.conformance import rounds
from tests.conformance.events import Events
from tests.conformance.rounds import Result, text
from tests.conformance.tasks import JOBS, Tasks
from tests.conformance.tools import IMAGE, PNG, TOOLS, Context

RETRY_MS = 100
INVALID_PARAMS = -32602
NAMES = ("a name", "another name")
CACHED = (
    "tools/list",
    "prompts/list",
    "resources/list",
    "resources/templates/list",
    "resources/read",
    "server/discover",
)

PROMPTS: Mapping[str, tuple[str, ...]] = {
    "test_simple_prompt": (),
    "test_prompt_with_arguments": ("arg1", "arg2"),
    "test_prompt_with_embedded_resource": ("resourceUri",),
    "test_prompt_with_image": (),
    "test_input_required_result_prompt": (),
}
RESOURCES: Mapping[str, Result] = {
    "test://static-text": {"mimeType": "text/plain", "text": "This is the content of the static text resource."},
    "test://static-binary": {"mimeType": "image/png", "blob": PNG},
    "test://watched-resource": {"mimeType": "text/plain", "text": "Somebody may want to know when this changes."},
}
TEMPLATE = "test://template/{id}/data"
_FILLED = re.compile(r"test://template/([^/]+)/data")
_NOTHING: Mapping[str, Any] = {"type": "object", "properties": {}}


class Everything:
    """The handlers. What can change is here: the further tool and the further prompt, there or not."""

    def __init__(self, *, is_plain: bool) -> None:
        self.tasks = Tasks(is_plain=is_plain)
        self.bus = InMemorySubscriptionBus()
        self._further = {"tool": False, "prompt": False}

    # --------------------------------------------------------------------------------------------------------- tools

    async def list_tools(self, context: Context, _params: mcp_types.PaginatedRequestParams) -> Result:
        listed = [
            {"name": name, "description": tool.description, "inputSchema": tool.schema} for name, tool in TOOLS.items()
        ]
        further = [*rounds.TOOLS, "test_trigger_tool_change", "test_trigger_prompt_change"]
        further += ["test_dynamic_tool"] * self._further["tool"]
        listed += [{"name": name, "description": name.replace("_", " "), "inputSchema": _NOTHING} for name in further]
        listed += [{"name": name, "description": name, "inputSchema": job.schema} for name, job in JOBS.items()]
        return complete(context, {"tools": listed})

    async def call_tool(self, context: Context, _params: mcp_types.CallToolRequestParams) -> Result:
        params = raw(context)
        name: str = params["name"]
        if name in rounds.TOOLS:
            return complete(context, rounds.TOOLS[name](params, capabilities(context)))
        if name in TOOLS:
            return complete(context, await TOOLS[name].does(context, params.get("arguments") or {}))
        if name in JOBS:
            return complete(context, await self.tasks.call(context, params))
        if name == "test_trigger_tool_change":
            return complete(context, await self._change(context, "tool"))
        if name == "test_trigger_prompt_change":
            return complete(context, await self._change(context, "prompt"))
        if name == "test_dynamic_tool" and self._further["tool"]:
            return complete(context, text("Here for now."))
        raise MCPError(INVALID_PARAMS, f"Unknown tool: {name}")

    async def _change(self, context: Context, what: str) -> Result:
        self._further[what] = not self._further[what]
        if context.protocol_version in MODERN_PROTOCOL_VERSIONS:
            await self.bus.publish(ToolsListChanged() if what == "tool" else PromptsListChanged())
        elif what == "tool":
            await context.session.send_tool_list_changed()
        else:
            await context.session.send_prompt_list_changed()
        return text(f"The list of {what}s is another one now.")

    # ------------------------------------------------------------------------------------------------------- prompts

    async def list_prompts(self, context: Context, _params: mcp_types.PaginatedRequestParams) -> Result:
        known = {**PROMPTS, **({"test_dynamic_prompt": ()} if self._further["prompt"] else {})}
        listed = [
            {
                "name": name,
                "description": name.replace("_", " "),
                "arguments": [{"name": argument, "description": argument, "required": True} for argument in arguments],
            }
            for name, arguments in known.items()
        ]
        return complete(context, {"prompts": listed})

    async def get_prompt(self, context: Context, params: mcp_types.GetPromptRequestParams) -> Result:
        given = params.arguments or {}
        if params.name == "test_input_required_result_prompt":
            return complete(context, rounds.prompt(raw(context), capabilities(context)))
        if params.name not in PROMPTS:
            raise MCPError(INVALID_PARAMS, f"Unknown prompt: {params.name}")
        if missing := [argument for argument in PROMPTS[params.name] if argument not in given]:
            raise MCPError(INVALID_PARAMS, f"{params.name} needs {', '.join(missing)}")
        said = {"type": "text", "text": f"{params.name}: {json.dumps(given)}"}
        content = [said]
        if params.name == "test_prompt_with_embedded_resource":
            within = {"uri": given["resourceUri"], "mimeType": "text/plain", "text": "What the prompt is about."}
            content = [{"type": "resource", "resource": within}, said]
        if params.name == "test_prompt_with_image":
            content = [IMAGE, said]
        return complete(context, {"messages": [{"role": "user", "content": one} for one in content]})

    async def complete_argument(self, context: Context, params: mcp_types.CompleteRequestParams) -> Result:
        values = [name for name in NAMES if name.startswith(params.argument.value)]
        return complete(context, {"completion": {"values": values, "total": len(values), "hasMore": False}})

    # ----------------------------------------------------------------------------------------------------- resources

    async def list_resources(self, context: Context, _params: mcp_types.PaginatedRequestParams) -> Result:
        listed = [{"uri": uri, "name": uri, "mimeType": content["mimeType"]} for uri, content in RESOURCES.items()]
        return complete(context, {"resources": listed})

    async def list_templates(self, context: Context, _params: mcp_types.PaginatedRequestParams) -> Result:
        listed = [{"uriTemplate": TEMPLATE, "name": "template", "mimeType": "application/json"}]
        return complete(context, {"resourceTemplates": listed})

    async def read_resource(self, context: Context, params: mcp_types.ReadResourceRequestParams) -> Result:
        uri = str(params.uri)
        content = RESOURCES.get(uri)
        if filled := _FILLED.fullmatch(uri):
            content = {"mimeType": "application/json", "text": json.dumps({"id": filled[1], "templateTest": True})}
        if content is None:
            raise MCPError(INVALID_PARAMS, "Resource not found", {"uri": uri})
        return complete(context, {"contents": [{"uri": uri, **content}]})


async def accept(_context: Context, _params: Any) -> Result:
    """For what only has to be accepted: a log level, a subscription to a resource that never changes."""
    return {}


def raw(context: Context) -> dict[str, Any]:
    return cast("dict[str, Any]", context.params or {})


def capabilities(context: Context) -> Mapping[str, Any]:
    declared = context.session.client_capabilities
    return declared.model_dump(by_alias=True, exclude_none=True) if declared else {}


def complete(context: Context, result: Result) -> Result:
    """As the SDK takes a dict from a handler: the modern revision's results say of what type they are."""
    if context.protocol_version in MODERN_PROTOCOL_VERSIONS:
        result.setdefault("resultType", "complete")
    return result


def build(*, is_plain: bool = False) -> Server[Any]:
    """is_plain: without tasks of its own."""
    everything = Everything(is_plain=is_plain)
    hint = CacheHint(ttl_ms=0, scope="private")
    server = Server[Any]("conformance", version="1", cache_hints=dict.fromkeys(CACHED, hint))
    add = server.add_request_handler
    add("tools/list", mcp_types.PaginatedRequestParams, everything.list_tools)
    add("tools/call", mcp_types.CallToolRequestParams, everything.call_tool)
    add("prompts/list", mcp_types.PaginatedRequestParams, everything.list_prompts)
    add("prompts/get", mcp_types.GetPromptRequestParams, everything.get_prompt)
    add("completion/complete", mcp_types.CompleteRequestParams, everything.complete_argument)
    add("resources/list", mcp_types.PaginatedRequestParams, everything.list_resources)
    add("resources/templates/list", mcp_types.PaginatedRequestParams, everything.list_templates)
    add("resources/read", mcp_types.ReadResourceRequestParams, everything.read_resource)
    add("resources/subscribe", mcp_types.SubscribeRequestParams, accept)
    add("resources/unsubscribe", mcp_types.UnsubscribeRequestParams, accept)
    add("logging/setLevel", mcp_types.SetLevelRequestParams, accept)
    add("subscriptions/listen", mcp_types.SubscriptionsListenRequestParams, ListenHandler(everything.bus))
    everything.tasks.register(server)
    server.middleware.append(RequestStateBoundary(RequestStateSecurity.ephemeral(), default_audience="conformance"))
    return server


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--plain", action="store_true", help="make no tasks of slow tools")
    told = parser.parse_args()
    listener = socket.create_server(("127.0.0.1", told.port), backlog=128)
    app = build(is_plain=told.plain).streamable_http_app(event_store=Events(), retry_interval=RETRY_MS)
    print(f"http://127.0.0.1:{listener.getsockname()[1]}/mcp", flush=True)
    # h11 takes the white space around a header's value away, as RFC 9110 asks; httptools leaves it at the end
    uvicorn.Server(uvicorn.Config(app, http="h11", log_level="warning")).run(sockets=[listener])


if __name__ == "__main__":
    main()
