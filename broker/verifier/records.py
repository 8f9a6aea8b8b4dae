"""The records of calls, read in the order of their entries, and held column by column against what those say.

Rows are read through one cursor beside the ledger's, so a long history is two scans and no search. Most calls are
judged in one go (`usual.py`), the others when they are over, or when all entries are known.
"""

from __future__ import annotations

import hashlib
import sqlite3
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, NamedTuple

from jiter import from_json

from broker.verifier.said import CALLED_SHARED, CALLER_SHARED, Said, is_no_text
from broker.verifier.usual import COLUMNS, Entry, Row

LEAST, ALL = -(1 << 63), (1 << 63) - 1  # ids: whoever can write the file can choose any

_JSON = frozenset({"quotas", "laps_us", "scopes", "groups", "persons", "charges", "terms", "bound", "votes"})
_FRESH: dict[str, Any] = {"quotas": [], "laps_us": {}}

_KEPT = "left join payload k on k.call_id = i.call_id and k.part = 'kept'"
_COMPARED: Callable[[Any], tuple[Any, ...]] = itemgetter(*COLUMNS)
_SHARED = (*CALLER_SHARED, *CALLED_SHARED)
_COMPARED_SHARED: Callable[[Any], tuple[Any, ...]] = itemgetter(*_SHARED)
_COLUMNS = ", ".join(f'i."{name}"' for name in COLUMNS)
_ROWS = f"""select i.id, i.call_id, k.body, i.laps_us, i.quotas, i.caller, i.called, {_COLUMNS}
    from invocation i {_KEPT} where i.id >= ? order by i.id"""  # noqa: S608 – a constant
_RECORD = f"""select i.*, p.*, t.*, '|' as bar, h.*, '|' as bar, k.body as kept from invocation i
    left join caller p on p.id = i.caller left join called t on t.id = i.called
    left join hold h on h.call_id = i.call_id and i.held = 1 {_KEPT} where i.call_id = ?"""  # noqa: S608
_SEALED = "select body from payload where call_id = ? and part = 'full'"
_PARTS = {"kept": "kept", "full": "sealed"}
_TYPES = "select name, type from pragma_table_info('invocation')"
_IDS = frozenset({"id", "caller", "called"})  # which no entry says
_RECORD_ID = "select id from invocation where call_id = ?"


Place = tuple[int, str, int]
"""A `Spot` as it comes from the table."""


class Spot(NamedTuple):
    """Where an entry is: in the order of commit, and in its chain."""

    id: int
    chain: str
    seq: int


class FoundError(Exception):
    """The first wrong place."""

    def __init__(self, spot: Place, what: str) -> None:
        super().__init__(what)
        self.spot = Spot._make(spot)
        self.what = what


def misplaced(spot: Place, call_id: str) -> FoundError:
    return FoundError(spot, f"the record of call {call_id} is not in its place: deleted, inserted or moved")


@dataclass(slots=True)
class OpenCall:
    """A call whose record may still change: what the entries have said so far.

    spot: of the last one.
    """

    spot: Place
    says: dict[str, Any]
    hold: dict[str, Any] | None
    kept: str | None
    sealed: str | None


