"""The life of an invoice: draft -> open -> paid | uncollectible | void.

A renewal's draft waits for its window (Settings.draft_window_s), longer while `invoice.created`
is not answered; then it is finalised and charged at once. Lines live in `Hidden.lines`, pending
items first; the object carries the first ten, as Stripe's does.
"""

from __future__ import annotations

import copy

from meterd.testing.fake_stripe import discounts, shapes, standing
from meterd.testing.fake_stripe.errors import Json, StripeRefusedError
from meterd.testing.fake_stripe.world import World


LINES_SHOWN = 10
"""Lines an invoice object carries itself; the rest is behind /v1/invoices/{id}/lines."""


def open_draft(
    world: World,
    customer: Json,
    *,
    reason: str,
    currency: str,
    subscription: Json | None = None,
    period: tuple[int, int] | None = None,
) -> Json:
    """Store an empty draft. The caller fills it, then announces it."""
    invoice = shapes.invoice(
        world.new_id("in"),
        customer_of_it=customer,
        now_s=world.now_s,
        account_name=world.settings.account_name,
    )
    invoice["billing_reason"] = reason
    invoice["currency"] = currency
    billed = None if reason == "manual" else subscription
    invoice["discounts"] = discounts.of_invoice(world, billed, customer)
    if subscription is not None:
        invoice["parent"] = {
            "quote_details": None,
            "subscription_details": {
                "metadata": dict(subscription["metadata"]),
                "subscription": subscription["id"],
                "subscription_proration_date": None,
            },
            "type": "subscription_details",
        }
        invoice["collection_method"] = subscription["collection_method"]
        if reason != "manual":
            subscription["latest_invoice"] = invoice["id"]
        if subscription["days_until_due"] is not None:
            invoice["due_date"] = world.now_s + subscription["days_until_due"] * 86_400
    if period is not None:
        invoice["period_start"], invoice["period_end"] = period
    world.hidden.lines[invoice["id"]] = []
    return world.add(invoice)


def announce(world: World, invoice: Json) -> None:
    """Send `invoice.created` for a filled draft, and plan its finalisation if automatic."""
    refresh(world, invoice)
    if invoice["auto_advance"] and invoice["automatically_finalizes_at"] is None:
        invoice["automatically_finalizes_at"] = world.now_s + world.settings.draft_window_s
    world.emit("invoice.created", invoice)
    if invoice["auto_advance"]:
        world.schedule("finalize", invoice["id"], invoice["automatically_finalizes_at"])


def add_recurring_line(
    world: World,
    invoice: Json,
    *,
    subscription: Json,
    item: Json,
    amount: int,
    period: tuple[int, int],
    description: str | None = None,
) -> None:
    """Charge an item's service period. Not a proration."""
    price = item["price"]
    quantity = item["quantity"]
    interval = price["recurring"]["interval"]
    line = shapes.invoice_line(
        world.new_id("il"),
        invoice_id=invoice["id"],
        livemode=invoice["livemode"],
        amount=amount,
        subtotal=amount,
        currency=invoice["currency"],
        description=description
        or f"{quantity} x {price['nickname'] or price['product']} (per {interval})",
        discounts=discounts.living(world, item["discounts"]),
        metadata=dict(subscription["metadata"]),
        parent=_recurring_parent(subscription["id"], item["id"]),
        period={"start": period[0], "end": period[1]},
        pricing=shapes.pricing_of(price, price["unit_amount_decimal"]),
        quantity=quantity,
        quantity_decimal=str(quantity),
        subscription=subscription["id"],
    )
    world.hidden.lines[invoice["id"]].append(line)


def _recurring_parent(
    subscription_id: str, subscription_item_id: str, proration_item: Json | None = None
) -> Json:
    credited = (proration_item or {}).get("proration_details")
    return {
        "invoice_item_details": None,
        "subscription_item_details": {
            "invoice_item": proration_item["id"] if proration_item else None,
            "proration": proration_item is not None,
            "proration_details": {"credited_items": None} if credited else None,
            "subscription": subscription_id,
            "subscription_item": subscription_item_id,
        },
        "type": "subscription_item_details",
    }


