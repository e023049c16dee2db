"""`POST /v1/subscriptions/{id}`: what each parameter changes, and what is invoiced for it.

Keeping the anchor prorates within the period; `billing_cycle_anchor={type: now}`, a new interval
or the end of a trial opens a new period at full price, invoiced at once.
"""

from __future__ import annotations

import copy

from meterd.testing.fake_stripe import billing, discounts, items, proration, standing, timers
from meterd.testing.fake_stripe.errors import (
    Json,
    StripeRefusedError,
    bad_param,
    card_declined,
)
from meterd.testing.fake_stripe.world import World, merge_metadata


PLAIN = ("description", "default_payment_method", "collection_method", "days_until_due")
"""Fields that are stored as given; an empty string unsets them."""


def apply_plain(world: World, subscription: Json, params: Json) -> None:
    """Parameters that move no money."""
    for name in PLAIN:
        if name in params:
            subscription[name] = params[name] if params[name] != "" else None
    if "metadata" in params:
        merge_metadata(subscription, params["metadata"])
    if "trial_settings" in params:
        chosen = params["trial_settings"]["end_behavior"]
        subscription["trial_settings"]["end_behavior"].update(chosen)
    if "discounts" in params:
        discounts.set_discounts(
            world,
            subscription,
            params["discounts"],
            customer_id=subscription["customer"],
            names={"subscription": subscription["id"]},
        )
    if "pause_collection" in params:
        given = params["pause_collection"]
        subscription["pause_collection"] = None if given == "" else {"resumes_at": None, **given}
    if "cancellation_details" in params:
        subscription["cancellation_details"].update(params["cancellation_details"])
    _apply_cancellation(world, subscription, params)


def _apply_cancellation(world: World, subscription: Json, params: Json) -> None:
    if params.get("cancel_at_period_end") and params.get("cancel_at"):
        raise bad_param("You may only set one of cancel_at_period_end and cancel_at.", "cancel_at")
    if "cancel_at_period_end" in params:
        wanted = params["cancel_at_period_end"]
        subscription["cancel_at_period_end"] = wanted
        subscription["cancel_at"] = items.period_of(subscription)[1] if wanted else None
        subscription["canceled_at"] = world.now_s if wanted else None
        reason = "cancellation_requested" if wanted else None
        subscription["cancellation_details"]["reason"] = reason
    if "cancel_at" in params:
        given = params["cancel_at"]
        if isinstance(given, str) and given != "":
            given = items.period_of(subscription)[1]  # min_period_end and max_period_end
        subscription["cancel_at"] = given or None
        subscription["canceled_at"] = world.now_s if given else None


def update(world: World, subscription: Json, params: Json) -> Json:
    """Apply a request to a living subscription; refused requests change nothing."""
    if subscription["status"] in standing.ENDED:
        _refuse_unless_harmless(params)
    draft_of_change = copy.deepcopy(subscription)
    changed_items = _wanted_items(world, draft_of_change, params)
    items.check_together(draft_of_change)
    opens_period = _opens_period(subscription, draft_of_change, params)
    behavior = params.get("proration_behavior", "create_prorations")
    invoices_now = opens_period or (behavior == "always_invoice" and bool(changed_items))
    must_pay = invoices_now and params.get("payment_behavior") == "error_if_incomplete"
    if must_pay and world.peek_payment(subscription["customer"]) != "succeed":
        world.payment_outcome(subscription["customer"])
        raise card_declined()
    before = copy.deepcopy(subscription)
    if changed_items or opens_period:
        _prorate(world, subscription, draft_of_change, changed_items, params)
    subscription["items"] = draft_of_change["items"]
    subscription["currency"] = draft_of_change["currency"]
    _set_trial(world, subscription, params)
    apply_plain(world, subscription, params)
    if opens_period:
        _open_period(world, subscription)
    world.changed("customer.subscription.updated", subscription, before)
    if opens_period:
        billing.bill_period(world, subscription)
    elif invoices_now:
        billing.invoice_now(world, subscription, reason="subscription_update")
    timers.plan(world, subscription)
    return subscription


def _refuse_unless_harmless(params: Json) -> None:
    if set(params) - {"metadata", "cancellation_details", "expand"}:
        raise StripeRefusedError(
            "A canceled subscription can only update its cancellation_details and metadata.",
            code="invalid_canceled_subscription_fields",
        )


def _wanted_items(
    world: World, subscription: Json, params: Json
) -> list[tuple[Json | None, Json | None]]:
    """Apply `items` to a copy; returns (old, new) for each item that costs something else."""
    current = subscription["items"]["data"]
    start_s, end_s = items.period_of(subscription)
    by_id = {item["id"]: item for item in current}
    changed: list[tuple[Json | None, Json | None]] = []
    for index, given in enumerate(params.get("items", [])):
        where = f"items[{index}]"
        if "id" not in given:
            item = items.new_item(world, subscription, given, where)
            item["current_period_start"], item["current_period_end"] = start_s, end_s
            current.append(item)
            changed.append((None, item))
            continue
        if given["id"] not in by_id:
            raise bad_param(f"No such subscription item: '{given['id']}'", f"{where}[id]")
        item = by_id[given["id"]]
        old = copy.deepcopy(item)
        if given.get("deleted"):
            current.remove(item)
            changed.append((old, None))
            continue
        if "price" in given:
            items.set_price(item, items.recurring_price(world, given["price"], f"{where}[price]"))
        item["quantity"] = given.get("quantity", item["quantity"])
        if "metadata" in given:
            merge_metadata(item, given["metadata"])
        items.set_discounts(world, subscription, item, given)
        if (old["price"]["id"], old["quantity"]) != (item["price"]["id"], item["quantity"]):
            changed.append((old, item))
    return changed


def _opens_period(before: Json, after: Json, params: Json) -> bool:
    if before["status"] == "trialing":
        return bool(params.get("trial_end") == "now")
    if params.get("billing_cycle_anchor", {}).get("type") == "now":
        return True
    return items.interval_of(before) != items.interval_of(after)


def _prorate(
    world: World,
    subscription: Json,
    wanted: Json,
    changed: list[tuple[Json | None, Json | None]],
    params: Json,
) -> None:
    """Credit what is given up and, within the period, charge what replaces it."""
    if params.get("proration_behavior") == "none" or subscription["status"] == "trialing":
        return
    at_s = params.get("proration_date", world.now_s)
    if _opens_period(subscription, wanted, params):
        for item in subscription["items"]["data"]:
            proration.credit_unused(world, subscription, item, at_s=at_s)
        return
    for old, new in changed:
        if old is not None:
            proration.credit_unused(world, subscription, old, at_s=at_s)
        if new is not None:
            proration.charge_remaining(world, subscription, new, at_s=at_s)


def _set_trial(world: World, subscription: Json, params: Json) -> None:
    wanted = params.get("trial_end")
    if wanted is None:
        return
    if wanted == "now":
        if subscription["status"] == "trialing":
            subscription["trial_end"] = world.now_s
            subscription["status"] = "active"
        return
    if wanted <= world.now_s:
        raise bad_param(
            "Invalid timestamp: must be an integer Unix timestamp in the future.", "trial_end"
        )
    subscription["status"] = "trialing"
    subscription["trial_start"] = subscription["trial_start"] or world.now_s
    subscription["trial_end"] = subscription["billing_cycle_anchor"] = wanted
    items.set_period(subscription, items.period_of(subscription)[0], wanted)


def _open_period(world: World, subscription: Json) -> None:
    subscription["billing_cycle_anchor"] = world.now_s
    items.set_period(subscription, world.now_s, items.next_boundary(subscription, world.now_s))
