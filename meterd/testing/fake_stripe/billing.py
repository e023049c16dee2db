"""Invoices made within a request: no draft window, settled before the answer."""

from __future__ import annotations

from meterd.testing.fake_stripe import invoices, items, proration
from meterd.testing.fake_stripe.errors import Json
from meterd.testing.fake_stripe.world import World


def bill_period(world: World, subscription: Json) -> None:
    """Invoice the period just opened at full price, with what is pending, at once."""
    draft = invoices.open_draft(
        world,
        world.get("customer", subscription["customer"]),
        reason="subscription_update",
        currency=subscription["currency"],
        subscription=subscription,
    )
    draft["auto_advance"] = True
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
    settle_at_once(world, draft)


def invoice_now(world: World, subscription: Json, *, reason: str) -> Json | None:
    """Bill the subscription's pending items at once; None when there is nothing."""
    draft = invoices.open_draft(
        world,
        world.get("customer", subscription["customer"]),
        reason=reason,
        currency=subscription["currency"],
        subscription=subscription,
    )
    draft["auto_advance"] = True
    invoices.attach_pending(world, draft)
    if not world.hidden.lines[draft["id"]]:
        world.remove(draft)
        return None
    settle_at_once(world, draft)
    return draft


def settle_at_once(world: World, draft: Json) -> None:
    """Announce and finalise within the request: changes and cancellations have no window."""
    invoices.refresh(world, draft)
    world.emit("invoice.created", draft)
    invoices.finalize(world, draft, collects=True)
