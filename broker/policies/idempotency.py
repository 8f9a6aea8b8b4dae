"""Idempotency keys that a tool derives from its arguments, so that agents need not think of any.

`idempotency: {from: [order_id], within: 24h}`: two calls of one caller with the same order are one call. The rest of
the arguments must be the same, too: other ones are a conflict, not another call. What a key stands for, and whether it
is known, is the store's to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from broker.data import dataclass
from broker.model.canonical import digest
from broker.policies.expression import References
from broker.policies.spec import Seconds, Spec

MOST_ARGUMENTS = 16


class IdempotencySpec(Spec):
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    names: list[Annotated[str, Field(min_length=1, max_length=128)]] = Field(
        alias="from",
        min_length=1,
        max_length=MOST_ARGUMENTS,
        description="Required arguments that name the act; calls in which they are equal are one call.",
    )
    within: Seconds = Field(default=86_400.0, description="How long, from the first call, such as 24h.")


@dataclass(frozen=True, slots=True)
class Derivation:
    names: tuple[str, ...]
    within_ms: int

    @classmethod
    def compile(cls, spec: IdempotencySpec | None) -> Derivation | None:
        return None if spec is None else cls(tuple(sorted(set(spec.names))), round(spec.within * 1000))

    @property
    def references(self) -> References:
        return References(frozenset(), frozenset(self.names), frozenset(), whole=False)

    def key(self, tool: str, arguments: Mapping[str, Any]) -> str:
        """The key of this call, of a form that no client's key has in the store. arguments: valid ones."""
        return f"derived:{digest([tool, [arguments.get(name) for name in self.names]])}"
