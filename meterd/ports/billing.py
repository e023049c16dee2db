"""Stripe's objects as meterd makes them.

Rule 1: every call that creates something carries an idempotency key; whoever calls has made that
        key durable before.
Rule 2: methods raise PaymentsUnavailableError (whether it happened is unknown, try again) or
        PaymentsRejectedError (it did not happen).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import attrs

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
