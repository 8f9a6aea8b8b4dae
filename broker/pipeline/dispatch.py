"""One admitted call to its backend and back: injected identity, one deadline, inspection of what came.

The state `dispatching` is committed before this is entered, so whatever happens here ends in a recorded outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import anyio

from broker.catalog.catalog import Entry
from broker.errors import BrokerError, Internal, TimedOut, Unavailable
from broker.model.answer import Answer
from broker.model.call import Call
from broker.ports import Backend

_SOURCES: Mapping[str, Callable[[Call], str]] = {
    "caller.agent": lambda call: call.principal.agent,
    "caller.user": lambda call: call.principal.user,
    "caller.tenant": lambda call: call.principal.tenant,
    "call.id": lambda call: call.id,
}

# A backend keeps the tool's deadline itself, because only it knows whether bytes have left. This much later dispatch
# stops waiting for a backend that does not.
GRACE_S = 2.0


async def dispatch(entry: Entry, call: Call, backends: Mapping[str, Backend]) -> Answer:
    """Make the call once and shape its answer as the manifest says.

    Raises what `Backend.call` and `Entry.shape` raise; Unavailable when the backend is not configured any more.
    On cancel: the backend abandons the request; what became of it is unknown.
    """
    tool = entry.tool
    backend = backends.get(tool.backend)
    if backend is None:
        raise Unavailable(
            f"Backend {tool.backend!r} is not configured any more.", next_step="Ask for the tool list again."
        )
    arguments: Mapping[str, object] = call.arguments
    if tool.inject:
        arguments = {**call.arguments, **{name: _SOURCES[source](call) for name, source in tool.inject}}
    with anyio.move_on_after(tool.timeout_s + GRACE_S):
        return entry.shape(await backend.call(tool, arguments, call))
    raise TimedOut(
        f"{tool.name} did not answer within {tool.timeout_s:g} s; whether it was done is unknown.",
        next_step="Check before you try again.",
    )


def as_broker_error(error: Exception) -> BrokerError:
    """A failure of dispatch as the caller may see it: our bugs become Internal, with nothing of the inside."""
    if isinstance(error, BrokerError):
        return error
    internal = Internal(
        "The broker failed while the call was under way; whether it was done is unknown.",
        next_step="Give the call id to the operator.",
    )
    internal.effect = "unknown"
    return internal
