"""What charging needs from the outside, as protocols: Stripe's write side, and the charges stored.

Rule 1: every call to Stripe that creates something carries an idempotency key; whoever calls has
        made that key durable before.
Rule 2: Stripe's methods raise PaymentsUnavailableError (whether it happened is unknown, try again)
        or PaymentsRejectedError (it did not happen); the store's StoreUnavailableError or
        StoreRejectedError, and those that write OwnershipLostError.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import attrs

from meterd.core.organization import AuditEntry, Finding
from meterd.core.overage import Charge, ChargeState, PeriodBill
from meterd.core.stripe_objects import Json, StripeEvent


KEY_REUSED = "idempotency_error"
"""Code of a rejection: the key was used before, with other parameters."""


@attrs.frozen(kw_only=True)
class NewItem:
    """An invoice item to create."""

    customer_id: str
    invoice_id: str | None
    """A draft to put it on; `None`: it is pending and rides the customer's next invoice."""
    currency: str
    amount_cents: int
    description: str
    period_start_ms: int
    period_end_ms: int
    metadata: Mapping[str, str]
    idempotency_key: str


@attrs.frozen(kw_only=True)
class InvoiceItem:
    """An invoice item as Stripe has it now."""

    id: str
    customer_id: str
    invoice_id: str | None
    amount_cents: int
    currency: str
    charge_id: str | None
    """Its `metadata.meterd_charge`; `None`: it is not ours."""


class Billing(Protocol):
    """Stripe's objects that meterd creates."""

    @property
    def livemode(self) -> bool:
        """Tell whether the key is for real money."""
        ...

    async def open_draft(self, subscription_id: str) -> str | None:
        """Return the subscription's cycle invoice that is still a draft, the newest of several."""
        ...

    async def add_item(self, new: NewItem) -> InvoiceItem:
        """Create an invoice item, once for each idempotency key."""
        ...

    async def items_of(self, customer_id: str, *, since_ms: int) -> Sequence[InvoiceItem]:
        """Return a customer's invoice items that were created since an instant."""
        ...

    async def items_since(self, since_ms: int) -> Sequence[InvoiceItem]:
        """Return everybody's invoice items that were created since an instant."""
        ...

    async def item(self, item_id: str) -> InvoiceItem | None:
        """Return an invoice item, or None when it is gone."""
        ...

    async def delete_item(self, item_id: str) -> None:
        """Delete an item that is pending or on a draft; one that is gone is fine."""
        ...

    async def invoice_status(self, invoice_id: str) -> str | None:
        """Return an invoice's status, or None when it is gone."""
        ...

    async def invoice_pending(self, customer_id: str, *, idempotency_key: str) -> str:
        """Create an invoice of a customer's pending items and let it be finalized; its id."""
        ...

    async def create_customer(self, organization_id: str, name: str) -> str:
        """Return the id of a customer made for an organization, the same one within a day."""
        ...

    async def price_with(self, lookup_key: str) -> str | None:
        """Return the active price that has this lookup key, or None."""
        ...

    async def checkout_url(
        self, *, customer_id: str, organization_id: str, price_id: str, return_url: str
    ) -> str:
        """Return the URL of a page on which the customer subscribes to a price."""
        ...

    async def portal_url(self, *, customer_id: str, return_url: str) -> str:
        """Return the URL of the customer's billing portal."""
        ...

    async def subscriptions(self) -> Sequence[Json]:
        """Return all subscriptions, those that have ended included, in Stripe's own JSON."""
        ...

    async def invoices_since(self, since_ms: int) -> Sequence[Json]:
        """Return all invoices that were created since an instant, in Stripe's own JSON."""
        ...

    async def undelivered_events(self) -> Sequence[StripeEvent]:
        """Return the events of the last 30 days that no endpoint has acknowledged."""
        ...


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
