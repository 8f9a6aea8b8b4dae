"""When records cannot be written: nothing is sent, `/readyz` tells, and it heals by itself within seconds.

Through `broker serve` and a real client; the backend's ledger says what was sent. The same in the store alone, with its
corners: tests/laws/test_store_fault.py.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from broker.verifier import verify
from tests.command import broker
from tests.crashing import Serving, house
from tests.ledger import Ledger, ledger_backend

HEALS_S = 5.0
LOCKED_S = 60.0 if os.environ.get("BROKER_TEST_CRASH") == "all" else 0.0
SETTINGS = "listen: {port: 0}\nwatch: false\n"
MANIFESTS = """
kind: backend
name: ledger
http: {base_url: "http://127.0.0.1:PORT", allow_private: true}
---
kind: tool
name: work
effect: write
scopes: [work]
backend: ledger
record: redacted
input: {type: object, properties: {text: {type: string}}}
http: {method: POST, path: /work}
---
kind: quota
name: daily
count: {limit: 1000, per: month}
by: [agent]
"""


@pytest.fixture
def ledger() -> Generator[Ledger]:
    with ledger_backend() as backend:
        yield backend


@contextmanager
def served(folder: Path, ledger: Ledger, database: Path | None = None) -> Generator[Serving]:
    """A broker that serves, has answered one call, and ends well; what was recorded is sound afterwards."""
    where = f"database: {database}\n" if database else ""
    credential = house(folder / "house", MANIFESTS.replace("PORT", str(ledger.server_port)), SETTINGS + where)
    serving = Serving(folder / "house", credential)
    try:
        assert not serving.call("work", {})["isError"]
        yield serving
        assert serving.stop() == 0
        assert serving.deaths == 0
    finally:
        serving.kill()
    assert verify(database or folder / "house" / "broker.db", None).ok


def refused(serving: Serving, **arguments: Any) -> dict[str, Any]:
    said = serving.call("work", arguments)
    assert said["isError"]
    assert said["structuredContent"]["code"] == "record_unavailable", said
    return said["structuredContent"]


def assert_closed(serving: Serving, ledger: Ledger) -> None:
    """Nothing leaves, quickly, and whoever probes is told why."""
    before, began = len(ledger.received), time.monotonic()
    for _ in range(3):
        said = refused(serving)
        assert said["effect"] == "none"
        assert said["retryable"]
    assert time.monotonic() - began < 3 * 5
    status, told = serving.get("/readyz")
    assert status == 503
    assert told["reasons"]
    assert serving.get("/healthz")[0] == 200
    assert len(ledger.received) == before


def assert_heals(serving: Serving, ledger: Ledger) -> None:
    until = time.monotonic() + HEALS_S
    while serving.get("/readyz")[0] != 200:
        assert time.monotonic() < until, "it does not heal"
        time.sleep(0.05)
    before = len(ledger.received)
    assert not serving.call("work", {})["isError"]
    assert len(ledger.received) == before + 1


@pytest.mark.parametrize(
    ("number", "writes"), [(errno.ENOSPC, 0), (errno.EIO, 1), (errno.EROFS, 0), (errno.ENOSPC, 5), (errno.EIO, 8)]
)
def test_a_disk_that_refuses_from_any_write_on_stops_calls_until_it_takes_them_again(
    tmp_path: Path, ledger: Ledger, number: int, writes: int
) -> None:
    with served(tmp_path, ledger) as serving:
        serving.shim.fail(number, after_writes=writes)
        before = len(ledger.received)
        effects = [refused(serving)["effect"] for _ in range(2)] if writes == 0 else []
        for _ in range(10 if writes else 0):
            said = serving.call("work", {})
            if said["isError"]:
                effects.append(said["structuredContent"]["effect"])
                break
        assert effects
        assert effects.count("done") <= len(ledger.received) - before
        assert_closed(serving, ledger)
        serving.shim.heal()
        assert_heals(serving, ledger)


def test_an_outcome_that_cannot_be_written_is_told_with_its_effect_and_written_later(
    tmp_path: Path, ledger: Ledger
) -> None:
    with served(tmp_path, ledger) as serving:
        ledger.on_receipt = lambda: serving.shim.fail(errno.ENOSPC)
        said = refused(serving)
        assert said["effect"] == "done"
        ledger.on_receipt = lambda: None
        assert_closed(serving, ledger)
        assert "outcomes wait" in " ".join(serving.get("/readyz")[1]["reasons"])
        serving.shim.heal()
        assert_heals(serving, ledger)
        found = broker("log", said["call_id"], "--json", cwd=serving.folder).json
        assert found["state"] == "succeeded", found


def test_a_lock_held_by_another_program_stops_calls_until_it_is_gone(tmp_path: Path, ledger: Ledger) -> None:
    with served(tmp_path, ledger) as serving:
        with closing(sqlite3.connect(serving.folder / "broker.db", isolation_level=None)) as other:
            other.execute("begin immediate")
            until = time.monotonic() + LOCKED_S
            assert_closed(serving, ledger)
            while time.monotonic() < until:
                assert_closed(serving, ledger)
            other.execute("rollback")
        assert_heals(serving, ledger)


@contextmanager
def small_disk(folder: Path) -> Generator[Path]:
    """A disk of 2 MB. Skips the test where none can be had."""
    folder.mkdir()
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("mounting a small disk takes Linux and root")
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_stops_calls_until_there_is_room(tmp_path: Path, ledger: Ledger) -> None:
    with small_disk(tmp_path / "disk") as disk, served(tmp_path, ledger, disk / "broker.db") as serving:
        for _ in range(2):
            ballast = disk / "ballast"
            with ballast.open("wb", buffering=0) as file:
                try:
                    while file.write(bytes(4096)) == 4096:
                        pass
                except OSError as full:
                    assert full.errno == errno.ENOSPC
            for _ in range(200):
                if serving.call("work", {"text": "x" * 20_000})["isError"]:
                    break
            assert_closed(serving, ledger)
            ballast.unlink()
            assert_heals(serving, ledger)


def test_a_read_only_disk_is_refused_at_start_with_what_to_do(tmp_path: Path, ledger: Ledger) -> None:
    with small_disk(tmp_path / "disk") as disk:
        with served(tmp_path, ledger, disk / "broker.db"):
            pass
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert_refuses_to_start(tmp_path / "house", "writable")


def test_a_damaged_database_is_refused_at_start_with_how_to_repair_it(tmp_path: Path, ledger: Ledger) -> None:
    with served(tmp_path, ledger):
        pass
    database = tmp_path / "house" / "broker.db"
    sound = database.read_bytes()
    for place in (0, 15, 16, 18, 21, 59):
        database.write_bytes(sound[:place] + bytes([sound[place] ^ 0x55]) + sound[place + 1 :])
        assert_refuses_to_start(tmp_path / "house", "damaged", ".recover")
    database.write_bytes(sound)
    serving = Serving(tmp_path / "house")
    assert serving.start()
    assert serving.stop() == 0
    assert len(ledger.received) == 1


def assert_refuses_to_start(folder: Path, *words: str) -> None:
    said = broker("serve", "--port", "0", cwd=folder)
    assert said.code == 1
    assert len(said.err.splitlines()) == 1, "one sentence, no traceback"
    for word in words:
        assert word in said.err
