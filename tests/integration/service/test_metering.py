"""The main job on the real service: what agents ran is what the ledger says, exactly."""

from __future__ import annotations

import random

import pytest
import trio

from tests.integration.service.books import assert_books_are_right, query
from tests.integration.service.harness import Service, running_meterd
from tests.integration.service.stream import Stream, open_stream


pytestmark = pytest.mark.slow

AGENTS = 20
TASK_MS = 14 * 60_000


async def run_task(stream: Stream, number: int, chance: random.Random) -> int:
    """Report one task in uneven steps, some of them twice or stale, and return what it ran."""
    task_id, elapsed_ms = f"task-{number}", 0
    await stream.start(task_id, f"agent-{number}")
    target_ms = TASK_MS + chance.randrange(60_000)
    while elapsed_ms < target_ms:
        elapsed_ms = min(target_ms, elapsed_ms + chance.randrange(1, 90_000))
        await stream.beat(task_id, elapsed_ms)
        if chance.random() < 0.2:
            await stream.send({"type": "heartbeat", "task_id": task_id, "elapsed_ms": 5})
    await stream.finish(task_id, elapsed_ms, "succeeded" if number % 4 else "failed")
    return elapsed_ms


async def operate(service: Service) -> None:
    """Change plan, contract and books while the agents work."""
    path = "/admin/v1/organizations/acme"
    for change in ({"plan": "starter"}, {"plan": "pro"}, {"contract": {"agent_minutes": 9_000}}):
        await trio.sleep(0.05)
        answer = await service.http.patch(path, json={**change, "reason": "test"})
        assert answer.status_code == 200, answer.text
        assert (await service.adjust("acme", 90_001)).status_code == 201
        assert (await service.adjust("acme", -30_001)).status_code == 201


async def test_the_ledger_is_what_twenty_agents_ran_whatever_the_operator_does(
    database_url: str,
) -> None:
    """Upgrades, downgrades, credits and debits in the middle lose and re-price nothing."""
    settings = {"METERD_PLAUSIBILITY": "off", "METERD_RECORD_INTERVAL_MS": "120000"}
    ran_ms: dict[int, int] = {}
    async with running_meterd("--database-url", database_url, settings=settings) as service:
        key = await service.organization("acme", "pro")
        async with (
            open_stream(service.stream_url, key) as stream,
            trio.open_nursery() as nursery,
        ):

            async def work(number: int) -> None:
                ran_ms[number] = await run_task(stream, number, random.Random(number))

            for number in range(AGENTS):
                nursery.start_soon(work, number)
            nursery.start_soon(operate, service)
        assert await service.stop() == 0

    booked = await query(
        database_url,
        "SELECT source, sum(quantity_ms)::bigint AS ms FROM usage_records "
        "WHERE resource_type = 'agent_minute' GROUP BY source",
    )
    per_task = await query(
        database_url,
        "SELECT task_id, sum(quantity_ms)::bigint AS ms FROM usage_records "
        "WHERE source = 'task' GROUP BY task_id",
    )
    [totals] = await query(
        database_url,
        "SELECT sum(quantity)::bigint AS minutes, sum(quantity_ms)::bigint AS ms, "
        "count(DISTINCT terms_seq) AS terms, sum(total_cost) AS cost "
        "FROM usage_records WHERE resource_type = 'agent_minute'",
    )

    assert {row["source"]: row["ms"] for row in booked} == {
        "task": sum(ran_ms.values()),
        "adjustment": 3 * 60_000,
    }
    assert {row["task_id"]: row["ms"] for row in per_task} == {
        f"task-{number}": ms for number, ms in ran_ms.items()
    }
    assert totals["minutes"] == totals["ms"] // 60_000
    assert totals["cost"] == 0, "everything was within the allowance"
    assert totals["terms"] > 1, "the changes came while the agents worked"
    await assert_books_are_right("--database-url", database_url)


async def test_a_downgrade_stops_agents_and_cancels_nothing_that_was_billed(
    database_url: str,
) -> None:
    """1,200 minutes on Pro stay 1,200 minutes when the plan becomes Starter; no minute is added."""
    settings = {"METERD_PLAUSIBILITY": "off"}
    async with running_meterd("--database-url", database_url, settings=settings) as service:
        key = await service.organization("acme", "pro")
        async with open_stream(service.stream_url, key) as stream:
            await stream.start("t", "a")
            await stream.beat("t", 1_200 * 60_000)
            await service.http.patch(
                "/admin/v1/organizations/acme", json={"plan": "starter", "reason": "test"}
            )
            stop = await stream.expect("stop", task_id="t")
            await stream.beat("t", 1_300 * 60_000)
            finished = await stream.finish("t", 1_300 * 60_000)
            async with service.client(key) as http:
                task = (await http.get("/v1/tasks/t")).json()
                quota = (await http.get("/v1/quota")).json()
        assert await service.stop() == 0

    assert stop["code"] == "plan_limit_reached"
    assert finished["metered_ms"] == 1_200 * 60_000
    assert task["unbilled_ms"] == 100 * 60_000
    assert quota["agent_minutes"]["used"] == 1_200
    assert (quota["state"], quota["agent_minutes"]["overage"]) == ("exceeded", 0)
    await assert_books_are_right("--database-url", database_url)
