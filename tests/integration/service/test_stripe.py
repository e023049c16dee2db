"""The real service, PostgreSQL, and a Stripe that signs its webhooks over HTTP."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import attrs
import httpx
import pytest
import stripe
import trio

from meterd.testing.fake_stripe import FakeStripe, RequestFault, open_fake_stripe
from tests.integration.service.books import query
from tests.integration.service.harness import Service, running_meterd


pytestmark = [
    pytest.mark.slow,
    # The client hands httpx its body in an outdated way.
    pytest.mark.filterwarnings("ignore:Use .content=:DeprecationWarning"),
]

SECRET = "whsec_of_this_test"
OLD_SECRET = "whsec_being_rotated"
DAY_S = 86_400


@attrs.define(eq=False)
class Shop:
    """A fake account with two prices and a customer, and a meterd that follows it."""

    fake: FakeStripe
    service: Service
    api: stripe.StripeClient
    customer: str
    prices: dict[str, str]

    async def subscribe(self, tier: str, **params: Any) -> stripe.Subscription:
        """Subscribe the customer of organization acme."""
        request: Any = {
            "customer": self.customer,
            "items": [{"price": self.prices[tier]}],
            "metadata": {"organization_id": "acme"},
            **params,
        }
        made = await self.api.v1.subscriptions.create_async(request)
        await self.fake.settle()
        return made

    async def say(self, status: str) -> None:
        """Let every subscription have another status, and hear of it."""
        for found in self.fake.world.tables["subscription"].values():
            found["status"] = status
            self.fake.world.emit("customer.subscription.updated", found)
        await self.fake.settle()
        await self.until_quiet()

    async def organization(self) -> dict[str, Any]:
        """Return organization acme as operators see it."""
        found: dict[str, Any] = (await self.service.http.get("/admin/v1/organizations/acme")).json()
        return found

    async def events(self, state: str) -> list[dict[str, Any]]:
        """Return the inbox's events in a state."""
        answer = await self.service.http.get("/admin/v1/stripe/events", params={"state": state})
        assert answer.status_code == 200, answer.text
        found: list[dict[str, Any]] = answer.json()["data"]
        return found

    async def until(self, holds: Callable[[], Awaitable[bool]]) -> None:
        """Return when something holds; it must within half a minute."""
        with trio.fail_after(30):
            while not await holds():  # noqa: ASYNC110  # it happens in another process
                await trio.sleep(0.05)

    async def until_quiet(self) -> None:
        """Return when every event is worked off."""

        async def is_quiet() -> bool:
            return not await self.events("pending")

        await self.until(is_quiet)


@pytest.fixture
async def shop(database_url: str, request: pytest.FixtureRequest) -> AsyncIterator[Shop]:
    """Run a fake Stripe on today's date and a meterd beside it, with a test's own settings."""
    async with open_fake_stripe(seed=3) as fake:
        settings = {
            "METERD_STRIPE_API_KEY": "sk_test_x",
            "METERD_STRIPE_API_BASE": fake.url,
            "METERD_STRIPE_WEBHOOK_SECRETS": f"{OLD_SECRET},{SECRET}",
            **getattr(request, "param", {}),
        }
        async with running_meterd("--database-url", database_url, settings=settings) as service:
            fake.add_endpoint(f"{service.url}/api/webhooks/stripe", secret=SECRET)
            http_client = stripe.HTTPXClient(timeout=5, allow_sync_methods=False)
            api = stripe.StripeClient(
                "sk_test_x", base_addresses={"api": fake.url}, http_client=http_client
            )
            await service.organization("acme", "free")
            yield await _stock(fake, service, api)
            await http_client.close_async()  # type: ignore[no-untyped-call]
            assert await service.stop() == 0


async def _stock(fake: FakeStripe, service: Service, api: stripe.StripeClient) -> Shop:
    product = await api.v1.products.create_async({"name": "meterd"})
    prices = {}
    for tier, cents in (("starter", 4_900), ("pro", 14_900)):
        price = await api.v1.prices.create_async(
            {
                "product": product.id,
                "currency": "usd",
                "unit_amount": cents,
                "recurring": {"interval": "month"},
                "metadata": {"meterd_tier": tier},
            }
        )
        prices[tier] = price.id
    customer = await api.v1.customers.create_async({"email": "ann@example.com"})
    return Shop(fake, service, api, customer.id, prices)


