"""Every write of an operator is in the audit log: who, why, what it was and what it became."""

from __future__ import annotations

from typing import Any

import pytest

from meterd.core.units import INSTANT_MS_MAX
from meterd.web.openapi_routes import ROUTES
from tests.integration.service.test_stripe import Shop, shop


__all__ = ["shop"]

pytestmark = [
    pytest.mark.slow,
    # Stripe's client hands httpx its body in an outdated way.
    pytest.mark.filterwarnings("ignore:Use .content=:DeprecationWarning"),
]

ORGANIZATION = "/admin/v1/organizations/<organization_id>"
ACTOR = "/admin/v1/actors/<path:address>"

WRITES = {
    ("POST", "/admin/v1/organizations"): "organization.create",
    ("PATCH", ORGANIZATION): "organization.change",
    ("POST", f"{ORGANIZATION}/adjustments"): "organization.adjust",
    ("POST", f"{ORGANIZATION}/keys"): "key.create",
    ("DELETE", f"{ORGANIZATION}/keys/<key_id>"): "key.revoke",
    ("POST", f"{ACTOR}/restart"): "actor.restart",
    ("POST", f"{ACTOR}/release"): "actor.release",
    ("POST", f"{ACTOR}/passivate"): "actor.passivate",
    ("POST", f"{ACTOR}/trace"): "actor.trace",
    ("DELETE", "/admin/v1/users/<organization_id>/<path:user_id>"): "user.erase",
    ("POST", "/admin/v1/jobs/<name>/run"): "job.run",
    ("POST", "/admin/v1/reconcile/ledger"): "reconcile.ledger",
    ("POST", "/admin/v1/reconcile/stripe"): "reconcile.stripe",
    ("POST", "/admin/v1/stripe/events/<event_id>/retry"): "stripe.retry",
}

ELSEWHERE = {
    # They change nothing here: Stripe's page does, and its events are believed nothing.
    ("POST", f"{ORGANIZATION}/billing/checkout"),
    ("POST", f"{ORGANIZATION}/billing/portal"),
    # The audit of charges is part of the contract of their store.
    ("POST", "/admin/v1/charges/<charge_id>/release"),
    ("POST", "/admin/v1/charges/<charge_id>/void"),
}


def test_every_route_that_writes_is_looked_at() -> None:
    """A new one is audited, or says here why not."""
    routes = {(route.method, route.path) for route in ROUTES if route.path.startswith("/admin")}

    assert {each for each in routes if each[0] != "GET"} == WRITES.keys() | ELSEWHERE


async def test_who_did_what_and_why(shop: Shop) -> None:
    """Each write once, with the operator's key, a reason and an id that is in time's order."""
    http = shop.service.http
    first = (await http.get("/admin/v1/audit?limit=1000")).json()["data"]
    key = (await http.post("/admin/v1/organizations/acme/keys", json={"scopes": ["agent"]})).json()
    address = "/admin/v1/actors/organization/acme"
    asked: list[tuple[str, str, dict[str, Any] | None]] = [
        ("POST", "/admin/v1/organizations", {"id": "other", "name": "O", "plan": "pro"}),
        ("PATCH", "/admin/v1/organizations/acme", {"name": "Acme 2", "reason": "renamed"}),
        (
            "POST",
            "/admin/v1/organizations/acme/adjustments",
            {"agent_ms": 60_000, "reason": "owed"},
        ),
        ("DELETE", f"/admin/v1/organizations/acme/keys/{key['id']}", None),
        ("DELETE", f"/admin/v1/organizations/acme/keys/{key['id']}", None),
        ("POST", f"{address}/restart", {"reason": "looked odd"}),
        ("POST", f"{address}/release", None),
        ("POST", f"{address}/trace", None),
        ("POST", f"{address}/passivate", None),
        ("DELETE", "/admin/v1/users/acme/jane?reason=asked", None),
        ("POST", "/admin/v1/jobs/retention/run", None),
        ("POST", "/admin/v1/reconcile/ledger", None),
        ("POST", "/admin/v1/reconcile/stripe", None),
        ("POST", "/admin/v1/stripe/events/evt_none/retry", None),
    ]
    for method, path, body in asked:
        answer = (
            await http.request(method, path, json=body)
            if body
            else await http.request(method, path)
        )
        assert answer.status_code < 300 or "evt_none" in path, (path, answer.text)
    known = {entry["id"] for entry in first}
    entries = [
        entry
        for entry in (await http.get("/admin/v1/audit?limit=1000")).json()["data"]
        if entry["id"] not in known and entry["actor"] != "meterd"
    ]
    found = {entry["action"]: entry for entry in entries}

    assert found.keys() == set(WRITES.values())
    assert len(entries) == len(found), "revoking twice is one revocation"
    for entry in entries:
        assert entry["actor"] == "key_bootstrap", entry
        assert entry["reason"], entry
        at_ms = int(entry["id"].removeprefix("aud_")[:12], 16)
        assert 1_600_000_000_000 < at_ms < INSTANT_MS_MAX, entry
    assert found["organization.change"]["before"] != found["organization.change"]["after"]
    assert found["key.revoke"]["before"]["revoked"] is False
    assert found["key.revoke"]["after"]["revoked"] is True
    assert found["user.erase"]["reason"] == "asked"
    assert "jane" not in str(found["user.erase"])
