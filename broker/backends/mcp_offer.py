"""What a downstream server offers, read within bounds: its four lists, all pages, entries unchanged.

A server that offers too much, repeats itself or lists what cannot be a tool is not an error of ours: what is usable is
offered, the rest is left out, and the notes say so (health: degraded).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, cast

import anyio
import orjson

from broker.backends import sdk
from broker.backends.decoding import short, storable
from broker.backends.exchange import Exchange
from broker.backends.mcp_connection import Connection
from broker.backends.mcp_shape import entry_fault
from broker.data import dataclass, field
from broker.errors import Rejected
from broker.model.shared import Pool
from broker.ports import Offer

PAGES = 50
LIST_BYTES = 8_388_608
ENTRY_BYTES = 262_144


@dataclass(frozen=True, slots=True)
class Kind:
    """One of a server's lists. capability: under which it is declared. key: what tells entries apart, of at most
    `signs` signs. word, words: for people."""

    method: str
    capability: str
    field: str
    key: str
    signs: int
    word: str
    words: str

    def missing(self, entry: Mapping[str, Any]) -> str:
        """What this entry lacks to be one of them, or ""."""
        name: Any = entry.get(self.key)
        named = isinstance(name, str) and 0 < len(name) <= self.signs
        if self is TOOLS:
            return "" if named and isinstance(entry.get("inputSchema"), Mapping) else "name or no input schema"
        return "" if named else self.key


TOOLS = Kind("tools/list", "tools", "tools", "name", 128, "tool", "tools")
RESOURCES = Kind("resources/list", "resources", "resources", "uri", 2048, "resource", "resources")
TEMPLATES = Kind(
    "resources/templates/list", "resources", "resourceTemplates", "uriTemplate", 2048, "template", "templates"
)
PROMPTS = Kind("prompts/list", "prompts", "prompts", "name", 256, "prompt", "prompts")


@dataclass(slots=True)
class Listing:
    """entries: usable ones in the server's order. notes: what was left out and why, for operators."""

    kind: Kind
    entries: list[Mapping[str, Any]] = field(default_factory=list[Mapping[str, Any]])
    notes: list[str] = field(default_factory=list[str])
    size_bytes: int = 0

    def drop(self, name: str, why: str) -> None:
        self.entries = [entry for entry in self.entries if entry[self.kind.key] != name]
        self.leave_out(name, why)

    def leave_out(self, name: str, why: str) -> None:
        self.note(f"{self.kind.word} {short(name, limit=64)!r} is left out: {why}")

    def note(self, text: str) -> None:
        """At most ten: a server with a thousand faults has one."""
        if len(self.notes) < 10 and text not in self.notes:
            self.notes.append(text)


async def list_all(kind: Kind, ask: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]], most: int) -> Listing:
    """All pages of one list by `ask(params)`, at most `most` entries, 8 MiB, 50 pages. Raises what `ask` raises."""
    listing = Listing(kind)
    names: set[str] = set()
    pool = Pool()
    cursors: set[str] = set()
    params: dict[str, Any] = {}
    for _ in range(PAGES):
        page = await ask(dict(params))
        entries: Any = page.pop(kind.field, None)  # the connection keeps its last message
        for entry in cast("list[Any]", entries) if isinstance(entries, list) else []:
            if len(listing.entries) >= most:
                listing.note(f"it offers more than {most} {kind.words} (`max_tools`); the rest is left out")
                return listing
            if not _take(listing, entry, names, pool):
                return listing
        cursor = page.get("nextCursor")
        if not isinstance(cursor, str) or not cursor:
            return listing
        if cursor in cursors:
            listing.note(f"its list of {kind.words} goes in a circle; what came twice is left out")
            return listing
        cursors.add(cursor)
        params = {"cursor": cursor}
    listing.note(f"its list of {kind.words} has more than {PAGES} pages; the rest is left out")
    return listing


def _take(listing: Listing, entry: Any, names: set[str], pool: Pool) -> bool:
    """Take an entry, or note why not. False when the list is too large to go on."""
    kind = listing.kind
    given: Mapping[str, Any] = cast("Mapping[str, Any]", entry) if isinstance(entry, Mapping) else dict[str, Any]()
    if missing := kind.missing(given):
        listing.note(f"an entry of its list has no {missing} and is left out")
        return True
    name = str(given[kind.key])
    if name in names:
        listing.note(f"{kind.word} {short(name, limit=64)!r} is listed twice; the first is taken")
    elif fault := storable(given):
        listing.leave_out(name, fault)
    elif member := entry_fault(kind.method, {"name": name, **given}):
        listing.leave_out(name, f"its {member!r} is not as MCP has it")
    else:
        size = len(orjson.dumps(given))
        if size > ENTRY_BYTES:
            listing.leave_out(name, f"its entry is larger than {ENTRY_BYTES} bytes")
            return True
        listing.size_bytes += size
        if listing.size_bytes > LIST_BYTES:
            listing.note(f"its list of {kind.words} is larger than {LIST_BYTES} bytes; the rest is left out")
            return False
        names.add(name)
        listing.entries.append(pool.shared(given))
    return True


async def read_offer(connection: Connection, backend: str, within_s: float, most: int) -> tuple[Offer, str]:
    """All that it offers, and what was left out and why ("": nothing). Raises BrokerError."""
    deadline = anyio.current_time() + within_s
    session = connection.session

    async def ask(method: str, params: dict[str, Any]) -> dict[str, Any]:
        exchange = Exchange(deadline)
        with anyio.move_on_at(deadline):
            await connection.send(method, params, exchange, None)
        if exchange.error is not None:
            raise exchange.error
        if exchange.result is None:
            raise exchange.overdue(backend, within_s)
        return exchange.result

    async def listed(kind: Kind) -> Listing:
        if not session.offers(kind.capability):
            return Listing(kind)
        try:
            return await list_all(kind, lambda params: ask(kind.method, params), most)
        except Rejected as error:
            if kind is TOOLS:
                raise
            refused = Listing(kind)  # templates, above all, are often declared and not served
            if error.facts.get("rpc_code") != sdk.types.METHOD_NOT_FOUND:
                refused.note(f"its {kind.words} could not be listed: {error.message}")
            return refused

    tools = await listed(TOOLS)
    schemas = {str(tool["name"]): cast("Mapping[str, Any]", tool["inputSchema"]) for tool in tools.entries}
    for name, why in session.mirror_headers(schemas).items():
        tools.drop(name, why)
    lists = [tools, await listed(RESOURCES), await listed(TEMPLATES), await listed(PROMPTS)]
    notes = "; ".join(note for one in lists for note in one.notes)
    _, resources, templates, prompts = (tuple(one.entries) for one in lists)
    offer = Offer(
        tuple(tools.entries),
        short(session.server, limit=100),
        session.version,
        resources=resources,
        templates=templates,
        prompts=prompts,
    )
    return offer, notes
