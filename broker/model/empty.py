"""What makes objects cheap to make, for those of which each call of a tool makes one.

`NOTHING` is the default of fields that hold a JSON object nobody changes; a new one for each field of each object would
cost a call a twentieth of its work. And the classes that refer to this page are not frozen, though nobody changes their
objects: setting the fields of a frozen one takes twice as long, which was a tenth of a call's work. What is made
for each call is made by position: with one argument by its name, an object of six fields takes three times as long.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn


class _Nothing(dict[str, Any]):
    """A dict, so that it is written as JSON like any other; with a hash, so that a dataclass takes it as a default."""

    __slots__ = ()

    def __hash__(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]  # see above
        return 0

    def __setitem__(self, key: str, value: Any) -> NoReturn:
        raise TypeError("this is everybody's empty object")


NOTHING: Mapping[str, Any] = _Nothing()
