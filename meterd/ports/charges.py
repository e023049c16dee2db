"""The ledger of charges. Methods that write may raise OwnershipLostError too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import attrs

from meterd.core.organization import AuditEntry, Finding
from meterd.core.overage import Charge, ChargeState, PeriodBill


@attrs.frozen(kw_only=True)
class DueCharge:
    """A charge to move on, with what its organization is now."""

    charge: Charge
    customer_id: str | None
    cycle_subscription_id: str | None
    """The live subscription that the organization follows, if it is this customer's."""
    cycle_months: int | None


@attrs.frozen(kw_only=True)
class StoredFinding:
    """A finding as an operator sees it."""

    organization_id: str | None
    finding: Finding


@attrs.frozen(kw_only=True)
class ChargeFigures:
    """How the charges stand that are not final."""

    by_state: Mapping[ChargeState, int] = attrs.Factory(dict)
    oldest_at_ms: int | None = None
    """When the oldest one was made that is on its way and not at Stripe; None when none is."""


class ChargeStore(Protocol):
    """The ledger of charges."""

    async def periods_overdue(self, *, now_ms: int, limit: int) -> Sequence[str]:
        """Return organizations with a period that the clock has ended and nobody has turned."""
        ...

    async def bills(self, *, ended_since_ms: int, limit: int) -> Sequence[PeriodBill]:
        """Return closed periods whose cost changed since they were charged, longest ended first."""
        ...

    async def reviewed_organizations(self, *, limit: int) -> Sequence[str]:
        """Return organizations of which a charge was released or needed no release."""
        ...

    async def book(
        self,
        bill: PeriodBill,
        charges: Sequence[Charge],
        findings: Sequence[Finding],
        *,
        at_ms: int,
    ) -> None:
        """Write a period's new charges, and that it is charged up to the bill's `seq`."""
        ...

    async def due_charges(self, *, now_ms: int, limit: int) -> Sequence[DueCharge]:
        """Return charges that are meterd's to move on, longest due first."""
        ...

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
        ...

    async def charge(self, charge_id: str) -> Charge | None:
        """Return one charge."""
        ...

    async def charges(
        self,
        *,
        state: ChargeState | None,
        organization_id: str | None,
        after: tuple[int, str] | None,
        limit: int,
    ) -> Sequence[Charge]:
        """Return charges, newest first; `after` is the (created_at_ms, id) seen last."""
        ...

    async def charges_ended_since(self, since_ms: int) -> Sequence[Charge]:
        """Return the charges of all periods that ended since an instant."""
        ...

    async def charge_figures(self) -> ChargeFigures:
        """Return how many charges are in which state, those of final states aside."""
        ...

    async def followed_subscriptions(self) -> Sequence[tuple[str, str]]:
        """Return (organization, subscription) of all that follow one, by organization."""
        ...

    async def report(self, findings: Sequence[StoredFinding]) -> None:
        """Keep findings; one with a known id changes nothing."""
        ...
