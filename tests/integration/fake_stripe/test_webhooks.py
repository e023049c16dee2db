from __future__ import annotations

import pytest
import stripe
import trio

from meterd.testing.fake_stripe import FakeStripe
from meterd.testing.fake_stripe.deliveries import signature_header
from meterd.testing.fake_stripe.hooks import roll_secret
from tests.integration.fake_stripe.conftest import Receiver, Shop


# The client hands httpx its body in an outdated way.
pytestmark = pytest.mark.filterwarnings("ignore:Use .content=:DeprecationWarning")


async def test_deliveries_are_signed_and_in_order(
    shop: Shop, fake: FakeStripe, receiver: Receiver
) -> None:
    """The receiver verifies with Stripe's own code; without faults the order is the story's."""
    await shop.subscribe(shop.starter)
    await fake.settle()

    assert receiver.types == [
        "customer.subscription.created",
        "invoice.created",
        "invoice.finalized",
        "invoice.updated",
        "invoice.updated",
        "invoice.paid",
        "invoice.payment_succeeded",
    ]
    assert all(event["api_version"] == "2026-10-28.endive" for event in receiver.received)
    assert {event["pending_webhooks"] for event in fake.events} == {0}


async def test_events_carry_the_request_that_caused_them(
    shop: Shop, fake: FakeStripe, receiver: Receiver
) -> None:
    """A change by API names its request and key; one by the clock names none."""
    made = await shop.client.v1.subscriptions.create_async(
        {"customer": shop.customer, "items": [{"price": shop.starter}]},
        {"idempotency_key": "create-1"},
    )
    await fake.advance(29 * 86_400)

    by_type = {str(event["type"]): event["request"] for event in receiver.received}
    assert made.last_response is not None
    assert by_type["customer.subscription.created"] == {
        "id": made.last_response.request_id,
        "idempotency_key": "create-1",
    }
    renewals = [each for each in fake.events if each["type"] == "customer.subscription.updated"]
    assert renewals[0]["request"] == {"id": None, "idempotency_key": None}
    assert "current_period_start" in renewals[0]["data"]["previous_attributes"]["items"]["data"][0]


async def test_refused_deliveries_are_tried_again_in_virtual_time(
    shop: Shop, fake: FakeStripe, receiver: Receiver
) -> None:
    """Until it is acknowledged an event is listed as not delivered, and retried for three days."""
    receiver.status = 503
    await shop.subscribe(shop.starter)
    await fake.settle()
    first = len(receiver.received)
    undelivered = await shop.client.v1.events.list_async({"delivery_success": False, "limit": 100})
    receiver.status = 200
    await fake.advance(60)
    left = await shop.client.v1.events.list_async({"delivery_success": False})

    assert len(undelivered.data) == first > 0
    assert {event.pending_webhooks for event in undelivered.data} == {1}
    assert len(receiver.received) == 2 * first
    assert left.data == []


async def test_endpoint_that_never_answers_is_given_up_after_three_days(
    shop: Shop, fake: FakeStripe, receiver: Receiver
) -> None:
    """The event stays in the list for reconciliation to find, and can be sent by hand."""
    receiver.status = 500
    await shop.client.v1.customers.create_async({"email": "bob@example.com"})
    await fake.advance(4 * 86_400)
    states = {delivery.state for delivery in fake.dispatcher.deliveries}
    tries = len(receiver.received)
    await fake.advance(4 * 86_400)
    assert (states, len(receiver.received)) == ({"failed"}, tries)

    receiver.status = 200
    page = await shop.client.v1.events.list_async({"type": "customer.created", "limit": 1})
    await fake.resend(page.data[0].id)

    found = await shop.client.v1.events.list_async({"delivery_success": False})
    assert page.data[0].id not in [event.id for event in found.data]


async def test_held_deliveries_are_released_shuffled_and_twice(
    shop: Shop, fake: FakeStripe, receiver: Receiver
) -> None:
    """One seed, one order: the way to test every order of the same story."""
    fake.faults.holds_deliveries = True
    await shop.subscribe(shop.starter)
    await fake.settle()
    assert receiver.received == []

    await fake.release(shuffle_seed=3, copies=2)

    ids = [event["id"] for event in receiver.received]
    in_order = [event["id"] for event in fake.events if event["id"] in set(ids)]
    assert sorted(str(each) for each in ids) == sorted(in_order * 2)
    assert ids != in_order * 2


