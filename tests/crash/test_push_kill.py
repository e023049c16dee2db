"""kill -9 of meterd in the middle of a push: what Stripe did counts once, what it did not is done.

The fake holds the request whose reply the dead process waited for, so each kill hits the window
that is meant: before Stripe has done the work, or after it and before meterd has committed that.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import stripe
import trio

from meterd.testing.fake_stripe import FakeStripe, RequestFault, open_fake_stripe
from tests.crash.kills import free_port
from tests.integration.service.books import assert_books_are_right
from tests.integration.service.harness import Service, running_meterd


pytestmark = [
    pytest.mark.slow,
    # The client hands httpx its body in an outdated way.
    pytest.mark.filterwarnings("ignore:Use .content=:DeprecationWarning"),
]

SECRET = "whsec_of_this_test"
ITEMS, INVOICES = "^/v1/invoiceitems$", "^/v1/invoices$"
CONTRACT = {"agent_minutes": 100, "grace_percent": 100}


@attrs.define(eq=False)
class Site:
    """A Stripe that stays, and a meterd that dies and comes back at the same address."""

    fake: FakeStripe
    api: stripe.StripeClient
    database_url: str
    port: int

    @asynccontextmanager
    async def meterd(self) -> AsyncIterator[Service]:
        """Run one life of meterd."""
        settings = {
            "METERD_STRIPE_API_KEY": "sk_test_x",
            "METERD_STRIPE_API_BASE": self.fake.url,
            "METERD_STRIPE_WEBHOOK_SECRETS": SECRET,
        }
        options = ("--database-url", self.database_url)
        async with running_meterd(*options, settings=settings, port=self.port) as service:
            yield service

    async def price(self, interval: str) -> str:
        """Create a price of Pro."""
        product = await self.api.v1.products.create_async({"name": "Pro"})
        request: Any = {
            "product": product.id,
            "currency": "usd",
            "unit_amount": 14_900,
            "recurring": {"interval": interval},
            "metadata": {"meterd_tier": "pro"},
        }
        return (await self.api.v1.prices.create_async(request)).id

    async def owe(self, service: Service, *, interval: str = "month") -> None:
        """Have acme use 20 minutes past its contract, and subscribe: that ends its month."""
        await service.organization("acme", "pro", contract=CONTRACT)
        assert (await service.adjust("acme", 120 * 60_000)).status_code == 201
        customer = await self.api.v1.customers.create_async({"email": "ann@example.com"})
        request: Any = {
            "customer": customer.id,
            "items": [{"price": await self.price(interval)}],
            "metadata": {"organization_id": "acme"},
        }
        await self.api.v1.subscriptions.create_async(request)
        await self.fake.settle()

    def ours(self) -> list[dict[str, Any]]:
        """Return the invoice items that are for charges."""
        return [
            item for item in self.fake.objects("invoiceitem") if "meterd_charge" in item["metadata"]
        ]

    def one_offs(self) -> list[dict[str, Any]]:
        """Return the invoices that meterd asked for."""
        return [e for e in self.fake.objects("invoice") if e["billing_reason"] == "manual"]


@pytest.fixture
async def site(database_url: str) -> AsyncIterator[Site]:
    """Give an empty account and the place where meterd will live."""
    port = free_port()
    async with open_fake_stripe(seed=5) as fake:
        fake.add_endpoint(f"http://127.0.0.1:{port}/api/webhooks/stripe", secret=SECRET)
        http_client = stripe.HTTPXClient(timeout=5, allow_sync_methods=False)
        api = stripe.StripeClient(
            "sk_test_x", base_addresses={"api": fake.url}, http_client=http_client
        )
        yield Site(fake, api, database_url, port)
        await http_client.close_async()  # type: ignore[no-untyped-call]


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Return when something holds; it must within half a minute."""
    with trio.fail_after(30):
        while not await holds():  # noqa: ASYNC110  # it happens in another process
            await trio.sleep(0.02)


async def charges(service: Service) -> list[dict[str, Any]]:
    """Return the charges as operators see them."""
    found: list[dict[str, Any]] = (await service.http.get("/admin/v1/charges")).json()["data"]
    return found


