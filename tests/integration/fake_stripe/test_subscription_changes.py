from __future__ import annotations

from decimal import Decimal

import pytest
import stripe

from meterd.testing.fake_stripe import FakeStripe
from tests.integration.fake_stripe.conftest import START_S, Shop


# The client hands httpx its body in an outdated way.
pytestmark = pytest.mark.filterwarnings("ignore:Use .content=:DeprecationWarning")

DAY_S = 86_400
HOUR_S = 3_600


def item_of(subscription: stripe.Subscription) -> stripe.SubscriptionItem:
    """Return the first item."""
    return subscription["items"]["data"][0]  # type: ignore[no-any-return]


async def test_upgrade_whose_charge_fails_is_past_due_or_refused_whole(
    shop: Shop, fake: FakeStripe
) -> None:
    """By default the change stands and is owed; error_if_incomplete changes nothing."""
    made = await shop.subscribe(shop.starter)
    fake.set_payments(shop.customer, "fail")
    upgrade: dict[str, object] = {
        "items": [{"id": item_of(made).id, "price": shop.pro}],
        "proration_behavior": "always_invoice",
    }
    api = shop.client.v1.subscriptions
    events = len(fake.events)
    with pytest.raises(stripe.CardError):
        await api.update_async(
            made.id,
            {**upgrade, "payment_behavior": "error_if_incomplete"},  # type: ignore[arg-type]
        )
    unchanged = await api.retrieve_async(made.id)
    assert (item_of(unchanged).price.id, len(fake.events)) == (shop.starter, events)

    owed = await api.update_async(made.id, upgrade)  # type: ignore[arg-type]
    assert (owed.status, item_of(owed).price.id) == ("past_due", shop.pro)


async def test_change_of_interval_opens_a_period(shop: Shop, fake: FakeStripe) -> None:
    """A month becomes a quarter from now, with the rest of the month credited."""
    made = await shop.subscribe(shop.starter)
    await fake.advance(14 * DAY_S)
    changed = await shop.client.v1.subscriptions.update_async(
        made.id,
        {
            "items": [{"id": item_of(made).id, "price": shop.quarterly}],
            "expand": ["latest_invoice"],
        },
    )
    invoice = changed.latest_invoice
    assert isinstance(invoice, stripe.Invoice)

    assert item_of(changed).current_period_start == START_S + 14 * DAY_S
    assert [line.amount for line in invoice.lines.data] == [-2_450, 12_900]


async def test_proration_none_changes_the_price_and_bills_nothing(
    shop: Shop, fake: FakeStripe
) -> None:
    """The late upgrade that costs nothing until the renewal."""
    made = await shop.subscribe(shop.starter)
    await shop.client.v1.subscriptions.update_async(
        made.id,
        {
            "items": [{"id": item_of(made).id, "price": shop.pro}],
            "proration_behavior": "none",
        },
    )
    assert fake.objects("invoiceitem") == []
    await fake.advance(29 * DAY_S)
    assert [each["total"] for each in fake.objects("invoice")] == [4_900, 14_900]


async def test_items_can_be_added_removed_and_multiplied(shop: Shop, fake: FakeStripe) -> None:
    """Each change is prorated by itself; the last item cannot go."""
    made = await shop.subscribe(shop.starter)
    api = shop.client.v1
    await api.subscriptions.update_async(made.id, {"items": [{"price": shop.pro}]})
    await api.subscription_items.update_async(item_of(made).id, {"quantity": 3})
    items = (await api.subscription_items.list_async({"subscription": made.id})).data
    assert [(each.price.id, each.quantity) for each in items] == [(shop.starter, 3), (shop.pro, 1)]
    one = await api.subscription_items.retrieve_async(items[1].id)
    assert one.price.id == shop.pro
    by_price = await api.subscriptions.list_async({"price": shop.pro})
    assert [each.id for each in by_price.data] == [made.id]

    await api.subscriptions.update_async(made.id, {"items": [{"id": one.id, "deleted": True}]})
    with pytest.raises(stripe.InvalidRequestError):
        await api.subscriptions.update_async(
            made.id, {"items": [{"id": items[0].id, "deleted": True}]}
        )
    amounts = [each["amount"] for each in fake.objects("invoiceitem")]
    assert amounts == [14_900, -4_900, 14_700, -14_900]


async def test_trial_ended_by_hand_is_billed_at_once(shop: Shop, fake: FakeStripe) -> None:
    """trial_end=now opens the first paid period."""
    made = await shop.subscribe(shop.starter, trial_period_days=14)
    await fake.advance(3 * DAY_S)
    now = await shop.client.v1.subscriptions.update_async(
        made.id, {"trial_end": "now", "expand": ["latest_invoice"]}
    )
    invoice = now.latest_invoice
    assert isinstance(invoice, stripe.Invoice)
    assert (now.status, invoice.total, invoice.billing_reason) == (
        "active",
        4_900,
        "subscription_update",
    )
    assert item_of(now).current_period_start == fake.clock.now_s


