"""What a downstream server offers, read within bounds: `tools/list`, all pages, entries unchanged.

A server that offers too much, repeats itself or lists what cannot be a tool is not an error of ours: what is usable is
offered, the rest is left out, and the notes say so (health: degraded).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import orjson

from broker.backends.decoding import short, storable

PAGES = 50
LIST_BYTES = 8_388_608
TOOL_BYTES = 262_144
NAME_SIGNS = 128


@dataclass(slots=True)
class Listing:
    """tools: usable entries in the server's order. notes: what was left out and why, for operators."""

    tools: list[Mapping[str, Any]] = field(default_factory=list[Mapping[str, Any]])
    notes: list[str] = field(default_factory=list[str])
    size_bytes: int = 0

    def drop(self, name: str, why: str) -> None:
        self.tools = [tool for tool in self.tools if tool["name"] != name]
        self.note(f"tool {short(name, limit=64)!r} is left out: {why}")

    def note(self, text: str) -> None:
        """At most ten: a server with a thousand faults has one."""
        if len(self.notes) < 10 and text not in self.notes:
            self.notes.append(text)


async def list_tools(ask: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]], most: int) -> Listing:
    """All pages of tools/list by `ask(params)`, at most `most` tools, 8 MiB, 50 pages. Raises what `ask` raises."""
    listing = Listing()
    names: set[str] = set()
    cursors: set[str] = set()
    params: dict[str, Any] = {}
    for _ in range(PAGES):
        page = await ask(dict(params))
        entries: Any = page.get("tools")
        for entry in cast("list[Any]", entries) if isinstance(entries, list) else []:
            if len(listing.tools) >= most:
                listing.note(f"it offers more than {most} tools (`max_tools`); the rest is left out")
                return listing
            if not _take(listing, entry, names):
                return listing
        cursor = page.get("nextCursor")
        if not isinstance(cursor, str) or not cursor:
            return listing
        if cursor in cursors:
            listing.note("its list of tools goes in a circle; what came twice is left out")
            return listing
        cursors.add(cursor)
        params = {"cursor": cursor}
    listing.note(f"its list of tools has more than {PAGES} pages; the rest is left out")
    return listing


def _take(listing: Listing, entry: Any, names: set[str]) -> bool:
    """Take an entry, or note why not. False when the list is too large to go on."""
    tool: Mapping[str, Any] = cast("Mapping[str, Any]", entry) if isinstance(entry, Mapping) else dict[str, Any]()
    name: Any = tool.get("name")
    if not isinstance(name, str) or not 0 < len(name) <= NAME_SIGNS or not isinstance(tool.get("inputSchema"), Mapping):
        listing.note("an entry of its list has no name or no input schema and is left out")
    elif name in names:
        listing.note(f"tool {short(name, limit=64)!r} is listed twice; the first is taken")
    elif fault := storable(tool):
        listing.note(f"tool {short(name, limit=64)!r} is left out: {fault}")
    else:
        size = len(orjson.dumps(tool))
        if size > TOOL_BYTES:
            listing.note(f"tool {short(name, limit=64)!r} is left out: its entry is larger than {TOOL_BYTES} bytes")
            return True
        listing.size_bytes += size
        if listing.size_bytes > LIST_BYTES:
            listing.note(f"its list of tools is larger than {LIST_BYTES} bytes; the rest is left out")
            return False
        names.add(name)
        listing.tools.append(tool)
    return True
