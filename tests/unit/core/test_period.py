from __future__ import annotations

from datetime import UTC, datetime

import attrs
import pytest

from meterd.core.period import add_months, calendar_period, label_for, with_used_ms
from meterd.core.units import from_datetime
from tests.organizations import MARCH_MS, NOON_MS


def at(year: int, month: int, day: int) -> int:
    return from_datetime(datetime(year, month, day, 9, 30, tzinfo=UTC))


@pytest.mark.parametrize(
    ("months", "expected"),
    [
        (1, at(2028, 2, 29)), (2, at(2028, 3, 31)), (3, at(2028, 4, 30)), (13, at(2029, 2, 28)),
        (12, at(2029, 1, 31)), (-1, at(2027, 12, 31)), (0, at(2028, 1, 31)),
    ],
)  # fmt: skip
def test_the_31st_is_clipped_and_comes_back(months: int, expected: int) -> None:
    """Every step is counted from the anchor, so no short month loses the day."""
    assert add_months(at(2028, 1, 31), months) == expected


def test_the_calendar_period_is_the_month_around_an_instant() -> None:
    """Half-open: its end is the first instant of the next."""
    period = calendar_period(NOON_MS, terms_seq=3)

    assert (period.label, period.end_ms, period.terms_seq) == ("2026-02", MARCH_MS, 3)
    assert calendar_period(MARCH_MS - 1, terms_seq=3) == period
    assert calendar_period(MARCH_MS, terms_seq=3).start_ms == MARCH_MS


def test_labels_get_finer_when_a_month_has_several_periods() -> None:
    """Month, day, second, and at last the millisecond; each assigned once."""
    start_ms = NOON_MS + 7
    labels: list[str] = []
    for _ in range(4):
        labels.append(label_for(start_ms, labels))

    assert labels == [
        "2026-02",
        "2026-02-12",
        "2026-02-12T12:00:00Z",
        "2026-02-12T12:00:00.007Z",
    ]


def test_a_period_with_other_used_time_is_otherwise_the_same() -> None:
    """The quick copy keeps every field, those that are added later too."""
    period = attrs.evolve(
        calendar_period(NOON_MS, terms_seq=3), recorded_ms=5, api_calls=7, websocket_ms=9
    )
    changed = with_used_ms(period, 11)

    assert changed == attrs.evolve(period, used_ms=11)
    assert period.used_ms == 0
