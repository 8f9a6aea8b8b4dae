"""The locks of a process on its database outlive whatever else the same process does with the file.

POSIX drops all of them when any one descriptor of the file is closed; another process that closes the database last
would then delete the write-ahead log under the one that still writes.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from broker.stores.sqlite.directory import SqliteDirectory
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
