"""The hot path and the route, over real sockets: one behaviour."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import httpx
import pytest
import trio

from tests.served import ADMIN_KEY, World, open_front, open_world


CHANGING = {"x-request-id", "date", "content-length", "connection"}
"""Of the last: an application that answers before it has read the body closes, at times."""
JSON = {"content-type": "application/json"}


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """Give a meterd with one organization of each kind that matters here."""
    async with open_world() as world:
        await world.add()
        await world.add("org_full", plan="free", contract={"agent_minutes": 0})
        await world.add("org_open", plan="enterprise")
        await world.add("org_held", plan="pro")
        await world.admin(
            "PATCH", "/admin/v1/organizations/org_held", content={"suspended": True, "reason": "x"}
        )
        yield world


def seen(answer: httpx.Response) -> tuple[int, dict[str, str], object]:
    """Return what two answers to one question must have in common."""
    headers = {k: v for k, v in answer.headers.items() if k not in CHANGING}
    body = json.loads(answer.content)
    for field in ("instance", "request_id", "as_of"):
        body.pop(field, None)
    for quota in (body, body.get("quota", {})):
        quota.pop("as_of", None)
        quota.get("agent_minutes", {}).pop("projected_ms", None)
    assert answer.headers["x-request-id"]
    assert answer.headers["date"].endswith(" GMT")
    return answer.status_code, headers, body


async def both(world: World, method: str, path: str, **fields: object) -> httpx.Response:
    """Ask with and without hot path; return the hot answer, which is the same."""
    async with (
        open_front(world) as hot,
        open_front(world, is_hot=False) as plain,
        httpx.AsyncClient(trust_env=False) as client,
    ):
        first, second = [
            await client.request(method, f"http://127.0.0.1:{port}{path}", **fields)  # type: ignore[arg-type]
            for port in (hot, plain)
        ]
    assert seen(first) == seen(second)
    return first


@pytest.mark.parametrize(
    ("organization_id", "status", "code"),
    [
        ("org_1", 200, None),
        ("org_open", 200, None),
        ("org_full", 429, "plan_limit_reached"),
        ("org_held", 402, "suspended"),
    ],
)
async def test_a_quota_check_is_the_same_both_ways(
    world: World, organization_id: str, status: int, code: str | None
) -> None:
    """Status, headers and body of the allowed, the unlimited, the refused and the suspended."""
    key = await world.key("read", organization_id=organization_id)
    answer = await both(world, "GET", "/v1/quota/check", headers={"authorization": f"Bearer {key}"})

    assert (answer.status_code, answer.json()["code"]) == (status, code)
    is_limited = organization_id != "org_open"
    assert ("ratelimit" in answer.headers) == is_limited


@pytest.mark.parametrize(
    "query", ["?agent_id=a", "?agent_id=", "?agent_id=%00", "?agent_id=a&agent_id=a", "?x=1", "?"]
)
async def test_queries_are_read_the_same_both_ways(world: World, query: str) -> None:
    """What the hot path does not recognise exactly goes to the route."""
    key = await world.key("agent")
    answer = await both(
        world, "GET", f"/v1/quota/check{query}", headers={"authorization": f"Bearer {key}"}
    )

    assert answer.status_code == (200 if query in ("?agent_id=a", "?") else 422)


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        (None, 401),
        ("Bearer mk_live_wrong", 401),
        ("Basic x", 401),
        (f"Bearer {ADMIN_KEY}", 403),
        ("manage", 403),
    ],
)
async def test_who_may_not_ask_is_told_the_same_both_ways(
    world: World, authorization: str | None, status: int
) -> None:
    """401 and 403, on the check and on the heartbeat."""
    if authorization == "manage":
        authorization = f"Bearer {await world.key('manage')}"
    headers = {} if authorization is None else {"authorization": authorization}
    check = await both(world, "GET", "/v1/quota/check", headers=headers)
    beat = await both(
        world, "POST", "/v1/tasks/t/heartbeat", headers=headers, json={"elapsed_ms": 1}
    )

    assert (check.status_code, beat.status_code) == (status, status)
    assert ("www-authenticate" in check.headers) == (status == 401)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"elapsed_ms":1000}', 200),
        (b' { "elapsed_ms" : 1000 } ', 200),
        (b'{"elapsed_ms":1000,"elapsed_ms":1}', 400),
        (b'{"elapsed_ms":1.0}', 422),
        (b'{"elapsed_ms":2678400001}', 422),
        (b'{"elapsed_ms":1,"x":1}', 422),
        (b"nonsense", 400),
    ],
)
async def test_a_heartbeat_is_the_same_both_ways(world: World, body: bytes, status: int) -> None:
    """Bodies of the plainest form are read here, all others by the strict decoder."""
    key = await world.key("agent")
    await world.ask("POST", "/v1/tasks", key, content={"task_id": "t", "agent_id": "a"})
    headers = {"authorization": f"Bearer {key}", **JSON}
    await world.ask("POST", "/v1/tasks/t/heartbeat", key, content={"elapsed_ms": 1_000})
    async with (
        open_front(world) as hot,
        open_front(world, is_hot=False) as plain,
        httpx.AsyncClient(trust_env=False) as client,
    ):
        answers = [
            await client.post(
                f"http://127.0.0.1:{port}/v1/tasks/t/heartbeat", content=body, headers=headers
            )
            for port in (hot, plain)
        ]
    statuses, headers_seen, bodies = zip(*map(seen, answers), strict=True)
    for content in bodies:
        content.get("task", {}).pop("last_heartbeat_at", None)

    assert statuses == (status, status)
    assert headers_seen[0] == headers_seen[1]
    assert bodies[0] == bodies[1]


async def test_an_organization_not_in_memory_is_loaded_and_the_connection_stays_hot(
    world: World,
) -> None:
    """The first check after a start must not cost its connection the hot path."""
    async with open_world(database=world.store.database) as second:
        key = await second.key("read", organization_id="org_1")
        async with open_front(second) as port, httpx.AsyncClient(trust_env=False) as client:
            url = f"http://127.0.0.1:{port}/v1/quota/check"
            for _ in range(3):
                answer = await client.get(url, headers={"authorization": f"Bearer {key}"})
                assert answer.status_code == 200
        assert second.services.organizations.cells.activation.loads == 1


async def test_while_the_store_is_away_checks_go_on_and_heartbeats_get_503(world: World) -> None:
    """Enforcement works from memory; what cannot be made durable is not acknowledged."""
    key = await world.key("agent")
    await world.ask("POST", "/v1/tasks", key, content={"task_id": "t", "agent_id": "a"})
    await world.ask("GET", "/v1/quota/check", key)
    world.store.is_away = True
    world.services.organizations.acknowledgements._ack_timeout_ms = 200
    headers = {"authorization": f"Bearer {key}"}
    check = await both(world, "GET", "/v1/quota/check", headers=headers)
    beat = await both(
        world, "POST", "/v1/tasks/t/heartbeat", headers=headers, json={"elapsed_ms": 5}
    )
    world.store.is_away = False
    with trio.fail_after(5):
        again = await world.ask("POST", "/v1/tasks/t/heartbeat", key, content={"elapsed_ms": 5})

    assert check.status_code == 200
    assert (beat.status_code, beat.json()["code"]) == (503, "store_unavailable")
    assert beat.headers["retry-after"] == "1"
    assert (again.status_code, again.data["task"]["metered_ms"]) == (200, 5)
