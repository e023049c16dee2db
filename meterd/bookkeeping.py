"""The composition of the books: which stores, schedules and files stand behind the jobs.

Used by the service, which runs the jobs, and by commands, which read the books beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import time

from meterd.actors.books import Books, Plan
from meterd.actors.organizations import Organizations
from meterd.actors.reports import Reports
from meterd.actors.scheduler import Job, Scheduler
from meterd.adapters.postgres.books import PostgresBooks
from meterd.adapters.postgres.jobs import PostgresJobs
from meterd.adapters.postgres.metrics import PostgresMetrics
from meterd.adapters.postgres.pool import PostgresPools
from meterd.adapters.postgres.upkeep import PostgresUpkeep
from meterd.adapters.report_files import ReportFiles
from meterd.config import Config
from meterd.core.plan import Catalogue
from meterd.core.schedule import Daily
from meterd.core.units import DAY_MS
from meterd.observe import metrics as names
from meterd.observe.metrics import Metrics
from meterd.ports.clock import Clock
from meterd.ports.ids import Ids
from meterd.setting import zone_of


def reports_of(pools: PostgresPools, catalogue: Catalogue, clock: Clock) -> Reports:
    """Return what makes reports from a database."""
    return Reports(PostgresBooks(pools), PostgresMetrics(pools), catalogue, clock)


def files_of(config: Config) -> ReportFiles:
    """Return where reports are written."""
    return ReportFiles(config.reports_dir, is_committed=config.reports_git_commit)


def books_of(
    config: Config, pools: PostgresPools, organizations: Organizations, catalogue: Catalogue
) -> Books:
    """Return the books of a running meterd."""
    clock = organizations.clock
    return Books(
        organizations=organizations,
        reports=reports_of(pools, catalogue, clock),
        upkeep=PostgresUpkeep(pools),
        findings=PostgresJobs(pools),
        files=files_of(config),
        clock=clock,
        plan=Plan(
            daily_metrics=_daily(config.daily_metrics_at),
            revenue_snapshot=_daily(config.revenue_snapshot_at),
            daily_report=_daily(config.daily_report_at),
            ledger_reconciliation=_daily(config.ledger_reconciliation_at),
            retention=_daily(config.retention_at),
            tasks_kept_ms=config.task_retention_days * DAY_MS,
            payloads_kept_ms=config.inbox_retention_days * DAY_MS,
        ),
    )


def scheduler_of(
    config: Config,
    pools: PostgresPools,
    books: Books,
    *,
    epoch: int,
    ids: Ids,
    jitter: Iterator[float],
    more: Sequence[Job] = (),
) -> Scheduler:
    """Return the scheduler of the books' jobs and more, for the owner with this epoch.

    Run it as a service named `scheduler`.
    """
    return Scheduler(
        (*books.jobs(), *more),
        PostgresJobs(pools, epoch=epoch),
        zone=zone_of(config.jobs_time_zone),
        clock=books.clock,
        ids=ids,
        jitter=jitter,
    )


def measure_books(metrics: Metrics, books: Books, scheduler: Scheduler) -> None:
    """Put the metrics of the books in place."""
    metrics.read(names.JOB_RUNS, lambda: scheduler.ended)
    metrics.read(names.BOOK_DIFFERENCES, lambda: books.differences)


def _daily(text: str) -> Daily:
    return Daily(time.fromisoformat(text))
