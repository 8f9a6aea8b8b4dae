"""Following the ledger from outside of it: whoever hands on what happened, to people or to other systems.

At least once, in order, and never with a gap: the place is moved when something has been handed on, not before. Who is
interrupted in between hands the same on again, under the same names. What must not live here: what is handed on, where.
"""

from __future__ import annotations

from collections.abc import Sequence

import anyio

from broker.ports import Clock, Event, Store

KEEP_EVERY = 1_000  # entries of no interest after which the place is kept all the same
LOOK_S = 2.0


class Follower:
    """from_first: where a new name begins: at the first entry, instead of at the end. lease_s: how long the place stays
    ours without a word, for when this process is killed."""

    def __init__(
        self, store: Store, clock: Clock, name: str, *, lease_s: float = 60.0, from_first: bool = False
    ) -> None:
        self._store = store
        self._clock = clock
        self._name = name
        self._lease_s = lease_s
        self._from_first = from_first
        self._place = self._kept = 0
        self._renew_at = 0.0  # 0: the place is not ours

    async def next(self, kinds: Sequence[str], limit: int) -> tuple[Event, ...]:
        """The next entries of these kinds (none: of all); perhaps none yet. None either while another has the place."""
        if not await self.hold_on():
            return ()
        found = await self._store.entries_after(self._place, kinds, limit)
        if not found.events:
            self._place = found.upto
            if self._place - self._kept >= KEEP_EVERY:
                await self.handed_on(self._place)
        return found.events

    async def hold_on(self) -> bool:
        """Make the lease longer where it is due. False when the place is another's (now)."""
        if self._renew_at and anyio.current_time() < self._renew_at:
            return True
        kept = await self._store.take_place(
            self._name,
            now_ms=self._clock.now_ms(),
            lease_ms=round(self._lease_s * 1000),
            from_first=self._from_first,
        )
        if kept is None:
            self._renew_at = 0.0
            return False
        self._kept, self._place = kept, max(kept, self._place if self._renew_at else 0)
        self._renew_at = anyio.current_time() + self._lease_s / 2
        return True

    async def handed_on(self, upto: int) -> bool:
        """Everything up to this entry has arrived. False when the place has become another's; then begin anew."""
        if not await self._store.move_place(self._name, upto):
            self._renew_at = 0.0
            return False
        self._place = self._kept = upto
        return True

    async def pause(self) -> None:
        await self._store.changed(LOOK_S)
