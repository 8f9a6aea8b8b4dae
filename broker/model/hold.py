"""A held call: the terms a rule set, and what became of it. Its state is the invocation's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class HoldTerms:
    """What the holding rule asks. A reviewer needs one of the scopes or one of the groups; where it names
    none, the reviewer scope of the settings. A hold nobody decides is rejected when it expires.
    """

    reason: str  # the rule's own words, shown to the reviewer and the agent
    expires_in_ms: int
    scopes: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Review:
    """One person's decision. `persons` of the reviewer and of the requester must not meet (checked by the desk)."""

    call_id: str
    decision: Literal["approve", "reject", "withdraw"]
    reviewer: str  # as recorded: "user@issuer", or "broker" for a withdrawal by the broker itself
    reason: str
    at_ms: int
    via: str = ""  # console, api, cli


@dataclass(frozen=True, slots=True)
class Hold:
    """The hold part of an invocation that was held."""

    reason: str
    expires_at_ms: int
    scopes: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    persons: tuple[str, ...] = ()  # who may not review: every name of the requester
    reviewer: str = ""
    review_reason: str = ""
    reviewed_at_ms: int = 0
    collected_at_ms: int = 0  # when the caller was told how it ended; 0 = not yet
