"""A decision in the making: how reported time becomes positions, counters and rows.

A `Draft` reads the state, never writes to it, and collects what will be facts.

Rule 1: a report is read backwards from now, so each part lands in the period and UTC day it ran in.
Rule 2: each part meets its own period's limit; what is past it is never billed, then or later.
Rule 3: billed time stays pending on its task until a row is due: the record interval, the task's
        end, a new day or period, the included/overage line, the hard limit, and before any change
        of terms or adjustment. So rows are few, and time is priced under the terms it ran under.
Rule 4: pending time always lies in the open period and in one UTC day.
"""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from meterd.core.commands import (
    Decision,
    Notice,
    Outcome,
    QuotaChanged,
    StopTasks,
    ThresholdReached,
)
from meterd.core.event import BookedEvent, EventVoid
from meterd.core.ids import fact_id
from meterd.core.organization import (
    AuditEntry,
    Facts,
    Finding,
    OrganizationState,
    Profile,
    QuotaState,
)
from meterd.core.period import Period
from meterd.core.plan import Terms
from meterd.core.quota import DenialReason, projected_ms, threshold_lines, usage_state
from meterd.core.task import Task, TaskState
from meterd.core.units import DAY_MS, day_start_ms
from meterd.core.usage import Origin, Source, UsageRow, book_agent_time


