"""What many calls have in common, kept once: by whom and how they came (`caller`), what is called by which rules
(`called`). A record names both by their ids, so that it is narrow; the view `record` has all columns of a call.

What people ask by (agent, user, tenant, tool, rule) stands in the record itself, where indices are made of it, and so
does what is another with each token. Rows here are only ever added: they say nothing of any one call.
"""

from __future__ import annotations

import sqlite3
from operator import attrgetter

from broker.model.invocation import Called, Caller
from broker.stores.sqlite.rows import Rows

CALLER = ("face", "issuer", "principal_key")
CALLED = ("tool_version", "tool_effect", "definition", "backend", "policy_version", "record")
KNOWN = 4096  # of each, that are remembered


def _table(name: str, columns: tuple[str, ...]) -> str:
    return f"""create table {name} (
        id integer primary key,
        {", ".join(f"{column} text not null" for column in columns)},
        unique ({", ".join(columns)})
    ) strict"""


TABLES = (_table("caller", CALLER), _table("called", CALLED))
VIEW = f"""create view record as
    select i.*, {", ".join(f"p.{name}" for name in CALLER)}, {", ".join(f"t.{name}" for name in CALLED)}
    from invocation i cross join caller p on p.id = i.caller cross join called t on t.id = i.called"""  # noqa: S608


def _find(name: str, columns: tuple[str, ...]) -> str:
    return f"select id from {name} where ({', '.join(columns)}) = ({', '.join('?' * len(columns))})"  # noqa: S608


def _add(name: str, columns: tuple[str, ...]) -> str:
    return f"insert into {name} ({', '.join(columns)}) values ({', '.join('?' * len(columns))})"  # noqa: S608


class Names:
    """The ids of one of the two tables, by its values."""

    def __init__(self, table: str, columns: tuple[str, ...]) -> None:
        self._find, self._add, self._values = _find(table, columns), _add(table, columns), attrgetter(*columns)
        self._known: dict[Caller | Called, int] = {}

    def id(self, rows: Rows, one: Caller | Called) -> int:
        """Inside the writer's transaction. Raises sqlite3.Error."""
        return self._known.get(one) or self._look(rows.connection, one)

    def _look(self, db: sqlite3.Connection, one: Caller | Called) -> int:
        values = self._values(one)
        found = db.execute(self._find, values).fetchone()
        number = int(found[0]) if found else db.execute(self._add, values).lastrowid or 0
        if len(self._known) == KNOWN:
            self._known.clear()
        self._known[one] = number
        return number

    def forget(self) -> None:
        """A transaction was rolled back, and perhaps one of these with it."""
        self._known.clear()


class Context:
    def __init__(self) -> None:
        self.callers, self.called = Names("caller", CALLER), Names("called", CALLED)

    def forget(self) -> None:
        self.callers.forget()
        self.called.forget()
