"""`Billing` on Stripe's API: invoice items, customers, hosted pages, and lists to compare with.

Rule 1: every creation carries the caller's idempotency key.
Rule 2: lists are paged here, each page with its own deadline and its own tries.
Rule 3: an item is known as ours by `metadata.meterd_charge`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import attrs
import stripe

from meterd.adapters.stripe.client import StripePayments
from meterd.adapters.stripe.errors import RESOURCE_MISSING
from meterd.core.stripe_objects import Json, StripeEvent, read_event
from meterd.core.subscription import CYCLE_REASONS, USD
from meterd.core.units import SECOND_MS
from meterd.errors import PaymentsRejectedError
from meterd.ports.billing import InvoiceItem, NewItem


CHARGE: Final = "meterd_charge"
"""Metadata key of the charge that an invoice item is for."""

ORGANIZATION: Final = "organization_id"

TIER: Final = "meterd_tier"
"""Metadata key of a price's plan, and of the portal's configuration, where it is `portal`."""

PORTAL: Final = "portal"

PAGE: Final = 100
"""Objects of one page, Stripe's largest."""

List = Callable[[dict[str, Any]], Awaitable[Any]]


@attrs.define(eq=False)
class StripeBilling:
    """Stripe's write side. Errors: PaymentsUnavailableError, PaymentsRejectedError."""

    payments: StripePayments

    @property
    def livemode(self) -> bool:
        """Tell whether the key is for real money."""
        return self.payments.livemode

    @property
    def _api(self) -> Any:
        return self.payments.client.v1

    async def open_draft(self, subscription_id: str) -> str | None:
        """Return the subscription's cycle invoice that is still a draft, the newest of several."""
        params = {"subscription": subscription_id, "status": "draft"}
        try:
            drafts = await self._all("list drafts", self._api.invoices.list_async, params)
        except PaymentsRejectedError as error:
            if error.code != RESOURCE_MISSING:  # a subscription that is gone has no draft
                raise
            return None
        ours = [each for each in drafts if each["billing_reason"] in CYCLE_REASONS]
        newest = max(ours, key=lambda each: (each["created"], each["id"]), default=None)
        return None if newest is None else newest["id"]

    async def add_item(self, new: NewItem) -> InvoiceItem:
        """Create an invoice item, once for each idempotency key."""
        params: dict[str, Any] = {
            "customer": new.customer_id,
            "currency": new.currency,
            "amount": new.amount_cents,
            "description": new.description,
            "discountable": False,
            "period": {
                "start": new.period_start_ms // SECOND_MS,
                "end": new.period_end_ms // SECOND_MS,
            },
            "metadata": dict(new.metadata),
        }
        if new.invoice_id is not None:
            params["invoice"] = new.invoice_id
        made = await self.payments.call(
            "create an invoice item",
            lambda: self._api.invoice_items.create_async(
                params, {"idempotency_key": new.idempotency_key}
            ),
        )
        return _item(_json(made))

    async def items_of(self, customer_id: str, *, since_ms: int) -> Sequence[InvoiceItem]:
        """Return a customer's invoice items that were created since an instant."""
        params = {"customer": customer_id, "created": {"gte": since_ms // SECOND_MS}}
        try:
            found = await self._all(
                "list invoice items", self._api.invoice_items.list_async, params
            )
        except PaymentsRejectedError as error:
            if error.code != RESOURCE_MISSING:  # a customer that is gone has no items
                raise
            return []
        return [_item(each) for each in found]

    async def items_since(self, since_ms: int) -> Sequence[InvoiceItem]:
        """Return everybody's invoice items that were created since an instant."""
        params = {"created": {"gte": since_ms // SECOND_MS}}
        found = await self._all("list invoice items", self._api.invoice_items.list_async, params)
        return [_item(each) for each in found]

    async def item(self, item_id: str) -> InvoiceItem | None:
        """Return an invoice item, or None when it is gone."""
        found = await self._find(
            "read an invoice item", lambda: self._api.invoice_items.retrieve_async(item_id)
        )
        return None if found is None or found.get("deleted") else _item(found)

    async def delete_item(self, item_id: str) -> None:
        """Delete an item that is pending or on a draft; one that is gone is fine."""
        await self._find(
            "delete an invoice item", lambda: self._api.invoice_items.delete_async(item_id)
        )

    async def invoice_status(self, invoice_id: str) -> str | None:
        """Return an invoice's status, or None when it is gone."""
        found = await self._find(
            "read an invoice", lambda: self._api.invoices.retrieve_async(invoice_id)
        )
        return None if found is None or found.get("deleted") else str(found["status"])

    async def invoice_pending(self, customer_id: str, *, idempotency_key: str) -> str:
        """Create an invoice of a customer's pending items and let it be finalized; its id."""
        made = await self.payments.call(
            "create an invoice",
            lambda: self._api.invoices.create_async(
                {
                    "customer": customer_id,
                    "currency": USD,  # what our items are in, whatever the customer's is
                    "pending_invoice_items_behavior": "include",
                    "auto_advance": True,
                },
                {"idempotency_key": idempotency_key},
            ),
        )
        return str(made.id)

    async def create_customer(self, organization_id: str, name: str) -> str:
        """Return the id of a customer made for an organization, the same one within a day."""
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]  # a key names its parameters
        made = await self.payments.call(
            "create a customer",
            lambda: self._api.customers.create_async(
                {"name": name, "metadata": {ORGANIZATION: organization_id}},
                {"idempotency_key": f"meterd:customer:{organization_id}:{digest}"},
            ),
        )
        return str(made.id)

    async def price_with(self, lookup_key: str) -> str | None:
        """Return the active price that has this lookup key, or None."""
        params = {"lookup_keys": [lookup_key], "active": True}
        found = await self._all("list prices", self._api.prices.list_async, params)
        return str(found[0]["id"]) if found else None

    async def checkout_url(
        self, *, customer_id: str, organization_id: str, price_id: str, return_url: str
    ) -> str:
        """Return the URL of a page on which the customer subscribes to a price."""
        made = await self.payments.call(
            "open a checkout",
            lambda: self._api.checkout.sessions.create_async(
                {
                    "mode": "subscription",
                    "customer": customer_id,
                    "client_reference_id": organization_id,
                    "line_items": [{"price": price_id, "quantity": 1}],
                    "subscription_data": {"metadata": {ORGANIZATION: organization_id}},
                    "success_url": return_url,
                    "cancel_url": return_url,
                }
            ),
        )
        return str(made.url)

    async def portal_url(self, *, customer_id: str, return_url: str) -> str:
        """Return the URL of the customer's billing portal."""
        params = {"customer": customer_id, "return_url": return_url}
        configurations = await self._all(
            "list portal configurations",
            self._api.billing_portal.configurations.list_async,
            {"active": True},
        )
        for each in configurations:  # ours, where `meterd stripe setup` has made it
            if (each["metadata"] or {}).get(TIER) == PORTAL:
                params["configuration"] = each["id"]
        made = await self.payments.call(
            "open the billing portal",
            lambda: self._api.billing_portal.sessions.create_async(params),
        )
        return str(made.url)

    async def subscriptions(self) -> Sequence[Json]:
        """Return all subscriptions, those that have ended included, in Stripe's own JSON."""
        return await self._all(
            "list subscriptions", self._api.subscriptions.list_async, {"status": "all"}
        )

    async def invoices_since(self, since_ms: int) -> Sequence[Json]:
        """Return all invoices that were created since an instant, in Stripe's own JSON."""
        params = {"created": {"gte": since_ms // SECOND_MS}}
        return await self._all("list invoices", self._api.invoices.list_async, params)

    async def undelivered_events(self) -> Sequence[StripeEvent]:
        """Return the events of the last 30 days that no endpoint has acknowledged."""
        found = await self._all(
            "list events", self._api.events.list_async, {"delivery_success": False}
        )
        events = (read_event(json.dumps(each, separators=(",", ":"))) for each in found)
        return [event for event in events if event is not None]

    async def _all(self, action: str, request: List, params: dict[str, Any]) -> list[Any]:
        """Return every object of a list, page by page, newest first."""
        found: list[Any] = []
        page_params = {**params, "limit": PAGE}
        while True:
            page = await self.payments.call(action, _bound(request, page_params))
            found += [_json(each) for each in page.data]
            if not page.has_more or not page.data:
                return found
            page_params = {**page_params, "starting_after": page.data[-1].id}

    async def _find(self, action: str, request: Callable[[], Awaitable[Any]]) -> Any:
        try:
            return _json(await self.payments.call(action, request))
        except PaymentsRejectedError as error:
            if error.code != RESOURCE_MISSING:
                raise
            return None


def _bound(request: List, params: dict[str, Any]) -> Callable[[], Awaitable[Any]]:
    return lambda: request(params)


def _json(found: stripe.StripeObject) -> Any:
    return found.to_dict(for_json=True)


def _item(found: Any) -> InvoiceItem:
    return InvoiceItem(
        id=found["id"],
        customer_id=_reference(found["customer"]),
        invoice_id=_reference(found.get("invoice")) or None,
        amount_cents=found["amount"],
        currency=found["currency"],
        charge_id=(found.get("metadata") or {}).get(CHARGE),
    )


def _reference(value: Any) -> str:
    return value["id"] if isinstance(value, dict) else value or ""
