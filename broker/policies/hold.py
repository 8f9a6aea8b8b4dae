"""Holds: what a rule with `effect: hold` asks of a reviewer. How a hold lives and ends is the pipeline's (desk)."""

from __future__ import annotations

from pydantic import Field

from broker.model.hold import HoldTerms
from broker.policies.scope import Scope
from broker.policies.spec import PolicyKind, Seconds, Spec

DEFAULT_EXPIRES_S = 86_400.0
DEFAULT_REASON = "a rule asks for a person's approval"


class Reviewers(Spec):
    """Who may decide: whoever holds one of the scopes or is in one of the groups."""

    scopes: list[Scope] = Field(default=[], description="One of these scopes lets a person review.")
    groups: list[str] = Field(default=[], description="Or being in one of these groups.")


class HoldSpec(Spec):
    reason: str = Field(default="", max_length=500, description="Why, in words for the agent and the reviewer.")
    expires: Seconds | None = Field(default=None, description="When a hold nobody decided ends; settings say else.")
    reviewers: Reviewers | None = Field(default=None, description="Who may decide; absent: the default reviewers.")


def terms(spec: HoldSpec, default_expires_s: float = DEFAULT_EXPIRES_S) -> HoldTerms:
    reviewers = spec.reviewers or Reviewers()
    return HoldTerms(
        reason=spec.reason.strip().rstrip(".") or DEFAULT_REASON,
        expires_in_ms=round((spec.expires or default_expires_s) * 1000),
        scopes=tuple(reviewers.scopes),
        groups=tuple(reviewers.groups),
    )


KIND = PolicyKind(
    "hold",
    "hold",
    HoldSpec,
    terms,
    {"reason": "large refunds need a person", "reviewers": {"scopes": ["refunds.review"]}},
)
