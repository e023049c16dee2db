"""Jobs and their runs, as remembered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from meterd.core.books import BookFinding
from meterd.core.schedule import JobRecord, JobRun, Occurrence


class JobStore(Protocol):
    """Where jobs and their runs are remembered; errors as every store's."""

    async def register(self, occurrences: Mapping[str, Occurrence]) -> None:
        """Make jobs known; one that is known already keeps what is remembered of it."""
        ...

    async def interrupt_runs(self, at_ms: int) -> None:
        """Close the runs that an earlier process has left open."""
        ...

    async def records(self, names: Sequence[str]) -> Mapping[str, JobRecord]:
        """Return what is remembered of jobs."""
        ...

    async def begin(self, run: JobRun) -> bool:
        """Write that a run begins; False when the job is running, wherever."""
        ...

    async def is_done(self, job: str, subject: str) -> bool:
        """Tell whether a scheduled run for this hour or day has succeeded."""
        ...

    async def finish(self, run: JobRun, error: str | None) -> None:
        """Write how a run ended."""
        ...

    async def settle(self, job: str, occurrence: Occurrence) -> None:
        """Write that an occurrence needs no more work."""
        ...

    async def runs(self, job: str, limit: int) -> Sequence[JobRun]:
        """Return a job's latest runs, newest first."""
        ...

    async def add_findings(self, findings: Sequence[BookFinding]) -> int:
        """Store findings and return how many are new."""
        ...
