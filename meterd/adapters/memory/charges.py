"""The twin in memory of the ledger of charges (`ChargeStore`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from decimal import Decimal

import attrs
import trio

from meterd.adapters.memory.store import Database, OrganizationRecord
from meterd.core.organization import AuditEntry, Finding
from meterd.core.overage import (
    AT_STRIPE,
    FINAL,
    ON_ITS_WAY,
    OPEN,
    Charge,
    ChargeState,
    Cost,
    PeriodBill,
)
from meterd.core.period import Period
from meterd.core.plan import Resource
from meterd.core.subscription import Alert
from meterd.core.task import TaskState
from meterd.errors import OwnershipLostError, StoreRejectedError
from meterd.ports.charges import ChargeFigures, DueCharge, StoredFinding


EARLIER_PERIODS = 3


@attrs.define(eq=False)
class MemoryCharges:
    """`ChargeStore` beside a `Database`. Every method is a checkpoint."""

    database: Database
    epoch: int
    kept: dict[str, Charge] = attrs.Factory(dict)
    marks: dict[tuple[str, int], int] = attrs.Factory(dict)
    """Organization and period start to the fact up to which it is charged."""

    async def periods_overdue(self, *, now_ms: int, limit: int) -> Sequence[str]:
        """Return organizations with a period that the clock has ended and nobody has turned."""
        await trio.lowlevel.checkpoint()
        found = [
            (period.end_ms, key)
            for key, record in self.database.organizations.items()
            for _, period in record.periods.values()
            if not period.closed and period.end_ms <= now_ms
        ]
        return sorted({key for _, key in sorted(found)[:limit]})

    async def bills(self, *, ended_since_ms: int, limit: int) -> Sequence[PeriodBill]:
        """Return closed periods whose cost changed since they were charged, longest ended first."""
        await trio.lowlevel.checkpoint()
        due = []
        for key, record in self.database.organizations.items():
            for start_ms, (seq, period) in record.periods.items():
                mark = self.marks.get((key, start_ms))
                is_new = seq > (-1 if mark is None else mark)
                if not period.closed or period.end_ms < ended_since_ms or not is_new:
                    continue
                if period.total_usd or mark is not None:
                    due.append((period.end_ms, key, seq, period, record))
        due.sort(key=lambda each: each[:2])
        return [self._bill(key, seq, period, record) for _, key, seq, period, record in due[:limit]]

    def _bill(self, key: str, seq: int, period: Period, record: OrganizationRecord) -> PeriodBill:
        quantities: dict[Resource, int] = {}
        costs: dict[Resource, Decimal] = {}
        is_unlimited = False
        for row in record.rows.values():
            if row.billing_period == period.label and row.unit_cost_usd:
                is_unlimited |= record.terms[row.terms_seq].limits.unlimited
                quantities[row.resource] = quantities.get(row.resource, 0) + row.quantity
                costs[row.resource] = costs.get(row.resource, Decimal(0)) + row.total_cost_usd
        starts = sorted((at for at in record.periods if at < period.start_ms), reverse=True)
        cycle = record.profile.cycle
        return PeriodBill(
            organization_id=key,
            billing_period=period.label,
            start_ms=period.start_ms,
            end_ms=period.end_ms,
            seq=seq,
            costs=tuple(
                Cost(resource=resource, quantity=quantities[resource], cost_usd=cost)
                for resource, cost in costs.items()
            ),
            charges=tuple(self._of_period(key, period.start_ms)),
            earlier_cents=tuple(
                sum(charge.amount_cents for charge in self._of_period(key, start_ms))
                for start_ms in starts[:EARLIER_PERIODS]
            ),
            is_unlimited=is_unlimited,
            customer_id=record.profile.stripe_customer_id,
            subscription_id=None if cycle is None else cycle.subscription_id,
            billing_alerts=record.profile.billing_alerts,
            unreported_tasks=sum(
                task.state is TaskState.RUNNING
                and task.info.started_at_ms < period.end_ms
                and task.reported_at_ms < period.end_ms
                for task in record.tasks.values()
            ),
        )

    def _of_period(self, organization_id: str, start_ms: int) -> list[Charge]:
        found = [
            charge
            for charge in self.kept.values()
            if charge.organization_id == organization_id and charge.period_start_ms == start_ms
        ]
        return sorted(found, key=lambda charge: (charge.resource.value, charge.seq))

    async def reviewed_organizations(self, *, limit: int) -> Sequence[str]:
        """Return organizations of which a charge was released or needed no release."""
        await trio.lowlevel.checkpoint()
        went = OPEN | {ChargeState.INVOICED}
        return sorted({c.organization_id for c in self.kept.values() if c.state in went})[:limit]

    async def book(
        self,
        bill: PeriodBill,
        charges: Sequence[Charge],
        findings: Sequence[Finding],
        *,
        at_ms: int,  # noqa: ARG002 - a column only
    ) -> None:
        """Write a period's new charges, and that it is charged up to the bill's `seq`."""
        await self._own()
        for charge in charges:
            self.kept.setdefault(charge.id, charge)
        place = (bill.organization_id, bill.start_ms)
        self.marks[place] = max(self.marks.get(place, -1), bill.seq)
        for each in findings:
            self.database.findings.setdefault(each.id, (bill.organization_id, each))

    async def due_charges(self, *, now_ms: int, limit: int) -> Sequence[DueCharge]:
        """Return charges that are meterd's to move on, longest due first."""
        await trio.lowlevel.checkpoint()
        due = [
            charge
            for charge in self.kept.values()
            if charge.state in OPEN and charge.next_attempt_at_ms <= now_ms
        ]
        due.sort(key=lambda charge: (charge.next_attempt_at_ms, charge.id))
        return [self._due(charge) for charge in due[:limit]]

    def _due(self, charge: Charge) -> DueCharge:
        profile = self.database.organizations[charge.organization_id].profile
        prefix = f"{Alert.OTHER_CUSTOMER.value}:"
        is_own = not any(alert.startswith(prefix) for alert in profile.billing_alerts)
        cycle = profile.cycle if is_own else None
        return DueCharge(
            charge=charge,
            customer_id=profile.stripe_customer_id,
            cycle_subscription_id=None if cycle is None else cycle.subscription_id,
            cycle_months=None if cycle is None else cycle.months,
        )

    async def move_charge(
        self,
        before: Charge,
        after: Charge,
        *,
        at_ms: int,  # noqa: ARG002 - a column only
        findings: Sequence[Finding] = (),
        audit: AuditEntry | None = None,
    ) -> bool:
        """Replace a charge; False when it is not in that state and attempt any more."""
        await self._own()
        known = self.kept.get(before.id)
        if known is None or (known.state, known.attempt) != (before.state, before.attempt):
            return False
        if not _is_whole(after):
            raise StoreRejectedError("move a charge", f"{after.state.value} without what it needs")
        self.kept[before.id] = after
        for each in findings:
            self.database.findings.setdefault(each.id, (before.organization_id, each))
        if audit is not None:
            self.database.audits.setdefault(audit.id, (before.organization_id, audit))
        return True

    async def charge(self, charge_id: str) -> Charge | None:
        """Return one charge."""
        await trio.lowlevel.checkpoint()
        return self.kept.get(charge_id)

    async def charges(
        self,
        *,
        state: ChargeState | None,
        organization_id: str | None,
        after: tuple[int, str] | None,
        limit: int,
    ) -> Sequence[Charge]:
        """Return charges, newest first; `after` is the (created_at_ms, id) seen last."""
        await trio.lowlevel.checkpoint()
        found = sorted(self.kept.values(), key=lambda charge: (charge.created_at_ms, charge.id))
        return [
            charge
            for charge in reversed(found)
            if state in (None, charge.state)
            and organization_id in (None, charge.organization_id)
            and (after is None or (charge.created_at_ms, charge.id) < after)
        ][:limit]

    async def charges_ended_since(self, since_ms: int) -> Sequence[Charge]:
        """Return the charges of all periods that ended since an instant."""
        await trio.lowlevel.checkpoint()
        return sorted(
            (charge for charge in self.kept.values() if charge.period_end_ms >= since_ms),
            key=lambda charge: charge.id,
        )

    async def charge_figures(self) -> ChargeFigures:
        """Return how many charges are in which state, those of final states aside."""
        await trio.lowlevel.checkpoint()
        waiting = [each for each in self.kept.values() if each.state not in FINAL]
        on_their_way = [each.created_at_ms for each in waiting if each.state in ON_ITS_WAY]
        return ChargeFigures(
            by_state=dict(Counter(each.state for each in waiting)),
            oldest_at_ms=min(on_their_way, default=None),
        )

    async def followed_subscriptions(self) -> Sequence[tuple[str, str]]:
        """Return (organization, subscription) of all that follow one, by organization."""
        await trio.lowlevel.checkpoint()
        return sorted(
            (key, record.profile.cycle.subscription_id)
            for key, record in self.database.organizations.items()
            if record.profile.cycle is not None
        )

    async def report(self, findings: Sequence[StoredFinding]) -> None:
        """Keep findings; one with a known id changes nothing."""
        await self._own()
        for stored in findings:
            kept = (stored.organization_id or "", stored.finding)
            self.database.findings.setdefault(stored.finding.id, kept)

    async def _own(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.database.epoch != self.epoch:
            raise OwnershipLostError("another process owns the database")


def _is_whole(charge: Charge) -> bool:
    """Tell whether a charge has what its state asks for: the table's checks."""
    if charge.state not in AT_STRIPE:
        return True
    is_attempted = charge.attempt >= 1 and charge.customer_id is not None
    return is_attempted and (
        charge.state is ChargeState.PUSHING or charge.invoice_item_id is not None
    )
