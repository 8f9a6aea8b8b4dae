"""One part of the ledger, walked in order of commit: each entry in its chain, and each call's record beside it.

A part is a range of entry ids, so that several processes can share a long history; `join.py` puts them together. What a
part cannot judge alone it hands over: where its chains began, entries about calls that another part opened, and calls
still open at its end. A walk stops at its first fault. Memory grows with the calls that are open, not with the history.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, NamedTuple

from jiter import from_json

ALL = 1 << 62  # beyond every id

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

_ENTRIES = """select id, chain, seq, at_ms, kind, call_id, cast(body as blob), prev, hash from entry
    where id >= ? and id < ? order by id"""
_RECORDS = """select i.*, '|' as bar, h.*, '|' as bar, k.body as kept from invocation i
    left join hold h on h.call_id = i.call_id and i.held = 1
    left join payload k on k.call_id = i.call_id and k.part = 'kept'"""
_SEALED = "select body from payload where call_id = ? and part = 'full'"
_PARTS = {"kept": "kept", "full": "sealed"}
_RECORD_ID = "select id from invocation where call_id = ?"


class Spot(NamedTuple):
    """Where an entry is: in the order of commit, and in its chain."""

    id: int
    chain: str
    seq: int


class FoundError(Exception):
    """The first wrong place of a walk."""

    def __init__(self, spot: Spot, what: str) -> None:
        super().__init__(what)
        self.spot = spot
        self.what = what


class Entry(NamedTuple):
    id: int
    chain: str
    seq: int
    at_ms: int
    kind: str
    call_id: str
    body: bytes
    prev: bytes
    hash: bytes

    @property
    def spot(self) -> Spot:
        return Spot(self.id, self.chain, self.seq)


@dataclass(slots=True)
class Telling:
    """What an entry says about a call that was opened before this part."""

    spot: Spot
    at_ms: int
    call_id: str
    body: dict[str, Any]


@dataclass(slots=True)
class OpenCall:
    """A call whose record may still change: what the entries have said so far."""

    spot: Spot
    says: dict[str, Any]
    hold: dict[str, Any] | None
    kept: str | None
    sealed: str | None = None


@dataclass(slots=True)
class Sighting:
    """What an entry says about the end of a chain that wrote nothing in this part before it."""

    spot: Spot
    ended: str
    seq: int
    hash: str


class Records:
    """The rows of calls, of one connection, and how they compare with what entries say."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._erased = {part: Erased.read(db, part) for part in _PARTS}
        names = [column[0] for column in db.execute(_RECORDS + " limit 0").description]
        bar = names.index("bar")
        self.columns, self._hold_columns = tuple(names[:bar]), tuple(names[bar + 1 : -2])
        self._width = len(self.columns)
        plain = tuple(name for name in self.columns if name != "id" and name not in _JSON)
        self._plain: Callable[[Any], tuple[Any, ...]] = itemgetter(*(names.index(name) for name in plain))
        self._said: Callable[[Any], tuple[Any, ...]] = itemgetter(*plain)
        self._fresh = {**dict.fromkeys(self.columns), **_FRESH}
        self._quotas, self._laps, self._call_id = (names.index(name) for name in ("quotas", "laps_us", "call_id"))
        self._rows: sqlite3.Cursor | None = None
        self.erased = 0

    def begin(self, call_id: str) -> None:
        """Be at this call's record; at the first for ""."""
        first = 0
        if call_id:
            (first,) = self._db.execute(_RECORD_ID, (call_id,)).fetchone() or (ALL,)
        self._rows = self._db.execute(_RECORDS + " where i.id >= ? order by i.id", (first,))

    def next(self, call_id: str) -> tuple[Any, ...] | None:
        """The next record in order; None when it is not this call's. Where none was asked for, it begins here."""
        if self._rows is None:
            self.begin(call_id)
        assert self._rows is not None, "begin opens it"  # noqa: S101
        record = self._rows.fetchone()
        return None if record is None or record[self._call_id] != call_id else record

    def of(self, call_id: str) -> tuple[Any, ...] | None:
        return self._db.execute(_RECORDS + " where i.call_id = ?", (call_id,)).fetchone()

    def fresh(self, said: dict[str, Any]) -> dict[str, Any]:
        return {**self._fresh, **said}

    def compare(self, call: OpenCall, record: tuple[Any, ...]) -> None:
        """A record, its hold and its kept arguments against what the entries said. Raises FoundError."""
        if self._plain(record) != self._said(call.says) or not self._documents_agree(call, record):
            self._name_column(call, "record", self.columns, record[: self._width], call.says)
        if call.hold is not None:
            says = {**call.hold, "call_id": call.says["call_id"]}
            self._name_column(call, "hold", self._hold_columns, record[self._width + 1 : -2], says)
        self._check_payload(call, "kept", call.kept, record[-1])
        if call.sealed is not None:
            row = self._db.execute(_SEALED, (call.says["call_id"],)).fetchone()
            self._check_payload(call, "full", call.sealed, row and row[0])

    def _check_payload(self, call: OpenCall, part: str, digest: str | None, body: bytes | None) -> None:
        call_id = call.says["call_id"]
        if body is not None:
            if "sha256:" + hashlib.sha256(body).hexdigest() != digest:
                raise FoundError(call.spot, f"the {_PARTS[part]} arguments of call {call_id} were changed")
        elif digest is not None:
            if not self._erased[part].covers(call_id, call.says["at_ms"]):
                raise FoundError(
                    call.spot, f"the {_PARTS[part]} arguments of call {call_id} are gone, and no entry says so"
                )
            self.erased += 1

    def _documents_agree(self, call: OpenCall, record: tuple[Any, ...]) -> bool:
        quotas = record[self._quotas]
        same = quotas == "[]" and not call.says["quotas"]
        return (same or json.loads(quotas) == call.says["quotas"]) and json.loads(record[self._laps]) == call.says[
            "laps_us"
        ]

    def _name_column(
        self, call: OpenCall, noun: str, names: tuple[str, ...], values: tuple[Any, ...], says: dict[str, Any]
    ) -> None:
        """Raises for the first column that does not agree."""
        for name, value in zip(names, values, strict=True):
            said = says.get(name)
            if name != "id" and value != said and (name not in _JSON or value is None or json.loads(value) != said):
                what = f"`{name}` in the {noun} of call {says['call_id']} is not what this entry says"
                raise FoundError(call.spot, what)


