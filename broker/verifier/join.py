"""A whole history from its parts: walked by several processes when it is long, judged in order of commit.

Each process reads its own snapshot. That is sound while a broker writes, because what a part judges alone is over and
changes no more; whatever may still change is judged here, in the one snapshot of the last part.
"""

from __future__ import annotations

import pickle
import sqlite3
import subprocess
import sys
from collections.abc import Generator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from os import cpu_count
from pathlib import Path

from broker.verifier.older import show_as_newer
from broker.verifier.records import ALL, LEAST, FoundError, OpenCall, Records, Spot, misplaced
from broker.verifier.said import CALLED_SHARED, CALLER_SHARED
from broker.verifier.walk import (
    WRONG,
    Part,
    check_follows,
    check_seen,
    is_over,
    strange,
    tell,
    unknown,
    walk,
)

ALONE = 60_000  # entries that are read faster by one process than another process starts
PROCESSES = 3  # at most; each takes about 30 MB

_STRAY_HOLD = """select call_id from hold
    where call_id not in (select call_id from invocation where held = 1) limit 1"""

_VIEWS = """select name, sql from main.sqlite_schema where type = 'view'
    and name in ('record', 'entry', 'invocation', 'hold', 'payload', 'caller', 'called')"""
_RECORD = f"""create view record as select i.*, {", ".join(f"p.{name}" for name in CALLER_SHARED)},
    {", ".join(f"t.{name}" for name in CALLED_SHARED)} from invocation i
    cross join caller p on p.id = i.caller cross join called t on t.id = i.called"""  # noqa: S608 – constants

_INDICES = "pragma main.integrity_check('invocation')"  # SQLite's own: each row is in each index, as it is

_NAMED = "select 'caller', id from caller union all select 'called', id from called"


@dataclass(slots=True)
class Whole:
    """What all parts came to. heads: in the order in which the chains began."""

    heads: dict[str, tuple[int, bytes]] = field(default_factory=dict[str, tuple[int, bytes]])
    open: dict[str, OpenCall] = field(default_factory=dict[str, OpenCall])
    entries: int = 0
    records: int = 0
    erased: int = 0
    named: set[tuple[str, int]] = field(default_factory=set[tuple[str, int]])
    next_record: int = LEAST  # the least id of a record that comes after those of these parts
    fault: tuple[Spot, str] | None = None


@contextmanager
def snapshot(path: Path) -> Generator[sqlite3.Connection]:
    """A connection that reads, and sees one state of the file. Raises sqlite3.Error."""
    uri = f"{path.absolute().as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as db:
        db.execute("begin")
        show_as_newer(db)
        yield db


