"""What the writer's thread rings when it has something to say: the event loop hears it in the turn that wakes it.

`call_soon_threadsafe` takes the loop one turn to wake and another to run what it was told. And this thread rings
without Python's lock, so that the loop has it when it wakes.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress


class Bell:
    """heard: called in this loop after each ring."""

    def __init__(self, loop: asyncio.AbstractEventLoop, heard: Callable[[], None]) -> None:
        self._loop = loop
        self._heard = heard
        self._ear, self._rope = os.pipe()
        os.set_blocking(self._rope, False)
        loop.add_reader(self._ear, self._hear)

    def ring(self) -> bool:
        """In any thread. False when there is no loop any more."""
        if self._loop.is_closed():
            return False
        with suppress(BlockingIOError):  # it has rung 65,536 times, and will be heard
            os.write(self._rope, b"!")
        return True

    def _hear(self) -> None:
        os.read(self._ear, 1)
        self._heard()

    def close(self) -> None:
        """When nobody can ring any more."""
        self._loop.remove_reader(self._ear)
        os.close(self._ear)
        os.close(self._rope)
