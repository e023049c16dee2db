"""`WS /v1/usage/live` over real sockets: who gets in, what they see and when, who is dropped."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from websockets.exceptions import ConnectionClosed
from websockets.trio.client import ClientConnection, connect

from meterd.web.services import LiveServices
from meterd.web.stream_transport import CLOSE_SLOW_READER, Outbox
from meterd.web.usage_live import UNTAKEN_MAX, LiveSession
from tests.served import PAGE, World, open_front, open_world


carriers = pytest.mark.parametrize("is_hot", [True, False], ids=["front door", "quart"])


@asynccontextmanager
async def look(
    port: int, key: str | None = None, query: str = "", headers: Mapping[str, str] | None = None
) -> AsyncIterator[ClientConnection]:
    """Connect a viewer."""
    sent = dict(headers or {})
    if key is not None:
        sent["authorization"] = f"Bearer {key}"
    with trio.fail_after(20):
        async with connect(
            f"ws://127.0.0.1:{port}/v1/usage/live{query}", additional_headers=sent, proxy=None
        ) as stream:
            yield stream


async def hear(stream: ClientConnection) -> Any:
    """Return the next message."""
    return json.loads(await stream.recv())


async def closed(stream: ClientConnection) -> int | None:
    """Return the code with which the server closes."""
    try:
        while True:
            await stream.recv()
    except ConnectionClosed as end:
        return None if end.rcvd is None else end.rcvd.code


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """Give a meterd with one organization of 100 minutes."""
    async with open_world() as world:
        await world.add(contract={"agent_minutes": 100})
        yield world


async def use(world: World, minutes: int) -> None:
    """Book agent time as an operator does."""
    body = {"agent_ms": minutes * 60_000, "reason": "test"}
    answer = await world.admin("POST", "/admin/v1/organizations/org_1/adjustments", content=body)
    assert answer.status_code == 201, answer.data


@carriers
async def test_a_viewer_sees_a_snapshot_then_what_changes(world: World, is_hot: bool) -> None:
    """First the whole quota object, then nothing until something is different."""
    key = await world.key("read")
    async with open_front(world, is_hot=is_hot) as port, look(port, key) as stream:
        first = await hear(stream)
        quota = (await world.ask("GET", "/v1/quota", key)).data
        assert first.pop("type") == "snapshot"
        assert {**first, "as_of": ""} == {**quota, "as_of": ""}
        with trio.move_on_after(1.2) as silence:
            await stream.recv()
        assert silence.cancelled_caught
        await use(world, 10)
        changed = await hear(stream)
        assert changed["agent_minutes"]["used"] == 10


async def test_a_crossed_line_is_seen_at_once_with_its_alerts(world: World) -> None:
    """A state change does not wait for the next second; alerts come as webhooks tell them."""
    key = await world.key("read")
    async with open_front(world) as port, look(port, key) as stream:
        assert (await hear(stream))["state"] == "ok"
        began = trio.current_time()
        await use(world, 85)
        alerts = [await hear(stream) for _ in range(3)]
        changed = await hear(stream)
        assert trio.current_time() - began < 0.9
        assert [alert["data"]["percent"] for alert in alerts] == [50, 75, 80]
        assert {(alert["type"], alert["event"]) for alert in alerts} == {
            ("alert", "usage.threshold_reached")
        }
        assert (changed["type"], changed["state"]) == ("snapshot", "warning")


async def test_figures_come_at_most_once_a_second(world: World) -> None:
    """Twenty changes in two seconds are three snapshots at most, the last one being the truth."""
    key = await world.key("read")
    async with open_front(world) as port, look(port, key) as stream:
        await hear(stream)
        seen = []

        async def keep() -> None:
            while True:
                seen.append(await hear(stream))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep)
            for _ in range(20):
                await use(world, 1)
                await trio.sleep(0.1)
            await trio.sleep(1.2)
            nursery.cancel_scope.cancel()
        assert 2 <= len(seen) <= 5
        assert seen[-1]["agent_minutes"]["used"] == 20


async def test_a_ticket_opens_the_feed_once_from_an_allowed_page(world: World) -> None:
    """A browser cannot send a header, and its address must not hold a key."""
    key = await world.key("read")
    async with open_front(world) as port:
        given = await world.ask("POST", "/v1/usage/live/ticket", key)
        assert given.status_code == 201, given.data
        query = f"?ticket={given.data['ticket']}"
        async with look(port, query=query, headers={"origin": PAGE}) as stream:
            assert (await hear(stream))["organization_id"] == "org_1"
        async with look(port, query=query, headers={"origin": PAGE}) as stream:
            assert await closed(stream) == 4401


async def test_a_ticket_ends_after_a_minute(autojump_clock: object) -> None:
    """Who leaves it lying about has given away nothing."""
    del autojump_clock
    async with open_world() as world:
        await world.add()
        live: LiveServices | None = world.services.live
        assert live is not None
        principal = await world.services.keyring.authenticate(await world.key("read"))
        assert principal is not None
        early, _ = live.tickets.give(principal)
        late, _ = live.tickets.give(principal)
        await trio.sleep(59)
        assert live.tickets.take(early) == principal
        await trio.sleep(1.1)
        assert live.tickets.take(late) is None


@pytest.mark.parametrize("origin", ["https://evil.example", "null", f"{PAGE}.evil.example"])
async def test_a_page_that_is_not_on_the_list_stays_outside(world: World, origin: str) -> None:
    """Even with a good ticket or key: another site's script must not read usage."""
    key = await world.key("read")
    async with open_front(world) as port:
        async with look(port, key, headers={"origin": origin}) as stream:
            assert await closed(stream) == 4403
        given = await world.ask("POST", "/v1/usage/live/ticket", key)
        query = f"?ticket={given.data['ticket']}"
        async with look(port, query=query, headers={"origin": origin}) as stream:
            assert await closed(stream) == 4403


