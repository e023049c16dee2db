"""What meterd needs in a Stripe account: products, prices, the webhook endpoint, the portal.

Rule 1: everything is looked at first. What is there and right stays; only `applies` changes things.
Rule 2: a price cannot be changed at Stripe: one of another amount is followed by a new one that
takes its lookup key over. Who subscribed to the old one keeps it.
Rule 3: upgrades begin a new period at once and are invoiced at once, downgrades wait for the
period's end; an upgrade a day before a renewal would be nearly free otherwise.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import attrs

from meterd.adapters.stripe.billing import PORTAL, TIER
from meterd.adapters.stripe.client import StripePayments
from meterd.adapters.stripe.errors import RESOURCE_MISSING
from meterd.core.money import amount_cents
from meterd.core.plan import Catalogue, Plan
from meterd.core.subscription import USD
from meterd.errors import PaymentsRejectedError


PAGE: Final = 100


@attrs.frozen(kw_only=True)
class Step:
    """One thing that was looked at."""

    what: str
    state: str
    """`fine`, `missing`, `differs`; what was applied is `created` or `changed`."""
    detail: str = ""


@attrs.define(eq=False)
class StripeSetup:
    """Looks at an account and, when it applies, makes it what the plan catalogue says.

    Errors: PaymentsUnavailableError, PaymentsRejectedError.
    """

    payments: StripePayments
    catalogue: Catalogue
    events: Sequence[str]
    """What the webhook endpoint must tell."""
    webhook_url: str | None = None
    applies: bool = False
    steps: list[Step] = attrs.field(factory=list, init=False)
    webhook_secret: str | None = attrs.field(default=None, init=False)
    """Shown by Stripe once, when the endpoint is created."""

    @property
    def _api(self) -> Any:
        return self.payments.client.v1

    async def run(self) -> Sequence[Step]:
        """Look at everything, in the order in which it is needed."""
        sold: dict[str, list[str]] = {}
        for plan in self.catalogue.plans.values():
            if plan.price_usd:
                product_id, price_id = await self._plan(plan)
                if product_id is not None and price_id is not None:
                    sold.setdefault(product_id, []).append(price_id)
        await self._portal(sold)
        if self.webhook_url is not None:
            await self._webhook(self.webhook_url)
        return self.steps

    # --- products and prices ----------------------------------------------------------------

    async def _plan(self, plan: Plan) -> tuple[str | None, str | None]:
        """Return the product and the price of a plan, as far as they exist."""
        if plan.stripe_price_ids:
            return await self._named_prices(plan)
        product_id = await self._product(plan)
        return product_id, await self._price(plan, product_id)

    async def _named_prices(self, plan: Plan) -> tuple[str | None, str | None]:
        """Check the prices that the catalogue names; they are somebody's, not ours to change."""
        first: tuple[str | None, str | None] = (None, None)
        for price_id in plan.stripe_price_ids:
            what = f"price {price_id} of {plan.tier.value}"
            found = await self._find(
                "read a price", functools.partial(self._api.prices.retrieve_async, price_id)
            )
            if found is None:
                self._note(what, "missing", "the catalogue names it, Stripe does not have it")
                continue
            wrong = _price_problems(plan, found)
            self._note(what, "differs" if wrong else "fine", "; ".join(wrong))
            if first[1] is None:
                first = (_reference(found["product"]), price_id)
        return first

    async def _product(self, plan: Plan) -> str | None:
        product_id = f"meterd_{plan.tier.value}"
        found = await self._find(
            "read a product", lambda: self._api.products.retrieve_async(product_id)
        )
        if found is not None:
            await self._revive(product_id, is_active=found["active"])
            return product_id
        if not self.applies:
            self._note(f"product {product_id}", "missing")
            return None
        name = f"meterd {plan.tier.value.title()}"
        await self._do(
            "create a product",
            lambda: self._api.products.create_async({"id": product_id, "name": name}),
        )
        self._note(f"product {product_id}", "created")
        return product_id

    async def _revive(self, product_id: str, *, is_active: bool) -> None:
        """Have a product sold that somebody has archived: Stripe refuses checkouts of it."""
        what = f"product {product_id}"
        if is_active:
            self._note(what, "fine")
        elif not self.applies:
            self._note(what, "differs", "it is archived")
        else:
            await self._do(
                "change a product",
                lambda: self._api.products.update_async(product_id, {"active": True}),
            )
            self._note(what, "changed", "it was archived")

    async def _price(self, plan: Plan, product_id: str | None) -> str | None:
        key = f"meterd_{plan.tier.value}_monthly"
        page = await self._do(
            "list prices",
            lambda: self._api.prices.list_async({"lookup_keys": [key], "active": True}),
        )
        found = page["data"][0] if page["data"] else None
        wrong = [] if found is None else _own_price_problems(plan, found)
        if found is not None and not wrong:
            await self._name_tier(key, plan, found)
            return str(found["id"])
        state = "missing" if found is None else "differs"
        if not self.applies or product_id is None:
            self._note(f"price {key}", state, "; ".join(wrong))
            return None if found is None else str(found["id"])
        made = await self._do(
            "create a price",
            lambda: self._api.prices.create_async(
                {
                    "product": product_id,
                    "currency": USD,
                    "unit_amount": amount_cents(plan.price_usd),
                    "recurring": {"interval": "month"},
                    "lookup_key": key,
                    "transfer_lookup_key": True,
                    "metadata": {TIER: plan.tier.value},
                }
            ),
        )
        self._note(f"price {key}", "created", made["id"])
        return str(made["id"])

    async def _name_tier(self, key: str, plan: Plan, found: Any) -> None:
        """Have a price say which plan it sells: meterd would not know it otherwise."""
        said, what = (found["metadata"] or {}).get(TIER), f"price {key}"
        if said == plan.tier.value:
            self._note(what, "fine", found["id"])
            return
        detail = f"its metadata says it sells {said or 'no plan'}"
        if not self.applies:
            self._note(what, "differs", detail)
            return
        metadata = {TIER: plan.tier.value}
        await self._do(
            "change a price",
            lambda: self._api.prices.update_async(found["id"], {"metadata": metadata}),
        )
        self._note(what, "changed", detail)

    # --- the portal -------------------------------------------------------------------------

    async def _portal(self, sold: Mapping[str, Sequence[str]]) -> None:
        page = await self._do(
            "list portal configurations",
            lambda: self._api.billing_portal.configurations.list_async(
                {"active": True, "limit": PAGE}
            ),
        )
        ours = [each for each in page["data"] if (each["metadata"] or {}).get(TIER) == PORTAL]
        wanted = _portal_features(sold)
        if ours and _is_set(ours[0]["features"], wanted):
            self._note("billing portal", "fine", ours[0]["id"])
            return
        state = "differs" if ours else "missing"
        if not self.applies or not sold:
            self._note("billing portal", state)
            return
        params = {"features": wanted, "metadata": {TIER: PORTAL}}
        if ours:
            found = await self._do(
                "change the portal's configuration",
                lambda: self._api.billing_portal.configurations.update_async(ours[0]["id"], params),
            )
        else:
            found = await self._do(
                "create a portal configuration",
                lambda: self._api.billing_portal.configurations.create_async(params),
            )
        self._note("billing portal", "changed" if ours else "created", found["id"])

    # --- the webhook endpoint ---------------------------------------------------------------

    async def _webhook(self, url: str) -> None:
        page = await self._do(
            "list webhook endpoints",
            lambda: self._api.webhook_endpoints.list_async({"limit": PAGE}),
        )
        found = next((each for each in page["data"] if each["url"] == url), None)
        told = set() if found is None else set(found["enabled_events"])
        missing = sorted(set(self.events) - told) if "*" not in told else []
        what = f"webhook endpoint {url}"
        if found is not None and not missing and found["status"] == "enabled":
            self._note(what, "fine", found["id"])
            return
        if not self.applies:
            self._note(what, "missing" if found is None else "differs", ", ".join(missing))
            return
        if found is None:
            made = await self._do(
                "create a webhook endpoint",
                lambda: self._api.webhook_endpoints.create_async(
                    {"url": url, "enabled_events": sorted(self.events)}
                ),
            )
            self.webhook_secret = made["secret"]
            self._note(what, "created", made["id"])
            return
        events = sorted(told | set(self.events)) if "*" not in told else ["*"]
        await self._do(
            "change a webhook endpoint",
            lambda: self._api.webhook_endpoints.update_async(
                found["id"], {"enabled_events": events, "disabled": False}
            ),
        )
        self._note(what, "changed", found["id"])

    # --- one call ---------------------------------------------------------------------------

    async def _do(self, action: str, request: Callable[[], Any]) -> Any:
        found = await self.payments.call(action, request)
        return found.to_dict(for_json=True)

    async def _find(self, action: str, request: Callable[[], Any]) -> Any:
        try:
            found = await self._do(action, request)
        except PaymentsRejectedError as error:
            if error.code != RESOURCE_MISSING:
                raise
            return None
        return None if found.get("deleted") else found

    def _note(self, what: str, state: str, detail: str = "") -> None:
        self.steps.append(Step(what=what, state=state, detail=detail))


