"""The scheduler in virtual time: a year of jobs, failures, crashes and operators."""

# ruff: noqa: ARG001  # asking for autojump_clock is what makes the time virtual

from __future__ import annotations

import itertools
import json
import random
import time as wall
from collections import Counter
from collections.abc import Mapping
from datetime import time
from typing import Any
from zoneinfo import ZoneInfo

import attrs
import pytest
import trio

from meterd.actors.scheduler import (
    Job,
    JobBusyError,
    JobUnknownError,
    Order,
    RetryPolicy,
    Scheduler,
    Work,
)
from meterd.adapters.ids import IdSource
from meterd.core.schedule import (
    Daily,
    Hourly,
    Occurrence,
    Outcome,
    Schedule,
)
from meterd.core.units import DAY_MS, HOUR_MS, MINUTE_MS, SECOND_MS, rfc3339
from meterd.errors import StoreUnavailableError
from tests.job_store import NaiveJobStore
from tests.served import TrioClock


AT_SIX = Daily(time(6, 0))


@attrs.define
class Diary:
    """What jobs did, and how they are told to behave."""

    clock: TrioClock
    entries: list[tuple[str, str]] = attrs.Factory(list)
    at_once: Counter[str] = attrs.Factory(Counter)
    takes_s: Mapping[str, int] = attrs.Factory(dict)
    failures: Counter[str] = attrs.Factory(Counter)

    def work(self, name: str) -> Work:
        """Return a job's work: note it down, take its time, fail as often as told."""

        async def work(order: Order) -> Mapping[str, Any]:
            assert not self.at_once[name], f"{name} runs twice at a time"
            self.at_once[name] += 1
            try:
                await trio.sleep(self.takes_s.get(name, 1))
                if self.failures[name]:
                    self.failures[name] -= 1
                    raise OSError("no space left on device")
            finally:
                self.at_once[name] -= 1
            self.entries.append((name, order.subject))
            return {"at": rfc3339(order.at_ms)}

        return work

    def done(self, name: str) -> list[str]:
        """Return what a job was done for, in order."""
        return [subject for job, subject in self.entries if job == name]


def make_scheduler(
    diary: Diary, store: NaiveJobStore, jobs: Mapping[str, Schedule], **after: tuple[str, ...]
) -> Scheduler:
    """Return a scheduler of jobs that write into a diary, in Berlin's time."""
    return Scheduler(
        [
            Job(name=name, schedule=schedule, work=diary.work(name), after=after.get(name, ()))
            for name, schedule in jobs.items()
        ],
        store,
        zone=ZoneInfo("Europe/Berlin"),
        clock=diary.clock,
        ids=IdSource(diary.clock.now_ms, random.Random(1)),
        jitter=itertools.repeat(0.5),
        policy=RetryPolicy(
            tries_max=3, delay_min_ms=SECOND_MS, delay_max_ms=MINUTE_MS, try_max_ms=4 * HOUR_MS
        ),
    )


async def run_for(scheduler: Scheduler, duration_ms: int) -> None:
    """Run a scheduler for so long, then end it as a crash of the process would."""
    with trio.move_on_after(duration_ms / SECOND_MS):
        await scheduler.run()


