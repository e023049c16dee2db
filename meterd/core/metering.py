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

import json
from collections.abc import Iterator

import attrs

from meterd.core.commands import (
    Decision,
    Notice,
    Notified,
    Outcome,
    QuotaChanged,
    StopTasks,
    ThresholdReached,
)
from meterd.core.event import BookedEvent, EventVoid
from meterd.core.ids import fact_id
from meterd.core.notification import Notification, NotificationKind
from meterd.core.organization import (
    AuditEntry,
    DenialReason,
    Facts,
    Finding,
    OrganizationState,
    Profile,
    QuotaState,
)
from meterd.core.period import Period
from meterd.core.plan import Terms
from meterd.core.quota import (
    FULL_PERCENT,
    STOPPED_MARK,
    limit_denial,
    projected_ms,
    stop_line_ms,
    threshold_lines,
    usage_state,
)
from meterd.core.task import Task, TaskState
from meterd.core.units import DAY_MS, day_start_ms, rfc3339, whole_minutes
from meterd.core.usage import Origin, Source, UsageRow, book_agent_time


class Draft:
    """What one decision will have changed, seen on top of the state it started from."""

    __slots__ = (
        "audit",
        "closed",
        "events",
        "findings",
        "notices",
        "notifications",
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
        self.notifications: list[Notification] = []
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
        included_ms = self.terms.limits.included_ms
        stop_ms = stop_line_ms(self.terms.limits, self.period)
        lines_ms = [included_ms] if stop_ms is None else sorted((included_ms, stop_ms))
        from_ms = start_ms
        while from_ms < end_ms:
            used_ms = self.period.used_ms
            if stop_ms is not None and used_ms >= stop_ms:
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
        stop_ms = stop_line_ms(terms.limits, period)
        from_ms = start_ms
        while from_ms < end_ms:
            until_ms = min(end_ms, day_start_ms(from_ms) + DAY_MS)
            if stop_ms is not None:
                until_ms = min(until_ms, from_ms + stop_ms - period.used_ms)
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
        hard_ms, cap_usd = terms.limits.hard_limit_ms, terms.limits.overage_cap_usd
        assert duration_ms <= 0 or hard_ms is None or booked.recorded_ms <= hard_ms, booked
        if cap_usd is not None:
            assert booked.overage_usd <= max(cap_usd, period.overage_usd), booked
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

    def notify(self, kind: NotificationKind, **about: object) -> None:
        """Tell the organization something, durably; what it concerns comes with its figures."""
        limits, period, organization_id = self.terms.limits, self.period, self.state.organization_id
        hard_ms = limits.hard_limit_ms
        data = {
            "organization_id": organization_id,
            "plan": self.terms.plan.value,
            "billing_period": period.label,
            "period_end": rfc3339(period.end_ms),
            "used_minutes": whole_minutes(period.used_ms),
            "limit_minutes": limits.included_minutes,
            "hard_limit_minutes": None if hard_ms is None else whole_minutes(hard_ms),
            **about,
        }
        number = len(self.notifications)
        notification = Notification(
            id=fact_id("evt", self.now_ms, organization_id, self.seq, number),
            at_ms=self.now_ms,
            kind=kind,
            data_json=json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False),
            seq=self.seq,
        )
        self.notifications.append(notification)
        self.notices.append(Notified(notification=notification))

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
        return limit_denial(self.terms.limits, self.period, self.projected_ms())

    def _announce(self) -> None:
        projected = self.projected_ms()
        limit = limit_denial(self.terms.limits, self.period, projected)
        stop = DenialReason.SUSPENDED if self.profile.holds else limit
        quota = usage_state(self.terms.limits, projected)
        self._announce_thresholds(projected, quota, limit)
        if self.profile.holds:
            quota = QuotaState.SUSPENDED
        if quota is self.state.announced and stop is self.state.announced_stop:
            return
        self.notices.append(QuotaChanged(state=quota, stop=stop))
        if stop is not None:
            task_ids = tuple(task.info.task_id for task in self.running())
            self.notices.append(StopTasks(task_ids=task_ids, reason=stop))

    def _announce_thresholds(
        self, projected: int, quota: QuotaState, limit: DenialReason | None
    ) -> None:
        """Tell what is crossed for the first time in the period, and what is over again."""
        chosen, known = self.profile.threshold_percents, self.period.notified_percents
        new = self._reached(projected) - known
        for percent in sorted(new.intersection(chosen)):
            self.notices.append(ThresholdReached(percent=percent))
            self.notify(NotificationKind.THRESHOLD_REACHED, percent=percent)
        if FULL_PERCENT in new and quota is QuotaState.GRACE and limit is None:
            self.notify(NotificationKind.GRACE_STARTED)
        was_stopped = STOPPED_MARK in self.state.period.notified_percents
        # A hold hides whether work could go on: what is over is told when the hold is, too.
        is_stopped = limit is not None or (was_stopped and bool(self.profile.holds))
        if limit is not None and not was_stopped:
            self.notify(NotificationKind.LIMIT_REACHED, code=limit.value)
        elif was_stopped and not is_stopped:
            self.notify(NotificationKind.RECOVERED)
        notified = (known | new) - {STOPPED_MARK} | ({STOPPED_MARK} if is_stopped else frozenset())
        if notified != known:
            self.period = attrs.evolve(self.period, notified_percents=notified)

    def _reached(self, projected: int) -> frozenset[int]:
        percents = {FULL_PERCENT, *self.profile.threshold_percents}
        lines = threshold_lines(self.terms.limits, percents)
        return frozenset(percent for percent, line_ms in lines if projected >= line_ms)

    def rearm(self) -> None:
        """Let thresholds that are no longer reached be announced again (new terms)."""
        reached = self._reached(self.projected_ms()) | {STOPPED_MARK}
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
        if not (changed or self.findings or self.notifications):
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
            notifications=tuple(self.notifications),
            events=tuple(self.events),
            voids=tuple(self.voids),
        )
