"""Tasks: one execution by an agent, known by its cumulative elapsed time.

Life: running → finished, or running → lost → running (resumed) or finished; lost for good after
24 hours. Every report is cumulative, so repeating or losing one never changes a bill.
A task's accepted time splits exactly into what is billed (`metered_ms`) and what lies past a hard
limit (`unbilled_ms`); of the billed time `recorded_ms` is already in ledger rows.
"""

from __future__ import annotations

import enum

import attrs

from meterd.core.units import DAY_MS, HOUR_MS, MINUTE_MS, SECOND_MS


ELAPSED_MS_MAX = 2_678_400_000
"""31 days: the longest a task may claim to have run."""

START_ELAPSED_MS_MAX = 5 * MINUTE_MS
"""Time an agent may have run before `start`, because meterd was away."""

CLAIM_TOLERANCE_MS = 5 * SECOND_MS
"""How far a report may run ahead of meterd's own observation of the task."""

LOST_REPORTS_MS = DAY_MS
"""How long a lost task may still report."""

LOST_KEPT_MAX = 10_000
"""Lost tasks of an organization in memory; earlier ones are looked up when they report."""

PACE_WINDOW_MS = 5 * MINUTE_MS
"""Reporting under 90 % of the observed time for this long is a finding."""

PACE_PERCENT_MIN = 90

LOST_AT_ZERO_MAX = 3
"""More tasks than this lost without any reported time within an hour are a finding."""

LOST_AT_ZERO_WINDOW_MS = HOUR_MS


class TaskState(enum.Enum):
    """Where a task is in its life."""

    RUNNING = "running"
    FINISHED = "finished"
    LOST = "lost"


class TaskOutcome(enum.Enum):
    """How an agent says its task ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Plausibility(enum.Enum):
    """What happens to a report that claims more time than can have passed."""

    ENFORCE = "enforce"
    REPORT = "report"
    OFF = "off"


@attrs.frozen(kw_only=True)
class TaskInfo:
    """What a task was started with; never changes."""

    task_id: str
    agent_id: str
    user_id: str | None = None
    metadata_json: str = "{}"
    """Canonical JSON (sorted keys, no spaces), so that equal metadata compare equal."""
    initial_elapsed_ms: int = 0
    started_at_ms: int


@attrs.frozen(slots=False)  # made per heartbeat: frozen and slotted takes twice as long to make
class Task:
    """A task's position; positional, because one is made per heartbeat."""

    info: TaskInfo
    state: TaskState
    outcome: TaskOutcome | None
    elapsed_ms: int
    """Accepted: the largest plausible cumulative report."""
    metered_ms: int
    """Billed: the part of it inside the limits."""
    recorded_ms: int
    """The part of the billed time that is in ledger rows."""
    reported_at_ms: int
    """Last sign of life."""
    metered_until_ms: int
    """End of the last billed time; the pending (unrecorded) time ends here."""
    ended_at_ms: int | None
    """Finished: when. Lost: when it was declared lost."""
    burning_from_ms: int
    """Projected use counts from here: the last report, or later after a start or a new period."""
    pace_from_ms: int
    """Start of the window in which reported and observed time are compared."""
    pace_elapsed_ms: int
    seq: int
    """The organization's fact that last changed this task."""

    @property
    def unbilled_ms(self) -> int:
        """Return the accepted time past a hard limit, which is never billed."""
        return self.elapsed_ms - self.metered_ms

    @property
    def pending_ms(self) -> int:
        """Return the billed time that is not in ledger rows yet."""
        return self.metered_ms - self.recorded_ms

    @property
    def task_id(self) -> str:
        """Return the id, unique within the organization."""
        return self.info.task_id

    @property
    def finished_at_ms(self) -> int | None:
        """Return when it ended: its end, or the last heartbeat of a lost task."""
        return self.reported_at_ms if self.state is TaskState.LOST else self.ended_at_ms


def plausible_elapsed_ms(info: TaskInfo, now_ms: int, slowed_ms: int = 0) -> int:
    """Return the largest cumulative claim that can be true now.

    `slowed_ms` is the real time since the start that our clock has left out.
    """
    observed_ms = now_ms - info.started_at_ms + slowed_ms
    return info.initial_elapsed_ms + observed_ms + CLAIM_TOLERANCE_MS


def accepted_elapsed_ms(task: Task, claimed_ms: int, now_ms: int, slowed_ms: int = 0) -> int:
    """Return how much of a cumulative claim can be true, never less than was accepted before."""
    plausible_ms = plausible_elapsed_ms(task.info, now_ms, slowed_ms)
    return max(task.elapsed_ms, min(claimed_ms, plausible_ms))


def is_same_start(known: TaskInfo, asked: TaskInfo) -> bool:
    """Tell whether a repeated start says the same as the first one did."""
    return attrs.evolve(asked, started_at_ms=known.started_at_ms) == known
