from __future__ import annotations

from datetime import UTC, datetime

import pytest
import stripe

from meterd.testing.fake_stripe import FakeStripe
from tests.integration.fake_stripe.conftest import START_S, Receiver, Shop


# The client hands httpx its body in an outdated way.
pytestmark = pytest.mark.filterwarnings("ignore:Use .content=:DeprecationWarning")

DAY_S = 86_400
HOUR_S = 3_600


def day(seconds: int) -> str:
    """Return an instant as its UTC date."""
    return datetime.fromtimestamp(seconds, UTC).date().isoformat()


def item_of(subscription: stripe.Subscription) -> stripe.SubscriptionItem:
    """Return the only item of a subscription."""
    return subscription["items"]["data"][0]  # type: ignore[no-any-return]


async def test_first_invoice_is_paid_within_the_request(shop: Shop, fake: FakeStripe) -> None:
    """A new subscription has no draft window: it answers active, its invoice paid."""
    made = await shop.subscribe(shop.starter, expand=["latest_invoice"])
    invoice = made.latest_invoice
    assert isinstance(invoice, stripe.Invoice)

    assert (made.status, invoice.status, invoice.billing_reason, invoice.amount_paid) == (
        "active",
        "paid",
        "subscription_create",
        4_900,
    )
    assert [event["type"] for event in fake.events if "customer.sub" in event["type"]] == [
        "customer.subscription.created"
    ]


async def test_twelve_months_renew_on_the_anchor_day_clipped(shop: Shop, fake: FakeStripe) -> None:
    """31 January is followed by 28 February and then 31 March: the anchor is not forgotten."""
    made = await shop.subscribe(shop.starter)
    await fake.advance(366 * DAY_S)

    invoices = [each for each in fake.objects("invoice") if each["status"] == "paid"]
    assert [day(each["created"]) for each in invoices[:5]] == [
        "2026-01-31",
        "2026-02-28",
        "2026-03-31",
        "2026-04-30",
        "2026-05-31",
    ]
    assert len(invoices) == 13
    assert sum(each["amount_paid"] for each in invoices) == 13 * 4_900
    now = await shop.client.v1.subscriptions.retrieve_async(made.id)
    assert day(item_of(now).current_period_end) == "2027-02-28"


async def test_renewal_is_a_draft_for_an_hour(shop: Shop, fake: FakeStripe) -> None:
    """The window in which a closed period's overage can still be put on its invoice."""
    made = await shop.subscribe(shop.starter)
    start_s, end_s = item_of(made).current_period_start, item_of(made).current_period_end

    await fake.advance_to(end_s)
    page = await shop.client.v1.invoices.list_async({"subscription": made.id, "limit": 1})
    draft = page.data[0]
    item = await shop.client.v1.invoice_items.create_async(
        {
            "customer": shop.customer,
            "subscription": made.id,
            "invoice": draft.id,
            "currency": "usd",
            "amount": 250,
            "description": "50 minutes past the plan",
            "period": {"start": start_s, "end": end_s - 1},
            "discountable": False,
            "metadata": {"meterd_charge": "chg_1"},
        }
    )
    await fake.advance(HOUR_S - 1)
    before = await shop.client.v1.invoices.retrieve_async(draft.id)
    await fake.advance(1)
    after = await shop.client.v1.invoices.retrieve_async(draft.id)

    assert (before.status, after.status) == ("draft", "paid")
    assert after.amount_paid == 4_900 + 250
    lines = (await shop.client.v1.invoices.line_items.list_async(draft.id)).data
    assert [line.amount for line in lines] == [250, 4_900]
    assert lines[0].parent is not None
    assert lines[0].parent.invoice_item_details is not None
    assert lines[0].parent.invoice_item_details.invoice_item == item.id
    assert (lines[1].period.start, day(lines[1].period.end)) == (end_s, "2026-03-31")
    assert (after.period_start, after.period_end) == (start_s, end_s)
    with pytest.raises(stripe.InvalidRequestError) as late:
        await shop.client.v1.invoice_items.create_async(
            {"customer": shop.customer, "invoice": draft.id, "currency": "usd", "amount": 1}
        )
    assert late.value.code == "invoice_not_editable"


