"""Handlers of invoices."""

from __future__ import annotations

import copy

from meterd.testing.fake_stripe import invoices
from meterd.testing.fake_stripe.errors import (
    Json,
    StripeRefusedError,
    card_declined,
    missing_param,
)
from meterd.testing.fake_stripe.pages import matching, page
from meterd.testing.fake_stripe.world import World, merge_metadata


def create_invoice(world: World, params: Json) -> Json:
    """POST /v1/invoices: a draft of billing reason `manual`."""
    subscription = None
    if "subscription" in params:
        subscription = world.get("subscription", params["subscription"], param="subscription")
    customer_id = params.get("customer") or (subscription and subscription["customer"])
    if not customer_id:
        raise missing_param("customer")
    customer = world.get("customer", customer_id, param="customer")
    currency = params.get("currency") or customer["currency"] or "usd"
    draft = invoices.open_draft(
        world, customer, reason="manual", currency=currency.lower(), subscription=subscription
    )
    for name in ("description", "collection_method", "footer"):
        if name in params:
            draft[name] = params[name]
    if draft["collection_method"] == "send_invoice":
        draft["due_date"] = world.now_s + params.get("days_until_due", 30) * 86_400
    draft["auto_advance"] = params.get("auto_advance", False)
    draft["automatically_finalizes_at"] = params.get("automatically_finalizes_at")
    if "metadata" in params:
        merge_metadata(draft, params["metadata"])
    if params.get("pending_invoice_items_behavior") == "include":
        invoices.attach_pending(world, draft, only_subscription=params.get("subscription"))
    invoices.announce(world, draft)
    return draft


def retrieve_invoice(world: World, _params: Json, invoice_id: str) -> Json:
    """GET /v1/invoices/{id}."""
    return world.get("invoice", invoice_id)


def update_invoice(world: World, params: Json, invoice_id: str) -> Json:
    """POST /v1/invoices/{id}; after finalisation only `auto_advance` and metadata move."""
    invoice = world.get("invoice", invoice_id)
    before = copy.deepcopy(invoice)
    is_draft = invoice["status"] == "draft"
    if not is_draft and set(params) - {"auto_advance", "metadata", "expand"}:
        raise StripeRefusedError(
            "Finalized invoices can't be updated in this way", code="invoice_not_editable"
        )
    for name in ("description", "footer", "automatically_finalizes_at"):
        if name in params:
            invoice[name] = params[name] or None
    if "metadata" in params:
        merge_metadata(invoice, params["metadata"])
    if "auto_advance" in params and invoice["status"] in {"draft", "open"}:
        invoice["auto_advance"] = params["auto_advance"]
    if is_draft and invoice["auto_advance"]:
        if invoice["automatically_finalizes_at"] is None:
            invoice["automatically_finalizes_at"] = world.now_s + world.settings.draft_window_s
        world.schedule("finalize", invoice_id, invoice["automatically_finalizes_at"])
    elif is_draft:
        invoice["automatically_finalizes_at"] = None
    world.changed("invoice.updated", invoice, before)
    return invoice


def delete_invoice(world: World, _params: Json, invoice_id: str) -> Json:
    """DELETE /v1/invoices/{id}: drafts made by request only; their items become pending again."""
    invoice = world.get("invoice", invoice_id)
    if invoice["status"] != "draft" or invoice["billing_reason"] != "manual":
        raise StripeRefusedError(
            "You can only delete draft invoices that were not created by a subscription.",
            code="invoice_not_editable",
        )
    for item in world.of_customer("invoiceitem", invoice["customer"]):
        if item["invoice"] == invoice_id:
            item["invoice"] = None
    world.remove(invoice)
    world.emit("invoice.deleted", invoice)
    return {"id": invoice_id, "object": "invoice", "deleted": True}


def finalize_invoice(world: World, params: Json, invoice_id: str) -> Json:
    """POST /v1/invoices/{id}/finalize."""
    invoice = world.get("invoice", invoice_id)
    invoice["auto_advance"] = params.get("auto_advance", invoice["auto_advance"])
    invoices.finalize(world, invoice, collects=invoice["auto_advance"])
    return invoice


def pay_invoice(world: World, params: Json, invoice_id: str) -> Json:
    """POST /v1/invoices/{id}/pay: 402 when the charge fails; a draft is finalised first."""
    invoice = world.get("invoice", invoice_id)
    if invoice["status"] == "draft":
        invoices.finalize(world, invoice, collects=False)
    if invoice["status"] == "paid":
        if params.get("paid_out_of_band") or invoice["amount_due"] == 0:
            return invoice
        raise StripeRefusedError("Invoice is already paid", code="invoice_already_paid")
    if invoice["status"] not in {"open", "uncollectible"}:
        raise StripeRefusedError(f"A {invoice['status']} invoice cannot be paid.")
    if params.get("paid_out_of_band"):
        invoices.mark_paid(world, invoice, out_of_band=True)
    elif not invoices.collect(world, invoice):
        raise card_declined()
    return invoice


def void_invoice(world: World, _params: Json, invoice_id: str) -> Json:
    """POST /v1/invoices/{id}/void."""
    invoice = world.get("invoice", invoice_id)
    invoices.void(world, invoice)
    return invoice


def mark_uncollectible(world: World, _params: Json, invoice_id: str) -> Json:
    """POST /v1/invoices/{id}/mark_uncollectible."""
    invoice = world.get("invoice", invoice_id)
    invoices.mark_uncollectible(world, invoice)
    return invoice


def list_invoices(world: World, params: Json) -> Json:
    """GET /v1/invoices."""
    found = matching(
        world.newest_first("invoice"), params, "customer", "status", "collection_method"
    )
    if "subscription" in params:
        world.get("subscription", params["subscription"], param="subscription")
        found = [each for each in found if _subscription_id(each) == params["subscription"]]
    return page("/v1/invoices", found, params)


def _subscription_id(record: Json) -> str | None:
    parent = record["parent"]
    if parent is None:
        return None
    found: str = parent["subscription_details"]["subscription"]
    return found


def list_invoice_lines(world: World, params: Json, invoice_id: str) -> Json:
    """GET /v1/invoices/{id}/lines: pending items first."""
    world.get("invoice", invoice_id)
    return page(f"/v1/invoices/{invoice_id}/lines", invoices.lines_of(world, invoice_id), params)