class Records:
    """The rows of calls, of one connection, and how they compare with what entries say."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._erased = {part: Erased.read(db, part) for part in _PARTS}
        names = [column[0] for column in db.execute(_RECORD, ("",)).description]
        bar = names.index("bar")
        self._names, self._hold_names = tuple(names[:bar]), tuple(names[bar + 1 : -2])
        columns = {name: 0 if kind == "INTEGER" else "" for name, kind in db.execute(_TYPES) if name not in _IDS}
        self._fresh: dict[str, Any] = {**columns, **dict.fromkeys(_SHARED, ""), **_FRESH}
        self.said = Said(db)
        self._fetch: Callable[[], Row | None] | None = None  # the next row
        self.erased = self.count = self.last = 0  # last: the id of the last row that was read, if any was
        self.first: tuple[int, Place, str] | None = None  # the id of the first, which entry opened it, and its call

    def begin(self, call_id: str) -> None:
        """Be at this call's record; at the first for ""."""
        first = LEAST
        if call_id:
            (first,) = self._db.execute(_RECORD_ID, (call_id,)).fetchone() or (ALL,)
        self._fetch = self._db.execute(_ROWS, (first,)).fetchone

    def next(self, opening: Entry) -> Row:
        """The next record in order. Where none was asked for, it begins here. Raises FoundError when it is not that of
        the call that this entry opens."""
        fetch = self._fetch
        if is_first := fetch is None:
            self.begin(opening[5])
            fetch = self._fetch
        assert fetch is not None, "begin opens it"  # noqa: S101
        try:
            row = fetch()
        except sqlite3.OperationalError as error:
            if not is_no_text(error):
                raise
            if self._db.execute(_RECORD_ID, (opening[5],)).fetchone() is None:
                raise misplaced(opening[:3], opening[5]) from error
            raise FoundError(opening[:3], f"the record of call {opening[5]} was changed: it is not UTF-8") from error
        if row is None or row[1] != opening[5]:
            raise misplaced(opening[:3], opening[5])
        self.count += 1
        self.last = row[0]
        if is_first:
            self.first = row[0], opening[:3], opening[5]
        return row

    def fresh(self, opening: Entry, body: dict[str, Any]) -> dict[str, Any]:
        """All columns of a record as its first entry leaves them. Raises ValueError."""
        _, chain, seq, at_ms, kind, call_id, _, _, _ = opening
        says = {**self._fresh, "call_id": call_id, "at_ms": at_ms, "changed_at_ms": at_ms}
        if kind == "intent" and "as" in body:
            caller, called = body["as"]
            if not (0 <= caller < seq and 0 <= called < seq):
                raise ValueError(f"`as` names {body['as']}, which do not come before it")
            says |= self.said.callers.said(chain, caller) if caller else {}
            says |= self.said.called.said(chain, called) if called else {}
        return {**says, **body["set"]}

    def judge(self, call: OpenCall, record: Row | None = None) -> None:
        """A record, its hold and its kept arguments against what the entries said. record: its row, if at hand. Raises
        FoundError."""
        says = call.says
        call_id: str = says["call_id"]
        if record is not None and call.hold is None and self._holds(record, says):
            kept = record[2]
        else:
            kept = self._compare(call, self._read(call_id))
        self._check_kept(call.spot, call_id, says["at_ms"], call.kept, kept)
        if call.sealed is not None:
            row = self._db.execute(_SEALED, (call_id,)).fetchone()
            self._check_kept(call.spot, call_id, says["at_ms"], call.sealed, row and row[0], part="full")

    def _read(self, call_id: str) -> tuple[Any, ...] | None:
        """A whole record, also one with texts that are not UTF-8."""
        self._db.text_factory = _any_text
        try:
            return self._db.execute(_RECORD, (call_id,)).fetchone()
        finally:
            self._db.text_factory = str

    def _holds(self, record: Row, says: dict[str, Any]) -> bool:
        return (
            record[7:] == _COMPARED(says)
            and self.said.shared(record[5], record[6]) == _COMPARED_SHARED(says)
            and _reads(record[3], says["laps_us"])
            and _reads(record[4], says["quotas"])
        )

    def _compare(self, call: OpenCall, row: tuple[Any, ...] | None) -> bytes | None:
        """What is kept of its arguments, when the row and its hold are what they should be. Raises FoundError."""
        if row is None:
            raise FoundError(call.spot, f"the record of call {call.says['call_id']} is gone")
        bar = len(self._names)
        self._name_column(call, "record", self._names, row[:bar], call.says)
        self.said.shared(*(row[self._names.index(name)] for name in ("caller", "called")))
        if call.hold is not None:
            hold = {**call.hold, "call_id": call.says["call_id"]}
            self._name_column(call, "hold", self._hold_names, row[bar + 1 : -2], hold)
        return row[-1]

    def _check_kept(
        self, spot: Place, call_id: str, at_ms: int, digest: str | None, body: bytes | None, *, part: str = "kept"
    ) -> None:
        """What is kept of arguments. at_ms: of the call."""
        if body is not None:
            if "sha256:" + hashlib.sha256(body).hexdigest() != digest:
                raise FoundError(spot, f"the {_PARTS[part]} arguments of call {call_id} were changed")
        elif digest is not None:
            if not self._erased[part].covers(call_id, at_ms):
                raise FoundError(spot, f"the {_PARTS[part]} arguments of call {call_id} are gone, and no entry says so")
            self.erased += 1

    def _name_column(
        self, call: OpenCall, noun: str, names: tuple[str, ...], values: tuple[Any, ...], says: dict[str, Any]
    ) -> None:
        """Raises for the first column that does not agree."""
        for name, value in zip(names, values, strict=True):
            said = says.get(name)
            if name not in _IDS and value != said and not (name in _JSON and _reads(value, said)):
                what = f"`{name}` in the {noun} of call {says['call_id']} is not what this entry says"
                raise FoundError(call.spot, what)


def _any_text(raw: bytes) -> str:
    return raw.decode(errors="surrogateescape")


def _reads(text: Any, said: Any) -> bool:
    """Whether this column of JSON is what was said."""
    try:
        return from_json(text.encode()) == said
    except (AttributeError, ValueError):
        return False


@dataclass(slots=True)
class Erased:
    """Which payloads of a part the ledger says are gone: all of calls before a time, and those of single calls."""

    before_ms: int = 0
    marks: list[int] = field(default_factory=list[int])  # sorted; see mark_of

    @classmethod
    def read(cls, db: sqlite3.Connection, part: str) -> Erased:
        found = cls()
        for (body,) in db.execute("select body from entry where kind in ('erasure', 'payloads_deleted')"):
            said = from_json(body.encode())
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
