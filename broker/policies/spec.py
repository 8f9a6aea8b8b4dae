"""What the manifests of all policy kinds share: strict mappings, names, durations, sizes, which tools are meant."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from broker.data import dataclass
from broker.model.quantity import duration_s, size_bytes

Slot = Literal["show", "authorise", "hold", "meter", "inspect"]

NAME_PATTERN = r"^[a-zA-Z0-9_-]{1,64}$"
RESERVED_PREFIX = "broker_"  # of the broker's own tools

_NAME = re.compile(NAME_PATTERN)
_PATTERN = re.compile(r"[a-zA-Z0-9_\-*?\[\]!]{1,64}|(prompt|resource):[^\s\x00-\x1f\x7f]{1,512}")


_PATH = re.compile(r"[^.\[\]\s]{1,64}(?:\.[^.\[\]\s]{1,64}){0,15}")


def argument_path(text: str) -> str:
    """The path of an argument by names. Raises ValueError."""
    if not _PATH.fullmatch(text):
        raise ValueError("expected the path of an argument, such as card.number; lists are passed through")
    return text


class Spec(BaseModel):
    """A mapping in a manifest: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


@dataclass(frozen=True, slots=True)
class PolicyKind:
    """A row of POLICIES. compile: from a valid Spec to what the catalog binds to tools; raises ValueError with one
    clear sentence per line. example: the least text that is a valid Spec, as data; shown in the docs.
    """

    name: str
    slot: Slot
    Spec: type[BaseModel]
    compile: Callable[[Any], object]
    example: Mapping[str, Any]


def is_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None


def _name(text: str) -> str:
    if not is_name(text):
        raise ValueError(
            "a name has 1 to 64 of the characters a-z, A-Z, 0-9, _ and -; accents and other alphabets look alike"
        )
    return text


def _selector(text: str) -> str:
    if not _PATTERN.fullmatch(text):
        raise ValueError("expected a name, or a shell pattern such as orders_*, prompt:* or resource:file:///docs/*")
    return text


def _duration(written: object) -> float:
    seconds = duration_s(written)
    if not 0.001 <= seconds <= 366 * 86_400:
        raise ValueError("a duration is between 1ms and 366d")
    return seconds


def _size(written: object) -> int:
    size = size_bytes(written)
    if size < 1:
        raise ValueError("a size is at least 1 byte")
    return size


Name = Annotated[str, AfterValidator(_name), WithJsonSchema({"type": "string", "pattern": NAME_PATTERN})]
Selector = Annotated[str, AfterValidator(_selector)]
"""An exact name or a shell pattern (`*`, `?`, `[ab]`)."""
Seconds = Annotated[
    float,
    BeforeValidator(_duration),
    WithJsonSchema({"type": ["string", "number"], "pattern": r"^[0-9]+(\.[0-9]+)?(ms|s|m|h|d)$"}),
]
Bytes = Annotated[
    int,
    BeforeValidator(_size),
    WithJsonSchema({"type": ["string", "integer"], "pattern": r"^[0-9]+(\.[0-9]+)?(B|KiB|MiB|GiB)$", "minimum": 1}),
]


class Selection(Spec):
    """Which tools a document is about: at most one of the three ways; none of them means all tools."""

    tools: list[Selector] | None = Field(default=None, min_length=1, description="Names or patterns of tools.")
    backend: list[Selector] | None = Field(default=None, min_length=1, description="All tools of these backends.")
    owner: list[str] | None = Field(default=None, min_length=1, description="All tools of these owners.")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if sum(way is not None for way in (self.tools, self.backend, self.owner)) > 1:
            raise ValueError("give one of `tools`, `backend` and `owner`; for more write a second document")
        return self
