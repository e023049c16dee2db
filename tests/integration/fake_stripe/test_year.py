from __future__ import annotations

import pytest
import stripe

from meterd.testing.fake_stripe import FakeStripe, RequestFault
from tests.integration.fake_stripe.conftest import Receiver, Shop


# The client hands httpx its body in an outdated way.
pytestmark = pytest.mark.filterwarnings("ignore:Use .content=:DeprecationWarning")

DAY_S = 86_400


class Biller:
    """The least a billing system does: on each renewal's draft, charge what is past the plan."""

    def __init__(self, shop: Shop, receiver: Receiver) -> None:
        self._api = shop.client.v1
        self._receiver = receiver
        self._seen = 0
        self.charged: dict[str, int] = {}

    async def work(self) -> None:
        """Go through the notices not seen yet."""
        while self._seen < len(self._receiver.received):
            event = self._receiver.received[self._seen]
            self._seen += 1
            if event["type"] == "invoice.created":
                await self._charge(event["data"]["object"]["id"])  # type: ignore[index]

    async def _charge(self, invoice_id: str) -> None:
        invoice = await self._api.invoices.retrieve_async(invoice_id)
        if invoice.billing_reason != "subscription_cycle" or invoice.status != "draft":
            return
        if invoice_id not in self.charged:
            self.charged[invoice_id] = await self._push(invoice, 100 + len(self.charged))

    async def _push(self, invoice: stripe.Invoice, cents: int) -> int:
        """Try one key until it is answered; a kept 500 is settled by looking for the item."""
        mark = f"chg_{invoice.id}"
        assert isinstance(invoice.customer, str)
        for _ in range(20):
            found = await self._api.invoice_items.list_async(
                {"customer": invoice.customer, "invoice": invoice.id},
                {"max_network_retries": 5},
            )
            if any(item.metadata and item.metadata["charge"] == mark for item in found.data):
                return cents
            try:
                await self._api.invoice_items.create_async(
                    {
                        "customer": invoice.customer,
                        "invoice": invoice.id,
                        "currency": "usd",
                        "amount": cents,
                        "metadata": {"charge": mark},
                    },
                    {"idempotency_key": mark},
                )
            except (stripe.APIConnectionError, stripe.APIError, stripe.RateLimitError):
                continue
        raise AssertionError(mark)


@pytest.mark.slow
async def test_a_year_with_every_fault_bills_each_month_once(
    shop: Shop, fake: FakeStripe, receiver: Receiver
) -> None:
    """Twelve renewals, an upgrade, a failed card and a cancellation; nothing lost or doubled."""
    fake.faults.repeat_rate = fake.faults.lose_rate = fake.faults.twin_rate = 0.1
    fake.faults.reorder_rate = 0.5
    fake.faults.rates_path = "/v1/invoiceitems"
    fake.faults.request_rates = {
        RequestFault.DROP_BEFORE: 0.05,
        RequestFault.DROP_AFTER: 0.1,
        RequestFault.RATE_LIMITED: 0.0,
        RequestFault.ERROR_BEFORE: 0.05,
        RequestFault.ERROR_AFTER: 0.1,
    }
    biller = Biller(shop, receiver)
    made = await shop.subscribe(shop.starter)
    await fake.advance(100 * DAY_S, between=biller.work)
    item = made["items"]["data"][0]
    await shop.client.v1.subscriptions.update_async(
        made.id,
        {
            "items": [{"id": item.id, "price": shop.pro}],
            "proration_behavior": "always_invoice",
            "billing_cycle_anchor": {"type": "now"},
        },
    )
    fake.set_payments(shop.customer, "succeed", "fail")
    await fake.advance(266 * DAY_S, between=biller.work)
    await shop.client.v1.subscriptions.cancel_async(made.id)
    await fake.settle()

    cycles = [each for each in fake.objects("invoice") if each["id"] in biller.charged]
    assert len(cycles) == 3 + 8
    assert {each["status"] for each in cycles} == {"paid"}
    assert [each["amount_paid"] for each in cycles] == [
        (4_900 if index < 3 else 14_900) + biller.charged[each["id"]]
        for index, each in enumerate(cycles)
    ]
    assert len([each for each in fake.objects("invoiceitem") if not each["proration"]]) == 11
    assert len({event["id"] for event in receiver.received}) == len(
        {delivery.event_id for delivery in fake.dispatcher.deliveries}
    )
