"""`/v1/settings` on the real application: what a customer may decide, and what it changes."""

from __future__ import annotations

from typing import Any

import pytest

from tests.served import World, open_world


ROUTE = "/v1/settings"
DEFAULTS = {"overage_cap_usd": None, "thresholds": [50, 75, 80, 90, 100, 110]}


async def put(world: World, key: str, **content: Any) -> Any:
    """Change settings and return the answer."""
    return await world.ask("PUT", ROUTE, key, content=content)


async def test_settings_are_read_changed_in_part_and_kept() -> None:
    """What is not named stays; the audit log names the key that did it."""
    async with open_world() as world:
        await world.add()
        key = await world.key("manage")
        assert (await world.ask("GET", ROUTE, key)).data == DEFAULTS
        changed = await put(world, key, overage_cap_usd="12.5")
        assert changed.status_code == 200
        assert changed.data == {**DEFAULTS, "overage_cap_usd": "12.50"}
        again = await put(world, key, thresholds=[90, 20])
        assert again.data == {"overage_cap_usd": "12.50", "thresholds": [20, 90]}
        assert (await put(world, key, overage_cap_usd=None)).data["overage_cap_usd"] is None
        actions = [entry.action for _, entry in world.store.database.audits.values()]
        assert actions.count("organization.settings") == 3


async def test_a_cap_refuses_with_its_own_code() -> None:
    """The 429 says whose limit it is, so that nobody upgrades for nothing."""
    async with open_world() as world:
        await world.add(contract={"agent_minutes": 0})
        await world.add("org_2", "enterprise")
        manager = await world.key("manage", organization_id="org_2")
        agent = await world.key("agent", organization_id="org_2")
        assert (await world.ask("GET", "/v1/quota/check", agent)).status_code == 200
        await put(world, manager, overage_cap_usd="0")
        refused = await world.ask("GET", "/v1/quota/check", agent)
        assert refused.status_code == 429
        assert (refused.data["code"], refused.data["title"]) == (
            "overage_cap_reached",
            "Overage cap reached",
        )
        start = await world.ask("POST", "/v1/tasks", agent, content={"agent_id": "a"})
        assert start.data["code"] == "overage_cap_reached"
        quota = await world.ask("GET", "/v1/quota", agent)
        assert (quota.data["allowed"], quota.data["code"], quota.data["state"]) == (
            False,
            "overage_cap_reached",
            "unlimited",
        )
        debit = {"agent_ms": 60_000, "reason": "test"}
        path = "/admin/v1/organizations/org_2/adjustments"
        assert (await world.admin("POST", path, content=debit)).data["code"] == (
            "exceeds_overage_cap"
        )


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"overage_cap_usd": 5},
        {"overage_cap_usd": "-1"},
        {"overage_cap_usd": "1.005"},
        {"overage_cap_usd": "1e9"},
        {"overage_cap_usd": "10000001"},
        {"thresholds": [0]},
        {"thresholds": [111]},
        {"thresholds": [50, 50]},
        {"thresholds": list(range(1, 12))},
        {"thresholds": None},
        {"thresholds": ["50"]},
        {"surprise": 1},
    ],
)
async def test_settings_that_make_no_sense_are_refused(content: dict[str, Any]) -> None:
    """422, and nothing changes."""
    async with open_world() as world:
        await world.add()
        key = await world.key("manage")
        answer = await put(world, key, **content)
        assert answer.status_code == 422, answer.data
        assert answer.data["errors"]
        assert (await world.ask("GET", ROUTE, key)).data == DEFAULTS


async def test_only_a_manager_may_see_or_change_settings() -> None:
    """An agent's or a reader's key must not lift a cap."""
    async with open_world() as world:
        await world.add()
        key = await world.key("agent", "read")
        assert (await world.ask("GET", ROUTE, key)).status_code == 403
        assert (await put(world, key, overage_cap_usd=None)).status_code == 403
        assert (await world.ask("GET", ROUTE)).status_code == 401
        assert (await world.admin("GET", ROUTE)).status_code == 403
