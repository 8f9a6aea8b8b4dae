"""What a call is sent to: backends, what they offer and how they are; and who watches calls on their way.

Kinds of backends: `backends.BACKENDS`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from anyio.abc import TaskGroup
from pydantic import BaseModel

from broker.data import dataclass
from broker.model.answer import Answer
from broker.model.call import Call
from broker.model.invocation import Intent, Invocation, Outcome
from broker.model.sketch import Sketch
from broker.model.tool import Tool
from broker.ports.surroundings import Clock, Secrets


@dataclass(frozen=True, slots=True)
class Health:
    """state: starting | up | degraded (works with something missing) | down. detail: its own words, for operators."""

    state: Literal["starting", "up", "degraded", "down"]
    detail: str = ""
    since_ms: int = 0


@dataclass(frozen=True, slots=True)
class Offer:
    """What a downstream MCP server offers now. tools, resources, templates, prompts: the entries of its lists,
    unchanged, in order, already capped."""

    tools: tuple[Mapping[str, Any], ...]
    server: str = ""  # its self-asserted name and version, for display only
    protocol_version: str = ""
    resources: tuple[Mapping[str, Any], ...] = ()
    templates: tuple[Mapping[str, Any], ...] = ()
    prompts: tuple[Mapping[str, Any], ...] = ()


class Backend(Protocol):
    """One configured backend, opened once, used by many calls at once.

    Owns its connections, deadlines, byte caps and its bulkhead (at most N calls at a time; waiting bounded).
    """

    name: str
    kind: str

    async def open(self) -> None:
        """Begin. Returns quickly; a peer that is dead or slow shows in `health`, never as an exception."""
        ...

    async def call(self, tool: Tool, arguments: Mapping[str, Any], call: Call) -> Answer:
        """Make the call once. arguments: validated, with injected values. Deadline: `tool.timeout_s` in all.

        Raises Unavailable (no byte left), Rejected (it answered no), TimedOut or Broken (nobody can say). On cancel the
        request is abandoned and the peer told where the protocol can. Sends `Idempotency-Key` and `X-Broker-Call-Id`
        where there are headers; never any credential or header of the agent.

        Where there are offers, `tool.action` may be a `model.part.Part`: a resource is read or a prompt got then, or a
        value completed (`call.completing`); the answer carries the result's fields in `more`.
        """
        ...

    def sketch(self, tool: Tool, arguments: Mapping[str, Any], call: Call) -> Sketch:
        """What `call` would send for these arguments, made by the same code; nothing is sent and nothing waited for.

        Raises InvalidArguments for a value that could not be sent. Works before `open`, too.
        """
        ...

    async def aclose(self) -> None:
        """Let running calls end within 5 s, then cut. Leaves no process, socket or task behind."""
        ...

    @property
    def health(self) -> Health: ...

    @property
    def offer(self) -> Offer | None:
        """What can be imported from it; None when it offers nothing (HTTP, static) or nothing yet (not reached)."""
        ...


class BackendContext(Protocol):
    """What a backend gets from the house when it is built."""

    secrets: Secrets
    clock: Clock
    directory: str  # relative paths of the manifest are relative to this

    @property
    def tasks(self) -> TaskGroup:
        """Where a backend runs what lives beside its calls. Not its own group, because whoever opens it need not be the
        one whose scopes surround its closing; its tasks are over when `aclose` returns."""
        ...

    def offer_changed(self, backend: str) -> None:
        """Tell the house that `offer` or `health` of this backend changed. Cheap, thread-safe, may be called often."""
        ...

    def resource_updated(self, backend: str, uri: str) -> None:
        """Tell the house that a followed resource, by its server's URI, changed. From the loop; returns at once."""
        ...


class BackendKind(Protocol):
    """A row of BACKENDS: module-level object `KIND` of backends/<kind>.py.

    Spec: the mapping under the kind's key in a `backend` document (`http:`, `mcp:`, `static:`).
    Action: the mapping under the same key in a `tool` document; None when its tools come by `import` only.
    """

    name: str
    Spec: type[BaseModel]
    Action: type[BaseModel] | None

    def compile(self, action: Any, input_schema: Mapping[str, Any], injected: Sequence[str]) -> object:
        """The action, judged and compiled at load time, for `Tool.action`.

        Raises ValueError with one clear sentence for each thing wrong, joined by newlines (an argument that the schema
        does not have, a path variable without a value, ...).
        """
        ...

    def compile_import(self, entry: Mapping[str, Any]) -> object:
        """The action for one entry of an Offer. Only for kinds with offers."""
        ...

    def build(self, name: str, spec: Any, context: BackendContext) -> Backend: ...


class Watch(Protocol):
    """Is told of each call as it goes, to tell other systems. Quick, never raises, never waits."""

    def began(self, call: Call) -> None:
        """Before anything else. May set `call.trace_parent` to what the backend is told, and `call.parent_span`."""
        ...

    def resumed(self, call: Call) -> None:
        """As `began`, for a held call that runs now; `received_at_ms` is when it was asked."""
        ...

    def decided(self, call: Call, tool: Tool | None, intent: Intent, state: str) -> None:
        """What was committed for the intent. state: of the Admission."""
        ...

    def ended(self, call: Call, tool: Tool, outcome: Outcome, recorded_us: int) -> None:
        """How a dispatched call ended, and how long it took to commit that."""
        ...

    def waited(self, held: Invocation) -> None:
        """A held call ended without having run, perhaps said by another process, perhaps twice."""
        ...

    def close(self) -> None:
        """Send what is left. Blocks, in bounded time."""
        ...
