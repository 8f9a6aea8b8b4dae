"""Sets of changes of the schema, each made once, in order, and told by its name in the database.

All that is pending is one transaction: a new database costs one commit, and a start that fails changes nothing.

What must not live here: any table but the one that says what was done, and who else may be migrating (database).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime

Step = Callable[[sqlite3.Connection], None]

_TABLE = """create table if not exists _sqlite_migrations (
    id integer primary key, migration_set text, name text, applied_at text)"""
_INDEX = """create unique index if not exists idx__sqlite_migrations_migration_set_name
    on _sqlite_migrations (migration_set, name)"""


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
        pending = {name: step for name, step in self._steps.items() if name not in applied}
        if not pending:
            return
        db.execute("begin immediate")
        try:
            db.execute(_TABLE)
            db.execute(_INDEX)
            for name, step in pending.items():
                step(db)
                db.execute(
                    "insert into _sqlite_migrations (migration_set, name, applied_at) values (?, ?, ?)",
                    (self.name, name, str(datetime.now(UTC))),
                )
            db.execute("commit")
        except BaseException:
            if db.in_transaction:
                db.execute("rollback")
            raise

    def _applied(self, db: sqlite3.Connection) -> set[str]:
        found = db.execute(
            "select 1 from sqlite_schema where type = 'table' and name = '_sqlite_migrations'"
        ).fetchone()
        if found is None:
            return set()
        return {
            name for (name,) in db.execute("select name from _sqlite_migrations where migration_set = ?", (self.name,))
        }
