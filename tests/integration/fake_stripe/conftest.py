from __future__ import annotations

import json
from collections.abc import AsyncIterator

import attrs
import pytest
import stripe
import trio

from meterd.testing.fake_stripe import FakeStripe, open_fake_stripe
from meterd.testing.fake_stripe.api import Answer, Call
from meterd.testing.fake_stripe.server import serve
from tests.stripe_shapes import event_problems, problems_of


START_S = 1_769_817_600
"""2026-01-31T00:00:00Z: a day no other month of the year's first half has."""


@attrs.define
class Receiver:
    """A webhook endpoint that verifies with Stripe's own code and keeps what it got."""

    url: str
    secret: str = "whsec_test"
    status: int = 200
    received: list[dict[str, object]] = attrs.field(factory=list)
    headers: list[str] = attrs.field(factory=list)

    async def answer(self, call: Call) -> Answer:
        """Verify and keep; answer what the test wants."""
        signature = call.headers["stripe-signature"]
        stripe.WebhookSignature.verify_header(call.body, signature, self.secret, 300)
        self.received.append(json.loads(call.body))
        self.headers.append(signature)
        return Answer(status=self.status, body=b"", headers={})

    @property
    def types(self) -> list[object]:
        """Types of the events received, in order."""
        return [event["type"] for event in self.received]


@pytest.fixture
async def fake() -> AsyncIterator[FakeStripe]:
    """Run a frozen fake; all it made and sent must have had Stripe's shape in the end."""
    async with open_fake_stripe(seed=7, start_s=START_S) as running:
        yield running
        found: list[str] = []
        for event in running.events:
            found += event_problems(event)
        for table in running.world.tables.values():
            for record in table.values():
                found += problems_of(record)
        assert sorted(set(found)) == []


@pytest.fixture
async def client(fake: FakeStripe) -> AsyncIterator[stripe.StripeClient]:
    """Point the real client, on Trio, at the fake."""
    http_client = stripe.HTTPXClient(timeout=5, allow_sync_methods=False)
    yield stripe.StripeClient(
        "sk_test_any", base_addresses={"api": fake.url}, http_client=http_client
    )
    await http_client.close_async()  # type: ignore[no-untyped-call]


@attrs.frozen
class Shop:
    """A customer and the prices to choose from."""

    client: stripe.StripeClient
    customer: str
    starter: str
    pro: str
    quarterly: str

    async def subscribe(self, price: str, **params: object) -> stripe.Subscription:
        """Subscribe the customer to a price."""
        request: dict[str, object] = {
            "customer": self.customer,
            "items": [{"price": price}],
            **params,
        }
        return await self.client.v1.subscriptions.create_async(request)  # type: ignore[arg-type]


@pytest.fixture
async def shop(client: stripe.StripeClient) -> Shop:
    """Starter and Pro a month, and Starter by the quarter."""
    api = client.v1
    product = await api.products.create_async({"name": "meterd"})

    async def price(cents: int, months: int, tier: str) -> str:
        made = await api.prices.create_async(
            {
                "product": product.id,
                "currency": "usd",
                "unit_amount": cents,
                "recurring": {"interval": "month", "interval_count": months},
                "metadata": {"meterd_tier": tier},
            }
        )
        return made.id

    customer = await api.customers.create_async(
        {"email": "ann@example.com", "metadata": {"organization_id": "org_1"}}
    )
    return Shop(
        client,
        customer.id,
        await price(4_900, 1, "starter"),
        await price(14_900, 1, "pro"),
        await price(12_900, 3, "starter"),
    )


@pytest.fixture
async def receiver(fake: FakeStripe, nursery: trio.Nursery, shop: Shop) -> Receiver:
    """Register an endpoint that verifies; it hears nothing of how the shop was set up."""
    assert shop.customer
    endpoint = Receiver(url="")

    async def run(task_status: trio.TaskStatus[int]) -> None:
        await serve(endpoint.answer, host="127.0.0.1", port=0, task_status=task_status)

    port = await nursery.start(run)
    endpoint.url = f"http://127.0.0.1:{port}/hook"
    fake.add_endpoint(endpoint.url, secret=endpoint.secret)
    return endpoint
