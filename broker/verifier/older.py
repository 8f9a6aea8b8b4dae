"""Databases from before `caller` and `called`, in which each record has all columns: shown as if it named rows of both.

What an older broker wrote, a backup of it above all, is verified without being changed.
"""

from __future__ import annotations

import sqlite3

from broker.verifier.said import CALLED_SHARED, CALLER_SHARED

_KINDS = (("caller", "p", CALLER_SHARED), ("called", "t", CALLED_SHARED))


def show_as_newer(db: sqlite3.Connection) -> None:
    """In this connection alone. A database that has the tables, or is none of a broker's, is left as it is."""
    tables = {name for (name,) in db.execute("select name from main.sqlite_schema where type = 'table'")}
    if "invocation" not in tables or "caller" in tables:
        return
    joins = ""
    for table, alias, columns in _KINDS:
        names = ", ".join(columns)
        declared = ", ".join(f"{name} text" for name in columns)
        db.execute(f"create temp table {table} (id integer primary key, {declared}, unique ({names}))")
        db.execute(f"insert into temp.{table} ({names}) select distinct {names} from main.invocation")  # noqa: S608
        same = " and ".join(f"{alias}.{name} = w.{name}" for name in columns)
        joins += f" cross join temp.{table} {alias} on {same}"
    db.execute(
        "create temp view invocation as select w.*, p.id as caller, t.id as called"  # noqa: S608 – constants
        f" from main.invocation w{joins}"
    )
