"""A tool as the pipeline sees it: compiled, frozen, free of any trace of the manifest's syntax."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from broker.data import dataclass
from broker.model.task import Long

ToolEffect = Literal["read", "write", "destroy"]
RecordMode = Literal["none", "digest", "hmac", "redacted", "full"]

# What `inject` may take from the verified identity; the model never sees these arguments.
INJECTABLE = ("caller.agent", "caller.user", "caller.tenant", "call.id")


@dataclass(frozen=True, slots=True)
class Tool:
    """`listed` is the tool's entry in tools/list, ready to serialise; `definition` the digest over all that was
    promised about it (name, texts, schemas, effect, scopes, backend, action, inject): a hold is bound to it.
    `action` is whatever the tool's backend compiled for itself.
    """

    name: str
    version: str
    owner: str
    title: str
    description: str
    effect: ToolEffect
    scopes: frozenset[str]
    backend: str
    input_schema: Mapping[str, Any]
    output_schema: Mapping[str, Any] | None
    listed: Mapping[str, Any]
    definition: str
    action: object
    inject: tuple[tuple[str, str], ...] = ()  # (argument, one of INJECTABLE)
    idempotent: bool = False
    on_collect: bool = False  # a held call runs when its caller collects it, under the credential shown then
    long: Long | None = None  # None: its calls are waited for, however long they take
    timeout_s: float = 30.0
    result_bytes: int = 1_048_576
    record: RecordMode = "redacted"
    source: str = ""  # file:line of the manifest document
