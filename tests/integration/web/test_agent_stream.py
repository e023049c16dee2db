"""The agent stream over real sockets, in the front door and in Quart: the same session."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import trio
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.trio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from tests.served import World, open_front, open_world


carriers = pytest.mark.parametrize("is_hot", [True, False], ids=["front door", "quart"])


@asynccontextmanager
async def open_stream(port: int, key: str | None) -> AsyncIterator[ClientConnection]:
    """Connect a real client."""
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    with trio.fail_after(20):
        async with connect(
            f"ws://127.0.0.1:{port}/v1/agents/stream",
            subprotocols=[Subprotocol("meterd.v1")],
            additional_headers=headers,
            proxy=None,
        ) as stream:
            yield stream


async def hear(stream: ClientConnection) -> dict[str, Any]:
    """Return the next message."""
    message: dict[str, Any] = json.loads(await stream.recv())
    return message


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """Give a meterd with one Starter organization."""
    async with open_world() as world:
        await world.add()
        yield world


@carriers
async def test_a_task_runs_over_the_stream(world: World, is_hot: bool) -> None:
    """Start, report, finish; the subprotocol is spoken."""
    key = await world.key("agent")
    async with open_front(world, is_hot=is_hot) as port, open_stream(port, key) as stream:
        await stream.send('{"type":"start","task_id":"t","agent_id":"a","ref":1}')
        started = await hear(stream)
        await stream.send('{"type":"heartbeat","task_id":"t","elapsed_ms":1000,"ref":"b"}')
        ack = await hear(stream)
        await stream.send('{"type":"finish","task_id":"t","elapsed_ms":2000,"outcome":"failed"}')
        finished = await hear(stream)

    assert stream.subprotocol == "meterd.v1"
    assert (started["type"], started["ref"]) == ("started", 1)
    assert (ack["type"], ack["ref"], ack["metered_ms"]) == ("ack", "b", 1_000)
    assert (finished["type"], finished["outcome"]) == ("finished", "failed")


@carriers
@pytest.mark.parametrize(("scope", "code"), [(None, 4401), ("read", 4403)])
async def test_who_may_not_enter_is_told_by_close_code(
    world: World, is_hot: bool, scope: str | None, code: int
) -> None:
    """4401 for no or a wrong key, 4403 for the wrong scope."""
    key = None if scope is None else await world.key(scope)
    async with open_front(world, is_hot=is_hot) as port, open_stream(port, key) as stream:
        with pytest.raises(ConnectionClosed) as caught:
            await stream.recv()

    assert caught.value.rcvd is not None
    assert caught.value.rcvd.code == code


@carriers
async def test_a_revoked_key_closes_the_stream_within_a_second(world: World, is_hot: bool) -> None:
    """The contract's promise, with a real client."""
    key = await world.key("agent")
    [stored] = await world.services.keyring.keys_of("org_1", limit=9)
    async with open_front(world, is_hot=is_hot) as port, open_stream(port, key) as stream:
        await stream.send('{"type":"check"}')
        await stream.recv()
        now_ms = world.services.clock.now_ms()
        await world.store.revoke_key("org_1", stored.id, at_ms=now_ms)
        with trio.fail_after(1), pytest.raises(ConnectionClosed) as caught:
            await stream.recv()

    assert caught.value.rcvd is not None
    assert caught.value.rcvd.code == 4401


@carriers
async def test_nonsense_is_answered_and_twenty_in_a_row_close_with_1008(
    world: World, is_hot: bool
) -> None:
    """The errors arrive before the close."""
    key = await world.key("agent")
    async with open_front(world, is_hot=is_hot) as port, open_stream(port, key) as stream:
        for _ in range(20):
            await stream.send("nonsense")
        errors = [await hear(stream) for _ in range(20)]
        with pytest.raises(ConnectionClosed) as caught:
            await stream.recv()

    assert {error["code"] for error in errors} == {"bad_frame"}
    assert caught.value.rcvd is not None
    assert caught.value.rcvd.code == 1008


async def test_what_is_owed_is_sent_before_a_clients_close_is_answered(world: World) -> None:
    """A client that reports and leaves still gets its acknowledgement."""
    async with open_front(world) as port, open_stream(port, await world.key("agent")) as stream:
        await stream.send('{"type":"start","task_id":"t","agent_id":"a"}')
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.aclose)
            started = await hear(stream)

    assert started["type"] == "started"


async def test_without_an_upgrade_the_address_says_what_it_is(world: World) -> None:
    """426, for people with curl."""
    async with open_front(world) as port, httpx.AsyncClient(trust_env=False) as client:
        answer = await client.get(f"http://127.0.0.1:{port}/v1/agents/stream")

    assert (answer.status_code, answer.json()["code"]) == (426, "upgrade_required")


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [("/v1/agents/other", 404, "not_found"), ("/v1/quota", 400, "bad_request")],
)
async def test_a_websocket_elsewhere_is_a_problem_like_any_other(
    world: World, path: str, status: int, code: str
) -> None:
    """A client with the wrong address learns that, and no failure of ours is logged."""
    async with open_front(world) as port:
        with pytest.raises(InvalidStatus) as caught:
            async with connect(f"ws://127.0.0.1:{port}{path}", proxy=None):
                pass

    answer = caught.value.response
    body = json.loads(answer.body or b"{}")
    assert (answer.status_code, body["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-request-id"] == body["request_id"]
