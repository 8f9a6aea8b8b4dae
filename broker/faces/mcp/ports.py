"""What the agents' face needs from the house, as promises; the assembly hands over objects that keep them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Protocol

from broker.catalog.catalog import PartsListed
from broker.data import dataclass
from broker.errors import Held, Underway
from broker.model.answer import Answer
from broker.model.call import Call
from broker.model.principal import Principal
from broker.model.task import Task
from broker.settings import Limits


class Pipeline(Protocol):
    """The part of `broker.pipeline.call.Pipeline` that a face uses."""

    @property
    def tasks(self) -> TasksOf: ...

    async def perform(self, call: Call) -> Answer:
        """Carry out one call. Raises BrokerError only; every end is recorded by then."""
        ...

    def listing(self, principal: Principal) -> tuple[Mapping[str, Any], ...]:
        """tools/list entries of what this caller may use, in stable order."""
        ...

    def missing_scopes(self, name: str, principal: Principal) -> frozenset[str]:
        """Scopes the caller lacks for a tool that is visible to it; empty for every other tool."""
        ...

    def parts(self, principal: Principal) -> PartsListed:
        """Entries of resources/list, resources/templates/list and prompts/list of what this caller may use."""
        ...

    def is_told(self, uri: str, principal: Principal, backend: str, natural: str) -> bool:
        """Whether a caller who follows `uri` is to hear that this backend updated its resource `natural`."""
        ...

    def lacks_scopes(self, call: Call) -> bool:
        """Whether what this call names is visible to its caller, who lacks scopes for it."""
        ...

    def input_schema(self, name: str) -> Mapping[str, Any] | None:
        """The input schema of a tool, whoever asks; None when there is none of this name."""
        ...


class TasksOf(Protocol):
    """`broker.pipeline.tasks.Tasks`: calls that go on as tasks, each for the one who made it."""

    async def begun(self, call_id: str, principal: Principal) -> Task: ...

    async def look(self, call_id: str, principal: Principal) -> Task: ...

    async def answer(self, call_id: str, principal: Principal, responses: Mapping[str, Any]) -> None: ...

    async def cancel(self, call_id: str, principal: Principal) -> None: ...

    async def stamp(self, call_id: str, principal: Principal) -> object: ...

    async def changed(self, timeout_s: float) -> bool: ...


Authenticate = Callable[[str | None], Awaitable[Principal]]
"""`Gatekeeper.authenticate`: who presents this bearer credential. Raises Unauthenticated; RecordUnavailable when that
cannot be found out now; nothing else."""


Remembered = Callable[[bytes], Principal | None]
"""`Gatekeeper.remembered`: who presented the credential of this fingerprint (`principal.fingerprint`; b"" without one)
a moment ago, if that still counts; None when `Authenticate` has to be asked."""


class Challenge(Protocol):
    def __call__(
        self, base_url: str, path: str, *, error: str = "", description: str = "", scopes: Iterable[str] = ()
    ) -> str:
        """The value of WWW-Authenticate for a refusal at this endpoint (RFC 6750 section 3, RFC 9728 section 5.1).

        base_url: in the spelling the client used. path: "/mcp" or "/sse", whose protected-resource metadata is named.
        error: "" when no credential was given.
        """
        ...


Refused = Callable[[str], None]
"""Told the kind (`replies.KINDS`) of each request refused before it became a call, to be recorded in sum. Never
raises."""

Listed = Callable[[Principal, int], None]
"""Told how many tools a caller was shown, to be recorded in sum. Never raises."""


class Clock(Protocol):
    def now_ms(self) -> int: ...


class Rounds(Protocol):
    """`rounds.Rounds`: calls of several rounds."""

    def begin(self, call: Call, params: Mapping[str, Any]) -> None:
        """Give the call what its request was sent along with. Raises Malformed."""
        ...

    def result(self, answer: Answer, call: Call) -> dict[str, Any]:
        """The answer as a result, with what belongs to a further round sealed."""
        ...

    def confirming(self, hold_id: str, call: Call) -> str:
        """A state with which this call comes back when its user has confirmed it."""
        ...


@dataclass(frozen=True, slots=True)
class Meant:
    """What the id of a task stands for. tool: "" for a call of the broker's own; else the one whose server has it."""

    inner: str
    tool: str = ""


class Tasks(Protocol):
    """`tasks.Tasks`: tasks as agents see them."""

    def meant(self, task_id: object, principal: Principal) -> Meant | None: ...

    async def created(self, error: Held | Underway, call: Call) -> dict[str, Any]: ...

    def relayed(self, answer: Answer, call: Call) -> dict[str, Any]: ...

    async def look(self, meant: Meant, task_id: str, principal: Principal) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class House:
    """What every part of this face is given."""

    pipeline: Pipeline
    authenticate: Authenticate
    remembered: Remembered
    challenge: Challenge
    base_url: Callable[[], str]
    limits: Limits
    clock: Clock
    on_refused: Refused
    on_listed: Listed
    rounds: Rounds
    tasks: Tasks
