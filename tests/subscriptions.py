"""Builders for what Stripe shows of subscriptions and invoices; a test names what it is about."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import attrs

from meterd.core.commands import FollowSubscription
from meterd.core.plan import Catalogue, Tier
from meterd.core.subscription import (
    Interval,
    Invoice,
    Item,
    Price,
    Status,
    Subscription,
)
from meterd.core.units import from_datetime
from tests.organizations import make_catalogue, make_plan


PRICES = {Tier.STARTER: "price_starter", Tier.PRO: "price_pro"}


def at(text: str) -> int:
    """Return an instant from `2026-02-12` or `2026-02-12T12:00:00`."""
    return from_datetime(datetime.fromisoformat(text).replace(tzinfo=UTC))


def make_sold_catalogue() -> Catalogue:
    """Return the contract's catalogue with a price for Starter and one for Pro."""
    starter = make_plan(Tier.STARTER, stripe_price_ids=(PRICES[Tier.STARTER],))
    pro = make_plan(
        Tier.PRO,
        price_usd=Decimal(149),
        agents=20,
        agent_minutes=10_000,
        stripe_price_ids=(PRICES[Tier.PRO],),
    )
    return make_catalogue({Tier.STARTER: starter, Tier.PRO: pro})


def make_price(price_id: str = "price_starter", **fields: object) -> Price:
    """Return a monthly price in dollars."""
    values: dict[str, object] = {"id": price_id, "interval": Interval.MONTH}
    return Price(**(values | fields))  # type: ignore[arg-type]  # checked by attrs


def make_subscription(
    status: Status = Status.ACTIVE,
    *,
    subscription_id: str = "sub_1",
    price: Price | None = None,
    start: str = "2026-02-12T10:00:00",
    end: str = "2026-03-12T10:00:00",
    quantity: int = 1,
    **fields: object,
) -> Subscription:
    """Return a subscription to Starter with one item."""
    item = Item(
        id=f"si_{subscription_id}",
        price=price or make_price(),
        quantity=quantity,
        start_ms=at(start),
        end_ms=at(end),
    )
    values: dict[str, object] = {
        "id": subscription_id,
        "customer_id": "cus_1",
        "status": status,
        "items": (item,),
        "anchor_ms": at(start),
        "created_at_ms": at(start),
    }
    return Subscription(**(values | fields))  # type: ignore[arg-type]  # checked by attrs


def make_invoice(status: str = "open", *, failed: str | None = None, **fields: object) -> Invoice:
    """Return a renewal's invoice."""
    values: dict[str, object] = {
        "id": "in_1",
        "subscription_id": "sub_1",
        "customer_id": "cus_1",
        "status": status,
        "billing_reason": "subscription_cycle",
        "created_at_ms": at("2026-02-12T10:00:00"),
        "failed_at_ms": None if failed is None else at(failed),
    }
    return Invoice(**(values | fields))  # type: ignore[arg-type]  # checked by attrs


def make_follow(
    *subscriptions: Subscription, invoices: tuple[Invoice, ...] = (), customer_id: str = "cus_1"
) -> FollowSubscription:
    """Return the command that these objects lead to."""
    return FollowSubscription(
        subscriptions=subscriptions,
        invoices=invoices,
        customer_id=customer_id,
        reason="customer.subscription.updated",
    )


def with_item(subscription: Subscription, **fields: object) -> Subscription:
    """Return the subscription with its item changed."""
    [item] = subscription.items
    return attrs.evolve(subscription, items=(attrs.evolve(item, **fields),))  # type: ignore[arg-type]  # checked by attrs
