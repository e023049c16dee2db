"""Making reports: metrics, the day's snapshot, the report; each step can be done again.

Rule 1: a report is made once and kept; asked for again it is the kept one. A refresh sums the
ledger of its day anew and makes it again from what is stored: the same unless something changed.
Rule 2: a day's revenue is kept once at the day's end, because Stripe's history cannot be asked for
later; only the last whole day can still be kept. What is kept of a day before its end is replaced.
Nothing here depends on organizations' actors, so commands can do it beside a running meterd.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from datetime import date
from decimal import Decimal
from typing import Any, Protocol

import attrs
import trio

from meterd.core.books import as_json
from meterd.core.money import round_to_cents
from meterd.core.plan import Catalogue
from meterd.core.revenue import Customer
from meterd.core.schedule import last_whole_day_ms
from meterd.core.units import DAY_MS, day_start_ms, rfc3339
from meterd.ports.clock import Clock
from meterd.reporting.document import document
from meterd.reporting.figures import (
    CustomerDay,
    CustomerStanding,
    DayFacts,
    StoredReport,
    TierLine,
)
from meterd.reporting.making import Making
from meterd.reporting.markdown import markdown
from meterd.reporting.sums import RevenueSums


CUSTOMERS_AT_ONCE = 50
"""Customers added before other tasks get their turn: a few milliseconds of work."""


class ReportStore(Protocol):
    """Snapshots, what reports are made from, and the reports; errors as every store's."""

    def priced_customers(self, day_ms: int, *, at_ms: int) -> AsyncIterator[CustomerStanding]:
        """Yield every organization of the day's end with what it is worth at an instant."""
        ...

    async def snapshot_taken_at_ms(self, day_ms: int) -> int | None:
        """Return when a day's revenue was kept; None: it was not."""
        ...

    async def keep_snapshot(
        self, day_ms: int, standings: list[CustomerStanding], *, taken_at_ms: int
    ) -> None:
        """Keep a day's revenue, in place of what was kept of it before."""
        ...

    async def snapshot_before(self, day_ms: int) -> tuple[str, Mapping[str, Customer]] | None:
        """Return the snapshot to compare with: a week before, or the nearest one to that."""
        ...

    def customers(self, day_ms: int) -> AsyncIterator[CustomerDay]:
        """Yield every organization as it was at the end of a UTC day, ordered by id."""
        ...

    async def day_facts(self, day_ms: int) -> DayFacts:
        """Return what is not of one customer."""
        ...

    async def open_overage_usd(self) -> Decimal:
        """Return the overage of all open periods, rounded for each as it would be billed."""
        ...

    async def stored_report(self, day_ms: int) -> StoredReport | None:
        """Return the report of a UTC day, if one was made."""
        ...

    async def last_report_day_ms(self) -> int | None:
        """Return the latest day that has a report."""
        ...

    async def keep_report(self, report: StoredReport, *, made_at_ms: int) -> None:
        """Keep a report, in place of the one that was kept of the day before."""
        ...


class MetricsStore(Protocol):
    """The ledger summed per day."""

    async def aggregate(self, until_ms: int) -> Any:
        """Bring the metrics up to the UTC day that starts at `until_ms`, that day included."""
        ...

    async def aggregate_day(self, day_ms: int) -> None:
        """Sum one UTC day again, all organizations."""
        ...


@attrs.frozen(kw_only=True)
class Revenue:
    """What the customers are worth now, summed as in a report."""

    as_of_ms: int
    tiers: tuple[TierLine, ...]
    mrr_usd: Decimal
    contract_usd: Decimal
    other_currencies: Mapping[str, Decimal]
    overage_open_usd: Decimal
    unknown: int


@attrs.define(eq=False)
class Reports:
    """Keeps the figures of every day and makes its report."""

    store: ReportStore
    metrics: MetricsStore
    catalogue: Catalogue
    clock: Clock

    async def get(self, day_ms: int) -> StoredReport | None:
        """Return the report of a UTC day: the kept one, or one made now.

        Reports of days that are not over are not kept. None: the day has not begun.
        Errors: StoreUnavailableError, StoreRejectedError.
        """
        kept = await self.store.stored_report(day_ms)
        return kept if kept is not None else await self.make(day_ms)

    async def make(self, day_ms: int) -> StoredReport | None:
        """Make a report from what is stored, and keep it if its day is over; errors as `get`."""
        now_ms = self.clock.now_ms()
        if day_ms > now_ms:
            return None
        is_whole = day_ms <= last_whole_day_ms(now_ms)
        await self.metrics.aggregate(min(day_ms, last_whole_day_ms(now_ms)))
        await self.metrics.aggregate_day(day_ms)
        await self.keep_revenue(day_ms)
        making = Making(day_ms, self.catalogue, is_whole=is_whole)
        count = 0
        async for customer in self.store.customers(day_ms):
            making.add(customer)
            count += 1
            if count % CUSTOMERS_AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
        since, earlier = await self.store.snapshot_before(day_ms) or (None, {})
        report = making.finish(
            await self.store.day_facts(day_ms),
            has_snapshot=await self.store.snapshot_taken_at_ms(day_ms) is not None,
            since=since,
            earlier=earlier,
        )
        made = StoredReport(
            day=report.day, content_json=as_json(document(report)), markdown=markdown(report)
        )
        if is_whole:
            await self.store.keep_report(made, made_at_ms=now_ms)
        return made

    async def keep_revenue(self, day_ms: int) -> int | None:
        """Keep what customers are worth at a day's end; None when it is too late, or kept.

        Of today it is what they are worth now, until the day has ended. Errors: as `get`.
        """
        now_ms, end_ms = self.clock.now_ms(), day_ms + DAY_MS
        if not last_whole_day_ms(now_ms) <= day_ms <= now_ms:
            return None
        taken_at_ms = await self.store.snapshot_taken_at_ms(day_ms)
        if taken_at_ms is not None and taken_at_ms >= end_ms:
            return None
        found = self.store.priced_customers(day_ms, at_ms=min(now_ms, end_ms))
        standings = [each async for each in found]
        await self.store.keep_snapshot(day_ms, standings, taken_at_ms=now_ms)
        return len(standings)

    async def revenue(self) -> Revenue:
        """Return what the customers are worth now; nothing is kept. Errors: as `get`."""
        now_ms = self.clock.now_ms()
        sums = RevenueSums()
        async for standing in self.store.priced_customers(day_start_ms(now_ms), at_ms=now_ms):
            one = standing.customer
            sums.add(
                one.tier,
                one,
                is_held=standing.operator_hold or standing.payment_hold,
                is_late=standing.past_due_since_ms is not None,
            )
        return Revenue(
            as_of_ms=now_ms,
            tiers=sums.tiers(),
            mrr_usd=sums.mrr_usd,
            contract_usd=sums.contract_usd,
            other_currencies=sums.other_currencies,
            overage_open_usd=round_to_cents(await self.store.open_overage_usd()),
            unknown=sums.unknown,
        )


def day_of(text: str) -> int | None:
    """Return the start of a UTC day written `YYYY-MM-DD`, or None when it is not one."""
    try:
        day = date.fromisoformat(text)
    except ValueError:
        return None
    day_ms = (day - date(1970, 1, 1)).days * DAY_MS
    return day_ms if rfc3339(day_ms)[:10] == text else None
