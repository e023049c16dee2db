"""What is answered with 2xx is committed: until it is, no route that makes facts says so."""

# ruff: noqa: ARG001  # asking for autojump_clock is what makes the time virtual

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from meterd.web.openapi_routes import ROUTES
from tests.served import World, open_world


ADMIN = "/admin/v1/organizations"
ORGANIZATION = f"{ADMIN}/<organization_id>"

FACTS: dict[tuple[str, str], Any] = {
    ("POST", "/v1/tasks"): {"task_id": "new", "agent_id": "b"},
    ("POST", "/v1/tasks/<path:task_id>/heartbeat"): {"elapsed_ms": 7},
    ("POST", "/v1/tasks/<path:task_id>/finish"): {"elapsed_ms": 8, "outcome": "succeeded"},
    ("POST", "/v1/events"): {"id": "new", "resource_type": "api_call"},
    ("POST", "/v1/events/<path:event_id>/void"): {"reason": "test"},
    ("PUT", "/v1/settings"): {"overage_cap_usd": "5.00"},
    ("PATCH", ORGANIZATION): {"name": "New"},
    ("POST", f"{ORGANIZATION}/adjustments"): {"agent_ms": 60_000, "reason": "test"},
}
"""Routes that are answered when the ledger has committed what they decided."""

ELSEWHERE = (
    *("/v1/usage/live/ticket", "/v1/keys", "/v1/webhook-endpoints", "/v1/billing", "/api/webhooks"),
    *("/admin/v1/actors", "/admin/v1/charges", "/admin/v1/jobs", "/admin/v1/reconcile"),
    *("/admin/v1/stripe", "/admin/v1/users", f"{ORGANIZATION}/keys", f"{ORGANIZATION}/billing"),
)
"""What writes in a statement of its own and awaits it, or keeps nothing."""


@pytest.fixture
async def world(autojump_clock: MockClock) -> AsyncIterator[World]:
    """Give a meterd with an organization, a running task `t` and an event `e`."""
    async with open_world(ack_timeout_ms=500) as world:
        await world.add("org_1")
        yield world


def test_every_route_that_changes_something_is_accounted_for() -> None:
    """A new one is asked while nothing can be committed, or says here what it does instead."""
    unknown = [
        (route.method, route.path)
        for route in ROUTES
        if route.method != "GET"
        and (route.method, route.path) not in FACTS
        and not route.path.startswith(ELSEWHERE)
        and route.path != ADMIN
    ]

    assert unknown == []


@pytest.mark.parametrize(("method", "path"), FACTS)
async def test_nothing_is_answered_with_2xx_before_it_is_committed(
    autojump_clock: MockClock, world: World, method: str, path: str
) -> None:
    """Nor is the same thing asked again; when the store is back, the answer comes."""
    key = await world.key("agent", "read", "manage")
    task, event = {"task_id": "t", "agent_id": "a"}, {"id": "e", "resource_type": "api_call"}
    assert (await world.ask("POST", "/v1/tasks", key, content=task)).status_code == 201
    assert (await world.ask("POST", "/v1/events", key, content=event)).status_code == 200
    names = {"<path:task_id>": "t", "<path:event_id>": "e", "<organization_id>": "org_1"}
    place = path
    for name, value in names.items():
        place = place.replace(name, value)

    async def asked() -> Any:
        if place.startswith("/admin"):
            return await world.admin(method, place, content=FACTS[method, path])
        return await world.ask(method, place, key, content=FACTS[method, path])

    world.store.holds_flushes = True
    held = [await asked(), await asked()]
    world.store.holds_flushes = False
    with trio.fail_after(60):
        answer = await asked()

    assert [(each.status_code, each.data["code"]) for each in held] == [
        (503, "store_unavailable")
    ] * 2
    assert [int(each.headers["retry-after"]) > 0 for each in held] == [True, True]
    assert answer.status_code in (200, 201)
