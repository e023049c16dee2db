from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import httpx
import pytest
import stripe

from meterd.testing.fake_stripe import FakeStripe
from tests.integration.fake_stripe.conftest import Receiver, Shop


# The client hands httpx its body in an outdated way.
pytestmark = pytest.mark.filterwarnings("ignore:Use .content=:DeprecationWarning")


async def checkout(shop: Shop, **params: object) -> stripe.checkout.Session:
    """Open a checkout session for Starter."""
    request: dict[str, object] = {
        "mode": "subscription",
        "line_items": [{"price": shop.starter, "quantity": 1}],
        "success_url": "https://example.com/thanks?session={CHECKOUT_SESSION_ID}",
        "client_reference_id": "org_1",
        **params,
    }
    return await shop.client.v1.checkout.sessions.create_async(request)  # type: ignore[arg-type]


async def portal(shop: Shop) -> stripe.billing_portal.Session:
    """Open the portal as it is configured: upgrades anew at once, downgrades at the period end."""
    api = shop.client.v1.billing_portal
    await api.configurations.create_async(
        {
            "features": {
                "subscription_update": {
                    "enabled": True,
                    "default_allowed_updates": ["price"],
                    "proration_behavior": "always_invoice",
                    "billing_cycle_anchor": "now",
                    "products": [{"product": "prod_any", "prices": [shop.starter, shop.pro]}],
                    "schedule_at_period_end": {"conditions": [{"type": "decreasing_item_amount"}]},
                },
                "subscription_cancel": {"enabled": True, "mode": "at_period_end"},
            }
        }
    )
    return await api.sessions.create_async({"customer": shop.customer})


async def test_paid_checkout_makes_a_subscription_that_starts_incomplete(
    shop: Shop, fake: FakeStripe, receiver: Receiver
) -> None:
    """The order Stripe tells it in: created incomplete, paid, active, session completed."""
    session = await checkout(
        shop,
        customer=shop.customer,
        subscription_data={"metadata": {"organization_id": "org_1"}},
    )
    assert (session.status, session.payment_status, session.amount_total) == (
        "open",
        "unpaid",
        4_900,
    )
    fake.complete_checkout(session.id)
    await fake.settle()
    done = await shop.client.v1.checkout.sessions.retrieve_async(
        session.id, {"expand": ["subscription"]}
    )

    assert isinstance(done.subscription, stripe.Subscription)
    assert (done.status, done.subscription.status) == ("complete", "active")
    assert done.subscription.metadata["organization_id"] == "org_1"
    assert receiver.types[0] == "customer.subscription.created"
    assert receiver.types[-2:] == ["customer.subscription.updated", "checkout.session.completed"]


async def test_hosted_page_is_paid_by_its_button(shop: Shop, fake: FakeStripe) -> None:
    """What a person sees in the demo; a declined card leaves the session open."""
    session = await checkout(shop, customer_email="new@example.com")
    assert session.url is not None
    async with httpx.AsyncClient() as browser:
        page = await browser.get(session.url)
        fake.settings.default_payment = "fail"
        declined = await browser.post(session.url)
        fake.settings.default_payment = "succeed"
        paid = await browser.post(session.url)
        again = await browser.get(session.url)

    assert "Pay 49.00 USD" in page.text
    assert (declined.status_code, "declined" in declined.text) == (402, True)
    assert paid.headers["location"] == f"https://example.com/thanks?session={session.id}"
    assert "complete" in again.text
    assert fake.objects("customer")[-1]["email"] == "new@example.com"


async def test_abandoned_session_expires_after_a_day(shop: Shop, fake: FakeStripe) -> None:
    """And cannot be paid any more."""
    session = await checkout(shop)
    await fake.advance(86_400)
    now = await shop.client.v1.checkout.sessions.retrieve_async(session.id)

    assert (now.status, now.url) == ("expired", None)
    assert fake.events[-1]["type"] == "checkout.session.expired"


async def test_upgrade_in_the_portal_opens_a_new_period(shop: Shop, fake: FakeStripe) -> None:
    """billing_cycle_anchor=now: full price from now, the rest of the old period credited."""
    await shop.subscribe(shop.starter)
    session = await portal(shop)
    await fake.advance(14 * 86_400)

    changed = fake.change_plan_in_portal(session.id, shop.pro)

    invoice = fake.objects("invoice")[-1]
    assert changed["items"]["data"][0]["current_period_start"] == fake.clock.now_s
    assert (invoice["total"], invoice["status"]) == (14_900 - 2_450, "paid")


async def test_downgrade_in_the_portal_waits_for_the_period_end(
    shop: Shop, fake: FakeStripe
) -> None:
    """A schedule holds it until the boundary; then the renewal is at the lower price."""
    made = await shop.subscribe(shop.pro)
    session = await portal(shop)
    held = fake.change_plan_in_portal(session.id, shop.starter)
    held_price, schedule = held["items"]["data"][0]["price"]["id"], held["schedule"]
    await fake.advance(29 * 86_400)
    now = await shop.client.v1.subscriptions.retrieve_async(made.id)

    assert (held_price, schedule is not None) == (shop.pro, True)
    assert (now["items"]["data"][0].price.id, now.schedule) == (shop.starter, None)
    assert fake.objects("invoice")[-1]["total"] == 4_900


