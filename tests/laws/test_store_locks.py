"""The locks of a process on its database outlive whatever else the same process does with the file.

POSIX drops all of them when any one descriptor of the file is closed; another process that closes the database last
would then delete the write-ahead log under the one that still writes. And the lock of those that migrate it.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from structlog.testing import CapturingLogger

from broker.stores.sqlite import database
from broker.stores.sqlite.directory import SqliteDirectory
from broker.stores.sqlite.schema import MIGRATIONS
from tests.records import HandClock, intent, open_store

pytestmark = pytest.mark.anyio

COME_AND_GO = (
    "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); db.execute('select * from entry').fetchall(); db.close()"
)


async def test_another_process_that_comes_and_goes_leaves_the_log_of_a_working_one(tmp_path: Path) -> None:
    path = tmp_path / "broker.db"
    store = await open_store(tmp_path)
    directory = SqliteDirectory.open(path, clock=HandClock())
    try:
        await store.admit(intent())
        log = (tmp_path / "broker.db-wal").stat().st_ino
        subprocess.run([sys.executable, "-c", COME_AND_GO, str(path)], check=True, timeout=20)
        assert (tmp_path / "broker.db-wal").stat().st_ino == log
        await store.admit(intent())
        assert not store.fault
    finally:
        directory.close()
        await store.aclose()


async def test_who_starts_while_another_process_migrates_says_so_and_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = CapturingLogger()
    monkeypatch.setattr(database, "TELL_S", 0.0)
    monkeypatch.setattr(database, "log", log)
    path = tmp_path / "broker.db"
    other = os.open(path.with_name("broker.db.lock"), os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(other, fcntl.LOCK_EX)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.to_thread.run_sync, lambda: database.migrate(path, MIGRATIONS))
        try:
            with anyio.fail_after(30):
                while not log.calls:
                    await anyio.sleep(0.01)
            assert not path.exists()
        finally:
            os.close(other)
    (told,) = log.calls
    assert (told.method_name, told.args) == ("warning", ("another process migrates the database; waiting for it",))
    assert path.exists()
