"""Opening the one SQLite file: who may read it, whether it is sound and ours, its pragmas, its migrations.

What must not live here: any table. Each owner of tables brings its own set of migrations.

- The file is created with mode 0600; SQLite gives `-wal` and `-shm` the mode of the file they belong to.
- Migrations run behind an exclusive lock on a file beside the database, because what is pending is read outside of the
  transaction that applies it: of several processes that start together, two would apply the same one.
- A damaged header is found before SQLite sees it, so that the answer can say what to do instead of "malformed".
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import stat
from collections.abc import Generator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from time import monotonic, sleep

import structlog

from broker.errors import RecordUnavailable
from broker.model.principal import person
from broker.stores.sqlite.migrations import Migrations

BUSY_S = 5.0  # how long a statement waits for another connection's lock
MIGRATE_S = 600.0  # how long a start waits for another process that migrates: a million calls take half a minute
TELL_S = 2.0  # after so much of it, it is said
APPLICATION_ID = 0x42524B52  # "BRKR" at byte 68 of the file, so that a foreign database is not taken for ours

log = structlog.get_logger("broker.store")

_KEPT: dict[tuple[int, int], int] = {}  # (device, inode) -> descriptor; see `_descriptor`

_MAGIC = b"SQLite format 3\0"
_FIXED = {20: b"\0", 21: b"\x40\x20\x20"}  # reserved space, payload fractions
_UTF8 = (b"\0\0\0\x01", b"\0\0\0\0")  # the second while the file is empty and its first tables are in the log only
_REPAIR = (
    "Restore a backup, or salvage what can be read with `sqlite3 {name} .recover | sqlite3 salvaged.db`, put that in "
    "its place and run `broker verify`."
)


def connect(path: Path, read_only: bool = False, *, busy_s: float = BUSY_S) -> sqlite3.Connection:
    """A connection in autocommit mode (`isolation_level=None`) that may be used from any thread, one at a time.

    Rows are sqlite3.Row. Raises sqlite3.Error.
    """
    uri = f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rw'}"
    connection = sqlite3.connect(
        uri, uri=True, isolation_level=None, check_same_thread=False, cached_statements=256, timeout=busy_s
    )
    try:
        connection.row_factory = sqlite3.Row
        connection.execute("pragma foreign_keys = on")
        connection.execute("pragma trusted_schema = off")
        connection.execute("pragma cell_size_check = on")
        connection.execute("pragma temp_store = memory")
        connection.create_function("person", 1, _person, deterministic=True)
        if not read_only:
            connection.execute("pragma journal_mode = wal")
            connection.execute("pragma synchronous = full")
            connection.execute("pragma wal_autocheckpoint = 4000")  # pages: of calls that come alone, one in 250 pays
            connection.execute("pragma journal_size_limit = 67108864")
    except BaseException:
        connection.close()
        raise
    return connection


_person = lru_cache(10_000)(person)  # the same few names again and again


def migrate(path: Path, *migrations: Migrations, shrinks: bool = False) -> None:
    """Create the file (mode 0600) if need be, judge it, apply what is pending. Waits for another process at the same.

    shrinks: a new file is made so that it can become smaller, a little at a time (`sweep.shrink`). Not always, because
    that costs each commit a little, and a file from which nothing is ever deleted has nothing to give back.
    Raises RecordUnavailable: no such folder, not writable, locked for long, damaged, not ours, or of a newer broker.
    """
    if not path.parent.exists():
        raise RecordUnavailable(
            f"There is no folder {path.parent} for the database, and an empty one made there would know of no call.",
            next_step="Mount it, make it, or correct `database` in the settings.",
        )
    try:
        with _lock(path):
            _create(path)
            check_header(path)
            is_new = _is_new(path)
            if is_new and shrinks:
                _let_shrink(path)
            connection = connect(path)
            connection.execute("pragma foreign_keys = off")  # a table that others refer to may be made anew
            try:
                if is_new:
                    connection.execute(f"pragma application_id = {APPLICATION_ID}")
                _apply(path, connection, migrations)
            finally:
                connection.close()
    except sqlite3.DatabaseError as error:
        raise unavailable(path, error) from error
    except OSError as error:
        raise RecordUnavailable(
            f"The database {path} cannot be opened: {error.strerror or error}.",
            next_step="Make its folder and the file writable for the broker's user.",
        ) from error


def check_header(path: Path) -> None:
    """Judge the first 100 bytes. Raises RecordUnavailable that says how to repair. An empty file is a new database."""
    header = os.pread(_descriptor(path), 100, 0)
    if not header:
        return
    page = int.from_bytes(header[16:18], "big")
    sound = (
        len(header) == 100
        and header.startswith(_MAGIC)
        and (page == 1 or (page >= 512 and page & (page - 1) == 0))
        and header[18] in (1, 2)
        and header[19] in (1, 2)
        and header[56:60] in _UTF8
        and all(header[at : at + len(fixed)] == fixed for at, fixed in _FIXED.items())
    )
    if not sound:
        raise RecordUnavailable(
            f"The database {path} is damaged: its header is not that of a sound SQLite file.",
            next_step=_REPAIR.format(name=path.name),
        )


def unavailable(path: Path, error: BaseException) -> RecordUnavailable:
    """What SQLite says, as the error of our ports: the cause in its own words, and what an operator does next."""
    code = getattr(error, "sqlite_errorname", "") or type(error).__name__
    if code.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return RecordUnavailable(
            f"The database {path.name} is damaged ({error}).", next_step=_REPAIR.format(name=path.name)
        )
    if code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        step = "Another program holds it locked; end that program's transaction."
    elif code.startswith("SQLITE_FULL"):
        step = "Make room on the disk; the broker goes on by itself."
    elif code.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")):
        step = "Make the file and its folder writable for the broker's user."
    else:
        step = "Check the disk."
    return RecordUnavailable(f"Records cannot be written to {path.name} now ({error}).", next_step=step)


def _create(path: Path) -> None:
    """The file exists, is a file, and nobody but its owner can read it."""
    state = os.fstat(_descriptor(path))
    if not stat.S_ISREG(state.st_mode):
        raise RecordUnavailable(f"The database {path} is not a file.")
    if state.st_mode & 0o077:
        path.chmod(0o600)


def _descriptor(path: Path) -> int:
    """A descriptor of this file that stays open for as long as the process lives; made with the file if need be.

    Never closed, because POSIX drops all locks that a process has on a file when it closes any one descriptor of it:
    the locks of the SQLite connections this process has open, whose `-wal` another process would then delete under
    them (sqlite.org/howtocorrupt.html section 2.2).
    """
    with suppress(FileNotFoundError):
        state = path.stat()
        known = _KEPT.get((state.st_dev, state.st_ino))
        if known is not None:
            return known
        if not stat.S_ISREG(state.st_mode):
            raise RecordUnavailable(f"The database {path} is not a file.")
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    state = os.fstat(descriptor)
    return _KEPT.setdefault((state.st_dev, state.st_ino), descriptor)


def _is_new(path: Path) -> bool:
    """Whether nothing is in it yet. Raises RecordUnavailable when it is somebody else's. Changes nothing."""
    connection = connect(path, read_only=True)
    try:
        (tables,) = connection.execute("select count(*) from sqlite_schema").fetchone()
        (mark,) = connection.execute("pragma application_id").fetchone()
    finally:
        connection.close()
    if mark not in (0, APPLICATION_ID) or (mark == 0 and tables):
        raise RecordUnavailable(
            f"The database {path} is not a broker's.", next_step="Name another file in the settings (`database`)."
        )
    return mark == 0