@pytest.mark.parametrize(
    ("chosen", "status"),
    [("cancel", "canceled"), ("pause", "paused"), ("create_invoice", "past_due")],
)
async def test_trial_without_a_payment_method_ends_as_chosen(
    shop: Shop, fake: FakeStripe, chosen: str, status: str
) -> None:
    """Canceled, paused, or invoiced in vain."""
    fake.set_payments(shop.customer, "none")
    made = await shop.subscribe(
        shop.starter,
        trial_period_days=14,
        trial_settings={"end_behavior": {"missing_payment_method": chosen}},
    )
    await fake.advance(14 * DAY_S + HOUR_S)
    assert (await shop.client.v1.subscriptions.retrieve_async(made.id)).status == status


async def test_trial_can_be_moved(shop: Shop, fake: FakeStripe) -> None:
    """A later trial_end moves the period's end and the anchor with it."""
    made = await shop.subscribe(shop.starter, trial_period_days=14)
    later = START_S + 20 * DAY_S
    moved = await shop.client.v1.subscriptions.update_async(made.id, {"trial_end": later})
    assert (item_of(moved).current_period_end, moved.billing_cycle_anchor) == (later, later)
    await fake.advance(20 * DAY_S + HOUR_S)
    assert fake.objects("subscription")[0]["status"] == "active"


async def test_later_anchor_is_prorated_up_to_it(shop: Shop, fake: FakeStripe) -> None:
    """The first invoice covers the days until the anchor only."""
    anchor = START_S + 14 * DAY_S
    made = await shop.subscribe(shop.starter, billing_cycle_anchor=anchor)
    free = await shop.subscribe(
        shop.starter, billing_cycle_anchor=anchor, proration_behavior="none"
    )
    totals = [each["total"] for each in fake.objects("invoice")]

    assert item_of(made).current_period_end == anchor
    assert item_of(free).current_period_end == anchor
    assert totals == [round(4_900 * 14 / 31), 0]
    with pytest.raises(stripe.InvalidRequestError):
        await shop.subscribe(shop.starter, billing_cycle_anchor=START_S - 1)


async def test_cancel_at_a_moment_inside_the_period(shop: Shop, fake: FakeStripe) -> None:
    """The end need not be a boundary; taking it back is possible until then."""
    made = await shop.subscribe(shop.starter)
    kept = await shop.subscribe(shop.starter)
    api = shop.client.v1.subscriptions
    for each in (made, kept):
        await api.update_async(each.id, {"cancel_at": START_S + 10 * DAY_S})
    await api.update_async(kept.id, {"cancel_at": ""})
    await fake.advance(10 * DAY_S)

    statuses = [each["status"] for each in fake.objects("subscription")]
    assert statuses == ["canceled", "active"]
    ended = await api.list_async({"status": "ended"})
    assert [each.id for each in ended.data] == [made.id]
    assert {each.id for each in (await api.list_async({"status": "all"})).data} == {
        made.id,
        kept.id,
    }
    assert [each.id for each in (await api.list_async()).data] == [kept.id]


async def test_cancelled_subscription_is_largely_immutable(shop: Shop, fake: FakeStripe) -> None:
    """Metadata may still change; a second cancel finds nothing."""
    made = await shop.subscribe(shop.starter)
    api = shop.client.v1.subscriptions
    await api.cancel_async(made.id, {"cancellation_details": {"comment": "moved away"}})
    await api.update_async(made.id, {"metadata": {"a": "b"}})
    with pytest.raises(stripe.InvalidRequestError) as refused:
        await api.update_async(made.id, {"cancel_at_period_end": True})
    assert refused.value.code == "invalid_canceled_subscription_fields"
    with pytest.raises(stripe.InvalidRequestError):
        await api.cancel_async(made.id)
    assert fake.objects("subscription")[0]["cancellation_details"]["comment"] == "moved away"


async def test_cancelling_with_a_last_invoice_credits_and_bills(
    shop: Shop, fake: FakeStripe
) -> None:
    """Prorate and invoice_now: what is pending goes out with the credit."""
    made = await shop.subscribe(shop.starter)
    await shop.client.v1.invoice_items.create_async(
        {"customer": shop.customer, "subscription": made.id, "currency": "usd", "amount": 5_000}
    )
    await fake.advance(14 * DAY_S)
    await shop.client.v1.subscriptions.cancel_async(made.id, {"prorate": True, "invoice_now": True})
    last = fake.objects("invoice")[-1]
    assert (last["total"], last["status"]) == (5_000 - 2_450, "paid")


async def test_plain_cancel_drops_prorations_and_keeps_other_items(
    shop: Shop, fake: FakeStripe
) -> None:
    """Pending prorations vanish with an immediate cancellation; overage does not."""
    made = await shop.subscribe(shop.starter)
    api = shop.client.v1
    await api.subscriptions.update_async(
        made.id, {"items": [{"id": item_of(made).id, "price": shop.pro}]}
    )
    await api.invoice_items.create_async(
        {"customer": shop.customer, "subscription": made.id, "currency": "usd", "amount": 70}
    )
    await api.subscriptions.cancel_async(made.id)
    assert [each["amount"] for each in fake.objects("invoiceitem")] == [70]
    fake.settings.accepts_items_on_ended_subscription = False
    with pytest.raises(stripe.InvalidRequestError):
        await api.invoice_items.create_async(
            {"customer": shop.customer, "subscription": made.id, "currency": "usd", "amount": 1}
        )


