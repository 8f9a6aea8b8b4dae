"""Request bodies, whole, within what one may have and within what all together may have.

Bytes count from their arrival until the request is answered, because until then they, or what was made of them, are
held. The time a body may take is the connection's (`broker.faces.connection`).
"""

from __future__ import annotations

from collections.abc import Mapping

from broker.errors import Malformed, Overloaded
from broker.faces.mcp.headers import content_length
from broker.faces.mcp.request import Receive


class Budget:
    """All bytes in flight in this process. left: how many more there may be."""

    __slots__ = ("left",)

    def __init__(self, total: int) -> None:
        self.left = total

    def take(self, size: int) -> None:
        """Raises Overloaded when they do not fit; nothing is taken then."""
        if size > self.left:
            raise Overloaded(
                "Refused: too many bytes are in flight (limit: bytes_in_flight).",
                next_step="Nothing was done. Try again in a second.",
                limit="bytes_in_flight",
            )
        self.left -= size

    def give(self, size: int) -> None:
        self.left += size


class Body:
    """One body being read. `taken` must be given back by whoever made it, whatever happens."""

    __slots__ = ("_budget", "_most", "taken")

    def __init__(self, budget: Budget, most: int) -> None:
        self._budget = budget
        self._most = most
        self.taken = 0

    async def read(self, headers: Mapping[bytes, bytes], receive: Receive) -> bytes | None:
        """The whole body; None when the client left before its end.

        Raises Malformed (fact `limit`) when it is or says it is longer than allowed; Overloaded.
        """
        if content_length(headers) > self._most:
            raise self._too_large()
        message = await receive()
        pieces: list[bytes] = []
        while message["type"] == "http.request":
            piece: bytes = message.get("body", b"")
            if self.taken + len(piece) > self._most:
                raise self._too_large()
            self._budget.take(len(piece))
            self.taken += len(piece)
            if not message.get("more_body", False):
                return b"".join(pieces) + piece if pieces else piece
            pieces.append(piece)
            message = await receive()
        return None

    def release(self) -> None:
        self._budget.give(self.taken)
        self.taken = 0

    def _too_large(self) -> Malformed:
        return Malformed(
            f"Refused: the body is longer than {self._most} bytes (limit: body_bytes).",
            next_step="Nothing was done.",
            limit="body_bytes",
        )