def walk_all(path: Path, db: sqlite3.Connection, processes: int = 0, *, indices: bool = False) -> Whole:
    """Everything in this snapshot of the file. processes, indices: as of `verify`. Raises sqlite3.Error, OSError."""
    last = int(db.execute("select coalesce(max(id), 0) from entry").fetchone()[0])
    count = processes or max(1, min(cpu_count() or 1, PROCESSES, last // ALONE))
    edges = [LEAST, *(last * number // count for number in range(1, count)), ALL]
    others = [_start(path, low, high - 1) for low, high in pairwise(edges[:-1])]
    whole = Whole()
    records = Records(db)
    with ExitStack() as stack:
        for other in others:
            stack.enter_context(other)
            stack.callback(other.kill)
        mine = walk(db, records, edges[-2], ALL)
        for part in (*map(_result, others), mine):
            _join(whole, part, db, records)
            if whole.fault:
                return whole
            whole.erased += 0 if part is mine else part.erased
    try:
        _end(whole, db, records)
        if indices:
            _find_all(db)
    except FoundError as found:
        whole.fault = found.spot, found.what
    return whole


def _start(path: Path, low: int, high: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", "-m", "broker.verifier", str(path.absolute()), str(low), str(high)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)


def walk_part(path: Path, low: int, high: int) -> bytes:
    """What another process does for `walk_all`."""
    with snapshot(path) as db:
        return pickle.dumps(walk(db, Records(db), low, high))


def _result(other: subprocess.Popen[bytes]) -> Part:
    assert other.stdout is not None, "it was started with a pipe"  # noqa: S101
    packed = other.stdout.read()
    if other.wait():
        raise OSError(f"a part could not be read (exit code {other.returncode})")
    return pickle.loads(packed)  # noqa: S301 – from our own process, not from the file


def _join(whole: Whole, part: Part, db: sqlite3.Connection, records: Records) -> None:
    """Put a part after those before it; of several faults the first counts."""
    faults: list[tuple[Spot, str]] = []
    for check in (_join_chains, _join_calls, _join_records):
        try:
            check(whole, part, db, records)
        except FoundError as found:
            faults.append((found.spot, found.what))
    faults += [part.fault] if part.fault else []
    whole.fault = min(faults, key=lambda fault: fault[0].id, default=None)
    whole.heads.update(part.heads)
    whole.open.update(part.open)
    whole.entries += part.entries
    whole.records += part.records
    whole.named |= part.named
    whole.next_record = part.last_record + 1 if part.records else whole.next_record


def _join_chains(whole: Whole, part: Part, _db: sqlite3.Connection, _records: Records) -> None:
    for chain, (seq, prev, id_) in part.starts.items():
        check_follows(Spot(id_, chain, seq + 1), prev, whole.heads.get(chain, (0, b"")))
    for sighting in part.seen:
        check_seen(sighting, whole.heads.get(sighting.ended, (0, b"")))


def _join_calls(whole: Whole, part: Part, db: sqlite3.Connection, records: Records) -> None:
    for telling in part.later:
        call = whole.open.get(telling.call_id)
        if call is None:
            raise FoundError(telling.spot, unknown(telling.call_id))
        try:
            tell(call, telling.spot, telling.kind, telling.at_ms, telling.body)
        except WRONG as error:
            raise strange(telling.spot, error) from error
        if is_over(call):
            records.judge(call)
            del whole.open[telling.call_id]
    del db


def _join_records(whole: Whole, part: Part, db: sqlite3.Connection, _records: Records) -> None:
    if part.is_first or part.first_record is None:
        return
    first, spot, call_id = part.first_record
    before = "select 1 from invocation where id >= ? and id < ? limit 1"
    if first < whole.next_record or db.execute(before, (whole.next_record, first)).fetchone() is not None:
        raise misplaced(spot, call_id)


def _end(whole: Whole, db: sqlite3.Connection, records: Records) -> None:
    """What only shows when all entries are known. Raises FoundError."""
    for call in sorted(whole.open.values(), key=lambda call: call.spot[0]):
        records.judge(call)
    whole.erased += records.erased
    if whole.next_record <= ALL:
        extra = db.execute("select call_id from invocation where id >= ? limit 1", (whole.next_record,)).fetchone()
        if extra is not None:
            raise FoundError(_nowhere(), _inserted(extra[0]))
    whole.named |= records.said.named()
    for table, id_ in db.execute(_NAMED):
        if (table, id_) not in whole.named:
            raise FoundError(_nowhere(), f"row {id_} of `{table}` belongs to no record: it was inserted")
    for name, sql in db.execute(_VIEWS):  # none of the tables may be one
        if name != "record" or sql.lower().split() != _RECORD.split():
            raise FoundError(_nowhere(), f"the view `{name}` is not the one that shows all columns of a call")
    stray = db.execute(_STRAY_HOLD).fetchone()
    if stray is not None:
        raise FoundError(_nowhere(), f"call {stray[0]} has a hold that no entry speaks of: it was inserted")


def _find_all(db: sqlite3.Connection) -> None:
    """Every call is found by what it is. Raises FoundError."""
    (said,) = db.execute(_INDICES).fetchone()
    if said != "ok":
        raise FoundError(_nowhere(), f"calls are not found by what they are, because an index is damaged: {said}")


def _nowhere() -> Spot:
    """What is in no chain; whatever has a place comes before it."""
    return Spot(ALL, "", 0)


def _inserted(call_id: str) -> str:
    return f"call {call_id} has a record, but no entry says so: it was inserted"
