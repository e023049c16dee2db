"""What reports are made from and kept in: snapshots of revenue, customers of a day, reports.

Rule 1: organizations are read in pages, so that ten thousand of them hold up nobody: encoding and
decoding stop the whole process for as long as one page takes.
Rule 2: a snapshot is written whole or not at all, and marked; an unmarked day has none.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import date
from decimal import Decimal
from fractions import Fraction
from typing import Any

import attrs

from meterd.adapters.postgres import records
from meterd.adapters.postgres.pool import Connection, PostgresPools
from meterd.adapters.postgres.statements import statements
from meterd.core.books import as_json
from meterd.core.outlook import Allowance
from meterd.core.plan import Tier
from meterd.core.priced import read_priced
from meterd.core.revenue import (
    Customer,
    Origin,
    PricedSubscription,
    customer,
    dollars,
    subscription_cents,
    whole_cents,
)
from meterd.core.subscription import USD
from meterd.core.units import DAY_MS, MINUTE_MS, from_datetime, rfc3339, to_datetime
from meterd.reporting.figures import (
    HISTORY_DAYS,
    BilledOverage,
    CustomerDay,
    CustomerStanding,
    DayActivity,
    DayFacts,
    FindingLine,
    Leaving,
    Reconciled,
    StoredReport,
)


PAGE = 500
"""Organizations read at once."""

READ_S = 60.0
"""Seconds a page may take."""


@attrs.define(eq=False, slots=False)
class PostgresBooks:
    """Snapshots and reports. Errors: StoreUnavailableError, StoreRejectedError."""

    pools: PostgresPools

    async def priced_customers(self, day_ms: int, *, at_ms: int) -> AsyncIterator[CustomerStanding]:
        """Yield every organization of the day's end with what it is worth at an instant."""
        end_ms = day_ms + DAY_MS
        async for record in self._pages("priced_customers", day_ms, end_ms):
            found = (read_priced(text) for text in record["subscriptions"])
            priced: list[PricedSubscription] = [each for each in found if each is not None]
            yield CustomerStanding(
                customer=customer(
                    organization_id=record["id"],
                    tier=Tier(record["plan_tier"]),
                    base_price_usd=record["base_price_usd"],
                    subscriptions=priced,
                    has_paid=record["has_paid"],
                    now_ms=at_ms,
                ),
                operator_hold=record["operator_hold"],
                payment_hold=record["payment_hold"],
                past_due_since_ms=_optional_ms(record["past_due_since"]),
            )

    async def snapshot_taken_at_ms(self, day_ms: int) -> int | None:
        """Return when a day's revenue was kept; None: it was not."""
        found = await self._rows("snapshot_taken", _date(day_ms))
        return from_datetime(found[0]["taken_at"]) if found else None

    async def keep_snapshot(
        self, day_ms: int, standings: Sequence[CustomerStanding], *, taken_at_ms: int
    ) -> None:
        """Keep a day's revenue, in place of what was kept of it before."""
        texts = statements("books")
        day = _date(day_ms)

        async def work(connection: Connection) -> None:
            async with connection.transaction():
                await connection.execute(f"SET LOCAL statement_timeout = {int(READ_S * 1_000)}")
                await connection.execute(texts["clear_snapshot"], day)
                for start in range(0, len(standings), PAGE):
                    page = standings[start : start + PAGE]
                    columns = zip(*map(_snapshot_columns, page), strict=True)
                    await connection.execute(texts["keep_snapshot"], day, *map(list, columns))
                await connection.execute(texts["mark_snapshot"], day, to_datetime(taken_at_ms))

        await self.pools.read("keep a revenue snapshot", work, timeout_s=READ_S)

    async def snapshot_before(self, day_ms: int) -> tuple[str, Mapping[str, Customer]] | None:
        """Return the snapshot to compare with: a week before, or the nearest one to that."""
        found = await self._rows("snapshot_before", _date(day_ms))
        if not found:
            return None
        day: date = found[0]["day"]
        customers: dict[str, Customer] = {}
        after = ""
        while page := await self._rows("snapshot", day, after, PAGE):
            customers.update((row["organization_id"], _customer(row)) for row in page)
            after = page[-1]["organization_id"]
        return day.isoformat(), customers

    async def customers(self, day_ms: int) -> AsyncIterator[CustomerDay]:
        """Yield every organization as it was at the end of a UTC day, ordered by id."""
        async for record in self._pages("customers", day_ms, day_ms + DAY_MS):
            yield _customer_day(record, day_ms)

    async def day_facts(self, day_ms: int) -> DayFacts:
        """Return what is not of one customer."""
        day, start = _date(day_ms), to_datetime(day_ms)
        end = to_datetime(day_ms + DAY_MS)
        [activity] = await self._rows("activity", day)
        minutes = [0] * HISTORY_DAYS
        for row in await self._rows("daily_minutes", day):
            minutes[HISTORY_DAYS - 1 - row["age"]] = row["minutes"]
        [billed] = await self._rows("billed", day, end)
        reconciled = await self._rows("reconciled", end)
        [set_aside] = await self._rows("set_aside", start, end)
        return DayFacts(
            activity=DayActivity(
                agent_minutes=activity["minutes"],
                agents=activity["agents"],
                api_calls=activity["api_calls"],
                tasks_succeeded=activity["succeeded"],
                tasks_failed=activity["failed"],
                tasks_cancelled=activity["cancelled"],
                tasks_lost=activity["lost"],
                overage_usd=activity["overage"],
            ),
            billed=BilledOverage(
                usd=billed["usd"],
                periods=billed["periods"],
                charges={
                    row["state"]: dollars(row["cents"])
                    for row in await self._rows("charges", day, end)
                },
            ),
            reconciled=_reconciled(reconciled[0]) if reconciled else None,
            findings=tuple(
                FindingLine(
                    kind=row["kind"],
                    organization_id=row["organization_id"],
                    name=row["name"],
                    count=row["found"],
                )
                for row in await self._rows("findings_of_day", start, end)
            ),
            set_aside=dict(set_aside),
            leaving=tuple(
                found
                for row in await self._rows("leaving")
                if (found := _leaving(row, day_ms + DAY_MS)) is not None
            ),
            daily_minutes=tuple(minutes),
            daily_mrr_cents=await self._daily_mrr(day),
        )

    async def _daily_mrr(self, day: date) -> tuple[int, ...]:
        cents: dict[date, Fraction] = {}
        for row in await self._rows("daily_mrr", day, HISTORY_DAYS):
            part = Fraction(int(row["mrr_numerator"]), int(row["mrr_denominator"]))
            cents[row["day"]] = cents.get(row["day"], Fraction(0)) + part
        return tuple(whole_cents(cents[each]) for each in sorted(cents))

    async def open_overage_usd(self) -> Decimal:
        """Return the overage of all open periods, rounded for each as it would be billed."""
        [record] = await self._rows("open_overage")
        amount: Decimal = record["usd"]
        return amount

    async def stored_report(self, day_ms: int) -> StoredReport | None:
        """Return the report of a UTC day, if one was made."""
        found = await self._rows("stored_report", _date(day_ms))
        if not found:
            return None
        [record] = found
        return StoredReport(
            day=record["day"].isoformat(),
            content_json=as_json(json.loads(record["content"])),
            markdown=record["markdown"],
        )

    async def last_report_day_ms(self) -> int | None:
        """Return the latest day that has a report."""
        [record] = await self._rows("latest_report")
        return None if record["day"] is None else _start_ms(record["day"])

    async def keep_report(self, report: StoredReport, *, made_at_ms: int) -> None:
        """Keep a report, in place of the one that was kept of the day before."""
        day = date.fromisoformat(report.day)
        made_at = to_datetime(made_at_ms)

        async def work(connection: Connection) -> None:
            text = statements("books")["keep_report"]
            await connection.execute(text, day, made_at, report.content_json, report.markdown)

        await self.pools.read("keep a report", work)

    async def _pages(self, name: str, day_ms: int, end_ms: int) -> AsyncIterator[Any]:
        after = ""
        while True:
            page = await self._rows(name, _date(day_ms), to_datetime(end_ms), after, PAGE)
            for record in page:
                yield record
            if len(page) < PAGE:
                return
            after = page[-1]["id"]

    async def _rows(self, name: str, *arguments: Any) -> list[Any]:
        async def work(connection: Connection) -> list[Any]:
            async with connection.transaction(readonly=True):
                await connection.execute(f"SET LOCAL statement_timeout = {int(READ_S * 1_000)}")
                return list(await connection.fetch(statements("books")[name], *arguments))

        return await self.pools.read("read the books", work, timeout_s=READ_S)


