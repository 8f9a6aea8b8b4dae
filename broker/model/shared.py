"""What many say alike, kept once: ten thousand tools have few different scopes, digests and parts of schemas.

Only for what is never changed after it was made.
"""

from __future__ import annotations

from collections.abc import Hashable
from functools import lru_cache
from typing import Any, TypeVar, cast

H = TypeVar("H", bound=Hashable)


@lru_cache(maxsize=4096, typed=True)
def _first(value: Hashable) -> Hashable:
    return value


def one(value: H) -> H:
    """The first of equal values of a type, as long as it is among the latest."""
    return cast("H", _first(value))


class Pool:
    """JSON values, in which each part that was seen before is the object that was seen. Nothing of what is given stays,
    texts neither, so that the memory it came in can be given back whole."""

    def __init__(self) -> None:
        self._seen: dict[Any, Any] = {}

    def shared(self, value: Any) -> Any:
        """An equal value with the same order of keys. Recursive: for values of bounded depth."""
        if isinstance(value, dict):
            of = {name: self.shared(inner) for name, inner in cast("dict[str, Any]", value).items()}
            return self._seen.setdefault(("{", *((name, id(inner)) for name, inner in of.items())), of)
        if isinstance(value, list):
            items = [self.shared(inner) for inner in cast("list[Any]", value)]
            return self._seen.setdefault(("[", *map(id, items)), items)
        if isinstance(value, str):
            found = self._seen.get(value)
            if found is None:
                found = self._seen[value] = value.encode().decode()
            return found
        if type(value) is int:  # of equal floats one may be -0.0
            return self._seen.setdefault(value, value)
        return value
