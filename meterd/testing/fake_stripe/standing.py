"""How a subscription's status follows its invoices, and how it ends.

    incomplete -> active | incomplete_expired        active -> past_due -> active
    past_due -> unpaid | canceled | paused           any    -> canceled

Source: https://docs.stripe.com/billing/subscriptions/overview#subscription-statuses. The status
follows the newest finalised invoice; an older one that is paid late changes nothing.
"""

from __future__ import annotations

import copy

from meterd.testing.fake_stripe.errors import Json
from meterd.testing.fake_stripe.world import World


ENDED = frozenset({"canceled", "incomplete_expired"})
RECURRING_REASONS = frozenset({"subscription_create", "subscription_cycle", "subscription_update"})


REVIVED_BY = {
    "paid": ("incomplete", "past_due", "unpaid", "paused"),
    "uncollectible": ("past_due", "unpaid", "paused"),
    "void": ("past_due", "unpaid"),
}
"""Invoice status → subscription statuses that it turns to active."""


def subscription_of(world: World, invoice: Json) -> Json | None:
    """Return the subscription whose standing depends on this invoice, if any."""
    parent = invoice["parent"]
    if parent is None or invoice["billing_reason"] not in RECURRING_REASONS:
        return None
    found = parent["subscription_details"]["subscription"]
    return world.table("subscription").get(found)


def newest_finalized(world: World, subscription: Json) -> Json | None:
    """Return the subscription's newest invoice that left draft."""
    for invoice in reversed(world.of_customer("invoice", subscription["customer"])):
        if invoice["status"] == "draft" or subscription_of(world, invoice) is not subscription:
            continue
        return invoice
    return None


def after_success(world: World, invoice: Json) -> None:
    """Make the subscription active again if the settled invoice allows it."""
    subscription = subscription_of(world, invoice)
    if subscription is None or subscription["id"] in world.hidden.starting:
        return
    if newest_finalized(world, subscription) is not invoice:
        return
    if subscription["status"] in REVIVED_BY.get(invoice["status"], ()):
        before = copy.deepcopy(subscription)
        subscription["status"] = "active"
        subscription["status_details"] = None
        world.changed("customer.subscription.updated", subscription, before)


def after_failure(world: World, invoice: Json) -> None:
    """Follow a failed payment: past_due while retries remain, then what the account chose."""
    subscription = subscription_of(world, invoice)
    if subscription is None or subscription["id"] in world.hidden.starting:
        return
    if subscription["status"] in {*ENDED, "incomplete"}:
        return
    before = copy.deepcopy(subscription)
    has_retries = invoice["next_payment_attempt"] is not None
    if has_retries or world.settings.after_retries == "past_due":
        if subscription["status"] in {"active", "trialing"}:
            subscription["status"] = "past_due"
        world.changed("customer.subscription.updated", subscription, before)
    elif world.settings.after_retries == "cancel":
        end(world, subscription, reason="payment_failed")
    elif world.settings.after_retries == "pause":
        pause(world, subscription, why="final_payment_failure")
    else:
        subscription["status"] = "unpaid"
        world.changed("customer.subscription.updated", subscription, before)


def pause(world: World, subscription: Json, *, why: str) -> None:
    """Status `paused`: no invoices and no new periods until it is resumed."""
    before = copy.deepcopy(subscription)
    subscription["status"] = "paused"
    subscription["status_details"] = {
        "paused": {
            "subscription": {"type": why},
            "transitioned_at": world.now_s,
            "type": "subscription",
        }
    }
    world.changed("customer.subscription.updated", subscription, before)
    world.emit("customer.subscription.paused", subscription)


def end(world: World, subscription: Json, *, reason: str, comment: Json | None = None) -> None:
    """Status `canceled`. Pending items stay pending; its open invoices are chased no more."""
    subscription["status"] = "canceled"
    subscription["status_details"] = None
    subscription["ended_at"] = world.now_s
    if not subscription["cancel_at_period_end"] or subscription["canceled_at"] is None:
        subscription["canceled_at"] = world.now_s
    subscription["cancellation_details"]["reason"] = reason
    subscription["cancellation_details"].update(comment or {})
    world.hidden.scheduled_items.pop(subscription["id"], None)
    for invoice in world.of_customer("invoice", subscription["customer"]):
        if subscription_of(world, invoice) is subscription and invoice["status"] in {
            "draft",
            "open",
        }:
            before = copy.deepcopy(invoice)
            invoice["auto_advance"] = False
            invoice["next_payment_attempt"] = None
            invoice["automatically_finalizes_at"] = None
            world.changed("invoice.updated", invoice, before)
    world.emit("customer.subscription.deleted", subscription)
