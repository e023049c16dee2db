"""`meterd stripe setup` as a program, against an account that starts empty and then drifts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from meterd.adapters.stripe.client import open_stripe
from meterd.testing.fake_stripe import FakeStripe, Settings, open_fake_stripe
from tests.integration.billing.test_setup import halves
from tests.integration.cli.programs import Ran, meterd


pytestmark = [
    pytest.mark.slow,
    # The client hands httpx its body in an outdated way.
    pytest.mark.filterwarnings("ignore:Use .content=:DeprecationWarning"),
]

KEY = "sk_test_PLANTED1234567890"
URL = "https://meterd.example.com/api/webhooks/stripe"
PLANS = Path(__file__).parents[3] / "meterd" / "plans.toml"

WHAT = (
    "product meterd_starter",
    "price meterd_starter_monthly",
    "product meterd_pro",
    "price meterd_pro_monthly",
    "billing portal",
    f"webhook endpoint {URL}",
)


async def setup(fake: FakeStripe, *options: str, key: str | None = KEY) -> Ran:
    """Run the command against the fake account."""
    settings = {"METERD_STRIPE_API_BASE": fake.url}
    if key is not None:
        settings["METERD_STRIPE_API_KEY"] = key
    return await meterd("stripe", "setup", "--webhook-url", URL, *options, settings=settings)


def states(ran: Ran) -> dict[str, str]:
    """Return what was looked at with its state, from `--json`."""
    return {step["what"]: step["state"] for step in json.loads(ran.out)["steps"]}


def posts(fake: FakeStripe) -> int:
    """Return how many requests asked for a change."""
    return sum(request.method != "GET" for request in fake.requests)


async def api(fake: FakeStripe, path: str, change: Any) -> Any:
    """Change something in the account, as somebody does in the dashboard."""
    async with open_stripe(KEY, jitter=halves(), api_base=fake.url) as payments:
        return await payments.client.raw_request_async("post", path, **change)


async def test_a_new_account_is_looked_at_then_made_then_found_right() -> None:
    """Without --apply nothing changes; with it the secret is told once; then all is fine."""
    async with open_fake_stripe(seed=1) as fake:
        dry = await setup(fake, "--json")
        changes_of_dry = posts(fake)
        applied = await setup(fake, "--apply")
        changes = posts(fake)
        again = await setup(fake, "--apply", "--json")
        (endpoint,) = fake.objects("webhook_endpoint")
        (secret, _) = fake.world.hidden.secrets[endpoint["id"]][0]

    assert (dry.code, states(dry)) == (1, dict.fromkeys(WHAT, "missing"))
    assert json.loads(dry.out)["webhook_secret"] is None
    assert (changes_of_dry, changes) == (0, 6)
    assert applied.code == 0, applied.err
    *table, last = applied.out.splitlines()
    assert [line.split()[0] for line in table] == ["STATE", *["created"] * 6]
    assert last == f"METERD_STRIPE_WEBHOOK_SECRETS={secret}"
    assert (again.code, states(again)) == (0, dict.fromkeys(WHAT, "fine"))
    assert posts(fake) == changes, "the second run changed something"
    assert json.loads(again.out)["webhook_secret"] is None
    assert KEY not in dry.out + dry.err + applied.out + applied.err + again.out + again.err


async def test_drift_is_told_by_a_dry_run_and_mended_by_the_next(tmp_path: Path) -> None:
    """Somebody archived a product, unnamed a price, raised another, and muted the endpoint."""
    dearer = tmp_path / "plans.toml"
    dearer.write_text(PLANS.read_text().replace('price_usd = "149.00"', 'price_usd = "159.00"'))
    plans = ("--plans", str(dearer))
    async with open_fake_stripe(seed=1) as fake:
        await setup(fake, "--apply")
        await api(fake, "/v1/products/meterd_starter", {"active": "false"})
        starter = fake.objects("price")[0]["id"]
        await api(fake, f"/v1/prices/{starter}", {"metadata": {"meterd_tier": ""}})
        (endpoint,) = fake.objects("webhook_endpoint")
        await api(fake, f"/v1/webhook_endpoints/{endpoint['id']}", {"disabled": "true"})
        before = posts(fake)

        dry = await setup(fake, *plans, "--json")
        untouched = posts(fake) == before
        mended = await setup(fake, *plans, "--apply", "--json")
        after = await setup(fake, *plans, "--json")
        prices = {each["lookup_key"]: each for each in fake.objects("price")}

    found = dict(
        zip(WHAT, ("differs", "differs", "fine", "differs", "fine", "differs"), strict=True)
    )
    assert (dry.code, states(dry)) == (1, found)
    details = {each["what"]: each["detail"] for each in json.loads(dry.out)["steps"]}
    assert details["product meterd_starter"] == "it is archived"
    assert details["price meterd_starter_monthly"] == "its metadata says it sells no plan"
    assert details["price meterd_pro_monthly"] == ("it costs 14900 cents, the catalogue says 15900")
    assert untouched
    assert mended.code == 0
    assert (after.code, states(after)) == (0, dict.fromkeys(WHAT, "fine"))
    assert prices["meterd_starter_monthly"]["metadata"] == {"meterd_tier": "starter"}
    assert prices["meterd_pro_monthly"]["unit_amount"] == 15_900


async def test_a_yearly_price_of_the_catalogue_costs_what_its_owner_says(tmp_path: Path) -> None:
    """The catalogue has no price of a year to compare with; it is no drift."""
    async with open_fake_stripe(seed=1) as fake:
        product = await api(fake, "/v1/products", {"name": "Pro"})
        price = await api(
            fake,
            "/v1/prices",
            {
                "product": product.data["id"],
                "currency": "usd",
                "unit_amount": "149000",
                "recurring": {"interval": "year"},
            },
        )
        plans = tmp_path / "plans.toml"
        pro = PLANS.read_text().partition("[plans.pro]")
        named = pro[2].replace(
            "stripe_price_ids = []", f'stripe_price_ids = ["{price.data["id"]}"]', 1
        )
        plans.write_text(pro[0] + pro[1] + named)
        ran = await setup(fake, "--plans", str(plans), "--json")

    assert states(ran)[f"price {price.data['id']} of pro"] == "fine"


async def test_what_cannot_be_asked_is_said_without_the_key() -> None:
    """No key, a wrong one, and a Stripe that is away: an exit code and a sentence, no traceback."""
    async with open_fake_stripe(seed=1, settings=Settings(api_key="sk_test_another")) as fake:
        without = await setup(fake, key=None)
        wrong = await setup(fake)
        fake.faults.away = True
        away = await setup(fake)

    assert (without.code, without.err) == (
        2,
        "meterd: stripe_api_key is not set: set METERD_STRIPE_API_KEY.\n",
    )
    for ran in (wrong, away):
        assert (ran.code, ran.out) == (1, "")
        assert ran.err.startswith("meterd: ")
        assert "Traceback" not in ran.err
        assert KEY not in ran.err
