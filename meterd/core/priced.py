"""What a mirrored subscription costs, read from Stripe's JSON: items and discounts.

A discount is on the subscription, as an object with its coupon, or, in older shapes, as the single
`discount`; one that is only an id, or of a single item, says nothing and is told to be unknown.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from decimal import Decimal, InvalidOperation

from meterd.core.revenue import Discount, PricedSubscription, RecurringItem
from meterd.core.stripe_objects import read_subscription
from meterd.core.units import SECOND_MS


def read_priced(object_json: str) -> PricedSubscription | None:
    """Return a subscription's value, or None when this is not one. Errors: ValueError, not JSON."""
    found = json.loads(object_json)
    subscription = read_subscription(found) if isinstance(found, dict) else None
    if subscription is None:
        return None
    discounts = list(_discounts(found))
    if any(item.get("discounts") for item in _items(found)):
        discounts.append(None)  # of one line: its coupon is not read with the subscription
    return PricedSubscription(
        id=subscription.id,
        status=subscription.status,
        currency=subscription.currency,
        items=tuple(
            RecurringItem(
                unit_amount_cents=item.price.unit_amount_cents,
                quantity=item.quantity,
                interval=item.price.interval,
                interval_count=item.price.interval_count,
                is_metered=item.price.is_metered,
            )
            for item in subscription.items
        ),
        discounts=tuple(each for each in discounts if each is not None),
        has_unknown_discount=None in discounts,
    )


def _items(subscription: Mapping[str, object]) -> list[Mapping[str, object]]:
    items = subscription.get("items")
    listed = items.get("data") if isinstance(items, dict) else None
    return [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []


def _discounts(subscription: Mapping[str, object]) -> Iterator[Discount | None]:
    found = subscription.get("discounts")
    listed = list(found) if isinstance(found, list) else []
    single = subscription.get("discount")
    for each in listed or ([single] if single else []):
        yield _discount(each) if isinstance(each, dict) else None


def _discount(found: Mapping[str, object]) -> Discount | None:
    source = found.get("source")
    coupon = source.get("coupon") if isinstance(source, dict) else found.get("coupon")
    if not isinstance(coupon, dict):
        return None
    percent_off, amount = _percentage(coupon.get("percent_off")), coupon.get("amount_off")
    amount_off_cents = amount if isinstance(amount, int) else None
    if percent_off is None and amount_off_cents is None:
        return None
    end = found.get("end")
    return Discount(
        percent_off=percent_off,
        amount_off_cents=amount_off_cents,
        is_once=coupon.get("duration") == "once",
        ends_at_ms=end * SECOND_MS if isinstance(end, int) else None,
    )


def _percentage(value: object) -> Decimal | None:
    """Return a percentage, which comes as a number or as text; None: it is neither."""
    try:
        percent = Decimal(str(value))
    except InvalidOperation:
        return None
    return percent if percent.is_finite() and 0 <= percent <= 100 else None  # noqa: PLR2004
