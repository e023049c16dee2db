from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
import stripe
import trio

from meterd.testing.fake_stripe import FakeStripe, RequestFault
from tests.integration.fake_stripe.conftest import Shop


# The client hands httpx its body in an outdated way.
pytestmark = pytest.mark.filterwarnings("ignore:Use .content=:DeprecationWarning")


@pytest.fixture
async def raw(fake: FakeStripe) -> AsyncIterator[httpx.AsyncClient]:
    """Speak plain HTTP to the fake, for what the client library would not send."""
    async with httpx.AsyncClient(
        base_url=fake.url, headers={"authorization": "Bearer sk_test_any"}
    ) as client:
        yield client


async def charge(shop: Shop, key: str, cents: int) -> stripe.InvoiceItem:
    """Create an invoice item under an idempotency key."""
    return await shop.client.v1.invoice_items.create_async(
        {"customer": shop.customer, "currency": "usd", "amount": cents}, {"idempotency_key": key}
    )


async def test_lists_are_paged_newest_first(shop: Shop) -> None:
    """The client's own iterator walks every page, each object once."""
    made = [(await charge(shop, f"k{index}", index)).id for index in range(25)]
    first = await shop.client.v1.invoice_items.list_async({"limit": 10})
    walked = [item.id async for item in first.auto_paging_iter()]

    assert (len(first.data), first.has_more) == (10, True)
    assert walked == made[::-1]


async def test_expand_replaces_references_several_levels_deep(shop: Shop) -> None:
    """latest_invoice and the product behind an item's price, in one request."""
    made = await shop.subscribe(
        shop.starter, expand=["latest_invoice.customer", "items.data.price.product"]
    )
    invoice = made.latest_invoice
    assert isinstance(invoice, stripe.Invoice)
    assert isinstance(invoice.customer, stripe.Customer)
    assert invoice.customer.email == "ann@example.com"
    assert made["items"]["data"][0].price.product.name == "meterd"

    page = await shop.client.v1.subscriptions.list_async({"expand": ["data.customer"]})
    assert isinstance(page.data[0].customer, stripe.Customer)
    with pytest.raises(stripe.InvalidRequestError, match="cannot be expanded"):
        await shop.subscribe(shop.starter, expand=["nonsense"])


async def test_metadata_is_merged_and_unset_key_by_key(shop: Shop) -> None:
    """An empty value removes a key, an empty string all of them."""
    customers = shop.client.v1.customers
    changed = await customers.update_async(shop.customer, {"metadata": {"a": "1", "b": "2"}})
    assert dict(changed.to_dict()["metadata"]) == {"organization_id": "org_1", "a": "1", "b": "2"}
    changed = await customers.update_async(shop.customer, {"metadata": {"a": ""}})
    assert dict(changed.to_dict()["metadata"]) == {"organization_id": "org_1", "b": "2"}
    changed = await customers.update_async(shop.customer, {"metadata": ""})
    assert dict(changed.to_dict()["metadata"]) == {}


async def test_same_key_same_request_is_answered_once(shop: Shop, fake: FakeStripe) -> None:
    """The stored answer comes back, marked as replayed; nothing new is made."""
    first = await charge(shop, "k", 100)
    again = await charge(shop, "k", 100)

    assert first.id == again.id
    assert len(fake.objects("invoiceitem")) == 1
    assert again.last_response is not None
    assert again.last_response.headers["idempotent-replayed"] == "true"
    assert [logged.was_replayed for logged in fake.requests[-2:]] == [False, True]


async def test_same_key_other_request_is_refused(shop: Shop) -> None:
    """`idempotency_error`, whatever changed."""
    await charge(shop, "k", 100)
    with pytest.raises(stripe.IdempotencyError):
        await charge(shop, "k", 101)


async def test_keys_are_forgotten_after_a_day(shop: Shop, fake: FakeStripe) -> None:
    """The double charge that searching by metadata is there to prevent."""
    await charge(shop, "k", 100)
    await fake.advance(86_400 - 1)
    await charge(shop, "k", 100)
    assert len(fake.objects("invoiceitem")) == 1

    await fake.advance(1)
    await charge(shop, "k", 100)

    assert len(fake.objects("invoiceitem")) == 2


async def test_validation_failures_are_not_kept_under_the_key(shop: Shop) -> None:
    """A request that never began may be corrected under the same key."""
    api = shop.client.v1.invoice_items
    with pytest.raises(stripe.InvalidRequestError) as unknown:
        await api.create_async(
            {"customer": shop.customer, "amonut": 1},  # type: ignore[arg-type]
            {"idempotency_key": "k"},
        )
    assert (unknown.value.code, unknown.value.param) == ("parameter_unknown", "amonut")
    await charge(shop, "k", 100)


