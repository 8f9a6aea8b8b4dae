"""One part of the ledger, walked in order of commit: each entry in its chain, and each call's record beside it.

A part is a range of entry ids, so that several processes can share a long history; `join.py` puts them together. What a
part cannot judge alone it hands over: where its chains began, entries about calls that another part opened, and calls
still open at its end. A walk stops at its first fault. Memory grows with the calls that are open, not with the history.

It is meant to be fast, since nobody checks what takes hours: what is hashed are the bytes as they lie, and nothing is
made for an entry that only an error would need.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, NamedTuple

from jiter import from_json

from broker.verifier.records import LEAST, FoundError, OpenCall, Place, Records, Spot
from broker.verifier.said import is_no_text
from broker.verifier.usual import Entry, Row, agrees

_OPENING = frozenset({"held", "denied"})  # beside an intent
_FINAL = frozenset({"denied", "rejected", "expired", "withdrawn", "succeeded", "failed"})
_ENDED: dict[str, Any] = {
    "code": "",
    "message": "",
    "backend_status": "",
    "result_digest": "",
    "result_bytes": 0,
}  # what an outcome does not mention of these is empty
WRONG = (KeyError, TypeError, AttributeError, ValueError)  # what reading a body raises that is not as it should be
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

_ENTRIES = """select id, chain, seq, at_ms, kind, call_id, body, prev, hash from entry
    where id between ? and ? order by id"""
_NEXT = "select id, cast(chain as blob), seq from entry where id >= ? order by id limit 1"


class Telling(NamedTuple):
    """What an entry says about a call that was opened before this part."""

    spot: Spot
    kind: str
    at_ms: int
    call_id: str
    body: dict[str, Any]


class Sighting(NamedTuple):
    """What an entry says about the end of a chain that wrote nothing in this part before it."""

    spot: Spot
    ended: str
    seq: int
    hash: str


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
    named: frozenset[tuple[str, int]] = frozenset()  # which rows of `caller` and `called` its records named
    last_record: int = 0  # id of the last record that entries of this part opened, if any did
    first_record: tuple[int, Place, str] | None = None  # id of the first, which entry opened it, and its call
    fault: tuple[Spot, str] | None = None


def walk(db: sqlite3.Connection, records: Records, low: int, high: int) -> Part:
    """Check the entries with low <= id <= high. Raises sqlite3.Error; a fault is in what it returns."""
    part = Part(is_first=low == LEAST)
    if part.is_first:
        records.begin("")
    try:
        _walk(db, records, part, low, high)
    except FoundError as found:
        part.fault = found.spot, found.what
    part.records, part.first_record, part.last_record = records.count, records.first, records.last
    part.erased, part.named = records.erased, records.said.named()
    return part


def _walk(db: sqlite3.Connection, records: Records, part: Part, low: int, high: int) -> None:
    heads = part.heads
    chain, last, before = (
        "",
        0,
        b"",
    )  # of the entry before this one; `heads` has it from where another chain is looked at
    begun: dict[str, tuple[Entry, Row]] = {}  # calls of which only the first entry was seen, not read yet
    row: Entry
    for row in _entries(db, low, high):
        _, of, seq, at_ms, kind, call_id, body, prev, stored = row
        try:
            if of != chain:
                if chain:
                    heads[chain] = last, before
                chain, (last, before) = of, heads.get(of) or _begin(part, row)
            if seq != last + 1 or prev != before:
                check_follows(Spot._make(row[:3]), prev, (last, before))
            text = f"broker.entry.1\n{chain}\n{seq}\n{at_ms}\n{kind}\n{call_id}\n{prev.hex()}\n{body}"
            if sha256(text.encode()).digest() != stored:
                raise FoundError(row[:3], "the entry was changed: it does not have the hash it says")
            last, before = seq, stored
            part.entries += 1
            if kind == "intent":
                begun[call_id] = row, records.next(row)
            elif kind == "outcome" and call_id in begun and agrees(records.said, *begun[call_id], row):
                del begun[call_id]
            elif call_id:
                _tell(part, row, records, begun.pop(call_id, None))
            elif kind in ("chain", "chain_died"):
                heads[chain] = last, before
                _recall(part, row)
        except WRONG as error:
            raise strange(row[:3], error) from error
    if chain:
        heads[chain] = last, before
    for opening, _ in begun.values():
        _open(part, opening, records)


def _entries(db: sqlite3.Connection, low: int, high: int) -> Iterator[Entry]:
    """Raises FoundError at an entry with a text that is none, sqlite3.Error."""
    last = low - 1
    try:
        for row in db.execute(_ENTRIES, (low, high)):
            last = row[0]
            yield row
    except sqlite3.OperationalError as error:
        if not is_no_text(error):
            raise
        id_, chain, seq = db.execute(_NEXT, (last + 1,)).fetchone()
        raise FoundError(
            (id_, chain.decode(errors="replace"), seq), "the entry was changed: it is not UTF-8"
        ) from error


def _begin(part: Part, row: Entry) -> tuple[int, bytes]:
    """A chain's first entry in this part: where the chain stands before it."""
    id_, chain, seq, _, kind, _, _, prev, _ = row
    if seq == 1 and kind != "chain":
        raise FoundError(row[:3], "the chain does not begin with who wrote it")
    if part.is_first:
        return 0, b""
    part.starts[chain] = seq - 1, prev, id_
    return seq - 1, prev


