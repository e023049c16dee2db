"""The real service charges a closed period at a fake Stripe, and opens Stripe's pages."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import pytest
import trio

from meterd.testing.fake_stripe import RequestFault
from tests.integration.service.harness import ADMIN_KEY, Service, running_meterd
from tests.integration.service.test_stripe import Shop, shop


__all__ = ["shop"]

pytestmark = [
    pytest.mark.slow,
    # The client hands httpx its body in an outdated way.
    pytest.mark.filterwarnings("ignore:Use .content=:DeprecationWarning"),
]

CONTRACT = {"agent_minutes": 100, "grace_percent": 100}


async def charges(service: Service, **query: str) -> list[dict[str, Any]]:
    """Return the charges as operators see them."""
    answer = await service.http.get("/admin/v1/charges", params=query)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["data"]
    return found


async def use_and_subscribe(shop: Shop) -> None:
    """Have acme use 20 minutes too many on an operator's Pro, then subscribe: its month ends."""
    http = shop.service.http
    changed = await http.patch(
        "/admin/v1/organizations/acme", json={"plan": "pro", "contract": CONTRACT}
    )
    assert changed.status_code == 200, changed.text
    assert (await shop.service.adjust("acme", 120 * 60_000)).status_code == 201
    await shop.subscribe("pro")
    await shop.until_quiet()


async def is_pushed(shop: Shop) -> bool:
    """Tell whether acme's charge is an invoice item."""
    return [each["state"] for each in await charges(shop.service)] == ["pushed"]


async def test_closed_period_becomes_one_invoice_item_although_replies_are_lost(
    shop: Shop,
) -> None:
    """The reply of the creation is lost, every time it is asked under the first key."""
    shop.fake.faults.fail_next(
        *[RequestFault.DROP_AFTER] * 3, method="POST", path="^/v1/invoiceitems$"
    )
    await use_and_subscribe(shop)
    await shop.until(lambda: is_pushed(shop))

    (charge,) = await charges(shop.service, state="pushed", organization_id="acme")
    (item,) = shop.fake.objects("invoiceitem")
    assert (charge["amount_cents"], charge["quantity"], charge["attempt"]) == (100, 20, 1)
    assert (item["id"], item["amount"]) == (charge["invoice_item_id"], 100)
    assert item["metadata"]["meterd_charge"] == charge["id"]
    refused = await shop.service.http.post(f"/admin/v1/charges/{charge['id']}/void")
    assert (refused.status_code, refused.json()["code"]) == (409, "charge_not_held")
    unknown = await shop.service.http.post("/admin/v1/charges/chg_unknown/release")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "charge_unknown")


async def test_reconciliation_over_http_tells_and_repairs(shop: Shop) -> None:
    """A subscription made while webhooks were lost is followed by one call."""
    shop.fake.faults.lose_rate = 1
    await shop.subscribe("pro")

    dry = await shop.service.http.post("/admin/v1/reconcile/stripe?dry_run=true")
    before = (await shop.organization())["plan"]
    real = await shop.service.http.post("/admin/v1/reconcile/stripe")

    assert (dry.status_code, real.status_code) == (200, 200)
    assert [each["kind"] for each in dry.json()["differences"]] == ["subscription_unseen"]
    assert (before, (await shop.organization())["plan"]) == ("free", "pro")
    assert (real.json()["repaired"], real.json()["stopped"]) == (1, None)
    found = (await shop.service.http.get("/admin/v1/findings")).json()["data"]
    assert [each["kind"] for each in found] == ["stripe_subscription_unseen"]


async def test_reconciliation_by_command_asks_the_running_meterd(shop: Shop) -> None:
    """What it cannot repair is exit code 1; without an admin key it says what to set."""
    environment = {**os.environ, "METERD_ADMIN_KEY": ADMIN_KEY, "METERD_URL": shop.service.url}
    command = [sys.executable, "-m", "meterd", "reconcile", "stripe"]

    async def run(*options: str) -> tuple[int, str]:
        done = await trio.run_process(
            [*command, *options], capture_stdout=True, check=False, env=environment
        )
        return done.returncode, done.stdout.decode()

    agreed = await run()
    nobodys: Any = {"customer": shop.customer, "items": [{"price": shop.prices["pro"]}]}
    await shop.api.v1.subscriptions.create_async(nobodys)
    dry = await run("--dry-run")
    told = await run("--json")
    del environment["METERD_ADMIN_KEY"]
    refused = await run()

    assert agreed[0] == 0
    assert agreed[1].startswith("Σ charges $0.00 = Σ invoice items $0.00\n")
    assert agreed[1].endswith("0 differences, 0 repaired, 0 lost events received\n")
    assert dry[0] == told[0] == 1
    assert dry[1].startswith("subscription_orphan: - sub_")
    assert json.loads(told[1])["differences"][0]["kind"] == "subscription_orphan"
    assert refused[0] == 2