@dataclass(slots=True)
class Erased:
    """Which payloads of a part the ledger says are gone: all of calls before a time, and those of single calls."""

    before_ms: int = 0
    marks: list[int] = field(default_factory=list[int])  # sorted; see mark_of

    @classmethod
    def read(cls, db: sqlite3.Connection, part: str) -> Erased:
        found = cls()
        for (body,) in db.execute("select body from entry where kind in ('erasure', 'payloads_deleted')"):
            said = json.loads(body)
            if said.get("part") == part:
                found.before_ms = max(found.before_ms, int(said.get("before_ms", 0)))
                found.marks += [mark_of(call_id) for call_id in said.get("calls", ())]
        found.marks.sort()
        return found

    def covers(self, call_id: str, at_ms: int) -> bool:
        if at_ms < self.before_ms:
            return True
        mark = mark_of(call_id)
        at = bisect_left(self.marks, mark)
        return at < len(self.marks) and self.marks[at] == mark


def mark_of(call_id: str) -> int:
    """A call id in eight bytes: ids are chosen by the broker, so nobody can choose two with the same ones."""
    return int.from_bytes(hashlib.sha256(call_id.encode()).digest()[:8], "big")


@dataclass(slots=True)
class Part:
    """What a walk found. heads and starts: chain -> (seq, hash), in order of appearance. starts are where chains stood
    before this part as their first entry here claims, with that entry's id."""

    is_first: bool
    heads: dict[str, tuple[int, bytes]] = field(default_factory=dict[str, tuple[int, bytes]])
    starts: dict[str, tuple[int, bytes, int]] = field(default_factory=dict[str, tuple[int, bytes, int]])
    open: dict[str, OpenCall] = field(default_factory=dict[str, OpenCall])
    later: list[Telling] = field(default_factory=list[Telling])
    seen: list[Sighting] = field(default_factory=list[Sighting])
    entries: int = 0
    records: int = 0
    erased: int = 0
    first_record: int = 0  # ids of the first and last record that entries of this part opened; 0: none did
    last_record: int = 0
    fault: tuple[Spot, str] | None = None


def walk(db: sqlite3.Connection, records: Records, low: int, high: int) -> Part:
    """Check the entries with low <= id < high. Raises sqlite3.Error; a fault is in what it returns."""
    part = Part(is_first=low == 0)
    try:
        _walk(db, records, part, low, high)
    except FoundError as found:
        part.fault = found.spot, found.what
    part.erased = records.erased
    return part


def _walk(db: sqlite3.Connection, records: Records, part: Part, low: int, high: int) -> None:
    if part.is_first:
        records.begin("")
    waiting: dict[str, tuple[Any, ...]] = {}  # records of open calls
    for entry in map(Entry._make, db.execute(_ENTRIES, (low, high))):
        try:
            _link(part, entry)
            if entry.call_id:
                _tell(part, entry, records, waiting)
            elif entry.kind in ("chain", "chain_died"):
                _recall(part, entry, from_json(entry.body))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise FoundError(entry.spot, f"the entry is none a broker writes ({error!r})") from error


