"""`meterd stripe smoke`: everything is tried and taken away again, and never with a live key."""

from __future__ import annotations

import json

import pytest

from meterd.testing.fake_stripe import FakeStripe, RequestFault, open_fake_stripe
from tests.integration.cli.programs import Ran, meterd


pytestmark = pytest.mark.slow

KEY = "sk_test_PLANTED1234567890"


async def smoke(fake: FakeStripe, *options: str, key: str = KEY) -> Ran:
    """Run the command against the fake account."""
    settings = {"METERD_STRIPE_API_KEY": key, "METERD_STRIPE_API_BASE": fake.url}
    return await meterd("stripe", "smoke", *options, settings=settings)


def left_behind(fake: FakeStripe) -> list[str]:
    """Return what of the account is still there to be used or paid."""
    sold = [*fake.objects("product"), *fake.objects("price")]
    return [
        *(each["id"] for each in sold if each["active"]),
        *(each["id"] for each in fake.objects("customer") if not each.get("deleted")),
        *(each["id"] for each in fake.objects("subscription") if each["status"] != "canceled"),
        *(each["id"] for each in fake.objects("invoice") if each["billing_reason"] == "manual"),
    ]


async def test_a_sandbox_is_walked_through_and_left_as_it_was() -> None:
    """Each step is what charging relies on; afterwards nothing is active, twice the same."""
    async with open_fake_stripe(seed=1) as fake:
        first = await smoke(fake, "--apply", "--json")
        again = await smoke(fake, "--apply")
        left = left_behind(fake)

    assert first.code == 0, first.out + first.err
    steps = json.loads(first.out)["steps"]
    assert [step["what"] for step in steps if not step["is_fine"]] == []
    assert len(steps) == 15
    assert (again.code, again.out.count("FAILED")) == (0, 0)
    assert left == []
    assert KEY not in first.out + first.err + again.out + again.err


async def test_a_step_that_fails_ends_the_run_and_what_was_made_is_taken_away() -> None:
    """A sandbox is shared: who tries something leaves no half of it."""
    async with open_fake_stripe(seed=1) as fake:
        fake.faults.fail_next(
            *[RequestFault.ERROR_BEFORE] * 3, method="POST", path="^/v1/invoiceitems$"
        )
        ran = await smoke(fake, "--apply", "--json")
        left = left_behind(fake)

    failed = [step for step in json.loads(ran.out)["steps"] if not step["is_fine"]]
    assert ran.code == 1
    assert [step["what"] for step in failed] == [
        "an invoice item, once for one key, found by its name"
    ]
    assert "500" in failed[0]["detail"]
    assert left == []


@pytest.mark.parametrize("key", ["sk_live_1", "rk_live_1", "sk_1", "whsec_1", " sk_test_1"])
async def test_whatever_is_no_test_key_is_refused_before_anything_is_asked(key: str) -> None:
    """Real customers live in the account of a live key."""
    async with open_fake_stripe(seed=1) as fake:
        ran = await smoke(fake, "--apply", key=key)
        asked = len(fake.requests)

    assert (ran.code, asked) == (2, 0)
    assert key not in ran.out + ran.err


async def test_without_apply_nothing_is_asked() -> None:
    """Who only wants to see what it does touches nothing."""
    async with open_fake_stripe(seed=1) as fake:
        ran = await smoke(fake)

    assert (ran.code, len(fake.requests)) == (0, 0)
    assert "--apply" in ran.out
