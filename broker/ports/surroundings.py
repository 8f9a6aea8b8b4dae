"""What everybody may ask of the surroundings: the time, and secrets by reference."""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    def now_ms(self) -> int:
        """Milliseconds since the Unix epoch, UTC. May jump; whoever needs a duration uses a monotonic clock."""
        ...


class Secrets(Protocol):
    def resolve(self, reference: str) -> str:
        """The secret behind `${env:NAME}` or `${file:PATH}` (relative to the settings file). Read at use, never kept.

        Raises LookupError naming the reference, never the value.
        """
        ...