@pytest.mark.parametrize(
    ("fault", "error", "made"),
    [
        (RequestFault.DROP_BEFORE, stripe.APIConnectionError, 0),
        (RequestFault.DROP_AFTER, stripe.APIConnectionError, 1),
        (RequestFault.RATE_LIMITED, stripe.RateLimitError, 0),
        (RequestFault.ERROR_BEFORE, stripe.APIError, 0),
        (RequestFault.ERROR_AFTER, stripe.APIError, 1),
    ],
)
async def test_each_fault_does_or_does_not_do_the_work(
    shop: Shop, fake: FakeStripe, fault: RequestFault, error: type[Exception], made: int
) -> None:
    """What the caller sees says nothing about whether it happened."""
    fake.faults.fail_next(fault, method="POST", path="/v1/invoiceitems")
    with pytest.raises(error):
        await charge(shop, "k", 100)
    assert len(fake.objects("invoiceitem")) == made


async def test_lost_reply_is_healed_by_the_same_key(shop: Shop, fake: FakeStripe) -> None:
    """The retry gets the answer that was lost."""
    fake.faults.fail_next(RequestFault.DROP_AFTER, path="/v1/invoiceitems")
    with pytest.raises(stripe.APIConnectionError):
        await charge(shop, "k", 100)
    again = await charge(shop, "k", 100)

    assert [item["id"] for item in fake.objects("invoiceitem")] == [again.id]


async def test_error_after_the_work_is_what_the_key_remembers(shop: Shop, fake: FakeStripe) -> None:
    """As at Stripe: the same 500 for a day, although the item exists. Only a search tells."""
    fake.faults.fail_next(RequestFault.ERROR_AFTER, path="/v1/invoiceitems")
    for _ in range(2):
        with pytest.raises(stripe.APIError):
            await charge(shop, "k", 100)

    assert len(fake.objects("invoiceitem")) == 1


async def test_timed_out_request_may_have_been_served(shop: Shop, fake: FakeStripe) -> None:
    """The caller gives up first."""
    fake.faults.fail_next(RequestFault.TIMEOUT_AFTER, path="/v1/invoiceitems")
    with trio.move_on_after(0.2) as scope:
        await charge(shop, "k", 100)

    assert scope.cancelled_caught
    assert len(fake.objects("invoiceitem")) == 1


async def test_rates_are_drawn_from_the_seed(shop: Shop, fake: FakeStripe) -> None:
    """Half of the requests fail, and the same half for the same seed."""
    fake.faults.request_rates = {RequestFault.ERROR_BEFORE: 0.5}
    seen = []
    for index in range(20):
        try:
            await charge(shop, f"k{index}", 100)
        except stripe.APIError:
            seen.append(index)
    assert seen == [0, 2, 4, 5, 7, 9, 10, 11, 12, 14, 15, 16, 17, 18]


async def test_stripe_can_be_away(shop: Shop, fake: FakeStripe) -> None:
    """Every connection closes until it is back."""
    fake.faults.away = True
    with pytest.raises(stripe.APIConnectionError):
        await charge(shop, "k", 100)
    fake.faults.away = False
    await charge(shop, "k", 100)


async def test_errors_have_stripes_shape(raw: httpx.AsyncClient, fake: FakeStripe) -> None:
    """type, code, param, message and the id of the request."""
    missing = await raw.get("/v1/customers/cus_none")
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "resource_missing"
    assert missing.headers["request-id"].startswith("req_")
    unknown = await raw.get("/v1/nonsense")
    assert unknown.json()["error"]["message"] == "Unrecognized request URL (GET: /v1/nonsense)."
    invalid = await raw.post("/v1/subscriptions", data={"cancel_at_period_end": "perhaps"})
    assert invalid.json()["error"] == {
        "message": "Invalid boolean: perhaps",
        "type": "invalid_request_error",
        "param": "cancel_at_period_end",
    }
    assert (await raw.get("/v1/events", headers={"authorization": ""})).status_code == 401
    fake.settings.api_key = "sk_test_other"
    assert (await raw.get("/v1/events")).status_code == 401


async def test_what_is_not_modelled_is_refused_by_name(shop: Shop) -> None:
    """A test that passes has not leaned on something the fake ignored."""
    with pytest.raises(stripe.InvalidRequestError) as refused:
        await shop.subscribe(shop.starter, backdate_start_date=1)
    assert (refused.value.code, refused.value.param) == (
        "parameter_not_modelled",
        "backdate_start_date",
    )


async def test_an_invoice_takes_at_most_250_items(shop: Shop, fake: FakeStripe) -> None:
    """The oldest go; the rest waits for the next invoice."""
    for index in range(252):
        await charge(shop, f"k{index}", 1)
    invoice = await shop.client.v1.invoices.create_async(
        {"customer": shop.customer, "pending_invoice_items_behavior": "include"}
    )
    lines = await shop.client.v1.invoices.line_items.list_async(invoice.id, {"limit": 100})

    assert invoice.total == 250
    assert len(invoice.lines.data) == 10
    assert len([line async for line in lines.auto_paging_iter()]) == 250
    pending = await shop.client.v1.invoice_items.list_async({"pending": True})
    assert len(pending.data) == 2
    with pytest.raises(stripe.InvalidRequestError, match="at most 250"):
        await shop.client.v1.invoice_items.create_async(
            {"customer": shop.customer, "invoice": invoice.id, "currency": "usd", "amount": 1}
        )
    assert len(fake.objects("invoiceitem")) == 252


