"""Jobs, their runs and what they find, in PostgreSQL.

Rule 1: a run is written before it begins, and its end when it is over: a run that has no end was
interrupted by a crash, and is told so at the next start.
Rule 2: two indexes keep what the scheduler promises: one run of a job at a time, and one success
for each hour or day, whoever asks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from meterd.adapters.postgres.pool import Connection, PostgresPools
from meterd.adapters.postgres.statements import statements
from meterd.core.books import BookFinding
from meterd.core.schedule import JobRecord, JobRun, Occurrence, Outcome, Trigger
from meterd.core.units import from_datetime, to_datetime


@attrs.define(eq=False, slots=False)
class PostgresJobs:
    """`JobStore` on tables `jobs`, `job_runs` and `findings`.

    Errors: every method StoreUnavailableError, StoreRejectedError. Source: queries/jobs.sql.
    """

    pools: PostgresPools
    epoch: int | None = None
    """Of the process that runs jobs; `None`: beside it, where none begins."""

    async def register(self, occurrences: Mapping[str, Occurrence]) -> None:
        """Make jobs known; one that is known already keeps what is remembered of it."""
        names = list(occurrences)
        settled = [to_datetime(each.at_ms) for each in occurrences.values()]
        subjects = [each.subject for each in occurrences.values()]
        await self._execute("register", names, settled, subjects)

    async def interrupt_runs(self, at_ms: int) -> None:
        """Close the runs that an earlier process has left open."""
        await self._execute("interrupt", to_datetime(at_ms), self.epoch)

    async def records(self, names: Sequence[str]) -> Mapping[str, JobRecord]:
        """Return what is remembered of jobs."""
        rows = await self._fetch("records", list(names))
        return {row["name"]: _record(row) for row in rows}

    async def all_records(self) -> Sequence[JobRecord]:
        """Return every job this database knows, by name."""
        return [_record(row) for row in await self._fetch("all_records")]

    async def begin(self, run: JobRun) -> bool:
        """Write that a run begins; False when it is running, or the database is another's."""
        found = await self._fetch(
            "begin",
            run.id,
            run.job,
            run.subject,
            run.trigger.value,
            to_datetime(run.started_at_ms),
            self.epoch,
        )
        return bool(found)

    async def is_done(self, job: str, subject: str) -> bool:
        """Tell whether a scheduled run for this hour or day has succeeded."""
        [row] = await self._fetch("is_done", job, subject)
        return bool(row["exists"])

    async def finish(self, run: JobRun, error: str | None) -> None:
        """Write how a run ended; one that was told to be interrupted stays so."""
        assert run.finished_at_ms is not None, run
        await self._execute(
            "finish",
            run.id,
            run.outcome.value,
            to_datetime(run.finished_at_ms),
            run.tries,
            run.detail_json,
            error,
        )

    async def settle(self, job: str, occurrence: Occurrence) -> None:
        """Write that an occurrence needs no more work."""
        await self._execute("settle", job, to_datetime(occurrence.at_ms), occurrence.subject)

    async def runs(self, job: str, limit: int) -> Sequence[JobRun]:
        """Return a job's latest runs, newest first."""
        return [_run(row) for row in await self._fetch("runs", job, limit)]

    async def add_findings(self, findings: Sequence[BookFinding]) -> int:
        """Store findings and return how many are new; one with a known id changes nothing."""
        if not findings:
            return 0
        columns = zip(*map(_finding_columns, findings), strict=True)
        return len(await self._fetch("find", *map(list, columns)))

    async def findings(
        self,
        *,
        before: tuple[int, str],
        kind: str | None,
        organization_id: str | None,
        limit: int,
    ) -> Sequence[BookFinding]:
        """Return findings, newest first, before the (at_ms, id) seen last."""
        at_ms, finding_id = before
        rows = await self._fetch(
            "findings", to_datetime(at_ms), finding_id, kind, organization_id, limit
        )
        return [
            BookFinding(
                id=row["id"],
                at_ms=from_datetime(row["at"]),
                kind=row["kind"],
                organization_id=row["organization_id"],
                detail_json=row["detail"],
            )
            for row in rows
        ]

    async def _execute(self, name: str, *arguments: Any) -> None:
        async def work(connection: Connection) -> None:
            await connection.execute(statements("jobs")[name], *arguments)

        await self.pools.read("keep a job's state", work)

    async def _fetch(self, name: str, *arguments: Any) -> list[Any]:
        async def work(connection: Connection) -> list[Any]:
            return list(await connection.fetch(statements("jobs")[name], *arguments))

        return await self.pools.read("read a job's state", work)


def _record(row: Mapping[str, Any]) -> JobRecord:
    return JobRecord(
        name=row["name"],
        settled=Occurrence(at_ms=from_datetime(row["settled_at"]), subject=row["settled_subject"]),
        last_run_at_ms=_optional_ms(row["last_run_at"]),
        last_finished_at_ms=_optional_ms(row["last_finished_at"]),
        last_outcome=None if row["last_outcome"] is None else Outcome(row["last_outcome"]),
        last_error=row["last_error"],
    )


def _run(row: Mapping[str, Any]) -> JobRun:
    return JobRun(
        id=row["id"],
        job=row["job"],
        subject=row["subject"],
        trigger=Trigger(row["trigger"]),
        tries=row["tries"],
        started_at_ms=from_datetime(row["started_at"]),
        finished_at_ms=_optional_ms(row["finished_at"]),
        outcome=Outcome(row["outcome"]),
        detail_json=row["detail"],
    )


def _finding_columns(finding: BookFinding) -> tuple[Any, ...]:
    return (
        finding.id,
        finding.organization_id,
        to_datetime(finding.at_ms),
        finding.kind,
        finding.detail_json,
    )


def _optional_ms(instant: Any) -> int | None:
    return None if instant is None else from_datetime(instant)