async def test_subscription_is_followed_from_its_start_to_its_end(shop: Shop) -> None:
    """Created, changed, cancelled: the plan follows, the operator's hand is held meanwhile."""
    made = await shop.subscribe("starter")
    await shop.until_quiet()
    started = await shop.organization()
    refused = await shop.service.http.patch("/admin/v1/organizations/acme", json={"plan": "pro"})
    item = made["items"]["data"][0]
    await shop.api.v1.subscriptions.update_async(
        made.id, {"items": [{"id": item.id, "price": shop.prices["pro"]}]}
    )
    await shop.fake.settle()
    await shop.until_quiet()
    upgraded = await shop.organization()
    await shop.api.v1.subscriptions.cancel_async(made.id)
    await shop.fake.settle()
    await shop.until_quiet()
    ended = await shop.organization()
    allowed = await shop.service.http.patch("/admin/v1/organizations/acme", json={"plan": "pro"})

    assert (started["plan"], started["stripe_customer_id"]) == ("starter", shop.customer)
    assert refused.status_code == 409
    assert refused.json()["code"] == "plan_managed_by_stripe"
    assert (upgraded["plan"], ended["plan"]) == ("pro", "free")
    assert started["quota"]["period_start"] == upgraded["quota"]["period_start"]
    assert allowed.status_code == 200
    assert {event["outcome"] for event in await shop.events("done")} == {
        "applied",
        "unknown_type",
    }


async def test_unpaid_stops_what_runs_and_payment_resumes_at_once(shop: Shop) -> None:
    """402 and why, `stop` for a running task, the plan kept; and all of it over when it is paid."""
    await shop.subscribe("starter")
    await shop.until_quiet()
    key = await shop.service.key("acme", "agent", "read")
    async with shop.service.client(key) as agent:
        task = {"task_id": "t", "agent_id": "a"}
        started = await agent.post("/v1/tasks", json=task)
        await shop.say("unpaid")
        refused = await agent.get("/v1/quota/check")
        told = await agent.post("/v1/tasks/t/heartbeat", json={"elapsed_ms": 1})
        shown = (await agent.get("/v1/quota")).json()
        await shop.say("active")
        resumed = await agent.get("/v1/quota/check")
        goes_on = await agent.post("/v1/tasks/t/heartbeat", json={"elapsed_ms": 2})

    assert started.status_code == 201
    assert (refused.status_code, refused.json()["code"]) == (402, "suspended")
    assert "payment failed" in refused.json()["detail"]
    assert told.json()["command"] == "stop"
    assert (shown["plan"], shown["state"], shown["allowed"]) == ("starter", "suspended", False)
    assert (resumed.status_code, goes_on.json()["command"]) == (200, "continue")


async def test_a_hundred_copies_at_once_have_one_effect_and_a_hundred_answers(
    shop: Shop, database_url: str
) -> None:
    """Stripe delivers at least once; every copy is answered 200."""
    await shop.subscribe("starter")
    await shop.until_quiet()
    event = next(e for e in shop.fake.events if e["type"] == "customer.subscription.created")
    body = json.dumps({**event, "id": "evt_copied"})
    header = stripe.WebhookSignature.generate_signature_header(body, OLD_SECRET)
    answers: list[int] = []

    async def send() -> None:
        answer = await http.post("/api/webhooks/stripe", content=body, headers=headers)
        answers.append(answer.status_code)

    headers = {"stripe-signature": header, "content-type": "application/json"}
    limits = httpx.Limits(max_connections=100)
    async with (
        httpx.AsyncClient(base_url=shop.service.url, limits=limits, timeout=30) as http,
        trio.open_nursery() as nursery,
    ):
        for _ in range(100):
            nursery.start_soon(send)
    await shop.until_quiet()
    audits = await query(
        database_url, "SELECT count(*) AS n FROM audit_log WHERE action = 'subscription.follow'"
    )
    copies = await query(
        database_url,
        "SELECT count(*) AS n, max(attempts) AS tries FROM stripe_events WHERE id = 'evt_copied'",
    )

    assert answers == [200] * 100
    assert copies == [{"n": 1, "tries": 1}]
    assert audits == [{"n": 1}], "the created subscription; its copy changed nothing"


async def test_webhooks_are_answered_at_once_while_stripe_is_away_and_caught_up_later(
    shop: Shop,
) -> None:
    """Nothing in the handler asks Stripe: its API may hang, events wait in the inbox."""
    shop.fake.faults.timeout_s = 5
    faults = [RequestFault.TIMEOUT_BEFORE, *[RequestFault.ERROR_BEFORE] * 8]
    shop.fake.faults.fail_next(*faults, method="GET", path="/v1/subscriptions/")
    with trio.fail_after(10):
        await shop.subscribe("starter")  # returns when every webhook is answered
    assert await shop.events("pending"), "the first reading still hangs"
    answered = [shop.fake.dispatcher.was_delivered(event["id"]) for event in shop.fake.events]
    await shop.until_quiet()

    assert answered
    assert all(answered)
    assert (await shop.organization())["plan"] == "starter"
    assert await shop.events("dead") == []