def _snapshot_columns(standing: CustomerStanding) -> tuple[Any, ...]:
    one, since_ms = standing.customer, standing.past_due_since_ms
    return (
        one.organization_id,
        one.tier.value,
        one.status,
        one.origin.value,
        one.currency,
        Decimal(one.cents.numerator),
        Decimal(one.cents.denominator),
        one.has_paid,
        one.is_unknown,
        standing.operator_hold,
        standing.payment_hold,
        None if since_ms is None else to_datetime(since_ms),
    )


def _customer(record: Mapping[str, Any]) -> Customer:
    return Customer(
        organization_id=record["organization_id"],
        tier=Tier(record["plan_tier"]),
        status=record["status"],
        origin=Origin(record["origin"]),
        currency=record["currency"],
        cents=Fraction(int(record["mrr_numerator"]), int(record["mrr_denominator"])),
        is_unknown=record["is_unknown"],
        has_paid=record["has_paid"],
    )


def _customer_day(record: Mapping[str, Any], day_ms: int) -> CustomerDay:
    terms = records.terms_from(record["terms"])
    daily_ms = [0] * HISTORY_DAYS
    for age, used_ms in zip(record["ages"] or (), record["daily_ms"] or (), strict=True):
        daily_ms[HISTORY_DAYS - 1 - age] = used_ms
    before = record["tier_before"]
    is_changed = terms.effective_at_ms >= day_ms and before not in (None, terms.plan.value)
    held_by = "operator" if record["operator_hold"] else "payment"
    is_held = record["operator_hold"] or record["payment_hold"]
    return CustomerDay(
        organization_id=record["id"],
        name=record["name"],
        tier=terms.plan,
        limits=terms.limits,
        trialing=terms.trialing,
        period_label=record["billing_period"],
        period_start_ms=from_datetime(record["period_start"]),
        period_end_ms=from_datetime(record["period_end"]),
        used_ms=record["used_ms"],
        overage_usd=record["overage_cost"],
        before=_before(record),
        daily_ms=tuple(daily_ms),
        tier_before=Tier(before) if is_changed else None,
        changed_at_ms=terms.effective_at_ms if is_changed else None,
        is_held=is_held,
        held_by=held_by if is_held else None,
        past_due_since_ms=_optional_ms(record["past_due_since"]),
        revenue=None
        if record["origin"] is None
        else _customer({**record, "organization_id": record["id"]}),
    )


