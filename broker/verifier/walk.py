"""One part of the ledger, walked in order of commit: each entry in its chain, and each call's record beside it.

A part is a range of entry ids, so that several processes can share a long history; `join.py` puts them together. What a
part cannot judge alone it hands over: where its chains began, entries about calls that another part opened, and calls
still open at its end. A walk stops at its first fault. Memory grows with the calls that are open, not with the history.

It is meant to be fast, since nobody checks what takes hours: what is hashed are the bytes as they lie, and nothing is
made for an entry that only an error would need.
"""

from __future__ import annotations

import hashlib
import sqlite3
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jiter import from_json

from broker.verifier.records import FoundError, OpenCall, Place, Records, Spot

_OPENING = frozenset({"intent", "held", "denied"})
_FINAL = frozenset({"denied", "rejected", "expired", "withdrawn", "succeeded", "failed"})
_ENDED: dict[str, Any] = {
    "code": "",
    "message": "",
    "backend_status": "",
    "result_digest": "",
    "result_bytes": 0,
}  # what an outcome does not mention of these is empty
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

_Entry = tuple[int, str, int, int, str, str, bytes, bytes, bytes]


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
    last_record: int = 0  # id of the last record that entries of this part opened; 0: none did
    first_record: tuple[int, Place, str] | None = None  # id of the first, which entry opened it, and its call
    fault: tuple[Spot, str] | None = None


def walk(db: sqlite3.Connection, records: Records, low: int, high: int) -> Part:
    """Check the entries with low <= id < high. Raises sqlite3.Error; a fault is in what it returns."""
    part = Part(is_first=low == 0)
    try:
        _walk(db, records, part, low, high)
    except FoundError as found:
        part.fault = found.spot, found.what
    part.erased = records.erased
    for call in part.open.values():
        call.record = None  # it may change still, and is of this snapshot alone
    return part


def _walk(db: sqlite3.Connection, records: Records, part: Part, low: int, high: int) -> None:
    if part.is_first:
        records.begin("")
    row: _Entry
    for row in db.execute(_ENTRIES, (low, high)):
        try:
            _link(part, row)
            if row[5]:
                _tell(part, row, records)
            elif row[4] in ("chain", "chain_died"):
                _recall(part, row)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise FoundError(row[:3], f"the entry is none a broker writes ({error!r})") from error


def _tell(part: Part, row: _Entry, records: Records) -> None:
    """What an entry says about a call. Records are in the order of the entries that opened them."""
    _, _, _, at_ms, kind, call_id, text, _, _ = row
    body = from_json(text)
    if kind in _OPENING:
        call = _open(part, row, body, records)
    elif (known := part.open.get(call_id)) is not None:
        call = known
        tell(call, row[:3], kind, at_ms, body)
    elif part.is_first:
        raise FoundError(row[:3], unknown(call_id))
    else:
        part.later.append(Telling(Spot._make(row[:3]), kind, at_ms, call_id, body))
        return
    if is_over(call):
        records.judge(call)
        del part.open[call_id]


def misplaced(spot: Place, call_id: str) -> FoundError:
    return FoundError(spot, f"the record of call {call_id} is not in its place: deleted, inserted or moved")


def _open(part: Part, row: _Entry, body: dict[str, Any], records: Records) -> OpenCall:
    _, _, _, at_ms, kind, call_id, _, _, _ = row
    record = records.next(call_id)
    if record is None:
        raise misplaced(row[:3], call_id)
    part.records += 1
    part.last_record = record[0]
    if part.first_record is None:
        part.first_record = record[0], row[:3], call_id
    says = records.said(row[:3], body.get("as") if kind == "intent" else None)
    says["call_id"] = call_id
    says["at_ms"] = says["changed_at_ms"] = at_ms
    says.update(body["set"])
    hold = {**_FRESH_HOLD, **body["hold"]} if "hold" in body else None
    call = OpenCall(row[:3], says, hold, _kept(body, says), body.get("sealed"), record)
    part.open[call_id] = call
    return call


def _kept(body: dict[str, Any], says: dict[str, Any]) -> str | None:
    kept = body.get("kept")
    return says["arguments_digest"] if kept is True else kept


def _link(part: Part, row: _Entry) -> None:
    """One entry in its chain."""
    id_, chain, seq, at_ms, kind, call_id, body, prev, stored = row
    head = part.heads.get(chain)
    if head is None and not part.is_first:
        part.starts[chain] = seq - 1, prev, id_
    else:
        last, before = head or (0, b"")
        if seq != last + 1 or prev != before:
            check_follows(Spot(id_, chain, seq), prev, (last, before))
    text = f"broker.entry.1\n{chain}\n{seq}\n{at_ms}\n{kind}\n{call_id}\n{prev.hex()}\n"
    if hashlib.sha256(text.encode() + body).digest() != stored:
        raise FoundError(row[:3], "the entry was changed: it does not have the hash it says")
    if seq == 1 and kind != "chain":
        raise FoundError(row[:3], "the chain does not begin with who wrote it")
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


def _recall(part: Part, row: _Entry) -> None:
    """What this entry saw of chains that had ended must be what there is."""
    for seen in from_json(row[6]).get("seen", ()):
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