def _tell(part: Part, row: Entry, records: Records, begun: tuple[Entry, Row] | None) -> None:
    """What an entry says about a call. begun: its first entry and its record, if only those were seen."""
    record: Row | None = None
    if row[4] in _OPENING:
        record = records.next(row)
        call = _open(part, row, records)
    else:
        if begun is not None:
            record = begun[1]
            _open(part, begun[0], records)
        body, call = from_json(row[6].encode()), part.open.get(row[5])
        if call is None:
            if part.is_first:
                raise FoundError(row[:3], unknown(row[5]))
            part.later.append(Telling(Spot._make(row[:3]), row[4], row[3], row[5], body))
            return
        tell(call, row[:3], row[4], row[3], body)
    if is_over(call):
        records.judge(call, record)
        del part.open[row[5]]


def strange(spot: Place, error: Exception) -> FoundError:
    return FoundError(spot, f"the entry is none a broker writes ({error!r})")


def _open(part: Part, row: Entry, records: Records) -> OpenCall:
    try:
        body = from_json(row[6].encode())
        says = records.fresh(row, body)
        hold = {**_FRESH_HOLD, **body["hold"]} if "hold" in body else None
        call = part.open[row[5]] = OpenCall(row[:3], says, hold, _kept(body, says), body.get("sealed"))
    except WRONG as error:
        raise strange(row[:3], error) from error
    return call


def _kept(body: dict[str, Any], says: dict[str, Any]) -> str | None:
    kept = body.get("kept")
    return says["arguments_digest"] if kept is True else kept


def check_follows(spot: Spot, prev: bytes, head: tuple[int, bytes]) -> None:
    """Whether an entry with this `prev` comes right after the head of its chain. Raises FoundError."""
    last, before = head
    if spot.seq != last + 1:
        what = f"entry {last + 1} is missing, entry {spot.seq} stands in its place"
        raise FoundError(Spot(spot.id, spot.chain, last + 1), what)
    if prev != before:
        raise FoundError(spot, "the entry does not name the hash of the one before it")


def tell(call: OpenCall, spot: Place, kind: str, at_ms: int, body: dict[str, Any]) -> None:
    """What a later entry says about a call."""
    call.spot = spot
    says, change = call.says, body.get("set")
    if change:
        laps = says["laps_us"]
        if kind == "outcome":
            says.update(_ENDED)
        says.update(change)
        says["changed_at_ms"] = at_ms
        says["laps_us"] = {**laps, **change.get("laps_us", {})}
    if "kept" in body:
        call.kept = _kept(body, says)  # a reviewer may change the arguments
        call.sealed = body.get("sealed", call.sealed)
    if "hold" in body:
        call.hold = {**(call.hold or _FRESH_HOLD), **body["hold"]}


def is_over(call: OpenCall) -> bool:
    return call.says["state"] in _FINAL and (call.hold is None or bool(call.hold["collected_at_ms"]))


def unknown(call_id: str) -> str:
    return f"it is about call {call_id}, which is unknown or over"


def _recall(part: Part, row: Entry) -> None:
    """What this entry saw of chains that had ended must be what there is."""
    for seen in from_json(row[6].encode()).get("seen", ()):
        sighting = Sighting(Spot._make(row[:3]), seen["chain"], seen["seq"], seen["hash"])
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