def _price_problems(plan: Plan, found: Any) -> list[str]:
    """Return what is wrong with a price for a plan, in words.

    Only a monthly price must cost what the catalogue says: what a year costs it does not say.
    """
    recurring = found.get("recurring") or {}
    interval = (recurring.get("interval"), recurring.get("interval_count", 1))
    wrong = []
    if not found["active"]:
        wrong.append("it is not active")
    if found["currency"] != USD:
        wrong.append(f"it is in {found['currency']}")
    if interval[0] not in {"month", "year"}:
        wrong.append("it is not for whole months")
    if recurring.get("usage_type") == "metered":
        wrong.append("it is metered: meterd charges usage itself")
    if interval == ("month", 1):
        wrong += _amount_problems(plan, found)
    return wrong


def _own_price_problems(plan: Plan, found: Any) -> list[str]:
    """Return what is wrong with the price that has the plan's lookup key: it is a monthly one."""
    recurring = found.get("recurring") or {}
    wrong = _price_problems(plan, found)
    if (recurring.get("interval"), recurring.get("interval_count", 1)) != ("month", 1):
        wrong += ["it is not monthly", *_amount_problems(plan, found)]
    return wrong


def _amount_problems(plan: Plan, found: Any) -> list[str]:
    cents = amount_cents(plan.price_usd)
    if found.get("unit_amount") == cents:
        return []
    return [f"it costs {found.get('unit_amount')} cents, the catalogue says {cents}"]


