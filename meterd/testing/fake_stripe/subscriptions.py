"""The life of a subscription: created, renewed at each boundary, changed, paused, ended.

Every item of a subscription shares one period; the boundary is computed from the anchor, so a
31st stays a 31st. A renewal rolls the period first and invoices it in advance on a draft.
Source: https://docs.stripe.com/billing/subscriptions/overview.
"""

from __future__ import annotations

import copy

from meterd.testing.fake_stripe import (
    billing,
    changes,
    invoices,
    items,
    proration,
    standing,
    timers,
)
from meterd.testing.fake_stripe.clock import DAY_S, add_intervals
from meterd.testing.fake_stripe.errors import (
    Json,
    StripeRefusedError,
    bad_param,
    card_declined,
    missing_object,
    missing_param,
)
from meterd.testing.fake_stripe.shapes import subscription as blank_subscription
from meterd.testing.fake_stripe.world import World


ITEMS_MAX = 20


def create(world: World, params: Json, *, via_checkout: bool = False) -> Json:
    """Start a subscription and settle its first invoice, which has no draft window."""
    if "customer" not in params:
        raise missing_param("customer")
    if not params.get("items"):
        raise missing_param("items")
    customer = world.get("customer", params["customer"], param="customer")
    subscription = blank_subscription(
        world.new_id("sub"),
        customer_id=customer["id"],
        now_s=world.now_s,
        livemode=world.settings.livemode,
    )
    wanted = params["items"]
    if len(wanted) > ITEMS_MAX:
        raise bad_param(f"A subscription can have at most {ITEMS_MAX} items.", "items")
    subscription["items"]["data"] = [
        items.new_item(world, subscription, each, f"items[{index}]")
        for index, each in enumerate(wanted)
    ]
    items.check_together(subscription)
    _set_first_period(world, subscription, params)
    changes.apply_plain(world, subscription, params)
    collects = subscription["collection_method"] == "charge_automatically"
    behavior = params.get("payment_behavior", "allow_incomplete")
    is_charged = collects and subscription["status"] != "trialing"
    must_pay = is_charged and behavior == "error_if_incomplete"
    if must_pay and world.peek_payment(customer["id"]) != "succeed":
        world.payment_outcome(customer["id"])
        raise card_declined()
    world.add(subscription)
    customer["currency"] = subscription["currency"]
    _start(
        world,
        subscription,
        params,
        waits=via_checkout or behavior == "default_incomplete",
        pays=behavior != "default_incomplete",
    )
    timers.plan(world, subscription)
    return subscription


def _set_first_period(world: World, subscription: Json, params: Json) -> None:
    now_s = world.now_s
    trial_end_s = params.get("trial_end")
    if trial_end_s in {None, "now"} and params.get("trial_period_days"):
        trial_end_s = now_s + params["trial_period_days"] * DAY_S
    if isinstance(trial_end_s, int) and trial_end_s > now_s:
        subscription["status"] = "trialing"
        subscription["trial_start"], subscription["trial_end"] = now_s, trial_end_s
        subscription["billing_cycle_anchor"] = trial_end_s
        items.set_period(subscription, now_s, trial_end_s)
        return
    anchor_s = params.get("billing_cycle_anchor", now_s)
    if anchor_s < now_s:
        raise bad_param("billing_cycle_anchor must be in the future.", "billing_cycle_anchor")
    subscription["billing_cycle_anchor"] = anchor_s
    items.set_period(subscription, now_s, items.next_boundary(subscription, now_s))


