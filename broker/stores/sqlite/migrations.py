"""Sets of changes of the schema, each made once, in order, and told by its name in the database.

One transaction is around all of them, so that a new database costs one commit and a start that fails changes nothing.
The table is that of sqlite-utils, whose commands can tell what is applied; the library itself was an eighth of a first
start.

What must not live here: any table, and who else may be migrating (database).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime

Step = Callable[[sqlite3.Connection], None]

_TABLE = "_sqlite_migrations"
_TABLES = (
    f"create table if not exists {_TABLE} (id integer primary key, migration_set text, name text, applied_at text)",
    f"create unique index if not exists idx_{_TABLE}_migration_set_name on {_TABLE} (migration_set, name)",
)
_TAKEN = f"insert into {_TABLE} (migration_set, name, applied_at) values (?, ?, ?)"  # noqa: S608 – a constant


class Migrations:
    """One set; what decorates a function adds it as the last step, under the function's name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._steps: dict[str, Step] = {}

    def __call__(self, step: Step) -> Step:
        if step.__name__ in self._steps:
            raise ValueError(f"{self.name} has a step {step.__name__} already")
        self._steps[step.__name__] = step
        return step

    def unknown(self, db: sqlite3.Connection) -> set[str]:
        """Names of what a newer broker has changed in this database."""
        return self._applied(db) - self._steps.keys()

    def apply(self, db: sqlite3.Connection) -> None:
        """Take every step that was not taken. db: in autocommit mode; nobody else migrates meanwhile."""
        applied = self._applied(db)
        if applied >= self._steps.keys():
            return
        db.execute("begin immediate")
        try:
            for statement in _TABLES:
                db.execute(statement)
            for name, step in self._steps.items():
                if name not in applied:
                    step(db)
                    db.execute(_TAKEN, (self.name, name, str(datetime.now(UTC))))
            db.execute("commit")
        except BaseException:
            if db.in_transaction:
                db.execute("rollback")
            raise

    def _applied(self, db: sqlite3.Connection) -> set[str]:
        found = db.execute("select 1 from sqlite_schema where type = 'table' and name = ?", (_TABLE,)).fetchone()
        if found is None:
            return set()
        names = f"select name from {_TABLE} where migration_set = ?"  # noqa: S608 – a constant
        return {name for (name,) in db.execute(names, (self.name,))}
