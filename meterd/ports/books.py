"""What keeps the books true: checks, findings, retention and the files of reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from meterd.core.books import BookDifference, BookFinding, RebuiltCounters, StoredCounters


class UpkeepStore(Protocol):
    """Checks, and what retention drops; errors as every store's."""

    async def overdue(self, now_ms: int, *, payment_grace_ms: int) -> Sequence[str]:
        """Return the organizations whose period or payment grace has ended unnoticed."""
        ...

    async def ledger_differences(self) -> tuple[int, Sequence[BookDifference]]:
        """Return how many organizations were audited, and what differs."""
        ...

    async def metrics_differences(self, since_ms: int) -> Sequence[BookDifference]:
        """Return the periods that ended since, whose daily metrics do not add up to them."""
        ...

    async def task_differences(
        self, since_ms: int, until_ms: int
    ) -> tuple[int, Sequence[BookDifference]]:
        """Return how many tasks ended in this time, and those whose rows do not add up."""
        ...

    async def stored_counters(
        self, organization_ids: Sequence[str]
    ) -> Mapping[str, StoredCounters]:
        """Return the counters of organizations' open periods, with their positions."""
        ...

    async def rebuild_counters(
        self, epoch: int, *, organization_id: str | None, at_ms: int
    ) -> Sequence[RebuiltCounters]:
        """Make counters what the ledger says, and return those that were not."""
        ...

    async def drop_tasks(self, before_ms: int) -> int:
        """Drop tasks that ended before an instant."""
        ...

    async def drop_payloads(self, before_ms: int) -> int:
        """Empty the events of Stripe that were done with before an instant."""
        ...

    async def drop_answers(self, before_ms: int) -> int:
        """Drop answers kept under Idempotency-Keys from before an instant."""
        ...

    async def drop_runs(self, before_ms: int) -> int:
        """Drop the runs of jobs that began before an instant."""
        ...


class FindingStore(Protocol):
    """Where findings are kept."""

    async def add_findings(self, findings: Sequence[BookFinding]) -> int:
        """Store findings and return how many are new."""
        ...

    async def findings(
        self,
        *,
        before: tuple[int, str],
        kind: str | None,
        organization_id: str | None,
        limit: int,
    ) -> Sequence[BookFinding]:
        """Return findings, newest first, before the (at_ms, id) seen last."""
        ...


class Files(Protocol):
    """Where reports are written as files."""

    async def write(self, day: str, text: str) -> Any:
        """Write a report, whole or not at all. Errors: OSError."""
        ...
