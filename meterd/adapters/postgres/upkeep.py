"""Keeping the books: what is overdue, what does not agree, what is old enough to drop.

Rule 1: checks read in one snapshot each and change nothing.
Rule 2: counters can be rebuilt from the ledger, the ledger never from counters; only the owner of
the database rebuilds, and every change is in the audit log.
Rule 3: retention drops in small batches and first says up to where, so that the audit, and whoever
comes after a crash, knows what is gone on purpose. The ledger is never dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import attrs

from meterd.adapters.postgres.audit import audit
from meterd.adapters.postgres.pool import Connection, PostgresPools
from meterd.adapters.postgres.statements import statements
from meterd.core.books import (
    LEDGER_DIFFERENCE,
    METRICS_DIFFERENCE,
    TASK_DIFFERENCE,
    BookDifference,
    RebuiltCounters,
    StoredCounters,
    as_json,
)
from meterd.core.ids import fact_id
from meterd.core.units import to_datetime
from meterd.errors import OwnershipLostError


CHECK_S = 900.0
"""Seconds a check of everything may take."""

BATCH_S = 60.0
"""Seconds one batch of retention may take."""

BATCHES_MAX = 10_000


@attrs.define(eq=False, slots=False)
class PostgresUpkeep:
    """`UpkeepStore`. Errors: every method StoreUnavailableError, StoreRejectedError."""

    pools: PostgresPools

    async def overdue(self, now_ms: int, *, payment_grace_ms: int) -> Sequence[str]:
        """Return the organizations whose period or payment grace has ended unnoticed."""
        grace = timedelta(milliseconds=payment_grace_ms)
        rows = await self._fetch("overdue", to_datetime(now_ms), grace)
        return [row["organization_id"] for row in rows]

    async def ledger_differences(self) -> tuple[int, Sequence[BookDifference]]:
        """Return how many organizations were audited, and what differs; see audit.py."""
        found = await audit(self.pools)
        return found.organizations, [
            BookDifference(
                kind=LEDGER_DIFFERENCE,
                organization_id=each.organization_id,
                subject=each.subject,
                what=each.what,
                expected=each.expected,
                found=each.found,
            )
            for each in found.differences
        ]

    async def metrics_differences(self, since_ms: int) -> Sequence[BookDifference]:
        """Return the periods that ended since, whose daily metrics do not add up to them."""
        return [
            BookDifference(
                kind=METRICS_DIFFERENCE,
                organization_id=row["organization_id"],
                subject=row["billing_period"],
                what="agent time of its days, ms",
                expected=str(row["expected"]),
                found=str(row["found"]),
            )
            for row in await self._fetch("metrics_differences", to_datetime(since_ms))
        ]

    async def task_differences(
        self, since_ms: int, until_ms: int
    ) -> tuple[int, Sequence[BookDifference]]:
        """Return how many tasks ended in this time, and those whose rows do not add up."""
        span = (to_datetime(since_ms), to_datetime(until_ms))
        [count] = await self._fetch("ended_tasks", *span)
        return count["n"], [
            BookDifference(
                kind=TASK_DIFFERENCE,
                organization_id=row["organization_id"],
                subject=f"task {row['task_id']}",
                what="agent time of its rows, ms",
                expected=str(row["metered_ms"]),
                found=str(row["row_ms"]),
            )
            for row in await self._fetch("task_differences", *span)
        ]

    async def stored_counters(
        self, organization_ids: Sequence[str]
    ) -> Mapping[str, StoredCounters]:
        """Return the counters of organizations' open periods, with their positions."""
        rows = await self._fetch("stored_counters", list(organization_ids))
        return {
            row["organization_id"]: StoredCounters(
                seq=row["seq"],
                label=row["billing_period"],
                used_ms=row["used_ms"],
                recorded_ms=row["recorded_ms"],
                overage_minutes=row["overage_minutes"],
                overage_usd=row["overage_cost_exact"],
                total_usd=row["total_cost_exact"],
            )
            for row in rows
        }

    async def rebuild_counters(
        self, epoch: int, *, organization_id: str | None, at_ms: int
    ) -> Sequence[RebuiltCounters]:
        """Make counters what the ledger says, and return those that were not.

        For the owner of this epoch while no actor is in memory: actors do not read them again.
        Errors: OwnershipLostError: nothing was written.
        """
        texts = statements("upkeep")

        async def work(connection: Connection) -> list[RebuiltCounters] | None:
            async with connection.transaction():
                await connection.execute(f"SET LOCAL statement_timeout = {int(CHECK_S * 1_000)}")
                if not await connection.fetchval(texts["owns"], epoch):
                    return None
                rows = await connection.fetch(texts["rebuild"], epoch, organization_id)
                rebuilt = [_rebuilt(row) for row in rows]
                if rebuilt:
                    columns = zip(*(_audit_columns(each, at_ms) for each in rebuilt), strict=True)
                    await connection.execute(
                        texts["audit_rebuild"], to_datetime(at_ms), *map(list, columns)
                    )
                return rebuilt

        rebuilt = await self.pools.read("rebuild counters", work, timeout_s=CHECK_S)
        if rebuilt is None:
            raise OwnershipLostError(f"epoch {epoch} no longer owns the database")
        return rebuilt

    async def drop_tasks(self, before_ms: int) -> int:
        """Drop tasks that ended before an instant; their ledger rows stay. Return how many."""
        await self._write("mark", "tasks", to_datetime(before_ms))
        return await self._in_batches("drop_tasks", before_ms)

    async def drop_payloads(self, before_ms: int) -> int:
        """Empty the events of Stripe that were done with before an instant."""
        return await self._in_batches("drop_payloads", before_ms)

    async def drop_answers(self, before_ms: int) -> int:
        """Drop answers kept under Idempotency-Keys from before an instant."""
        return await self._in_batches("drop_answers", before_ms)

    async def drop_runs(self, before_ms: int) -> int:
        """Drop the runs of jobs that began before an instant."""
        return await self._in_batches("drop_runs", before_ms)

    async def _in_batches(self, name: str, before_ms: int) -> int:
        dropped = 0
        for _ in range(BATCHES_MAX):
            count = await self._write(name, to_datetime(before_ms))
            dropped += count
            if not count:
                break
        return dropped

    async def _write(self, name: str, *arguments: Any) -> int:
        async def work(connection: Connection) -> int:
            async with connection.transaction():
                await connection.execute(f"SET LOCAL statement_timeout = {int(BATCH_S * 1_000)}")
                tag: str = await connection.execute(statements("upkeep")[name], *arguments)
                return int(tag.rpartition(" ")[2])

        return await self.pools.read("drop what is old", work, timeout_s=BATCH_S)

    async def _fetch(self, name: str, *arguments: Any) -> list[Any]:
        async def work(connection: Connection) -> list[Any]:
            async with connection.transaction(readonly=True):
                await connection.execute(f"SET LOCAL statement_timeout = {int(CHECK_S * 1_000)}")
                return list(await connection.fetch(statements("upkeep")[name], *arguments))

        return await self.pools.read("check the books", work, timeout_s=CHECK_S)


def _rebuilt(row: Mapping[str, Any]) -> RebuiltCounters:
    return RebuiltCounters(
        organization_id=row["organization_id"],
        label=row["billing_period"],
        wrong_used_ms=row["wrong_used_ms"],
        wrong_recorded_ms=row["wrong_recorded_ms"],
        used_ms=row["used_ms"],
        recorded_ms=row["recorded_ms"],
    )


def _audit_columns(rebuilt: RebuiltCounters, at_ms: int) -> tuple[Any, ...]:
    label = rebuilt.label
    wrong = {"used_ms": rebuilt.wrong_used_ms, "recorded_ms": rebuilt.wrong_recorded_ms}
    right = {"used_ms": rebuilt.used_ms, "recorded_ms": rebuilt.recorded_ms}
    return (
        fact_id("aud", at_ms, "counters.rebuild", rebuilt.organization_id, label),
        rebuilt.organization_id,
        as_json({"billing_period": label, **wrong}),
        as_json({"billing_period": label, **right}),
    )
