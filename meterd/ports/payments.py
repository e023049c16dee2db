"""Stripe's objects as meterd reads them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

import attrs

from meterd.core.stripe_objects import Json


@attrs.frozen(kw_only=True)
class SubscriptionReading:
    """A subscription and its invoices as Stripe has them now, in Stripe's own JSON."""

    subscription: Json
    invoices: tuple[Json, ...] = ()


class Payments(Protocol):
    """Stripe's objects, read through its API.

    Every method may raise PaymentsUnavailableError (transient) or PaymentsRejectedError.
    """

    @property
    def livemode(self) -> bool:
        """Tell whether the key is for real money."""
        ...

    async def subscription(
        self, subscription_id: str, *, invoice_ids: Collection[str] = ()
    ) -> SubscriptionReading | None:
        """Return a subscription, its newest and all its open invoices, and the ones named.

        None when Stripe has no such subscription (yet).
        """
        ...

    async def subscriptions_of(self, customer_id: str) -> Sequence[str]:
        """Return the ids of a customer's subscriptions, none of them over."""
        ...
