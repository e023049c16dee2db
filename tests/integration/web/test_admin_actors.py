"""Operators look at actors and lay hands on them; all of it is in the audit log."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from websockets.exceptions import ConnectionClosed
from websockets.trio.client import ClientConnection, connect

from meterd.core.commands import Command, Decision, FinishTask, Heartbeat
from meterd.core.decide import decide
from meterd.core.organization import OrganizationState
from tests.served import ADMIN_KEY, World, open_front, open_world


ACTORS = "/admin/v1/actors"
ORG_1 = f"{ACTORS}/organization/org_1"
SECRET = "mk_live_" + "S3cret" * 6 + "AA"


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """Give a meterd with one organization, whose finishing of tasks raises."""
    async with open_world() as world:
        await world.add()

        def decide_badly(state: OrganizationState, command: Command, now_ms: int) -> Decision:
            if isinstance(command, FinishTask):
                raise ZeroDivisionError(f"planted, with {SECRET}")
            return decide(state, command, now_ms)

        world.services.organizations.cells._decide = decide_badly
        yield world


async def crash(world: World) -> None:
    """Let a message fail."""
    key = await world.key("agent")
    await world.ask("POST", "/v1/tasks", key, content={"task_id": "t", "agent_id": "a"})
    body = {"elapsed_ms": 1, "outcome": "succeeded"}
    answer = await world.ask("POST", "/v1/tasks/t/finish", key, content=body)
    assert answer.status_code == 503


async def audited(world: World, action: str) -> list[dict[str, Any]]:
    """Return the entries of the audit log with this action."""
    answer = await world.admin("GET", f"/admin/v1/audit?action={action}")
    assert answer.status_code == 200
    entries: list[dict[str, Any]] = answer.data["data"]
    return entries


async def test_a_quarantined_organization_is_released_by_an_operator(world: World) -> None:
    """Strikes are forgiven, it answers again, and the reason is kept."""
    while (await world.admin("GET", ORG_1)).data["phase"] != "quarantined":
        await crash(world)
        await trio.sleep(0.05)

    answer = await world.admin("POST", f"{ORG_1}/release", content={"reason": "fixed"})
    await trio.sleep(0.1)
    after = await world.admin("GET", ORG_1)

    assert answer.status_code == 200
    assert (after.data["phase"], after.data["strikes"]) == ("ready", 0)
    [entry] = await audited(world, "actor.release")
    assert entry["reason"] == "fixed"
    assert entry["organization_id"] == "org_1"
    assert entry["before"]["phase"] == "quarantined"


async def test_crashes_and_dead_letters_are_shown_without_secrets(world: World) -> None:
    """Where it was raised is named, what looks like a key is masked."""
    await crash(world)
    await trio.sleep(0.1)

    crashes = await world.admin("GET", "/admin/v1/crashes")
    letters = await world.admin("GET", "/admin/v1/dead-letters?address=organization/org_1")

    for shown in (crashes.data["data"][0], letters.data["data"][0]):
        assert shown["address"] == "organization/org_1"
        assert "ZeroDivisionError" in shown["error"]
    assert "decide_badly" in crashes.data["data"][0]["where"]
    assert letters.data["data"][0]["detail"]["command"] == "FinishTask"
    actor = await world.admin("GET", ORG_1)
    assert SECRET not in crashes.raw.decode() + letters.raw.decode() + actor.raw.decode()


async def test_an_idle_organization_leaves_memory_and_a_busy_one_stays(world: World) -> None:
    """Who passivates must not be able to lose anything."""
    idle = await world.admin("POST", f"{ORG_1}/passivate")
    gone = await world.admin("GET", ORG_1)
    key = await world.key("agent")
    await world.ask("POST", "/v1/tasks", key, content={"task_id": "t", "agent_id": "a"})
    busy = await world.admin("POST", f"{ORG_1}/passivate")

    assert (idle.status_code, idle.data["in_memory"]) == (200, False)
    assert (gone.status_code, gone.data["code"]) == (404, "actor_unknown")
    assert (busy.status_code, busy.data["code"]) == (409, "actor_busy")
    assert len(await audited(world, "actor.passivate")) == 2


async def test_an_organization_and_a_service_are_started_again(world: World) -> None:
    """State comes back from the store, a restart is no strike, and nothing stops working."""
    key = await world.key("agent")
    await world.ask("POST", "/v1/tasks", key, content={"task_id": "t", "agent_id": "a"})

    for address in ("organization/org_1", "service/ledger", "service/timers"):
        answer = await world.admin("POST", f"{ACTORS}/{address}/restart")
        assert answer.status_code == 200
    await trio.sleep(0.1)
    seen = {one["address"]: one for one in (await world.admin("GET", ACTORS)).data["data"]}
    beat = await world.ask("POST", "/v1/tasks/t/heartbeat", key, content={"elapsed_ms": 5})

    assert beat.status_code == 200
    for address in ("organization/org_1", "service/ledger", "service/timers"):
        assert (seen[address]["phase"], seen[address]["strikes"]) == ("ready", 0)
        assert seen[address]["restarts"] == 1
    assert len(await audited(world, "actor.restart")) == 3


async def test_a_trace_holds_the_last_messages_while_it_is_on(world: World) -> None:
    """Switched on it writes down messages and outcomes, switched off it forgets them."""
    on = await world.admin("POST", f"{ORG_1}/trace")
    key = await world.key("agent")
    body = {"task_id": "t", "agent_id": "a", "metadata": {"note": SECRET}}
    await world.ask("POST", "/v1/tasks", key, content=body)
    seen = await world.admin("GET", f"{ORG_1}/trace")
    off = await world.admin("POST", f"{ORG_1}/trace", content={"on": False})
    empty = await world.admin("GET", f"{ORG_1}/trace")

    assert on.data["traced"]
    assert {entry["message"].split("(")[0] for entry in seen.data["data"]} == {"StartTask"}
    assert "Started(" in seen.data["data"][-1]["outcome"]
    assert SECRET not in seen.raw.decode()
    assert not off.data["traced"]
    assert empty.data["data"] == []


async def test_actors_are_sorted_by_rate_backlog_age_and_strikes(world: World) -> None:
    """The one in trouble is on the first line."""
    await world.add("org_2")
    await crash(world)
    key = await world.key("agent", organization_id="org_2")
    await world.ask("POST", "/v1/tasks", key, content={"task_id": "t", "agent_id": "a"})
    tops = {}
    async with trio.open_nursery() as nursery:

        async def work() -> None:
            for elapsed_ms in range(1, 1_000):
                body = {"elapsed_ms": elapsed_ms}
                await world.ask("POST", "/v1/tasks/t/heartbeat", key, content=body)

        nursery.start_soon(work)
        for sort in ("rate", "strikes", "age", "backlog"):
            path = f"{ACTORS}?kind=organization&sort={sort}&limit=1"
            [tops[sort]] = (await world.admin("GET", path)).data["data"]
        nursery.cancel_scope.cancel()

    assert tops["rate"]["address"] == "organization/org_2"
    assert tops["rate"]["rate_per_s"] > 0
    assert tops["strikes"]["address"] == "organization/org_1"
    assert tops["age"]["address"] == "organization/org_2"


@pytest.mark.parametrize(
    ("method", "path", "content", "code"),
    [
        ("POST", f"{ACTORS}/organization/nobody/restart", None, "actor_unknown"),
        ("POST", f"{ACTORS}/service/nothing/restart", None, "actor_unknown"),
        ("POST", f"{ACTORS}/service/ledger/passivate", None, "not_for_this_actor"),
        ("POST", f"{ACTORS}/service/ledger/trace", None, "not_for_this_actor"),
        ("POST", f"{ORG_1}/restart", {"reson": "typo"}, "invalid_request"),
        ("POST", f"{ORG_1}/trace", {"on": 1}, "invalid_request"),
        ("POST", f"{ORG_1}/explode", None, "not_found"),
    ],
)
async def test_what_cannot_be_done_says_why(
    world: World, method: str, path: str, content: Any, code: str
) -> None:
    """And leaves no trace in the audit log of something that did not happen."""
    answer = await world.admin(method, path, content=content)

    expected = "method_not_allowed" if code == "not_found" else code
    assert answer.data["code"] in (code, expected)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", f"{ORG_1}/restart"),
        ("POST", f"{ORG_1}/release"),
        ("POST", f"{ORG_1}/passivate"),
        ("POST", f"{ORG_1}/trace"),
        ("GET", f"{ORG_1}/trace"),
        ("GET", "/admin/v1/audit"),
        ("GET", "/admin/v1/dead-letters"),
        ("GET", "/admin/v1/crashes"),
    ],
)
async def test_a_tenants_key_opens_none_of_it(world: World, method: str, path: str) -> None:
    """Whatever its scopes: 403; and 401 without a key."""
    key = await world.key("agent", "read", "manage")

    assert (await world.ask(method, path, key)).status_code == 403
    assert (await world.ask(method, path)).status_code == 401


async def test_while_the_store_is_away_actors_are_still_seen(world: World) -> None:
    """The list and the crashes come from memory; hands on actors wait for the audit log."""
    await crash(world)
    world.store.is_away = True

    listed = await world.admin("GET", ACTORS)
    crashes = await world.admin("GET", "/admin/v1/crashes")

    assert listed.status_code == crashes.status_code == 200
    assert crashes.data["data"]


@asynccontextmanager
async def watching(port: int, key: str, address: str) -> AsyncIterator[ClientConnection]:
    """Open a live trace."""
    with trio.fail_after(20):
        async with connect(
            f"ws://127.0.0.1:{port}{ACTORS}/{address}/trace",
            additional_headers={"authorization": f"Bearer {key}"},
            proxy=None,
        ) as socket:
            yield socket


async def test_a_live_trace_shows_messages_as_they_happen(world: World) -> None:
    """It switches the trace on by itself, and off when the last watcher has left."""
    key = await world.key("agent")
    async with open_front(world) as port:
        async with watching(port, ADMIN_KEY, "organization/org_1") as socket:
            await trio.sleep(0.4)
            await world.ask("POST", "/v1/tasks", key, content={"task_id": "t", "agent_id": "a"})
            message = json.loads(await socket.recv())
        await trio.sleep(1)
        after = await world.admin("GET", ORG_1)

    assert message["type"] == "message"
    assert message["message"].startswith("StartTask(")
    assert not after.data["traced"]
    assert [entry["organization_id"] for entry in await audited(world, "actor.watch")] == ["org_1"]


async def test_a_live_trace_is_capped(world: World) -> None:
    """A thousand messages in a second are not a thousand frames."""
    key = await world.key("agent")
    await world.ask("POST", "/v1/tasks", key, content={"task_id": "t", "agent_id": "a"})
    received = []
    async with (
        open_front(world) as port,
        watching(port, ADMIN_KEY, "organization/org_1") as socket,
    ):
        await trio.sleep(0.4)
        for _ in range(500):
            world.services.organizations.ask_nowait("org_1", Heartbeat("t", 1))
        with trio.move_on_after(1.2):
            while True:
                received.append(json.loads(await socket.recv()))

    assert 0 < len(received) <= 130
    assert any(one["type"] == "skipped" or one.get("skipped") for one in received)


@pytest.mark.parametrize(
    ("who", "address", "close"),
    [
        ("nobody", "organization/org_1", 4401),
        ("tenant", "organization/org_1", 4403),
        ("operator", "organization/nobody", 4404),
        ("operator", "service/ledger", 4404),
    ],
)
async def test_a_live_trace_is_for_operators_and_for_actors_in_memory(
    world: World, who: str, address: str, close: int
) -> None:
    """Anything else is closed with a code that says why."""
    keys = {"nobody": "x" * 40, "tenant": await world.key("read"), "operator": ADMIN_KEY}
    async with open_front(world) as port, watching(port, keys[who], address) as socket:
        with pytest.raises(ConnectionClosed):
            await socket.recv()

    assert socket.close_code == close
