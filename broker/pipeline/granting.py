"""Standing grants: who may propose and confirm them, and which of them cover a call.

The rule for persons: whoever may decide on the rule's holds may propose a grant, and is thereby the first to approve
it; others who may decide on those holds confirm it. It takes two persons at least, and as many as the rule asks for a
hold. Whose calls they are has no say. Revoking takes one of them, or whoever oversees the broker, and works at once: a
use is counted in the transaction that admits its call.

A grant is asked only when a rule holds. It never overrides a denial, and covers nothing when the tool's definition, the
rule's reviewers or its quorum are others than they were.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import orjson
from uuid_utils import uuid7

from broker.catalog.catalog import Entry, Shelf
from broker.data import dataclass
from broker.errors import Forbidden, InvalidArguments, UnknownHold
from broker.model.call import Call
from broker.model.grant import LEAST_PERSONS, Grant, GrantDecision, GrantReview, GrantUse
from broker.model.hold import Approval, Hold, HoldTerms
from broker.model.principal import Principal, person
from broker.pipeline.reviewers import lacks, name_of, voter
from broker.policies.amount import micro
from broker.policies.expression import Expression, facts
from broker.policies.rule import Verdict
from broker.ports import Clock, Directory, Store

MOST_CALLS = 100_000
LONGEST_MS = 366 * 86_400_000
REASON_CHARS = 1_000

_compiled = lru_cache(maxsize=256)(Expression.compile)


@dataclass(frozen=True, slots=True)
class Whose:
    """Whose calls a grant is for. user "": whomever the agent acts for. persons: the names that have no say in it."""

    tenant: str
    agent: str
    issuer: str
    user: str
    persons: tuple[str, ...]


def whose(directory: Directory, tenant: str, agent: str, issuer: str, user: str) -> Whose:
    """Calls of this agent, and who answers for it here: the owners of its registration and of its keys have no say, nor
    has anybody such a key stands for. Blocks on the disk."""
    client = directory.client(agent)
    owners = {client.owner} if client is not None and client.tenant == tenant else set[str]()
    for key in directory.api_keys():
        if key.tenant == tenant and person(key.agent) == person(agent):
            owners |= {key.owner, key.user}
    persons = Principal(agent, user=user).persons | {person(name) for name in owners if name}
    return Whose(tenant, agent, issuer, user, tuple(sorted(persons)))


@dataclass(frozen=True, slots=True)
class Bounds:
    """Which calls, and how much of them: as the fields of `model.grant.Grant`, but total as a decimal in text."""

    count: int
    until_ms: int
    when: str = "true"
    amount: str = ""
    total: str = ""


class Grants:
    def __init__(self, *, shelf: Shelf, store: Store, clock: Clock, reviewer_scope: str) -> None:
        self._shelf = shelf
        self._store = store
        self._clock = clock
        self._reviewer_scope = reviewer_scope

    # ---------------------------------------------------------------------------------------------------- people

    async def propose(
        self,
        who: Principal,
        *,
        call_id: str,
        count: int,
        until_ms: int,
        when: str = "true",
        amount: str = "",
        total: str = "",
        reason: str = "",
        any_user: bool = False,
        via: str,
    ) -> Grant:
        """A grant for calls like this held one, by its agent (and for its user, unless any_user).

        when: CEL over the arguments, which the held call itself must meet. amount, total: CEL for what a call costs,
        and the most all may cost together, as a decimal.
        Raises UnknownHold; Forbidden (not this person); InvalidArguments.
        """
        held = await self._store.invocation(call_id)
        if held is None or held.hold is None:
            raise UnknownHold(f"There is no held call {call_id[:64]!r}.")
        entry = self._shelf.current.named(held.tool)
        terms = _terms_of(entry, held.rule)
        if entry is None or terms is None or entry.tool.definition != held.definition:
            raise InvalidArguments(
                f"{held.tool} or its rule {held.rule} is another one now; propose from a newer hold."
            )
        self._may(who, held.hold, held.hold.persons)
        grant = self._made(
            Whose(held.tenant, held.agent, held.issuer, "" if any_user else held.user, held.hold.persons),
            (entry, held.rule, terms),
            Bounds(count, until_ms, when, amount, total),
            self._approval(who, reason, via),
            from_hold=call_id,
        )
        await self._meets(grant, entry, call_id)
        return await self._store.propose_grant(grant)

    async def draft(
        self, who: Principal, whose: Whose, bounds: Bounds, *, tool: str, rule: str, reason: str = "", via: str
    ) -> Grant:
        """A grant that no held call stands behind, for calls of this tool that this rule (policy/id) holds.

        Raises Forbidden (this person); InvalidArguments, also for a rule whose calls this person has no say in.
        """
        entry = self._shelf.current.named(tool)
        terms = _terms_of(entry, rule)
        if entry is None or terms is None or not self.may_grant(who, terms):
            raise InvalidArguments(
                f"There is no rule {rule[:128]!r} of a tool {tool[:64]!r} whose held calls you may decide on.",
                next_step="Name both as a held call shows them.",
            )
        if not whose.agent or not whose.issuer:
            raise InvalidArguments("A grant is for the calls of one agent, as one issuer vouches for it.")
        grant = self._made(whose, (entry, rule, terms), bounds, self._approval(who, reason, via))
        self._may(who, _as_hold(grant), grant.persons)
        return await self._store.propose_grant(grant)

    def may_grant(self, who: Principal, terms: HoldTerms) -> bool:
        """Whether this person may decide on calls that are held on these terms, and so propose grants for them."""
        hold = Hold(reason="", expires_at_ms=0, scopes=terms.scopes, groups=terms.groups)
        return not lacks(hold, who, self._reviewer_scope, self._clock.now_ms())

    def _made(
        self,
        whose: Whose,
        held_by: tuple[Entry, str, HoldTerms],
        bounds: Bounds,
        approval: Approval,
        *,
        from_hold: str = "",
    ) -> Grant:
        """Raises InvalidArguments."""
        (entry, rule, terms), now_ms = held_by, self._clock.now_ms()
        grant = Grant(
            grant_id=str(uuid7()),
            state="proposed",
            at_ms=now_ms,
            changed_at_ms=now_ms,
            tenant=whose.tenant,
            agent=whose.agent,
            issuer=whose.issuer,
            user=whose.user,
            tool=entry.tool.name,
            definition=entry.tool.definition,
            rule=rule,
            when=bounds.when,
            count=bounds.count,
            until_ms=bounds.until_ms,
            amount=bounds.amount,
            total=_millionths(bounds.total) if bounds.amount else 0,
            reason=approval.reason,
            scopes=terms.scopes,
            groups=terms.groups,
            quorum=max(LEAST_PERSONS, terms.quorum),
            persons=whose.persons,
            from_hold=from_hold,
            approvals=(approval,),
        )
        _judge(grant, now_ms)
        return grant

    async def decide(self, who: Principal, grant_id: str, *, decision: GrantDecision, reason: str, via: str) -> Grant:
        """Approve, reject or revoke. Raises UnknownHold, Forbidden, Conflict (decided, or this person has approved)."""
        grant = await self._store.grant(grant_id)
        if grant is None:
            raise UnknownHold(f"There is no grant {grant_id[:64]!r}.", next_step="List the grants.")
        if decision != "revoke" or self._reviewer_scope not in who.scopes or who.persons & set(grant.persons):
            self._may(who, _as_hold(grant), grant.persons)
        if decision != "approve" and not _words(reason):
            raise Forbidden("Ending a grant needs a reason.", next_step="Say in one sentence why.")
        return await self._store.decide_grant(GrantReview(grant_id, decision, self._approval(who, reason, via)))

    def objection(self, who: Principal, grant: Grant) -> str:
        """Why this person may not decide on this grant, or ""."""
        if who.persons & set(grant.persons):
            return "Whose calls a grant is for may not decide on it."
        if any(voter(who) & set(one.persons) for one in grant.approvals):
            return "You have approved it already; another person has to."
        return lacks(_as_hold(grant), who, self._reviewer_scope, self._clock.now_ms())

    def _may(self, who: Principal, hold: Hold, persons: tuple[str, ...]) -> None:
        objection = lacks(hold, who, self._reviewer_scope, self._clock.now_ms())
        if who.persons & set(persons):
            objection = "Whose calls a grant is for may not decide on it."
        if objection:
            raise Forbidden(objection, next_step="Another person has to decide.")

    def _approval(self, who: Principal, reason: str, via: str) -> Approval:
        persons = tuple(sorted(voter(who)))
        return Approval(name_of(who), persons, _words(reason), self._clock.now_ms(), via, who.issuer)

    async def _meets(self, grant: Grant, entry: Entry, call_id: str) -> None:
        """The held call must itself be one of those the grant is for, as long as its arguments are still there."""
        parts = await self._store.held(call_id)
        if parts.arguments is None:
            return
        arguments: dict[str, Any] = orjson.loads(parts.arguments)
        if (
            _amount(grant, entry, Principal(agent=grant.agent, user=grant.user), arguments, self._clock.now_ms())
            is None
        ):
            raise InvalidArguments("The held call itself does not meet the bounds of this grant.")

    # ----------------------------------------------------------------------------------------------------- calls

    async def uses(self, call: Call, entry: Entry, verdict: Verdict, now_ms: int) -> tuple[GrantUse, ...]:
        """The grants that cover a call a rule holds, in the order in which they are to be used up."""
        if verdict.terms is None:
            return ()
        found: list[GrantUse] = []
        for grant in await self._store.grants_for(entry.tool.name, call.principal.agent):
            if not grant.is_usable(now_ms) or not _is_for(grant, call.principal, entry, verdict.rule, verdict.terms):
                continue
            amount = _amount(grant, entry, call.principal, call.arguments, now_ms)
            if amount is not None:
                found.append(GrantUse(grant.grant_id, amount))
        return tuple(found)


def _is_for(grant: Grant, caller: Principal, entry: Entry, rule: str, terms: HoldTerms) -> bool:
    same_caller = (grant.tenant, grant.issuer, grant.agent) == (caller.tenant, caller.issuer, caller.agent)
    same_user = not grant.user or person(grant.user) == person(caller.user)
    own = any(
        caller.persons & set(one.persons) for one in grant.approvals
    )  # for any user, but not for who agreed to it
    asked = frozenset(grant.scopes) == frozenset(terms.scopes) and frozenset(grant.groups) == frozenset(terms.groups)
    enough = len(grant.approvals) >= max(LEAST_PERSONS, terms.quorum)
    return (
        same_caller
        and same_user
        and not own
        and asked
        and enough
        and grant.rule == rule
        and grant.definition == entry.tool.definition
    )


def _amount(grant: Grant, entry: Entry, caller: Principal, arguments: Mapping[str, Any], now_ms: int) -> int | None:
    """What this call adds to the grant's sum, in millionths (0 without one); None when it is outside of its bounds, or
    nobody can say."""
    condition = _compiled(grant.when)
    price = _compiled(grant.amount, result="amount") if grant.amount else None
    variables = condition.references.variables | (price.references.variables if price else frozenset[str]())
    known = facts(variables, entry.facts, caller, arguments, now_ms)
    if condition.met(known) is not True:
        return None
    if price is None:
        return 0
    try:
        value = micro(price.amount(known))
    except ValueError:
        return None
    return value if value >= 0 and grant.spent + value <= grant.total else None


def _judge(grant: Grant, now_ms: int) -> None:
    """Raises InvalidArguments, one clear sentence."""
    if not 1 <= grant.count <= MOST_CALLS:
        raise InvalidArguments(f"A grant is for 1 to {MOST_CALLS} calls.")
    if not now_ms < grant.until_ms <= now_ms + LONGEST_MS:
        raise InvalidArguments("A grant ends in the future, and within 366 days.")
    try:
        _compiled(grant.when)
        if grant.amount:
            _compiled(grant.amount, result="amount")
    except ValueError as error:
        raise InvalidArguments(f"The bounds of the grant do not compile: {error}.") from None
    if grant.amount and grant.total <= 0:
        raise InvalidArguments("A grant with an amount has a total above 0.")


def _millionths(written: str) -> int:
    try:
        return micro(written)
    except ValueError as error:
        raise InvalidArguments(f"The total is no decimal: {error}.") from None


def _terms_of(entry: Entry | None, rule: str) -> HoldTerms | None:
    if entry is None:
        return None
    return next((one.verdict.terms for one in entry.rules.rules if one.name == rule), None)


def _as_hold(grant: Grant) -> Hold:
    return Hold(reason="", expires_at_ms=grant.until_ms, scopes=grant.scopes, groups=grant.groups)


def _words(reason: str) -> str:
    return " ".join(reason.split())[:REASON_CHARS]
