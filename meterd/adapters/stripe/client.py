"""`Payments` on Stripe's API: reads objects again, paced, tried again when Stripe is busy.

Rule 1: one client for the process, opened and closed with it; every call has a deadline.
Rule 2: calls keep a distance, so that a backlog never takes the account's whole rate limit
(25 requests a second and endpoint; https://docs.stripe.com/rate-limits).
Rule 3: objects leave as plain JSON. Enums are open and fields move: `core.stripe_objects` reads.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Sequence
from typing import Any, TypeVar

import attrs
import stripe
import trio

from meterd.adapters.stripe.errors import RESOURCE_MISSING, PaymentsBusyError, translated
from meterd.core.stripe_objects import Json
from meterd.core.supervision import backoff_ms
from meterd.core.units import SECOND_MS
from meterd.errors import PaymentsRejectedError, PaymentsUnavailableError
from meterd.observe.spans import Spans, no_span
from meterd.ports.payments import SubscriptionReading


T = TypeVar("T")

TIMEOUT_S = 20
"""Seconds one request may take before it counts as lost."""

CALL_S = 60
"""Seconds a call may take in all, the package's own two retries included."""

NETWORK_RETRIES = 2

REQUESTS_PER_S = 20
"""Requests a second at most; the limit is 25 for an endpoint, and 25 in all in a sandbox."""

BUSY_TRIES_MAX = 6
BUSY_MIN_MS = 500
BUSY_MAX_MS = 8_000

SUBSCRIPTIONS_MAX = 100
"""Of one customer: Stripe allows more, nobody has them."""

ITEMS_MAX = 100
"""Of one subscription: Stripe allows 20."""

NEWEST_INVOICES = 10
"""Invoices read with a subscription whatever their status; open ones are read however old."""


