"""What may be used once: names of sealed states, remembered until they have ended by themselves."""

from __future__ import annotations

import sqlite3

from broker.stores.sqlite.transaction import Transaction

TABLE = (
    """create table spent_state (
        once text primary key,
        until_ms integer not null
    ) strict, without rowid""",
    "create index spent_state_until on spent_state (until_ms)",
)


def spend(tx: Transaction, argument: tuple[str, int]) -> bool:
    """(name, until when it is remembered). True for the first who asks."""
    return (
        tx.db.execute(
            "insert into spent_state (once, until_ms) values (?, ?) on conflict do nothing", argument
        ).rowcount
        == 1
    )


def tidy(db: sqlite3.Connection, now_ms: int, most: int) -> int:
    """Forget what has ended; how many."""
    return db.execute(
        "delete from spent_state where once in (select once from spent_state where until_ms < ? limit ?)",
        (now_ms, most),
    ).rowcount
