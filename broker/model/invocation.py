"""The life of a call as records tell it: its states, what is written before it runs, what is written after.

The table of transitions is the whole life cycle; what is not in it cannot happen. Each transition is one committed row
change by compare-and-set. A hold has no state of its own: a held call is an invocation in state `held`, and hold id and
call id are the same, so that asker, reviewer, reason and execution are always one record.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from broker.data import dataclass
from broker.errors import Effect
from broker.model.empty import NOTHING
from broker.model.grant import GrantUse
from broker.model.hold import Bound, Hold, HoldTerms, Preview
from broker.model.question import Condition
from broker.model.quota import Charge, QuotaState
from broker.model.tool import RecordMode, ToolEffect

State = Literal[
    "denied", "held", "approved", "rejected", "expired", "withdrawn", "dispatching", "succeeded", "failed",
    "outcome_unknown",
]  # fmt: skip

# `received` is before the first commit and `admitted` within it, so neither is ever stored: an admitted call is
# committed as `dispatching`, the state that must be durable before the first byte leaves.
TRANSITIONS: Mapping[State | Literal["received"], frozenset[State]] = {
    "received": frozenset({"denied", "held", "dispatching"}),
    "held": frozenset({"held", "approved", "rejected", "expired", "withdrawn"}),  # held again: one approval of several
    "approved": frozenset({"dispatching", "expired", "withdrawn"}),
    "dispatching": frozenset({"succeeded", "failed", "outcome_unknown"}),
    "outcome_unknown": frozenset({"succeeded", "failed"}),  # settled by a person or an idempotent question
    "denied": frozenset(),
    "rejected": frozenset(),
    "expired": frozenset(),
    "withdrawn": frozenset(),
    "succeeded": frozenset(),
    "failed": frozenset(),
}
OPEN: frozenset[State] = frozenset({"held", "approved", "dispatching"})
ENDED: frozenset[State] = frozenset(state for state, nexts in TRANSITIONS.items() if not nexts) - {"received"}  # type: ignore[assignment]


class Caller(NamedTuple):
    """Who calls, and how it came, as records say it. Many calls have it in common."""

    face: str  # mcp-http, mcp-sse, mcp-stdio, api, cli
    agent: str
    user: str
    tenant: str
    issuer: str
    principal_key: str
    credential_id: str


class Called(NamedTuple):
    """What is called, and by which rule; the same."""

    tool: str
    tool_version: str
    tool_effect: ToolEffect | Literal[""]
    definition: str
    backend: str
    rule: str  # the rule that decided, "policy/rule" or "default"
    policy_version: str  # the catalog's digest
    record: RecordMode


MAC_BYTES = 16  # of each keyed digest by which a call is found


@dataclass(slots=True)  # made for each call, see model.empty
class Intent:
    """What is committed before anything leaves: one call, decided but not dispatched.

    refusal: set when the pipeline has already said no; the intent is then recorded as `denied` and nothing is charged.
    terms: set when a rule holds the call; `arguments` are then kept sealed until it ends.
    kept: the arguments as the tool's record mode allows them to be kept in clear (canonical JSON), or None.
    kept_digest: theirs, "" without any.
    """

    call_id: str
    at_ms: int
    caller: Caller
    called: Called
    request_id: str
    trace_id: str
    arguments_digest: str
    kept: bytes | None
    kept_digest: str
    sealed: bytes = b""  # what only the auditor may read of the arguments (canonical JSON), b"" when nothing
    macs: tuple[bytes, ...] = ()  # by which the call can be found, see ports.Store.mac
    charges: tuple[Charge, ...] = ()
    laps_us: Mapping[str, int] = NOTHING  # stage -> microseconds
    terms: HoldTerms | None = None
    arguments: bytes = b""  # canonical JSON of all arguments; given only with `terms`
    principal: bytes = b""  # the principal as JSON, to run the held call later; given only with `terms`
    refusal: tuple[str, str, str] | None = None  # code, stage, message
    key: str = ""  # digest of the caller's idempotency key, "" when it gave none
    derived: str = ""  # the key its tool derives from the arguments, "" when it does not
    derived_ms: int = 0  # how long, from now, that one stands for this call
    policy: str = ""  # the digest of all that governs the tool (Entry.policy); given only with `terms`
    sketch: bytes = b""  # the Sketch as JSON; given only with `terms`
    sketch_digest: str = ""
    preview: Preview | None = None
    previewed: bytes = b""  # its MCP result as JSON
    grants: tuple[GrantUse, ...] = ()  # standing grants that cover it: the first that is not used up lets it run

    @property
    def bound(self) -> Bound:
        """What an approval of this call is for."""
        return Bound(
            principal_key=self.caller.principal_key,
            agent=self.caller.agent,
            tool=self.called.tool,
            definition=self.called.definition,
            backend=self.called.backend,
            policy=self.policy,
            arguments=self.arguments_digest,
            sketch=self.sketch_digest,
        )


@dataclass(slots=True)  # made for each call, see model.empty
class Admission:
    """What the store committed for an intent.

    `dispatching`: go. `denied`: `over` says which quota. `held`: a new hold. `attached`: the same call of the same
    principal is already in `invocation` (open, or ended and not yet collected); nothing new was charged or opened.
    `replayed`: the idempotency key belongs to the call in `invocation`, whatever its state; as little was charged.
    sent_as: the id of the first attempt of a keyed call that is tried again, "" for a first one.
    """

    state: Literal["dispatching", "denied", "held", "attached", "replayed"]
    quotas: tuple[QuotaState, ...] = ()
    over: QuotaState | None = None
    invocation: Invocation | None = None
    sent_as: str = ""


@dataclass(slots=True)  # made for each call, see model.empty
class Outcome:
    """How a dispatched call ended. result: the MCP result as JSON, given only for a call that was held or had an
    idempotency key, so that whoever asks later can be given it; kept sealed. is_plain: the call was never held and none
    of its charges reserves anything, so there is nothing to settle, and laps_us has all its laps."""

    call_id: str
    at_ms: int
    state: Literal["succeeded", "failed", "outcome_unknown"]
    effect: Effect
    code: str = ""  # of the error, "" when succeeded
    message: str = ""
    backend_status: str = ""
    result_digest: str = ""
    result_bytes: int = 0
    result: bytes = b""
    spent: Mapping[str, int] = NOTHING  # unit -> amount, settles cost charges
    laps_us: Mapping[str, int] = NOTHING
    is_plain: bool = False


@dataclass(frozen=True, slots=True)
class Invocation:
    """One call as the record has it now. Fields named as in Intent and Outcome mean the same."""

    call_id: str
    state: State
    at_ms: int
    changed_at_ms: int
    face: str
    agent: str
    user: str
    tenant: str
    issuer: str
    principal_key: str
    request_id: str
    trace_id: str
    tool: str
    tool_version: str
    tool_effect: str
    definition: str
    backend: str
    rule: str
    policy_version: str
    arguments_digest: str
    quotas: tuple[Mapping[str, Any], ...] = ()  # QuotaState fields as recorded at admission
    code: str = ""
    stage: str = ""
    message: str = ""
    effect: Effect = "none"
    backend_status: str = ""
    result_digest: str = ""
    result_bytes: int = 0
    laps_us: Mapping[str, int] = NOTHING
    writer: str = ""  # the process that dispatches or dispatched it
    hold: Hold | None = None
    kept: Any = None  # the redacted arguments as recorded, when asked for

    @property
    def duration_ms(self) -> float:
        """Time spent working on it, waiting for people not included."""
        return sum(self.laps_us.values()) / 1000


@dataclass(frozen=True, slots=True)
class Sight:
    """Somebody's eyes. Everything he may see passes, and little else: his own calls, and holds that name one of these
    scopes or groups. user: as `principal.person` has it; "": nobody's name."""

    principal_key: str
    issuer: str
    user: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class InvocationQuery:
    """Filters of `broker log`; unset ones do not filter. Newest first; oldest first when `after` (a call id) is set."""

    states: tuple[State, ...] = ()
    agent: str = ""
    user: str = ""
    tenant: str = ""
    tool: str = ""
    backend: str = ""
    rule: str = ""
    code: str = ""
    principal_key: str = ""
    trace_id: str = ""
    since_ms: int = 0
    until_ms: int = 0
    after: str = ""
    before: str = ""  # a call id: only what was committed before it, for the next page of a list
    within: str | None = None  # exactly this tenant, "" included; None: any
    macs: tuple[bytes, ...] = ()  # only calls with an argument of one of these, see ports.Store.mac
    held_only: bool = False  # only calls that were held at some time
    limit: int = 100
    scan: int = 0  # look at so many calls at most, the newest before `before` or the oldest after `after`; 0: at all
    sight: Sight | None = None  # a first sieve, before it is judged who may see them
    oldest_first: bool = False
    where: tuple[Condition, ...] = ()  # on arguments that are kept in clear, all of them
    words: str = ""  # all in the arguments that are kept in clear; a word that ends with * stands for its beginnings
