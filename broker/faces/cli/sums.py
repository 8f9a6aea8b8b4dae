"""What happens too often for an entry each, recorded in sum: one entry a minute and kind, however many there were.

Bounded: of each kind only the first MOST different ones of a minute are told apart, the rest is counted together. What
cannot be recorded now is kept for the next minute.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import anyio
import structlog

from broker.errors import RecordUnavailable

EVERY_S = 60.0
MOST = 100
OTHERS = "others"

# kind of entry -> what its sums are told apart by
KEYS: Mapping[str, tuple[str, ...]] = {
    "requests_refused": ("reason",),
    "authentication_refused": ("reason", "issuer"),
    "lists_filtered": ("agent", "shown", "of"),
}

log = structlog.get_logger("broker.serve")


class Sums:
    """note: `Store.note`."""

    def __init__(self, note: Callable[[str, Mapping[str, Any]], Awaitable[None]]) -> None:
        self._note = note
        self._counted: dict[str, Counter[tuple[Any, ...]]] = {kind: Counter() for kind in KEYS}

    def add(self, kind: str, *key: Any) -> None:
        """One more of this kind. key: the values of KEYS[kind]."""
        counted = self._counted[kind]
        if key not in counted and len(counted) >= MOST:
            key = (OTHERS,) * len(key)
        counted[key] += 1

    async def run(self) -> None:
        """Record what came together, every minute, for ever."""
        while True:
            await anyio.sleep(EVERY_S)
            await self.flush()

    async def flush(self) -> None:
        for kind, counted in self._counted.items():
            if not counted:
                continue
            self._counted[kind] = Counter()
            by = [{**dict(zip(KEYS[kind], key, strict=True)), "count": count} for key, count in counted.items()]
            try:
                await self._note(kind, {"count": sum(counted.values()), "by": by})
            except RecordUnavailable as error:
                self._counted[kind].update(counted)
                log.error("sums are not recorded yet", kind=kind, reason=error.message)