async def test_pause_of_collection_ends_by_itself(shop: Shop, fake: FakeStripe) -> None:
    """keep_as_draft leaves the renewal a draft; after resumes_at the next one is charged."""
    made = await shop.subscribe(shop.starter)
    await shop.client.v1.subscriptions.update_async(
        made.id,
        {
            "pause_collection": {
                "behavior": "keep_as_draft",
                "resumes_at": START_S + 40 * DAY_S,
            }
        },
    )
    await fake.advance(62 * DAY_S)
    assert [each["status"] for each in fake.objects("invoice")] == ["paid", "draft", "paid"]
    assert fake.objects("subscription")[0]["pause_collection"] is None


async def test_incomplete_subscription_becomes_active_when_paid(
    shop: Shop, fake: FakeStripe
) -> None:
    """default_incomplete waits for the customer."""
    made = await shop.subscribe(shop.starter, payment_behavior="default_incomplete")
    assert made.status == "incomplete"
    assert isinstance(made.latest_invoice, str)
    await shop.client.v1.invoices.pay_async(made.latest_invoice)
    assert fake.objects("subscription")[0]["status"] == "active"
    with pytest.raises(stripe.InvalidRequestError, match="already paid"):
        await shop.client.v1.invoices.pay_async(made.latest_invoice)


async def test_subscription_by_sent_invoice_is_active_before_it_is_paid(
    shop: Shop, fake: FakeStripe
) -> None:
    """send_invoice: the draft goes out after its window and waits for an out-of-band payment."""
    made = await shop.subscribe(shop.starter, collection_method="send_invoice", days_until_due=30)
    await fake.advance(HOUR_S)
    invoice = fake.objects("invoice")[0]
    assert (made.status, invoice["status"], invoice["due_date"]) == (
        "active",
        "open",
        START_S + 30 * DAY_S,
    )
    paid = await shop.client.v1.invoices.pay_async(invoice["id"], {"paid_out_of_band": True})
    assert (paid.status, paid.amount_paid_off_stripe) == ("paid", 4_900)
    assert fake.events[-1]["type"] == "invoice.payment_succeeded"


async def test_subscriptions_refuse_what_stripe_refuses(shop: Shop) -> None:
    """No items, a one-time or inactive price, mixed intervals, a customer who is gone."""
    api = shop.client.v1
    product = await api.products.create_async({"name": "setup"})
    once = await api.prices.create_async(
        {"product": product.id, "currency": "usd", "unit_amount": 5}
    )
    retired = await api.prices.create_async(
        {
            "product": product.id,
            "currency": "eur",
            "unit_amount_decimal": Decimal("1234.5"),
            "recurring": {"interval": "year"},
        }
    )
    assert retired.unit_amount is None
    mixed: list[dict[str, str]] = [{"price": shop.starter}, {"price": shop.quarterly}]
    currencies = [{"price": shop.starter}, {"price": retired.id}]
    refused: tuple[list[dict[str, str]], ...] = (
        [],
        [{"price": once.id}],
        [{}],
        [{"price": "price_none"}],
        mixed,
        currencies,
    )
    for items in refused:
        with pytest.raises(stripe.InvalidRequestError):
            await shop.subscribe(shop.starter, items=items)
    await api.prices.update_async(retired.id, {"active": False})
    with pytest.raises(stripe.InvalidRequestError, match="inactive"):
        await shop.subscribe(retired.id)
    await shop.subscribe(shop.starter)
    gone = await api.customers.delete_async(shop.customer)
    assert gone.deleted
    assert (await api.customers.retrieve_async(shop.customer)).deleted
    assert [
        each.status for each in (await api.subscriptions.list_async({"status": "all"})).data
    ] == ["canceled"]
    with pytest.raises(stripe.InvalidRequestError):
        await shop.subscribe(shop.starter)


async def test_yearly_and_weekly_prices_renew_on_their_own_calendar(
    shop: Shop, fake: FakeStripe
) -> None:
    """Intervals meterd refuses, and one it splits, exist at Stripe."""
    api = shop.client.v1
    product = await api.products.create_async({"name": "other"})
    ends = []
    for interval in ("year", "week", "day"):
        price = await api.prices.create_async(
            {
                "product": product.id,
                "currency": "usd",
                "unit_amount": 100,
                "recurring": {"interval": interval},
            }
        )
        made = await shop.subscribe(price.id)
        ends.append((item_of(made).current_period_end - START_S) // DAY_S)
    await fake.advance(8 * DAY_S)
    assert ends == [365, 7, 1]
    assert len(fake.objects("invoice")) == 3 + 1 + 8
