"""The naive twin of the scheduler's store: what PostgreSQL's indexes promise, in dictionaries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs
import trio

from meterd.core.books import BookFinding
from meterd.core.schedule import JobRecord, JobRun, Occurrence, Outcome, Trigger
from meterd.errors import StoreUnavailableError


@attrs.define
class NaiveJobStore:
    """Jobs and runs in lists, with the two rules that PostgreSQL's indexes keep."""

    jobs: dict[str, JobRecord] = attrs.Factory(dict)
    by_id: dict[str, JobRun] = attrs.Factory(dict)
    running: set[str] = attrs.Factory(set)
    done: set[tuple[str, str]] = attrs.Factory(set)
    findings: list[BookFinding] = attrs.Factory(list)
    is_away: bool = False
    replies_lost: int = 0
    """So many runs begin without anybody learning it."""

    @property
    def kept(self) -> list[JobRun]:
        """Return all runs, oldest first."""
        return list(self.by_id.values())

    async def register(self, occurrences: Mapping[str, Occurrence]) -> None:
        """Make jobs known; one that is known keeps what is remembered."""
        await self._answer()
        for name, settled in occurrences.items():
            self.jobs.setdefault(name, JobRecord(name=name, settled=settled))

    async def interrupt_runs(self, at_ms: int) -> None:
        """Close the runs that an earlier process has left open."""
        await self._answer()
        for run in self.kept if self.running else ():
            if run.outcome is Outcome.RUNNING:
                self.by_id[run.id] = attrs.evolve(
                    run, outcome=Outcome.INTERRUPTED, finished_at_ms=at_ms
                )
        self.running.clear()

    async def records(self, names: Sequence[str]) -> Mapping[str, JobRecord]:
        """Return what is remembered of jobs."""
        await self._answer()
        return {name: self.jobs[name] for name in names if name in self.jobs}

    async def begin(self, run: JobRun) -> bool:
        """Write that a run begins; False when the job is running."""
        await self._answer()
        if run.job in self.running:
            return False
        self.running.add(run.job)
        self.by_id[run.id] = run
        if self.replies_lost:
            self.replies_lost -= 1
            raise StoreUnavailableError("begin a run", "the reply was lost")
        return True

    async def is_done(self, job: str, subject: str) -> bool:
        """Tell whether a scheduled run for this hour or day has succeeded."""
        await self._answer()
        return (job, subject) in self.done

    async def finish(self, run: JobRun, error: str | None) -> None:
        """Write how a run ended; one that never began, or has ended, changes nothing."""
        await self._answer()
        begun = self.by_id.get(run.id)
        if begun is None or begun.outcome is not Outcome.RUNNING:
            return
        self.by_id[run.id] = run
        self.running.discard(run.job)
        if run.outcome is Outcome.SUCCEEDED and run.trigger is Trigger.SCHEDULE:
            self.done.add((run.job, run.subject))
        self.jobs[run.job] = attrs.evolve(
            self.jobs[run.job], last_outcome=run.outcome, last_error=error
        )

    async def settle(self, job: str, occurrence: Occurrence) -> None:
        """Write that an occurrence needs no more work."""
        await self._answer()
        self.jobs[job] = attrs.evolve(self.jobs[job], settled=occurrence)

    async def runs(self, job: str, limit: int) -> Sequence[JobRun]:
        """Return a job's latest runs, newest first."""
        await self._answer()
        return [run for run in self.kept[::-1] if run.job == job][:limit]

    async def add_findings(self, findings: Sequence[BookFinding]) -> int:
        """Keep findings."""
        await self._answer()
        self.findings.extend(findings)
        return len(findings)

    async def _answer(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.is_away:
            raise StoreUnavailableError("keep jobs", "away")
