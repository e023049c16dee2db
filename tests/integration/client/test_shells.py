"""What every client does against a server on a real port: the same steps on each shell."""

from __future__ import annotations

import threading
from contextlib import AsyncExitStack
from typing import Any

import pytest

from meterd.client import (
    FailClosed,
    FailOpen,
    Forbidden,
    PlanLimitReached,
    Settings,
    Unauthorized,
    Unreachable,
)
from tests.fakes.scripted_meterd import KEY, READ_ONLY_KEY, ScriptedMeterd
from tests.integration.client.shells import SHELLS, Shell


FAST = Settings(backoff_ms=20, backoff_ms_max=50, start_timeout_ms=300)

pytestmark = pytest.mark.slow


@pytest.fixture(params=SHELLS, ids=lambda shell: shell.name)
def shell(request: pytest.FixtureRequest) -> Shell:
    """Each of the three clients in turn."""
    chosen: Shell = request.param
    return chosen


def test_a_body_is_one_task_with_its_details_and_the_outcome_succeeded(
    shell: Shell, service: ScriptedMeterd
) -> None:
    """One `with` is all an agent needs."""

    async def scenario() -> None:
        async with (
            shell.client(service.url, KEY) as client,
            client.task(agent_id="writer", user_id="u", metadata={"step": 1}) as task,
        ):
            assert not task.is_local
            assert task.quota.plan == "starter"
            await shell.sleep(0.1)
        assert task.is_settled
        assert 100 <= task.elapsed_ms == task.metered_ms < 1_000

    shell.run(scenario)
    start = service.book.received[0]
    (booked,) = service.book.tasks.values()

    assert (start["agent_id"], start["user_id"], start["metadata"]) == ("writer", "u", {"step": 1})
    assert booked.outcome == "succeeded"
    service.until(lambda: service.close_codes == [1000])


def test_heartbeats_go_out_by_themselves_while_the_body_works(
    shell: Shell, service: ScriptedMeterd
) -> None:
    """The body knows nothing of them; the server hears growing cumulative integers."""
    service.book.heartbeat_interval_ms = 30

    async def scenario() -> None:
        async with (
            shell.client(service.url, KEY) as client,
            client.task(agent_id="a") as task,
        ):
            await shell.in_thread(service.until, lambda: len(service.book.received) >= 5)
            assert task.acked_ms > 0

    shell.run(scenario)
    beats = [m["elapsed_ms"] for m in service.book.received if m["type"] == "heartbeat"]

    assert beats == sorted(set(beats))
    assert all(type(beat) is int for beat in beats)


def test_an_exception_leaves_as_it_was_raised_and_the_task_has_failed(
    shell: Shell, service: ScriptedMeterd
) -> None:
    """Metering must not change what an application sees of its own errors."""
    mine = ValueError("mine")

    async def scenario() -> None:
        async with shell.client(service.url, KEY) as client, client.task(agent_id="a"):
            raise mine

    with pytest.raises(ValueError, match="mine") as caught:
        shell.run(scenario)

    assert caught.value is mine
    assert [t.outcome for t in service.book.tasks.values()] == ["failed"]


def test_a_refused_task_never_begins(shell: Shell, service: ScriptedMeterd) -> None:
    """The exception tells the kind, the message of the product and the quota."""
    message = "Plan limit reached. Upgrade to continue."
    service.book.refusal = ("plan_limit_reached", message)

    async def scenario() -> None:
        async with shell.client(service.url, KEY) as client:
            with pytest.raises(PlanLimitReached) as caught:
                async with client.task(agent_id="a"):
                    pytest.fail("the body began")
            assert str(caught.value) == message
            assert caught.value.code == "plan_limit_reached"
            assert caught.value.quota is not None

    shell.run(scenario)


@pytest.mark.parametrize("code", [1012, 1006])
def test_a_task_survives_lost_connections_and_a_server_that_was_away(
    shell: Shell, service: ScriptedMeterd, code: int
) -> None:
    """The latest cumulative value is said again; nothing is lost, nothing counted twice."""
    service.book.heartbeat_interval_ms = 30

    async def scenario() -> None:
        async with (
            shell.client(service.url, KEY, settings=FAST) as client,
            client.task(agent_id="a") as task,
        ):
            if code == 1006:
                await shell.in_thread(service.stop_listening)
                await shell.sleep(0.2)
                await shell.in_thread(service.listen_again)
            else:
                await shell.in_thread(service.close_connections, code)
            await shell.in_thread(service.until, lambda: service.connection_count >= 2)
        assert task.is_settled
        assert task.metered_ms == task.elapsed_ms

    shell.run(scenario)
    (booked,) = service.book.tasks.values()

    assert booked.outcome == "succeeded"


def test_a_lost_answer_to_finish_is_asked_for_again(shell: Shell, service: ScriptedMeterd) -> None:
    """Leaving the task waits for the settlement, through a reconnect too."""
    service.swallowed.add("finish")

    async def scenario() -> None:
        async with shell.client(service.url, KEY, settings=FAST) as client:

            def answer_later() -> None:
                service.until(lambda: service.book.received[-1]["type"] == "finish")
                service.swallowed.clear()
                service.cut_connections()

            async with client.task(agent_id="a") as task:
                waiting = threading.Thread(target=answer_later)
                waiting.start()
            waiting.join()
            assert task.is_settled

    shell.run(scenario)