def _start(world: World, subscription: Json, params: Json, *, waits: bool, pays: bool) -> None:
    """Make the first invoice; `waits`: the subscription is seen incomplete before it is paid."""
    collects = subscription["collection_method"] == "charge_automatically"
    is_trial = subscription["status"] == "trialing"
    if not is_trial:
        subscription["status"] = "incomplete" if collects else "active"
    created = world.emit("customer.subscription.created", subscription)
    customer = world.get("customer", subscription["customer"])
    draft = invoices.open_draft(
        world,
        customer,
        reason="subscription_create",
        currency=subscription["currency"],
        subscription=subscription,
    )
    for item in subscription["items"]["data"]:
        start_s, end_s = item["current_period_start"], item["current_period_end"]
        invoices.add_recurring_line(
            world,
            draft,
            subscription=subscription,
            item=item,
            amount=0 if is_trial else _first_amount(subscription, item, params),
            period=(start_s, end_s),
            description=f"Trial period for {item['price']['product']}" if is_trial else None,
        )
    invoices.attach_pending(world, draft)
    draft["auto_advance"] = True
    if not collects and not is_trial:
        invoices.announce(world, draft)
        created["data"]["object"] = copy.deepcopy(subscription)
        return
    invoices.refresh(world, draft)
    world.emit("invoice.created", draft)
    if not waits:
        world.hidden.starting.add(subscription["id"])
    invoices.finalize(world, draft, collects=pays)
    world.hidden.starting.discard(subscription["id"])
    if not waits:
        if draft["status"] == "paid" and subscription["status"] == "incomplete":
            subscription["status"] = "active"
        created["data"]["object"] = copy.deepcopy(subscription)
    if subscription["status"] == "incomplete":
        draft["auto_advance"] = False
        draft["next_payment_attempt"] = None
        world.schedule(
            "expire_incomplete",
            subscription["id"],
            world.now_s + world.settings.incomplete_expires_s,
        )


def _first_amount(subscription: Json, item: Json, params: Json) -> int:
    """Full price, or the share of it up to a later anchor."""
    start_s, end_s = item["current_period_start"], item["current_period_end"]
    anchor_s = subscription["billing_cycle_anchor"]
    if anchor_s == start_s:
        return proration.price_of(item)
    if params.get("proration_behavior") == "none":
        return 0
    recurring = item["price"]["recurring"]
    whole_s = end_s - add_intervals(end_s, recurring["interval"], -recurring["interval_count"])
    return proration.share(proration.price_of(item), end_s - start_s, whole_s)


def on_period_end(world: World, subscription_id: str, at_s: int) -> None:
    """Pass a boundary: end, or roll the period and open the next invoice as a draft."""
    subscription = world.get("subscription", subscription_id)
    if subscription["status"] in {*standing.ENDED, "paused", "incomplete"}:
        return
    start_s, end_s = items.period_of(subscription)
    if end_s != at_s:
        return
    cancel_at_s = subscription["cancel_at"]
    if subscription["cancel_at_period_end"] or (cancel_at_s is not None and cancel_at_s <= at_s):
        standing.end(world, subscription, reason="cancellation_requested")
        return
    if subscription["status"] == "trialing" and not _leave_trial(world, subscription):
        return
    before = copy.deepcopy(subscription)
    if before["status"] == "trialing":
        subscription["status"] = "active"
    items.apply_schedule(world, subscription)
    items.set_period(subscription, at_s, items.next_boundary(subscription, at_s))
    customer = world.get("customer", subscription["customer"])
    draft = invoices.open_draft(
        world,
        customer,
        reason="subscription_cycle",
        currency=subscription["currency"],
        subscription=subscription,
        period=(start_s, end_s),
    )
    for item in subscription["items"]["data"]:
        invoices.add_recurring_line(
            world,
            draft,
            subscription=subscription,
            item=item,
            amount=proration.price_of(item),
            period=items.period_of(subscription),
        )
    invoices.attach_pending(world, draft)
    paused = subscription["pause_collection"]
    is_kept = paused is not None and paused["behavior"] == "keep_as_draft"
    draft["auto_advance"] = subscription["status"] != "unpaid" and not is_kept
    world.changed("customer.subscription.updated", subscription, before)
    invoices.announce(world, draft)
    timers.plan(world, subscription)


def _leave_trial(world: World, subscription: Json) -> bool:
    """Do what the end of a trial does without a payment method; True to go on as usual."""
    if world.has_payment_method(subscription["customer"]):
        return True
    chosen = subscription["trial_settings"]["end_behavior"]["missing_payment_method"]
    if chosen == "cancel":
        standing.end(world, subscription, reason="cancellation_requested")
    elif chosen == "pause":
        standing.pause(world, subscription, why="trial_end_without_payment_method")
    return bool(chosen == "create_invoice")


