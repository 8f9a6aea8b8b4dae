"""Who may decide on a held call, and who counts as one person. Nothing is asked of anybody here: these are the rules.

A person is a name folded over its spellings (`model.principal.person`), whoever vouches for it: an account, the
system's user and a single sign-on that all say `rita` are one Rita. That may refuse a second Rita; it never counts one
twice.
"""

from __future__ import annotations

from broker.model.hold import Approval, Hold, HoldTerms
from broker.model.invocation import Invocation
from broker.model.principal import Principal, person

CONSOLE = "console"
"""`via` of a decision in a browser: the one way that is a person's alone, and no program's with that person's token."""


def lacks(hold: Hold, reviewer: Principal, default_scope: str, now_ms: int) -> str:
    """What a person lacks to decide on this hold, as a sentence; "" when nothing. After a hold has escalated, those it
    escalates to may decide as well."""
    if names(hold, reviewer, now_ms):
        return ""
    scopes, groups = _named(hold, now_ms)
    if not hold.scopes and not hold.groups:
        if default_scope in reviewer.scopes:
            return ""
        scopes = scopes | {default_scope}
    asked = [f"scope {scope}" for scope in sorted(scopes)] + [f"group {group}" for group in sorted(groups)]
    return f"Reviewing this call takes {' or '.join(asked)}."


def confirms(hold: Hold, caller: Principal | Invocation, reviewer: Principal | Approval) -> bool:
    """Whether this is the very person the caller acts for, and the rule lets that one decide."""
    if not hold.confirm or not caller.user or caller.issuer != reviewer.issuer:
        return False
    if isinstance(reviewer, Approval):
        return reviewer.via == CONSOLE and person(caller.user) in reviewer.persons
    return bool(reviewer.user) and person(caller.user) == person(reviewer.user) and caller.tenant == reviewer.tenant


def names(hold: Hold, reviewer: Principal, now_ms: int) -> bool:
    """Whether the hold names this person among its reviewers, by scope or group."""
    scopes, groups = _named(hold, now_ms)
    return bool(reviewer.scopes & scopes or reviewer.groups & groups)


def _named(hold: Hold, now_ms: int) -> tuple[frozenset[str], frozenset[str]]:
    scopes, groups = frozenset(hold.scopes), frozenset(hold.groups)
    if not is_escalated(hold, now_ms):
        return scopes, groups
    return scopes | frozenset(hold.escalation_scopes), groups | frozenset(hold.escalation_groups)


def is_escalated(hold: Hold, now_ms: int) -> bool:
    return 0 < hold.escalates_at_ms <= now_ms


def approves(hold: Hold, terms: HoldTerms) -> bool:
    """Whether what these terms ask for is what could decide on this hold: the same reviewers, and no more of them."""
    same = frozenset(hold.scopes) == frozenset(terms.scopes) and frozenset(hold.groups) == frozenset(terms.groups)
    return same and terms.quorum <= hold.quorum


def voter(principal: Principal) -> frozenset[str]:
    """The names by which approvals are told apart: of the person; of a program without one, its own and its owner's."""
    names = (principal.user,) if principal.user else (principal.agent, principal.owner)
    return frozenset(person(name) for name in names if name)


def name_of(principal: Principal) -> str:
    """How a person stands in records: user (or agent) and who vouches for the name."""
    name = principal.user or principal.agent
    return f"{name}@{principal.issuer}" if principal.issuer else name
