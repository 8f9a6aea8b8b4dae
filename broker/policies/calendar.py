"""Calendar windows: the minute, hour, day, week or month a moment lies in, as a pair of instants.

Minutes and hours are UTC's: they are the same everywhere but in half-hour zones, and local ones would overlap when a
clock is put back. Days, weeks (from Monday) and months begin at local midnight of a time zone, or at the first instant
after it where the clock skips it; so a day has 23, 24 or 25 hours and no instant lies in two windows.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import Literal

Period = Literal["minute", "hour", "day", "week", "month"]

_FIXED_MS = {"minute": 60_000, "hour": 3_600_000}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def window(period: Period, zone: tzinfo, now_ms: int) -> tuple[int, int]:
    """[start, end) in UTC milliseconds of the window that now lies in."""
    if (width := _FIXED_MS.get(period)) is not None:
        start = now_ms - now_ms % width
        return start, start + width
    first = _first_day(period, (_EPOCH + timedelta(milliseconds=now_ms)).astimezone(zone).date())
    start, following = _midnight_ms(first, zone), _following(period, first)
    end = _midnight_ms(following, zone)
    if now_ms >= end:  # the clock was put back over midnight: the window that began stays the one
        start, end = end, _midnight_ms(_following(period, following), zone)
    return start, end


def _first_day(period: Period, day: date) -> date:
    if period == "week":
        return day - timedelta(days=day.weekday())
    return day.replace(day=1) if period == "month" else day


def _following(period: Period, first: date) -> date:
    if period == "month":
        return (first.replace(day=28) + timedelta(days=4)).replace(day=1)
    return first + timedelta(days=7 if period == "week" else 1)


def _midnight_ms(day: date, zone: tzinfo) -> int:
    """The instant a local day begins. A midnight that is skipped is read with the offset before the gap (fold 0), which
    is the instant of the gap; one that comes twice is the first of the two.
    """
    midnight = datetime(day.year, day.month, day.day, tzinfo=zone, fold=0)
    return round((midnight.astimezone(UTC) - _EPOCH).total_seconds() * 1000)
