"""What the jobs of one transaction write, put off so that many rows go with one statement.

To write a row costs SQLite little more than what stands around it: finding the statement, a cursor, letting go of
Python's lock and getting it back. So what every call writes is put off (`put`) and written a table at a time, before
anybody reads (`db`) and at the commit.

- The order of rows within a statement is the order in which they were put. Between statements it does not matter,
  because no call is twice in one go: what a job says of a call that is in it already has it written first.
- A row that is put off is taken for written. Where that turns out to be wrong (such a call is there already, or is in
  another state), `Spoiled` says so, everything is rolled back, and the jobs run again with `at_once`: one by one, each
  told the truth. The writer does both.
- What a charge adds to the window of a quota is added up here (`windows`), and written once for all of them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

from broker.data import dataclass, field


class Spoiled(Exception):
    """Something that was put off cannot be written as it was taken to be. Everything is to be rolled back."""


@dataclass(slots=True)
class Window:
    """A calendar window of a quota, as it is with what is put off of it (`row`, see quota.py)."""

    starts_at_ms: int
    resets_at_ms: int
    taken: int
    looked_at_ms: int
    row: list[Any] = field(default_factory=list[Any])


class Rows:
    """The rows of the open transaction on this connection, which is replaced when the file had to be opened again.

    connection: as things were written; `db`: as they are. at_once: nothing is put off. windows: by quota, bucket, kind.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.at_once = True
        self.windows: dict[tuple[str, str, str], Window] = {}
        self._later: dict[str, list[Sequence[Any]]] = {}
        self._calls: set[str] = set()

    @property
    def db(self) -> sqlite3.Connection:
        """With everything written that was put. Raises Spoiled."""
        if self._later or self.windows:
            self.write()
        return self.connection

    def put(self, sql: str, row: Sequence[Any]) -> bool:
        """Write this row, perhaps later; whether the statement, which changes one row or none, changes one.

        A list may still be changed by whoever put it, until `windows` is emptied.
        """
        if self.at_once:
            return self.connection.execute(sql, row).rowcount == 1
        some = self._later.get(sql)
        if some is None:
            self._later[sql] = [row]
        else:
            some.append(row)
        return True

    def begin_call(self, call_id: str) -> None:
        """What is put next changes the record of this call. Raises Spoiled."""
        if call_id in self._calls:
            self.write()
        self._calls.add(call_id)

    def write(self) -> None:
        """Raises Spoiled, sqlite3.Error."""
        later = self._later
        self.forget()
        for sql, some in later.items():
            if self.connection.executemany(sql, some).rowcount != len(some):
                raise Spoiled

    def forget(self) -> None:
        """What was put off is of no transaction any more."""
        self._later = {}
        self._calls.clear()
        self.windows.clear()