def _portal_features(sold: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Return how customers may change what they have (rule 3)."""
    return {
        "customer_update": {"enabled": True, "allowed_updates": ["address", "email", "tax_id"]},
        "invoice_history": {"enabled": True},
        "payment_method_update": {"enabled": True},
        "subscription_cancel": {"enabled": True, "mode": "at_period_end"},
        "subscription_update": {
            "enabled": True,
            "default_allowed_updates": ["price"],
            "proration_behavior": "always_invoice",
            "billing_cycle_anchor": "now",
            "schedule_at_period_end": {"conditions": [{"type": "decreasing_item_amount"}]},
            "products": [
                {"product": product, "prices": list(prices)} for product, prices in sold.items()
            ],
        },
    }


def _is_set(found: Any, wanted: Any) -> bool:
    """Tell whether everything that is wanted is found; what else is there does not matter."""
    if isinstance(wanted, dict):
        return isinstance(found, dict) and all(
            _is_set(found.get(name), value) for name, value in wanted.items()
        )
    if isinstance(wanted, list):
        return (
            isinstance(found, list)
            and len(found) == len(wanted)
            and all(_is_set(a, b) for a, b in zip(_sorted(found), _sorted(wanted), strict=True))
        )
    return bool(found == wanted)


def _sorted(values: list[Any]) -> list[Any]:
    return sorted(values, key=lambda each: each["product"] if _is_product(each) else str(each))


def _is_product(value: Any) -> bool:
    return isinstance(value, dict) and "product" in value


def _reference(value: Any) -> str:
    return str(value["id"]) if isinstance(value, dict) else str(value)
