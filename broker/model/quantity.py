"""Durations and sizes as people write them in manifests: `10s`, `500ms`, `1d`; `64KiB`, `1MiB`.

One number and one unit, nothing compound: `1h30` reads as two different things to two people, so it is refused.
"""

from __future__ import annotations

import math
import re

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_BYTES = {"B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}
MOST_BYTES = 2**62
_WRITTEN = re.compile(r"([0-9]+(?:\.[0-9]+)?)([A-Za-z]+)")


def duration_s(written: object) -> float:
    """Seconds, finite and >= 0, of `10s`, `5m`, `2h`, `1d`, `500ms` or a number of seconds. Raises ValueError."""
    if isinstance(written, (int, float)) and not isinstance(written, bool):
        value = float(written)
    else:
        value = _amount(written, _SECONDS, "a duration such as 500ms, 10s, 5m, 2h or 1d, or a number of seconds")
    if not math.isfinite(value) or value < 0:
        raise ValueError("a duration is a finite number that is not negative")
    return value


def size_bytes(written: object) -> int:
    """Bytes, >= 0, of `64KiB`, `1MiB`, `512B` or a whole number of bytes. Raises ValueError."""
    if isinstance(written, int) and not isinstance(written, bool):
        value: float = written
    else:
        value = _amount(written, _BYTES, "a size such as 512B, 64KiB or 1MiB, or a whole number of bytes")
    if not 0 <= value < MOST_BYTES or value != int(value):
        raise ValueError("a size is a whole number of bytes, not negative and below 4 EiB")
    return int(value)


def _amount(written: object, units: dict[str, float] | dict[str, int], expected: str) -> float:
    match = _WRITTEN.fullmatch(written) if isinstance(written, str) else None
    if match is None or match[2] not in units:
        raise ValueError(f"expected {expected}")
    return float(match[1]) * units[match[2]]
