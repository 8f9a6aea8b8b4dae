"""The way back: how the server of a running call reaches the call's caller, and what the caller sent along when it asks
again.

A handshake-era caller is asked while its call runs (`Back.ask`). A caller of the 2026-07-28 revision is asked by the
answer (`resultType: "input_required"`) and comes back with a `Round`. What may be asked at all is what the caller has
declared, in either era. What must not live here: anything of a transport, and who decides (the pipeline).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol, cast

from broker.data import dataclass, field

INPUT_REQUIRED = "input_required"
ASKING_S = 600.0  # how long a call's deadline may stand still, in all, while its caller is asked

ASKABLE: Mapping[str, str] = {
    "elicitation/create": "elicitation",
    "sampling/createMessage": "sampling",
    "roots/list": "roots",
}
"""Method → the capability that a caller must have declared."""

PASSED_ON = frozenset({-32021, -32042})
"""JSON-RPC errors of a server that its caller has to see as such: a capability is missing (2026-07-28), a URL has to be
visited first (2025-11-25). Their data says what to do."""

LEVELS = ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency")
"""Of log messages (RFC 5424), the least important first."""

Ask = Callable[[str, Mapping[str, Any]], Awaitable[dict[str, Any]]]
"""(method of ASKABLE, params) → the caller's result. Raises Declined."""


class Declined(Exception):
    """The caller was not asked, or answered with an error: its JSON-RPC code, message and data."""

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        super().__init__(message)
        self.code, self.message, self.data = code, message, data


class Holder(Protocol):
    """Whatever has something that belongs to a session. Neither method raises, neither waits."""

    def ended(self, session: AgentSession) -> None: ...

    def roots_changed(self, session: AgentSession) -> None: ...


@dataclass(slots=True, eq=False)
class AgentSession:
    """A handshake-era session of an agent. What hangs on it ends with it.

    log_level: as set by `logging/setLevel`; "" when it never was. tell: a notification (method, params) that belongs to
    no call.
    """

    tell: Callable[[str, Mapping[str, Any]], Awaitable[None]]
    log_level: str = ""
    holders: set[Holder] = field(default_factory=set[Holder])

    def end(self) -> None:
        for holder in tuple(self.holders):
            holder.ended(self)

    def roots_changed(self) -> None:
        for holder in tuple(self.holders):
            holder.roots_changed(self)


@dataclass(frozen=True, slots=True)
class Back:
    """log: passes on the params of a log message; the caller wants those from log_level on ("": none at all).
    session, ask: of a handshake-era caller only. retake: ends the caller's stream, so that it takes its answer up
    again on another one; where its transport can. Neither `log` nor what `session` does raises for a caller that left.
    """

    log: Callable[[Mapping[str, Any]], Awaitable[None]]
    log_level: str = ""
    session: AgentSession | None = None
    ask: Ask | None = None
    retake: Callable[[], Awaitable[None]] | None = None


@dataclass(frozen=True, slots=True)
class Round:
    """responses: the caller's answers, by the name of the question, as it sent them. state: the server's own
    `requestState`, "" when there is none. once: names the sealed state it came in, which may be used once; "" for none.
    until_ms: when that state ends.
    """

    responses: Mapping[str, Any] | None = None
    state: str | None = None
    once: str = ""
    until_ms: int = 0


def is_important(level: object, wanted: str) -> bool:
    """Whether a log message of this level is wanted by whoever wants `wanted` and above."""
    return level in LEVELS and wanted in LEVELS and LEVELS.index(str(level)) >= LEVELS.index(wanted)


def relayed(capabilities: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a caller's capabilities by which servers may ask back."""
    return {key: capabilities[key] for key in ASKABLE.values() if isinstance(capabilities.get(key), Mapping)}


def beyond(capabilities: Mapping[str, Any]) -> dict[str, Any]:
    """The other part: what servers have to know of a caller, and ask nothing by: extensions, and what is not known
    here. Not `tasks`, which is of another protocol (the experiment of 2025-11-25) than the extension of that name."""
    kept = {key: value for key, value in capabilities.items() if key not in ASKABLE.values() and key != "tasks"}
    return {key: value for key, value in kept.items() if isinstance(value, Mapping)}


def undeclared(method: str, params: Mapping[str, Any], capabilities: Mapping[str, Any]) -> dict[str, Any] | None:
    """The capability that asking this needs and the caller did not declare; None when it may be asked.

    Source: MCP 2025-11-25 and 2026-07-28, client/elicitation (no mode declared means form) and client/sampling.
    """
    capability = ASKABLE[method]
    declared: Any = capabilities.get(capability)
    if not isinstance(declared, Mapping):
        return {capability: {}}
    known = cast("Mapping[str, Any]", declared)
    if capability == "elicitation":
        mode = str(params.get("mode", "form"))
        modes = known.keys() & {"form", "url"} or {"form"}
        return None if mode in modes else {capability: {mode: {}}}
    if capability == "sampling" and params.keys() & {"tools", "toolChoice"} and "tools" not in known:
        return {capability: {"tools": {}}}
    return None
