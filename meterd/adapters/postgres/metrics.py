"""Daily metrics: the ledger summed per UTC day, organization, resource type and period.

Rule 1: a day is summed whole in one transaction, so it is right or it is the old one; doing it
again changes nothing.
Rule 2: it is incremental: new days, the last two once more (lost tasks may end late), and of older
days only organizations whose rows arrived since the last time.
Rule 3: it runs on the read lane with time-outs of its own; a flush never waits for it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import date, datetime, timedelta
from typing import Any

import attrs

from meterd.adapters.postgres.pool import Connection, PostgresPools
from meterd.adapters.postgres.statements import statements
from meterd.core.units import DAY_MS, from_datetime, to_datetime


DAY_S = 900.0
"""Seconds that one day may take: at 10,000 agents it is about ten."""

AGAIN = timedelta(days=2)
"""The latest days are summed again: a lost task may end for 24 hours."""

OVERLAP = timedelta(hours=1)
"""Rows are looked for this far before the last time: transactions commit after they begin."""


@attrs.frozen(kw_only=True)
class Aggregated:
    """What an aggregation did."""

    days: int
    """Days that were summed whole."""
    amended: int
    """Older days of single organizations that were summed again."""


@attrs.define(eq=False, slots=False)
class PostgresMetrics:
    """Table `daily_metrics`. Errors: StoreUnavailableError, StoreRejectedError."""

    pools: PostgresPools

    async def aggregate(self, until_ms: int) -> Aggregated:
        """Bring the metrics up to the UTC day that starts at `until_ms`, that day included.

        Source: queries/books.sql. Killed in the middle, the next call does the rest.
        """
        position = await self._one("position")
        first = position["first_record"]
        known = position["aggregated_until"]
        # Never less far than before: what arrived meanwhile is looked for up to there only once.
        until = max(_date(until_ms), known or date.min)
        start = until - AGAIN if known is None else known + timedelta(days=1) - AGAIN
        if known is None and first is not None:
            start = min(until, _date(from_datetime(first)))
        days = 0
        for step in range((until - start).days + 1):
            await self._sum(start + timedelta(days=step), None)
            days += 1
        late: dict[date, list[str]] = defaultdict(list)
        if position["arrived_until"] is not None:
            since = position["arrived_until"] - OVERLAP
            for row in await self._rows("arrived_late", since, _instant(start)):
                late[row["day"]].append(row["organization_id"])
        for day, organizations in late.items():
            await self._sum(day, organizations)
        await self._one("move_position", until, position["now"])
        return Aggregated(days=days, amended=sum(map(len, late.values())))

    async def aggregate_day(self, day_ms: int) -> None:
        """Sum one UTC day again, all organizations; the day may be past or still going on."""
        await self._sum(_date(day_ms), None)

    async def _sum(self, day: date, organizations: Sequence[str] | None) -> None:
        texts = statements("books")
        arguments = (day, _instant(day), _instant(day + timedelta(days=1)), organizations)

        async def work(connection: Connection) -> None:
            async with connection.transaction():
                await connection.execute(f"SET LOCAL statement_timeout = {int(DAY_S * 1_000)}")
                # One at a time: a command and the job may want the same day.
                await connection.execute("LOCK TABLE metrics_position IN SHARE ROW EXCLUSIVE MODE")
                await connection.execute(texts["clear_day"], day, organizations)
                await connection.execute(texts["aggregate_rows"], *arguments)
                await connection.execute(texts["aggregate_tasks"], *arguments)

        await self.pools.read("sum a day", work, timeout_s=DAY_S)

    async def _one(self, name: str, *arguments: Any) -> Any:
        rows = await self._rows(name, *arguments)
        return rows[0] if rows else None

    async def _rows(self, name: str, *arguments: Any) -> list[Any]:
        async def work(connection: Connection) -> list[Any]:
            async with connection.transaction():
                await connection.execute(f"SET LOCAL statement_timeout = {int(DAY_S * 1_000)}")
                return list(await connection.fetch(statements("books")[name], *arguments))

        return await self.pools.read("read metrics", work, timeout_s=DAY_S)


def _date(instant_ms: int) -> date:
    return to_datetime(instant_ms).date()


def _instant(day: date) -> datetime:
    return to_datetime((day - date(1970, 1, 1)).days * DAY_MS)
