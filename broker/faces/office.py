"""What a person may see and decide: the one answer behind the REST API and the console.

Whose records: those of one's own tenant, and of no other. Within it

- the caller of a call sees it;
- whoever may review a held call sees it;
- whoever holds the settings' reviewer scope sees every call, every quota and the backends.

What one may not see does not exist: the same answer as for an id that was never given out. Whether a person may
*decide* is the desk's to say, here as everywhere.

What must not live here: HTTP, HTML, wording of errors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import unquote

import anyio
import jiter
from anyio import to_thread

from broker.catalog.catalog import Entry, Shelf
from broker.data import dataclass
from broker.errors import Forbidden, UnknownHold
from broker.faces.deciding import Stats, stats
from broker.model.answer import Answer
from broker.model.call import Call
from broker.model.directory import Client
from broker.model.grant import Grant, GrantDecision
from broker.model.hold import Change, Hold
from broker.model.invocation import Invocation, InvocationQuery, Sight
from broker.model.principal import Principal, person
from broker.model.question import By, Group
from broker.model.quota import QuotaState
from broker.model.sketch import Sketch
from broker.pipeline.desk import Desk
from broker.pipeline.editing import changed
from broker.pipeline.granting import Bounds, Grants, whose
from broker.pipeline.reviewers import names
from broker.ports import Backend, Clock, Directory, QueueCount, Store
from broker.settings import Settings

SCANNED = 1_000  # of what waits, for somebody who may see some of it
HASTE_S = 0.08  # how long one page's calls are looked for, where few may fit
STEP = 1_000  # of them at first; a step that took less than QUICK_S is followed by one twice as long
QUICK_S = 0.005  # what lies further back may be on the disk alone
SCANNED_BUCKETS, _PAGE_OF_BUCKETS = 20_000, 1_000  # the same for quotas
QUEUE_FILTERS = ("tool", "agent", "user", "rule")
LATELY = 100  # held calls looked through for somebody who may see few of them
CONSOLE = "broker-console"  # the broker's own client is no agent

Perform = Callable[[Call], Awaitable[Answer]]
"""`Pipeline.perform`."""

Authenticate = Callable[[str | None, str], Awaitable[Principal]]
"""`Gatekeeper.authenticate`: (credential, door) -> who. Raises Unauthenticated; RecordUnavailable."""


@dataclass(frozen=True, slots=True)
class Page:
    """next: the `before` of the following page (`after`, where that was asked for), "" when this is the last."""

    items: tuple[Invocation, ...]
    next: str = ""


@dataclass(frozen=True, slots=True)
class Standing:
    """next: the `after` of the following page, "" when this is the last."""

    items: tuple[QuotaState, ...]
    next: str = ""


@dataclass(frozen=True, slots=True)
class Queue:
    """One page of what waits. next: the `after` of the following page, "" when this is the last.

    fitting: how many fit the filters; all: how many wait, whatever the filters. choices: for each filter its values
    among all that wait, with how many each.
    """

    items: tuple[Invocation, ...]
    next: str
    fitting: int
    all: int
    choices: Mapping[str, Mapping[str, int]]


@dataclass(frozen=True, slots=True)
class Offered:
    """A tool that exists for somebody. missing: scopes he lacks to call it."""

    entry: Entry
    missing: frozenset[str]


@dataclass(frozen=True, slots=True)
class Office:
    settings: Settings
    store: Store
    desk: Desk
    granting: Grants
    shelf: Shelf
    backends: Mapping[str, Backend]
    clock: Clock
    authenticate: Authenticate
    directory: Directory
    perform: Perform

    # ---------------------------------------------------------------------------------------------------- what is seen

    def oversees(self, who: Principal) -> bool:
        """Whether this person sees every record of his tenant."""
        return self.settings.hold.reviewer_scope in who.scopes

    def must_oversee(self, who: Principal) -> None:
        """Raises Forbidden."""
        if not self.oversees(who):
            raise Forbidden(f"This takes the scope {self.settings.hold.reviewer_scope}.")

    def sees(self, who: Principal, invocation: Invocation) -> bool:
        if invocation.tenant != who.tenant:
            return False
        return self.oversees(who) or self._is_own(who, invocation) or self._reviews(who, invocation.hold)

    def _is_own(self, who: Principal, invocation: Invocation) -> bool:
        if invocation.principal_key == who.key:
            return True
        same_person = bool(who.user) and person(invocation.user) == person(who.user)
        return same_person and invocation.issuer == who.issuer

    def _reviews(self, who: Principal, hold: Hold | None) -> bool:
        return hold is not None and names(hold, who, self.clock.now_ms())

    async def invocation(self, who: Principal, call_id: str) -> Invocation:
        """Raises UnknownHold, in the same words for what does not exist and what this person may not see."""
        found = await self.store.invocation(call_id)
        if found is None or not self.sees(who, found):
            raise _unknown(call_id)
        return found

    async def payload(self, who: Principal, call_id: str, *, via: str) -> bytes | None:
        """The sealed arguments of a call, as JSON; None when nothing is sealed of it. That they were read is recorded
        first. Raises UnknownHold; Forbidden for who is no auditor, before anything is looked up."""
        scope = self.settings.record.auditor_scope
        if scope not in who.scopes:
            raise Forbidden(f"Reading sealed arguments takes the scope {scope}.", next_step="Ask an auditor.")
        found = await self.store.invocation(call_id)
        if found is None or found.tenant != who.tenant:
            raise _unknown(call_id)
        return await self.store.payload(found.call_id, by=who.user or who.agent, via=via)

    async def hold(self, who: Principal, call_id: str) -> Invocation:
        """As `invocation`, for a call that was held."""
        found = await self.invocation(who, call_id)
        if found.hold is None:
            raise UnknownHold(f"The call {call_id[:64]!r} was not held.", next_step="List the holds.")
        return found

    async def page(self, who: Principal, query: InvocationQuery, *, hurried: bool = False) -> Page:
        """What the query finds of what this person may see, newest first (oldest with `after`), at most query.limit.

        hurried: what is found in HASTE_S, be the page short or empty then; always for who may see few of them.
        """
        query = replace(query, within=who.tenant)
        if not self.oversees(who):
            return await self._hurried(who, replace(query, sight=self._sight(who)))
        if hurried:
            return await self._hurried(who, query)
        found = await self.store.invocations(replace(query, limit=query.limit + 1))
        items = tuple(found[: query.limit])
        return Page(items, items[-1].call_id if len(found) > query.limit else "")

    async def _hurried(self, who: Principal, query: InvocationQuery) -> Page:
        items: list[Invocation] = []
        limit, step, now_s = query.limit, STEP, anyio.current_time()
        ends_at_s = now_s + HASTE_S
        while True:
            query = replace(query, scan=step, limit=limit + 1 - len(items))
            found = await self.store.invocations(query)
            items += [one for one in found if self.sees(who, one)]
            if len(items) > limit:
                return Page(tuple(items[:limit]), items[limit - 1].call_id)
            place = found[-1].call_id if len(found) == query.limit else await self.store.edge(query)
            began_s, now_s = now_s, anyio.current_time()
            if not place or now_s >= ends_at_s:
                return Page(tuple(items), place)
            step = step * 2 if now_s - began_s < QUICK_S else step
            query = replace(query, **{"after" if query.after else "before": place})

    def _sight(self, who: Principal) -> Sight:
        return Sight(who.key, who.issuer, person(who.user), (*sorted(who.scopes), *sorted(who.groups)))

    async def queue(self, who: Principal, query: InvocationQuery) -> Queue:
        """What waits for a decision and this person may see, the soonest to expire first.

        query: its filters, `after` and `limit`. Who sees only some of what waits sees those among the first SCANNED.
        """
        query = replace(query, within=who.tenant)
        if self.oversees(who):
            counts = await self.store.queue_counts(InvocationQuery(within=who.tenant))
            found = await self.store.queue(replace(query, limit=query.limit + 1))
            return _queue(query, counts, found)
        found = await self.store.queue(InvocationQuery(within=who.tenant, limit=SCANNED, sight=self._sight(who)))
        seen = [one for one in found if self.sees(who, one)]
        counts = [QueueCount(one.tool, one.agent, one.user, one.rule, 1) for one in seen]
        fits = [one for one in seen if all(getattr(one, name) == value for name, value in _chosen(query).items())]
        ids = [one.call_id for one in fits]
        begin = ids.index(query.after) + 1 if query.after in ids else 0
        return _queue(query, counts, fits[begin : begin + query.limit + 1])

    async def how_many(self, who: Principal) -> int:
        """How many calls wait that this person may see; with `queue`, of the first SCANNED."""
        if self.oversees(who):
            return sum(one.count for one in await self.store.queue_counts(InvocationQuery(within=who.tenant)))
        return (await self.queue(who, InvocationQuery(limit=1))).all

    async def held_lately(self, who: Principal, query: InvocationQuery) -> list[Invocation]:
        """What was held and changed last, of what this person may see; at most query.limit."""
        query = replace(query, within=who.tenant)
        if self.oversees(who):
            return await self.store.held_lately(query)
        found = await self.store.held_lately(replace(query, limit=LATELY))
        return [one for one in found if self.sees(who, one)][: query.limit]

    async def sums(self, who: Principal, query: InvocationQuery, by: By) -> list[Group]:
        """What the query finds, summed by one fact, for who oversees his tenant's records. Raises Forbidden."""
        if not self.oversees(who):
            raise Forbidden(f"Sums over everybody's calls take the scope {self.settings.hold.reviewer_scope}.")
        return await self.store.sums(replace(query, within=who.tenant), by)

    async def stats(self, who: Principal, since_ms: int) -> Stats:
        """How deciding on his tenant's held calls has gone since then. Raises Forbidden."""
        self.must_oversee(who)
        return stats(await self.store.judged(who.tenant, since_ms), since_ms)

    async def arguments(self, invocation: Invocation) -> Any:
        """Exactly what will be sent, for an open hold; else what the record kept; None when nothing is left."""
        exact = await self.store.held_arguments(invocation.call_id)
        return invocation.kept if exact is None else jiter.from_json(exact)

    async def sketch(self, invocation: Invocation) -> Sketch | None:
        """What will be sent, rendered by the code that sends it; None when the hold has ended."""
        packed = (await self.store.held(invocation.call_id)).sketch
        return Sketch.unpack(packed) if packed else None

    async def preview(self, invocation: Invocation) -> Any:
        """The MCP result of the safe call made beforehand, while the hold is open; None when there is none."""
        packed = (await self.store.held(invocation.call_id)).previewed
        return jiter.from_json(packed) if packed else None

    async def changes(self, invocation: Invocation) -> tuple[Change, ...]:
        """What a reviewer changed before approving: whole while it is kept, then as far as the record keeps it."""
        parts = await self.store.held(invocation.call_id)
        if parts.changes:
            return tuple(Change(**one) for one in jiter.from_json(parts.changes))
        return tuple(changed(jiter.from_json(parts.before), invocation.kept)) if parts.before else ()

    async def quotas(self, who: Principal, *, quota: str = "", after: str = "", limit: int = 1000) -> Standing:
        """What is used, of his own buckets; of all of his tenant for who oversees it. after: the `next` of a page."""
        seen: list[QuotaState] = []
        for _ in range(SCANNED_BUCKETS // _PAGE_OF_BUCKETS):
            states = await self.store.quotas(self.clock.now_ms(), quota=quota, after=after, limit=_PAGE_OF_BUCKETS)
            seen += [state for state in states if self._counts(who, _keys(state.bucket))]
            if len(seen) > limit:
                return Standing(tuple(seen[:limit]), seen[limit - 1].place)
            if len(states) < _PAGE_OF_BUCKETS:
                return Standing(tuple(seen))
            after = states[-1].place
        return Standing(tuple(seen), after)

    def _counts(self, who: Principal, keys: Mapping[str, str]) -> bool:
        if keys.get("tenant", person(who.tenant)) != person(who.tenant) or ("tenant" not in keys and who.tenant):
            return False
        if self.oversees(who):
            return True
        return keys.get("agent") == person(who.agent) or (bool(who.user) and keys.get("user") == person(who.user))

    def counts(self, who: Principal, bucket: str) -> bool:
        """Whether what is used of this bucket of a quota is for this person to see."""
        return self._counts(who, _keys(bucket))

    async def clients(self, who: Principal) -> list[Client]:
        """The agents that are registered here for his tenant. Raises Forbidden."""
        self.must_oversee(who)
        found = await to_thread.run_sync(self.directory.clients)
        return [client for client in found if client.tenant == who.tenant and client.client_id != CONSOLE]

    async def as_agent(self, who: Principal, name: str) -> Principal:
        """A registered agent as it stands when it acts for itself. Raises Forbidden."""
        client = next((one for one in await self.clients(who) if one.client_id == name), None)
        if client is None:
            raise Forbidden(f"There is no agent {name[:64]!r} here for you.")
        scopes = self.shelf.current.all_scopes if client.scopes is None else client.scopes
        return Principal(client.client_id, tenant=client.tenant, scopes=scopes, groups=client.groups)

    def offered(self, who: Principal) -> list[Offered]:
        """The tools that exist for this caller, those it may not call yet with what it lacks."""
        return [
            Offered(entry, entry.tool.scopes - who.scopes)
            for entry in self.shelf.current.entries.values()
            if entry.is_visible(who)
        ]

    # ------------------------------------------------------------------------------------------------ what is decided

    def objection(self, who: Principal, held: Invocation, *, via: str = "") -> str:
        """Why this person may not decide on this held call, or ""."""
        return self.desk.objection(held, who, via=via)

    async def grants(self, who: Principal, *, ended: bool = False) -> list[Grant]:
        """The standing grants this person may see: all of the tenant for who oversees it, else those one may decide on
        and those for one's own calls. Newest first."""
        found = await self.store.grants(who.tenant, ended=ended)
        return [grant for grant in found if self._sees_grant(who, grant)]

    async def grant(self, who: Principal, grant_id: str) -> Grant:
        """Raises UnknownHold, for what this person may not see too."""
        found = await self.store.grant(grant_id)
        if found is None or found.tenant != who.tenant or not self._sees_grant(who, found):
            raise UnknownHold(f"There is no grant {grant_id[:64]!r} here for you.", next_step="List the grants.")
        return found

    def _sees_grant(self, who: Principal, grant: Grant) -> bool:
        named = bool(who.scopes & set(grant.scopes) or who.groups & set(grant.groups))
        return self.oversees(who) or named or bool(who.persons & set(grant.persons))

    async def propose_grant(self, who: Principal, call_id: str, *, via: str, **bounds: Any) -> Grant:
        """From a held call one may see. bounds: as `Grants.propose`, which says what it raises."""
        await self.hold(who, call_id)
        return await self.granting.propose(who, call_id=call_id, via=via, **bounds)

    def grantable(self, who: Principal) -> list[tuple[str, str]]:
        """Tools and their rules whose held calls this person may decide on, so that he may write a grant for them."""
        return [
            (entry.tool.name, one.name)
            for entry in self.shelf.current.everything()
            for one in entry.rules.rules
            if one.verdict.terms is not None and self.granting.may_grant(who, one.verdict.terms)
        ]

    async def draft_grant(
        self, who: Principal, *, agent: str, user: str, issuer: str, bounds: Bounds, **more: Any
    ) -> Grant:
        """A grant that no held call stands behind, for an agent of his tenant. issuer "": his own vouches for it. more:
        as `Grants.draft`, which says what it raises."""
        named = await to_thread.run_sync(whose, self.directory, who.tenant, agent, issuer or who.issuer, user)
        return await self.granting.draft(who, named, bounds, **more)

    async def decide_grant(
        self, who: Principal, grant_id: str, *, decision: GrantDecision, reason: str, via: str
    ) -> Grant:
        """Approve, reject or revoke. Raises UnknownHold, and what `Grants.decide` raises."""
        await self.grant(who, grant_id)
        return await self.granting.decide(who, grant_id, decision=decision, reason=reason, via=via)

    async def decide(
        self,
        who: Principal,
        call_id: str,
        *,
        approve: bool,
        reason: str,
        via: str,
        arguments: Mapping[str, Any] | None = None,
    ) -> Invocation:
        """arguments: approve with these instead. Raises UnknownHold, and what `Desk.review` raises."""
        await self.hold(who, call_id)
        return await self.desk.review(
            call_id, approve=approve, reviewer=who, reason=reason, via=via, arguments=arguments
        )


def _queue(query: InvocationQuery, counts: Sequence[QueueCount], found: Sequence[Invocation]) -> Queue:
    items, chosen = tuple(found[: query.limit]), _chosen(query)
    choices: dict[str, Counter[str]] = {name: Counter() for name in QUEUE_FILTERS}
    for one in counts:
        for name, counter in choices.items():
            counter[getattr(one, name)] += one.count
    fitting = sum(one.count for one in counts if all(getattr(one, name) == chosen[name] for name in chosen))
    following = items[-1].call_id if len(found) > query.limit else ""
    return Queue(items, following, fitting, sum(one.count for one in counts), choices)


def _chosen(query: InvocationQuery) -> dict[str, str]:
    return {name: value for name in QUEUE_FILTERS if (value := getattr(query, name))}


def _keys(bucket: str) -> dict[str, str]:
    pairs = (part.partition("=") for part in bucket.split(",") if part)
    return {name: unquote(value) for name, _, value in pairs}


def _unknown(call_id: str) -> UnknownHold:
    return UnknownHold(
        f"There is no call {call_id[:64]!r} here for you.", next_step="List them, and use an id of the list."
    )
