"""A small, stateful Stripe on a virtual clock, for tests and for the demo.

It speaks the shapes of the pinned `stripe` package and refuses what it does not model. What it
models: customers, products, prices, coupons, subscriptions, invoices, invoice items, checkout,
billing portal, webhook endpoints with signed deliveries, events, idempotency keys.
"""

from __future__ import annotations

from meterd.testing.fake_stripe.faults import Faults, RequestFault
from meterd.testing.fake_stripe.handle import FakeStripe, open_fake_stripe
from meterd.testing.fake_stripe.world import API_VERSION, Settings


__all__ = [
    "API_VERSION",
    "FakeStripe",
    "Faults",
    "RequestFault",
    "Settings",
    "open_fake_stripe",
]