def _before(record: Mapping[str, Any]) -> Allowance | None:
    if record["before_start"] is None:
        return None
    length_ms = from_datetime(record["before_end"]) - from_datetime(record["before_start"])
    return Allowance(
        used_ms=record["before_used_ms"],
        included_ms=record["before_minutes"] * MINUTE_MS,
        elapsed_ms=length_ms,
        length_ms=length_ms,
    )


def _leaving(record: Mapping[str, Any], end_ms: int) -> Leaving | None:
    found = read_priced(record["object"])
    if found is None or found.ends_at_ms is None or found.ends_at_ms < end_ms:
        return None
    cents = subscription_cents(found, end_ms) if found.currency == USD else Fraction(0)
    return Leaving(
        organization_id=record["id"],
        name=record["name"],
        ends_on=rfc3339(found.ends_at_ms)[:10],
        mrr_usd=dollars(whole_cents(cents)),
    )


def _reconciled(record: Mapping[str, Any]) -> Reconciled:
    detail = json.loads(record["detail"])
    return Reconciled(
        finished_at=rfc3339(from_datetime(record["finished_at"])),
        outcome=record["outcome"],
        differences=detail.get("differences", 0),
        organizations=detail.get("organizations", 0),
    )


def _date(instant_ms: int) -> date:
    return to_datetime(instant_ms).date()


def _start_ms(day: date) -> int:
    return (day - date(1970, 1, 1)).days * DAY_MS


def _optional_ms(instant: Any) -> int | None:
    return None if instant is None else from_datetime(instant)