class Draft:
    """What one decision will have changed, seen on top of the state it started from."""

    __slots__ = (
        "audit",
        "closed",
        "events",
        "findings",
        "notices",
        "now_ms",
        "period",
        "profile",
        "rows",
        "seq",
        "started",
        "state",
        "tasks",
        "terms",
        "terms_changed",
        "voids",
    )

    def __init__(self, state: OrganizationState, now_ms: int) -> None:
        self.state = state
        self.now_ms = now_ms
        self.seq = state.seq + 1
        self.period = state.period
        self.closed: dict[int, Period] = {}
        self.terms = state.terms
        self.terms_changed = False
        self.profile = state.profile
        self.tasks: dict[str, Task] = {}
        self.started: set[str] = set()
        self.rows: list[UsageRow] = []
        self.notices: list[Notice] = []
        self.findings: list[Finding] = []
        self.events: list[BookedEvent] = []
        self.voids: list[EventVoid] = []
        self.audit: AuditEntry | None = None

    def put(self, task: Task) -> None:
        """Remember a task's new position."""
        self.tasks[task.info.task_id] = task

    def task(self, task_id: str) -> Task:
        """Return a task as this draft sees it."""
        task = self.tasks.get(task_id) or self.state.task(task_id)
        assert task is not None, task_id
        return task

    def running(self) -> Iterator[Task]:
        """Yield the running tasks as this draft sees them, longest silent first."""
        for task_id, task in self.state.running.items():
            current = self.tasks.get(task_id, task)
            if current.state is TaskState.RUNNING:
                yield current
        for task_id, task in self.tasks.items():
            if task_id not in self.state.running and task.state is TaskState.RUNNING:
                yield task

    # --- time into counters -----------------------------------------------------------------

    def meter(self, task_id: str, duration_ms: int) -> None:
        """Bill time that a task ran up to now, as far as the limits allow."""
        start_ms = self.now_ms - duration_ms
        if start_ms >= self.period.start_ms:
            self._meter_open(task_id, start_ms, self.now_ms)
            return
        for period, from_ms, until_ms in reversed(list(self._backwards(start_ms))):
            if period is None:
                self._meter_open(task_id, from_ms, until_ms)
            else:
                self._meter_closed(task_id, period, from_ms, until_ms)

    def _backwards(self, start_ms: int) -> Iterator[tuple[Period | None, int, int]]:
        """Cut [start, now) at period starts, newest part first; None is the open period."""
        yield None, self.period.start_ms, self.now_ms
        until_ms = self.period.start_ms
        known = [self.closed.get(p.start_ms, p) for p in self.state.closed_periods]
        for index, period in enumerate(known):
            is_oldest = index == len(known) - 1
            from_ms = start_ms if is_oldest else max(start_ms, period.start_ms)
            yield period, from_ms, until_ms
            until_ms = from_ms
            if until_ms <= start_ms:
                return
        yield None, start_ms, until_ms  # time before the organization's first period

    def _meter_open(self, task_id: str, start_ms: int, end_ms: int) -> None:
        """Add [start, end) to the open period, cut at UTC days, pending until a row is due."""
        task = self.task(task_id)
        if task.pending_ms and day_start_ms(task.metered_until_ms - 1) != day_start_ms(start_ms):
            self.record(task_id)
        from_ms = start_ms
        while from_ms < end_ms:
            until_ms = min(end_ms, day_start_ms(from_ms) + DAY_MS)
            self._bill(task_id, from_ms, until_ms)
            if until_ms < end_ms:
                self.record(task_id)
            from_ms = until_ms
        if self.task(task_id).pending_ms >= self.state.rules.record_interval_ms:
            self.record(task_id)

    def _bill(self, task_id: str, start_ms: int, end_ms: int) -> None:
        """Bill [start, end) of one day, recording everybody's time at the price lines."""
        limits = self.terms.limits
        lines_ms = [limits.included_ms]
        if limits.hard_limit_ms is not None:
            lines_ms.append(limits.hard_limit_ms)
        from_ms = start_ms
        while from_ms < end_ms:
            used_ms = self.period.used_ms
            if limits.hard_limit_ms is not None and used_ms >= limits.hard_limit_ms:
                return
            step_ms = end_ms - from_ms
            crossed = False
            for line_ms in lines_ms:
                if used_ms < line_ms <= used_ms + step_ms:
                    step_ms, crossed = line_ms - used_ms, True
                    break
            from_ms += step_ms
            task = self.task(task_id)
            self.put(
                attrs.evolve(task, metered_ms=task.metered_ms + step_ms, metered_until_ms=from_ms)
            )
            self.period = attrs.evolve(self.period, used_ms=used_ms + step_ms)
            if crossed:
                self.record_all()

    def _meter_closed(self, task_id: str, period: Period, start_ms: int, end_ms: int) -> None:
        """Book time into a period that has ended, at once and under that period's terms."""
        terms = self.state.terms_of(period)
        from_ms = start_ms
        while from_ms < end_ms:
            until_ms = min(end_ms, day_start_ms(from_ms) + DAY_MS)
            if terms.limits.hard_limit_ms is not None:
                until_ms = min(until_ms, from_ms + terms.limits.hard_limit_ms - period.used_ms)
            if until_ms <= from_ms:
                return
            if period.used_ms < terms.limits.included_ms:  # a row ends where its price does
                until_ms = min(until_ms, from_ms + terms.limits.included_ms - period.used_ms)
            step_ms = until_ms - from_ms
            task = self.task(task_id)
            used = attrs.evolve(period, used_ms=period.used_ms + step_ms)
            period = self._book(used, terms, step_ms, self._origin(task, until_ms))
            self.closed[period.start_ms] = period
            self.put(
                attrs.evolve(
                    task,
                    metered_ms=task.metered_ms + step_ms,
                    recorded_ms=task.recorded_ms + step_ms,
                )
            )
            from_ms = until_ms

    # --- counters into rows -----------------------------------------------------------------

    def record(self, task_id: str) -> None:
        """Write the task's pending time into ledger rows of the open period."""
        task = self.task(task_id)
        if not task.pending_ms:
            return
        origin = self._origin(task, task.metered_until_ms)
        self.period = self._book(self.period, self.terms, task.pending_ms, origin)
        self.put(attrs.evolve(task, recorded_ms=task.metered_ms))

    def record_all(self) -> None:
        """Write everybody's pending time: afterwards recorded equals used."""
        for task in list(self.running()):
            self.record(task.info.task_id)
        # The task being metered may be lost (it reports before it is resumed).
        for task in list(self.tasks.values()):
            self.record(task.info.task_id)
        assert self.period.recorded_ms == self.period.used_ms, self.period

    def adjust(self, period: Period, terms: Terms, agent_ms: int, metadata_json: str) -> None:
        """Book an adjustment into a period whose pending time is recorded."""
        origin = Origin(
            organization_id=self.state.organization_id,
            seq=self.seq,
            source=Source.ADJUSTMENT,
            at_ms=max(period.start_ms, min(self.now_ms, period.end_ms) - 1),
            metadata_json=metadata_json,
        )
        used = attrs.evolve(period, used_ms=period.used_ms + agent_ms)
        booked = self._book(used, terms, agent_ms, origin)
        if period.closed:
            self.closed[period.start_ms] = booked
        else:
            self.period = booked

    def _origin(self, task: Task, end_ms: int) -> Origin:
        info = task.info
        return Origin(
            organization_id=self.state.organization_id,
            seq=self.seq,
            source=Source.TASK,
            at_ms=end_ms - 1,  # half-open time: the last instant it covers
            task_id=info.task_id,
            agent_id=info.agent_id,
            user_id=info.user_id,
            metadata_json=info.metadata_json,
        )

    def _book(self, period: Period, terms: Terms, duration_ms: int, origin: Origin) -> Period:
        booked, rows = book_agent_time(period, terms, duration_ms, origin, ordinal=len(self.rows))
        hard_ms = terms.limits.hard_limit_ms
        assert duration_ms <= 0 or hard_ms is None or booked.recorded_ms <= hard_ms, booked
        self.rows.extend(rows)
        return booked

    # --- periods that began earlier than was known ------------------------------------------

    def unbill_after(self, instant_ms: int) -> list[tuple[str, int, int]]:
        """Take pending time after an instant off the open period; return (task, from, until)."""
        taken = []
        for task in list(self.running()):
            after_ms = min(task.pending_ms, task.metered_until_ms - instant_ms)
            if after_ms <= 0:
                continue
            until_ms = task.metered_until_ms
            self.put(
                attrs.evolve(
                    task,
                    metered_ms=task.metered_ms - after_ms,
                    metered_until_ms=until_ms - after_ms,
                )
            )
            used_ms = self.period.used_ms - after_ms
            self.period = attrs.evolve(self.period, used_ms=used_ms)
            taken.append((task.info.task_id, until_ms - after_ms, until_ms))
        return taken

    def bill_again(self, task_id: str, start_ms: int, end_ms: int) -> None:
        """Bill time that `unbill_after` took off, under the limit of the period open now."""
        self._meter_open(task_id, start_ms, end_ms)

    # --- conclusion -------------------------------------------------------------------------

    def find(self, kind: str, detail_json: str) -> None:
        """Report something a person should look at."""
        self.findings.append(
            Finding(
                id=fact_id(
                    "fnd", self.now_ms, self.state.organization_id, self.seq, len(self.findings)
                ),
                at_ms=self.now_ms,
                kind=kind,
                detail_json=detail_json,
            )
        )

    def conclude(self, outcome: Outcome) -> Decision:
        """Announce what the change means for the quota, and return the decision."""
        self._announce()
        return Decision(outcome, self._facts(), tuple(self.notices))

    def projected_ms(self) -> int:
        """Return the open period's projected use as this draft leaves it."""
        state, now_ms = self.state, self.now_ms
        timeout_ms = state.rules.task_timeout_ms
        projected = projected_ms(state, now_ms) - state.period.used_ms + self.period.used_ms
        for task_id, task in self.tasks.items():
            known = state.running.get(task_id)
            if known is not None:
                projected -= min(now_ms - known.burning_from_ms, timeout_ms)
            if task.state is TaskState.RUNNING:
                projected += min(now_ms - task.burning_from_ms, timeout_ms)
        return projected

    def stop_reason(self) -> DenialReason | None:
        """Return why running tasks must stop after this change, or None if they may go on."""
        if self.profile.holds:
            return DenialReason.SUSPENDED
        hard_ms = self.terms.limits.hard_limit_ms
        if hard_ms is not None and self.projected_ms() >= hard_ms:
            return DenialReason.PLAN_LIMIT_REACHED
        return None

    def _announce(self) -> None:
        state, limits, projected = self.state, self.terms.limits, self.projected_ms()
        quota = QuotaState.SUSPENDED if self.profile.holds else usage_state(limits, projected)
        reached = frozenset(
            percent for percent, line_ms in threshold_lines(limits) if projected >= line_ms
        )
        new = reached - self.period.notified_percents
        if new:
            notified = self.period.notified_percents | new
            self.period = attrs.evolve(self.period, notified_percents=notified)
            self.notices.extend(ThresholdReached(percent=percent) for percent in sorted(new))
        if quota is state.announced:
            return
        self.notices.append(QuotaChanged(state=quota))
        stop = {
            QuotaState.EXCEEDED: DenialReason.PLAN_LIMIT_REACHED,
            QuotaState.SUSPENDED: DenialReason.SUSPENDED,
        }.get(quota)
        if stop is not None:
            task_ids = tuple(task.info.task_id for task in self.running())
            self.notices.append(StopTasks(task_ids=task_ids, reason=stop))

    def rearm(self) -> None:
        """Let thresholds that are no longer reached be announced again (new terms)."""
        projected = self.projected_ms()
        reached = {
            percent
            for percent, line_ms in threshold_lines(self.terms.limits)
            if projected >= line_ms
        }
        still = self.period.notified_percents & reached
        self.period = attrs.evolve(self.period, notified_percents=still)

    def _facts(self) -> Facts | None:
        periods = [self.closed[start_ms] for start_ms in sorted(self.closed)]
        if self.period is not self.state.period:
            periods.append(self.period)
        profile: Profile | None = None
        if self.profile is not self.state.profile:
            profile = self.profile
        changed = periods or self.tasks or self.terms_changed or profile or self.audit
        if not (changed or self.findings):
            assert not self.rows, self.rows
            return None
        return Facts(
            seq=self.seq,
            rows=tuple(self.rows),
            tasks=tuple(
                task if task.seq == self.seq else attrs.evolve(task, seq=self.seq)
                for task in self.tasks.values()
            ),
            started=frozenset(self.started),
            periods=tuple(periods),
            terms=self.terms if self.terms_changed else None,
            profile=profile,
            audit=self.audit,
            findings=tuple(self.findings),
            events=tuple(self.events),
            voids=tuple(self.voids),
        )
