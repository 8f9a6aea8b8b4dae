"""A standing grant: calls like these of this agent may run without being held, so often, up to so much, until then.

A grant is for one holding rule of one tool as it is defined now, and turns nothing but that rule's hold into a run. It
is itself reviewed: who proposes it is the first of at least two persons. Its life is the table below.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from broker.data import dataclass
from broker.model.hold import Approval

GrantState = Literal["proposed", "active", "rejected", "revoked"]
GrantDecision = Literal["approve", "reject", "revoke"]
GRANT_TRANSITIONS: Mapping[GrantState, frozenset[GrantState]] = {
    "proposed": frozenset({"proposed", "active", "rejected", "revoked"}),  # proposed again: one approval of several
    "active": frozenset({"revoked"}),
    "rejected": frozenset(),
    "revoked": frozenset(),
}
LEAST_PERSONS = 2


@dataclass(frozen=True, slots=True)
class Grant:
    """agent, user, tenant, issuer: whose calls; user "": whoever the agent acts for. scopes, groups, quorum: of the
    rule at the time, which the rule must still ask when the grant is used. when: CEL over the arguments. amount: CEL
    for what one call adds to `spent`, in millionths, up to `total`; "" for none.
    """

    grant_id: str
    state: GrantState
    at_ms: int
    tenant: str
    agent: str
    issuer: str
    user: str
    tool: str
    definition: str
    rule: str
    when: str
    count: int  # most calls
    until_ms: int
    amount: str = ""
    total: int = 0
    reason: str = ""
    scopes: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    quorum: int = LEAST_PERSONS
    persons: tuple[str, ...] = ()  # who may not review: every name of whose calls they are
    from_hold: str = ""
    approvals: tuple[Approval, ...] = ()  # the proposer's first
    used: int = 0
    spent: int = 0
    changed_at_ms: int = 0
    ended_by: str = ""  # who rejected or revoked it
    ended_reason: str = ""

    def is_usable(self, now_ms: int) -> bool:
        """Whether it lets another call run, as far as its own state says."""
        return self.state == "active" and now_ms < self.until_ms and self.used < self.count


@dataclass(frozen=True, slots=True)
class GrantUse:
    """A grant that covers a call. amount: what the call adds to `spent`, in millionths."""

    grant_id: str
    amount: int = 0


@dataclass(frozen=True, slots=True)
class GrantReview:
    """One person's decision on a grant."""

    grant_id: str
    decision: GrantDecision
    approval: Approval  # who, why, when, through what