async def test_credit_beyond_the_invoice_becomes_the_customers_balance(
    shop: Shop, fake: FakeStripe
) -> None:
    """A negative total is paid at once and used up by the next invoice."""
    await shop.client.v1.invoice_items.create_async(
        {"customer": shop.customer, "currency": "usd", "amount": -6_000}
    )
    made = await shop.subscribe(shop.starter, expand=["latest_invoice"])
    first = made.latest_invoice
    assert isinstance(first, stripe.Invoice)
    customer = await shop.client.v1.customers.retrieve_async(shop.customer)
    await fake.advance(29 * 86_400)
    second = fake.objects("invoice")[-1]

    assert (first.total, first.amount_due, first.status) == (-1_100, 0, "paid")
    assert customer.balance == -1_100
    assert (second["total"], second["amount_paid"]) == (4_900, 3_800)


async def test_coupons_are_deducted_for_as_long_as_they_last(shop: Shop, fake: FakeStripe) -> None:
    """Once: the first invoice only. Forever: all of them."""
    api = shop.client.v1
    once = await api.coupons.create_async({"percent_off": 50, "duration": "once"})
    always = await api.coupons.create_async(
        {"amount_off": 900, "currency": "usd", "duration": "forever"}
    )
    made = await shop.subscribe(
        shop.starter,
        discounts=[{"coupon": once.id}, {"coupon": always.id}],
        expand=["discounts.source.coupon"],
    )
    await fake.advance(29 * 86_400)

    assert [each.source.coupon.id for each in made.discounts] == [always.id]  # type: ignore[union-attr]
    assert [each["amount_paid"] for each in fake.objects("invoice")] == [1_550, 4_000]


async def test_events_are_kept_for_thirty_days(shop: Shop, fake: FakeStripe) -> None:
    """Later they are neither listed nor found."""
    old = (await shop.client.v1.events.list_async({"type": "customer.created"})).data[0]
    await fake.advance(30 * 86_400 + 1)

    assert (await shop.client.v1.events.list_async({"type": "customer.*"})).data == []
    with pytest.raises(stripe.InvalidRequestError):
        await shop.client.v1.events.retrieve_async(old.id)


async def test_client_retries_with_its_own_key(fake: FakeStripe, shop: Shop) -> None:
    """max_network_retries sends the same key again, so a lost reply makes one customer."""
    before = len(fake.objects("customer"))
    fake.faults.fail_next(RequestFault.DROP_AFTER, path="/v1/customers")
    made = await shop.client.v1.customers.create_async(
        {"email": "c@example.com"}, {"max_network_retries": 2}
    )

    assert [each["id"] for each in fake.objects("customer")[before:]] == [made.id]


async def test_control_routes_switch_what_the_handle_switches(
    raw: httpx.AsyncClient, shop: Shop, fake: FakeStripe
) -> None:
    """For tests and demos in other processes."""
    made = await shop.subscribe(shop.starter)
    body = {"customer": shop.customer, "outcome": "succeed", "script": ["fail"]}
    assert (await raw.post("/_fake/payments", json=body)).status_code == 200
    moved = (await raw.post("/_fake/clock", json={"advance_seconds": 29 * 86_400})).json()
    now = await shop.client.v1.subscriptions.retrieve_async(made.id)
    assert (moved["now"], now.status) == (fake.clock.now_s, "past_due")

    planned = {"fail_next": {"faults": ["rate_limited"], "path": "/v1/events"}}
    await raw.post("/_fake/faults", json=planned)
    assert (await raw.get("/v1/events")).status_code == 429
    await raw.post("/_fake/faults", json={"away": True})
    with pytest.raises(httpx.TransportError):
        await raw.get("/v1/events")
    await raw.post("/_fake/faults", json={"clear": True})
    assert (await raw.post("/_fake/faults", json={"nonsense": 1})).status_code == 400
    assert (await raw.post("/_fake/settings", json={"after_retries": "cancel"})).status_code == 200
    assert fake.settings.after_retries == "cancel"
    state = (await raw.get("/_fake/state")).json()
    assert {"now", "objects", "deliveries", "requests"} <= state.keys()
    endpoint = (await raw.post("/_fake/endpoints", json={"url": "http://127.0.0.1:9/"})).json()
    rolled = (await raw.post(f"/_fake/endpoints/{endpoint['id']}/roll", json={})).json()
    assert rolled["secret"] != endpoint["secret"]
    assert (await raw.get("/_fake/nonsense")).status_code == 404


async def test_bytes_that_are_not_http_end_only_their_connection(fake: FakeStripe) -> None:
    """The next client is served as if nothing had been."""
    host, _, port = fake.url.removeprefix("http://").partition(":")
    stream = await trio.open_tcp_stream(host, int(port))
    await stream.send_all(b"\x16\x03\x01 this is not HTTP\r\n\r\n")
    assert await stream.receive_some() == b""
    await stream.aclose()
    async with httpx.AsyncClient(base_url=fake.url) as client:
        assert (await client.get("/_fake/state")).status_code == 200
