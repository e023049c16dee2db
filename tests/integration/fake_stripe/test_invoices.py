from __future__ import annotations

from decimal import Decimal

import pytest
import stripe

from meterd.testing.fake_stripe import FakeStripe
from tests.integration.fake_stripe.conftest import START_S, Shop


# The client hands httpx its body in an outdated way.
pytestmark = pytest.mark.filterwarnings("ignore:Use .content=:DeprecationWarning")

HOUR_S = 3_600


async def one_off(shop: Shop, cents: int = 500) -> stripe.Invoice:
    """Draft an invoice over one item."""
    api = shop.client.v1
    await api.invoice_items.create_async(
        {"customer": shop.customer, "currency": "usd", "amount": cents}
    )
    return await api.invoices.create_async(
        {
            "customer": shop.customer,
            "pending_invoice_items_behavior": "include",
            "description": "overage",
            "metadata": {"organization_id": "org_1"},
        }
    )


async def test_draft_made_by_request_waits_for_its_caller(shop: Shop, fake: FakeStripe) -> None:
    """auto_advance is off by default; switching it on starts the window."""
    draft = await one_off(shop)
    await fake.advance(72 * HOUR_S)
    api = shop.client.v1.invoices
    assert (await api.retrieve_async(draft.id)).status == "draft"

    moving = await api.update_async(draft.id, {"auto_advance": True})
    assert moving.automatically_finalizes_at == fake.clock.now_s + HOUR_S
    await fake.advance(HOUR_S)
    assert (await api.retrieve_async(draft.id)).status == "paid"


async def test_finalized_invoice_is_paid_voided_or_written_off(
    shop: Shop, fake: FakeStripe
) -> None:
    """Open leads to paid, void or uncollectible, and uncollectible can still be paid."""
    api = shop.client.v1.invoices
    drafts = [await one_off(shop) for _ in range(3)]
    opened = [await api.finalize_invoice_async(each.id) for each in drafts]
    assert [each.status for each in opened] == ["open"] * 3
    assert len({each.number for each in opened}) == 3

    voided = await api.void_invoice_async(opened[0].id)
    written_off = await api.mark_uncollectible_async(opened[1].id)
    fake.set_payments(shop.customer, "succeed", "fail")
    with pytest.raises(stripe.CardError) as declined:
        await api.pay_async(opened[2].id)
    paid = await api.pay_async(opened[2].id)
    paid_late = await api.pay_async(written_off.id)

    assert declined.value.code == "card_declined"
    assert (voided.status, written_off.status) == ("void", "uncollectible")
    assert (paid.status, paid.attempt_count, paid_late.status) == ("paid", 2, "paid")
    for wrong in (api.void_invoice_async, api.mark_uncollectible_async, api.finalize_invoice_async):
        with pytest.raises(stripe.InvalidRequestError):
            await wrong(voided.id)
    with pytest.raises(stripe.InvalidRequestError):
        await api.update_async(paid.id, {"description": "late"})


async def test_deleted_draft_gives_its_items_back(shop: Shop, fake: FakeStripe) -> None:
    """Only drafts made by request can be deleted."""
    api = shop.client.v1
    draft = await one_off(shop)
    gone = await api.invoices.delete_async(draft.id)
    assert gone.deleted
    pending = (await api.invoice_items.list_async({"pending": True})).data
    assert [each.amount for each in pending] == [500]

    made = await shop.subscribe(shop.starter)
    assert isinstance(made.latest_invoice, str)
    with pytest.raises(stripe.InvalidRequestError):
        await api.invoices.delete_async(made.latest_invoice)
    assert fake.objects("invoice")[0]["total"] == 4_900 + 500


async def test_item_on_a_draft_can_change_and_go_until_it_is_final(shop: Shop) -> None:
    """A duplicate found in time is deleted; one that was invoiced stays."""
    api = shop.client.v1
    draft = await one_off(shop)
    item = (await api.invoice_items.list_async({"invoice": draft.id})).data[0]
    await api.invoice_items.update_async(item.id, {"amount": 400, "metadata": {"a": "b"}})
    assert (await api.invoices.retrieve_async(draft.id)).total == 400
    second = await api.invoice_items.create_async(
        {
            "customer": shop.customer,
            "invoice": draft.id,
            "currency": "usd",
            "quantity": 3,
            "unit_amount_decimal": Decimal("33.5"),
        }
    )
    assert second.amount == 101
    await api.invoice_items.delete_async(second.id)
    assert (await api.invoices.retrieve_async(draft.id)).total == 400
    await api.invoices.finalize_invoice_async(draft.id)
    for refused in (
        api.invoice_items.update_async(item.id, {"amount": 1}),
        api.invoice_items.delete_async(item.id),
    ):
        with pytest.raises(stripe.InvalidRequestError) as error:
            await refused
        assert error.value.code == "invoice_not_editable"
    assert (await api.invoice_items.retrieve_async(item.id)).invoice == draft.id


async def test_invoice_for_one_subscription_takes_only_its_items(shop: Shop) -> None:
    """The customer's other pending items wait."""
    api = shop.client.v1
    made = await shop.subscribe(shop.starter)
    for named, cents in ((made.id, 300), (None, 800)):
        owner: dict[str, object] = {"subscription": named} if named else {}
        await api.invoice_items.create_async(
            {"customer": shop.customer, "currency": "usd", "amount": cents, **owner}  # type: ignore[arg-type]
        )
    invoice = await api.invoices.create_async(
        {"subscription": made.id, "pending_invoice_items_behavior": "include"}
    )
    assert (invoice.total, invoice.billing_reason) == (300, "manual")
    assert invoice.parent is not None
    assert invoice.parent.subscription_details is not None
    assert invoice.parent.subscription_details.subscription == made.id


