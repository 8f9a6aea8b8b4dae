"""Who is told of holds.

The ways to tell: `notifiers.NOTIFIERS`.
"""

from __future__ import annotations

from typing import Protocol

from broker.model.notice import Notice


class NotDelivered(Exception):
    """A notice did not arrive. for_good: the receiver says that it would not take it at another time either."""

    def __init__(self, why: str, *, for_good: bool) -> None:
        super().__init__(why)
        self.for_good = for_good


class Notifier(Protocol):
    """One receiver of notices. A row of `notifiers.NOTIFIERS` is made with its settings (NotifyTo)."""

    async def send(self, notice: Notice) -> None:
        """Once, in bounded time. Raises NotDelivered, with no secret in it; whether it arrived may be unknown then."""
        ...

    async def aclose(self) -> None: ...
