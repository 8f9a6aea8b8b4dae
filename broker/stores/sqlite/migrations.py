"""Sets of changes of the schema, each made once, in order, and told by its name in the database.

sqlite-utils makes them and keeps that table. Ours is the look whether there is anything to make, since mostly there is
not and the library is a tenth of a start; and one transaction around all of it, so that a new database costs one commit
and a start that fails changes nothing.

What must not live here: any table, and who else may be migrating (database).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

Step = Callable[[sqlite3.Connection], None]

_TABLE = "_sqlite_migrations"  # the library's


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
        if self._applied(db) >= self._steps.keys():
            return
        import sqlite_utils  # only here: see above

        library = sqlite_utils.Migrations(self.name)
        for name, step in self._steps.items():

            def take(database: sqlite_utils.Database, step: Step = step) -> None:
                step(database.conn)

            library(name=name)(take)
        db.execute("begin immediate")
        try:
            library.apply(sqlite_utils.Database(db))
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
