"""A held call: the terms a rule set, what exactly is held, and what became of it. Its state is the invocation's."""

from __future__ import annotations

from typing import Any, Literal

from broker.data import dataclass
from broker.model.canonical import digest
from broker.model.quota import Charge

Decision = Literal["approve", "reject", "withdraw"]
Reasoned = Literal["approve", "deny"]
OnExpiry = Literal["reject", "allow"]


@dataclass(frozen=True, slots=True)
class HoldTerms:
    """What the holding rule asks, for one call: lengths are of the calendar, working hours already counted in.

    A reviewer needs one of the scopes or one of the groups; where it names none, the reviewer scope of the settings.
    After `escalates_in_ms` (0: never) those of the escalation may decide as well.
    """

    reason: str  # the rule's own words, shown to the reviewer and the agent
    expires_in_ms: int
    scopes: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    quorum: int = 1  # so many distinct persons approve; one is enough to deny
    reasons: tuple[Reasoned, ...] = ("deny",)  # which decisions need a reason
    escalates_in_ms: int = 0
    escalation_scopes: tuple[str, ...] = ()
    escalation_groups: tuple[str, ...] = ()
    open_per_agent: int = 0  # of this rule's holds; 0: the settings' cap alone
    on_expiry: OnExpiry = "reject"  # allow: for tools that read, only
    on_collect: bool = False  # runs when its caller collects it, under the credential shown then
    confirm: bool = False  # the caller's own user may decide, too, out of band


@dataclass(frozen=True, slots=True)
class Confirming:
    """The caller of a held call comes back, having been told where its user can confirm it. declined: the user will
    not. once, until_ms: as in `model.back.Round`."""

    hold_id: str
    declined: bool = False
    once: str = ""
    until_ms: int = 0


@dataclass(frozen=True, slots=True)
class Bound:
    """What an approval is for. Each field changed makes another act: refused, and held anew.

    policy: digest over every rule, quota, toolset and limit that governs the tool. sketch: over what will be sent.
    """

    principal_key: str
    agent: str
    tool: str
    definition: str
    backend: str
    policy: str
    arguments: str
    sketch: str = ""

    @property
    def digest(self) -> str:
        return digest(
            [
                self.principal_key,
                self.agent,
                self.tool,
                self.definition,
                self.backend,
                self.policy,
                self.arguments,
                self.sketch,
            ]
        )


@dataclass(frozen=True, slots=True)
class Review:
    """One person's decision. `persons` of the reviewer and of the requester must not meet (checked by the desk).

    persons: every name of the reviewer; two approvals whose names meet are one person's. issuer: who vouches for them.
    """

    call_id: str
    decision: Decision
    reviewer: str  # as recorded: "user@issuer", or "broker" for a withdrawal by the broker itself
    reason: str
    at_ms: int
    via: str = ""  # console, api, cli
    persons: tuple[str, ...] = ()
    issuer: str = ""


@dataclass(frozen=True, slots=True)
class Approval:
    """One of the approvals of a quorum."""

    reviewer: str
    persons: tuple[str, ...]
    reason: str
    at_ms: int
    via: str = ""
    issuer: str = ""


@dataclass(frozen=True, slots=True)
class Edit:
    """Other arguments for a held call, and the approval of them. Everything about them is judged already.

    arguments, sketch: canonical JSON. bound: digest. kept: what a record keeps of the arguments, or None. changes: what
    the caller will be told, as JSON. charges: all that the changed call takes.
    """

    review: Review
    arguments: bytes
    arguments_digest: str
    bound: str
    policy: str
    sketch: bytes
    sketch_digest: str
    changes: bytes
    kept: bytes | None = None
    sealed: bytes = b""  # as in Intent
    macs: tuple[bytes, ...] = ()
    charges: tuple[Charge, ...] = ()


@dataclass(frozen=True, slots=True)
class Change:
    """One value a reviewer changed before approving. was, now: None where it is not there (see `kind`)."""

    path: str  # dotted, list items by number
    kind: Literal["changed", "added", "removed"]
    was: Any = None
    now: Any = None


@dataclass(frozen=True, slots=True)
class Preview:
    """A safe call made before the hold was shown. call_id: its own record. digest: of its result, "" when it failed."""

    tool: str
    call_id: str
    digest: str = ""
    failed: str = ""  # why there is no result


@dataclass(frozen=True, slots=True)
class Hold:
    """The hold part of an invocation that was held. Fields named as in HoldTerms mean the same."""

    reason: str
    expires_at_ms: int
    scopes: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    persons: tuple[str, ...] = ()  # who may not review: every name of the requester
    reviewer: str = ""
    review_reason: str = ""
    reviewed_at_ms: int = 0
    collected_at_ms: int = 0  # when the caller was told how it ended; 0 = not yet
    quorum: int = 1
    reasons: tuple[Reasoned, ...] = ("deny",)
    escalates_at_ms: int = 0
    escalation_scopes: tuple[str, ...] = ()
    escalation_groups: tuple[str, ...] = ()
    on_expiry: OnExpiry = "reject"
    on_collect: bool = False
    confirm: bool = False
    approvals: tuple[Approval, ...] = ()  # of what is bound now; an edit begins anew
    bound: str = ""  # digest of what an approval is for (Bound), "" of holds from before there was one
    policy: str = ""
    sketch_digest: str = ""
    preview: Preview | None = None
    edited_by: str = ""  # who changed the arguments before approving, "" when nobody did
