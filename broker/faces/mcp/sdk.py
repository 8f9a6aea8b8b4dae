"""The one module that touches private parts of the `mcp` SDK. `tests/laws/test_sdk_touches.py` fails when they move.

Pinned to mcp 2.3.0. Each touch says what it is for and what would replace it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.connection import Connection
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel.server import NotificationOptions, Server
from mcp.server.models import InitializationOptions
from mcp.server.streamable_http import EventStore
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

from broker.faces.mcp.events import Events
from broker.model.principal import Principal


class BrokerServer(Server[Any]):
    """Advertises `listChanged` to handshake-era sessions on every transport, and no extension: those that there are are
    of the 2026-07-28 revision.

    Not private, but relied upon: the streamable HTTP manager starts sessions without options and so asks this method,
    which otherwise says that nothing ever changes.
    """

    def create_initialization_options(
        self, notification_options: NotificationOptions | None = None, *rest: Any, **named: Any
    ) -> InitializationOptions:
        changing = notification_options or NotificationOptions(
            tools_changed=True, resources_changed=True, prompts_changed=True
        )
        options = super().create_initialization_options(changing, *rest, **named)
        options.capabilities.extensions = None
        return options


class Sessions(StreamableHTTPSessionManager):
    """Gives each session events of its own: streams are named by request ids, which sessions have in common.

    Not private, but relied upon: `event_store` is read once for each session that begins.
    """

    def __init__(self, *, events: Events, **more: Any) -> None:
        self._events = events
        super().__init__(**more)

    @property
    def event_store(self) -> EventStore | None:
        return self._events.of_session()

    @event_store.setter
    def event_store(self, _none: EventStore | None) -> None:
        """The base class has none to set."""


def connection_of(context: ServerRequestContext[Any, Any]) -> Connection:
    """The connection behind a request, to notify it later. Touch: `ServerSession._connection`; the SDK keeps no
    registry of handshake-era sessions, and the session object lives for one request only.
    """
    return context.session._connection  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


def open_sessions(manager: StreamableHTTPSessionManager) -> int:
    """How many handshake-era sessions are open. Touch: `_server_instances`; the SDK refuses one too many in words that
    name no setting.
    """
    return len(manager._server_instances)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


async def ask(context: ServerRequestContext[Any, Any], method: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """One raw request to the client, on the stream of the request being answered. Raises MCPError (its error, or no way
    to it). Touch: `ServerSession._request_outbound`; the typed way loses fields that the SDK does not know.
    """
    channel = context.session._request_outbound  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    return await channel.send_raw_request(method, params or None)


async def tell(context: ServerRequestContext[Any, Any], method: str, params: Mapping[str, Any]) -> None:
    """One raw notification on the stream of the request being answered. Touch: as `ask`."""
    channel = context.session._request_outbound  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    await channel.notify(method, params)


def owner(principal: Principal) -> AuthenticatedUser:
    """The principal in the form in which the SDK binds sessions to whoever opened them: by `client_id` alone here, so
    that every token of one principal is the same owner. No credential is in it.
    """
    return AuthenticatedUser(AccessToken(token="", client_id=principal.key, scopes=[]))


class _WithoutContent(logging.Handler):
    """Passes on that something went wrong in the SDK, without the message bodies that its log records quote."""

    def emit(self, record: logging.LogRecord) -> None:
        cause = record.exc_info[0].__name__ if record.exc_info and record.exc_info[0] else "no exception"
        logging.getLogger("broker.mcp.sdk").error("%s: %s (%s)", record.name, str(record.msg)[:200], cause)


def silence() -> None:
    """Keep the SDK's and the SSE library's logs from quoting arguments, answers and session ids. Idempotent."""
    quiet = logging.getLogger("mcp")
    quiet.setLevel(logging.ERROR)
    quiet.propagate = False
    if not any(isinstance(handler, _WithoutContent) for handler in quiet.handlers):
        quiet.handlers[:] = [_WithoutContent()]
    for name in ("sse_starlette", "sse_starlette.sse"):
        logging.getLogger(name).setLevel(logging.WARNING)
