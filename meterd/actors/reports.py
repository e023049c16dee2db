"""Making reports: metrics, the day's snapshot, the report; each step can be done again.

Rule 1: a report is made once and kept; asked for again it is the kept one. A refresh sums the
ledger of its day anew and makes it again from what is stored: the same unless something changed.
Rule 2: a day's revenue is kept at the day's end, because Stripe's history cannot be asked for
later; only the last whole day can still be kept.
Nothing here depends on organizations' actors, so commands can do it beside a running meterd.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from datetime import date
from decimal import Decimal
from fractions import Fraction
from typing import Any, Protocol

import attrs
import trio

from meterd.core.books import as_json
from meterd.core.money import round_to_cents
from meterd.core.plan import Catalogue, Tier
from meterd.core.revenue import NOTHING, Customer, dollars, whole_cents
from meterd.core.schedule import last_whole_day_ms
from meterd.core.subscription import USD
from meterd.core.units import DAY_MS, day_start_ms, rfc3339
from meterd.ports.clock import Clock
from meterd.reporting.document import document
from meterd.reporting.figures import (
    CustomerDay,
    CustomerStanding,
    DayFacts,
    StoredReport,
)
from meterd.reporting.making import Making
from meterd.reporting.markdown import markdown


CUSTOMERS_AT_ONCE = 50
"""Customers added before other tasks get their turn: a few milliseconds of work."""


class ReportStore(Protocol):
    """Snapshots, what reports are made from, and the reports; errors as every store's."""

    def priced_customers(self, day_ms: int) -> AsyncIterator[CustomerStanding]:
        """Yield every organization of the day's end with what it is worth now."""
        ...

    async def has_snapshot(self, day_ms: int) -> bool:
        """Tell whether a day's revenue was kept."""
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
    """What the customers are worth now."""

    as_of_ms: int
    mrr_usd: Decimal
    by_tier: Mapping[Tier, tuple[int, Decimal]]
    """Organizations that bring something, and how much."""
    contract_usd: Decimal
    overage_open_usd: Decimal
    past_due: int
    suspended: int
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
            has_snapshot=await self.store.has_snapshot(day_ms),
            since=since,
            earlier=earlier,
        )
        made = StoredReport(
            day=report.day, content_json=as_json(document(report)), markdown=markdown(report)
        )
        if is_whole:
            await self.store.keep_report(made, made_at_ms=now_ms)
        return made

    async def keep_revenue(self, day_ms: int, *, again: bool = False) -> int | None:
        """Keep what customers are worth at a day's end; None when it is too late, or kept.

        The last whole day and today can be kept; `again` replaces what was kept of them.
        Errors: as `get`.
        """
        now_ms = self.clock.now_ms()
        is_late = day_ms < last_whole_day_ms(now_ms)
        is_today = day_ms == day_start_ms(now_ms)
        if is_late or (not again and not is_today and await self.store.has_snapshot(day_ms)):
            return None
        standings = [each async for each in self.store.priced_customers(day_ms)]
        await self.store.keep_snapshot(day_ms, standings, taken_at_ms=now_ms)
        return len(standings)

    async def revenue(self) -> Revenue:
        """Return what the customers are worth now; nothing is kept. Errors: as `get`."""
        now_ms = self.clock.now_ms()
        found: dict[Tier, tuple[int, Fraction]] = dict.fromkeys(Tier, (0, NOTHING))
        contract = NOTHING
        past_due = suspended = unknown = 0
        async for standing in self.store.priced_customers(day_start_ms(now_ms)):
            one = standing.customer
            past_due += standing.past_due_since_ms is not None
            suspended += standing.operator_hold or standing.payment_hold
            unknown += one.is_unknown
            if one.currency == USD and one.cents:
                count, cents = found[one.tier]
                found[one.tier] = (count + 1, cents + one.cents)
                contract += one.cents if one.status == "contract" else NOTHING
        total = whole_cents(sum((cents for _, cents in found.values()), NOTHING))
        return Revenue(
            as_of_ms=now_ms,
            mrr_usd=dollars(total),
            by_tier={
                tier: (count, dollars(whole_cents(cents))) for tier, (count, cents) in found.items()
            },
            contract_usd=dollars(whole_cents(contract)),
            overage_open_usd=round_to_cents(await self.store.open_overage_usd()),
            past_due=past_due,
            suspended=suspended,
            unknown=unknown,
        )


def day_of(text: str) -> int | None:
    """Return the start of a UTC day written `YYYY-MM-DD`, or None when it is not one."""
    try:
        day = date.fromisoformat(text)
    except ValueError:
        return None
    day_ms = (day - date(1970, 1, 1)).days * DAY_MS
    return day_ms if rfc3339(day_ms)[:10] == text else None