def on_trial_will_end(world: World, subscription_id: str, at_s: int) -> None:
    """Three days before the first charge."""
    subscription = world.get("subscription", subscription_id)
    if (
        subscription["status"] == "trialing"
        and subscription["trial_end"] - at_s <= timers.TRIAL_NOTICE_S
    ):
        world.emit("customer.subscription.trial_will_end", subscription)


def on_cancel_at(world: World, subscription_id: str, at_s: int) -> None:
    """End it at the moment chosen inside a period."""
    subscription = world.get("subscription", subscription_id)
    if subscription["status"] not in standing.ENDED and subscription["cancel_at"] == at_s:
        standing.end(world, subscription, reason="cancellation_requested")


def on_resume_collection(world: World, subscription_id: str, at_s: int) -> None:
    """Resume a collection whose pause was given an end."""
    subscription = world.get("subscription", subscription_id)
    paused = subscription["pause_collection"]
    if paused is not None and paused["resumes_at"] == at_s:
        before = copy.deepcopy(subscription)
        subscription["pause_collection"] = None
        world.changed("customer.subscription.updated", subscription, before)


def on_expire_incomplete(world: World, subscription_id: str, _at_s: int) -> None:
    """Expire what stayed unpaid for 23 hours: invoice void, subscription over."""
    subscription = world.get("subscription", subscription_id)
    if subscription["status"] != "incomplete":
        return
    before = copy.deepcopy(subscription)
    subscription["status"] = "incomplete_expired"
    subscription["ended_at"] = world.now_s
    world.changed("customer.subscription.updated", subscription, before)
    invoice = world.get("invoice", subscription["latest_invoice"])
    if invoice["status"] == "open":
        invoices.void(world, invoice)


def cancel(world: World, subscription: Json, params: Json) -> Json:
    """End it now. Without `invoice_now` nothing is swept: other pending items stay pending."""
    if subscription["status"] in standing.ENDED:
        raise missing_object("subscription", subscription["id"])
    prorates, invoices_now = params.get("prorate", False), params.get("invoice_now", False)
    if prorates and subscription["status"] in {"active", "past_due"}:
        for item in subscription["items"]["data"]:
            proration.credit_unused(world, subscription, item, at_s=world.now_s)
    if not prorates and not invoices_now:
        _drop_pending_prorations(world, subscription)
    if invoices_now:
        billing.invoice_now(world, subscription, reason="subscription_update")
    subscription["cancel_at_period_end"] = False
    standing.end(
        world,
        subscription,
        reason="cancellation_requested",
        comment=params.get("cancellation_details"),
    )
    return subscription


def _drop_pending_prorations(world: World, subscription: Json) -> None:
    for item in world.of_customer("invoiceitem", subscription["customer"]):
        named = item["parent"] and item["parent"]["subscription_details"]["subscription"]
        if item["proration"] and item["invoice"] is None and named == subscription["id"]:
            world.remove(item)
            world.emit("invoiceitem.deleted", item)


def resume(world: World, subscription: Json, params: Json) -> Json:
    """Paused -> active, with a new period from now unless the anchor is kept."""
    if subscription["status"] != "paused":
        raise StripeRefusedError("Only a paused subscription can be resumed.")
    before = copy.deepcopy(subscription)
    subscription["status"] = "active"
    subscription["status_details"] = None
    keeps = params.get("billing_cycle_anchor", {}).get("type") == "unchanged"
    if not keeps:
        subscription["billing_cycle_anchor"] = world.now_s
    items.set_period(subscription, world.now_s, items.next_boundary(subscription, world.now_s))
    world.changed("customer.subscription.updated", subscription, before)
    world.emit("customer.subscription.resumed", subscription)
    if not keeps:
        billing.bill_period(world, subscription)
    timers.plan(world, subscription)
    return subscription
