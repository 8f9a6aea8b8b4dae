"""Which writing process is alive, answered by the kernel: each holds an exclusive lock on a file of its own.

The kernel frees the lock when the process ends in whatever way, kill -9 included, and not before: a process that is
stopped, swapped out or slow keeps it. So what a dead process left is recovered at once, and what a live one is at is
never touched. A heartbeat with a deadline can promise neither; it stands in only where the file itself was removed.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


def folder_of(database: Path) -> Path:
    return database.with_name(database.name + ".writers")


class Life:
    """This process's lock, held from `begin` to `end`. The file is locked before its name is in the database."""

    def __init__(self, database: Path, chain: str) -> None:
        self._path = folder_of(database) / f"{chain}.lock"
        self._descriptor = -1

    def begin(self) -> None:
        """Take the lock; again, if somebody removed the file meanwhile. Raises OSError."""
        if self._descriptor >= 0:
            if self._is_in_place():
                return
            os.close(self._descriptor)
            self._descriptor = -1
        self._path.parent.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise
        self._descriptor = descriptor

    def end(self, *, remove: bool) -> None:
        """remove: the database says that this writer ended. Otherwise the file stays, for a sweep to find unlocked."""
        if self._descriptor >= 0:
            if remove:
                self._path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = -1

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(self._path.stat(), os.fstat(self._descriptor))
        except FileNotFoundError:
            return False


def is_dead(database: Path, chain: str) -> bool | None:
    """Whether the writer of this chain has ended. None: its file is gone, so the kernel cannot say."""
    try:
        descriptor = os.open(folder_of(database) / f"{chain}.lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        return True
    finally:
        os.close(descriptor)


def forget(database: Path, chain: str) -> None:
    """Remove the lock file of a dead writer, once the database says that it is dead."""
    (folder_of(database) / f"{chain}.lock").unlink(missing_ok=True)