async def test_organization_subscribes_on_stripe_s_page_and_changes_in_the_portal(
    shop: Shop,
) -> None:
    """Its customer is made once, and the checkout is refused when it would pay twice."""
    service = shop.service
    manage = {"authorization": f"Bearer {await service.key('acme', 'manage')}"}
    read = {"authorization": f"Bearer {await service.key('acme', 'read')}"}
    starter = shop.prices["starter"]
    await shop.api.v1.prices.update_async(starter, {"lookup_key": "meterd_starter_monthly"})
    await shop.api.v1.billing_portal.configurations.create_async(
        {"features": {"invoice_history": {"enabled": True}}}
    )

    forbidden = await service.http.post("/v1/billing/checkout", headers=read)
    not_sold = await service.http.post(
        "/v1/billing/checkout", headers=manage, json={"plan": "enterprise"}
    )
    bad = await service.http.post(
        "/v1/billing/checkout", headers=manage, json={"return_url": "javascript:alert(1)"}
    )
    opened = await service.http.post(
        "/v1/billing/checkout", headers=manage, json={"return_url": "https://app.example/plan"}
    )
    assert (forbidden.status_code, not_sold.status_code, bad.status_code) == (403, 409, 422)
    assert not_sold.json()["code"] == "plan_not_for_sale"
    assert opened.status_code == 201, opened.text
    (session,) = shop.fake.objects("checkout.session")
    assert opened.json() == {"url": session["url"]}
    shop.fake.complete_checkout(session["id"])
    await shop.fake.settle()
    await shop.until_quiet()

    again = await service.http.post("/v1/billing/checkout", headers=manage)
    portal = await service.http.post("/v1/billing/portal", headers=manage)
    by_admin = await service.http.post("/admin/v1/organizations/acme/billing/portal")
    acme = await shop.organization()
    assert (acme["plan"], acme["stripe_customer_id"]) == ("starter", session["customer"])
    assert (again.status_code, again.json()["code"]) == (409, "already_subscribed")
    assert (portal.status_code, by_admin.status_code) == (201, 201)
    made = [each for each in shop.fake.objects("customer") if each["name"] == "Acme"]
    assert [each["metadata"] for each in made] == [{"organization_id": "acme"}]


async def test_without_a_key_billing_is_off_and_everything_else_works(database_url: str) -> None:
    """Pages and reconciliation say so; usage is metered, charges can be listed."""
    async with running_meterd("--database-url", database_url) as service:
        key = await service.organization("acme", "pro")
        manage = {"authorization": f"Bearer {key}"}

        answers = [
            await service.http.post("/v1/billing/checkout", headers=manage),
            await service.http.post("/v1/billing/portal", headers=manage),
            await service.http.post("/admin/v1/reconcile/stripe"),
        ]

        assert [each.status_code for each in answers] == [409, 409, 409]
        assert {each.json()["code"] for each in answers} == {"billing_off"}
        assert await charges(service) == []
        assert (await service.adjust("acme", 60_000)).status_code == 201


@pytest.mark.parametrize("shop", [{"METERD_OVERAGE_REVIEW": "all"}], indirect=True)
async def test_whoever_releases_or_voids_a_charge_is_in_the_audit_log(shop: Shop) -> None:
    """Who, why, from what to what; an order that is refused leaves no entry."""
    await use_and_subscribe(shop)

    async def are_held(count: int = 1) -> bool:
        return len(await charges(shop.service, state="review")) == count

    await shop.until(are_held)
    (first,) = await charges(shop.service)
    http = shop.service.http
    late = {"agent_ms": 600_000, "reason": "late", "period": first["billing_period"]}
    assert (await http.post("/admin/v1/organizations/acme/adjustments", json=late)).is_success
    await shop.until(lambda: are_held(2))
    second = (await charges(shop.service))[0]

    written_off = await http.post(
        f"/admin/v1/charges/{first['id']}/void", json={"reason": "a gift to acme"}
    )
    again = await http.post(f"/admin/v1/charges/{first['id']}/void")
    released = await http.post(f"/admin/v1/charges/{second['id']}/release")
    entries = (await http.get("/admin/v1/audit")).json()["data"]
    ours = [each for each in entries if each["action"].startswith("charge.")]

    assert (written_off.status_code, again.status_code, released.status_code) == (200, 409, 200)
    assert [(each["action"], each["reason"], each["actor"][:4]) for each in ours] == [
        ("charge.release", "released", "key_"),
        ("charge.void", "a gift to acme", "key_"),
    ]
    assert [(each["before"]["state"], each["after"]["state"]) for each in ours] == [
        ("review", "new"),
        ("review", "void"),
    ]
    assert [each["before"]["amount_cents"] for each in ours] == [50, 100]
    assert {each["organization_id"] for each in ours} == {"acme"}
