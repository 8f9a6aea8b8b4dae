"""The records: one truth for calls, holds, quotas and grants, and what it tells of them.

Engines: `stores.STORES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from broker.data import dataclass
from broker.model.grant import Grant, GrantReview
from broker.model.hold import Edit, Review
from broker.model.invocation import Admission, Intent, Invocation, InvocationQuery, Outcome
from broker.model.ledger import Erased, Heads, Subject
from broker.model.question import By, Group
from broker.model.quota import Charge, QuotaState
from broker.model.statistics import CallSums, Judged, Seen, Span, Spent


@dataclass(frozen=True, slots=True)
class Claimed:
    """An approved hold that is now ours to dispatch, exactly once."""

    invocation: Invocation
    arguments: bytes  # canonical JSON, unsealed
    principal: bytes  # JSON as given in the intent
    sent_as: str = ""  # as in Admission


@dataclass(frozen=True, slots=True)
class Collected:
    """A held call for its caller. result: the stored MCP result (JSON) when it ran and one is kept. changes: what a
    reviewer changed, as `Edit.changes`; empty when nothing."""

    invocation: Invocation
    result: bytes = b""
    changes: bytes = b""


@dataclass(frozen=True, slots=True)
class HeldParts:
    """What is kept with a held call, each part as long as it is kept: all but the last two until it ends.

    arguments, principal: as in the intent. sketch: a Sketch. previewed: an MCP result. changes: as `Edit.changes`.
    before: what the record keeps of the arguments first asked for, when a reviewer changed them. All JSON.
    """

    arguments: bytes | None = None
    principal: bytes | None = None
    sketch: bytes | None = None
    previewed: bytes | None = None
    changes: bytes | None = None
    before: bytes | None = None


@dataclass(frozen=True, slots=True)
class Swept:
    expired: tuple[str, ...] = ()  # holds nobody decided
    outcome_unknown: tuple[Invocation, ...] = ()  # dispatched by a process that died
    leases: int = 0  # reservations freed


@dataclass(frozen=True, slots=True)
class Load:
    """What the writer of the records has done since it began, and what waits for it. lag_s: how long what it is at now
    has taken so far, 0 when it is idle. commit_s: what all transactions took together."""

    waiting: int = 0
    lag_s: float = 0.0
    batches: int = 0
    jobs: int = 0
    commit_s: float = 0.0


@dataclass(frozen=True, slots=True)
class OpenCalls:
    """Open calls of all brokers on these records. oldest_hold_ms: since when the oldest hold waits, 0 without any."""

    held: int = 0
    approved: int = 0
    dispatching: int = 0
    oldest_hold_ms: int = 0


@dataclass(frozen=True, slots=True)
class QueueCount:
    """How many held calls wait that agree in these."""

    tool: str
    agent: str
    user: str
    rule: str
    count: int


@dataclass(frozen=True, slots=True)
class Event:
    """An entry of the ledger. id: its place in the order of commit. name: chain and seq, the same for ever."""

    id: int
    name: str
    at_ms: int
    kind: str
    call_id: str
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Followed:
    """events: what was looked for; upto: the last entry that was looked at, of whatever kind."""

    events: tuple[Event, ...]
    upto: int


class Store(Protocol):
    """Records, quotas and holds: one truth, changed only in transactions, durable when a verb returns.

    Every verb raises RecordUnavailable when it could not be committed, in bounded time; then nothing of it happened. On
    cancel: a verb that writes ends when what was asked for is committed or is not, and what was admitted or claimed for
    nobody is settled as not sent.
    Any number of processes may use one database at once.
    """

    async def admit(self, intent: Intent) -> Admission:
        """Commit the intent, its charges and its hold, or its refusal: all or nothing. A refused call burns no quota.

        Raises Conflict when the call_id exists, or when the intent's key was used for another call.
        """
        ...

    async def finish(self, outcome: Outcome) -> None:
        """Commit how a dispatched call ended and settle its charges. Idempotent by call_id and state.

        Raises Conflict when the call is not `dispatching` (or is already settled otherwise).
        """
        ...

    def mac(self, path: str, value: Any) -> bytes:
        """The keyed digest (32 bytes) of an argument: its path and its JSON value. Nobody without the key can tell the
        value, or whether two are equal. Raises RecordUnavailable when the key cannot be read."""
        ...

    async def review(self, review: Review) -> Invocation:
        """held -> approved, rejected or withdrawn (withdraw also from approved). An approval that is not the last of
        its quorum leaves it held.

        Raises UnknownHold; Conflict (facts: state, reviewer, reviewed_at_ms) when somebody was first or it expired, or
        when this person has approved it already.
        """
        ...

    async def edit(self, edit: Edit) -> Invocation:
        """As `review` with an approval, for other arguments: earlier approvals are void, quotas are reserved anew.

        Raises OverQuota too; then nothing changed.
        """
        ...

    async def claim(self, call_id: str, now_ms: int) -> Claimed | None:
        """approved -> dispatching for this process; None when another was first or it is no longer approved."""
        ...

    async def collect(self, call_id: str, principal_key: str, now_ms: int) -> Collected | None:
        """The held call as its caller may see it; None when there is none or it is somebody else's.

        When it has ended it is marked collected (the first time), so that the same call sent again opens a new hold.
        """
        ...

    async def result(self, call_id: str) -> bytes | None:
        """The MCP result (JSON) of a call that ended with one, while it is kept."""
        ...

    async def spend(self, once: str, until_ms: int) -> bool:
        """Use something that may be used once; True for the first who asks, in whichever process, until `until_ms`."""
        ...

    def secret(self, purpose: str) -> bytes:
        """32 secret bytes for this purpose, the same in every process on this database. Raises OSError when there is no
        key to derive them from. May block on the disk for a moment, the first time."""
        ...

    async def sweep(self, now_ms: int) -> Swept:
        """Expire holds, free leases, and turn what dead processes were dispatching into outcome_unknown."""
        ...

    async def note(self, kind: str, facts: Mapping[str, Any]) -> None:
        """Append an entry that belongs to no call: reload, sign_in, export, authentication failures in sum."""
        ...

    async def heads(self) -> Heads | None:
        """Where the ledger's chains stand, for a checkpoint. After `aclose`: as this process left them, or None when it
        wrote nothing."""
        ...

    async def invocation(self, call_id: str) -> Invocation | None: ...

    async def invocations(self, query: InvocationQuery) -> list[Invocation]: ...

    async def queue(self, query: InvocationQuery) -> list[Invocation]:
        """What waits for a person and fits the query, the soonest to expire first; `after`: a call id of that order."""
        ...

    async def queue_counts(self, query: InvocationQuery) -> list[QueueCount]:
        """How many of them wait, by what people filter by; the query's limit does not count."""
        ...

    async def held_lately(self, query: InvocationQuery) -> list[Invocation]:
        """Calls that were held at some time, within one tenant (`within` must be given), the last changed first."""
        ...

    async def sums(self, query: InvocationQuery, by: By) -> list[Group]:
        """All calls that the query finds, whatever its limit, summed by one fact of theirs."""
        ...

    async def keep_in_step(self) -> bool:
        """Take some more calls into what sums and words are found by, if nothing else is to be written now; True when
        there may be more to take in. For whoever has nothing else to do."""
        ...

    async def erase(self, subject: Subject, name: str, *, by: str, dry: bool = False) -> Erased:
        """Erase what is kept of the calls of a person, an agent or a tenant, some at a time; records stay, and say so.

        Calls that are still open keep what they need. dry: only count.
        """
        ...

    async def payload(self, call_id: str, *, by: str, via: str) -> bytes | None:
        """The sealed arguments of a call (canonical JSON), for an auditor; None when nothing is sealed. That it was
        read, and by whom, is an entry before it is told."""
        ...

    async def edge(self, query: InvocationQuery) -> str:
        """The id of the last call that the query's `scan` lets be looked at: the oldest, with `after` the newest; ""
        when no call lies beyond."""
        ...

    async def call_sums(self, within: str, span: Span) -> CallSums:
        """The calls of one tenant, slot by slot; of the newest, when there are too many to look at."""
        ...

    async def judged(self, within: str | None, since_ms: int) -> list[Judged]:
        """Calls of one tenant, or of all (None), that were held and changed since then, the last changed first,
        bounded."""
        ...

    async def spent(self, since_ms: int) -> list[Spent]:
        """What was used of calendar quotas in windows that began since then, the newest first, bounded."""
        ...

    async def agents(self, within: str) -> list[Seen]:
        """The agents of one tenant that called lately, by name."""
        ...

    async def take_place(self, name: str, *, now_ms: int, lease_ms: int, from_first: bool = False) -> int | None:
        """Where this follower of the ledger stands, ours to go on from until the lease ends; taken again, it is longer.
        None while another process has it. A new follower begins at the end, or at the first entry."""
        ...

    async def move_place(self, name: str, upto: int) -> bool:
        """All up to this entry has been handed on. False when the place is another process's by now."""
        ...

    async def entries_after(self, place: int, kinds: Sequence[str], limit: int) -> Followed:
        """The next entries of these kinds (none named: of all) in order of commit; perhaps none of many looked at."""
        ...

    async def is_new(self, intent: Intent) -> bool:
        """Of an intent with terms: whether admitting it would ask somebody anew, instead of attaching to its like."""
        ...

    async def held_arguments(self, call_id: str) -> bytes | None:
        """The exact arguments of an open hold, for its reviewer; None when it has ended."""
        ...

    async def propose_grant(self, grant: Grant) -> Grant:
        """Write a standing grant as proposed. Raises Conflict when its id exists."""
        ...

    async def decide_grant(self, review: GrantReview) -> Grant:
        """As `model.grant.GRANT_TRANSITIONS` allows. Raises UnknownHold; Conflict when it is decided otherwise, or
        when this person has approved it already."""
        ...

    async def grant(self, grant_id: str) -> Grant | None: ...

    async def grants(self, tenant: str | None, *, ended: bool = False, limit: int = 500) -> list[Grant]:
        """Those that are proposed or active, and with `ended` the others too, newest first. tenant None: of all."""
        ...

    async def grants_for(self, tool: str, agent: str) -> list[Grant]:
        """Those that are active for calls of this tool by this agent, oldest first."""
        ...

    async def held(self, call_id: str) -> HeldParts:
        """What is kept with a held call; empty when it is none."""
        ...

    async def quotas(self, now_ms: int, *, quota: str = "", after: str = "", limit: int = 1000) -> list[QuotaState]:
        """Buckets that have something used or reserved now, of one quota or of all, by quota, bucket and kind.

        after: the `place` of the last one of the page before. Repeated calls are among them while they are not let
        through.
        """
        ...

    async def left(self, charges: Sequence[Charge], now_ms: int) -> list[QuotaState]:
        """How the buckets of these charges stand, in their order, nothing being taken; also those never used."""
        ...

    async def open_calls(self) -> OpenCalls:
        """How many calls are open now."""
        ...

    @property
    def load(self) -> Load: ...

    async def changed(self, timeout_s: float) -> bool:
        """Wait until some invocation may have changed state, in this or another process; False after timeout_s."""
        ...

    @property
    def fault(self) -> str:
        """Why records cannot be written now, "" when they can. For /readyz."""
        ...

    async def aclose(self) -> None:
        """Commit what is queued, end the writer's chain, close. Idempotent."""
        ...


Subscriber = Callable[[], None]
