"""What Stripe says of an organization's subscriptions, and what follows from it.

Rule 1: everything here is a function of the objects as they are now, never of the order in which
        news of them arrived.
Rule 2: the plan is that of the best live subscription. Nobody is put on Free because of something
        unknown: an unknown price, status or interval keeps the plan as it is and is an alert.
Rule 3: only an unpaid *cycle* invoice (`subscription_create`, `subscription_cycle`) starts the
        payment grace clock, at its first failure; retries do not restart it.
The table of statuses and what they mean is docs/reference/stripe.md.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from decimal import Decimal

import attrs

from meterd.core.cycle import Cycle
from meterd.core.period import MONTHS_PER_YEAR
from meterd.core.plan import Catalogue, Tier


class Status(enum.Enum):
    """A subscription's status; Stripe's set is open, so there is one for what we do not know."""

    INCOMPLETE = "incomplete"
    INCOMPLETE_EXPIRED = "incomplete_expired"
    TRIALING = "trialing"
    ACTIVE = "active"
    PAST_DUE = "past_due"
    CANCELED = "canceled"
    UNPAID = "unpaid"
    PAUSED = "paused"
    UNKNOWN = "unknown"

    @property
    def is_on(self) -> bool:
        """Tell whether its plan may be used."""
        return self in {Status.TRIALING, Status.ACTIVE, Status.PAST_DUE}

    @property
    def is_live(self) -> bool:
        """Tell whether it holds a plan, usable or suspended."""
        return self.is_on or self in {Status.UNPAID, Status.PAUSED}

    @property
    def is_over(self) -> bool:
        """Tell whether it has ended for good."""
        return self in {Status.CANCELED, Status.INCOMPLETE_EXPIRED}


class Interval(enum.Enum):
    """How long one unit of a price's interval is."""

    DAY = "day"
    WEEK = "week"
    MONTH = "month"
    YEAR = "year"
    UNKNOWN = "unknown"


CYCLE_REASONS = frozenset({"subscription_create", "subscription_cycle"})
"""The values of `billing_reason` that concern a period."""

USD = "usd"


@attrs.frozen(kw_only=True)
class Price:
    """What a subscription item costs."""

    id: str
    interval: Interval
    interval_count: int = 1
    currency: str = USD
    unit_amount_cents: Decimal | None = None
    """`None`: tiered, or not told."""
    tier_hint: str | None = None
    """The price's `metadata.meterd_tier`."""
    is_metered: bool = False
    product_id: str | None = None

    @property
    def months(self) -> int | None:
        """Return how many months it is for; `None`: it is not for whole months."""
        if self.interval is Interval.MONTH:
            return self.interval_count
        return MONTHS_PER_YEAR * self.interval_count if self.interval is Interval.YEAR else None


@attrs.frozen(kw_only=True)
class Item:
    """One line of a subscription."""

    id: str
    price: Price
    quantity: int = 1
    start_ms: int
    end_ms: int
    discount_ids: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class Subscription:
    """A subscription as Stripe shows it, reduced to what meterd acts on."""

    id: str
    customer_id: str
    status: Status
    items: tuple[Item, ...]
    anchor_ms: int
    created_at_ms: int
    organization_id: str | None = None
    """Its `metadata.organization_id`."""
    currency: str = USD
    cancel_at_period_end: bool = False
    cancel_at_ms: int | None = None
    """When it will end, if somebody has cancelled it."""
    is_collection_paused: bool = False
    trial_end_ms: int | None = None
    ended_at_ms: int | None = None
    discount_ids: tuple[str, ...] = ()
    livemode: bool = False


@attrs.frozen(kw_only=True)
class Invoice:
    """An invoice of a subscription, reduced to what meterd acts on."""

    id: str
    subscription_id: str | None
    customer_id: str
    status: str
    """`draft`, `open`, `paid`, `uncollectible`, `void`, or something newer."""
    billing_reason: str
    attempt_count: int = 0
    created_at_ms: int
    finalized_at_ms: int | None = None
    due_at_ms: int | None = None
    """Until when it is to be paid; `None`: it is charged, at once."""
    failed_at_ms: int | None = None
    """The earliest payment failure we were told of."""
    organization_id: str | None = None
    """The subscription's `metadata.organization_id` when the invoice was made."""
    livemode: bool = False

    @property
    def is_cycle(self) -> bool:
        """Tell whether it concerns a period."""
        return self.billing_reason in CYCLE_REASONS

    @property
    def unpaid_since_ms(self) -> int | None:
        """Return the first failure of an invoice that is still to be paid, or None.

        When news of the failure was lost, the first attempt was made when it was finalized.
        """
        if self.status != "open":
            return None
        if self.failed_at_ms is None and not self.attempt_count:
            return None
        return self.failed_at_ms or self.finalized_at_ms or self.created_at_ms


class Alert(enum.Enum):
    """Something about the subscriptions that a person should look at."""

    SEVERAL_LIVE = "several_live_subscriptions"
    UNKNOWN_PRICE = "unknown_price"
    UNSUPPORTED_INTERVAL = "unsupported_interval"
    UNKNOWN_STATUS = "unknown_status"
    OTHER_CURRENCY = "other_currency"
    QUANTITY = "quantity_not_one"
    OTHER_CUSTOMER = "other_customer"


