"""The values that pass between the endpoints (HTTP) and the grants (OAuth)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from broker.data import dataclass, field
from broker.model.directory import Client
from broker.ports import Clock, Directory
from broker.settings import Settings

Parameters = Sequence[tuple[str, str]]
"""Decoded form or query parameters, each name once but `resource`."""


@dataclass(frozen=True, slots=True)
class House:
    """What the authorization server needs. scopes: every scope a tool asks for now. base_url: the issuer."""

    settings: Settings
    directory: Directory
    clock: Clock
    scopes: Callable[[], Iterable[str]]
    base_url: Callable[[], str]


@dataclass(frozen=True, slots=True)
class Reply:
    """status, JSON body, headers; and what is to be recorded: (kind, facts)."""

    status: int
    body: Mapping[str, Any]
    headers: Mapping[str, str]
    events: Sequence[tuple[str, Mapping[str, Any]]] = ()

    @property
    def location(self) -> str:
        return self.headers.get("Location", "")


@dataclass(frozen=True, slots=True)
class Asked:
    """A valid authorisation request, as a person is asked about it."""

    client: Client
    redirect_uri: str
    scopes: frozenset[str]  # empty: nothing named
    resources: tuple[str, ...]  # empty: nothing named
    grant: Any = field(repr=False)  # the library's own, for `Server.answer`


def scope_names(scope: str | None) -> frozenset[str]:
    return frozenset(name for name in (scope or "").split(" ") if name)
