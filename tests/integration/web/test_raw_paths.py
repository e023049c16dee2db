"""Encoded slashes on a real connection: they belong to a name, and separate nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from tests.served import ADMIN_KEY, open_front, open_world


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    """Give a client of a meterd on a socket, with a key of an organization."""
    async with open_world() as world:
        await world.add()
        key = await world.key("agent", "read", "manage")
        async with (
            open_front(world) as port,
            httpx.AsyncClient(
                base_url=f"http://127.0.0.1:{port}", headers={"authorization": f"Bearer {key}"}
            ) as client,
        ):
            yield client


@pytest.mark.parametrize(
    "path", ["/v1%2Fquota", "/v1%2fquota", "/v1/quota%2Fcheck", "/v1/usage%2Fdaily", "/v1%2Fkeys"]
)
async def test_an_encoded_slash_separates_nothing(http: httpx.AsyncClient, path: str) -> None:
    """What guards `/v1/quota` in front of meterd need not know that this would mean the same."""
    answer = await http.get(path)

    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


async def test_an_encoded_slash_reaches_no_route_of_operators(http: httpx.AsyncClient) -> None:
    """A proxy that hides `/admin/` hides all of it."""
    answer = await http.get(
        "/admin%2Fv1%2Forganizations", headers={"authorization": f"Bearer {ADMIN_KEY}"}
    )

    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


async def test_a_task_may_have_slashes_in_its_id(http: httpx.AsyncClient) -> None:
    """Sent encoded they are part of it, even when it then looks like another route."""
    for task_id in ("a/b", "a/heartbeat"):
        await http.post("/v1/tasks", json={"task_id": task_id, "agent_id": "x"})
        path = "/v1/tasks/" + task_id.replace("/", "%2F")
        beat = await http.post(f"{path}/heartbeat", json={"elapsed_ms": 5})
        shown = await http.get(path)

        assert (beat.status_code, beat.json()["task"]["task_id"]) == (200, task_id)
        assert (shown.status_code, shown.json()["elapsed_ms"]) == (200, 5)


async def test_a_report_is_not_taken_for_the_task_before_an_encoded_slash(
    http: httpx.AsyncClient,
) -> None:
    """It is the task `t/heartbeat` that is posted to, and nothing can be posted to a task."""
    answer = await http.post("/v1/tasks/t%2Fheartbeat", json={"elapsed_ms": 1})

    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
