"""The jobs that keep the books: what each does, and that the books agree.

Rule 1: every job can be killed anywhere and run again; what it does it does once.
Rule 2: reconciliation changes nothing. A difference is a finding with its organization, period,
        amount and what it is about, an error in the log, and a figure for metrics.
Rule 3: live state is compared at a durable position: an organization that is busy is looked at
        again, and left for the next time rather than told wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import attrs
import structlog
import trio

from meterd.actors.cell import Phase
from meterd.actors.organizations import Organizations
from meterd.actors.reports import Reports
from meterd.actors.scheduler import Job, Order
from meterd.core.books import (
    BookDifference,
    StoredCounters,
    live_differences,
)
from meterd.core.commands import Tick
from meterd.core.schedule import Daily, Hourly, last_whole_day_ms
from meterd.core.units import DAY_MS, HOUR_MS
from meterd.errors import (
    ActorCrashedError,
    OrganizationUnknownError,
    QuarantinedError,
)
from meterd.ports.books import Files, FindingStore, UpkeepStore
from meterd.ports.clock import Clock
from meterd.reporting.figures import StoredReport


log = structlog.get_logger(__name__)

REPORTS_CAUGHT_UP_MAX = 7
"""Reports of so many missed days are made after a downtime; the newest first if there are more."""

TASKS_LOOKED_AT_MS = 2 * HOUR_MS
"""Tasks that ended this lately are checked, so each is checked at least once by an hourly job."""

METRICS_LOOKED_AT_MS = 60 * DAY_MS
RUNS_KEPT_MS = 90 * DAY_MS
ANSWERS_KEPT_MS = DAY_MS
"""An Idempotency-Key is honoured for 24 hours."""

LIVE_TRIES = 3
LIVE_PAGE = 500


@attrs.frozen(kw_only=True)
class Plan:
    """When jobs run and how long things are kept."""

    daily_metrics: Daily
    revenue_snapshot: Daily
    daily_report: Daily
    ledger_reconciliation: Daily
    retention: Daily
    task_reconciliation: Hourly = attrs.field(factory=lambda: Hourly(20))
    period_rollover: Hourly = attrs.field(factory=lambda: Hourly(5))
    tasks_kept_ms: int
    payloads_kept_ms: int


@attrs.frozen(kw_only=True)
class Reconciliation:
    """What a reconciliation looked at and found."""

    organizations: int
    live: int
    """Organizations in memory that were compared with what is stored of them."""
    differences: tuple[BookDifference, ...]


@attrs.define(eq=False)
class Books:
    """The jobs of the books, on the actors and the stores."""

    organizations: Organizations
    reports: Reports
    upkeep: UpkeepStore
    findings: FindingStore
    files: Files
    clock: Clock
    plan: Plan
    differences: int = 0
    """Differences of the last reconciliation, for metrics and readiness."""

    def jobs(self) -> tuple[Job, ...]:
        """Return every job with its schedule, in the order in which they build on each other."""
        plan = self.plan
        return (
            Job(name="period_rollover", schedule=plan.period_rollover, work=self.roll_periods),
            Job(
                name="task_reconciliation",
                schedule=plan.task_reconciliation,
                work=self.reconcile_tasks,
            ),
            Job(name="daily_metrics", schedule=plan.daily_metrics, work=self.sum_days),
            Job(name="revenue_snapshot", schedule=plan.revenue_snapshot, work=self.keep_revenue),
            Job(
                name="ledger_reconciliation",
                schedule=plan.ledger_reconciliation,
                work=self.reconcile_books,
                after=("daily_metrics",),
            ),
            Job(
                name="daily_report",
                schedule=plan.daily_report,
                work=self.report_days,
                after=("daily_metrics", "revenue_snapshot", "ledger_reconciliation"),
            ),
            Job(name="retention", schedule=plan.retention, work=self.drop_old),
        )

    # --- figures and reports --------------------------------------------------------------------

    async def sum_days(self, order: Order) -> Mapping[str, Any]:
        """Bring the daily metrics up to the last whole day."""
        done = await self.reports.metrics.aggregate(last_whole_day_ms(order.at_ms))
        return attrs.asdict(done)

    async def keep_revenue(self, order: Order) -> Mapping[str, Any]:
        """Keep what every customer is worth at the end of the last whole day, once."""
        day_ms = last_whole_day_ms(order.at_ms)
        return {"customers": await self.reports.keep_revenue(day_ms)}

    async def report_days(self, order: Order) -> Mapping[str, Any]:
        """Make the reports that are missing up to the last whole day, and write their files."""
        last_ms = last_whole_day_ms(order.at_ms)
        kept_ms = await self.reports.store.last_report_day_ms()
        # From the last kept one on: its file may be missing, when meterd ended before writing it.
        first_ms = last_ms if kept_ms is None else kept_ms
        first_ms = max(first_ms, last_ms - (REPORTS_CAUGHT_UP_MAX - 1) * DAY_MS)
        made = []
        for day_ms in range(min(first_ms, last_ms), last_ms + 1, DAY_MS):
            report = await self.reports.get(day_ms)
            if report is not None:
                made.append(str(await self.files.write(report.day, report.markdown)))
        return {"files": made}

    async def refreshed(self, day_ms: int) -> StoredReport | None:
        """Make a day's report anew and write its file; None when the day has not begun."""
        report = await self.reports.make(day_ms)
        if report is not None and day_ms <= last_whole_day_ms(self.clock.now_ms()):
            await self.files.write(report.day, report.markdown)
        return report

    # --- reconciliation -------------------------------------------------------------------------

    async def reconcile(self, *, is_dry: bool = False) -> Reconciliation:
        """Compare ledger, counters, tasks, daily metrics and live actors.

        Differences become findings unless `is_dry`. Errors: StoreUnavailableError.
        """
        now_ms = self.clock.now_ms()
        organizations, stored = await self.upkeep.ledger_differences()
        in_days = await self.upkeep.metrics_differences(now_ms - METRICS_LOOKED_AT_MS)
        looked_at, live = await self._live_differences()
        found = (*stored, *in_days, *live)
        self.differences = len(found)
        if not is_dry:
            await self._tell(found, now_ms)
        return Reconciliation(organizations=organizations, live=looked_at, differences=found)

    async def reconcile_books(self, order: Order) -> Mapping[str, Any]:  # noqa: ARG002  # of now
        """Compare everything with the ledger."""
        found = await self.reconcile()
        return {
            "organizations": found.organizations,
            "live": found.live,
            "differences": len(found.differences),
        }

    async def reconcile_tasks(self, order: Order) -> Mapping[str, Any]:  # noqa: ARG002  # of now
        """Check that the rows of tasks that ended lately add up."""
        now_ms = self.clock.now_ms()
        tasks, found = await self.upkeep.task_differences(
            now_ms - TASKS_LOOKED_AT_MS, now_ms + HOUR_MS
        )
        await self._tell(found, now_ms)
        return {"tasks": tasks, "differences": len(found)}

    async def _tell(self, differences: Sequence[BookDifference], now_ms: int) -> None:
        new = await self.findings.add_findings([each.finding(now_ms) for each in differences])
        for each in differences[:20]:
            log.error(
                "books_differ",
                kind=each.kind,
                organization_id=each.organization_id,
                subject=each.subject,
                what=each.what,
                expected=each.expected,
                found=each.found,
            )
        if differences:
            log.error("reconciliation_found_differences", count=len(differences), new=new)

    async def _live_differences(self) -> tuple[int, list[BookDifference]]:
        """Compare organizations in memory with what is stored, those that are at rest."""
        waiting = [
            cell.organization_id
            for cell in self.organizations.cells
            if cell.phase is Phase.READY and cell.state is not None
        ]
        found: list[BookDifference] = []
        compared = 0
        for _ in range(LIVE_TRIES):
            busy: list[str] = []
            pages = iter(waiting)
            while page := list(islice(pages, LIVE_PAGE)):
                stored = await self.upkeep.stored_counters(page)
                for organization_id in page:  # no await: everything here is of one instant
                    differences = self._compare(organization_id, stored.get(organization_id))
                    if differences is None:
                        busy.append(organization_id)
                    else:
                        compared += 1
                        found.extend(differences)
            waiting = busy
            if not waiting:
                break
            await trio.sleep(1)
        return compared, found

    def _compare(
        self, organization_id: str, stored: StoredCounters | None
    ) -> Sequence[BookDifference] | None:
        """Return what differs, or None when the two are not of the same position."""
        cell = self.organizations.cells.get(organization_id)
        if cell is None or cell.state is None or cell.phase is not Phase.READY:
            return ()
        is_durable = not self.organizations.ledger.waiting(organization_id)
        if stored is None or not is_durable or cell.state.seq != stored.seq:
            return None
        return live_differences(organization_id, cell.state.period, stored)

    # --- time and age ---------------------------------------------------------------------------

    async def roll_periods(self, order: Order) -> Mapping[str, Any]:  # noqa: ARG002  # of now
        """Wake the organizations whose period or payment grace ended while nobody looked."""
        overdue = await self.upkeep.overdue(
            self.clock.now_ms(), payment_grace_ms=self.organizations.rules.payment_grace_ms
        )
        woken, skipped = 0, []
        for organization_id in overdue:
            try:
                await self._wake(organization_id)
            except (ActorCrashedError, OrganizationUnknownError, QuarantinedError) as error:
                log.warning("period_not_rolled", organization_id=organization_id, error=str(error))
                skipped.append(organization_id)
            else:
                woken += 1
        return {"woken": woken, "skipped": skipped[:100]}

    async def _wake(self, organization_id: str) -> None:
        answer = await self.organizations.ask(organization_id, Tick())
        await self.organizations.durable(organization_id, answer.seq)

    async def drop_old(self, order: Order) -> Mapping[str, Any]:  # noqa: ARG002  # of now
        """Drop what is kept long enough; never the ledger."""
        now_ms = self.clock.now_ms()
        return {
            "tasks": await self.upkeep.drop_tasks(now_ms - self.plan.tasks_kept_ms),
            "payloads": await self.upkeep.drop_payloads(now_ms - self.plan.payloads_kept_ms),
            "answers": await self.upkeep.drop_answers(now_ms - ANSWERS_KEPT_MS),
            "runs": await self.upkeep.drop_runs(now_ms - RUNS_KEPT_MS),
        }
