"""What operators see of the actors that deal with Stripe, while Stripe makes trouble."""

from __future__ import annotations

import json
from typing import Any

import pytest

from meterd.testing.fake_stripe import RequestFault
from tests.integration.cli.programs import meterd
from tests.integration.service.harness import Service
from tests.integration.service.test_charges import charges, use_and_subscribe
from tests.integration.service.test_metrics import scraped
from tests.integration.service.test_stripe import Shop, shop


__all__ = ["shop"]

pytestmark = [
    pytest.mark.slow,
    # The client hands httpx its body in an outdated way.
    pytest.mark.filterwarnings("ignore:Use .content=:DeprecationWarning"),
]


async def shown(service: Service, actor: str) -> dict[str, Any]:
    """Return an actor's view as `meterd actors show` prints it."""
    ran = await meterd("actors", "show", actor, "--json", settings={"METERD_URL": service.url})
    assert ran.code == 0, ran.err
    found: dict[str, Any] = json.loads(ran.out)
    return found


async def test_events_that_wait_for_stripe_are_seen_and_gone_when_it_is_back(shop: Shop) -> None:
    """Depth, age, how many failed before, when the next is tried, and that Stripe is away."""
    shop.fake.faults.fail_next(
        *[RequestFault.ERROR_BEFORE] * 1_000, method="GET", path="/v1/subscriptions/"
    )
    await shop.subscribe("starter")

    async def is_away() -> bool:
        view = await shop.service.http.get("/admin/v1/actors/service/stripe")
        state = view.json()["state"]
        return bool(state["away"] and state["retried"] and state["oldest_waiting_ms"] > 1_000)

    await shop.until(is_away)
    view = await shown(shop.service, "service/stripe")
    metrics = await scraped(shop.service)
    shop.fake.faults.clear()
    await shop.until_quiet()

    async def is_over() -> bool:
        state = (await shop.service.http.get("/admin/v1/actors/service/stripe")).json()["state"]
        return not state["away"] and not state["waiting"]

    await shop.until(is_over)
    assert view["mailbox"]["depth"] == view["state"]["waiting"] > 0
    assert view["state"]["next_attempt_at"] is not None
    assert view["state"]["failures_in_a_row"] >= 3
    assert "500" in view["last_error"]
    assert metrics[("meterd_stripe_away",)] == 1
    assert metrics[("meterd_stripe_inbox_waiting",)] > 0
    assert metrics[("meterd_stripe_inbox_oldest_seconds",)] > 1
    assert (await shop.organization())["plan"] == "starter"


async def test_charges_that_wait_are_seen_by_state(shop: Shop) -> None:
    """Stripe answers every look and no push: the charge is counted, with its age and the error."""
    shop.fake.faults.fail_next(
        *[RequestFault.ERROR_BEFORE] * 1_000, method="POST", path="^/v1/invoiceitems$"
    )
    await use_and_subscribe(shop)

    async def is_postponed() -> bool:
        return [each["state"] for each in await charges(shop.service)] == ["pushing"]

    await shop.until(is_postponed)

    async def is_counted() -> bool:
        return (await scraped(shop.service))[("meterd_charges", ("state", "pushing"))] == 1

    await shop.until(is_counted)
    view = await shown(shop.service, "service/charges")
    metrics = await scraped(shop.service)

    assert view["state"]["charges"] == {"pushing": 1}
    assert view["state"]["failures_in_a_row"] >= 1
    assert view["state"]["pushes"] is True
    assert "500" in view["state"]["last_error"]
    assert metrics[("meterd_charges", ("state", "parked"))] == 0
    assert metrics[("meterd_charges_oldest_seconds",)] > 0
