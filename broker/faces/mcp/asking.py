"""The way back to the client of a request: what servers log, and, in the handshake eras, what they ask.

Whether anything may be asked is decided where it is asked (`backends.mcp_asking`); here it is only carried.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import anyio
from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPError

from broker.faces.mcp.agreement import LOG_LEVEL_KEY, MODERN
from broker.faces.mcp.sdk import ask, connection_of, tell
from broker.model.back import LEVELS, AgentSession, Back, Declined, is_important

Context = ServerRequestContext[Any, Any]

UNSET_LEVEL = "debug"  # of a handshake-era session that never set one: the server decides, and everything passes
_SESSION = "broker.session"  # in the connection's state


def back_of(context: Context) -> Back:
    """The way back to whoever sent this request, for as long as it is being answered."""
    if context.protocol_version in MODERN:
        level = (context.meta or {}).get(LOG_LEVEL_KEY)
        wanted = level if isinstance(level, str) and level in LEVELS else ""
        return Back(_Logs(context, lambda: wanted).pass_on, wanted)
    session = session_of(context)
    logs = _Logs(context, lambda: session.log_level or UNSET_LEVEL)

    async def asked(method: str, params: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return await ask(context, method, params)
        except MCPError as error:
            raise Declined(error.error.code, error.error.message, error.error.data) from None

    return Back(logs.pass_on, session.log_level or UNSET_LEVEL, session, asked, context.close_sse_stream)


def session_of(context: Context) -> AgentSession:
    """The handshake-era session this request belongs to; it ends with its connection."""
    connection = connection_of(context)
    known = connection.state.get(_SESSION)
    if isinstance(known, AgentSession):
        return known

    async def tell_it(method: str, params: Mapping[str, Any]) -> None:
        await connection.notify(method, params)

    session = connection.state[_SESSION] = AgentSession(tell_it)
    connection.exit_stack.callback(session.end)
    return session


class _Logs:
    def __init__(self, context: Context, level: Any) -> None:
        self._context = context
        self._level = level

    async def pass_on(self, params: Mapping[str, Any]) -> None:
        """One log message to the caller, if it is important enough to it; no error when it has gone."""
        if not is_important(params.get("level"), self._level()):
            return
        try:
            await tell(self._context, "notifications/message", params)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            return