async def test_item_by_price_and_what_items_refuse(shop: Shop) -> None:
    """`pricing[price]`; no amount, two amounts, a period that ends before it starts."""
    api = shop.client.v1
    product = await api.products.create_async({"name": "setup"})
    price = await api.prices.create_async(
        {"product": product.id, "currency": "usd", "unit_amount": 250}
    )
    item = await api.invoice_items.create_async(
        {"customer": shop.customer, "pricing": {"price": price.id}, "quantity": 2}
    )
    assert (item.amount, item.currency) == (500, "usd")
    base: dict[str, object] = {"customer": shop.customer, "currency": "usd"}
    for wrong in (
        {},
        {"amount": 1, "quantity": 2},
        {"amount": 1, "period": {"start": START_S, "end": START_S - 1}},
        {"amount": 1, "subscription": "sub_none"},
        {"amount": 1, "invoice": "in_none"},
        {"amount": 1, "metadata": {"k" * 41: "v"}},
    ):
        with pytest.raises(stripe.InvalidRequestError):
            await api.invoice_items.create_async({**base, **wrong})  # type: ignore[arg-type]


async def test_empty_invoice_cannot_be_finalized(shop: Shop) -> None:
    """Nothing to bill is an error when asked, and no invoice when automatic."""
    api = shop.client.v1.invoices
    empty = await api.create_async({"customer": shop.customer})
    with pytest.raises(stripe.InvalidRequestError) as refused:
        await api.finalize_invoice_async(empty.id)
    assert refused.value.code == "invoice_no_customer_line_items"


async def test_invoices_are_filtered_by_creation_and_status(shop: Shop, fake: FakeStripe) -> None:
    """What reconciliation asks: everything of the last forty days."""
    made = await shop.subscribe(shop.starter)
    await fake.advance(70 * 86_400)
    since = fake.clock.now_s - 40 * 86_400
    api = shop.client.v1.invoices
    recent = await api.list_async({"created": {"gte": since}, "status": "paid"})
    assert [each.created >= since for each in recent.data] == [True]
    everything = [each.id for each in (await api.list_async({"subscription": made.id})).data]
    before = await api.list_async({"ending_before": everything[-1], "limit": 1})
    assert [each.id for each in before.data] == [everything[-2]]
    for wrong in ({"limit": 101}, {"starting_after": "in_none"}):
        with pytest.raises(stripe.InvalidRequestError):
            await api.list_async(wrong)  # type: ignore[arg-type]


async def test_catalogue_objects_can_be_found_and_changed(shop: Shop) -> None:
    """Products, prices by lookup key, customers by mail, coupons."""
    api = shop.client.v1
    product = await api.products.create_async({"name": "meterd plus", "id": "prod_plus"})
    price = await api.prices.create_async(
        {
            "product_data": {"name": "inline"},
            "currency": "usd",
            "unit_amount": 1,
            "recurring": {"interval": "month"},
            "lookup_key": "plus",
        }
    )
    await api.products.update_async(product.id, {"default_price": price.id, "active": False})
    assert (await api.products.retrieve_async(product.id)).default_price == price.id
    assert [each.id for each in (await api.products.list_async({"active": False})).data] == [
        product.id
    ]
    assert [each.id for each in (await api.prices.list_async({"lookup_keys": ["plus"]})).data] == [
        price.id
    ]
    with pytest.raises(stripe.InvalidRequestError):
        await api.prices.update_async(shop.starter, {"lookup_key": "plus"})
    moved = await api.prices.update_async(
        shop.starter, {"lookup_key": "plus", "transfer_lookup_key": True}
    )
    assert moved.lookup_key == "plus"
    assert (await api.prices.retrieve_async(price.id)).lookup_key is None
    changed = await api.customers.update_async(
        shop.customer,
        {"address": {"city": "Oslo"}, "email": "bo@example.com", "balance": -100},
    )
    assert changed.address is not None
    assert (changed.address.city, changed.balance) == ("Oslo", -100)
    found = await api.customers.list_async(
        {"email": "bo@example.com", "expand": ["data.subscriptions"]}
    )
    assert [each.id for each in found.data] == [shop.customer]
    coupon = await api.coupons.create_async(
        {"percent_off": 10, "duration": "repeating", "duration_in_months": 2, "id": "tenth"}
    )
    assert (await api.coupons.retrieve_async("tenth")).percent_off == 10.0
    assert [each.id for each in (await api.coupons.list_async()).data] == [coupon.id]


async def test_payment_method_decides_the_outcome_as_stripes_test_cards_do(
    shop: Shop, fake: FakeStripe
) -> None:
    """pm_card_chargeCustomerFail attaches and then declines."""
    await shop.client.v1.customers.update_async(
        shop.customer,
        {"invoice_settings": {"default_payment_method": "pm_card_chargeCustomerFail"}},
    )
    assert (await shop.subscribe(shop.starter)).status == "incomplete"
    await shop.client.v1.customers.update_async(
        shop.customer, {"invoice_settings": {"default_payment_method": "pm_card_visa"}}
    )
    assert (await shop.subscribe(shop.starter)).status == "active"
    assert len(fake.objects("subscription")) == 2


async def test_repeating_coupon_ends_after_its_months(shop: Shop, fake: FakeStripe) -> None:
    """Two months at half price, then the full one."""
    coupon = await shop.client.v1.coupons.create_async(
        {"percent_off": 50, "duration": "repeating", "duration_in_months": 2}
    )
    await shop.subscribe(shop.starter, discounts=[{"coupon": coupon.id}])
    await fake.advance(89 * 86_400)
    assert [each["total"] for each in fake.objects("invoice")] == [
        2_450,
        2_450,
        4_900,
        4_900,
    ]