def attach_item(world: World, invoice: Json, item: Json) -> None:
    """Put a pending item on a draft, in front of the recurring lines."""
    if invoice["status"] != "draft":
        raise StripeRefusedError(
            "This invoice is no longer editable because it was finalized or its customer was"
            " already charged.",
            code="invoice_not_editable",
            param="invoice",
        )
    lines = world.hidden.lines[invoice["id"]]
    attached = [line for line in lines if item_id_of(line) is not None]
    if len(attached) >= world.settings.items_per_invoice_max:
        raise StripeRefusedError(
            f"An invoice can have at most {world.settings.items_per_invoice_max} invoice items.",
            param="invoice",
        )
    item["invoice"] = invoice["id"]
    details = item["parent"] and item["parent"]["subscription_details"]
    if item["proration"] and details:
        parent = _recurring_parent(details["subscription"], details["subscription_item"], item)
    else:
        parent = {
            "invoice_item_details": {
                "invoice_item": item["id"],
                "proration": item["proration"],
                "proration_details": None,
                "subscription": details["subscription"] if details else None,
            },
            "subscription_item_details": None,
            "type": "invoice_item_details",
        }
    line = shapes.invoice_line(
        world.new_id("il"),
        invoice_id=invoice["id"],
        livemode=invoice["livemode"],
        amount=item["amount"],
        subtotal=item["amount"],
        currency=item["currency"],
        description=item["description"],
        discountable=item["discountable"],
        metadata=dict(item["metadata"]),
        parent=parent,
        period=dict(item["period"]),
        pricing=copy.deepcopy(item["pricing"]),
        quantity=item["quantity"],
        quantity_decimal=item["quantity_decimal"],
        subscription=details["subscription"] if details else None,
    )
    lines.insert(len(attached), line)


def item_id_of(line: Json) -> str | None:
    """Return the invoice item behind a line; None for a plain recurring line."""
    parent: Json = line["parent"]
    details = parent["invoice_item_details"] or parent["subscription_item_details"]
    found: str | None = details["invoice_item"]
    return found


def attach_pending(world: World, invoice: Json, *, only_subscription: str | None = None) -> None:
    """Sweep the customer's pending items onto a draft, oldest first, as many as fit.

    A renewal takes its own subscription's items and those that name none; an invoice made by
    request takes all of the customer's, or only those of the subscription it names.
    """
    own = invoice["parent"] and invoice["parent"]["subscription_details"]["subscription"]
    room = world.settings.items_per_invoice_max
    for item in world.of_customer("invoiceitem", invoice["customer"]):
        if item["invoice"] is not None:
            continue
        named = item["parent"] and item["parent"]["subscription_details"]["subscription"]
        if only_subscription is not None and named != only_subscription:
            continue
        if invoice["billing_reason"] != "manual" and named not in {None, own}:
            continue
        if item["currency"] != invoice["currency"] or room == 0:
            continue
        attach_item(world, invoice, item)
        room -= 1


def detach_item(world: World, item: Json) -> None:
    """Take an item's line off its draft."""
    invoice = world.get("invoice", item["invoice"])
    if invoice["status"] != "draft":
        raise StripeRefusedError(
            "You can only delete invoice items that are pending or attached to a draft invoice.",
            code="invoice_not_editable",
        )
    lines = world.hidden.lines[invoice["id"]]
    lines[:] = [line for line in lines if item_id_of(line) != item["id"]]
    item["invoice"] = None
    before = copy.deepcopy(invoice)
    refresh(world, invoice)
    world.changed("invoice.updated", invoice, before)


