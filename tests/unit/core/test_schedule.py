"""When jobs run: over changes of clocks, leap days, downtime and wrong clocks."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, time, tzinfo
from zoneinfo import ZoneInfo

import pytest

from meterd.core.schedule import (
    Daily,
    Hourly,
    Occurrence,
    Schedule,
    due,
    following,
    last_whole_day_ms,
    latest,
)
from meterd.core.units import DAY_MS, HOUR_MS, MINUTE_MS, from_datetime, rfc3339


BERLIN = ZoneInfo("Europe/Berlin")
NEW_YORK = ZoneInfo("America/New_York")
LORD_HOWE = ZoneInfo("Australia/Lord_Howe")
AT_HALF_PAST_TWO = Daily(time(2, 30))


def at(text: str) -> int:
    """Return an instant written as UTC."""
    return from_datetime(datetime.fromisoformat(text).replace(tzinfo=UTC))


def runs_of(
    schedule: Schedule, zone: tzinfo, start: str, end: str, *, look_ms: int
) -> list[Occurrence]:
    """Return what a scheduler runs that looks every so often."""
    now_ms, end_ms = at(start), at(end)
    settled = latest(schedule, zone, now_ms)
    found = []
    while now_ms < end_ms:
        now_ms += look_ms
        occurrence = due(schedule, zone, settled, now_ms)
        if occurrence is not None:
            found.append(occurrence)
            settled = occurrence
    return found


def test_a_day_on_which_the_clocks_skip_the_time_has_one_run_as_long_after_midnight() -> None:
    """At 02:30 on 29 March 2026 Berlin has no such time; the run comes 2.5 h after midnight."""
    occurrence = latest(AT_HALF_PAST_TWO, BERLIN, at("2026-03-29T12:00"))

    assert occurrence == Occurrence(at_ms=at("2026-03-29T01:30"), subject="2026-03-29")


def test_a_time_that_comes_twice_runs_the_first_time_only() -> None:
    """On 25 October 2026 Berlin has 02:30 at 00:30 and at 01:30 UTC."""
    first = latest(AT_HALF_PAST_TWO, BERLIN, at("2026-10-25T00:30"))

    assert first == Occurrence(at_ms=at("2026-10-25T00:30"), subject="2026-10-25")
    assert due(AT_HALF_PAST_TWO, BERLIN, first, at("2026-10-25T01:30")) is None
    assert following(AT_HALF_PAST_TWO, BERLIN, first.at_ms).subject == "2026-10-26"


@pytest.mark.parametrize("zone", [UTC, BERLIN, NEW_YORK, LORD_HOWE])
@pytest.mark.parametrize("hour", [0, 2, 6, 23])
def test_a_leap_year_has_366_daily_runs_in_every_zone(zone: tzinfo, hour: int) -> None:
    """Every local date once, 29 February included, whatever the clocks do."""
    schedule = Daily(time(hour, 15))
    found = runs_of(schedule, zone, "2028-01-01T12:00", "2028-12-31T23:59", look_ms=HOUR_MS // 2)
    subjects = [each.subject for each in found]

    assert len(set(subjects)) == len(subjects)
    assert subjects[0] in {"2028-01-01", "2028-01-02"}
    assert "2028-02-29" in subjects
    assert 364 <= len(subjects) <= 366
    assert all(23 <= (b.at_ms - a.at_ms) // HOUR_MS <= 25 for a, b in itertools.pairwise(found))


def test_a_year_of_hours_is_8760_hourly_runs() -> None:
    """Hours are counted in UTC, so no change of clocks skips or doubles one."""
    found = runs_of(
        Hourly(20), BERLIN, "2026-01-01T00:20", "2027-01-01T00:20", look_ms=20 * MINUTE_MS
    )

    assert len({each.subject for each in found}) == 8_760
    assert all(each.at_ms % HOUR_MS == 20 * MINUTE_MS for each in found)


def test_what_was_missed_is_caught_up_once_for_the_latest_day() -> None:
    """A meterd that was down for a week makes one run, not seven."""
    schedule = Daily(time(6, 0))
    settled = latest(schedule, UTC, at("2026-03-01T07:00"))
    caught_up = due(schedule, UTC, settled, at("2026-03-08T09:00"))

    assert caught_up == Occurrence(at_ms=at("2026-03-08T06:00"), subject="2026-03-08")
    assert due(schedule, UTC, caught_up, at("2026-03-08T23:59")) is None


def test_a_clock_that_goes_back_a_little_repeats_nothing() -> None:
    """A step of a day back must not run the same day again."""
    schedule = Daily(time(6, 0))
    settled = latest(schedule, UTC, at("2026-03-08T09:00"))

    assert due(schedule, UTC, settled, at("2026-03-07T09:00")) is None
    assert due(schedule, UTC, settled, at("2026-03-08T06:00")) is None


def test_a_clock_that_was_years_ahead_does_not_stop_jobs_for_years() -> None:
    """What a wrong clock has settled in 2036 is forgotten when the clock is right again."""
    schedule = Daily(time(6, 0))
    settled = latest(schedule, UTC, at("2036-03-08T09:00"))
    occurrence = due(schedule, UTC, settled, at("2026-03-08T09:00"))

    assert occurrence is not None
    assert occurrence.subject == "2026-03-08"


def test_another_time_zone_does_not_run_a_day_twice() -> None:
    """The operator moves the report from UTC to New York after it was made."""
    schedule = Daily(time(6, 0))
    settled = latest(schedule, UTC, at("2026-03-08T09:00"))

    assert due(schedule, NEW_YORK, settled, at("2026-03-08T23:00")) is None
    assert due(schedule, NEW_YORK, settled, at("2026-03-09T23:00")) is not None


def test_the_last_whole_day_has_ended() -> None:
    """At midnight sharp the day before is over, a millisecond earlier it is not."""
    midnight_ms = at("2026-03-08T00:00")

    assert rfc3339(last_whole_day_ms(midnight_ms))[:10] == "2026-03-07"
    assert last_whole_day_ms(midnight_ms - 1) == midnight_ms - 2 * DAY_MS
