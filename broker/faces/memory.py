"""The memory of a serving process: what a burst of large requests needed goes back to the system after it.

The C library keeps freed memory for what may come, scattered between what is still in use, so a process that once held
300 MB of request bodies would look and count as if it held them for ever. It is asked to give back what is free,
seldom, because asking takes milliseconds: only after the process has grown well beyond what it was found to need.

What must not live here: anything that frees memory by forgetting what is in use.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import cast

import anyio

LOOK_EVERY_S = 5.0
GROWN_BYTES = 32 * 1024 * 1024

_STATM = Path("/proc/self/statm")


async def give_back() -> None:
    """Look from time to time, for ever; where the C library cannot be asked (only glibc can), return at once."""
    trim = _trim()
    if trim is None:
        return
    needed = 0  # what a start leaves behind goes with the first look
    while True:
        await anyio.sleep(LOOK_EVERY_S)
        if resident_bytes() > needed + GROWN_BYTES:
            trim(0)
            needed = resident_bytes()


def resident_bytes() -> int:
    """Of this process, now."""
    return int(_STATM.read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _trim() -> Callable[[int], int] | None:
    """glibc's malloc_trim(3); None where there is none, or no way to see whether it is needed."""
    if not _STATM.exists():
        return None
    try:
        return cast("Callable[[int], int]", ctypes.CDLL(None).malloc_trim)
    except (AttributeError, OSError):
        return None
