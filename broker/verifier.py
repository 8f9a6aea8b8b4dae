"""Checking a database's records from outside: is every entry what was written, and does every record say the same?

Uses the standard library only and shares no code with what writes, on purpose: a mistake of the writer must not be
repeated here. The bytes that are hashed are described at the head of stores/sqlite/ledger.py; this is a second reading
of that page. One pass in order of commit; memory grows with the calls that are open, not with the history.

What is checked, in one snapshot of the file, also while a broker writes to it:
- each chain: numbered 1, 2, 3 ... without a gap, each entry hashing to what it says, naming the hash before it;
- heads of ended chains as later chains saw them (`seen`), so a chain that was cut or removed is missed;
- each record of a call, its hold and its kept arguments: exactly what its entries say, none missing, none too many;
- anchors: entries somebody noted outside of the database, so a restored old copy is missed too.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

_OPENING = frozenset({"intent", "held", "denied"})
_FINAL = frozenset({"denied", "rejected", "expired", "withdrawn", "succeeded", "failed"})
_JSON = frozenset({"quotas", "laps_us", "scopes", "groups", "persons", "charges", "terms", "bound", "votes"})
_FRESH: dict[str, Any] = {"quotas": [], "backend_status": "", "result_digest": "", "result_bytes": 0}
_FRESH_HOLD: dict[str, Any] = {
    "reviewer": "",
    "review_reason": "",
    "review_via": "",
    "reviewed_at_ms": 0,
    "collected_at_ms": 0,
    "terms": {},
    "bound": {},
    "votes": [],
}

_ENTRIES = "select chain, seq, at_ms, kind, call_id, body, prev, hash from entry order by id"
_RECORDS = """select i.*, '|' as bar, h.*, '|' as bar, k.body as kept from invocation i
    left join hold h on h.call_id = i.call_id and i.held = 1
    left join payload k on k.call_id = i.call_id and k.part = 'kept' order by i.id"""


_STRAY_HOLD = """select call_id from hold
    where call_id not in (select call_id from invocation where held = 1) limit 1"""


@dataclass(frozen=True, slots=True)
class Head:
    """An entry by place and hash (hex): the last of its chain, or an anchor."""

    chain: str
    seq: int
    hash: str


@dataclass(frozen=True, slots=True)
class Fault:
    """The first place that is wrong. chain is "" when it is not in any chain."""

    chain: str
    seq: int
    what: str


@dataclass(frozen=True, slots=True)
class Verification:
    """limits: in plain sentences, what this result does not prove. erased: kept arguments that were deleted since."""

    ok: bool
    fault: Fault | None
    entries: int
    records: int
    erased: int
    anchored: int
    heads: tuple[Head, ...]
    limits: tuple[str, ...]

    @property
    def chains(self) -> int:
        return len(self.heads)


def verify(path: Path, anchor: Path | None = None) -> Verification:
    """Check everything. Stops at the first fault; a file that cannot be read is a fault, never an exception."""
    walk = _Walk()
    fault: Fault | None = None
    try:
        anchors = [] if anchor is None else list(_anchors(anchor))
        walk.anchors = {(head.chain, head.seq): head.hash for head in anchors}
        db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
        try:
            db.execute("begin")  # one snapshot for both cursors
            walk.over(db)
        finally:
            db.close()
    except _Found as found:
        fault = found.fault
    except (sqlite3.Error, OSError, ValueError) as error:
        fault = Fault("", 0, f"{path.name} cannot be read: {error}")
    return Verification(
        ok=fault is None,
        fault=fault,
        entries=walk.entries,
        records=walk.records,
        erased=walk.erased,
        anchored=walk.anchored,
        heads=tuple(Head(chain, seq, digest.hex()) for chain, (seq, digest) in sorted(walk.heads.items())),
        limits=_limits(anchor),
    )


def write_anchor(found: Verification, anchor: Path) -> int:
    """Note the heads of a verification as JSON lines {chain, seq, hash}; how many. The file is replaced whole.

    It proves something only where whoever can change the database cannot change it. Raises ValueError when there was a
    fault; OSError.
    """
    if found.fault is not None:
        raise ValueError("records that do not verify are not anchored")
    draft = anchor.with_name(anchor.name + ".new")
    with draft.open("w", encoding="utf-8") as file:
        for head in found.heads:
            file.write(json.dumps({"chain": head.chain, "seq": head.seq, "hash": head.hash}) + "\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(anchor)
    return len(found.heads)


def _limits(anchor: Path | None) -> tuple[str, ...]:
    limits = [
        "It proves that records were not changed since they were written, not that what was written is true.",
        "Entries after the last anchor can be cut from the end of the newest chain without a trace.",
    ]
    if anchor is None:
        limits.append(
            "Without an anchor kept elsewhere, a whole older copy of the file, or one rewritten from its first entry, "
            "looks just as sound."
        )
    return tuple(limits)


def _anchors(path: Path) -> Iterator[Head]:
    """Raises ValueError that names the line."""
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if line.strip():
            try:
                note = json.loads(line)
                yield Head(str(note["chain"]), int(note["seq"]), str(note["hash"]))
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path.name}:{number} is not an anchor: {error}") from error


class _Found(Exception):
    def __init__(self, chain: str, seq: int, what: str) -> None:
        super().__init__(what)
        self.fault = Fault(chain, seq, what)


class _Entry(NamedTuple):
    chain: str
    seq: int
    at_ms: int
    kind: str
    call_id: str
    body: str
    prev: bytes
    hash: bytes


@dataclass(slots=True)
class _Open:
    """A call whose record may still change: what the entries have said so far, and the record as it is."""

    chain: str
    seq: int
    says: dict[str, Any]
    hold: dict[str, Any] | None
    kept: str | None
    record: tuple[Any, ...]


@dataclass(slots=True)
class _Walk:
    anchors: dict[tuple[str, int], str] = field(default_factory=dict[tuple[str, int], str])
    heads: dict[str, tuple[int, bytes]] = field(default_factory=dict[str, tuple[int, bytes]])
    calls: dict[str, _Open] = field(default_factory=dict[str, _Open])
    columns: tuple[str, ...] = ()  # of the record, then of the hold
    hold_columns: tuple[str, ...] = ()
    plain_names: tuple[str, ...] = ()  # columns of the record that are compared as they are
    plain: Callable[[tuple[Any, ...]], tuple[Any, ...]] = tuple
    quotas: int = 0  # where the columns are that hold JSON
    laps: int = 0
    entries: int = 0
    records: int = 0
    erased: int = 0
    anchored: int = 0

    def over(self, db: sqlite3.Connection) -> None:
        records = db.execute(_RECORDS)
        names = [column[0] for column in records.description]
        bar = names.index("bar")
        self.columns, self.hold_columns = tuple(names[:bar]), tuple(names[bar + 1 : -2])
        self.plain_names = tuple(name for name in self.columns if name != "id" and name not in _JSON)
        self.plain = itemgetter(*(names.index(name) for name in self.plain_names))
        self.quotas, self.laps = names.index("quotas"), names.index("laps_us")
        for entry in map(_Entry._make, db.execute(_ENTRIES)):
            try:
                self.link(entry)
                if entry.call_id:
                    self.tell(entry, json.loads(entry.body), records)
                elif entry.kind in ("chain", "chain_died"):
                    self.recall(entry, json.loads(entry.body))
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                raise _Found(entry.chain, entry.seq, f"the entry is none a broker writes ({error!r})") from error
        for call in self.calls.values():
            self.compare(call)
        extra = records.fetchone()
        if extra is not None:
            raise _Found("", 0, f"call {extra[1]} has a record, but no entry says so: it was inserted")
        stray = db.execute(_STRAY_HOLD).fetchone()
        if stray is not None:
            raise _Found("", 0, f"call {stray[0]} has a hold that no entry speaks of: it was inserted")
        for chain, seq in self.anchors:
            raise _Found(chain, seq, "this anchored entry is gone: the chain was cut, or an older copy put back")

    def link(self, entry: _Entry) -> None:
        """One entry in its chain."""
        chain, seq = entry.chain, entry.seq
        last, before = self.heads.get(chain, (0, b""))
        if seq != last + 1:
            raise _Found(chain, last + 1, f"entry {last + 1} is missing, entry {seq} stands in its place")
        if entry.prev != before:
            raise _Found(chain, seq, "the entry does not name the hash of the one before it")
        head = f"broker.entry.1\n{chain}\n{seq}\n{entry.at_ms}\n{entry.kind}\n{entry.call_id}\n{before.hex()}\n"
        if hashlib.sha256((head + entry.body).encode()).digest() != entry.hash:
            raise _Found(chain, seq, "the entry was changed: it does not have the hash it says")
        if seq == 1 and entry.kind != "chain":
            raise _Found(chain, seq, "the chain does not begin with who wrote it")
        self.heads[chain] = (seq, entry.hash)
        self.entries += 1
        if self.anchors:
            noted = self.anchors.pop((chain, seq), None)
            if noted is not None:
                self.anchored += 1
                if noted != entry.hash.hex():
                    raise _Found(chain, seq, "the entry is not the one that was anchored: the chain was rewritten")

    def recall(self, entry: _Entry, body: dict[str, Any]) -> None:
        """What this entry saw of chains that had ended must be what there is."""
        for seen in body.get("seen", ()):
            ended, last, digest = seen["chain"], seen["seq"], seen["hash"]
            at, found = self.heads.get(ended, (0, b""))
            if (at, found.hex()) != (last, digest):
                what = (
                    f"the chain ended at entry {last} when entry {entry.seq} of chain {entry.chain} saw it; now at {at}"
                )
                raise _Found(ended, min(at, last) + (at != last), what)

    def tell(self, entry: _Entry, body: dict[str, Any], records: sqlite3.Cursor) -> None:
        """What an entry says about a call."""
        if entry.kind in _OPENING:
            call = self.opened(entry, body, records)
        else:
            known = self.calls.get(entry.call_id)
            if known is None:
                raise _Found(entry.chain, entry.seq, f"it is about call {entry.call_id}, which is unknown or over")
            call = known
            call.chain, call.seq = entry.chain, entry.seq
        change = body.get("set")
        if change:
            laps = {**call.says.get("laps_us", {}), **change.get("laps_us", {})}
            call.says.update(change, changed_at_ms=entry.at_ms, laps_us=laps)
        if "kept" in body:
            call.kept = body["kept"]  # a reviewer may change the arguments
        if "hold" in body:
            call.hold = {**(call.hold or _FRESH_HOLD), **body["hold"]}
        if call.says["state"] in _FINAL and (call.hold is None or call.hold["collected_at_ms"]):
            self.compare(call)
            self.calls.pop(entry.call_id, None)
        else:
            self.calls[entry.call_id] = call

    def opened(self, entry: _Entry, body: dict[str, Any], records: sqlite3.Cursor) -> _Open:
        """Records are in the order of the entries that opened them."""
        record = records.fetchone()
        if record is None or record[self.columns.index("call_id")] != entry.call_id:
            what = f"the record of call {entry.call_id} is not in its place: deleted, inserted or moved"
            raise _Found(entry.chain, entry.seq, what)
        self.records += 1
        return _Open(entry.chain, entry.seq, dict(_FRESH), None, body.get("kept"), record)

    def compare(self, call: _Open) -> None:
        """A record, its hold and its kept arguments against what the entries said."""
        width = len(self.columns)
        if self.plain(call.record) != tuple(map(call.says.get, self.plain_names)) or not self.documents_agree(call):
            self.name_column(call, "record", self.columns, call.record[:width], call.says)
        held = call.record[width + 1 : -2]
        if call.hold is not None:
            says = {**call.hold, "call_id": call.says["call_id"]}
            self.name_column(call, "hold", self.hold_columns, held, says)
        kept = call.record[-1]
        if kept is None:
            self.erased += call.kept is not None
        elif "sha256:" + hashlib.sha256(kept).hexdigest() != call.kept:
            raise _Found(call.chain, call.seq, f"the kept arguments of call {call.says['call_id']} were changed")

    def documents_agree(self, call: _Open) -> bool:
        quotas, laps = call.record[self.quotas], call.record[self.laps]
        same = quotas == "[]" and not call.says["quotas"]
        return (same or json.loads(quotas) == call.says["quotas"]) and json.loads(laps) == call.says["laps_us"]

    def name_column(
        self, call: _Open, noun: str, names: tuple[str, ...], values: tuple[Any, ...], says: dict[str, Any]
    ) -> None:
        """Raises for the first column that does not agree."""
        for name, value in zip(names, values, strict=True):
            said = says.get(name)
            if name != "id" and value != said and (name not in _JSON or value is None or json.loads(value) != said):
                raise _Found(
                    call.chain,
                    call.seq,
                    f"`{name}` in the {noun} of call {says['call_id']} is not what this entry says",
                )
