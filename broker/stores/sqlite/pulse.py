"""Telling waiters that records changed: in this process at the commit, in others within POLL_S.

Changes of holds by this process wake everybody at once. Everything else, other processes' commits included, is noticed
by asking SQLite's `data_version`, and only while somebody waits. So a busy broker does not wake its waiters for every
batch.

A waiter must not miss what happens between its look at the records and its wait. So a look is remembered for the task
that took it (`looked`), and `wait` returns at once when something changed since.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any
from weakref import WeakKeyDictionary

import anyio

POLL_S = 0.075


class Pulse:
    """version: SQLite's data_version, of a connection that does nothing else."""

    def __init__(self, version: Callable[[], Awaitable[int]], first: int) -> None:
        self._version = version
        self._last_version = first
        self._polled_at = 0.0
        self._generation = 0
        self._event = anyio.Event()
        self._looked: WeakKeyDictionary[asyncio.Task[Any], int] = WeakKeyDictionary()

    def beat(self) -> None:
        """Something changed. In the event loop only."""
        self._generation += 1
        self._event.set()
        self._event = anyio.Event()

    def looked(self) -> None:
        """This task is about to read the records."""
        task = asyncio.current_task()
        if task is not None:
            self._looked[task] = self._generation

    async def wait(self, timeout_s: float) -> bool:
        """Whether something may have changed since this task last looked; False after timeout_s."""
        task = asyncio.current_task()
        seen = self._generation if task is None else self._looked.get(task, self._generation)
        until = monotonic() + timeout_s
        while self._generation == seen:
            left_s = until - monotonic()
            if left_s <= 0:
                return False
            with anyio.move_on_after(min(POLL_S, left_s)):
                await self._event.wait()
            if self._generation == seen:
                await self._poll()
        self.looked()
        return True

    async def _poll(self) -> None:
        if monotonic() - self._polled_at < POLL_S:
            return  # another waiter has just asked
        self._polled_at = monotonic()
        version = await self._version()
        if version != self._last_version:
            self._last_version = version
            self.beat()
