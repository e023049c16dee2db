"""Limits on the real service: stops at the predicted instant, refusals to the letter, slots."""

from __future__ import annotations

import contextlib
import re

import pytest
import trio

from tests.integration.service.books import assert_books_are_right, query
from tests.integration.service.harness import running_meterd
from tests.integration.service.stream import Stream, open_stream


pytestmark = pytest.mark.slow

MINUTE_MS = 60_000
NEARLY_FULL_MS = 1_100 * MINUTE_MS - 6_000  # 1,099.9 minutes


async def test_five_running_tasks_are_stopped_at_the_instant_the_quota_runs_out(
    database_url: str,
) -> None:
    """6 s of quota for five tasks end after 1.2 s, long before the next heartbeat is due."""
    async with running_meterd("--database-url", database_url) as service:
        key = await service.organization("acme", "starter")
        big = await service.organization("big", "enterprise")
        assert (await service.adjust("acme", NEARLY_FULL_MS)).status_code == 201
        async with contextlib.AsyncExitStack() as stack:
            streams: list[Stream] = []
            for number in range(5):
                stream = await stack.enter_async_context(open_stream(service.stream_url, key))
                streams.append(stream)
                started = await stream.start(f"t{number}", f"a{number}")
            unlimited = await stack.enter_async_context(open_stream(service.stream_url, big))
            await unlimited.start("t", "a")
            began = trio.current_time()
            stops = [
                await stream.expect("stop", task_id=f"t{number}")
                for number, stream in enumerate(streams)
            ]
            stopped_after_s = trio.current_time() - began
            for number, stream in enumerate(streams):
                await stream.finish(f"t{number}", 2_000)
            async with service.client(key) as http:
                refused = await http.post("/v1/tasks", json={"task_id": "new", "agent_id": "new"})
                check = await http.get("/v1/quota/check")
            await unlimited.beat("t", 100)
            assert unlimited.find("stop") is None
        assert await service.stop() == 0

    assert started["heartbeat_interval_ms"] == 10_000
    assert stopped_after_s < 5, "no heartbeat was due before 10 s"
    assert {stop["code"] for stop in stops} == {"plan_limit_reached"}
    assert {stop["message"] for stop in stops} == {"Plan limit reached. Upgrade to continue."}
    body = refused.json()
    assert refused.status_code == check.status_code == 429
    assert refused.headers["content-type"] == "application/problem+json"
    assert body["type"] == "https://iana.org/assignments/http-problem-types#quota-exceeded"
    assert body["title"] == "Plan limit reached"
    assert body["detail"] == "Plan limit reached. Upgrade to continue."
    assert (body["status"], body["code"]) == (429, "plan_limit_reached")
    assert (body["plan"], body["state"]) == ("starter", "exceeded")
    assert (body["used_minutes"], body["limit_minutes"]) == (1_100, 1_000)
    assert re.fullmatch(r"urn:uuid:[0-9a-f-]{36}", body["instance"])
    policy = re.fullmatch(r'"agent-minutes";q=1100;w=(\d+)', refused.headers["ratelimit-policy"])
    state = re.fullmatch(r'"agent-minutes";r=0;t=(\d+)', refused.headers["ratelimit"])
    assert policy is not None
    assert int(policy[1]) in {days * 86_400 for days in (28, 29, 30, 31)}
    assert state is not None
    assert abs(int(state[1]) - int(refused.headers["retry-after"])) <= 1
    [billed] = await query(
        database_url,
        "SELECT sum(quantity)::int AS minutes, sum(quantity_ms)::bigint AS ms "
        "FROM usage_records WHERE organization_id = 'acme' AND resource_type = 'agent_minute'",
    )
    assert billed == {"minutes": 1_100, "ms": 1_100 * MINUTE_MS}
    await assert_books_are_right("--database-url", database_url)


async def test_of_a_hundred_simultaneous_starts_for_five_slots_five_are_admitted(
    database_url: str,
) -> None:
    """Decision and reservation are one step; a refusal leaves no trace; finishing frees a slot."""
    codes: list[int] = []
    async with running_meterd("--database-url", database_url) as service:
        key = await service.organization("acme", "starter")
        async with service.client(key) as http:

            async def start(number: int) -> None:
                body = {"task_id": f"t{number}", "agent_id": f"a{number}"}
                codes.append((await http.post("/v1/tasks", json=body)).status_code)

            async with trio.open_nursery() as nursery:
                for number in range(100):
                    nursery.start_soon(start, number)
            running = (await http.get("/v1/tasks?state=running")).json()["data"]
            await http.post(
                f"/v1/tasks/{running[0]['task_id']}/finish",
                json={"elapsed_ms": 1, "outcome": "succeeded"},
            )
            after = await http.post("/v1/tasks", json={"task_id": "next", "agent_id": "next"})
            full = await http.post("/v1/tasks", json={"task_id": "more", "agent_id": "more"})
        assert await service.stop() == 0

    assert sorted(codes) == [201] * 5 + [429] * 95
    assert len(running) == 5
    assert after.status_code == 201
    assert (full.status_code, full.json()["code"]) == (429, "agent_limit_reached")
    assert full.json()["detail"] == "Agent limit reached. Upgrade to run more agents at once."
    [count] = await query(database_url, "SELECT count(*) AS tasks FROM tasks")
    assert count == {"tasks": 6}


async def test_a_silent_agent_is_lost_at_its_last_heartbeat_and_may_come_back(
    database_url: str,
) -> None:
    """Its slot is free for another; when it reports again it is resumed, or told to stop."""
    settings = {"METERD_TASK_TIMEOUT_MS": "1000"}
    async with running_meterd("--database-url", database_url, settings=settings) as service:
        key = await service.organization("acme", "free")
        async with open_stream(service.stream_url, key) as stream, service.client(key) as http:
            await stream.start("t", "a")
            await stream.beat("t", 50)
            with trio.fail_after(10):
                # Over HTTP there is only asking.
                while (lost := (await http.get("/v1/tasks/t")).json())["state"] != "lost":  # noqa: ASYNC110
                    await trio.sleep(0.05)  # over HTTP there is only asking
            await stream.start("other", "b")
            mark = len(stream.received)
            await stream.beat("t", 60)
            told = await stream.expect("stop", after=mark, task_id="t")
            await stream.finish("other", 10)
            await stream.beat("t", 70)
            resumed = (await http.get("/v1/tasks/t")).json()
            await stream.finish("t", 80)
        assert await service.stop() == 0

    assert lost["finished_at"] == lost["last_heartbeat_at"]
    assert (lost["metered_ms"], lost["elapsed_ms"]) == (50, 50)
    assert told["code"] == "agent_limit_reached"
    assert resumed["state"] == "running"
    await assert_books_are_right("--database-url", database_url)
