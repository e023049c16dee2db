"""A second opinion on the core: the contract's rules, written down as naively as possible.

It shares no code with `meterd.core`: plain dictionaries, sums over everything, no aggregates.
"""

from __future__ import annotations

import datetime as dt

import attrs


MINUTE_MS = 60_000
TIMEOUT_MS = 60_000
TASKS_PER_AGENT = 2
TASKS_PER_ORGANIZATION = 5
CLOSED_AFTER_MS = 24 * 3_600_000
TOLERANCE_MS = 5_000


@attrs.define
class BookLimits:
    """What the book knows of terms."""

    included_ms: int
    hard_ms: int | None
    agents: int | None
    new_in_grace: bool


@attrs.define
class BookPeriod:
    start_ms: int
    end_ms: int
    limits: BookLimits
    used_ms: int = 0


@attrs.define
class BookTask:
    agent_id: str
    started_ms: int
    reported_ms: int
    initial_ms: int = 0
    state: str = "running"
    elapsed_ms: int = 0
    billed_ms: int = 0
    lost_ms: int = 0


def next_month(instant_ms: int) -> int:
    """Walk day by day to the next first of a month."""
    day = dt.datetime.fromtimestamp(instant_ms / 1000, dt.UTC).date()
    day += dt.timedelta(days=1)
    while day.day != 1:
        day += dt.timedelta(days=1)
    start = dt.datetime(day.year, day.month, 1, tzinfo=dt.UTC)
    return int(start.timestamp()) * 1000


class NaiveBook:
    """One organization, kept by hand."""

    def __init__(self, start_ms: int, limits: BookLimits, now_ms: int) -> None:
        self.periods = [BookPeriod(start_ms, next_month(start_ms), limits)]
        self.tasks: dict[str, BookTask] = {}
        self.holds: set[str] = set()
        self.serving_ms = now_ms

    @property
    def limits(self) -> BookLimits:
        return self.periods[-1].limits

    @limits.setter
    def limits(self, limits: BookLimits) -> None:
        self.periods[-1].limits = limits

    def running(self) -> list[BookTask]:
        return [task for task in self.tasks.values() if task.state == "running"]

    def agents(self) -> set[str]:
        return {task.agent_id for task in self.running()}

    def pass_time(self, now_ms: int) -> None:
        """End periods by the clock and lose whoever has been silent for the time-out."""
        while now_ms >= self.periods[-1].end_ms:
            end_ms = self.periods[-1].end_ms
            self.periods.append(BookPeriod(end_ms, next_month(end_ms), self.limits))
        for task in self.running():
            if now_ms - max(task.reported_ms, self.serving_ms) >= TIMEOUT_MS:
                task.state, task.lost_ms = "lost", now_ms

    def projected(self, now_ms: int) -> int:
        period = self.periods[-1]
        silent = [
            min(TIMEOUT_MS, now_ms - max(task.reported_ms, period.start_ms))
            for task in self.running()
        ]
        return period.used_ms + sum(silent)

    def may_work(self, now_ms: int) -> bool:
        hard_ms = self.limits.hard_ms
        return not self.holds and (hard_ms is None or self.projected(now_ms) < hard_ms)

    def slot_denial(self, agent_id: str) -> str | None:
        mine = [task for task in self.running() if task.agent_id == agent_id]
        if len(mine) >= TASKS_PER_AGENT:
            return "agent_busy"
        limit = self.limits.agents
        if not mine and limit is not None and len(self.agents()) >= limit:
            return "agent_limit_reached"
        return "task_limit_reached" if len(self.running()) >= TASKS_PER_ORGANIZATION else None

    def denial(self, agent_id: str, now_ms: int) -> str | None:
        if self.holds:
            return "suspended"
        limits = self.limits
        if limits.hard_ms is not None:
            line_ms = limits.hard_ms if limits.new_in_grace else limits.included_ms
            if self.projected(now_ms) >= line_ms:
                return "plan_limit_reached"
        return self.slot_denial(agent_id)

    def quota(self, now_ms: int) -> str:
        if self.holds:
            return "suspended"
        if self.limits.hard_ms is None:
            return "unlimited"
        projected = self.projected(now_ms)
        if projected >= self.limits.hard_ms:
            return "exceeded"
        if projected >= self.limits.included_ms:
            return "grace"
        return "warning" if projected * 10 >= self.limits.included_ms * 8 else "ok"

    def start(self, task_id: str, agent_id: str, initial_ms: int, now_ms: int) -> str | None:
        reason = self.denial(agent_id, now_ms)
        if reason is None:
            self.tasks[task_id] = BookTask(agent_id, now_ms, now_ms, initial_ms)
            self._advance(self.tasks[task_id], initial_ms, now_ms)
        return reason

    def report(self, task_id: str, claimed_ms: int, now_ms: int, outcome: str | None) -> str:
        """Take a heartbeat (outcome None) or a finish; return what the agent is told."""
        task = self.tasks.get(task_id)
        if task is None:
            return "unknown"
        if task.state == "finished":
            return "finished"
        if task.state == "lost" and now_ms >= task.lost_ms + CLOSED_AFTER_MS:
            return "closed"
        possible_ms = task.initial_ms + now_ms - task.started_ms + TOLERANCE_MS
        accepted_ms = max(task.elapsed_ms, min(claimed_ms, possible_ms))
        task.reported_ms = now_ms
        self._advance(task, accepted_ms, now_ms)
        if outcome is not None:
            task.state = "finished"
            return "finished"
        if not self.may_work(now_ms):
            return "stop"
        if task.state == "lost":
            if self.slot_denial(task.agent_id) is not None:
                return "stop"
            task.state = "running"
        return "continue"

    def _advance(self, task: BookTask, elapsed_ms: int, now_ms: int) -> None:
        from_ms = now_ms - (elapsed_ms - task.elapsed_ms)
        task.elapsed_ms = elapsed_ms
        for index, period in enumerate(self.periods):
            start_ms = from_ms if index == 0 else period.start_ms
            ran_ms = max(0, min(now_ms, period.end_ms) - max(from_ms, start_ms))
            if period.limits.hard_ms is not None:
                ran_ms = min(ran_ms, max(0, period.limits.hard_ms - period.used_ms))
            period.used_ms += ran_ms
            task.billed_ms += ran_ms

    def adjust(self, period: BookPeriod, agent_ms: int) -> str:
        hard_ms = period.limits.hard_ms
        if period.used_ms + agent_ms < 0:
            return "credit"
        if agent_ms > 0 and hard_ms is not None and period.used_ms + agent_ms > hard_ms:
            return "debit"
        period.used_ms += agent_ms
        return "booked"
