"""The ledger of charges (`ChargeStore`).

Rule 1: what is written is fenced by the owner's epoch: a process that lost the database pushes
nothing that another one does not know of.
Rule 2: a charge moves only from the state and attempt it was read in; its amount never changes,
and the database itself refuses it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import attrs

from meterd.adapters.postgres.pool import Connection, PostgresPools
from meterd.adapters.postgres.statements import statements
from meterd.core.organization import AuditEntry, Finding
from meterd.core.overage import FINAL, ON_ITS_WAY, Charge, ChargeState, Cost, PeriodBill
from meterd.core.plan import Resource
from meterd.core.units import INSTANT_MS_MAX, from_datetime, to_datetime
from meterd.errors import OwnershipLostError
from meterd.ports.charges import ChargeFigures, DueCharge, StoredFinding


@attrs.define(eq=False)
class PostgresCharges:
    """`ChargeStore` on `overage_charges` and `overage_periods`.

    Errors: every method StoreUnavailableError, StoreRejectedError; those that write
    OwnershipLostError. Source: queries/charges.sql.
    """

    pools: PostgresPools
    epoch: int

    async def periods_overdue(self, *, now_ms: int, limit: int) -> Sequence[str]:
        """Return organizations with a period that the clock has ended and nobody has turned."""
        found = await self._fetch("overdue", "find overdue periods", to_datetime(now_ms), limit)
        return sorted(record["organization_id"] for record in found)

    async def bills(self, *, ended_since_ms: int, limit: int) -> Sequence[PeriodBill]:
        """Return closed periods whose cost changed since they were charged, longest ended first."""
        since = to_datetime(ended_since_ms)
        return [_bill(record) for record in await self._fetch("bills", "read bills", since, limit)]

    async def reviewed_organizations(self, *, limit: int) -> Sequence[str]:
        """Return organizations of which a charge was released or needed no release."""
        found = await self._fetch("reviewed", "find reviewed organizations", limit)
        return [record["organization_id"] for record in found]

    async def book(
        self,
        bill: PeriodBill,
        charges: Sequence[Charge],
        findings: Sequence[Finding],
        *,
        at_ms: int,
    ) -> None:
        """Write a period's new charges, and that it is charged up to the bill's `seq`."""
        start = to_datetime(bill.start_ms)
        organization_id = bill.organization_id

        async def work(connection: Connection) -> bool:
            texts = statements("charges")
            for charge in charges:
                await connection.execute(texts["add"], *_columns(charge))
            await connection.execute(
                texts["mark"], organization_id, start, bill.seq, to_datetime(at_ms)
            )
            await _report(
                connection,
                [StoredFinding(organization_id=organization_id, finding=each) for each in findings],
            )
            return True

        await self._write("book charges", work)

    async def due_charges(self, *, now_ms: int, limit: int) -> Sequence[DueCharge]:
        """Return charges that are meterd's to move on, longest due first."""
        found = await self._fetch("due", "find due charges", to_datetime(now_ms), limit)
        return [
            DueCharge(
                charge=_charge(record["c"]),
                customer_id=record["stripe_customer_id"],
                cycle_subscription_id=record["cycle_subscription_id"],
                cycle_months=record["cycle_months"],
            )
            for record in found
        ]

    async def move_charge(
        self,
        before: Charge,
        after: Charge,
        *,
        at_ms: int,
        findings: Sequence[Finding] = (),
        audit: AuditEntry | None = None,
    ) -> bool:
        """Replace a charge; False when it is not in that state and attempt any more."""
        assert _identity(before) == _identity(after), (before, after)
        organization_id = before.organization_id

        async def work(connection: Connection) -> bool:
            texts = statements("charges")
            found = await connection.fetchval(
                texts["move"],
                before.id,
                before.state.value,
                before.attempt,
                to_datetime(at_ms),
                *_movable(after),
            )
            if found is None:
                return False
            await _report(
                connection,
                [StoredFinding(organization_id=organization_id, finding=each) for each in findings],
            )
            if audit is not None:
                await connection.execute(texts["audit"], *_audit(organization_id, audit))
            return True

        return await self._write("move a charge", work)

    async def charge(self, charge_id: str) -> Charge | None:
        """Return one charge."""
        found = await self._fetch("charge", "read a charge", charge_id)
        return _charge(found[0]["c"]) if found else None

    async def charges(
        self,
        *,
        state: ChargeState | None,
        organization_id: str | None,
        after: tuple[int, str] | None,
        limit: int,
    ) -> Sequence[Charge]:
        """Return charges, newest first; `after` is the (created_at_ms, id) seen last."""
        created_at_ms, charge_id = after or (INSTANT_MS_MAX, "")
        wanted = None if state is None else state.value
        created_at = to_datetime(created_at_ms)
        found = await self._fetch(
            *("charges", "list charges", wanted, organization_id, created_at, charge_id, limit),
            of=organization_id,
        )
        return [_charge(record["c"]) for record in found]

    async def charges_ended_since(self, since_ms: int) -> Sequence[Charge]:
        """Return the charges of all periods that ended since an instant."""
        found = await self._fetch("ended_since", "list charges", to_datetime(since_ms))
        return [_charge(record["c"]) for record in found]

    async def charge_figures(self) -> ChargeFigures:
        """Return how many charges are in which state, those of final states aside."""
        waiting = [each.value for each in ChargeState if each not in FINAL]
        found = await self._fetch("figures", "count charges", waiting)
        by_state = {ChargeState(each["state"]): each for each in found}
        oldest = [by_state[state]["oldest"] for state in ON_ITS_WAY & by_state.keys()]
        return ChargeFigures(
            by_state={state: each["charges"] for state, each in by_state.items()},
            oldest_at_ms=from_datetime(min(oldest)) if oldest else None,
        )

    async def followed_subscriptions(self) -> Sequence[tuple[str, str]]:
        """Return (organization, subscription) of all that follow one, by organization."""
        found = await self._fetch("followed", "list followed subscriptions")
        return [(record["id"], record["cycle_subscription_id"]) for record in found]

    async def report(self, findings: Sequence[StoredFinding]) -> None:
        """Keep findings; one with a known id changes nothing."""

        async def work(connection: Connection) -> bool:
            await _report(connection, findings)
            return True

        await self._write("keep findings", work)

    async def _fetch(
        self, name: str, action: str, *arguments: Any, of: str | None = None
    ) -> list[Any]:
        async def work(connection: Connection) -> list[Any]:
            return list(await connection.fetch(statements("charges")[name], *arguments))

        if of is None:
            return await self.pools.read(action, work)
        return await self.pools.read_of(of, action, work)

    async def _write(self, action: str, work: Callable[[Connection], Awaitable[bool]]) -> bool:
        async def fenced(connection: Connection) -> bool | None:
            async with connection.transaction():
                if await connection.fetchval(statements("charges")["owner"], self.epoch) is None:
                    return None
                return await work(connection)

        done = await self.pools.write(action, fenced)
        if done is None:
            raise OwnershipLostError(f"epoch {self.epoch} no longer owns the database")
        return done


