"""Closed periods become charges.

Rule 1: a period is closed by its organization's actor. Organizations nobody asks for are asked
        here, so that their period ends as well.
Rule 2: a period is charged when everybody who ran over its end has reported past it, or has had
        the time to; what comes later is the next charge.
Rule 3: one organization's trouble delays nobody's charges but its own.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs
import structlog

from meterd.actors.charge_policy import ChargePolicy
from meterd.actors.organizations import Organizations
from meterd.actors.supervisor import Crash, attempt_async
from meterd.core.overage import ChargeState, PeriodBill, is_ready, new_charges, parked_finding
from meterd.core.units import DAY_MS, HOUR_MS
from meterd.errors import (
    MeterdError,
    OwnershipLostError,
    PortalClosedError,
    StoreUnavailableError,
)
from meterd.ports.charges import ChargeStore
from meterd.ports.clock import Clock


log = structlog.get_logger(__name__)

BATCH = 200
"""Periods read at once."""

LATE_MS = 62 * DAY_MS
"""Events reach back 35 days: periods that ended before this are looked at once an hour."""


class PeriodCharges:
    """Makes charges of closed periods."""

    def __init__(
        self,
        store: ChargeStore,
        organizations: Organizations,
        *,
        clock: Clock,
        policy: ChargePolicy,
        on_error: Callable[[Exception], str],
    ) -> None:
        """`on_error` is told of what keeps one organization's period from being charged."""
        self._store = store
        self._organizations = organizations
        self._clock = clock
        self._policy = policy
        self._swept_at_ms: int | None = None
        self._on_error = on_error

    async def turn(self) -> None:
        """Let organizations nobody asks for notice that their period is over.

        Errors: StoreUnavailableError, OwnershipLostError.
        """
        now_ms = self._clock.now_ms()
        for organization_id in await self._store.periods_overdue(now_ms=now_ms, limit=BATCH):
            try:
                snapshot = await self._organizations.snapshot(organization_id)
                await self._organizations.durable(organization_id, snapshot.seq)
            except (OwnershipLostError, StoreUnavailableError):
                raise
            except MeterdError as error:  # quarantined, or stopping: the next look
                log.warning("period_not_turned", organization=organization_id, error=str(error))

    async def charge(self) -> int:
        """Charge the periods that are ready; return how many charges were made.

        Errors: StoreUnavailableError, StoreRejectedError, OwnershipLostError.
        """
        now_ms = self._clock.now_ms()
        is_sweep = self._swept_at_ms is None or now_ms - self._swept_at_ms >= HOUR_MS
        since_ms = 0 if is_sweep else max(0, now_ms - LATE_MS)
        bills = await self._store.bills(ended_since_ms=since_ms, limit=BATCH)
        if is_sweep and len(bills) < BATCH:
            self._swept_at_ms = now_ms
        reviewed = await self._reviewed() if bills else frozenset()
        made = 0
        for bill in bills:
            if not is_ready(bill, now_ms=now_ms, wait_ms=self._policy.wait_ms):
                continue
            result = await attempt_async(self._book, bill, reviewed, now_ms)
            if not isinstance(result, Crash):
                made += result
                continue
            if is_everybodys(result.error):
                raise result.error
            self._on_error(result.error)
            log.error(
                "period_not_charged", organization=bill.organization_id, exc_info=result.error
            )
        return made

    async def _reviewed(self) -> frozenset[str]:
        first = self._policy.review.first
        if not first:
            return frozenset()
        return frozenset(await self._store.reviewed_organizations(limit=first))

    async def _book(self, bill: PeriodBill, reviewed: frozenset[str], now_ms: int) -> int:
        known = attrs.evolve(
            bill,
            is_reviewed=bill.organization_id in reviewed,
            reviewed_organizations=len(reviewed),
        )
        charges = new_charges(known, self._policy.review, now_ms=now_ms)
        parked = [charge for charge in charges if charge.state is ChargeState.PARKED]
        findings = [parked_finding(charge, now_ms) for charge in parked]
        await self._store.book(bill, charges, findings, at_ms=now_ms)
        for charge in charges:
            log.info(
                "charge_made",
                charge=charge.id,
                organization=charge.organization_id,
                cents=charge.amount_cents,
                state=charge.state.value,
            )
        return len(charges)


def is_everybodys(error: Exception) -> bool:
    """Tell whether an error has nothing to do with the organization it befell."""
    return isinstance(error, OwnershipLostError | StoreUnavailableError | PortalClosedError)
