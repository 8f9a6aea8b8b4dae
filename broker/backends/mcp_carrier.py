"""What a link needs of a way to a server, and what that tells the link: a child process or HTTP (`mcp_carriage`)."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Protocol

from broker.backends import sdk
from broker.backends.mcp_modern import ModernCalls
from broker.backends.pace import Pace


class Carrier(Protocol):
    """How one connection is made: a child process or HTTP. Made anew for each connection."""

    @property
    def marks_left(self) -> bool:
        """False when the sockets themselves mark an exchange whose bytes left; else handing over counts as leaving."""
        ...

    def streams(self) -> AbstractAsyncContextManager[sdk.Streams]: ...

    def calls(self, pace: Pace) -> ModernCalls | None:
        """How plain calls are made without a session when the peer is modern; None where they are not. pace: the
        link's, which outlives its connections."""
        ...

    @property
    def words(self) -> str:
        """What the peer said beside the protocol, for operators; "" when it said nothing."""
        ...

    async def last_words(self) -> str:
        """Why it ended by itself, in its words; "" when it said nothing."""
        ...


class Reports(Protocol):
    """What a carrier tells its link."""

    def lost(self) -> None:
        """The connection is of no use any more."""
        ...

    def unreadable(self, request_id: int, why: str) -> None:
        """The answer to this request came and cannot be read."""
        ...
