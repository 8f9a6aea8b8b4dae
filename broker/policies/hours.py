"""Working hours: which part of a length of time counts for a hold whose reviewers are not always there.

Outside of the hours the hold's clock stands still: what expires after four working hours, asked on a Friday evening,
expires on Monday. People may decide at any time; only the time they are given is counted in hours they work.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from typing import Literal
from zoneinfo import ZoneInfo

from broker.data import dataclass

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS: tuple[Day, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
MOST_DAYS = 1_000  # looked through; a hold of 366 days of one hour a week is cut here, which is sooner

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Hours:
    """days: of the week. begins, ends: local times of a day, begins < ends."""

    days: frozenset[Day]
    begins: time
    ends: time
    zone: ZoneInfo

    def after(self, now_ms: int, working_ms: int) -> int:
        """The instant at which so much working time has passed since now, in UTC milliseconds."""
        left = working_ms
        day = (_EPOCH + timedelta(milliseconds=now_ms)).astimezone(self.zone).date() - timedelta(days=1)
        last = now_ms
        for _ in range(MOST_DAYS):
            day += timedelta(days=1)
            if DAYS[day.weekday()] not in self.days:
                continue
            begin, end = max(now_ms, self._instant(day, self.begins)), self._instant(day, self.ends)
            if end <= begin:
                continue
            if left <= end - begin:
                return begin + left
            left -= end - begin
            last = end
        return last

    def _instant(self, day: date, at: time) -> int:
        """A local time that the clock skips is read with the offset before the gap."""
        local = datetime.combine(day, at, tzinfo=self.zone)
        return round((local.astimezone(UTC) - _EPOCH).total_seconds() * 1000)