async def test_keys_that_may_not_read_and_keys_in_the_address_stay_outside(world: World) -> None:
    """4403 and 4401; the ticket route refuses with 403 and 401."""
    agent, reader = await world.key("agent"), await world.key("read")
    async with open_front(world) as port:
        async with look(port, agent) as stream:
            assert await closed(stream) == 4403
        async with look(port, query=f"?ticket={reader}") as stream:
            assert await closed(stream) == 4401
        async with look(port, query=f"?key={reader}") as stream:
            assert await closed(stream) == 4401
    assert (await world.ask("POST", "/v1/usage/live/ticket", agent)).status_code == 403
    assert (await world.ask("POST", "/v1/usage/live/ticket")).status_code == 401
    assert (await world.ask("GET", "/v1/usage/live", reader)).status_code == 426


async def test_a_revoked_key_closes_its_viewers_also_those_with_tickets(world: World) -> None:
    """Within a second, as for agents."""
    key = await world.key("read")
    async with open_front(world) as port:
        given = await world.ask("POST", "/v1/usage/live/ticket", key)
        query = f"?ticket={given.data['ticket']}"
        async with look(port, key) as one, look(port, query=query) as other:
            await hear(one)
            await hear(other)
            found = await world.services.keyring.keys_of("org_1", limit=9)
            for stored in found:
                await world.services.keyring.revoke("org_1", stored.id)
            assert await closed(one) == 4401
            assert await closed(other) == 4401


async def test_a_viewer_that_takes_nothing_is_dropped(world: World) -> None:
    """After so many snapshots left lying; before that it holds one of them at most."""
    principal = await world.services.keyring.authenticate(await world.key("read"))
    assert principal is not None
    outbox = Outbox(items_max=100, bytes_max=1_000_000)
    session = LiveSession(outbox, world.services, principal)
    for _ in range(UNTAKEN_MAX):
        session.show(b"snapshot")
        assert len(outbox) == 1
    assert outbox.is_open
    session.show(b"one too many")
    assert outbox.closing is not None
    assert outbox.closing.code == CLOSE_SLOW_READER
    session.on_end(1006)


async def test_who_talks_is_closed(world: World) -> None:
    """Nothing is expected from a viewer."""
    key = await world.key("read")
    async with open_front(world) as port, look(port, key) as stream:
        for _ in range(21):
            await stream.send("hello?")
        assert await closed(stream) == 1008


async def test_the_last_viewer_leaves_nothing_behind(world: World) -> None:
    """No channel, no listener: an organization nobody looks at costs nothing."""
    live = world.services.live
    assert live is not None
    key = await world.key("read")
    async with open_front(world) as port:
        async with look(port, key) as stream:
            await hear(stream)
            assert live.feed.figures["viewers"] == 1
        with trio.fail_after(5):
            while live.feed.figures["organizations"]:  # noqa: ASYNC110 - real sockets
                await trio.sleep(0.01)
    assert world.services.organizations.acknowledgements.listeners("org_1") == ()
