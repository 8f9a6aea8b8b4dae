"""The one byte form of a JSON value, and its digest. Holds, pins and records compare by it.

RFC 8785 with one deviation, on purpose: a number keeps its kind, so 1 and 1.0 are two values. The RFC folds them into
one; but they are two requests to a backend, and an approval is for the exact request. Integers up to 64 bits are exact
(the gate refuses larger ones). Keys are sorted by code point.
"""

from __future__ import annotations

import hashlib
from typing import Any

import orjson


def canonical(value: Any) -> bytes:
    """The canonical UTF-8 bytes of a JSON value. Raises TypeError for what is not JSON (NaN, big integers, objects)."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def digest_of(data: bytes) -> str:
    """`sha256:` and 64 hex digits over these bytes."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def digest(value: Any) -> str:
    """`digest_of` the canonical bytes of a JSON value."""
    return digest_of(canonical(value))