def _tell(part: Part, entry: Entry, records: Records, waiting: dict[str, tuple[Any, ...]]) -> None:
    """What an entry says about a call. Records are in the order of the entries that opened them."""
    call_id, body = entry.call_id, from_json(entry.body)
    if entry.kind in _OPENING:
        record = records.next(call_id)
        if record is None:
            what = f"the record of call {call_id} is not in its place: deleted, inserted or moved"
            raise FoundError(entry.spot, what)
        waiting[call_id] = record
        part.records += 1
        part.last_record = record[0]
        part.first_record = part.first_record or record[0]
        said = {**body["set"], "changed_at_ms": entry.at_ms}
        hold = {**_FRESH_HOLD, **body["hold"]} if "hold" in body else None
        call = part.open[call_id] = OpenCall(
            entry.spot, records.fresh(said), hold, body.get("kept"), body.get("sealed")
        )
    elif call_id in part.open:
        call = part.open[call_id]
        tell(call, entry.spot, entry.at_ms, body)
    elif part.is_first:
        raise FoundError(entry.spot, unknown(call_id))
    else:
        part.later.append(Telling(entry.spot, entry.at_ms, call_id, body))
        return
    if is_over(call):
        records.compare(call, waiting.pop(call_id))
        del part.open[call_id]


def _link(part: Part, entry: Entry) -> None:
    """One entry in its chain."""
    id_, chain, seq, at_ms, kind, call_id, body, prev, stored = entry
    head = part.heads.get(chain)
    if head is None and not part.is_first:
        part.starts[chain] = seq - 1, prev, id_
    else:
        check_follows(entry.spot, prev, head or (0, b""))
    text = f"broker.entry.1\n{chain}\n{seq}\n{at_ms}\n{kind}\n{call_id}\n{prev.hex()}\n"
    if hashlib.sha256(text.encode() + body).digest() != stored:
        raise FoundError(entry.spot, "the entry was changed: it does not have the hash it says")
    if seq == 1 and kind != "chain":
        raise FoundError(entry.spot, "the chain does not begin with who wrote it")
    part.heads[chain] = seq, stored
    part.entries += 1


def check_follows(spot: Spot, prev: bytes, head: tuple[int, bytes]) -> None:
    """Whether an entry with this `prev` comes right after the head of its chain. Raises FoundError."""
    last, before = head
    if spot.seq != last + 1:
        what = f"entry {last + 1} is missing, entry {spot.seq} stands in its place"
        raise FoundError(Spot(spot.id, spot.chain, last + 1), what)
    if prev != before:
        raise FoundError(spot, "the entry does not name the hash of the one before it")


def tell(call: OpenCall, spot: Spot, at_ms: int, body: dict[str, Any]) -> None:
    """What a later entry says about a call."""
    call.spot = spot
    change = body.get("set")
    if change:
        laps = {**call.says["laps_us"], **change.get("laps_us", {})}
        call.says.update(change, changed_at_ms=at_ms, laps_us=laps)
    if "kept" in body:
        call.kept = body["kept"]  # a reviewer may change the arguments
        call.sealed = body.get("sealed", call.sealed)
    if "hold" in body:
        call.hold = {**(call.hold or _FRESH_HOLD), **body["hold"]}


def is_over(call: OpenCall) -> bool:
    return call.says["state"] in _FINAL and (call.hold is None or bool(call.hold["collected_at_ms"]))


def unknown(call_id: str) -> str:
    return f"it is about call {call_id}, which is unknown or over"


def _recall(part: Part, entry: Entry, body: dict[str, Any]) -> None:
    """What this entry saw of chains that had ended must be what there is."""
    for seen in body.get("seen", ()):
        sighting = Sighting(entry.spot, seen["chain"], seen["seq"], seen["hash"])
        head = part.heads.get(sighting.ended)
        if head is None and not part.is_first:
            part.seen.append(sighting)
        else:
            check_seen(sighting, head or (0, b""))


def check_seen(sighting: Sighting, head: tuple[int, bytes]) -> None:
    """Whether an ended chain ends where somebody saw it end. Raises FoundError."""
    at, found = head
    if (at, found.hex()) != (sighting.seq, sighting.hash):
        by = f"entry {sighting.spot.seq} of chain {sighting.spot.chain}"
        what = f"the chain ended at entry {sighting.seq} when {by} saw it; now at {at}"
        seq = min(at, sighting.seq) + (at != sighting.seq)
        raise FoundError(Spot(sighting.spot.id, sighting.ended, seq), what)
