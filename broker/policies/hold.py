"""Holds: what a rule with `effect: hold` asks of a reviewer. How a hold lives and ends is the pipeline's (desk)."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import time
from typing import Annotated, Literal, Self
from zoneinfo import ZoneInfo, available_timezones

from pydantic import AfterValidator, Field, model_validator

from broker.model.hold import HoldTerms, OnExpiry, Reasoned
from broker.policies.hours import DAYS, Day, Hours
from broker.policies.scope import Scope
from broker.policies.spec import PolicyKind, Seconds, Spec

DEFAULT_EXPIRES_S = 86_400.0
DEFAULT_REASON = "a rule asks for a person's approval"
_CLOCK = re.compile(r"([01][0-9]|2[0-3]):[0-5][0-9]")


def _clock(text: str) -> str:
    if not _CLOCK.fullmatch(text):
        raise ValueError("a time of day is written HH:MM, in quotes")
    return text


def _zone(name: str) -> str:
    if name not in available_timezones():
        raise ValueError(f"{name!r} is no time zone; write one such as Europe/Berlin")
    return name


class Reviewers(Spec):
    """Who may decide: whoever holds one of the scopes or is in one of the groups."""

    scopes: list[Scope] = Field(default=[], description="One of these scopes lets a person review.")
    groups: list[str] = Field(default=[], description="Or being in one of these groups.")


class EscalationSpec(Spec):
    """Who may decide besides, when nobody has for a while."""

    after: Seconds = Field(description="When further reviewers may decide; shorter than the time to expire.")
    reviewers: Reviewers = Field(description="Who may then decide as well.")

    @model_validator(mode="after")
    def _names_somebody(self) -> Self:
        if not self.reviewers.scopes and not self.reviewers.groups:
            raise ValueError("an escalation names the scopes or groups that may then decide")
        return self


class HoursSpec(Spec):
    """When reviewers work: the time to expire and to escalate counts in these hours only."""

    days: list[Day] = Field(default=list(DAYS[:5]), min_length=1, description="Days of the week; absent: mon to fri.")
    begin: Annotated[str, AfterValidator(_clock)] = Field(description='Local time, "HH:MM".')
    end: Annotated[str, AfterValidator(_clock)] = Field(description='Local time, "HH:MM", later than `begin`.')
    timezone: Annotated[str, AfterValidator(_zone)] = Field(default="UTC", description="Such as Europe/Berlin.")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.begin >= self.end:
            raise ValueError("`begin` is before `end`; for a night shift write the hours of the day that are left")
        return self

    @property
    def compiled(self) -> Hours:
        return Hours(
            frozenset(self.days), time.fromisoformat(self.begin), time.fromisoformat(self.end), ZoneInfo(self.timezone)
        )


class HoldSpec(Spec):
    reason: str = Field(default="", max_length=500, description="Why, in words for the agent and the reviewer.")
    expires: Seconds | None = Field(default=None, description="When a hold nobody decided ends; settings say else.")
    reviewers: Reviewers | None = Field(default=None, description="Who may decide; absent: the default reviewers.")
    quorum: int = Field(default=1, ge=1, le=10, description="So many distinct persons must approve; one denies.")
    reasons: list[Reasoned] = Field(default=["deny"], description="Which decisions need a reason: approve, deny.")
    escalate: EscalationSpec | None = Field(default=None, description="Who may decide besides after a while.")
    hours: HoursSpec | None = Field(default=None, description="Working hours in which the hold's time counts.")
    open_per_agent: int = Field(
        default=0, ge=0, le=10_000, description="Most holds of this rule an agent has open; 0: the settings' cap alone."
    )
    on_expiry: OnExpiry = Field(
        default="reject", description="What expiry means: reject, or allow for tools that only read."
    )
    confirm: Literal["caller"] | None = Field(
        default=None,
        description="`caller`: the person the agent acts for may decide as well, signed in to the console.",
    )

    @model_validator(mode="after")
    def _escalates_in_time(self) -> Self:
        if self.escalate and self.expires and self.escalate.after >= self.expires:
            raise ValueError("`escalate.after` is shorter than `expires`")
        return self

    @model_validator(mode="after")
    def _asks_nobody_else(self) -> Self:
        if self.confirm and (self.reviewers or self.quorum > 1):
            raise ValueError("`confirm` is for rules that ask nobody in particular: take `reviewers` and `quorum` out")
        return self


def terms(spec: HoldSpec, default_expires_s: float = DEFAULT_EXPIRES_S) -> HoldTerms:
    reviewers = spec.reviewers or Reviewers()
    further = spec.escalate.reviewers if spec.escalate else Reviewers()
    return HoldTerms(
        reason=spec.reason.strip().rstrip(".") or DEFAULT_REASON,
        expires_in_ms=round((spec.expires or default_expires_s) * 1000),
        scopes=tuple(reviewers.scopes),
        groups=tuple(reviewers.groups),
        quorum=spec.quorum,
        reasons=tuple(sorted(set(spec.reasons))),
        escalates_in_ms=round(spec.escalate.after * 1000) if spec.escalate else 0,
        escalation_scopes=tuple(further.scopes),
        escalation_groups=tuple(further.groups),
        open_per_agent=spec.open_per_agent,
        on_expiry=spec.on_expiry,
        confirm=spec.confirm == "caller",
    )


def begun(terms: HoldTerms, hours: Hours | None, now_ms: int) -> HoldTerms:
    """The terms of a hold that begins now: lengths of working time become those of the calendar."""
    if hours is None:
        return terms
    escalates = hours.after(now_ms, terms.escalates_in_ms) - now_ms if terms.escalates_in_ms else 0
    return replace(
        terms, expires_in_ms=max(1, hours.after(now_ms, terms.expires_in_ms) - now_ms), escalates_in_ms=escalates
    )


KIND = PolicyKind(
    "hold",
    "hold",
    HoldSpec,
    terms,
    {"reason": "large refunds need a person", "reviewers": {"scopes": ["refunds.review"]}, "quorum": 2},
)