async def test_forged_old_future_and_oversized_events_leave_nothing_behind(
    shop: Shop, database_url: str
) -> None:
    """400 or 413, not a row, and no secret in the log."""
    now_s = shop.fake.clock.wall_now_s()
    body = json.dumps({"id": "evt_x", "object": "event", "type": "invoice.paid"})
    sign = stripe.WebhookSignature.generate_signature_header
    good = sign(body, SECRET)
    cases: list[tuple[bytes, bytes | None, int]] = [
        (body.encode(), None, 400),
        (body.encode(), b"", 400),
        (body.encode(), b"t=1,v1=", 400),
        (body.encode(), sign(body, "whsec_wrong").encode(), 400),
        (body.encode(), sign(body, SECRET, now_s - 400).encode(), 400),
        (body.encode(), sign(body, SECRET, now_s + 400).encode(), 400),
        (body.encode(), good.replace("v1=", "v0=").encode(), 400),
        (body.encode(), good.replace("v1=", "v1=ü").encode("latin-1"), 400),
        (body.encode(), (good + "," + "v1=a" * 2_000).encode(), 400),
        (body.encode() + b" ", good.encode(), 400),
        (b"\xff\xfe", good.encode(), 400),
        (b"[]", sign("[]", SECRET).encode(), 400),
        (b"x" * 1_100_000, good.encode(), 413),
    ]
    answers = []
    async with httpx.AsyncClient(base_url=shop.service.url, timeout=30) as http:
        for content, header, _ in cases:
            headers = [] if header is None else [(b"stripe-signature", header)]
            answer = await http.post("/api/webhooks/stripe", content=content, headers=headers)
            answers.append(answer.status_code)
    kept = await query(
        database_url, "SELECT count(*) AS n FROM stripe_events WHERE id NOT LIKE 'evt_1Fake%'"
    )

    assert answers == [status for _, _, status in cases]
    assert kept == [{"n": 0}]
    assert not [line for line in shop.service.log if SECRET in line or OLD_SECRET in line]


async def test_event_of_a_stranger_is_done_and_counted_until_somebody_knows_it(shop: Shop) -> None:
    """Accounts sell other things too: 200, an outcome, no organization touched; a link mends it."""
    other = await shop.api.v1.customers.create_async({"email": "bob@example.com"})
    await shop.api.v1.subscriptions.create_async(
        {"customer": other.id, "items": [{"price": shop.prices["pro"]}]}
    )
    await shop.fake.settle()
    await shop.until_quiet()

    outcomes = {event["outcome"] for event in await shop.events("done")}
    assert outcomes == {"unknown_customer", "unknown_type"}
    assert (await shop.organization())["plan"] == "free"
    linked = await shop.service.http.patch(
        "/admin/v1/organizations/acme", json={"stripe_customer_id": other.id}
    )
    await shop.until_quiet()
    assert linked.status_code == 200
    assert (await shop.organization())["plan"] == "pro"


async def test_a_customer_that_an_operator_links_is_followed_now(
    shop: Shop, database_url: str
) -> None:
    """It subscribed before its webhooks came here: nobody waits for tomorrow's reconciliation."""
    shop.fake.faults.lose_rate = 1
    await shop.subscribe("pro", metadata={})
    before = (await shop.organization())["plan"]

    body = {"stripe_customer_id": shop.customer, "reason": "signed by mail"}
    linked = await shop.service.http.patch("/admin/v1/organizations/acme", json=body)

    async def is_followed() -> bool:
        return bool((await shop.organization())["plan"] == "pro")

    await shop.until(is_followed)
    trail = await query(
        database_url,
        "SELECT actor, reason, before, after FROM audit_log "
        "WHERE organization_id = 'acme' AND action = 'organization.change'",
    )
    assert (before, linked.status_code) == ("free", 200)
    (entry,) = trail
    assert entry["actor"].startswith("key_")
    assert entry["reason"] == "signed by mail"
    assert json.loads(entry["before"])["stripe_customer_id"] is None
    assert json.loads(entry["after"])["stripe_customer_id"] == shop.customer
