"""Time units: the only place that converts them.

Instants are `int` milliseconds since 1970-01-01T00:00:00Z and are named `*_at_ms`; durations are
`int` milliseconds and are named `*_ms`. `datetime` appears at the edges only (SQL, JSON).
Whole minutes are the mathematical floor, so that rows telescope: the sum of the floors of the
differences is the floor of the sum, for credits (negative time) as well.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache


SECOND_MS = 1_000
MINUTE_MS = 60_000
HOUR_MS = 3_600_000
DAY_MS = 86_400_000

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)

INSTANT_MS_MIN = -62_135_596_800_000
"""0001-01-01T00:00:00Z: the earliest instant `datetime` can hold."""

INSTANT_MS_MAX = 253_402_300_799_999
"""9999-12-31T23:59:59.999Z: the latest instant `datetime` can hold."""


def whole_minutes(duration_ms: int) -> int:
    """Return floor(ms / 60,000): a started minute does not count, -1 ms is minute -1."""
    return duration_ms // MINUTE_MS


def minutes_added(before_ms: int, after_ms: int) -> int:
    """Return the whole minutes that moving a running total from before to after completes."""
    return whole_minutes(after_ms) - whole_minutes(before_ms)


def ceil_div(dividend: int, divisor: int) -> int:
    """Return the quotient rounded towards plus infinity, without a float."""
    return -(-dividend // divisor)


def from_datetime(instant: datetime) -> int:
    """Return the instant of an aware datetime in epoch milliseconds; microseconds are floored."""
    assert instant.tzinfo is not None, instant
    return (instant - EPOCH) // _MILLISECOND


def to_datetime(instant_ms: int) -> datetime:
    """Return the aware UTC datetime of an instant in epoch milliseconds."""
    return EPOCH + timedelta(milliseconds=instant_ms)


def day_start_ms(instant_ms: int) -> int:
    """Return the start of the UTC day that contains the instant (UTC days have no leap second)."""
    return instant_ms - instant_ms % DAY_MS


def rfc3339(instant_ms: int) -> str:
    """Return the instant as RFC 3339 with `Z`; milliseconds only when there are any."""
    second, millisecond = divmod(instant_ms, SECOND_MS)
    fraction = f".{millisecond:03}" if millisecond else ""
    return f"{_second_text(second)}{fraction}Z"


@lru_cache(maxsize=1_024)
def _second_text(second: int) -> str:
    """Return a second's text: of the instants of one second only the fraction differs."""
    return to_datetime(second * SECOND_MS).replace(tzinfo=None).isoformat(timespec="seconds")