def test_many_tasks_share_one_connection(shell: Shell, service: ScriptedMeterd) -> None:
    """One stream carries every agent of a process."""

    async def scenario() -> None:
        async with shell.client(service.url, KEY) as client, AsyncExitStack() as stack:
            for number in range(20):
                await stack.enter_async_context(client.task(agent_id=f"agent-{number}"))

    shell.run(scenario)

    assert service.connection_count == 1
    assert {task.outcome for task in service.book.tasks.values()} == {"succeeded"}
    assert len(service.book.tasks) == 20


@pytest.mark.parametrize(
    ("key", "kind"), [("mk_live_wrong", Unauthorized), (READ_ONLY_KEY, Forbidden)]
)
def test_a_bad_key_is_an_error_at_once_and_never_tried_again(
    shell: Shell, service: ScriptedMeterd, key: str, kind: type[Exception]
) -> None:
    """Not even under FailOpen: meterd is there, and says no."""

    async def scenario() -> None:
        async with shell.client(service.url, key, unreachable=FailOpen()) as client:
            for _ in range(2):
                with pytest.raises(kind):
                    async with client.task(agent_id="a"):
                        pytest.fail("the body began")

    shell.run(scenario)

    assert service.connection_count == 0


def test_fail_closed_starts_nothing_without_meterd(shell: Shell, service: ScriptedMeterd) -> None:
    """The refusal comes after `start_timeout_ms`, not before a restart could have passed."""
    service.stop_listening()

    async def scenario() -> None:
        async with shell.client(
            service.url, KEY, unreachable=FailClosed(), settings=FAST
        ) as client:
            with pytest.raises(Unreachable):
                async with client.task(agent_id="a"):
                    pytest.fail("the body began")
            with pytest.raises(Unreachable):
                await client.check("a")

    shell.run(scenario)


def test_fail_open_runs_without_meterd_and_settles_when_it_is_back(
    shell: Shell, service: ScriptedMeterd
) -> None:
    """What ran during the outage is in the book afterwards, to the millisecond."""
    service.stop_listening()

    async def scenario() -> None:
        async with shell.client(service.url, KEY, unreachable=FailOpen(), settings=FAST) as client:
            assert (await client.check("a")).code == "unreachable"
            async with client.task(agent_id="a") as task:
                assert task.is_local
                await shell.sleep(0.1)
                await shell.in_thread(service.listen_again)
                await shell.in_thread(service.until, lambda: bool(service.book.tasks))
            assert task.is_settled
            assert not task.is_local
            assert task.metered_ms == task.elapsed_ms >= 100

    shell.run(scenario)

    assert service.book.received[0]["elapsed_ms"] >= 100


def test_what_cannot_be_settled_in_time_is_settled_in_the_background(
    shell: Shell, service: ScriptedMeterd
) -> None:
    """Leaving a task has a deadline; leaving the client waits for what is still open."""

    async def scenario() -> None:
        async with shell.client(service.url, KEY, settings=FAST, settle_timeout_ms=100) as client:
            async with client.task(agent_id="a") as task:
                await shell.in_thread(service.stop_listening)
            assert not task.is_settled
            await shell.in_thread(service.listen_again)
        assert task.is_settled
        assert client.unsettled == []

    shell.run(scenario)


def test_leaving_the_client_gives_up_after_its_deadline_and_says_what_is_open(
    shell: Shell, service: ScriptedMeterd
) -> None:
    """A server that is gone must not keep an application from ending."""

    async def scenario() -> None:
        async with (
            shell.client(
                service.url, KEY, settings=FAST, settle_timeout_ms=50, close_timeout_ms=100
            ) as client,
            client.task(agent_id="a", task_id="t-1"),
        ):
            await shell.in_thread(service.stop_listening)
        assert client.unsettled == ["t-1"]

    shell.run(scenario)


def test_check_and_quota_come_over_plain_http(shell: Shell, service: ScriptedMeterd) -> None:
    """Asking needs no stream; a refusal is a value, with the words of the product."""

    async def scenario() -> None:
        async with shell.client(service.url, KEY) as client:
            assert (await client.check("a")).allowed
            assert (await client.quota()).agent_minutes.limit == 1_000
            service.check_problem = (
                429,
                {
                    "code": "plan_limit_reached",
                    "detail": "Plan limit reached. Upgrade to continue.",
                    "upgrade_url": "https://example.com/upgrade",
                },
            )
            refused = await client.check()
            assert not refused
            assert refused.retry_after_s == 604_800
            with pytest.raises(PlanLimitReached, match="Upgrade to continue"):
                refused.require()

    shell.run(scenario)

    assert service.connection_count == 0
    assert [m.get("agent_id") for m in service.book.received] == [["a"], None]


def test_a_client_that_is_not_open_refuses_to_work(shell: Shell, service: ScriptedMeterd) -> None:
    """A start that nobody drives would wait for ever."""

    async def scenario() -> None:
        client: Any = shell.client(service.url, KEY)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="inside"):
                async with client.task(agent_id="a"):
                    pytest.fail("the body began")
            if service.connection_count == 0:
                async with client, client.task(agent_id="a"):
                    pass
        with pytest.raises(RuntimeError, match="make a new one"):
            async with client:
                pytest.fail("it opened again")

    shell.run(scenario)
