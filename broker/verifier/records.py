"""The records of calls, read in the order of their entries, and held column by column against what those say.

Rows are read through one cursor beside the ledger's, so a long history is two scans and no search. Most calls are
judged by their text (`usual.py`); the others are compared as tuples, and which column it was that differs is asked only
when one does.
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

from broker.verifier.usual import Usual

ALL = 1 << 62  # beyond every id
LESSONS = 100  # how often a walk adapts to how calls look; where they look different all the time, it reads them

_JSON = frozenset({"quotas", "laps_us", "scopes", "groups", "persons", "charges", "terms", "bound", "votes"})
_FRESH: dict[str, Any] = {"quotas": [], "backend_status": "", "result_digest": "", "result_bytes": 0}

_KEPT = "left join payload k on k.call_id = i.call_id and k.part = 'kept'"
_ROWS = f"""select i.id, i.call_id, i.at_ms, k.body, %s from invocation i {_KEPT}
    where i.id >= ? order by i.id"""  # noqa: S608 – a constant
_RECORD = f"""select i.*, '|' as bar, h.*, '|' as bar, k.body as kept from invocation i
    left join hold h on h.call_id = i.call_id and i.held = 1 {_KEPT} where i.call_id = ?"""  # noqa: S608
_SEALED = "select body from payload where call_id = ? and part = 'full'"
_PARTS = {"kept": "kept", "full": "sealed"}
_RECORD_ID = "select id from invocation where call_id = ?"


Row = tuple[Any, ...]
"""(id, call_id, at_ms, kept arguments, what `Usual` needs)"""

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
        self.columns, self._hold_columns = tuple(names[:bar]), tuple(names[bar + 1 : -2])
        self._width = len(self.columns)
        plain = tuple(name for name in self.columns if name != "id" and name not in _JSON)
        self._plain: Callable[[Any], tuple[Any, ...]] = itemgetter(*(names.index(name) for name in plain))
        self._said: Callable[[Any], tuple[Any, ...]] = itemgetter(*plain)
        self._fresh = {**dict.fromkeys(self.columns), **_FRESH}
        self._quotas, self._laps = (names.index(name) for name in ("quotas", "laps_us"))
        self._usual = Usual(self.columns)
        self._lessons = LESSONS
        self._rows: sqlite3.Cursor | None = None
        self.erased = 0

    def begin(self, call_id: str) -> None:
        """Be at this call's record; at the first for ""."""
        first = 0
        if call_id:
            (first,) = self._db.execute(_RECORD_ID, (call_id,)).fetchone() or (ALL,)
        self._read_from(first)

    def _read_from(self, first: int) -> None:
        self._rows = self._db.execute(_ROWS % self._usual.sql, (first,))

    def next(self, call_id: str) -> Row | None:
        """The next record in order; None when it is not this call's. Where none was asked for, it begins here."""
        if self._rows is None:
            self.begin(call_id)
        assert self._rows is not None, "begin opens it"  # noqa: S101
        row = self._rows.fetchone()
        return None if row is None or row[1] != call_id else row

    def agrees(self, record: Row, closing: tuple[Any, ...], opening: bytes) -> bool:
        """Whether a record is what these two say, the row of an entry and the body of the one that opened the call, and
        the call is over. False: nobody knows yet. Raises FoundError."""
        agrees, kept = self._usual.agrees(record[4:], opening, closing[6], closing[3])
        if agrees:
            self._check_kept(closing[:3], record[1], record[2], kept, record[3])
        return agrees

    def learn(self, last: int, opening: dict[str, Any], closing: dict[str, Any]) -> None:
        """How two entries look that tell a whole call. last: id of the record that was read last."""
        if self._lessons and self._usual.learn(opening, closing):
            self._lessons -= 1
            self._read_from(last + 1)

    def of(self, call_id: str) -> tuple[Any, ...] | None:
        """All columns of a call's record, its hold's, and what is kept of its arguments."""
        return self._db.execute(_RECORD, (call_id,)).fetchone()

    def fresh(self, said: dict[str, Any], at_ms: int) -> dict[str, Any]:
        """All columns of a record as its first entry leaves them."""
        return {**self._fresh, **said, "changed_at_ms": at_ms}

    def compare(self, call: OpenCall, record: tuple[Any, ...]) -> None:
        """A record, its hold and its kept arguments against what the entries said. Raises FoundError."""
        says = call.says
        if not (
            self._plain(record) == self._said(says)
            and _reads(record[self._laps], says["laps_us"])
            and _reads(record[self._quotas], says["quotas"])
        ):
            self._name_column(call, "record", self.columns, record[: self._width], says)
        if call.hold is not None:
            hold = {**call.hold, "call_id": says["call_id"]}
            self._name_column(call, "hold", self._hold_columns, record[self._width + 1 : -2], hold)
        call_id, at_ms = says["call_id"], says["at_ms"]
        self._check_kept(call.spot, call_id, at_ms, call.kept, record[-1])
        if call.sealed is not None:
            row = self._db.execute(_SEALED, (call_id,)).fetchone()
            self._check_kept(call.spot, call_id, at_ms, call.sealed, row and row[0], part="full")

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
            if name != "id" and value != said and not (name in _JSON and _reads(value, said)):
                what = f"`{name}` in the {noun} of call {says['call_id']} is not what this entry says"
                raise FoundError(call.spot, what)


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
