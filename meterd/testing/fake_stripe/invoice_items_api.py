"""Handlers of invoice items: pending until a draft takes them."""

from __future__ import annotations

import copy
from decimal import ROUND_HALF_UP, Decimal

from meterd.testing.fake_stripe import invoices, shapes, standing
from meterd.testing.fake_stripe.errors import (
    Json,
    StripeRefusedError,
    bad_param,
    missing_param,
)
from meterd.testing.fake_stripe.pages import matching, page
from meterd.testing.fake_stripe.world import World, merge_metadata


def create_invoice_item(world: World, params: Json) -> Json:
    """POST /v1/invoiceitems: pending, or on a draft when `invoice` is given."""
    if "customer" not in params:
        raise missing_param("customer")
    customer = world.get("customer", params["customer"], param="customer")
    subscription = _subscription_named(world, customer, params)
    record = shapes.invoice_item(
        world.new_id("ii"),
        customer_id=customer["id"],
        now_s=world.now_s,
        livemode=world.settings.livemode,
    )
    _price_invoice_item(world, record, params)
    record["description"] = params.get("description")
    record["discountable"] = params.get("discountable", record["amount"] >= 0)
    if "period" in params:
        record["period"] = dict(params["period"])
        if record["period"]["end"] < record["period"]["start"]:
            raise bad_param("The period ends before it starts.", "period[end]")
    merge_metadata(record, params.get("metadata", {}))
    if subscription is not None:
        record["parent"] = {
            "subscription_details": {"subscription": subscription["id"], "subscription_item": None},
            "type": "subscription_details",
        }
    draft = None
    if "invoice" in params:
        draft = world.get("invoice", params["invoice"], param="invoice")
        if draft["customer"] != customer["id"] or draft["currency"] != record["currency"]:
            raise bad_param("The invoice has another customer or currency.", "invoice")
        before = copy.deepcopy(draft)
        invoices.attach_item(world, draft, record)
        invoices.refresh(world, draft)
    world.add(record)
    world.emit("invoiceitem.created", record)
    if draft is not None:
        world.changed("invoice.updated", draft, before)
    return record


def _subscription_named(world: World, customer: Json, params: Json) -> Json | None:
    if "subscription" not in params:
        return None
    subscription = world.get("subscription", params["subscription"], param="subscription")
    ended = subscription["status"] in standing.ENDED
    if ended and not world.settings.accepts_items_on_ended_subscription:
        raise bad_param("This subscription is canceled.", "subscription")
    if subscription["customer"] != customer["id"]:
        raise bad_param("This subscription belongs to another customer.", "subscription")
    return subscription


def _price_invoice_item(world: World, record: Json, params: Json) -> None:
    """`amount`, or `quantity` times a price or a decimal unit amount."""
    quantity = params.get("quantity", 1)
    price_id = params.get("pricing", {}).get("price")
    exact = params.get("unit_amount_decimal")
    price = world.get("price", price_id, param="pricing[price]") if price_id else None
    if price is not None:
        exact = Decimal(price["unit_amount_decimal"])
        record["currency"] = price["currency"]
    elif "currency" in params:
        record["currency"] = params["currency"].lower()
    if "amount" in params:
        if exact is not None or "quantity" in params:
            raise bad_param("You may only specify one of: amount, quantity, pricing.", "amount")
        amount, exact = params["amount"], Decimal(params["amount"])
    elif exact is None:
        raise missing_param("amount")
    else:
        amount = int((exact * quantity).quantize(Decimal(1), rounding=ROUND_HALF_UP))
    record["amount"] = record["net_amount"] = amount
    record["quantity"], record["quantity_decimal"] = quantity, str(quantity)
    record["pricing"] = shapes.pricing_of(price, str(exact))


def retrieve_invoice_item(world: World, _params: Json, item_id: str) -> Json:
    """GET /v1/invoiceitems/{id}."""
    return world.get("invoiceitem", item_id)


def update_invoice_item(world: World, params: Json, item_id: str) -> Json:
    """POST /v1/invoiceitems/{id}: while it is pending or on a draft."""
    record = world.get("invoiceitem", item_id)
    draft = world.get("invoice", record["invoice"]) if record["invoice"] else None
    if draft is not None and draft["status"] != "draft":
        raise StripeRefusedError("This item is already invoiced.", code="invoice_not_editable")
    for name in ("description", "discountable"):
        if name in params:
            record[name] = params[name]
    if "amount" in params:
        _price_invoice_item(world, record, {"amount": params["amount"]})
    if "metadata" in params:
        merge_metadata(record, params["metadata"])
    if draft is not None:
        before = copy.deepcopy(draft)
        lines = world.hidden.lines[draft["id"]]
        lines[:] = [line for line in lines if invoices.item_id_of(line) != item_id]
        invoices.attach_item(world, draft, record)
        invoices.refresh(world, draft)
        world.changed("invoice.updated", draft, before)
    return record


def delete_invoice_item(world: World, _params: Json, item_id: str) -> Json:
    """DELETE /v1/invoiceitems/{id}: pending or on a draft only."""
    record = world.get("invoiceitem", item_id)
    if record["invoice"] is not None:
        invoices.detach_item(world, record)
    world.remove(record)
    world.emit("invoiceitem.deleted", record)
    return {"id": item_id, "object": "invoiceitem", "deleted": True}


def list_invoice_items(world: World, params: Json) -> Json:
    """GET /v1/invoiceitems."""
    found = matching(world.newest_first("invoiceitem"), params, "customer", "invoice")
    if "pending" in params:
        found = [each for each in found if (each["invoice"] is None) == params["pending"]]
    return page("/v1/invoiceitems", found, params)
