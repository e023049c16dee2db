"""An organization whose actor keeps failing is kept apart; nobody else notices."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
import trio
from typed_settings import Secret

from meterd.config import Config
from meterd.core.commands import Command, Decision, StartTask
from meterd.core.decide import decide
from meterd.core.organization import OrganizationState
from meterd.setting import Address
from meterd.system import Meterd, run_meterd
from tests.integration.service.harness import ADMIN_KEY


pytestmark = pytest.mark.slow

OTHERS = 999


def decide_badly(state: OrganizationState, command: Command, now_ms: int) -> Decision:
    """Decide like the core does, but fail on every start of one organization."""
    if state.organization_id == "broken" and isinstance(command, StartTask):
        raise ZeroDivisionError("planted")
    return decide(state, command, now_ms)


@asynccontextmanager
async def broken_meterd(database_url: str) -> AsyncIterator[tuple[Meterd, httpx.AsyncClient]]:
    """Run meterd in this process with the planted fault."""
    config = Config(
        database_url=Secret(database_url),
        bind=Address("127.0.0.1", 0),
        admin_key=Secret(ADMIN_KEY),
        quarantine_ms=1_000,
    )
    async with trio.open_nursery() as nursery:

        async def run(task_status: trio.TaskStatus[Meterd]) -> None:
            await run_meterd(
                config, say=lambda _: None, decide_with=decide_badly, task_status=task_status
            )

        meterd = await nursery.start(run)
        headers = {"authorization": f"Bearer {ADMIN_KEY}"}
        async with httpx.AsyncClient(base_url=meterd.url, headers=headers, timeout=30) as http:
            yield meterd, http
        meterd.stop()


async def create(http: httpx.AsyncClient, organization_id: str) -> str:
    """Create an organization and return its key."""
    body = {"id": organization_id, "name": organization_id, "plan": "pro"}
    assert (await http.post("/admin/v1/organizations", json=body)).status_code == 201
    answer = await http.post(
        f"/admin/v1/organizations/{organization_id}/keys", json={"scopes": ["agent", "read"]}
    )
    key: str = answer.json()["key"]
    return key


async def test_one_broken_organization_is_quarantined_and_999_others_never_notice(
    database_url: str,
) -> None:
    """Its strikes cost it its service, visibly; after a while one probe finds it well again."""
    async with broken_meterd(database_url) as (meterd, http):
        broken = {"authorization": f"Bearer {await create(http, 'broken')}"}
        keys: list[str] = []
        async with trio.open_nursery() as nursery:

            async def create_some(first: int) -> None:
                keys.extend(
                    [await create(http, f"org-{number}") for number in range(first, OTHERS, 20)]
                )

            for first in range(20):
                nursery.start_soon(create_some, first)

        crashes = [
            await http.post("/v1/tasks", json={"agent_id": "a"}, headers=broken) for _ in range(4)
        ]
        seen = (await http.get("/admin/v1/actors/organization/broken")).json()
        checked = await http.get("/v1/quota/check", headers=broken)
        starts: list[int] = []
        async with trio.open_nursery() as nursery:

            async def start_some(first: int) -> None:
                for key in keys[first::20]:
                    answer = await http.post(
                        "/v1/tasks",
                        json={"agent_id": "a"},
                        headers={"authorization": f"Bearer {key}"},
                    )
                    starts.append(answer.status_code)

            for first in range(20):
                nursery.start_soon(start_some, first)
        with trio.fail_after(10):
            while (await http.get("/v1/quota", headers=broken)).status_code != 200:  # noqa: ASYNC110
                await trio.sleep(0.1)
        phases = {actor.phase for actor in meterd.inspector.actors(limit=2_000)}

    assert [answer.status_code for answer in crashes] == [503] * 4
    assert [answer.json()["code"] for answer in crashes] == [
        "actor_crashed",
        "actor_crashed",
        "actor_crashed",
        "organization_quarantined",
    ]
    assert (seen["phase"], seen["strikes"]) == ("quarantined", 3)
    assert "planted" in seen["last_error"]
    assert (checked.status_code, checked.json()["code"]) == (503, "organization_quarantined")
    assert int(checked.headers["retry-after"]) >= 1
    assert starts == [201] * OTHERS
    assert phases == {"ready"}
