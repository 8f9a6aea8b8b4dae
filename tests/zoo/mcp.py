"""What the beasts that speak MCP have in common: just enough of both eras, and lists without measure. Standard library
only, as `child.py` is started often.
"""

from __future__ import annotations

import json
from typing import Any

PAUSE_S = 0.05
MANY = 100_000

Message = dict[str, Any]


def message(**members: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", **members}).encode()


def text(words: str) -> Message:
    return {"content": [{"type": "text", "text": words}], "resultType": "complete"}


def entry(name: str) -> Message:
    return {"name": name, "inputSchema": {"type": "object"}}


def listed(way: str, cursor: str) -> Message:
    """One page of its tools, of which `work` is the first."""
    page: Message = {"tools": [entry(f"t{cursor}" if cursor else "work")], "resultType": "complete"}
    if way == "many":
        page["tools"] += [entry(f"t{number}") for number in range(MANY)]
    elif way == "circle":
        page["nextCursor"] = "b" if cursor == "a" else "a"
    elif way == "pages":
        page["nextCursor"] = str(int(cursor or "0") + 1)
    return page


def result_of(asked: Message, way: str, *, modern: bool) -> Message | None:
    """The result of a server that is well but for its lists; None for a method it does not know."""
    method: str = asked["method"]
    params: Message = asked.get("params") or {}
    if method == "server/discover" and modern:
        return {
            "supportedVersions": ["2026-07-28"],
            "capabilities": {"tools": {}},
            "resultType": "complete",
            "ttlMs": 0,
            "cacheScope": "private",
        }
    if method == "initialize" and not modern:
        return {
            "protocolVersion": "2025-06-18",
            "capabilities": {"tools": {"listChanged": True}},
            "serverInfo": {"name": "beast", "version": "1"},
        }
    if method == "tools/list":
        return listed(way, params.get("cursor", ""))
    return text("fine") if method == "tools/call" else None


def answer_of(asked: Message, way: str, *, modern: bool) -> bytes:
    result = result_of(asked, way, modern=modern)
    if result is None:
        return message(id=asked["id"], error={"code": -32601, "message": "Method not found"})
    return message(id=asked["id"], result=result)