async def killed(service: Service) -> None:
    """Kill meterd, and return when it is dead."""
    service.kill()
    await service.process.wait()


async def assert_agreement(site: Site, service: Service) -> None:
    """Both sides have one item of $1.00, and nothing else is to be found."""
    (charge,), (item,) = await charges(service), site.ours()
    assert (item["id"], item["amount"]) == (charge["invoice_item_id"], 100)
    assert (charge["amount_cents"], charge["attempt"]) == (100, 1)
    dry = (await service.http.post("/admin/v1/reconcile/stripe?dry_run=true")).json()
    assert dry["differences"] == []
    await assert_books_are_right("--database-url", site.database_url)


async def is_in(service: Service, *states: str) -> bool:
    """Tell whether acme's charge is in one of these states."""
    return [each["state"] in states for each in await charges(service)] == [True]


@pytest.mark.parametrize("key_kept_s", [86_400, -1])
async def test_killed_after_stripe_accepted_and_before_the_commit(
    site: Site, key_kept_s: int
) -> None:
    """The next life looks before it asks: the item is found by its name, though the key is not."""
    site.fake.settings.idempotency_kept_s = key_kept_s
    site.fake.faults.fail_next(RequestFault.TIMEOUT_AFTER, method="POST", path=ITEMS)
    async with site.meterd() as service:
        await site.owe(service)

        async def is_accepted() -> bool:
            return bool(site.ours())

        await until(is_accepted)
        stored = await charges(service)
        await killed(service)
    assert [(each["state"], each["invoice_item_id"]) for each in stored] == [("pushing", None)]

    async with site.meterd() as service:
        await until(lambda: is_in(service, "pushed"))
        await assert_agreement(site, service)


async def test_killed_after_the_commit_and_before_stripe_did_anything(site: Site) -> None:
    """The attempt is durable, so the next life makes the same call under the same key."""
    site.fake.faults.fail_next(RequestFault.TIMEOUT_BEFORE, method="POST", path=ITEMS)
    async with site.meterd() as service:
        await site.owe(service)
        await until(lambda: is_in(service, "pushing"))
        await killed(service)
    assert site.ours() == []

    async with site.meterd() as service:
        await until(lambda: is_in(service, "pushed"))
        await assert_agreement(site, service)
    keys = [
        request.idempotency_key
        for request in site.fake.requests
        if (request.method, request.path) == ("POST", "/v1/invoiceitems")
    ]
    assert len(keys) == 1


async def test_killed_again_and_again_in_the_same_push(site: Site) -> None:
    """Three lives each die waiting for a reply; the fourth finds what the first had done."""
    async with site.meterd() as service:
        site.fake.faults.fail_next(RequestFault.TIMEOUT_BEFORE, method="POST", path=ITEMS)
        await site.owe(service)
        await until(lambda: is_in(service, "pushing"))
        await killed(service)
    for _ in range(2):
        site.fake.faults.fail_next(RequestFault.TIMEOUT_AFTER, method="GET", path=ITEMS)
        looks = _lists(site.fake)
        async with site.meterd() as service:

            async def is_looking(before: int = looks) -> bool:
                return _lists(site.fake) > before

            await until(is_looking)
            await killed(service)

    async with site.meterd() as service:
        await until(lambda: is_in(service, "pushed"))
        await assert_agreement(site, service)


async def test_killed_while_the_item_is_put_on_an_invoice_of_its_own(site: Site) -> None:
    """A yearly subscription's overage has no renewal to ride: its invoice is made once, too."""
    site.fake.faults.fail_next(RequestFault.TIMEOUT_AFTER, method="POST", path=INVOICES)
    async with site.meterd() as service:
        await site.owe(service, interval="year")

        async def is_made() -> bool:
            return bool(site.one_offs())

        await until(is_made)
        await killed(service)

    async with site.meterd() as service:

        async def is_known() -> bool:
            return [each["invoice_id"] for each in await charges(service)] == [
                each["id"] for each in site.one_offs()
            ]

        await until(is_known)
        await assert_agreement(site, service)
        assert len(site.one_offs()) == 1


def _lists(fake: FakeStripe) -> int:
    return sum(
        (request.method, request.path) == ("GET", "/v1/invoiceitems") for request in fake.requests
    )
