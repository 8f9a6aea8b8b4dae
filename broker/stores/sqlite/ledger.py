"""The ledger: entries that are only ever appended, each with the hash of the one before it in its chain.

One chain for each writing process, so that several brokers on one database do not wait for each other's last hash. The
hash of an entry is SHA-256 over these bytes, lines separated by one newline (0x0A) and none at the end:

    broker.entry.1
    <chain>          text, UTF-8
    <seq>            decimal; the first entry of a chain is 1
    <at_ms>          decimal, milliseconds since the epoch, UTC
    <kind>           text
    <call_id>        text; empty when the entry belongs to no call
    <prev>           the hash before it, 64 lower-case hex digits; empty in the first entry
    <body>           the JSON text exactly as stored (keys sorted, no spaces, UTF-8)

Nothing but the body can hold a newline (refused on the way in), and the body comes last, so two different entries never
have the same bytes. The table keeps `prev` and `hash` as 32 bytes (`prev` of the first: none).

The first entry of a chain is `chain`: host, pid, version, and under `seen` the heads of chains that had ended (at most
SEEN of them, newest first). So a chain that is cut or removed is missed by a later one; the newest head is vouched for
by nothing here, and that is what anchors outside of the database are for.

Bodies of entries about calls: `set` are the columns of the invocation that this entry changed, `hold` those of its
hold, `kept` the digest of the arguments kept in clear, true when that is the `arguments_digest`. Everything in those
tables is thereby in the chain. What is left out is empty, or the entry's own: `call_id`, and the time as `at_ms`.

Most intents say the same of who calls (CALLER) and of what is called by which rule (CALLED), so an intent says it by
`as`: the seqs of the two intents of its own chain, before it, whose `set` has these columns; 0 where its own has them.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import sqlite3
from collections.abc import Callable, Mapping
from typing import Any

from broker import __version__
from broker.errors import RecordUnavailable
from broker.model.canonical import canonical
from broker.model.invocation import Called, Caller
from broker.model.ledger import Head, Heads
from broker.stores.sqlite.rows import Rows

SEEN = 16
SAID = 4096  # callers and tools that are remembered, so that not each intent has to say them
CALLER = Caller._fields
CALLED = (*Called._fields, "writer", "state", "effect")
RESERVED = frozenset(
    {"chain", "chain_end", "chain_died", "intent", "held", "denied", "attached", "outcome", "review", "claim", "expiry",
     "recovery", "withdrawal", "collected", "replayed", "payloads_deleted", "payload_read", "erasure", "outage",
     "grant", "escalation", "expiring"}
)  # fmt: skip

_APPEND = "insert into entry (chain, seq, at_ms, kind, call_id, body, prev, hash) values (?, ?, ?, ?, ?, ?, ?, ?)"


class Ledger:
    """The chain of this process, inside the writer's transactions. It begins with its first entry: a process that only
    reads leaves no trace.

    on_begin: called in the transaction that begins the chain, before its first entry.
    """

    def __init__(self, rows: Rows, chain: str, on_begin: Callable[[int], None]) -> None:
        self.chain = chain
        self._rows = rows
        self._on_begin = on_begin
        self._seq = 0
        self._prev = b""
        self._said: dict[Caller | Called, int] = {}  # -> the seq that says it, ascending

    @property
    def has_begun(self) -> bool:
        return self._seq > 0

    def mark(self) -> tuple[int, bytes]:
        """Where the chain stands, to go back to when the transaction is rolled back."""
        return self._seq, self._prev

    def back_to(self, mark: tuple[int, bytes]) -> None:
        self._seq, self._prev = mark
        while self._said and next(reversed(self._said.values())) > self._seq:
            self._said.popitem()

    def reload(self) -> None:
        """Stand where the file says: after a failed commit nobody can be sure from memory."""
        row = self._rows.db.execute(
            "select seq, hash from entry where chain = ? order by seq desc limit 1", (self.chain,)
        ).fetchone()
        self._seq, self._prev = (row[0], row[1]) if row else (0, b"")
        self._said.clear()

    def append(self, kind: str, call_id: str, at_ms: int, body: Mapping[str, Any]) -> None:
        """Add an entry. Raises ValueError for a kind or call id with a newline, TypeError for what is not JSON."""
        if "\n" in kind or "\n" in call_id:
            raise ValueError("a ledger entry's kind and call id are single lines")
        if self._seq == 0:
            self._begin(at_ms)
        self._append(kind, call_id, at_ms, canonical(body))

    def append_intent(self, call_id: str, at_ms: int, body: dict[str, Any], caller: Caller, called: Called) -> None:
        """Add the entry of an admitted call, which is this chain's and dispatching. body: its `set` without the columns
        of CALLER and CALLED; it is completed.

        Raises as `append`.
        """
        if self._seq == 0:
            self._begin(at_ms)
        said = body["set"]
        named = [
            self._said.get(caller) or self._say(said, caller, CALLER, caller),
            self._said.get(called) or self._say(said, called, CALLED, (*called, self.chain, "dispatching", "none")),
        ]
        if any(named):
            body["as"] = named
        self.append("intent", call_id, at_ms, body)

    def _say(self, said: dict[str, Any], one: Caller | Called, names: tuple[str, ...], values: tuple[str, ...]) -> int:
        """Have the next entry say them itself, for others to name: 0."""
        said.update(zip(names, values, strict=True))
        if len(self._said) == SAID:
            del self._said[next(iter(self._said))]
        self._said[one] = self._seq + 1
        return 0

    def _append(self, kind: str, call_id: str, at_ms: int, body: bytes) -> None:
        seq, prev = self._seq + 1, self._prev
        head = f"broker.entry.1\n{self.chain}\n{seq}\n{at_ms}\n{kind}\n{call_id}\n{prev.hex()}\n"
        hashed = hashlib.sha256(head.encode() + body).digest()
        self._rows.put(_APPEND, (self.chain, seq, at_ms, kind, call_id, body.decode(), prev, hashed))
        self._seq, self._prev = seq, hashed

    def _begin(self, at_ms: int) -> None:
        self._on_begin(at_ms)
        facts = {"host": socket.gethostname(), "pid": os.getpid(), "version": __version__, "seen": heads(self._rows.db)}
        self._append("chain", "", at_ms, canonical(facts))


def whole(db: sqlite3.Connection, chain: str, body: dict[str, Any]) -> dict[str, Any]:
    """The body of an entry of this chain with all that it says, also by `as`.

    Raises RecordUnavailable where what it names is not there: somebody changed the ledger.
    """
    says: dict[str, Any] = {}
    for seq, names in zip(body.pop("as", ()), (CALLER, CALLED), strict=False):
        if seq:
            row = db.execute("select body from entry where chain = ? and seq = ?", (chain, seq)).fetchone()
            said: dict[str, Any] = json.loads(row[0]).get("set", {}) if row else {}
            if not said.keys() >= set(names):
                raise RecordUnavailable(
                    f"The ledger was changed: entry {seq} of chain {chain} does not say what a later one says it does.",
                    next_step="Run broker verify.",
                )
            says |= {name: said[name] for name in names}
    return {**body, "set": {**says, **body["set"]}} if says else body


def heads(db: sqlite3.Connection, only: str = "") -> list[dict[str, Any]]:
    """The last entries of the chains that have ended (or of one chain): [{chain, seq, hash}], newest chain first."""
    rows = db.execute(
        "select chain from writer where chain = ?1 or (?1 = '' and ended_at_ms > 0) order by chain desc limit ?2",
        (only, SEEN),
    ).fetchall()
    found: list[dict[str, Any]] = []
    for (chain,) in rows:
        head = db.execute("select seq, hash from entry where chain = ? order by seq desc limit 1", (chain,)).fetchone()
        if head is not None:
            found.append({"chain": chain, "seq": head[0], "hash": head[1].hex()})
    return found


_ALL_HEADS = """select w.chain, e.seq, e.hash, w.ended_at_ms from writer w
    join entry first on first.chain = w.chain and first.seq = 1
    join entry e on e.chain = w.chain and e.seq = (select max(seq) from entry where chain = w.chain)
    order by first.id"""


def all_heads(db: sqlite3.Connection) -> Heads:
    """Where all chains stand. Chains that have not ended are named, and of the ended ones those that did so last."""
    rows = db.execute(_ALL_HEADS).fetchall()
    ended = sorted((row for row in rows if row[3]), key=lambda row: row[3])
    folded = {row[0] for row in ended[:-SEEN]}
    rest = hashlib.sha256()
    for chain, seq, digest, _ in rows:
        if chain in folded:
            rest.update(f"{chain} {seq} {digest.hex()}\n".encode())
    named = tuple(Head(row[0], row[1], row[2].hex()) for row in rows if row[0] not in folded)
    return Heads(len(rows), rest.hexdigest(), named)
