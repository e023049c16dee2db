"""`meterd stripe setup` against the fake Stripe: it looks, it applies, it finds nothing more."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from decimal import Decimal

import attrs
import pytest

from meterd.adapters.stripe.billing import StripeBilling
from meterd.adapters.stripe.client import StripePayments, open_stripe
from meterd.adapters.stripe.setup import Step, StripeSetup
from meterd.core.plan import Catalogue, Tier
from meterd.testing.fake_stripe import FakeStripe, open_fake_stripe
from tests.organizations import make_catalogue, make_plan


# The client hands httpx its body in an outdated way.
pytestmark = pytest.mark.filterwarnings("ignore:Use .content=:DeprecationWarning")

URL = "https://meterd.example/api/webhooks/stripe"
EVENTS = ("customer.subscription.created", "invoice.paid")


def halves() -> Iterator[float]:
    """Yield jitter without chance."""
    while True:
        yield 0.5


@attrs.frozen
class Account:
    """A fake account and the way to it."""

    fake: FakeStripe
    payments: StripePayments

    async def set_up(
        self, *, applies: bool = False, catalogue: Catalogue | None = None
    ) -> tuple[dict[str, str], StripeSetup]:
        """Run once; return what was looked at with its state."""
        setup = StripeSetup(
            self.payments, catalogue or make_catalogue(), EVENTS, URL, applies=applies
        )
        return {step.what: step.state for step in await setup.run()}, setup


@pytest.fixture
async def account() -> AsyncIterator[Account]:
    """Give an empty account."""
    async with (
        open_fake_stripe(seed=1) as fake,
        open_stripe("sk_test_x", jitter=halves(), api_base=fake.url) as payments,
    ):
        yield Account(fake, payments)


WHAT = (
    "product meterd_starter",
    "price meterd_starter_monthly",
    "product meterd_pro",
    "price meterd_pro_monthly",
    "billing portal",
    f"webhook endpoint {URL}",
)


async def test_a_dry_run_names_what_is_missing_and_creates_nothing(account: Account) -> None:
    """Looking is free: an operator sees what would be made."""
    found, setup = await account.set_up()

    assert found == dict.fromkeys(WHAT, "missing")
    assert setup.webhook_secret is None
    assert not any(request.method == "POST" for request in account.fake.requests)


async def test_applied_once_everything_is_fine(account: Account) -> None:
    """The prices sell their tiers, the secret is told once, a second run changes nothing."""
    first, setup = await account.set_up(applies=True)
    again, second = await account.set_up(applies=True)

    assert first == dict.fromkeys(WHAT, "created")
    assert again == dict.fromkeys(WHAT, "fine")
    assert (setup.webhook_secret or "").startswith("whsec_")
    assert second.webhook_secret is None
    prices = account.fake.objects("price")
    assert [(each["unit_amount"], each["metadata"]) for each in prices] == [
        (4_900, {"meterd_tier": "starter"}),
        (14_900, {"meterd_tier": "pro"}),
    ]
    (portal,) = account.fake.objects("billing_portal.configuration")
    update = portal["features"]["subscription_update"]
    assert update["proration_behavior"] == "always_invoice"
    assert update["billing_cycle_anchor"] == "now"
    assert update["schedule_at_period_end"]["conditions"] == [{"type": "decreasing_item_amount"}]
    billing = StripeBilling(account.payments)
    assert await billing.price_with("meterd_pro_monthly") == prices[1]["id"]


async def test_a_new_amount_is_a_new_price_that_takes_the_name_over(account: Account) -> None:
    """A price cannot change; who has the old one keeps it."""
    await account.set_up(applies=True)
    dearer = make_catalogue({Tier.STARTER: make_plan(Tier.STARTER, price_usd=Decimal(59))})

    looked, _ = await account.set_up(catalogue=dearer)
    applied, _ = await account.set_up(applies=True, catalogue=dearer)

    assert looked["price meterd_starter_monthly"] == "differs"
    assert applied["price meterd_starter_monthly"] == "created"
    assert applied["billing portal"] == "changed"
    named = {each["lookup_key"]: each["unit_amount"] for each in account.fake.objects("price")}
    assert named["meterd_starter_monthly"] == 5_900


async def test_prices_of_the_catalogue_are_checked_and_left_alone(account: Account) -> None:
    """A price that is gone, or sells for another amount, is told, never changed."""
    api = account.payments.client.v1
    product = await api.products.create_async({"name": "Pro"})
    price = await api.prices.create_async(
        {
            "product": product.id,
            "currency": "usd",
            "unit_amount": 9_900,
            "recurring": {"interval": "month"},
        }
    )
    plan = make_plan(
        Tier.PRO, price_usd=Decimal(149), stripe_price_ids=(price.id, "price_that_is_gone")
    )

    setup = StripeSetup(account.payments, make_catalogue({Tier.PRO: plan}), EVENTS, applies=True)
    steps = await setup.run()

    assert [step for step in steps if step.what.endswith("of pro")] == [
        Step(
            what=f"price {price.id} of pro",
            state="differs",
            detail="it costs 9900 cents, the catalogue says 14900",
        ),
        Step(
            what="price price_that_is_gone of pro",
            state="missing",
            detail="the catalogue names it, Stripe does not have it",
        ),
    ]


async def test_an_endpoint_that_hears_too_little_is_changed(account: Account) -> None:
    """What it heard before it goes on hearing."""
    account.fake.add_endpoint(URL, events=("charge.refunded", EVENTS[0]))

    looked, _ = await account.set_up()
    applied, setup = await account.set_up(applies=True)

    assert looked[f"webhook endpoint {URL}"] == "differs"
    assert applied[f"webhook endpoint {URL}"] == "changed"
    assert setup.webhook_secret is None
    (endpoint,) = account.fake.objects("webhook_endpoint")
    assert endpoint["enabled_events"] == sorted({"charge.refunded", *EVENTS})
