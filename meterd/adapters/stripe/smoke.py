"""A walk through a sandbox account with everything that meterd asks of Stripe, for a human.

Rule 1: never with a key for real money: what is not a test key is refused before anything is asked.
Rule 2: everything it makes is named after the run, and gone or archived when it is over, also when
a step fails; what exists in the account is not looked at.
Rule 3: it uses the code that charges customers, so that what works here works there.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any, Final

import attrs

from meterd.adapters.stripe.billing import TIER, StripeBilling
from meterd.adapters.stripe.client import StripePayments
from meterd.core.priced import read_priced
from meterd.core.revenue import subscription_cents
from meterd.core.stripe_objects import read_subscription
from meterd.core.subscription import USD
from meterd.core.units import DAY_MS, SECOND_MS
from meterd.errors import ConfigError, PaymentsError, PaymentsRejectedError
from meterd.ports.billing import KEY_REUSED, NewItem


TEST_KEYS: Final = ("sk_test_", "rk_test_")
"""Beginnings of keys that no money moves with."""

PRICE_CENTS: Final = 4_900
ITEM_CENTS: Final = 250


@attrs.frozen(kw_only=True)
class SmokeStep:
    """One thing that was tried."""

    what: str
    is_fine: bool
    detail: str = ""


class SmokeFailedError(Exception):
    """Stripe answered, and not with what meterd relies on."""


def refuse_live_key(key: str) -> None:
    """Refuse every key but a test key. Errors: ConfigError."""
    if not key.startswith(TEST_KEYS):
        raise ConfigError(
            "stripe_api_key is no test key: this makes and deletes objects, "
            f"so it takes only one that begins with {' or '.join(TEST_KEYS)}."
        )


@attrs.define(eq=False)
class Smoke:
    """One run. Its steps build on each other: the first that fails is the last."""

    payments: StripePayments
    run_id: str
    """Letters and digits that no other run has."""
    now_ms: int
    steps: list[SmokeStep] = attrs.field(factory=list, init=False)
    _undo: list[tuple[str, Callable[[], Awaitable[Any]]]] = attrs.field(factory=list, init=False)
    _customer_id: str = attrs.field(default="", init=False)
    _price_id: str = attrs.field(default="", init=False)
    _subscription_id: str = attrs.field(default="", init=False)
    _item_id: str = attrs.field(default="", init=False)

    @property
    def _api(self) -> Any:
        return self.payments.client.v1

    @property
    def _billing(self) -> StripeBilling:
        return StripeBilling(self.payments)

    async def run(self) -> bool:
        """Try everything, then take away what was made; return whether all of it is fine.

        Errors: ConfigError when the client has a key for real money.
        """
        if self.payments.livemode:
            raise ConfigError("the smoke test never runs with a key for real money")
        for what, attempt in (
            ("a product and a monthly price that names its plan", self._make_price),
            ("a customer, once for one key", self._make_customer),
            ("a subscription, read back as meterd follows it", self._subscribe),
            ("the customer's subscriptions, listed", self._list_subscriptions),
            ("discounts of an item and of the subscription, deducted", self._discount),
            ("an invoice item, once for one key, found by its name", self._make_item),
            ("the same key with other words, refused", self._reuse_key),
            ("an invoice of the pending items", self._make_invoice),
            ("a checkout page", self._open_checkout),
            ("events that no endpoint has acknowledged, listed", self._list_events),
        ):
            if not await self._try(what, attempt):
                break
        for what, undo in reversed(self._undo):
            await self._try(what, undo)
        return all(step.is_fine for step in self.steps)

    async def _try(self, what: str, attempt: Callable[[], Awaitable[Any]]) -> bool:
        detail, is_fine = "", True
        try:
            told = await attempt()
            detail = told if isinstance(told, str) else ""
        except (PaymentsError, SmokeFailedError) as error:
            detail, is_fine = str(error), False
        self.steps.append(SmokeStep(what=what, is_fine=is_fine, detail=detail))
        return is_fine

    def _later(self, what: str, action: str, request: Callable[[], Awaitable[Any]]) -> None:
        self._undo.append((what, lambda: self.payments.call(action, request)))

    # --- steps ------------------------------------------------------------------------------

    async def _make_price(self) -> str:
        product = await self.payments.call(
            "create a product",
            lambda: self._api.products.create_async({"name": f"meterd smoke {self.run_id}"}),
        )
        self._later(
            "the product archived",
            "archive a product",
            lambda: self._api.products.update_async(product.id, {"active": False}),
        )
        made = await self.payments.call(
            "create a price",
            lambda: self._api.prices.create_async(
                {
                    "product": product.id,
                    "currency": USD,
                    "unit_amount": PRICE_CENTS,
                    "recurring": {"interval": "month"},
                    "metadata": {TIER: "starter"},
                }
            ),
        )
        self._price_id = made.id
        self._later(
            "the price archived",
            "archive a price",
            lambda: self._api.prices.update_async(made.id, {"active": False}),
        )
        return self._price_id

    async def _make_customer(self) -> str:
        name = f"meterd smoke {self.run_id}"
        self._customer_id = await self._billing.create_customer(self._organization_id, name)
        self._later(
            "the customer deleted, and with it its subscription",
            "delete a customer",
            lambda: self._api.customers.delete_async(self._customer_id),
        )
        again = await self._billing.create_customer(self._organization_id, name)
        _expect(again == self._customer_id, f"the second call made {again}")
        return self._customer_id

    async def _subscribe(self) -> str:
        made = await self.payments.call(
            "create a subscription",
            lambda: self._api.subscriptions.create_async(
                {
                    "customer": self._customer_id,
                    "items": [{"price": self._price_id}],
                    "collection_method": "send_invoice",  # no card: nothing is charged
                    "days_until_due": 30,
                    "metadata": {"organization_id": self._organization_id},
                }
            ),
        )
        self._subscription_id = made.id
        found = await self.payments.subscription(made.id)
        _expect(found is not None, "it cannot be read")
        assert found is not None
        read = read_subscription(found.subscription)
        _expect(read is not None and bool(read.items), "meterd cannot read its items")
        assert read is not None
        item = read.items[0]
        self._item_id = item.id
        _expect(read.status.value == "active", f"its status is {read.status.value}")
        _expect(read.organization_id == self._organization_id, "it lost its organization")
        _expect(item.price.tier_hint == "starter", "its price does not name the plan")
        _expect(27 * DAY_MS < item.end_ms - item.start_ms < 32 * DAY_MS, "its period is no month")
        _expect(len(found.invoices) == 1, f"it has {len(found.invoices)} invoices")
        return f"{made.id}, {len(found.invoices)} invoice"

    async def _list_subscriptions(self) -> str:
        found = await self.payments.subscriptions_of(self._customer_id)
        _expect(list(found) == [self._subscription_id], f"listed are {list(found)}")
        return ""

    async def _discount(self) -> str:
        coupon = await self.payments.call(
            "create a coupon",
            lambda: self._api.coupons.create_async({"percent_off": 50, "duration": "forever"}),
        )
        self._later(
            "the coupon deleted",
            "delete a coupon",
            lambda: self._api.coupons.delete_async(coupon.id),
        )
        half = [{"coupon": coupon.id}]
        items = [{"id": self._item_id, "discounts": half}]
        await self.payments.call(
            "discount a subscription",
            lambda: self._api.subscriptions.update_async(
                self._subscription_id, {"discounts": half, "items": items}
            ),
        )
        found = await self.payments.subscription(self._subscription_id)
        assert found is not None, self._subscription_id
        priced = read_priced(json.dumps(found.subscription))
        assert priced is not None, self._subscription_id
        _expect(not priced.is_unknown(self.now_ms), "a discount cannot be told")
        cents = subscription_cents(priced, self.now_ms)
        _expect(cents * 4 == PRICE_CENTS, f"a quarter of {PRICE_CENTS} cents is said to be {cents}")
        return str(coupon.id)

    async def _make_item(self) -> str:
        first = await self._billing.add_item(self._item())
        again = await self._billing.add_item(self._item())
        _expect(again.id == first.id, f"the second call made {again.id}")
        _expect(first.amount_cents == ITEM_CENTS, f"it is {first.amount_cents} cents")
        _expect(first.invoice_id is None, "it is on an invoice already")
        since_ms = self.now_ms - DAY_MS
        listed = await self._billing.items_of(self._customer_id, since_ms=since_ms)
        ours = [each.id for each in listed if each.charge_id == self._charge_id]
        _expect(ours == [first.id], f"found by its name are {ours}")
        return first.id

    async def _reuse_key(self) -> str:
        try:
            await self._billing.add_item(attrs.evolve(self._item(), amount_cents=ITEM_CENTS + 1))
        except PaymentsRejectedError as error:
            _expect(error.code == KEY_REUSED, f"refused with {error.code or 'no code'}")
            return ""
        raise SmokeFailedError("it was not refused")

    async def _make_invoice(self) -> str:
        key = f"meterd:smoke:invoice:{self.run_id}"
        invoice_id = await self._billing.invoice_pending(self._customer_id, idempotency_key=key)
        self._later(
            "the draft deleted",
            "delete a draft",
            lambda: self._api.invoices.delete_async(invoice_id),
        )
        status = await self._billing.invoice_status(invoice_id)
        _expect(status == "draft", f"its status is {status}")
        items = await self._billing.items_of(self._customer_id, since_ms=self.now_ms - DAY_MS)
        on_it = [each.id for each in items if each.invoice_id == invoice_id]
        _expect(len(on_it) == 1, f"{len(on_it)} items are on it")
        return invoice_id

    async def _open_checkout(self) -> str:
        url = await self._billing.checkout_url(
            customer_id=self._customer_id,
            organization_id=self._organization_id,
            price_id=self._price_id,
            return_url="https://example.com/",
        )
        _expect(url.startswith("http"), f"its address is {url}")
        return ""

    async def _list_events(self) -> str:
        return f"{len(await self._billing.undelivered_events())} events"

    # --- what it makes ----------------------------------------------------------------------

    @property
    def _organization_id(self) -> str:
        return f"smoke-{self.run_id}"

    @property
    def _charge_id(self) -> str:
        return f"chg_smoke_{self.run_id}"

    def _item(self) -> NewItem:
        end_ms = self.now_ms - self.now_ms % SECOND_MS
        return NewItem(
            customer_id=self._customer_id,
            invoice_id=None,
            currency=USD,
            amount_cents=ITEM_CENTS,
            description="Usage past the plan: 50 agent minutes (smoke test)",
            period_start_ms=end_ms - DAY_MS,
            period_end_ms=end_ms,
            metadata={"meterd_charge": self._charge_id, "organization_id": self._organization_id},
            idempotency_key=f"meterd:smoke:item:{self.run_id}",
        )


def _expect(is_so: bool, otherwise: str) -> None:  # reads like an assertion
    if not is_so:
        raise SmokeFailedError(otherwise)
