"""What was found good a moment ago: a bounded memory of credentials, forgotten when the directory says so.

Keyed by SHA-256, so that no credential stays in memory longer than its request. A hit costs a hash and a dict lookup.
Two bounds keep it honest: an entry lives KEEP_MS at most, and at most every GENERATION_S seconds the directory's
generation is read; when it has grown, everything is forgotten and judged again. So a revocation counts after
GENERATION_S plus the time of one read, and the hot path pays one read in GENERATION_S, not one per call.
"""

from __future__ import annotations

from time import monotonic

import anyio
from anyio import to_thread

from broker.model.principal import Principal
from broker.ports import Clock, Directory

KEEP_MS = 60_000
GENERATION_S = 2.0
ENTRIES = 4096


class Memory:
    def __init__(self, directory: Directory, clock: Clock) -> None:
        self._directory = directory
        self._clock = clock
        self._entries: dict[bytes, tuple[Principal, int, int]] = {}  # and from when until when it is good
        self._generation = -1
        self._checked_at = float("-inf")
        self._lock = anyio.Lock()

    async def recall(self, key: bytes) -> Principal | None:
        """The principal of a credential judged good in the last KEEP_MS and not expired. Raises RecordUnavailable."""
        await self._keep_up()
        return self.at_once(key)

    def at_once(self, mark: bytes) -> Principal | None:
        """The same as far as it can be said without reading anything; None also when something has to be read."""
        found = self._entries.get(mark)
        if found is None or monotonic() - self._checked_at >= GENERATION_S:
            return None
        now_ms = self._clock.now_ms()
        principal, from_ms, until_ms = found
        if not from_ms <= now_ms < until_ms:
            self._entries.pop(mark, None)
            return None
        return principal

    @property
    def generation(self) -> int:
        """Read it before judging and hand it to `keep`: what was judged by an older state is not kept."""
        return self._generation

    def keep(self, key: bytes, principal: Principal, generation: int) -> None:
        if generation != self._generation:
            return
        while len(self._entries) >= ENTRIES:
            self._entries.pop(next(iter(self._entries)))
        now_ms = self._clock.now_ms()
        until_ms = (
            now_ms + KEEP_MS if principal.expires_at_ms is None else min(now_ms + KEEP_MS, principal.expires_at_ms)
        )
        self._entries[key] = (principal, now_ms, until_ms)

    def doubt(self) -> None:
        """Read the generation at the next question, whenever it was read last."""
        self._checked_at = float("-inf")

    async def _keep_up(self) -> None:
        if monotonic() - self._checked_at < GENERATION_S:
            return
        async with self._lock:
            asked_at = monotonic()
            if asked_at - self._checked_at < GENERATION_S:
                return
            generation = await to_thread.run_sync(self._directory.generation)
            if generation != self._generation:
                self._entries.clear()
                self._generation = generation
            self._checked_at = asked_at
