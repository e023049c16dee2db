"""kill -9 under load: nothing acknowledged is lost, nothing is counted twice, slots go on."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import trio

from tests.crash.kills import free_port
from tests.crash.outages import postmaster_of
from tests.integration.service.books import assert_books_are_right, query
from tests.integration.service.harness import running_meterd
from tests.integration.service.load import Books, run_agents
from tests.integration.service.stream import open_stream


pytestmark = pytest.mark.slow

KILLS = 3
AGENTS = 12
SETTINGS = {"METERD_TASK_TIMEOUT_MS": "3000"}


async def assert_ledger_is(database_url: str, books: Books) -> None:
    """Compare the ledger with what the agents ran, task by task."""
    rows = await query(
        database_url,
        "SELECT task_id, sum(quantity_ms)::bigint AS ms FROM usage_records "
        "WHERE resource_type = 'agent_minute' GROUP BY task_id",
    )
    assert books.errors == []
    assert {row["task_id"]: row["ms"] for row in rows} == books.ran_ms
    for task_id, acknowledged_ms in books.acknowledged_ms.items():
        assert acknowledged_ms <= books.ran_ms[task_id]
    await assert_books_are_right("--database-url", database_url)


async def test_kill_9_of_meterd_under_load_loses_and_doubles_nothing(database_url: str) -> None:
    """Three kills, each followed by a restart at once: no lease has to run out."""
    port, books, is_over, done = free_port(), Books(), False, trio.Event()
    options = ("--database-url", database_url)

    async def work(url: str, key: str) -> None:
        await run_agents(url, key, books, agents=AGENTS, until=lambda: is_over)
        done.set()

    async with trio.open_nursery() as nursery:
        for life in range(KILLS + 1):
            async with running_meterd(*options, settings=SETTINGS, port=port) as service:
                if life == 0:
                    key = await service.organization("acme", "enterprise")
                    nursery.start_soon(work, service.url, key)
                await trio.sleep(1.5)
                if life < KILLS:
                    service.kill()
                    continue
                is_over = True
                await done.wait()
                assert await service.stop() == 0

    assert len(books.ran_ms) > AGENTS
    await assert_ledger_is(database_url, books)


async def test_running_tasks_and_slots_survive_a_kill_of_meterd(database_url: str) -> None:
    """What was acknowledged is there after the restart, and the slot is still taken."""
    options = ("--database-url", database_url)
    async with running_meterd(*options) as service:
        key = await service.organization("acme", "free")
        async with open_stream(service.stream_url, key) as stream:
            await stream.start("t", "a")
            acknowledged = await stream.beat("t", 40)
            service.kill()
            await service.process.wait()
    async with running_meterd(*options) as service:
        async with service.client(key) as http:
            task = (await http.get("/v1/tasks/t")).json()
            other = await http.post("/v1/tasks", json={"agent_id": "b"})
        async with open_stream(service.stream_url, key) as stream:
            await stream.beat("t", 90)
            finished = await stream.finish("t", 90)
        assert await service.stop() == 0

    assert (task["state"], task["elapsed_ms"]) == ("running", acknowledged["elapsed_ms"])
    assert (other.status_code, other.json()["code"]) == (429, "agent_limit_reached")
    assert finished["metered_ms"] == 90


async def test_kill_9_of_postgres_under_load_loses_and_doubles_nothing(data_dir: Path) -> None:
    """The embedded server is killed twice and comes back; enforcement goes on meanwhile."""
    books = Books()
    is_over = False
    options = ("--data-dir", str(data_dir))
    async with running_meterd(*options, settings=SETTINGS) as service:
        key = await service.organization("acme", "enterprise")
        async with trio.open_nursery() as nursery:

            async def agents() -> None:
                await run_agents(service.url, key, books, agents=AGENTS, until=lambda: is_over)

            nursery.start_soon(agents)
            for _ in range(2):
                await trio.sleep(1.5)
                postmaster_of(service.process.pid).send_signal(signal.SIGKILL)
                async with service.client(key) as http:
                    assert (await http.get("/v1/quota/check")).status_code == 200
            await trio.sleep(3)
            is_over = True
        assert await service.stop() == 0

    assert books.errors == []
    assert len(books.ran_ms) > AGENTS
    await assert_books_are_right("--data-dir", str(data_dir))
