"""Jobs on real PostgreSQL: what the scheduler relies on, the files, and kills in the middle."""

from __future__ import annotations

import itertools
import random
import subprocess
from collections.abc import Mapping
from datetime import UTC, time
from pathlib import Path
from typing import Any

import attrs
import trio

from meterd.actors.scheduler import Job, Order, RetryPolicy, Scheduler
from meterd.adapters.ids import IdSource
from meterd.adapters.postgres.jobs import PostgresJobs
from meterd.adapters.report_files import ReportFiles
from meterd.core.books import as_json
from meterd.core.schedule import Daily, JobRun, Occurrence, Outcome, Trigger, last_whole_day_ms
from meterd.core.units import DAY_MS, HOUR_MS
from tests.book_world import FEBRUARY_MS, seeded_companies
from tests.integration.books.conftest import Office


MORNING_MS = FEBRUARY_MS + 20 * DAY_MS + 6 * HOUR_MS


def make_run(number: int, **fields: Any) -> JobRun:
    """Return a scheduled run of the report of 21 February."""
    values: dict[str, Any] = {
        "id": f"run_{number}",
        "job": "report",
        "subject": "2026-02-21",
        "trigger": Trigger.SCHEDULE,
        "tries": 0,
        "started_at_ms": MORNING_MS,
    }
    return JobRun(**(values | fields))


async def test_a_job_runs_once_at_a_time_and_once_a_day_whoever_asks(office: Office) -> None:
    """Two processes, a retry after a lost reply: the indexes of the database decide."""
    await office.jobs.register({"report": Occurrence(at_ms=0, subject="1970-01-01")})
    assert await office.jobs.begin(make_run(1))
    assert not await office.jobs.begin(make_run(2))
    assert not await office.jobs.is_done("report", "2026-02-21")

    done = make_run(1, outcome=Outcome.SUCCEEDED, finished_at_ms=MORNING_MS + 5, tries=1)
    await office.jobs.finish(done, None)

    assert await office.jobs.is_done("report", "2026-02-21")
    assert await office.jobs.begin(make_run(3, trigger=Trigger.OPERATOR))
    [latest, first] = await office.jobs.runs("report", 5)
    assert (latest.outcome, first) == (Outcome.RUNNING, done)


async def test_what_is_remembered_of_a_job_survives_a_restart(office: Office) -> None:
    """Registering again keeps the settled day; an open run is told to be interrupted."""
    await office.jobs.register({"report": Occurrence(at_ms=0, subject="1970-01-01")})
    settled = Occurrence(at_ms=MORNING_MS, subject="2026-02-21")
    await office.jobs.settle("report", settled)
    await office.jobs.begin(make_run(1))

    await office.jobs.interrupt_runs(MORNING_MS + HOUR_MS)
    await office.jobs.register({"report": Occurrence(at_ms=0, subject="1970-01-01")})

    record = (await office.jobs.records(["report"]))["report"]
    assert (record.settled, record.last_outcome) == (settled, Outcome.INTERRUPTED)
    assert (await office.jobs.runs("report", 1))[0].outcome is Outcome.INTERRUPTED
    assert list(await office.jobs.all_records()) == [record]


async def test_a_process_that_lost_the_database_neither_begins_nor_ends_a_run(
    office: Office,
) -> None:
    """Its late success would be the day's only one, and nobody would end what it begins."""
    await office.jobs.register({"report": Occurrence(at_ms=0, subject="1970-01-01")})
    late = make_run(1, outcome=Outcome.SUCCEEDED, finished_at_ms=MORNING_MS + 9, tries=1)
    done = make_run(2, outcome=Outcome.SUCCEEDED, finished_at_ms=MORNING_MS + 10, tries=1)
    assert await office.jobs.begin(make_run(1))
    successor = PostgresJobs(office.pools, epoch=office.store.epoch + 1)
    await office.query("UPDATE meterd_owner SET epoch = $1", successor.epoch)
    await successor.interrupt_runs(MORNING_MS + 5)
    assert not await office.jobs.begin(make_run(3))
    assert await successor.begin(make_run(2))

    await office.jobs.interrupt_runs(MORNING_MS + 6)
    await office.jobs.finish(late, None)
    await office.jobs.finish(done, None)

    [latest, first] = await office.jobs.runs("report", 5)
    assert (latest, first.outcome) == (done, Outcome.INTERRUPTED)


