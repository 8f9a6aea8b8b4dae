"""Finding calls by an argument that nobody can read: `PATH=VALUE`, as people and programs write it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import orjson

from broker.model.invocation import MAC_BYTES


def macs_of(mac: Callable[[str, Any], bytes], given: Sequence[str]) -> tuple[bytes, ...]:
    """By which calls with these arguments are found; a value is taken as JSON, and as the text it is.

    mac: `Store.mac`. Raises ValueError that names what is not PATH=VALUE; RecordUnavailable.
    """
    found: list[bytes] = []
    for one in given:
        path, equals, text = one.partition("=")
        if not equals or not path:
            raise ValueError(f"{one!r} is not PATH=VALUE")
        values: list[Any] = [text]
        with suppress(ValueError):
            values.append(orjson.loads(text))
        found += [mac(path, value)[:MAC_BYTES] for value in values]
    return tuple(found)
