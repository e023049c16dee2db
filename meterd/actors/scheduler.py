"""The scheduler: jobs that run by the clock, each as a task of its own, none twice at a time.

Rule 1: what a job has done is in the store. A run missed while meterd was down is caught up once,
        for the latest hour or day only; what an operator starts never counts as the scheduled run.
Rule 2: a run that fails, or does not end in time, is tried again with back-off; after the last try
        it is given up until its next occurrence, logged as an error and kept as a finding.
Rule 3: a job waits for those it comes after, while they are due or running.
Rule 4: no job delays another, and none delays an organization: a job reads through the read lane.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from datetime import tzinfo
from typing import Any

import attrs
import structlog
import trio

from meterd.actors.supervisor import Crash, attempt_async
from meterd.core.books import JOB_FAILED, BookFinding, as_json
from meterd.core.ids import fact_id
from meterd.core.schedule import (
    JobRecord,
    JobRun,
    Occurrence,
    Outcome,
    Schedule,
    Trigger,
    due,
    following,
    latest,
)
from meterd.core.supervision import backoff_ms
from meterd.core.units import HOUR_MS, MINUTE_MS, SECOND_MS, rfc3339
from meterd.errors import MeterdError, StoreUnavailableError
from meterd.ports.clock import Clock
from meterd.ports.ids import Ids
from meterd.ports.jobs import JobStore


log = structlog.get_logger(__name__)

LOOK_MS_MAX = HOUR_MS
"""The longest sleep: a clock that is slewed is looked at this often."""

RUNS_SHOWN = 20


@attrs.frozen
class Order:
    """What a run is for: jobs work on the day before `at_ms`, or on now."""

    subject: str
    at_ms: int
    """The occurrence, or when the operator asked."""


Work = Callable[[Order], Awaitable[Mapping[str, Any]]]
"""Does a job's work and returns what it did, as JSON values."""


@attrs.frozen(kw_only=True)
class Job:
    """A named piece of work with a schedule."""

    name: str
    schedule: Schedule
    work: Work
    after: tuple[str, ...] = ()
    """Jobs whose work this one builds on."""


@attrs.frozen(kw_only=True)
class RetryPolicy:
    """How a failing run is tried again."""

    tries_max: int = 5
    delay_min_ms: int = 30 * SECOND_MS
    delay_max_ms: int = 15 * MINUTE_MS
    try_max_ms: int = HOUR_MS
    """A try that takes longer hangs: it is cancelled and has failed."""


@attrs.frozen(kw_only=True)
class JobView:
    """A job as an operator sees it."""

    name: str
    schedule: str
    record: JobRecord
    next_at_ms: int
    is_running: bool


class JobTooSlowError(MeterdError):
    """A try of a job did not end in time and was cancelled."""

    transient = True


class JobUnknownError(MeterdError):
    """There is no job of this name."""


class JobBusyError(MeterdError):
    """The job is running already; it never runs twice at a time."""

    transient = True


