"""A server that says nothing but text that wants to be more: `python -I -S tests/hostile.py FILE`.

An MCP server of the handshake era, each of whose words is one of the strings in FILE, a JSON list: its own name, two
tools for each two (some whose names they are, one they describe), and the answers: that which the argument `say` says,
in the way that `way` says. It imports nothing of ours, as it starts without site-packages.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def said(text: str, **more: Any) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": text}], "structuredContent": {text[:80]: text}, **more}


def tools(strings: list[str]) -> list[dict[str, Any]]:
    """Fewer than the broker takes from one server (1,000)."""
    listed: list[dict[str, Any]] = [{"name": text, "inputSchema": {"type": "object"}} for text in strings]
    for number in range(0, len(strings) - 1, 2):
        title, description = strings[number : number + 2]
        way = {"type": "string", "description": title, "enum": ["result", "refuse", "error", description]}
        schema = {"type": "object", "properties": {"way": way, title[:80]: {"type": "string"}}}
        listed.append({"name": f"t{number}", "title": title[:200], "description": description, "inputSchema": schema})
    return listed


def answer(strings: list[str], method: str, params: dict[str, Any]) -> dict[str, Any] | None:
    """The result or error of a request; None for what it does not know."""
    if method == "initialize":
        server = {"name": strings[0], "title": strings[1], "version": strings[2]}
        capabilities: dict[str, Any] = {"tools": {}}
        return {"result": {"protocolVersion": "2025-06-18", "capabilities": capabilities, "serverInfo": server}}
    if method == "tools/list":
        return {"result": {"tools": tools(strings)}}
    if method != "tools/call":
        return None
    text: str = strings[int(params["arguments"]["say"])]
    way: str = params["arguments"]["way"]
    if way == "error":
        return {"error": {"code": -32000, "message": text, "data": {text[:80]: text}}}
    return {"result": said(text, isError=way == "refuse")}


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:  # noqa: PTH123 – no pathlib: it would double the start-up time
        strings = json.load(file)
    for line in sys.stdin:
        asked = json.loads(line)
        if asked.get("id") is not None:
            given = answer(strings, asked["method"], asked.get("params") or {})
            unknown = {"error": {"code": -32601, "message": "Method not found"}}
            sys.stdout.write(json.dumps({"jsonrpc": "2.0", "id": asked["id"], **(given or unknown)}) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
