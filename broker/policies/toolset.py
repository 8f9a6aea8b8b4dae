"""Toolsets: which tools an audience sees. What is in no toolset of a caller does not exist for it."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from broker.data import dataclass
from broker.model.principal import Principal
from broker.policies.scope import Scope
from broker.policies.spec import Name, PolicyKind, Selector, Spec


class AudienceSpec(Spec):
    """Any match counts. Names are compared exactly as the credential gives them."""

    agents: list[str] = Field(default=[], description="Agents by name.")
    users: list[str] = Field(default=[], description="Users by name.")
    tenants: list[str] = Field(default=[], description="Everybody of these tenants.")
    groups: list[str] = Field(default=[], description="Everybody in one of these groups.")
    scopes: list[Scope] = Field(default=[], description="Everybody who holds one of these scopes.")

    @model_validator(mode="after")
    def _names_somebody(self) -> Self:
        named = (*self.agents, *self.users, *self.tenants, *self.groups, *self.scopes)
        if not named or "" in named:
            raise ValueError("`for` names nobody; leave it out when the toolset is for everybody")
        return self


class ToolsetSpec(Spec):
    kind: Literal["toolset"] = "toolset"
    name: Name = Field(description="Name of the toolset.")
    description: str = Field(default="", description="For people; not shown to agents.")
    audience: AudienceSpec | None = Field(default=None, alias="for", description="Who sees it; absent: everybody.")
    tools: list[Selector] = Field(min_length=1, description="Names or patterns of tools.")


@dataclass(frozen=True, slots=True)
class Audience:
    """everybody: the other fields are then empty."""

    toolset: str
    everybody: bool
    agents: frozenset[str]
    users: frozenset[str]
    tenants: frozenset[str]
    groups: frozenset[str]
    scopes: frozenset[str]

    def admits(self, caller: Principal) -> bool:
        return (
            self.everybody
            or caller.agent in self.agents
            or caller.user in self.users
            or caller.tenant in self.tenants
            or not self.scopes.isdisjoint(caller.scopes)
            or not self.groups.isdisjoint(caller.groups)
        )


def audience(spec: ToolsetSpec) -> Audience:
    for_ = spec.audience
    return Audience(
        toolset=spec.name,
        everybody=for_ is None,
        agents=frozenset(for_.agents if for_ else ()),
        users=frozenset(for_.users if for_ else ()),
        tenants=frozenset(for_.tenants if for_ else ()),
        groups=frozenset(for_.groups if for_ else ()),
        scopes=frozenset(for_.scopes if for_ else ()),
    )


KIND = PolicyKind(
    "toolset",
    "show",
    ToolsetSpec,
    audience,
    {"name": "support", "for": {"agents": ["support-bot"]}, "tools": ["orders_*"]},
)