async def test_faults_repeat_lose_delay_and_reorder_deliveries(
    shop: Shop, fake: FakeStripe, receiver: Receiver
) -> None:
    """With every fault on, each event arrives at least once in the end and some more than once."""
    fake.faults.repeat_rate = fake.faults.lose_rate = 0.3
    fake.faults.delay_rate = fake.faults.reorder_rate = 0.5
    fake.faults.delay_ms_max = 20
    await shop.subscribe(shop.starter)
    await fake.advance(3 * 86_400)

    sent = [delivery.event_id for delivery in fake.dispatcher.deliveries]
    received = [str(event["id"]) for event in receiver.received]
    assert set(received) == set(sent)
    assert len(received) > len(sent)
    assert {delivery.state for delivery in fake.dispatcher.deliveries} == {"succeeded"}


async def test_rolled_secret_signs_beside_the_old_one_for_a_day(
    shop: Shop, fake: FakeStripe, receiver: Receiver
) -> None:
    """During a rotation a receiver may hold either secret."""
    endpoint = (await shop.client.v1.webhook_endpoints.list_async()).data[0]
    fresh = roll_secret(fake.world, endpoint.id, keeps_old_s=86_400)
    await shop.client.v1.customers.create_async({"email": "a@example.com"})
    await fake.settle()
    assert receiver.headers[-1].count("v1=") == 2

    await fake.advance(86_400)
    receiver.secret = fresh
    await shop.client.v1.customers.create_async({"email": "b@example.com"})
    await fake.settle()

    assert receiver.headers[-1].count("v1=") == 1
    assert fresh.startswith("whsec_")


async def test_endpoint_hears_only_what_it_asked_for(shop: Shop, fake: FakeStripe) -> None:
    """The secret is shown once; `enabled_events` filters."""
    made = await shop.client.v1.webhook_endpoints.create_async(
        {"url": "http://127.0.0.1:9/hook", "enabled_events": ["invoice.paid"]}
    )
    again = await shop.client.v1.webhook_endpoints.retrieve_async(made.id)
    await shop.subscribe(shop.starter)

    assert made.secret is not None
    assert getattr(again, "secret", None) is None
    named = {delivery.event_id for delivery in fake.dispatcher.deliveries}
    assert [event["type"] for event in fake.events if event["id"] in named] == ["invoice.paid"]
    await shop.client.v1.webhook_endpoints.delete_async(made.id)


def test_signature_is_the_one_stripe_itself_would_make() -> None:
    """The same header as the client library's own generator, byte for byte."""
    made = signature_header(b'{"id": "evt_1"}', ["whsec_a"], at_s=1_700_000_000)

    assert made == stripe.WebhookSignature.generate_signature_header(
        '{"id": "evt_1"}', "whsec_a", 1_700_000_000
    )


async def test_endpoint_that_hangs_is_not_waited_for(
    fake: FakeStripe, receiver: Receiver, shop: Shop, nursery: trio.Nursery
) -> None:
    """A black hole costs its time-out, then counts as unanswered; others are served meanwhile."""
    fake.settings.delivery_timeout_s = 0.1

    async def hang(_stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, hang, listeners)
    port = listeners[0].socket.getsockname()[1]
    fake.add_endpoint(f"http://127.0.0.1:{port}/")
    await shop.client.v1.customers.create_async({"email": "d@example.com"})
    await fake.settle()

    states = [(each.state, each.last_status) for each in fake.dispatcher.deliveries]
    assert states == [("succeeded", 200), ("waiting", None)]
    assert len(receiver.received) == 1


async def test_one_change_may_be_told_by_two_events(
    fake: FakeStripe, receiver: Receiver, shop: Shop
) -> None:
    """Idempotency by event id alone is not enough."""
    fake.faults.twin_rate = 1.0
    await shop.client.v1.customers.create_async({"email": "e@example.com"})
    await fake.settle()

    first, second = receiver.received
    assert first["id"] != second["id"]
    assert {**first, "id": second["id"]} == second
