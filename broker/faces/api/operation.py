"""What an operation of the API is, what its handler is asked, and what it may reply beside a plain 200."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from broker.data import dataclass, field
from broker.faces.office import Office
from broker.model.principal import Principal

Schemas = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Asked:
    who: Principal
    office: Office
    path: Mapping[str, str]
    query: Mapping[str, Any]  # as their schemas say, judged
    body: Mapping[str, Any]  # judged as well
    headers: Mapping[str, str]  # those the operation names, judged as well
    trace_parent: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer that is not simply 200. A handler returns this or the JSON value itself."""

    value: Any
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class Operation:
    """parameters: of the query, name -> JSON Schema. body: members of the JSON body, name -> JSON Schema."""

    method: str
    path: str
    name: str
    summary: str
    handler: Callable[[Asked], Awaitable[Any]]
    answer: str  # of `openapi.SCHEMAS`
    parameters: Schemas = field(default_factory=dict[str, Mapping[str, Any]])
    headers: Schemas = field(default_factory=dict[str, Mapping[str, Any]])
    body: Schemas = field(default_factory=dict[str, Mapping[str, Any]])
    required: tuple[str, ...] = ()
    codes: tuple[str, ...] = ()  # of errors, besides those every operation has
    accepts: bool = False  # may answer 202 with a Location: the same document, not ended yet
    leads_to: Mapping[str, str] = field(
        default_factory=dict[str, str]
    )  # operation -> where its `id` stands in the answer