@attrs.define
class Morning:
    """The morning's work on real stores, which a test can end at any moment."""

    office: Office
    files: ReportFiles

    async def work(self, order: Order) -> Mapping[str, Any]:
        """Sum, keep, report, write."""
        reports, day_ms = self.office.reports, last_whole_day_ms(order.at_ms)
        await reports.metrics.aggregate(day_ms)
        await reports.keep_revenue(day_ms)
        report = await reports.get(day_ms)
        assert report is not None
        return {"file": str(await self.files.write(report.day, report.markdown))}

    def scheduler(self) -> Scheduler:
        """Return the scheduler of a process that has just started."""
        return Scheduler(
            [Job(name="report", schedule=Daily(time(6, 0)), work=self.work)],
            self.office.jobs,
            zone=UTC,
            clock=self.office.clock,
            ids=IdSource(self.office.clock.now_ms, random.Random(trio.current_time())),
            jitter=itertools.repeat(0.0),
            policy=RetryPolicy(tries_max=2, delay_min_ms=1, delay_max_ms=1),
        )


async def test_a_job_killed_anywhere_leaves_the_next_run_right(
    office: Office, tmp_path: Path
) -> None:
    """Ended after 1, 2, 5, … milliseconds: the next morning's run is as if nothing had been."""
    await office.fill(seeded_companies(7, 6))
    office.clock.at_ms = MORNING_MS
    expected = await office.reports.get(last_whole_day_ms(MORNING_MS))
    assert expected is not None
    tables = ("daily_reports", "daily_metrics", "revenue_snapshots", "revenue_snapshot_days")
    await office.as_superuser(
        *(f"DELETE FROM {table}" for table in tables),  # noqa: S608  # our own names
        "UPDATE metrics_position SET aggregated_until = NULL, arrived_until = NULL",
    )
    await office.jobs.register(
        {"report": Occurrence(at_ms=MORNING_MS - DAY_MS, subject="2026-02-20")}
    )
    files = ReportFiles(tmp_path / "reports")

    for delay_ms in (1, 2, 5, 10, 15, 20, 30, 40, 60, 80, 120, 5_000):
        with trio.move_on_after(delay_ms / 1_000):
            await Morning(office, files).scheduler().run()
        if (tmp_path / "reports" / "daily-revenue-2026-02-20.md").exists():
            break

    path = files.path("2026-02-20")
    assert path.read_text() == expected.markdown
    kept = await office.books.stored_report(last_whole_day_ms(MORNING_MS))
    assert kept == expected
    assert [name.name for name in path.parent.iterdir()] == [path.name], "nothing half-written"


def test_a_report_file_is_replaced_whole_and_committed_when_asked(tmp_path: Path) -> None:
    """Git gets one commit for a report that changed, none for one that did not."""
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    for name in ("user.name", "user.email"):
        subprocess.run(["git", "-C", tmp_path, "config", name, "a@b.example"], check=True)
    files = ReportFiles(tmp_path / "reports", is_committed=True)

    for text in ("one\n", "one\n", "two\n"):
        trio.run(files.write, "2026-02-20", text)

    log = subprocess.run(
        ["git", "-C", tmp_path, "log", "--format=%s"], check=True, capture_output=True, text=True
    ).stdout
    assert log.splitlines() == ["Daily revenue, 2026-02-20"] * 2
    assert files.path("2026-02-20").read_text() == "two\n"


async def test_a_report_outside_of_a_repository_is_written_all_the_same(tmp_path: Path) -> None:
    """The commit is an extra: without git's blessing the file is still there."""
    files = ReportFiles(tmp_path, is_committed=True)

    path = await files.write("2026-02-20", as_json({"a": 1}))

    assert path.read_text() == '{"a":1}'