def refresh(world: World, invoice: Json) -> None:
    """Work out the sums of a draft again from its lines."""
    lines = world.hidden.lines[invoice["id"]]
    subtotal = sum(line["amount"] for line in lines)
    discounted = discounts.deduct(world, invoice, lines)
    total = subtotal - discounted
    balance = world.get("customer", invoice["customer"])["balance"]
    invoice["lines"] = shapes.list_of(
        f"/v1/invoices/{invoice['id']}/lines",
        copy.deepcopy(lines[:LINES_SHOWN]),
        has_more=len(lines) > LINES_SHOWN,
    )
    invoice["subtotal"] = invoice["subtotal_excluding_tax"] = subtotal
    invoice["total"] = invoice["total_excluding_tax"] = total
    invoice["starting_balance"] = balance
    invoice["amount_due"] = invoice["amount_remaining"] = max(total + balance, 0)


def finalize(world: World, invoice: Json, *, collects: bool) -> None:
    """Draft -> open (or paid, when nothing is due); charges it when `collects`."""
    if invoice["status"] != "draft":
        raise StripeRefusedError(
            "This invoice is already finalized, you can't re-finalize a non-draft invoice.",
            code="invoice_not_editable",
        )
    if not world.hidden.lines[invoice["id"]]:
        raise StripeRefusedError(
            "This invoice has no line items to finalize.", code="invoice_no_customer_line_items"
        )
    refresh(world, invoice)
    before = copy.deepcopy(invoice)
    customer = world.get("customer", invoice["customer"])
    left_over = min(invoice["total"] + customer["balance"], 0)
    used_balance = customer["balance"] != left_over
    invoice["ending_balance"] = customer["balance"] = left_over
    invoice["number"] = f"{customer['invoice_prefix']}-{customer['next_invoice_sequence']:04d}"
    customer["next_invoice_sequence"] += 1
    invoice["status"] = "open"
    invoice["automatically_finalizes_at"] = None
    invoice["status_transitions"]["finalized_at"] = invoice["effective_at"] = world.now_s
    invoice["hosted_invoice_url"] = f"{world.base_url}/pay/invoice/{invoice['id']}"
    invoice["invoice_pdf"] = f"{world.base_url}/pay/invoice/{invoice['id']}/pdf"
    discounts.spend(world, invoice, standing.subscription_of(world, invoice))
    world.emit("invoice.finalized", invoice)
    world.changed("invoice.updated", invoice, before)
    if used_balance:
        world.emit("customer.updated", customer, previous={"balance": before["starting_balance"]})
    if invoice["amount_due"] == 0:
        invoice["attempted"] = True
        mark_paid(world, invoice)
    elif invoice["collection_method"] == "send_invoice":
        world.emit("invoice.sent", invoice)
    elif collects:
        collect(world, invoice)


def collect(world: World, invoice: Json) -> bool:
    """Try to charge an open invoice once; True when that settled it."""
    outcome = world.payment_outcome(invoice["customer"])
    before = copy.deepcopy(invoice)
    invoice["attempted"] = True
    invoice["attempt_count"] += 1
    if outcome == "succeed":
        mark_paid(world, invoice, before=before)
        return True
    used = world.hidden.retries.get(invoice["id"], 0)
    delays = world.settings.retry_delays_s
    if invoice["auto_advance"] and used < len(delays):
        invoice["next_payment_attempt"] = world.now_s + delays[used]
        world.hidden.retries[invoice["id"]] = used + 1
        world.schedule("retry_payment", invoice["id"], invoice["next_payment_attempt"])
    else:
        invoice["next_payment_attempt"] = None
    world.changed("invoice.updated", invoice, before)
    world.emit("invoice.payment_failed", invoice)
    customer = world.get("customer", invoice["customer"])
    if not customer["delinquent"]:
        customer["delinquent"] = True
        world.emit("customer.updated", customer, previous={"delinquent": False})
    standing.after_failure(world, invoice)
    return False


