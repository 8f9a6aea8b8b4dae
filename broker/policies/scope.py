"""Scopes: what a token must carry before anything else about a call is asked. Literal match, nothing implied."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated

from pydantic import AfterValidator, Field, WithJsonSchema

from broker.policies.spec import PolicyKind, Spec

_TOKEN = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]{1,128}")  # RFC 6749 section 3.3, scope-token


def check(text: str) -> str:
    """The scope itself. Raises ValueError for what is none."""
    if not _TOKEN.fullmatch(text):
        raise ValueError("a scope has 1 to 128 visible ASCII characters, no space, quote or backslash (RFC 6749)")
    return text


Scope = Annotated[
    str, AfterValidator(check), WithJsonSchema({"type": "string", "pattern": r"^[\x21\x23-\x5b\x5d-\x7e]{1,128}$"})
]


class ScopeSpec(Spec):
    scopes: list[Scope] = Field(default=[], description="Scopes a caller must hold, all of them.")


def required(spec: ScopeSpec) -> frozenset[str]:
    return frozenset(spec.scopes)


def missing(asked: frozenset[str], held: Iterable[str]) -> tuple[str, ...]:
    """What of `asked` is not held, sorted; () when the call may go on."""
    return tuple(sorted(asked.difference(held)))


KIND = PolicyKind("scope", "authorise", ScopeSpec, required, {"scopes": ["orders.read"]})