class Scheduler:
    """Runs jobs when they are due, and when an operator asks."""

    def __init__(
        self,
        jobs: Sequence[Job],
        store: JobStore,
        *,
        zone: tzinfo,
        clock: Clock,
        ids: Ids,
        jitter: Iterator[float],
        policy: RetryPolicy | None = None,
    ) -> None:
        self._jobs = {job.name: job for job in jobs}
        assert len(self._jobs) == len(jobs), "two jobs of one name"
        assert all(name in self._jobs for job in jobs for name in job.after), "unknown job"
        self._store = store
        self._zone = zone
        self._clock = clock
        self._ids = ids
        self._jitter = jitter
        self._policy = policy or RetryPolicy()
        self._settled: dict[str, Occurrence] = {}
        self._running: set[str] = set()
        self._asked: list[tuple[Job, JobRun]] = []
        self._unsure: dict[str, JobRun] = {}
        self._kick = trio.Event()
        self.ended: Counter[tuple[str, ...]] = Counter(
            {
                (name, outcome.value): 0  # said from the start: an alert sees the first one, too
                for name in self._jobs
                for outcome in (Outcome.SUCCEEDED, Outcome.FAILED)
            }
        )
        """Runs that ended, by job and outcome: for metrics."""

    # --- the actor ----------------------------------------------------------------------------

    async def run(self) -> None:
        """Run jobs for ever. Errors: StoreUnavailableError while it starts; it is started again."""
        now_ms = self._clock.now_ms()
        self._running.clear()
        await self._store.interrupt_runs(now_ms)
        await self._store.register(
            {job.name: latest(job.schedule, self._zone, now_ms) for job in self._jobs.values()}
        )
        known = await self._store.records(list(self._jobs))
        self._settled = {name: record.settled for name, record in known.items()}
        async with trio.open_nursery() as nursery:
            while True:
                self._kick = trio.Event()
                for job, run in self._take_asked():
                    nursery.start_soon(self._run_asked, job, run)
                for job, occurrence in self._ready():
                    self._running.add(job.name)
                    nursery.start_soon(self._run_due, job, occurrence)
                with trio.move_on_after(self._sleep_ms() / SECOND_MS):
                    await self._kick.wait()

    def _due(self) -> dict[str, Occurrence]:
        now_ms = self._clock.now_ms()
        found = {
            job.name: due(job.schedule, self._zone, self._settled[job.name], now_ms)
            for job in self._jobs.values()
        }
        return {name: occurrence for name, occurrence in found.items() if occurrence is not None}

    def _ready(self) -> list[tuple[Job, Occurrence]]:
        """Return the jobs to start now: due, not running, and nothing before them open."""
        waiting = self._due()
        opened = waiting.keys() | self._running
        return [
            (self._jobs[name], occurrence)
            for name, occurrence in waiting.items()
            if name not in self._running and not opened & set(self._jobs[name].after)
        ]

    def _sleep_ms(self) -> int:
        """Return the time to the next occurrence of any job, at most LOOK_MS_MAX."""
        now_ms = self._clock.now_ms()
        upcoming = [
            following(job.schedule, self._zone, now_ms).at_ms for job in self._jobs.values()
        ]
        return max(1, min(LOOK_MS_MAX, min(upcoming, default=now_ms + LOOK_MS_MAX) - now_ms))

    async def _run_due(self, job: Job, occurrence: Occurrence) -> None:
        """Run a job for an occurrence until it succeeds or is given up, and settle it."""
        try:
            await self._persist(lambda: self._settle(job, occurrence))
        finally:
            self._running.discard(job.name)
            self._kick.set()

    async def _settle(self, job: Job, occurrence: Occurrence) -> None:
        """Run, unless it was done already: a crash after the work and before this is covered."""
        if not await self._store.is_done(job.name, occurrence.subject):
            run = self._new_run(job, occurrence.subject, Trigger.SCHEDULE)
            if not await self._begin(run):
                raise StoreUnavailableError("begin a run", f"{job.name} runs elsewhere")
            await self._work(job, run, occurrence.at_ms, self._policy.tries_max)
        await self._store.settle(job.name, occurrence)
        self._settled[job.name] = occurrence

    async def _begin(self, run: JobRun) -> bool:
        """Write that a run begins; one that began without our learning it is closed first."""
        lost = self._unsure.get(run.job)
        if lost is not None:
            now_ms = self._clock.now_ms()
            ended = attrs.evolve(lost, outcome=Outcome.INTERRUPTED, finished_at_ms=now_ms)
            await self._store.finish(ended, None)
        self._unsure[run.job] = run
        is_begun = await self._store.begin(run)
        del self._unsure[run.job]
        return is_begun

    async def _persist(self, step: Callable[[], Awaitable[None]]) -> None:
        """Do a step again until the store has taken it: a job is not lost in an outage."""
        tries = 0
        while isinstance(crash := await attempt_async(step), Crash):
            tries += 1
            log.warning("job_state_not_kept", error=str(crash.error), tries=tries)
            await self._wait(tries)

    async def _work(self, job: Job, run: JobRun, at_ms: int, tries_max: int) -> JobRun:
        """Do the work of a run, again when it fails, and write how it ended."""
        order = Order(run.subject, at_ms)
        tries = 0
        while True:
            tries += 1
            result = await attempt_async(self._try, job, order)
            if not isinstance(result, Crash) or tries >= tries_max:
                break
            log.warning("job_failed", job=job.name, tries=tries, exc_info=result.error)
            await self._wait(tries)
        error = _described(result.error) if isinstance(result, Crash) else None
        ended = attrs.evolve(
            run,
            tries=tries,
            finished_at_ms=self._clock.now_ms(),
            outcome=Outcome.FAILED if isinstance(result, Crash) else Outcome.SUCCEEDED,
            detail_json=as_json({"error": error} if isinstance(result, Crash) else result),
        )
        if isinstance(result, Crash):
            log.error("job_given_up", job=job.name, subject=run.subject, exc_info=result.error)
            await self._persist(lambda: self._alert(ended, error or ""))
        self.ended[job.name, ended.outcome.value] += 1
        await self._persist(lambda: self._store.finish(ended, error))
        return ended

    async def _try(self, job: Job, order: Order) -> Mapping[str, Any]:
        limit_ms = self._policy.try_max_ms
        with trio.move_on_after(limit_ms / SECOND_MS):
            return await job.work(order)
        raise JobTooSlowError(f"no end after {limit_ms // MINUTE_MS} minutes")

    async def _alert(self, run: JobRun, error: str) -> None:
        assert run.finished_at_ms is not None, run
        finding = BookFinding(
            id=fact_id("fnd", run.started_at_ms, JOB_FAILED, run.id),
            at_ms=run.finished_at_ms,
            kind=JOB_FAILED,
            organization_id=None,
            detail_json=as_json(
                {"job": run.job, "subject": run.subject, "tries": run.tries, "error": error}
            ),
        )
        await self._store.add_findings([finding])

    async def _wait(self, tries: int) -> None:
        delay_ms = backoff_ms(
            tries, least_ms=self._policy.delay_min_ms, most_ms=self._policy.delay_max_ms
        )
        await trio.sleep(delay_ms * (0.5 + next(self._jitter)) / SECOND_MS)

    def _new_run(self, job: Job, subject: str, trigger: Trigger) -> JobRun:
        return JobRun(
            id=self._ids.new("run"),
            job=job.name,
            subject=subject,
            trigger=trigger,
            tries=0,
            started_at_ms=self._clock.now_ms(),
        )

    # --- operators ----------------------------------------------------------------------------

    async def start(self, name: str) -> JobRun:
        """Start a job now and return its run, which goes on in the background.

        Errors: JobUnknownError, JobBusyError, StoreUnavailableError.
        """
        job = self._jobs.get(name)
        if job is None:
            raise JobUnknownError(name)
        if name in self._running:
            raise JobBusyError(name)
        self._running.add(name)
        now_ms = self._clock.now_ms()
        subject = latest(job.schedule, self._zone, now_ms).subject
        run = self._new_run(job, subject, Trigger.OPERATOR)
        try:
            is_begun = await self._begin(run)
        except BaseException:
            self._running.discard(name)
            raise
        if not is_begun:
            self._running.discard(name)
            raise JobBusyError(name)
        self._asked.append((job, run))
        self._kick.set()
        return run

    def _take_asked(self) -> list[tuple[Job, JobRun]]:
        asked, self._asked = self._asked, []
        return asked

    async def _run_asked(self, job: Job, run: JobRun) -> None:
        """Run once: who asked can ask again."""
        try:
            await self._work(job, run, run.started_at_ms, 1)
        finally:
            self._running.discard(job.name)
            self._kick.set()

    async def jobs(self) -> list[JobView]:
        """Return every job with what is remembered of it. Errors: StoreUnavailableError."""
        known = await self._store.records(list(self._jobs))
        now_ms = self._clock.now_ms()
        return [
            JobView(
                name=job.name,
                schedule=str(job.schedule),
                record=known[job.name],
                next_at_ms=following(job.schedule, self._zone, now_ms).at_ms,
                is_running=job.name in self._running,
            )
            for job in self._jobs.values()
            if job.name in known
        ]

    async def job_runs(self, name: str) -> Sequence[JobRun]:
        """Return a job's latest runs. Errors: JobUnknownError, StoreUnavailableError."""
        if name not in self._jobs:
            raise JobUnknownError(name)
        return await self._store.runs(name, RUNS_SHOWN)

    @property
    def figures(self) -> Mapping[str, Any]:
        """Return what an operator sees of the actor."""
        now_ms = self._clock.now_ms()
        return {
            "running": sorted(self._running),
            "runs": self.ended.total(),
            "next_at": rfc3339(now_ms + self._sleep_ms()),
        }


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:1_000]