def mark_paid(
    world: World, invoice: Json, *, before: Json | None = None, out_of_band: bool = False
) -> None:
    """Open -> paid, with both of the events Stripe sends for it."""
    before = before or copy.deepcopy(invoice)
    invoice["status"] = "paid"
    invoice["auto_advance"] = False
    invoice["next_payment_attempt"] = None
    invoice["status_transitions"]["paid_at"] = world.now_s
    if out_of_band:
        invoice["amount_paid_off_stripe"] = invoice["amount_due"]
    invoice["amount_paid"] = invoice["amount_due"]
    invoice["amount_remaining"] = 0
    world.changed("invoice.updated", invoice, before)
    world.emit("invoice.paid", invoice)
    world.emit("invoice.payment_succeeded", invoice)
    _no_longer_delinquent(world, invoice)
    standing.after_success(world, invoice)


def _no_longer_delinquent(world: World, invoice: Json) -> None:
    customer = world.get("customer", invoice["customer"])
    if customer["delinquent"]:
        customer["delinquent"] = False
        world.emit("customer.updated", customer, previous={"delinquent": True})


def void(world: World, invoice: Json) -> None:
    """Open | uncollectible -> void: as if it had never been."""
    _leave_open(world, invoice, to="void", moment="voided_at", event="invoice.voided")


def mark_uncollectible(world: World, invoice: Json) -> None:
    """Open -> uncollectible: written off, still payable."""
    _leave_open(
        world,
        invoice,
        to="uncollectible",
        moment="marked_uncollectible_at",
        event="invoice.marked_uncollectible",
    )


def _leave_open(world: World, invoice: Json, *, to: str, moment: str, event: str) -> None:
    allowed = {"open"} if to == "uncollectible" else {"open", "uncollectible"}
    if invoice["status"] not in allowed:
        raise StripeRefusedError(
            f"You can only mark an open invoice as {to}; this one is {invoice['status']}.",
            code="invoice_not_editable",
        )
    before = copy.deepcopy(invoice)
    invoice["status"] = to
    invoice["auto_advance"] = False
    invoice["next_payment_attempt"] = None
    invoice["status_transitions"][moment] = world.now_s
    world.changed("invoice.updated", invoice, before)
    world.emit(event, invoice)
    standing.after_success(world, invoice)


def on_finalize_timer(world: World, invoice_id: str, at_s: int) -> None:
    """Finalise and charge a draft whose window has passed, unless notices are unanswered."""
    invoice = world.table("invoice").get(invoice_id)
    if invoice is None or invoice["status"] != "draft" or not invoice["auto_advance"]:
        return
    if invoice["automatically_finalizes_at"] != at_s:
        return
    verdict = world.may_finalize(invoice_id)
    if verdict is not True:
        invoice["automatically_finalizes_at"] = verdict
        world.schedule("finalize", invoice_id, int(verdict))
        return
    subscription = standing.subscription_of(world, invoice)
    paused = (subscription or {}).get("pause_collection")
    if not world.hidden.lines[invoice_id]:
        invoice["auto_advance"] = False
        invoice["automatically_finalizes_at"] = None
        return
    finalize(world, invoice, collects=paused is None)
    if paused is not None and invoice["status"] == "open":
        {"void": void, "mark_uncollectible": mark_uncollectible}[paused["behavior"]](world, invoice)


def on_retry_timer(world: World, invoice_id: str, at_s: int) -> None:
    """Charge again at the moment of an automatic retry."""
    invoice = world.table("invoice").get(invoice_id)
    if invoice is None or invoice["status"] != "open" or not invoice["auto_advance"]:
        return
    if invoice["next_payment_attempt"] == at_s:
        collect(world, invoice)


def lines_of(world: World, invoice_id: str) -> list[Json]:
    """Every line of an invoice, in the order Stripe pages them."""
    lines: list[Json] = world.hidden.lines.get(invoice_id, [])
    return lines
