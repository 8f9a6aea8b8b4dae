"""One HTTP request of an agent on its way through the gate, and the ASGI names it is made of."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any

from broker.data import dataclass
from broker.faces.mcp.headers import accepts
from broker.faces.mcp.strict import Message
from broker.model.principal import Principal

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
RawHeaders = Sequence[tuple[bytes, bytes]]

# What the gate leaves in the ASGI scope for whoever answers behind it.
PRINCIPAL = "broker.principal"  # who calls
FACE = "broker.face"  # FACE_HTTP or FACE_SSE
OUTCOME = "broker.outcome"  # how a call ended that the gate has already made

FACE_HTTP, FACE_SSE = "mcp-http", "mcp-sse"

_NOBODY = Principal(agent="")
_NO_MESSAGE = Message("notification", "", None, {}, {})


@dataclass(slots=True)
class Request:
    """Filled as far as the gate has come: `principal` after the identity, `message` after the body."""

    path: str
    headers: Mapping[bytes, bytes]
    scope: Scope
    receive: Receive
    send: Send
    principal: Principal = _NOBODY
    message: Message = _NO_MESSAGE
    is_foreign: bool = False  # from a script of another origin: `send` marks its answers for it

    @property
    def face(self) -> str:
        return FACE_HTTP if self.path == "/mcp" else FACE_SSE

    @property
    def trace_parent(self) -> str:
        """W3C traceparent as the header has it; `_meta.traceparent` takes precedence where there is one."""
        return self.headers.get(b"traceparent", b"").decode("latin-1")

    @property
    def accepts(self) -> tuple[bool, bool]:
        """Whether JSON, and whether an event stream, may be answered."""
        return accepts(self.headers)

    def replay(self, content: bytes) -> None:
        """Let whoever comes next read the body again, and after it whatever else comes (the client's leaving)."""
        receive, given = self.receive, False

        async def again() -> MutableMapping[str, Any]:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": content, "more_body": False}

        self.receive = again