@attrs.frozen(kw_only=True)
class Standing:
    """What an organization is entitled to by its subscriptions."""

    subscription_id: str | None
    """The best live subscription; `None`: there is none."""
    tier: Tier | None
    """`None`: keep the plan as it is."""
    is_over: bool = False
    """A subscription has ended and no other is live."""
    trialing: bool = False
    cycle: Cycle | None = None
    """`None` with a subscription: its price has no months, keep the cycle as it is."""
    is_stopped: bool = False
    """Suspended by its status alone: `unpaid` or `paused`."""
    is_good: bool = False
    """Active or trialing: with nothing unpaid, the payment hold lifts."""
    unpaid_since_ms: int | None = None
    """First failure of the oldest unpaid cycle invoice."""
    alerts: frozenset[str]
    """`Alert` values with what they are about, `unknown_price:price_1`."""


def tier_of(catalogue: Catalogue, price: Price) -> Tier | None:
    """Return the tier a price sells: by the catalogue, else by its metadata; None if unknown."""
    for tier, plan in catalogue.plans.items():
        if price.id in plan.stripe_price_ids:
            return tier
    known = {tier.value: tier for tier in Tier}
    return known.get(price.tier_hint or "")


def main_item(catalogue: Catalogue, subscription: Subscription) -> Item | None:
    """Return the item that sells the plan: the highest tier, else the first; None without any."""
    ranked = [(_rank(tier_of(catalogue, item.price)), item) for item in subscription.items]
    best = max((rank for rank, _ in ranked), default=None)
    return next((item for rank, item in ranked if rank == best), None)


def cycle_of(subscription: Subscription, item: Item) -> Cycle | None:
    """Return the cycle of an item, or None when its price is not for whole months."""
    months = item.price.months
    if months is None or months < 1 or item.start_ms >= item.end_ms:
        return None
    return Cycle(
        subscription_id=subscription.id,
        start_ms=item.start_ms,
        end_ms=item.end_ms,
        anchor_ms=subscription.anchor_ms,
        months=months,
    )


def standing(
    catalogue: Catalogue, subscriptions: Iterable[Subscription], invoices: Iterable[Invoice]
) -> Standing:
    """Return what follows from all subscriptions and invoices of one organization."""
    known = sorted(subscriptions, key=lambda each: each.id)
    live = [each for each in known if each.status.is_live]
    best = max(live, key=lambda each: _preference(catalogue, each), default=None)
    alerts = set(_status_alerts(known))
    if len(live) > 1:
        alerts.add(f"{Alert.SEVERAL_LIVE.value}:{','.join(each.id for each in live)}")
    if best is None:
        # What never began (`incomplete_expired`) ends nothing: a plan an operator set stays.
        has_ended = any(each.status is Status.CANCELED for each in known)
        is_over = has_ended and not any(each.status is Status.UNKNOWN for each in known)
        return Standing(
            subscription_id=None,
            tier=Tier.FREE if is_over else None,
            is_over=is_over,
            alerts=frozenset(alerts),
        )
    item = main_item(catalogue, best)
    cycle = None if item is None else cycle_of(best, item)
    tier = None if item is None or cycle is None else tier_of(catalogue, item.price)
    alerts |= set(_item_alerts(catalogue, best, item))
    cycles = [each for each in invoices if each.subscription_id == best.id and each.is_cycle]
    unpaid = [each.unpaid_since_ms for each in cycles]
    if best.status is Status.PAST_DUE:  # of one that was sent no payment fails: it is late
        unpaid += [each.due_at_ms for each in cycles if each.status == "open"]
    return Standing(
        subscription_id=best.id,
        tier=tier,
        trialing=best.status is Status.TRIALING,
        cycle=cycle,
        is_stopped=not best.status.is_on,
        is_good=best.status in {Status.ACTIVE, Status.TRIALING},
        unpaid_since_ms=min((at_ms for at_ms in unpaid if at_ms is not None), default=None),
        alerts=frozenset(alerts),
    )


_STATUS_ORDER: Sequence[Status] = (
    Status.PAUSED,
    Status.UNPAID,
    Status.PAST_DUE,
    Status.TRIALING,
    Status.ACTIVE,
)
"""Of two subscriptions to one plan, the later in this list speaks for the organization."""


def _preference(
    catalogue: Catalogue, subscription: Subscription
) -> tuple[bool, int, int, int, str]:
    item = main_item(catalogue, subscription)
    is_usable = item is not None and cycle_of(subscription, item) is not None
    tier = tier_of(catalogue, item.price) if item is not None and is_usable else None
    return (
        subscription.status.is_on,
        _rank(tier),
        _STATUS_ORDER.index(subscription.status),
        subscription.created_at_ms,
        subscription.id,
    )


def _rank(tier: Tier | None) -> int:
    return -1 if tier is None else list(Tier).index(tier)


def _status_alerts(subscriptions: Iterable[Subscription]) -> Iterable[str]:
    for subscription in subscriptions:
        if subscription.status is Status.UNKNOWN:
            yield f"{Alert.UNKNOWN_STATUS.value}:{subscription.id}"


def _item_alerts(
    catalogue: Catalogue, subscription: Subscription, item: Item | None
) -> Iterable[str]:
    if item is None:
        yield f"{Alert.UNKNOWN_PRICE.value}:{subscription.id}"
        return
    if cycle_of(subscription, item) is None:
        yield f"{Alert.UNSUPPORTED_INTERVAL.value}:{item.price.id}"
    elif tier_of(catalogue, item.price) is None:
        yield f"{Alert.UNKNOWN_PRICE.value}:{item.price.id}"
    if subscription.currency != USD:
        yield f"{Alert.OTHER_CURRENCY.value}:{subscription.currency}"
    if item.quantity != 1:
        yield f"{Alert.QUANTITY.value}:{item.quantity}"
