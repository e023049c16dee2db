from __future__ import annotations

from datetime import UTC, datetime

import pytest

from meterd.core.units import (
    INSTANT_MS_MAX,
    INSTANT_MS_MIN,
    ceil_div,
    day_start_ms,
    from_datetime,
    minutes_added,
    rfc3339,
    to_datetime,
    whole_minutes,
)


@pytest.mark.parametrize(
    ("duration_ms", "minutes"),
    [(0, 0), (59_999, 0), (60_000, 1), (60_001, 1), (-1, -1), (-60_000, -1), (-60_001, -2)],
)
def test_minutes_are_the_mathematical_floor(duration_ms: int, minutes: int) -> None:
    """A started minute is never billed, and a credit of a millisecond takes one back."""
    assert whole_minutes(duration_ms) == minutes
    assert minutes_added(0, duration_ms) == minutes


def test_ceil_div_rounds_up_without_a_float() -> None:
    """Whatever is left of a millisecond needs one more."""
    assert [ceil_div(7, 2), ceil_div(8, 2), ceil_div(-7, 2)] == [4, 4, -3]


def test_the_bounds_are_the_ones_datetime_has() -> None:
    """Outside of them every conversion would raise."""
    assert to_datetime(INSTANT_MS_MIN) == datetime(1, 1, 1, tzinfo=UTC)
    assert to_datetime(INSTANT_MS_MAX).isoformat() == "9999-12-31T23:59:59.999000+00:00"
    assert from_datetime(datetime.max.replace(tzinfo=UTC)) == INSTANT_MS_MAX


def test_a_naive_datetime_is_refused() -> None:
    """Guessing a zone would move a bill by hours."""
    with pytest.raises(AssertionError):
        from_datetime(datetime(2026, 2, 12))  # noqa: DTZ001  # the point of the test


def test_a_day_starts_at_utc_midnight() -> None:
    """Also before 1970."""
    assert [day_start_ms(ms) for ms in (0, 86_399_999, 86_400_000, -1)] == [
        0,
        0,
        86_400_000,
        -86_400_000,
    ]


def test_milliseconds_are_written_only_when_there_are_any() -> None:
    """RFC 3339 with Z, as short as it is exact."""
    assert rfc3339(1_770_854_400_000) == "2026-02-12T00:00:00Z"
    assert rfc3339(1_770_854_400_007) == "2026-02-12T00:00:00.007Z"
