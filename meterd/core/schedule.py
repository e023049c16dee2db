"""When jobs run: once an hour, or once a day at a time of day in a named time zone.

Rule 1: a job runs once for each occurrence; what was missed while meterd was down is caught up
        once, for the latest occurrence only.
Rule 2: an occurrence is named by the hour or the local date it is for, and is never run twice
        under one name, whatever clocks and time zones do.
Rule 3: a time of day that a change of clocks skips is taken as if the clocks had not changed yet;
        one that comes twice is taken the first time.
"""

from __future__ import annotations

import enum
from datetime import datetime, time, timedelta, tzinfo

import attrs

from meterd.core.units import DAY_MS, HOUR_MS, MINUTE_MS, from_datetime, rfc3339, to_datetime


CLOCK_WAS_AHEAD_MS = 2 * DAY_MS
"""An occurrence this far ahead of now was settled by a clock that was wrong and is forgotten."""


@attrs.frozen
class Hourly:
    """Once an hour, so many minutes past it (UTC)."""

    minute: int = 0

    def __attrs_post_init__(self) -> None:
        """Refuse a minute that no hour has."""
        assert 0 <= self.minute < 60, self  # noqa: PLR2004

    def __str__(self) -> str:
        """Return the schedule for people."""
        return f"hourly at :{self.minute:02}"


@attrs.frozen
class Daily:
    """Once a day, at a time of day."""

    at: time

    def __str__(self) -> str:
        """Return the schedule for people."""
        return f"daily at {self.at:%H:%M}"


Schedule = Hourly | Daily


class Outcome(enum.Enum):
    """What became of a run."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    """Meterd ended in the middle of it."""


class Trigger(enum.Enum):
    """Why a run was started."""

    SCHEDULE = "schedule"
    OPERATOR = "operator"


@attrs.frozen(kw_only=True)
class Occurrence:
    """One time at which a job is to run."""

    at_ms: int
    subject: str
    """What it is for: the local date `2026-02-12`, or the UTC hour `2026-02-12T14Z`."""


@attrs.frozen(kw_only=True)
class JobRecord:
    """What is remembered of a job."""

    name: str
    settled: Occurrence
    """The latest occurrence that needs no more work: it succeeded or was given up."""
    last_run_at_ms: int | None = None
    last_finished_at_ms: int | None = None
    last_outcome: Outcome | None = None
    last_error: str | None = None


@attrs.frozen(kw_only=True)
class JobRun:
    """One run of a job."""

    id: str
    job: str
    subject: str
    trigger: Trigger
    tries: int
    started_at_ms: int
    finished_at_ms: int | None = None
    outcome: Outcome = Outcome.RUNNING
    detail_json: str = "{}"


def latest(schedule: Schedule, zone: tzinfo, now_ms: int) -> Occurrence:
    """Return the latest occurrence at or before an instant."""
    if isinstance(schedule, Hourly):
        past_ms = schedule.minute * MINUTE_MS
        return _hour(now_ms - (now_ms - past_ms) % HOUR_MS)
    today = _local(now_ms, zone)
    found = (_day(schedule, zone, today + timedelta(days=step)) for step in (1, 0, -1, -2))
    return next(each for each in found if each.at_ms <= now_ms)


def following(schedule: Schedule, zone: tzinfo, now_ms: int) -> Occurrence:
    """Return the first occurrence after an instant."""
    if isinstance(schedule, Hourly):
        return _hour(latest(schedule, zone, now_ms).at_ms + HOUR_MS)
    today = _local(now_ms, zone)
    found = (_day(schedule, zone, today + timedelta(days=step)) for step in (-1, 0, 1, 2))
    return next(each for each in found if each.at_ms > now_ms)


def due(schedule: Schedule, zone: tzinfo, settled: Occurrence, now_ms: int) -> Occurrence | None:
    """Return the occurrence to run now, or None; however many were missed, it is the latest."""
    occurrence = latest(schedule, zone, now_ms)
    if occurrence.subject == settled.subject:
        return None
    is_clock_back = settled.at_ms > now_ms + CLOCK_WAS_AHEAD_MS
    return occurrence if occurrence.at_ms > settled.at_ms or is_clock_back else None


def last_whole_day_ms(instant_ms: int) -> int:
    """Return the start of the last UTC day that has ended at an instant."""
    return instant_ms - instant_ms % DAY_MS - DAY_MS


def _hour(at_ms: int) -> Occurrence:
    return Occurrence(at_ms=at_ms, subject=f"{rfc3339(at_ms - at_ms % HOUR_MS)[:13]}Z")


def _local(instant_ms: int, zone: tzinfo) -> datetime:
    return to_datetime(instant_ms).astimezone(zone)


def _day(schedule: Daily, zone: tzinfo, day: datetime) -> Occurrence:
    local = datetime.combine(day.date(), schedule.at, tzinfo=zone)
    return Occurrence(at_ms=from_datetime(local), subject=day.date().isoformat())
