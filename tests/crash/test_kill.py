"""kill -9 under load: nothing acknowledged is lost, nothing is counted twice, slots go on."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from tests.crash.kills import kill_meterd, kill_postgres
from tests.crash.test_outages import assert_kept
from tests.integration.service.harness import running_meterd
from tests.integration.service.stream import open_stream


pytestmark = pytest.mark.slow

KILLS = 3
AGENTS = 12


async def test_kill_9_of_meterd_under_load_loses_and_doubles_nothing(database_url: str) -> None:
    """Three kills, each followed by a restart at once: no lease has to run out."""
    found = await kill_meterd(database_url, KILLS, AGENTS, Random(1))

    assert found.cycles == KILLS
    assert found.resent > 0
    assert_kept(found)


async def test_running_tasks_and_slots_survive_a_kill_of_meterd(database_url: str) -> None:
    """What was acknowledged is there after the restart, the slot taken, the ended task ended."""
    options = ("--database-url", database_url)
    async with running_meterd(*options) as service:
        key = await service.organization("acme", "free")
        async with open_stream(service.stream_url, key) as stream:
            await stream.start("done", "a")
            await stream.finish("done", 30)
            await stream.start("t", "a")
            acknowledged = await stream.beat("t", 40)
            service.kill()
            await service.process.wait()
    async with running_meterd(*options) as service:
        async with service.client(key) as http:
            task = (await http.get("/v1/tasks/t")).json()
            again = await http.post("/v1/tasks", json={"task_id": "done", "agent_id": "a"})
            other = await http.post("/v1/tasks", json={"agent_id": "b"})
        async with open_stream(service.stream_url, key) as stream:
            repeated = await stream.finish("done", 30)
            await stream.beat("t", 90)
            finished = await stream.finish("t", 90)
        assert await service.stop() == 0

    assert (task["state"], task["elapsed_ms"]) == ("running", acknowledged["elapsed_ms"])
    assert (other.status_code, other.json()["code"]) == (429, "agent_limit_reached")
    assert (again.status_code, again.json()["state"]) == (200, "finished")
    assert (repeated["metered_ms"], finished["metered_ms"]) == (30, 90)


async def test_kill_9_of_postgres_under_load_loses_and_doubles_nothing(data_dir: Path) -> None:
    """The embedded server is killed twice and comes back; enforcement goes on meanwhile."""
    found = await kill_postgres(data_dir, 2, AGENTS, Random(1))

    assert found.cycles == 2
    assert_kept(found)