async def test_a_year_of_schedules_takes_about_a_second(autojump_clock: trio.abc.Clock) -> None:
    """Every day once, over both changes of clocks, with three restarts a month."""
    diary, store = Diary(TrioClock()), NaiveJobStore()
    jobs: dict[str, Schedule] = {"report": AT_SIX, "night": Daily(time(2, 30))}
    before = wall.process_time()
    for _ in range(36):
        await run_for(make_scheduler(diary, store, jobs), 365 * DAY_MS // 36)

    for name in ("report", "night"):
        done = diary.done(name)
        assert len(done) == len(set(done)) == 365, name
        assert {"2026-03-29", "2026-10-25"} <= set(done)
    assert wall.process_time() - before < 10, "a simulated year is for every day's tests"


async def test_every_hour_of_a_month_is_run_once(autojump_clock: trio.abc.Clock) -> None:
    """Hours are counted in UTC, also in a month in which Berlin has one less."""
    diary, store = Diary(TrioClock()), NaiveJobStore()
    await trio.sleep(40 * DAY_MS / SECOND_MS)

    await run_for(make_scheduler(diary, store, {"hourly": Hourly(20)}), 30 * DAY_MS)

    hours = diary.done("hourly")
    assert len(hours) == len(set(hours)) == 30 * 24


async def test_nothing_is_due_when_a_job_is_first_known(autojump_clock: trio.abc.Clock) -> None:
    """A fresh database has no yesterday: the first report is of the first whole day."""
    diary, store = Diary(TrioClock()), NaiveJobStore()

    await run_for(make_scheduler(diary, store, {"report": AT_SIX}), HOUR_MS)

    assert diary.entries == []
    assert store.jobs["report"].settled.subject == "2026-02-12"


async def test_a_downtime_is_caught_up_once_at_the_start(autojump_clock: trio.abc.Clock) -> None:
    """Ten days away: one run, for the latest day, within the first second."""
    diary, store = Diary(TrioClock()), NaiveJobStore()
    await run_for(make_scheduler(diary, store, {"report": AT_SIX}), HOUR_MS)
    await trio.sleep(10 * DAY_MS / SECOND_MS)

    await run_for(make_scheduler(diary, store, {"report": AT_SIX}), 5 * SECOND_MS)

    assert diary.done("report") == ["2026-02-22"]


async def test_a_run_that_was_killed_is_told_so_and_done_again(
    autojump_clock: trio.abc.Clock,
) -> None:
    """Whatever the moment: the next start does the work, and it is done once."""
    diary, store = Diary(TrioClock(), takes_s={"report": 600}), NaiveJobStore()
    await run_for(make_scheduler(diary, store, {"report": AT_SIX}), 17 * HOUR_MS + 5 * MINUTE_MS)
    assert [run.outcome for run in store.kept] == [Outcome.RUNNING]

    await run_for(make_scheduler(diary, store, {"report": AT_SIX}), HOUR_MS)

    assert [run.outcome for run in store.kept] == [Outcome.INTERRUPTED, Outcome.SUCCEEDED]
    assert diary.done("report") == ["2026-02-13"]


async def test_a_run_that_succeeded_is_not_repeated_when_settling_it_was_lost(
    autojump_clock: trio.abc.Clock,
) -> None:
    """A crash right after the work: the run is there, so the day is done."""
    diary, store = Diary(TrioClock()), NaiveJobStore()
    await run_for(make_scheduler(diary, store, {"report": AT_SIX}), DAY_MS)
    record = store.jobs["report"]
    store.jobs["report"] = attrs.evolve(
        record, settled=Occurrence(at_ms=record.settled.at_ms - DAY_MS, subject="2026-02-12")
    )

    await run_for(make_scheduler(diary, store, {"report": AT_SIX}), HOUR_MS)

    assert diary.done("report") == ["2026-02-13"]
    assert store.jobs["report"].settled.subject == "2026-02-13"


async def test_a_failing_job_is_tried_again_and_then_given_up_with_an_alert(
    autojump_clock: trio.abc.Clock,
) -> None:
    """Two failures heal; three are told, and the next day is a new one."""
    diary, store = Diary(TrioClock()), NaiveJobStore()
    diary.failures.update({"heals": 2, "fails": 3})

    jobs = {"heals": AT_SIX, "fails": AT_SIX}
    await run_for(make_scheduler(diary, store, jobs), 2 * DAY_MS)

    assert diary.done("heals") == ["2026-02-13", "2026-02-14"]
    assert diary.done("fails") == ["2026-02-14"]
    assert [(run.job, run.tries) for run in store.kept if run.outcome is Outcome.FAILED] == [
        ("fails", 3)
    ]
    [alert] = store.findings
    assert (alert.kind, json.loads(alert.detail_json)["job"]) == ("job_failed", "fails")
    assert "no space left" in alert.detail_json


async def test_a_slow_job_holds_up_no_other_and_itself_only_until_it_is_over(
    autojump_clock: trio.abc.Clock,
) -> None:
    """A job that takes three hours misses two of its hours; its neighbour misses none."""
    diary, store = Diary(TrioClock(), takes_s={"slow": 3 * 3_600 + 60}), NaiveJobStore()

    jobs = {"slow": Hourly(0), "quick": Hourly(0)}
    await run_for(make_scheduler(diary, store, jobs), 12 * HOUR_MS)

    assert len(diary.done("quick")) == 11
    assert 2 <= len(diary.done("slow")) <= 4


async def test_a_job_that_hangs_has_failed_and_what_builds_on_it_is_done(
    autojump_clock: trio.abc.Clock,
) -> None:
    """Without an end to it the report would wait for ever, and nobody would be told."""
    diary, store = Diary(TrioClock(), takes_s={"books": 10**9}), NaiveJobStore()
    jobs = {"books": AT_SIX, "report": AT_SIX}
    scheduler = make_scheduler(diary, store, jobs, report=("books",))
    told_at_first = dict(scheduler.ended)

    await run_for(scheduler, 2 * DAY_MS)

    assert diary.done("report") == ["2026-02-13"]
    [run] = [run for run in store.kept if run.outcome is Outcome.FAILED]
    assert (run.job, run.tries) == ("books", 3)
    assert "no end after 240 minutes" in run.detail_json
    assert [finding.kind for finding in store.findings] == ["job_failed"]
    assert told_at_first["books", "failed"] == 0
    assert scheduler.ended["books", "failed"] == 1


async def test_a_job_waits_for_what_it_builds_on(autojump_clock: trio.abc.Clock) -> None:
    """The report is made after the metrics, also when both are caught up at once."""
    takes_s = {"metrics": 1_800}
    diary, store = Diary(TrioClock(), takes_s=takes_s), NaiveJobStore()
    jobs = {"report": Daily(time(6, 0)), "metrics": Daily(time(5, 59))}
    scheduler = make_scheduler(diary, store, jobs, report=("metrics",))

    await run_for(scheduler, DAY_MS)

    assert [name for name, _ in diary.entries] == ["metrics", "report"]


async def test_an_outage_of_the_store_loses_no_run(autojump_clock: trio.abc.Clock) -> None:
    """The work is done once, and its end is written when the store is back."""
    diary, store = Diary(TrioClock(), takes_s={"report": 60}), NaiveJobStore()
    scheduler = make_scheduler(diary, store, {"report": AT_SIX})

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_for, scheduler, DAY_MS)
        await trio.sleep(17 * 3_600 + 30)  # 06:00:30 in Berlin: it runs
        store.is_away = True
        await trio.sleep(3_600)
        store.is_away = False

    assert diary.done("report") == ["2026-02-13"]
    assert [run.outcome for run in store.kept] == [Outcome.SUCCEEDED]