async def test_pending_items_ride_the_next_renewal(shop: Shop, fake: FakeStripe) -> None:
    """An item without an invoice waits for its own subscription's next draft."""
    made = await shop.subscribe(shop.starter)
    other = await shop.subscribe(shop.quarterly)
    for owner, cents in ((made, 700), (other, 900)):
        await shop.client.v1.invoice_items.create_async(
            {
                "customer": shop.customer,
                "subscription": owner.id,
                "currency": "usd",
                "amount": cents,
            }
        )
    await fake.advance_to(item_of(made).current_period_end + HOUR_S)

    newest = (await shop.client.v1.invoices.list_async({"subscription": made.id})).data[0]
    assert newest.amount_paid == 4_900 + 700
    left = (
        await shop.client.v1.invoice_items.list_async({"customer": shop.customer, "pending": True})
    ).data
    assert [each.amount for each in left] == [900]


async def test_upgrade_that_keeps_the_anchor_is_prorated(shop: Shop, fake: FakeStripe) -> None:
    """Half a period on: half of Starter is credited, half of Pro charged, at once."""
    made = await shop.subscribe(shop.starter)
    item = item_of(made)
    await fake.advance_to((item.current_period_start + item.current_period_end) // 2)

    upgraded = await shop.client.v1.subscriptions.update_async(
        made.id,
        {
            "items": [{"id": item.id, "price": shop.pro}],
            "proration_behavior": "always_invoice",
            "expand": ["latest_invoice"],
        },
    )
    invoice = upgraded.latest_invoice
    assert isinstance(invoice, stripe.Invoice)

    assert (invoice.billing_reason, invoice.status) == ("subscription_update", "paid")
    assert [line.amount for line in invoice.lines.data] == [-2_450, 7_450]
    assert all(
        line.parent is not None
        and line.parent.subscription_item_details is not None
        and line.parent.subscription_item_details.proration
        for line in invoice.lines.data
    )
    assert item_of(upgraded).current_period_start == item.current_period_start


async def test_upgrade_with_a_new_anchor_opens_a_period(shop: Shop, fake: FakeStripe) -> None:
    """The reason is subscription_update, yet the item has a new period at full price."""
    made = await shop.subscribe(shop.starter)
    await fake.advance(10 * DAY_S)
    upgraded = await shop.client.v1.subscriptions.update_async(
        made.id,
        {
            "items": [{"id": item_of(made).id, "price": shop.pro}],
            "proration_behavior": "always_invoice",
            "billing_cycle_anchor": {"type": "now"},
            "expand": ["latest_invoice"],
        },
    )
    invoice = upgraded.latest_invoice
    assert isinstance(invoice, stripe.Invoice)

    assert item_of(upgraded).current_period_start == START_S + 10 * DAY_S
    assert invoice.billing_reason == "subscription_update"
    assert [line.amount for line in invoice.lines.data] == [-3_150, 14_900]


async def test_default_prorations_wait_for_the_renewal(shop: Shop, fake: FakeStripe) -> None:
    """create_prorations leaves pending items that sort before the renewal's own line."""
    made = await shop.subscribe(shop.starter)
    item = item_of(made)
    await fake.advance_to((item.current_period_start + item.current_period_end) // 2)
    await shop.client.v1.subscriptions.update_async(
        made.id, {"items": [{"id": item.id, "price": shop.pro}]}
    )
    await fake.advance_to(item.current_period_end + HOUR_S)

    newest = (await shop.client.v1.invoices.list_async({"subscription": made.id})).data[0]
    assert [line.amount for line in newest.lines.data] == [-2_450, 7_450, 14_900]


async def test_failed_renewal_is_past_due_until_a_retry_succeeds(
    shop: Shop, fake: FakeStripe
) -> None:
    """Active -> past_due -> active, with the attempts counted on the invoice."""
    made = await shop.subscribe(shop.starter)
    fake.set_payments(shop.customer, "succeed", "fail", "fail")
    await fake.advance_to(item_of(made).current_period_end + HOUR_S)
    failed = await shop.client.v1.subscriptions.retrieve_async(
        made.id, {"expand": ["latest_invoice", "customer"]}
    )
    await fake.advance(9 * DAY_S)
    recovered = await shop.client.v1.subscriptions.retrieve_async(
        made.id, {"expand": ["latest_invoice"]}
    )

    assert isinstance(failed.latest_invoice, stripe.Invoice)
    assert isinstance(failed.customer, stripe.Customer)
    assert isinstance(recovered.latest_invoice, stripe.Invoice)
    assert (failed.status, failed.latest_invoice.status) == ("past_due", "open")
    assert failed.customer.delinquent
    assert failed.latest_invoice.next_payment_attempt is not None
    assert (recovered.status, recovered.latest_invoice.attempt_count) == ("active", 3)
    failures = [each for each in fake.events if each["type"] == "invoice.payment_failed"]
    assert [each["data"]["object"]["attempt_count"] for each in failures] == [1, 2]


@pytest.mark.parametrize(
    ("chosen", "status"),
    [("unpaid", "unpaid"), ("cancel", "canceled"), ("past_due", "past_due"), ("pause", "paused")],
)
async def test_exhausted_retries_do_what_the_account_chose(
    shop: Shop, fake: FakeStripe, chosen: str, status: str
) -> None:
    """Four attempts in fifteen days, then the dashboard's setting decides."""
    fake.settings.after_retries = chosen
    made = await shop.subscribe(shop.starter)
    fake.set_payments(shop.customer, "fail")
    await fake.advance_to(item_of(made).current_period_end + HOUR_S + 16 * DAY_S)

    now = await shop.client.v1.subscriptions.retrieve_async(made.id, {"expand": ["latest_invoice"]})
    assert isinstance(now.latest_invoice, stripe.Invoice)
    assert (now.status, now.latest_invoice.attempt_count) == (status, 4)


async def test_unpaid_subscription_keeps_its_drafts_and_recovers(
    shop: Shop, fake: FakeStripe
) -> None:
    """Unpaid: periods roll on, invoices stay drafts; paying the newest final one revives it."""
    made = await shop.subscribe(shop.starter)
    fake.set_payments(shop.customer, "fail")
    await fake.advance(62 * DAY_S)
    page = await shop.client.v1.invoices.list_async({"subscription": made.id})
    assert [each.status for each in page.data] == ["draft", "open", "paid"]

    fake.set_payments(shop.customer, "succeed")
    await shop.client.v1.invoices.pay_async(page.data[1].id)

    now = await shop.client.v1.subscriptions.retrieve_async(made.id)
    assert now.status == "active"


async def test_cancelling_sweeps_nothing_and_a_one_off_invoice_collects_it(
    shop: Shop, fake: FakeStripe
) -> None:
    """Pending overage survives the cancellation and is billed by an invoice of its own."""
    made = await shop.subscribe(shop.starter)
    await fake.advance(5 * DAY_S)
    await shop.client.v1.invoice_items.create_async(
        {"customer": shop.customer, "subscription": made.id, "currency": "usd", "amount": 333}
    )
    gone = await shop.client.v1.subscriptions.cancel_async(made.id)
    await fake.advance(40 * DAY_S)
    pending = await shop.client.v1.invoice_items.list_async(
        {"customer": shop.customer, "pending": True}
    )
    assert (gone.status, len(pending.data)) == ("canceled", 1)

    invoice = await shop.client.v1.invoices.create_async(
        {
            "customer": shop.customer,
            "auto_advance": True,
            "pending_invoice_items_behavior": "include",
        }
    )
    assert (invoice.status, invoice.billing_reason, invoice.total) == ("draft", "manual", 333)
    await fake.advance(HOUR_S)
    assert (await shop.client.v1.invoices.retrieve_async(invoice.id)).status == "paid"


async def test_cancel_at_period_end_stays_until_then(shop: Shop, fake: FakeStripe) -> None:
    """The plan is on until the event `deleted`, which comes at the boundary."""
    made = await shop.subscribe(shop.starter)
    end_s = item_of(made).current_period_end
    await shop.client.v1.subscriptions.update_async(made.id, {"cancel_at_period_end": True})
    await fake.advance_to(end_s - 1)
    before = await shop.client.v1.subscriptions.retrieve_async(made.id)
    await fake.advance(1)
    after = await shop.client.v1.subscriptions.retrieve_async(made.id)

    assert (before.status, before.cancel_at) == ("active", end_s)
    assert (after.status, after.ended_at) == ("canceled", end_s)
    deleted = [each for each in fake.events if each["type"] == "customer.subscription.deleted"]
    assert len(deleted) == 1
    updates = [each for each in fake.events if each["type"] == "customer.subscription.updated"]
    assert updates[0]["data"]["previous_attributes"]["cancel_at_period_end"] is False


async def test_trial_is_free_then_renews(shop: Shop, fake: FakeStripe) -> None:
    """Trialing with a $0 invoice, a notice three days ahead, then a paid cycle."""
    made = await shop.subscribe(shop.starter, trial_period_days=14)
    await fake.advance(14 * DAY_S + HOUR_S)
    now = await shop.client.v1.subscriptions.retrieve_async(made.id)

    assert (made.status, now.status) == ("trialing", "active")
    invoices = fake.objects("invoice")
    assert [(each["billing_reason"], each["amount_paid"]) for each in invoices] == [
        ("subscription_create", 0),
        ("subscription_cycle", 4_900),
    ]
    notices = [e for e in fake.events if e["type"] == "customer.subscription.trial_will_end"]
    assert [each["created"] for each in notices] == [START_S + 11 * DAY_S]
    assert item_of(now).current_period_start == START_S + 14 * DAY_S


async def test_price_of_three_months_renews_by_the_quarter(shop: Shop, fake: FakeStripe) -> None:
    """An n-month price has one period of n months."""
    made = await shop.subscribe(shop.quarterly)
    await fake.advance(95 * DAY_S)

    assert day(item_of(made).current_period_end) == "2026-04-30"
    assert [day(each["created"]) for each in fake.objects("invoice")] == [
        "2026-01-31",
        "2026-04-30",
    ]


async def test_declined_first_payment_is_incomplete_then_expires(
    shop: Shop, fake: FakeStripe
) -> None:
    """Incomplete for 23 hours, then incomplete_expired and the invoice void."""
    fake.set_payments(shop.customer, "fail")
    made = await shop.subscribe(shop.starter)
    await fake.advance(23 * HOUR_S)
    now = await shop.client.v1.subscriptions.retrieve_async(made.id, {"expand": ["latest_invoice"]})

    assert isinstance(now.latest_invoice, stripe.Invoice)
    assert (made.status, now.status) == ("incomplete", "incomplete_expired")
    assert now.latest_invoice.status == "void"
    with pytest.raises(stripe.CardError):
        await shop.subscribe(shop.starter, payment_behavior="error_if_incomplete")
    assert len(fake.objects("subscription")) == 1


async def test_paused_collection_leaves_the_status_active(shop: Shop, fake: FakeStripe) -> None:
    """pause_collection=mark_uncollectible: renewals go on, nobody is charged."""
    made = await shop.subscribe(shop.starter)
    await shop.client.v1.subscriptions.update_async(
        made.id, {"pause_collection": {"behavior": "mark_uncollectible"}}
    )
    await fake.advance(29 * DAY_S)
    now = await shop.client.v1.subscriptions.retrieve_async(made.id, {"expand": ["latest_invoice"]})

    assert isinstance(now.latest_invoice, stripe.Invoice)
    assert (now.status, now.latest_invoice.status) == ("active", "uncollectible")


async def test_unanswered_invoice_created_delays_finalisation(
    shop: Shop, fake: FakeStripe, receiver: Receiver
) -> None:
    """An endpoint that fails holds every draft back, for 72 hours at most."""
    made = await shop.subscribe(shop.starter)
    await fake.settle()
    receiver.status = 500
    await fake.advance_to(item_of(made).current_period_end + 71 * HOUR_S)
    held = fake.objects("invoice")[-1]["status"]
    await fake.advance(2 * HOUR_S)

    assert (held, fake.objects("invoice")[-1]["status"]) == ("draft", "paid")
