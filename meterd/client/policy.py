"""What the application declares once: what to do without meterd, and when told to stop.

Both unreachable policies cover a start and a running task. A start waits `start_timeout_ms`
for an answer; then `FailClosed` refuses it and `FailOpen` lets it run undeclared, to be declared
as soon as meterd answers. A running task goes on through an outage, its time being cumulative,
until `running_minutes` have passed without an acknowledgement.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


MS_PER_MINUTE = 60_000
UNDECLARED_MS_MAX = 300_000
"""Most a `start` may declare as already run (contract §3.5): 5 minutes, in milliseconds."""
RUNNING_MINUTES_MAX = 1_440
"""meterd takes reports of a task it lost for 24 hours; after that they are `task_closed`."""

OnStop = Literal["cancel", "finish_step"]
"""`cancel` ends the body at once; `finish_step` only sets `task.stop_requested`."""
Outcome = Literal["succeeded", "failed", "cancelled"]
"""How a task ended, as meterd stores it."""


def _check_minutes(name: str, minutes: int, most: int) -> None:
    if not 1 <= minutes <= most:
        raise ValueError(f"{name} must be a whole number from 1 to {most}, not {minutes!r}")


@dataclass(frozen=True, kw_only=True)
class FailOpen:
    """Start without meterd, and run undeclared for at most `minutes`; nothing is lost later.

    `minutes` is at most 5, what meterd lets a late `start` declare: more could not be metered.
    """

    minutes: int = 5
    running_minutes: int = RUNNING_MINUTES_MAX

    def __post_init__(self) -> None:
        """Refuse minutes that could not be metered afterwards."""
        _check_minutes("minutes", self.minutes, UNDECLARED_MS_MAX // MS_PER_MINUTE)
        _check_minutes("running_minutes", self.running_minutes, RUNNING_MINUTES_MAX)


@dataclass(frozen=True, kw_only=True)
class FailClosed:
    """Start nothing without meterd's word; a running task stops after `running_minutes`."""

    running_minutes: int = 5

    def __post_init__(self) -> None:
        """Refuse a bound meterd would not honour."""
        _check_minutes("running_minutes", self.running_minutes, RUNNING_MINUTES_MAX)


UnreachablePolicy = FailOpen | FailClosed


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The session's limits, all integer milliseconds or counts; the defaults suit most."""

    unreachable: UnreachablePolicy = FailClosed()
    start_timeout_ms: int = 10_000
    """How long a start waits for an answer before the unreachable policy decides. Not less than
    `backoff_ms_max`, so that a start never fails without a new attempt to connect."""
    retry_ms: int = 15_000
    """A start or finish without an answer is sent again after this, on the same connection."""
    backoff_ms: int = 500
    """First ceiling of the full-jitter back-off; it doubles with every failure."""
    backoff_ms_max: int = 10_000
    """Last ceiling of the back-off: well under the 60 s after which meterd calls a task lost."""
    heartbeat_interval_ms: int = 10_000
    """Used until meterd names its own interval in `started`."""
    tasks_max: int = 10_000
    """Tasks in memory, running or waiting to be settled; past it a start is `TooManyTasks`."""

    def __post_init__(self) -> None:
        """Refuse limits of zero or less: each of them is a wait or a bound."""
        for name in (
            "start_timeout_ms",
            "retry_ms",
            "backoff_ms",
            "backoff_ms_max",
            "heartbeat_interval_ms",
            "tasks_max",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)!r}")
