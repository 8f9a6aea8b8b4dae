"""What many calls share, looked up once: what an intent says by `as`, and what a record names by `caller` and `called`.

An intent that others name is looked up where it lies, be it in another part of the history: that one walks over it, and
judges whether it is what was written.
"""

from __future__ import annotations

import json
import sqlite3
from typing import Any

from jiter import from_json

KNOWN = 4096  # of each kind that are remembered; each takes up to 1 kB

CALLER = ("face", "agent", "user", "tenant", "issuer", "principal_key", "credential_id")
CALLED = ("tool", "tool_version", "tool_effect", "definition", "backend", "rule", "policy_version", "record", "writer",
          "state", "effect")  # fmt: skip
# Which of them stand in the two tables, and which in a record itself. `state` and `effect`: see the outcome.
CALLER_SHARED = ("face", "issuer", "principal_key")
CALLED_SHARED = ("tool_version", "tool_effect", "definition", "backend", "policy_version", "record")
CALLER_OWN = ("agent", "user", "tenant", "credential_id")
CALLED_OWN = ("tool", "rule", "writer")
_ENTRY = "select kind, cast(body as blob) from entry where chain = ? and seq = ?"


def is_no_text(error: sqlite3.OperationalError) -> bool:
    """Whether a text was not UTF-8: the module's own error, so it has no code of the library's."""
    return getattr(error, "sqlite_errorcode", None) is None


class Common:
    """One of the two kinds. named: ids of the rows of its table that some record named. agreed: see `agree`."""

    def __init__(
        self,
        db: sqlite3.Connection,
        table: str,
        columns: tuple[str, ...],
        shared: tuple[str, ...],
        own: tuple[str, ...],
    ) -> None:
        self._db = db
        self._columns, self._shared, self._own = columns, shared, own
        self._row = f"select {', '.join(shared)} from {table} where id = ?"  # noqa: S608 – constants
        self._rows: dict[int, tuple[Any, ...]] = {}
        self._words: dict[int, tuple[str, ...]] = {}
        self._said: dict[tuple[str, int], dict[str, Any]] = {}
        self.agreed: dict[tuple[str, str, int], tuple[int, tuple[Any, ...]]] = {}
        self.named = set[int]()

    def agree(self, chain: str, named: str, id_: int) -> tuple[int, tuple[Any, ...]]:
        """Where the intent that another names (`named`, a seq) says what the row has that its record names: that seq,
        and the columns that a record has itself. Raises ValueError where they do not agree."""
        seq = int(named)
        says = self.said(chain, seq)
        if tuple(says[name] for name in self._shared) != self.row(id_):
            raise ValueError("it names others than its record")
        found = seq, tuple(says[name] for name in self._own)
        _remember(self.agreed, (chain, named, id_), found)
        return found

    def learn(self, chain: str, seq: int, id_: int, own: tuple[Any, ...]) -> None:
        """This intent says all of it itself, and was found to agree."""
        _remember(self.agreed, (chain, str(seq), id_), (seq, own))

    def words(self, id_: int) -> tuple[str, ...]:
        """The columns of its row as JSON. Raises ValueError where there is no such row."""
        known = self._words.get(id_)
        if known is None:
            known = tuple(json.dumps(value, ensure_ascii=False) for value in self.row(id_))
            if not known:
                raise ValueError(f"there is no row {id_}")
            _remember(self._words, id_, known)
        return known

    def row(self, id_: int) -> tuple[Any, ...]:
        """Its columns; () where there is no such row, or one with a text that is none."""
        known = self._rows.get(id_)
        if known is None:
            self.named.add(id_)
            try:
                known = self._db.execute(self._row, (id_,)).fetchone() or ()
            except sqlite3.OperationalError as error:
                if not is_no_text(error):
                    raise
                known = ()
            _remember(self._rows, id_, known)
        return known

    def said(self, chain: str, seq: int) -> dict[str, Any]:
        """All its columns as the intent there says them itself; not to be changed. Raises ValueError."""
        known = self._said.get((chain, seq))
        if known is None:
            kind, body = self._db.execute(_ENTRY, (chain, seq)).fetchone() or ("", b"")
            said: dict[str, Any] = from_json(body)["set"] if kind == "intent" else {}
            if not said.keys() >= set(self._columns):
                raise ValueError(f"entry {seq} is no intent that says `{self._columns[0]}`")
            known = {name: said[name] for name in self._columns}
            _remember(self._said, (chain, seq), known)
        return known


def _remember(known: dict[Any, Any], key: Any, value: Any) -> None:
    if len(known) == KNOWN:
        known.clear()
    known[key] = value


class Said:
    def __init__(self, db: sqlite3.Connection) -> None:
        self.callers = Common(db, "caller", CALLER, CALLER_SHARED, CALLER_OWN)
        self.called = Common(db, "called", CALLED, CALLED_SHARED, CALLED_OWN)

    def shared(self, caller: int, called: int) -> tuple[Any, ...]:
        """What a record has by these ids: CALLER_SHARED and CALLED_SHARED."""
        return self.callers.row(caller) + self.called.row(called)

    def named(self) -> frozenset[tuple[str, int]]:
        """Rows of the two tables that records named, as (table, id)."""
        return frozenset(
            [*(("caller", one) for one in self.callers.named), *(("called", one) for one in self.called.named)]
        )
