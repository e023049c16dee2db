from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
import stripe
import trio

from meterd.testing.fake_stripe import FakeStripe, open_fake_stripe
from tests.integration.fake_stripe.conftest import START_S, Receiver, Shop


# The client hands httpx its body in an outdated way.
pytestmark = pytest.mark.filterwarnings("ignore:Use .content=:DeprecationWarning")


@pytest.fixture
async def control(fake: FakeStripe) -> AsyncIterator[httpx.AsyncClient]:
    """Speak to the control routes."""
    async with httpx.AsyncClient(base_url=f"{fake.url}/_fake") as client:
        yield client


async def test_visitors_are_played_over_http(control: httpx.AsyncClient, shop: Shop) -> None:
    """A demo in another process lets people pay, switch and leave."""
    api = shop.client.v1
    session = await api.checkout.sessions.create_async(
        {"mode": "subscription", "line_items": [{"price": shop.starter, "quantity": 1}]}
    )
    paid = (await control.post(f"/checkout/{session.id}/pay")).json()
    assert paid["status"] == "complete"
    assert (await control.post(f"/checkout/{session.id}/pay")).status_code == 400

    await api.billing_portal.configurations.create_async(
        {
            "features": {
                "subscription_update": {
                    "enabled": True,
                    "default_allowed_updates": ["price"],
                    "products": "",
                },
                "subscription_cancel": {"enabled": True},
            }
        }
    )
    visit = await api.billing_portal.sessions.create_async({"customer": paid["customer"]})
    changed = (await control.post(f"/portal/{visit.id}/change", json={"price": shop.pro})).json()
    left = (await control.post(f"/portal/{visit.id}/cancel")).json()

    assert changed["items"]["data"][0]["price"]["id"] == shop.pro
    assert left["cancel_at_period_end"] is True


async def test_deliveries_are_held_released_and_resent_over_http(
    control: httpx.AsyncClient, shop: Shop, fake: FakeStripe, receiver: Receiver
) -> None:
    """Order and repetition chosen by the test, in whichever process it runs."""
    await control.post("/faults", json={"holds_deliveries": True})
    await shop.client.v1.customers.create_async({"email": "b@example.com"})
    assert receiver.received == []
    await control.post("/release", json={"copies": 2, "shuffle_seed": 1})
    event = fake.events[-1]["id"]
    await control.post(f"/events/{event}/resend", json={"copies": 3})

    assert [each["id"] for each in receiver.received] == [event] * 5


async def test_time_can_pass_slowly_enough_to_follow(
    control: httpx.AsyncClient, shop: Shop, fake: FakeStripe
) -> None:
    """`pause_ms` rests at each moment where something happened; `to` names an instant."""
    await shop.subscribe(shop.starter)
    with trio.fail_after(10):
        moved = await control.post(
            "/clock", json={"to": START_S + 29 * 86_400, "pause_ms": 1}, timeout=10
        )
    assert moved.json()["now"] == START_S + 29 * 86_400
    assert moved.json()["next_due"] > moved.json()["now"]
    assert fake.objects("invoice")[-1]["status"] == "paid"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/settings", b'{"after_retries": "perhaps"}'),
        ("/settings", b"[]"),
        ("/clock", b"{"),
        ("/payments", b'{"outcome": "fail"}'),
        ("/payments", b'{"customer": "cus_none", "outcome": "fail"}'),
        ("/faults", b'{"fail_next": {"faults": ["perhaps"]}}'),
    ],
)
async def test_controls_refuse_what_they_do_not_know(
    control: httpx.AsyncClient, path: str, body: bytes
) -> None:
    """A misspelt switch must not leave a test green."""
    answer = await control.post(path, content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


async def test_endpoints_can_be_changed_and_silenced(shop: Shop, fake: FakeStripe) -> None:
    """A disabled endpoint hears nothing."""
    api = shop.client.v1.webhook_endpoints
    made = await api.create_async(
        {"url": "http://127.0.0.1:9/", "enabled_events": ["*"], "metadata": {"a": "b"}}
    )
    changed = await api.update_async(made.id, {"disabled": True, "description": "off"})
    await shop.client.v1.customers.create_async({"email": "c@example.com"})

    assert (changed.status, changed.description) == ("disabled", "off")
    assert fake.dispatcher.deliveries == []
    with pytest.raises(stripe.InvalidRequestError):
        await api.create_async({"url": "nowhere", "enabled_events": ["*"]})


@pytest.mark.slow
async def test_ticking_clock_rings_its_timers_by_itself() -> None:
    """What the demo runs on: the wall moves it, a jump moves it further."""
    async with open_fake_stripe(ticks=True) as fake:
        fake.settings.draft_window_s = 1
        paid = trio.Event()
        fake.world.on_event.append(
            lambda event: paid.set() if event["type"] == "invoice.paid" else None
        )
        async with httpx.AsyncClient(
            base_url=fake.url, headers={"authorization": "Bearer sk_test_any"}
        ) as client:
            made = (await client.post("/v1/customers", data={"email": "a@example.com"})).json()
            item = {"customer": made["id"], "currency": "usd", "amount": "5"}
            await client.post("/v1/invoiceitems", data=item)
            draft = {
                "customer": made["id"],
                "auto_advance": "true",
                "pending_invoice_items_behavior": "include",
            }
            invoice = (await client.post("/v1/invoices", data=draft)).json()
        with trio.fail_after(10):  # real time is what is tested here
            await paid.wait()
        assert fake.world.get("invoice", invoice["id"])["status"] == "paid"
