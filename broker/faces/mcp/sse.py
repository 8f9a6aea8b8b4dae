"""The HTTP+SSE transport of 2024-11-05: a GET opens the stream, POSTs carry the messages, answers come on the stream.

The SDK speaks it; here are the bounds it has not (open streams, messages waiting for a busy session) and one answer for
every session that is not the caller's.
"""

from __future__ import annotations

import anyio
from mcp.server.sse import SseServerTransport

from broker.faces.mcp.replies import Stop, send_body
from broker.faces.mcp.request import PRINCIPAL, Receive, Scope, Send
from broker.faces.mcp.sdk import BrokerServer, owner
from broker.settings import Limits

DELIVER_WITHIN_S = 10.0
MESSAGES = "/messages/"


class SseEndpoint:
    def __init__(self, server: BrokerServer, limits: Limits) -> None:
        self._server = server
        self._most = limits.sessions
        self._transport = SseServerTransport(MESSAGES, max_request_body_size=limits.body_bytes)
        self._open = 0

    async def stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        """GET /sse, for as long as the client stays."""
        if self._open >= self._most:
            full = Stop("overloaded", "Refused: too many open sessions (limit: sessions).", status=503)
            await send_body(send, full.status, full.body)
            return
        scope["user"] = owner(scope[PRINCIPAL])
        self._open += 1
        try:
            async with self._transport.connect_sse(scope, receive, send) as (messages, answers):
                await self._server.run(messages, answers, self._server.create_initialization_options())
        finally:
            self._open -= 1

    async def message(self, scope: Scope, receive: Receive, send: Send) -> None:
        """POST /messages/: 202 and the message is on its way. A session that takes none is given up on in time."""
        scope["user"] = owner(scope[PRINCIPAL])
        try:
            with anyio.fail_after(DELIVER_WITHIN_S):
                await self._transport.handle_post_message(scope, receive, send)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, TimeoutError):
            return  # the stream ended meanwhile; 202 has been sent, and the client sees the end of its stream