async def test_portal_page_shows_invoices_and_cancels(shop: Shop, fake: FakeStripe) -> None:
    """Buttons for what the configuration allows."""
    await shop.subscribe(shop.starter)
    session = await portal(shop)
    async with httpx.AsyncClient(follow_redirects=True) as browser:
        page = await browser.get(session.url)
        after = await browser.post(session.url, data={"cancel": "1"})
        missing = await browser.get(f"{fake.url}/pay/portal/bps_none")

    assert "49.00 USD" in page.text
    assert after.status_code == 200
    assert missing.status_code == 404
    assert fake.objects("subscription")[0]["cancel_at_period_end"] is True


async def test_paused_subscription_resumes_with_a_new_period(shop: Shop, fake: FakeStripe) -> None:
    """No invoices while it is paused."""
    made = await shop.subscribe(shop.starter)
    paused = await shop.client.v1.subscriptions.pause_async(made.id)
    await fake.advance(60 * 86_400)
    invoices = len(fake.objects("invoice"))
    resumed = await shop.client.v1.subscriptions.resume_async(made.id)

    assert (paused.status, resumed.status) == ("paused", "active")
    assert invoices == 1
    assert resumed["items"]["data"][0].current_period_start == fake.clock.now_s


@pytest.mark.slow
def test_command_prints_its_url_and_stops_when_told() -> None:
    """One line on stdout, so that a script can wait for it and read the port."""
    started = subprocess.Popen(
        [sys.executable, "-m", "meterd.testing.fake_stripe", "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": "."},
    )
    assert started.stdout is not None
    with started.stdout as lines:
        line = lines.readline()
        match = re.fullmatch(r"fake stripe ready on (http://127\.0\.0\.1:\d+)\n", line)
        assert match, line
        state = httpx.get(f"{match[1]}/_fake/state").json()
        started.send_signal(signal.SIGTERM)
        code = started.wait(10)

    assert state["objects"] == {}
    assert code == 0


async def test_portal_configuration_is_listed_changed_and_enforced(
    shop: Shop, fake: FakeStripe
) -> None:
    """What a configuration does not allow, a visitor cannot do."""
    api = shop.client.v1.billing_portal
    with pytest.raises(stripe.InvalidRequestError, match="default configuration"):
        await api.sessions.create_async({"customer": shop.customer})
    await shop.subscribe(shop.starter)
    made = await api.configurations.create_async(
        {
            "features": {"invoice_history": {"enabled": True}},
            "business_profile": {"headline": "meterd"},
            "default_return_url": "https://example.com/back",
        }
    )
    session = await api.sessions.create_async({"customer": shop.customer, "configuration": made.id})
    assert (made.is_default, session.return_url) == (True, "https://example.com/back")
    async with httpx.AsyncClient(follow_redirects=True) as browser:
        refused = await browser.post(session.url, data={"price": shop.pro})
        assert (refused.status_code, "does not allow" in refused.text) == (400, True)
        refused = await browser.post(session.url, data={"cancel": "1"})
        assert refused.status_code == 400

        changed = await api.configurations.update_async(
            made.id,
            {
                "features": {
                    "subscription_cancel": {"enabled": True, "mode": "immediately"},
                    "subscription_update": {
                        "enabled": True,
                        "default_allowed_updates": ["price"],
                        "products": [{"product": "prod_any", "prices": [shop.pro]}],
                        "proration_behavior": "create_prorations",
                    },
                },
                "metadata": {"a": "b"},
            },
        )
        assert (await browser.post(session.url, data={"price": shop.pro})).status_code == 200
        assert fake.objects("subscription")[0]["items"]["data"][0]["price"]["id"] == shop.pro
        await browser.post(session.url, data={"cancel": "1"})
    assert fake.objects("subscription")[0]["status"] == "canceled"
    assert changed.features.subscription_cancel.mode == "immediately"
    again = await api.configurations.retrieve_async(made.id)
    listed = await api.configurations.list_async({"is_default": True})
    assert [each.id for each in listed.data] == [again.id]


async def test_sessions_are_listed_and_expired_by_request(shop: Shop) -> None:
    """And refuse modes and lines that are not modelled or not there."""
    first = await checkout(shop, customer=shop.customer, metadata={"a": "b"})
    await checkout(shop)
    api = shop.client.v1.checkout.sessions
    await api.expire_async(first.id)
    assert [each.id for each in (await api.list_async({"customer": shop.customer})).data] == [
        first.id
    ]
    assert [each.id for each in (await api.list_async({"status": "expired"})).data] == [first.id]
    with pytest.raises(stripe.InvalidRequestError):
        await api.expire_async(first.id)
    refused: tuple[dict[str, object], ...] = (
        {"mode": "payment"},
        {"line_items": []},
        {"line_items": [{"quantity": 1}]},
    )
    for wrong in refused:
        with pytest.raises(stripe.InvalidRequestError):
            await checkout(shop, **wrong)


async def test_trial_by_checkout_needs_no_payment(shop: Shop, fake: FakeStripe) -> None:
    """The session completes with `no_payment_required`."""
    session = await checkout(shop, subscription_data={"trial_period_days": 14})
    done = fake.complete_checkout(session.id)
    assert (done["payment_status"], fake.objects("subscription")[0]["status"]) == (
        "no_payment_required",
        "trialing",
    )