async def test_a_run_whose_beginning_nobody_learnt_of_blocks_its_job_for_no_longer(
    autojump_clock: trio.abc.Clock,
) -> None:
    """The store has the run, the reply was lost: without a look back the job would wait for ever.

    An operator's run is forgotten the same way; who asked was told that it is not known.
    """
    diary, store = Diary(TrioClock()), NaiveJobStore()
    scheduler = make_scheduler(diary, store, {"hourly": Hourly(20)})
    store.replies_lost = 1
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scheduler.run)
        await trio.sleep(HOUR_MS / SECOND_MS)
        by_the_clock = diary.done("hourly")
        store.replies_lost = 1
        with pytest.raises(StoreUnavailableError):
            await scheduler.start("hourly")
        await scheduler.start("hourly")
        await trio.sleep(60)
        nursery.cancel_scope.cancel()

    assert by_the_clock == ["2026-02-12T12Z"]
    assert len(diary.done("hourly")) == 2
    outcomes = [run.outcome for run in store.kept]
    assert outcomes == [Outcome.INTERRUPTED, Outcome.SUCCEEDED] * 2


async def test_an_operator_starts_a_job_but_never_a_second_at_a_time(
    autojump_clock: trio.abc.Clock,
) -> None:
    """The run asked for is an extra one: the scheduled run of the day still comes."""
    diary, store = Diary(TrioClock(), takes_s={"report": 60}), NaiveJobStore()
    scheduler = make_scheduler(diary, store, {"report": AT_SIX})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_for, scheduler, DAY_MS)
        await trio.sleep(1)
        run = await scheduler.start("report")
        with pytest.raises(JobBusyError):
            await scheduler.start("report")
        with pytest.raises(JobUnknownError):
            await scheduler.start("other")
        await trio.sleep(120)
        assert (await scheduler.job_runs("report"))[0].id == run.id
        [view] = await scheduler.jobs()
        assert (view.is_running, view.record.last_outcome) == (False, Outcome.SUCCEEDED)

    assert diary.done("report") == ["2026-02-12", "2026-02-13"]
