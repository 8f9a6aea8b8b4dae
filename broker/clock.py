"""What time it is: the system's clock; in tests one that a file moves (`testing.clock_file`).

Only what asks `ports.Clock` sees a moved clock: quotas, holds, tokens, records. Deadlines and waits run on the
monotonic clock, which nothing sets.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from time import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # settings bring pydantic, which `broker --help` does not wait for
    from broker.settings import Settings


class SystemClock:
    """ports.Clock on the system's clock."""

    def now_ms(self) -> int:
        return int(time() * 1000)


class FileClock:
    """The system's clock, moved as the file says at this moment: by seconds (`+3600`, `-0.5`), or stopped at a time of
    RFC 3339 with its zone (`2026-03-29T01:59:59.999+01:00`). No file is no move. While the file says neither, as when
    it is being written, the clock goes on as it did before.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ahead_ms = 0
        self._stopped_ms: int | None = None

    def now_ms(self) -> int:
        self._read()
        return int(time() * 1000) + self._ahead_ms if self._stopped_ms is None else self._stopped_ms

    def _read(self) -> None:
        try:
            said = self._path.read_text("utf-8").strip()
        except FileNotFoundError:
            said = "+0"
        try:
            if said[:1] in ("+", "-"):
                self._ahead_ms, self._stopped_ms = round(float(said) * 1000), None
            else:
                self._stopped_ms = _instant_ms(said)
        except (ValueError, OverflowError):
            return


def _instant_ms(said: str) -> int:
    """Raises ValueError for what is no time, or has no zone."""
    at = datetime.fromisoformat(said)
    if at.tzinfo is None:
        raise ValueError("a time without its zone")
    return round(at.timestamp() * 1000)


def clock_of(settings: Settings) -> SystemClock | FileClock:
    file = settings.testing.clock_file
    return FileClock(settings.directory / file) if file else SystemClock()
