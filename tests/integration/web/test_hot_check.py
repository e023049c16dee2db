"""A check asked again on one connection: always what a new question would be told."""

# ruff: noqa: ARG001  # asking for autojump_clock is what makes the time virtual

from __future__ import annotations

import json
import random
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
import trio

from meterd.adapters.ids import IdSource
from meterd.web.front.hot import HotRequest, HotRoute, Repeatable
from meterd.web.reply import RequestIds, new_request_id
from tests.served import World, open_front, open_world


@asynccontextmanager
async def asking(world: World, key: str) -> AsyncIterator[httpx.AsyncClient]:
    """Give a client with one connection, which has asked often enough to be in the lane."""
    async with (
        open_front(world) as port,
        httpx.AsyncClient(
            trust_env=False,
            base_url=f"http://127.0.0.1:{port}",
            headers={"authorization": f"Bearer {key}"},
            limits=httpx.Limits(max_connections=1),
        ) as client,
    ):
        for _ in range(3):
            assert (await client.get("/v1/quota/check")).status_code == 200
        yield client


async def test_a_suspension_is_seen_by_the_next_check() -> None:
    """And its end as well."""
    async with open_world() as world:
        await world.add()
        async with asking(world, await world.key("read")) as client:
            for is_suspended, status in ((True, 402), (False, 200), (False, 200)):
                change = {"suspended": is_suspended, "reason": "x"}
                await world.admin("PATCH", "/admin/v1/organizations/org_1", content=change)
                answer = await client.get("/v1/quota/check")
                assert answer.status_code == status, answer.text


async def test_a_revoked_key_is_refused_at_the_next_check() -> None:
    """The template was made for whoever the key was."""
    async with open_world() as world:
        await world.add()
        stored, text = await world.services.keyring.create(
            "org_1", scopes=["read"], created_by="key_test"
        )
        async with asking(world, text) as client:
            await world.services.keyring.revoke("org_1", stored.id)

            assert (await client.get("/v1/quota/check")).status_code == 401


async def test_use_that_is_reported_is_seen_by_the_next_check() -> None:
    """By heartbeats and starts of others."""
    async with open_world() as world:
        await world.add()
        key = await world.key("agent", "read")
        async with asking(world, key) as client:
            await world.ask("POST", "/v1/tasks", key, content={"task_id": "t", "agent_id": "a"})
            for elapsed_ms in (60_000, 120_000):
                content = {"elapsed_ms": elapsed_ms}
                await world.ask("POST", "/v1/tasks/t/heartbeat", key, content=content)
                quota = (await client.get("/v1/quota/check")).json()
                assert quota["agent_minutes"]["used_ms"] == elapsed_ms
                assert quota["agents"]["active"] == 1


async def test_an_organization_that_left_memory_is_read_again() -> None:
    """What happens to it then must not be missed by who remembers how it was."""
    async with open_world() as world:
        await world.add()
        cells = world.services.organizations.cells
        async with asking(world, await world.key("read")) as client:
            assert cells.passivate("org_1")

            assert (await client.get("/v1/quota/check")).status_code == 200
            assert cells.activation.loads == 2


def check(key: str, agent_id: str | None = None) -> HotRequest:
    """Return a check as the front door would ask it."""
    return HotRequest(
        route=HotRoute.QUOTA_CHECK,
        method="GET",
        path="/v1/quota/check",
        query="" if agent_id is None else f"agent_id={agent_id}",
        agent_id=agent_id,
        task_id=None,
        authorization=f"Bearer {key}",
        body=b"",
        client_address="127.0.0.1",
    )


def parts(answer: bytes) -> tuple[list[bytes], object]:
    """Return an answer's header lines, its request id aside, and its body."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-length: %d" % len(body) in head
    lines = [line for line in head.split(b"\r\n") if not line.startswith(b"x-request-id: ")]
    assert len(lines) == head.count(b"\r\n")
    return lines, json.loads(body)


@pytest.mark.parametrize("plan", ["free", "starter", "enterprise"])
@pytest.mark.parametrize("seed", range(3))
async def test_an_answer_given_again_is_the_one_a_new_question_gets_at_that_instant(
    autojump_clock: trio.abc.Clock, plan: str, seed: int
) -> None:
    """Through thresholds and limits, silence and loss of tasks, whole and odd milliseconds."""
    chance = random.Random(seed)
    name = "org_1"
    async with open_world(task_timeout_ms=900_000) as world:
        await world.add(name, plan=plan, contract={"agent_minutes": 90} if seed % 2 else None)
        key = await world.key("agent", "read", organization_id=name)
        for number in range(3):
            content = {"task_id": f"t{number}", "agent_id": f"a{number}"}
            await world.ask("POST", "/v1/tasks", key, content=content)
        hot_path = world.web.hot_path
        standing: dict[str | None, Repeatable] = {}
        repeated = 0
        for step in range(150):
            await trio.sleep(chance.choice((0.001, 0.05, 1, 2.5, 60, 400)) * chance.random())
            agent_id = chance.choice((None, "a1", "new"))
            fresh = hot_path(check(key, agent_id))
            if agent_id in standing and (again := standing[agent_id].again()) is not None:
                text = fresh.answer if isinstance(fresh, Repeatable) else fresh
                assert isinstance(text, bytes)
                assert parts(again) == parts(text), step
                repeated += 1
            if isinstance(fresh, Repeatable):
                standing[agent_id] = fresh
            if chance.random() < 0.2:
                report = {"elapsed_ms": step * 10_000}
                await world.ask("POST", "/v1/tasks/t1/heartbeat", key, content=report)
        assert repeated > 10


def test_request_ids_never_repeat_and_have_the_form_of_all_others() -> None:
    """Many in a millisecond, over many milliseconds, beside the ids of other requests."""
    at_ms = 0
    ids = IdSource(lambda: at_ms, random.Random(1))
    names = RequestIds(ids)
    made: list[bytes] = []
    others: set[bytes] = set()
    for at_ms in range(1_781_000_000_000, 1_781_000_000_200):
        made += [names.at(at_ms) for _ in range(100)]
        others |= {new_request_id(ids).encode() for _ in range(10)}

    assert len(set(made)) == len(made)
    assert not set(made) & others
    for one in made:
        assert [len(part) for part in one.split(b"-")] == [8, 4, 4, 4, 12]
        assert uuid.UUID(one.decode()).version == 7
        assert uuid.UUID(one.decode()).variant == uuid.RFC_4122