def _let_shrink(path: Path) -> None:
    """Only possible before anything at all is in the file, so on a connection that asks for nothing else first."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("pragma auto_vacuum = incremental")
        connection.execute(f"pragma application_id = {APPLICATION_ID}")
    finally:
        connection.close()


def _apply(path: Path, connection: sqlite3.Connection, migrations: tuple[Migrations, ...]) -> None:
    for migration in migrations:
        newer = migration.unknown(connection)
        if newer:
            raise RecordUnavailable(
                f"The database {path} was changed by a newer broker ({migration.name}: {', '.join(sorted(newer))}).",
                next_step="Use that broker's version or a later one.",
            )
        migration.apply(connection)


@contextmanager
def _lock(path: Path) -> Generator[None]:
    """Be the only process that migrates. Raises RecordUnavailable after MIGRATE_S."""
    descriptor = os.open(path.with_name(path.name + ".lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        began, told = monotonic(), False
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                waited = monotonic() - began
                if waited > TELL_S and not told:
                    told = True
                    log.warning("another process migrates the database; waiting for it", database=str(path))
                if waited > MIGRATE_S:
                    raise RecordUnavailable(
                        f"Another process has been migrating {path} for {MIGRATE_S:.0f} s.",
                        next_step="End it and start again.",
                    ) from None
                sleep(0.02)
        yield
    finally:
        os.close(descriptor)
