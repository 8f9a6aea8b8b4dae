"""What agents see of servers besides tools: the SDK's handlers for resources, prompts and completions.

Lists are answered from the catalog, as tools/list is; reads, gets and completions are calls (`parts`).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import mcp_types
import orjson
from mcp.server.caching import CacheHint
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel.server import Server
from mcp.shared.exceptions import MCPError

from broker.catalog.catalog import PartsListed
from broker.errors import BrokerError, Malformed
from broker.faces.mcp.agreement import INVALID_PARAMS, MODERN, NAMED
from broker.faces.mcp.asking import back_of
from broker.faces.mcp.calls import without_server
from broker.faces.mcp.parts import as_error, build_part_call, perform_part
from broker.faces.mcp.ports import House
from broker.faces.mcp.progress import Progress
from broker.faces.mcp.request import FACE, OUTCOME, PRINCIPAL
from broker.faces.mcp.sdk import connection_of
from broker.faces.mcp.sessions import Audience, Shown
from broker.model.call import Call

Context = ServerRequestContext[Any, Any]

FOLLOWED = 100  # resources by one session or listen stream

_PRIVATE = CacheHint(ttl_ms=0, scope="private")
CACHE_HINTS = dict.fromkeys(("resources/list", "resources/templates/list", "resources/read", "prompts/list"), _PRIVATE)


class Relay:
    """answering: entered while a call is answered whose answer travels on a standing stream."""

    def __init__(
        self, house: House, audience: Audience, answering: Callable[[Mapping[str, Any]], AbstractContextManager[None]]
    ) -> None:
        self._house = house
        self._audience = audience
        self._answering = answering

    def register(self, server: Server[Any]) -> None:
        paged = mcp_types.PaginatedRequestParams
        server.add_request_handler("resources/list", paged, self._list_resources)
        server.add_request_handler("resources/templates/list", paged, self._list_templates)
        server.add_request_handler("prompts/list", paged, self._list_prompts)
        server.add_request_handler("resources/read", mcp_types.ReadResourceRequestParams, self._read)
        server.add_request_handler("prompts/get", mcp_types.GetPromptRequestParams, self._get)
        server.add_request_handler("resources/subscribe", mcp_types.SubscribeRequestParams, self._subscribe)
        server.add_request_handler("resources/unsubscribe", mcp_types.UnsubscribeRequestParams, self._unsubscribe)
        server.add_request_handler("completion/complete", mcp_types.CompleteRequestParams, self._complete)

    async def _list_resources(self, context: Context, params: mcp_types.PaginatedRequestParams) -> dict[str, Any]:
        return _page(context, params, "resources", self._listed(context).resources)

    async def _list_templates(self, context: Context, params: mcp_types.PaginatedRequestParams) -> dict[str, Any]:
        return _page(context, params, "resourceTemplates", self._listed(context).templates)

    async def _list_prompts(self, context: Context, params: mcp_types.PaginatedRequestParams) -> dict[str, Any]:
        return _page(context, params, "prompts", self._listed(context).prompts)

    def _listed(self, context: Context) -> PartsListed:
        principal = scope_of(context)[PRINCIPAL]
        parts = self._house.pipeline.parts(principal)
        self._audience.was_shown_parts(connection_of(context), principal, parts)
        return parts

    async def _read(self, context: Context, _params: mcp_types.ReadResourceRequestParams) -> dict[str, Any]:
        result = await self._perform(context, "resources/read")
        if result.get("resultType", "complete") != "complete":
            return result  # a question, never to be cached
        if context.protocol_version in MODERN:
            result["cacheScope"] = "private"  # what a server shows to all, policy may show to some
        else:
            result.pop("cacheScope", None)
            result.pop("ttlMs", None)
        return result

    async def _get(self, context: Context, _params: mcp_types.GetPromptRequestParams) -> dict[str, Any]:
        return await self._perform(context, "prompts/get")

    async def _complete(self, context: Context, _params: mcp_types.CompleteRequestParams) -> dict[str, Any]:
        return await self._perform(context, "completion/complete")

    async def _subscribe(self, context: Context, params: mcp_types.SubscribeRequestParams) -> dict[str, Any]:
        uri, shown = str(params.uri), self._audience.member(connection_of(context))
        if shown is None:
            raise MCPError(INVALID_PARAMS, "Refused: initialise the session first; there is nobody to tell.")
        if len(shown.follows) >= FOLLOWED and uri not in shown.follows:
            raise MCPError(429, f"Refused: this session follows {FOLLOWED} resources already.")
        call = self._call(context, scope_of(context), "resources/subscribe")
        with _released_unless_kept(call):
            result = await self._perform(context, "resources/subscribe", call)
            shown.keep(uri, call)
        return result

    async def _unsubscribe(self, context: Context, params: mcp_types.UnsubscribeRequestParams) -> dict[str, Any]:
        if shown := self._audience.member(connection_of(context)):
            shown.unfollow(str(params.uri))
        return complete(context, {})

    async def follow(self, context: Context, shown: Shown, uris: Sequence[str]) -> list[str]:
        """For a listen stream: follow what the caller may follow; returns which of these that is."""
        for uri in dict.fromkeys(uris[:FOLLOWED]):
            scope = scope_of(context)
            call = build_part_call("resources/subscribe", {"uri": uri}, **self._known(context, scope))
            try:
                with _released_unless_kept(call):
                    await perform_part(self._house, call)
                    shown.keep(uri, call)
            except BrokerError:  # recorded; what is not honoured is not named in the acknowledgement
                continue
        return list(shown.follows)

    async def _perform(self, context: Context, method: str, call: Call | None = None) -> dict[str, Any]:
        """The raw params, not the typed ones. What the gate has already ended (for a challenge) is not done again."""
        scope = scope_of(context)
        outcome: dict[str, Any] | BrokerError | None = scope.pop(OUTCOME, None)
        call = call or self._call(context, scope, method)
        try:
            if isinstance(outcome, BrokerError):
                raise outcome
            if outcome is None:
                with self._answering(scope):
                    outcome = await perform_part(self._house, call)
        except BrokerError as error:
            code, message, data = as_error(error, call, modern=context.protocol_version in MODERN)
            raise MCPError(code, message, data) from None
        return complete(context, outcome)

    def _call(self, context: Context, scope: Mapping[str, Any], method: str) -> Call:
        params = context.params or {}
        try:
            call = build_part_call(method, params, **self._known(context, scope))
            if method in NAMED:
                self._house.rounds.begin(call, params)
            return call
        except Malformed as fault:
            raise MCPError(INVALID_PARAMS, fault.message) from None

    def _known(self, context: Context, scope: Mapping[str, Any]) -> dict[str, Any]:
        capabilities = context.session.client_capabilities
        return {
            "principal": scope[PRINCIPAL],
            "face": scope[FACE],
            "now_ms": self._house.clock.now_ms(),
            "request_id": context.request_id,
            "capabilities": capabilities.model_dump(by_alias=True, exclude_none=True) if capabilities else {},
            "trace_parent": trace_parent(scope),
            "progress": Progress(context).report,
            "back": back_of(context),
        }


@contextmanager
def _released_unless_kept(call: Call) -> Generator[None]:
    """A subscription whose call did not end well (its outcome could not be recorded) is nobody's."""
    try:
        yield
    except BaseException:
        if call.release is not None:
            call.release()
        raise


def _page(
    context: Context, params: mcp_types.PaginatedRequestParams, key: str, entries: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    if params.cursor is not None:
        raise MCPError(INVALID_PARAMS, "There are no further pages; list without a cursor.")
    return complete(context, {key: [dict(entry) for entry in entries]})


def complete(context: Context, result: dict[str, Any]) -> dict[str, Any]:
    """A result as the SDK takes it from a handler: of a dict, it asks the modern revision's `resultType`. In the eras
    before, structured content is an object; what is none is told as text."""
    if context.protocol_version in MODERN:
        result.setdefault("resultType", "complete")
    elif not isinstance(result.get("structuredContent", {}), Mapping):
        told = orjson.dumps(result.pop("structuredContent")).decode()
        result["content"] = result["content"] or [{"type": "text", "text": told}]
    return without_server(result)


def scope_of(context: Context) -> dict[str, Any]:
    """The ASGI scope of the very HTTP request that carries this message; on stdio, what the launch said."""
    request: Any = context.request
    return request.scope


def trace_parent(scope: Mapping[str, Any]) -> str:
    return next((v.decode("latin-1") for k, v in scope.get("headers", ()) if k == b"traceparent"), "")