async def _report(connection: Connection, findings: Sequence[StoredFinding]) -> None:
    for stored in findings:
        found = stored.finding
        await connection.execute(
            statements("charges")["find"],
            found.id,
            to_datetime(found.at_ms),
            found.kind,
            stored.organization_id,
            found.detail_json,
        )


def _audit(organization_id: str, audit: AuditEntry) -> tuple[Any, ...]:
    return (
        audit.id,
        to_datetime(audit.at_ms),
        audit.actor,
        audit.action,
        organization_id,
        audit.reason,
        audit.before_json,
        audit.after_json,
    )


def _identity(charge: Charge) -> tuple[Any, ...]:
    return (charge.id, charge.organization_id, charge.quantity, charge.amount_cents, charge.seq)


def _instant(at_ms: int | None) -> Any:
    return None if at_ms is None else to_datetime(at_ms)


def _moment(at: Any) -> int | None:
    return None if at is None else from_datetime(at)


def _columns(charge: Charge) -> tuple[Any, ...]:
    return (
        charge.id,
        charge.organization_id,
        charge.customer_id,
        charge.subscription_id,
        charge.resource.value,
        charge.billing_period,
        to_datetime(charge.period_start_ms),
        to_datetime(charge.period_end_ms),
        charge.quantity,
        charge.amount_cents,
        charge.seq,
        charge.state.value,
        charge.reason,
        charge.attempt,
        _instant(charge.key_at_ms),
        _instant(charge.first_at_ms),
        charge.tries,
        to_datetime(charge.next_attempt_at_ms),
        charge.last_error,
        charge.invoice_item_id,
        charge.invoice_id,
        to_datetime(charge.created_at_ms),
    )


def _movable(charge: Charge) -> tuple[Any, ...]:
    return (
        charge.state.value,
        charge.reason,
        charge.customer_id,
        charge.attempt,
        _instant(charge.key_at_ms),
        _instant(charge.first_at_ms),
        charge.tries,
        to_datetime(charge.next_attempt_at_ms),
        charge.last_error,
        charge.invoice_item_id,
        charge.invoice_id,
    )


def _charge(record: Any) -> Charge:
    return Charge(
        id=record["id"],
        organization_id=record["organization_id"],
        customer_id=record["customer_id"],
        subscription_id=record["subscription_id"],
        resource=Resource(record["resource_type"]),
        billing_period=record["billing_period"],
        period_start_ms=from_datetime(record["period_start"]),
        period_end_ms=from_datetime(record["period_end"]),
        quantity=record["quantity"],
        amount_cents=record["amount_cents"],
        seq=record["seq"],
        state=ChargeState(record["state"]),
        reason=record["reason"],
        attempt=record["attempt"],
        key_at_ms=_moment(record["key_at"]),
        first_at_ms=_moment(record["first_at"]),
        tries=record["tries"],
        next_attempt_at_ms=from_datetime(record["next_attempt_at"]),
        last_error=record["last_error"],
        invoice_item_id=record["invoice_item_id"],
        invoice_id=record["invoice_id"],
        created_at_ms=from_datetime(record["created_at"]),
    )


def _bill(record: Any) -> PeriodBill:
    return PeriodBill(
        organization_id=record["organization_id"],
        billing_period=record["billing_period"],
        start_ms=from_datetime(record["period_start"]),
        end_ms=from_datetime(record["period_end"]),
        seq=record["seq"],
        costs=tuple(
            Cost(resource=Resource(resource), quantity=quantity, cost_usd=cost)
            for resource, quantity, cost in record["costs"]
        ),
        charges=tuple(_charge(found) for found in record["charges"]),
        earlier_cents=tuple(record["earlier_cents"]),
        is_unlimited=record["is_unlimited"],
        customer_id=record["stripe_customer_id"],
        subscription_id=record["cycle_subscription_id"],
        billing_alerts=frozenset(record["billing_alerts"]),
        unreported_tasks=record["unreported_tasks"],
    )
