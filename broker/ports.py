"""What the pipeline needs from the world, as promises. Adapters keep them; contract tests iterate over the tables.

Authenticators: `auth.AUTHENTICATORS`; backends: `backends.BACKENDS`; stores: `stores.STORES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

from anyio.abc import TaskGroup
from pydantic import BaseModel

from broker.data import dataclass
from broker.model.answer import Answer
from broker.model.call import Call
from broker.model.directory import (
    Account,
    ApiKey,
    BrowserSession,
    Client,
    Code,
    RefreshToken,
    SigningKey,
    Standing,
)
from broker.model.grant import Grant, GrantReview
from broker.model.hold import Edit, Review
from broker.model.invocation import Admission, Intent, Invocation, InvocationQuery, Outcome
from broker.model.ledger import Erased, Heads, Subject
from broker.model.notice import Notice
from broker.model.principal import Principal
from broker.model.question import By, Group
from broker.model.quota import Charge, QuotaState
from broker.model.sketch import Sketch
from broker.model.statistics import CallSums, Judged, Seen, Span, Spent
from broker.model.tool import Tool


class Clock(Protocol):
    def now_ms(self) -> int:
        """Milliseconds since the Unix epoch, UTC. May jump; whoever needs a duration uses a monotonic clock."""
        ...


class Secrets(Protocol):
    def resolve(self, reference: str) -> str:
        """The secret behind `${env:NAME}` or `${file:PATH}` (relative to the settings file). Read at use, never kept.

        Raises LookupError naming the reference, never the value.
        """
        ...


class Authenticator(Protocol):
    async def authenticate(self, credential: str) -> Principal | None:
        """Who presents this bearer credential; None when this kind of credential is not ours to judge.

        Raises Unauthenticated (a sentence without the credential) when it is ours and not valid: unknown, expired,
        revoked, wrong audience, badly signed. Raises nothing else for any input, in bounded time; RecordUnavailable
        when it cannot be found out now.
        """
        ...

    def remembered(self, mark: bytes) -> Principal | None:
        """Whom it has vouched for lately by the credential of this fingerprint (`principal.fingerprint`), if that still
        counts and nothing has to be read to say so; None otherwise."""
        ...

    async def recheck(self, principal: Principal, since_ms: int | None = None) -> bool:
        """Whether the grant behind a principal we once vouched for still holds; False when it was not ours. since_ms:
        when it last did; what bears the same name and came after that is another.

        For calls that run long after they were authenticated. Raises Unauthenticated (revoked, removed, ended) or
        InsufficientScope (it lost scopes it had).
        """
        ...


class NotDelivered(Exception):
    """A notice did not arrive. for_good: the receiver says that it would not take it at another time either."""

    def __init__(self, why: str, *, for_good: bool) -> None:
        super().__init__(why)
        self.for_good = for_good


class Notifier(Protocol):
    """One receiver of notices. A row of `notifiers.NOTIFIERS` is made with its settings (NotifyTo)."""

    async def send(self, notice: Notice) -> None:
        """Once, in bounded time. Raises NotDelivered, with no secret in it; whether it arrived may be unknown then."""
        ...

    async def aclose(self) -> None: ...


# ---------------------------------------------------------------------------------------------------------- backends


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


# ------------------------------------------------------------------------------------------------------------- store


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


# --------------------------------------------------------------------------------------------------------- directory


class Directory(Protocol):
    """Whom the broker knows by itself, and what its embedded authorization server has handed out.

    Methods block on the disk: call them from a worker thread. Each is one transaction; any number of threads and
    processes may use one directory at once. Raises RecordUnavailable when it cannot be read or written.
    """

    def generation(self) -> int:
        """Grows whenever something that was valid may have ceased to be (revocation, removal, narrower scopes).

        Who remembers that a credential was good asks here every few seconds and forgets when it has grown.
        """
        ...

    def accounts(self) -> tuple[Account, ...]: ...

    def account(self, name: str) -> Account | None:
        """By any spelling that `person()` folds into the account's name."""
        ...

    def add_account(self, account: Account) -> None:
        """Raises Conflict when an account or a client has this name already (an identity has one meaning)."""
        ...

    def update_account(self, account: Account) -> bool:
        """Replace the account of this name; False when there is none."""
        ...

    def remove_account(self, name: str) -> bool:
        """With its sessions, codes and refresh tokens."""
        ...

    def clients(self) -> tuple[Client, ...]: ...

    def client(self, client_id: str) -> Client | None: ...

    def add_client(self, client: Client) -> None:
        """Raises Conflict as add_account does, and when there are too many dynamic clients."""
        ...

    def update_client(self, client: Client) -> bool: ...

    def remove_client(self, client_id: str) -> bool:
        """With its codes and refresh tokens."""
        ...

    def api_keys(self) -> tuple[ApiKey, ...]: ...

    def api_key(self, key_id: str) -> ApiKey | None: ...

    def add_api_key(self, key: ApiKey) -> None: ...

    def revoke_api_key(self, key_id: str) -> bool: ...

    def add_code(self, code: Code) -> None: ...

    def spend_code(self, code_hash: str, client_id: str) -> Code | None:
        """Take the code: of any number who ask at once, one gets it. Showing a spent code again revokes its grant."""
        ...

    def add_refresh_token(self, token: RefreshToken) -> None:
        """Raises Conflict when the grant has been revoked in the meantime."""
        ...

    def refresh_token(self, token_hash: str, client_id: str) -> RefreshToken | None:
        """A token of this client that can still be spent. Showing a spent one revokes its grant."""
        ...

    def spend_refresh_token(self, token_hash: str, client_id: str) -> bool:
        """Mark it used; True for one caller only. Spending a spent one revokes its grant."""
        ...

    def revoke(self, token_id: str, until_ms: int) -> None:
        """Refuse a token (jti), or all tokens of a grant (grant_id). until_ms: remember it until then at least."""
        ...

    def standing(self, client_id: str, account: str, token_ids: Sequence[str]) -> Standing:
        """client: of this id; account: of this name ("": none asked for); revoked: whether any of the ids is."""
        ...

    def add_session(self, session: BrowserSession) -> None: ...

    def session(self, cookie_hash: str) -> BrowserSession | None: ...

    def remove_session(self, cookie_hash: str) -> None: ...

    def remove_sessions(self, account: str) -> None:
        """Those of every browser that is signed in with this account."""
        ...

    def signing_keys(self) -> tuple[SigningKey, ...]:
        """Those that still verify, the one that signs first."""
        ...

    def add_signing_key(self, key: SigningKey, *, retire_others_at_ms: int | None) -> SigningKey:
        """With None: only when there is no key in use yet; otherwise the others verify until then.

        Returns the key that signs now, which may be another process's.
        """
        ...

    def close(self) -> None: ...