@attrs.define(eq=False)
class StripePayments:
    """Stripe's objects as they are now. Errors: PaymentsUnavailableError, PaymentsRejectedError."""

    client: stripe.StripeClient
    livemode: bool
    jitter: Iterator[float]
    requests_per_s: int = REQUESTS_PER_S
    spans: Spans = no_span
    _next_at_s: float = 0.0

    async def subscription(
        self, subscription_id: str, *, invoice_ids: Collection[str] = ()
    ) -> SubscriptionReading | None:
        """Return a subscription, its newest and all its open invoices, and the ones named.

        The subscription comes with every coupon that takes something off it.
        Source: GET /v1/subscriptions/{id}, GET /v1/invoices, GET /v1/invoices/{id}.
        """
        api = self.client.v1
        found = await self._find(
            "read a subscription",
            lambda: api.subscriptions.retrieve_async(
                subscription_id,
                {"expand": ["customer", "discounts.source.coupon.applies_to"]},
            ),
        )
        if found is None:
            return None
        subscription = await self._with_discounts(found)
        page = await self.call(
            "list invoices",
            lambda: api.invoices.list_async(
                {"subscription": subscription_id, "limit": NEWEST_INVOICES}
            ),
        )
        invoices = {each.id: _json(each) for each in page.data}
        if page.has_more:
            invoices |= await self._open_invoices(subscription_id)
        for invoice_id in sorted(set(invoice_ids) - invoices.keys()):
            invoice = await self._find(
                "read an invoice", functools.partial(api.invoices.retrieve_async, invoice_id)
            )
            if invoice is not None:
                invoices[invoice_id] = invoice
        return SubscriptionReading(subscription=subscription, invoices=tuple(invoices.values()))

    async def subscriptions_of(self, customer_id: str) -> Sequence[str]:
        """Return the ids of a customer's subscriptions, none of them over.

        A customer that Stripe does not have has none. Source: GET /v1/subscriptions.
        """
        try:
            page = await self.call(
                "list a customer's subscriptions",
                lambda: self.client.v1.subscriptions.list_async(
                    {"customer": customer_id, "limit": SUBSCRIPTIONS_MAX}
                ),
            )
        except PaymentsRejectedError as error:
            if error.code != RESOURCE_MISSING:
                raise
            return ()
        return [each.id for each in page.data]

    async def _with_discounts(self, subscription: Json) -> Json:
        """Add the coupons of its items and of its customer: `expand` goes four levels deep only.

        Of the customer nothing but its id and discount is kept. Source: GET
        /v1/subscription_items, GET /v1/customers/{id}.
        """
        api = self.client.v1
        found: dict[str, Any] = {**subscription}
        customer, items = found["customer"], found["items"]
        if any(each.get("discounts") for each in items["data"]):
            page = await self.call(
                "list a subscription's items",
                lambda: api.subscription_items.list_async(
                    {
                        "subscription": found["id"],
                        "limit": ITEMS_MAX,
                        "expand": ["data.discounts.source.coupon"],
                    }
                ),
            )
            found["items"] = {**items, "data": [_json(each) for each in page.data]}
        if customer.get("discount") is not None:
            customer = await self._find(
                "read a customer",
                functools.partial(
                    api.customers.retrieve_async,
                    customer["id"],
                    {"expand": ["discount.source.coupon.applies_to"]},
                ),
            ) or {"id": customer["id"]}
        found["customer"] = {
            "id": customer["id"],
            "object": "customer",
            "discount": customer.get("discount"),
        }
        return found

    async def _open_invoices(self, subscription_id: str) -> dict[str, Json]:
        page = await self.call(
            "list open invoices",
            lambda: self.client.v1.invoices.list_async(
                {"subscription": subscription_id, "status": "open", "limit": 100}
            ),
        )
        return {each.id: _json(each) for each in page.data}

    async def _find(self, action: str, request: Callable[[], Awaitable[Any]]) -> Json | None:
        try:
            return _json(await self.call(action, request))
        except PaymentsRejectedError as error:
            if error.code != RESOURCE_MISSING:
                raise
            return None

    async def call(self, action: str, request: Callable[[], Awaitable[T]]) -> T:
        """Return what a request of the client answers; tried again while Stripe is busy."""
        tries = 0
        while True:
            await self._keep_distance()
            try:
                with (
                    self.spans(f"Stripe: {action}", kind="client"),
                    translated(action),
                    trio.fail_after(CALL_S),
                ):
                    return await request()
            except trio.TooSlowError as error:
                raise PaymentsUnavailableError(action, f"no answer in {CALL_S} s") from error
            except PaymentsBusyError:
                tries += 1
                if tries >= BUSY_TRIES_MAX:
                    raise
                longest_ms = backoff_ms(tries, least_ms=BUSY_MIN_MS, most_ms=BUSY_MAX_MS)
                await trio.sleep(longest_ms * (0.5 + next(self.jitter) / 2) / SECOND_MS)

    async def _keep_distance(self) -> None:
        now_s = trio.current_time()
        at_s = max(now_s, self._next_at_s)
        self._next_at_s = at_s + 1 / self.requests_per_s
        await trio.sleep_until(at_s)


@contextlib.asynccontextmanager
async def open_stripe(
    api_key: str,
    *,
    jitter: Iterator[float],
    api_base: str | None = None,
    spans: Spans = no_span,
) -> AsyncIterator[StripePayments]:
    """Give Stripe's API for a key; `api_base` is a fake's or a proxy's address."""
    stripe.enable_telemetry = False  # or the package posts latencies of earlier calls along
    http_client = stripe.HTTPXClient(timeout=TIMEOUT_S, allow_sync_methods=False)
    client = stripe.StripeClient(
        api_key,
        base_addresses={} if api_base is None else {"api": api_base.rstrip("/")},
        http_client=http_client,
        max_network_retries=NETWORK_RETRIES,
    )
    try:
        yield StripePayments(client, livemode=is_live_key(api_key), jitter=jitter, spans=spans)
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
            await http_client.close_async()  # type: ignore[no-untyped-call]


def is_live_key(api_key: str) -> bool:
    """Tell whether a key is for real money: `sk_live_…` and `rk_live_…` are."""
    return "_live_" in api_key


def _json(found: Any) -> Json:
    plain: Json = found.to_dict(for_json=True)
    return plain
