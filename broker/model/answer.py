"""What a backend gave back, in the shape of an MCP `CallToolResult`, with what we do not know kept as it was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from broker.data import dataclass, field
from broker.model.empty import NOTHING


@dataclass(slots=True)  # made for each call, see model.empty
class Answer:
    """content: MCP content blocks in order. structured: `structuredContent` (any JSON since 2026-07-28), or None.

    more: further top-level result fields of a downstream server, passed on unchanged. spent: what the backend says the
    call cost, by unit ("calls", "tokens", "usd_micro"), for settling quotas.
    """

    content: tuple[Mapping[str, Any], ...] = ()
    structured: Any = None
    is_error: bool = False
    meta: Mapping[str, Any] | None = None
    more: Mapping[str, Any] = NOTHING
    status: str = ""  # the backend's own word for how it went, such as "HTTP 201"; for the record
    spent: Mapping[str, int] = NOTHING
    _encoded: bytes = field(default=b"", init=False, repr=False, compare=False)
    _bare: bytes = field(default=b"", init=False, repr=False, compare=False)

    def result(self) -> dict[str, Any]:
        """The MCP result object. `structuredContent` and `_meta` are absent when there is nothing in them."""
        result: dict[str, Any] = {**self.more, "content": list(self.content), "isError": self.is_error}
        if self.structured is not None:
            result["structuredContent"] = self.structured
        if self.meta:
            result["_meta"] = self.meta
        return result

    @property
    def is_final(self) -> bool:
        """False when its server asks for input before it goes on, or will tell the result later (`resultType`)."""
        return self.more.get("resultType", "complete") == "complete"

    def encoded(self) -> bytes:
        """`result` as JSON, made once: its size is judged, its digest recorded and the agent answered by these bytes.

        Raises TypeError for what JSON cannot carry.
        """
        if not self._encoded:
            self._encoded = orjson.dumps(self.result())  # frozen to everybody else
        return self._encoded

    def bare(self) -> bytes | None:
        """`result` as JSON without its `_meta`, where that is at hand; None where it would have to be made."""
        if self.meta:
            return self._bare or None
        return self.encoded() if "_meta" not in self.more else None

    def with_meta(self, key: str, value: Any) -> Answer:
        """The same with one more key in `_meta`; what was encoded is not encoded again for it."""
        made = Answer(
            self.content, self.structured, self.is_error, {**(self.meta or {}), key: value}, self.more, self.status,
            self.spent,
        )  # fmt: skip
        if self._encoded and not self.meta and "_meta" not in self.more:
            made._bare = self._encoded
        return made

    @classmethod
    def of_json(cls, value: Any, text: bytes, *, status: str = "") -> Answer:
        """The answer that is this JSON value. text: the value as orjson writes it, so that it is not written again."""
        shown, told = text.decode(), text
        if value.__class__ is not dict:
            value, told = {"result": value}, b'{"result":%s}' % text
        made = cls(({"type": "text", "text": shown},), value)
        made.status = status
        made._encoded = b'{"content":[{"type":"text","text":%s}],"isError":false,"structuredContent":%s}' % (
            orjson.dumps(shown), told,
        )  # fmt: skip
        return made

    @classmethod
    def from_result(cls, result: Mapping[str, Any], *, status: str = "") -> Answer:
        """Read an MCP result object (of a downstream server, or one we stored) without losing a field."""
        known = ("content", "structuredContent", "isError", "_meta")
        return cls(
            content=tuple(result.get("content") or ()),
            structured=result.get("structuredContent"),
            is_error=bool(result.get("isError")),
            meta=result.get("_meta"),
            more={key: value for key, value in result.items() if key not in known},
            status=status,
        )
