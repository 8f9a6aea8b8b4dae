"""The writer's connection as something that can fail: taking the lock, noticing a swapped file, opening it anew."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from random import random
from time import monotonic, sleep

import structlog

from broker.stores.sqlite.database import connect

log = structlog.get_logger("broker.store")


class FileGoneError(OSError):
    """The file at the path is not the one that was opened."""


class LiveFile:
    """One writing connection (`db`), used by one thread. busy_s: how long opening it may wait for somebody's lock."""

    def __init__(self, path: Path, busy_s: float) -> None:
        self._path = path
        self._busy_s = busy_s
        self._parts = [f"{path}{suffix}" for suffix in ("", "-wal", "-shm")]
        self.db = self._connect()
        self._files = self._identity()
        self.is_doubtful = False  # it has failed in a way after which it is opened anew, and memory is not trusted

    def _connect(self) -> sqlite3.Connection:
        db = connect(self._path, busy_s=self._busy_s)
        db.row_factory = None
        db.execute("pragma busy_timeout = 0")  # `begin` waits
        db.execute("select count(*) from sqlite_schema").fetchone()  # makes -wal and -shm, and reads the schema
        return db

    def reopen(self) -> None:
        """Raises FileGoneError, sqlite3.Error. The same file only: another one would not have our chain."""
        self.check_in_place()
        self.db.close()
        self.db = self._connect()
        self._files = self._identity()

    def begin(self, patience_s: float) -> None:
        """Take the write lock. SQLite's own waiting sleeps up to 100 ms at a time and starves one of several brokers.

        Raises sqlite3.OperationalError: busy for patience_s, or worse.
        """
        until = monotonic() + patience_s
        pause_s = 0.0002
        while True:
            try:
                self.db.execute("begin immediate")
            except sqlite3.OperationalError as error:
                if not is_busy(error) or monotonic() > until:
                    raise
                sleep(pause_s * (0.5 + random()))  # noqa: S311 – spreads waiters, keeps no secret
                pause_s = min(pause_s * 1.5, 0.002)
            else:
                return

    def roll_back(self) -> None:
        """Never raises: whoever rolls back has a better error to report."""
        try:
            if self.db.in_transaction:
                self.db.execute("rollback")
        except sqlite3.Error:
            log.warning("a rollback failed; the database is opened anew", exc_info=True)
            self.is_doubtful = True

    def check_in_place(self) -> None:
        """A file that was moved, replaced or deleted under us would take our commits and nobody would find them.

        Raises FileGoneError.
        """
        try:
            if self._identity() == self._files:
                return
        except FileNotFoundError:
            pass  # said below, with what to do
        raise FileGoneError(
            "the file, or its -wal or -shm, was moved, replaced or deleted while in use; put it back or start again"
        )

    def _identity(self) -> list[tuple[int, int]]:
        states = [os.stat(part) for part in self._parts]  # noqa: PTH116 – at each commit, so without a path object
        return [(state.st_dev, state.st_ino) for state in states]


def is_busy(error: BaseException) -> bool:
    """Whether somebody else holds a lock. Errors of the module itself carry no code."""
    code = getattr(error, "sqlite_errorcode", 0) if isinstance(error, sqlite3.Error) else 0
    return code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def is_storage(error: Exception) -> bool:
    """Whether the file or the disk failed, rather than what was asked of it."""
    return isinstance(error, OSError | sqlite3.OperationalError) or type(error) is sqlite3.DatabaseError
