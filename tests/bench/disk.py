"""What the disk takes for itself: one row committed as durably as the broker's records are. A call waits for two such
commits, whatever a broker costs, so its latency at one caller can only be read beside this."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path
from statistics import median, quantiles

COMMITS = 300


def commit_ms(folder: Path) -> tuple[float, float]:
    """p50 and p99 of a commit, in milliseconds, by one writer with nothing else to do."""
    took: list[float] = []
    with closing(sqlite3.connect(folder / "disk.db", isolation_level=None)) as db:
        db.execute("pragma journal_mode = wal")
        db.execute("pragma synchronous = full")
        db.execute("create table row (body text)")
        for _ in range(COMMITS):
            began = time.perf_counter()
            db.execute("begin immediate")
            db.execute("insert into row values (?)", ("x" * 500,))
            db.execute("commit")
            took.append((time.perf_counter() - began) * 1000)
    return median(took), quantiles(took, n=100)[98]
