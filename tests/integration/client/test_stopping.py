# ruff: noqa: PT012 - the whole block is what must raise.
"""What a `stop` and a cancellation do to a body, in the words of each library."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
import trio

from meterd.client import PlanLimitReached, Suspended
from meterd.client.asyncio import Meterd as AsyncioMeterd
from meterd.client.threads import Meterd as ThreadsMeterd
from meterd.client.trio import Meterd as TrioMeterd
from tests.fakes.scripted_meterd import KEY, ScriptedMeterd


pytestmark = pytest.mark.slow


def stop(service: ScriptedMeterd, code: str = "plan_limit_reached") -> None:
    """Push a stop to the one task in the book."""
    (task_id,) = service.book.tasks
    service.push({"type": "stop", "task_id": task_id, "code": code, "message": "Stop now."})


def outcomes(service: ScriptedMeterd) -> list[str | None]:
    """Give how the tasks ended."""
    return [task.outcome for task in service.book.tasks.values()]


def test_on_trio_a_stop_cancels_the_body_and_raises_the_reason(service: ScriptedMeterd) -> None:
    """Nobody should mistake an interrupted body for one that came to its end."""

    async def main() -> None:
        async with TrioMeterd(service.url, KEY) as client:
            with pytest.raises(PlanLimitReached) as caught:
                async with client.task(agent_id="a"):
                    await trio.to_thread.run_sync(stop, service)
                    await trio.sleep_forever()
            assert caught.value.stopped

    trio.run(main)

    assert outcomes(service) == ["cancelled"]


def test_on_asyncio_a_stop_cancels_the_body_and_raises_the_reason(service: ScriptedMeterd) -> None:
    """The cancellation is ours alone: it leaves no trace in the task that ran the body."""

    async def main() -> None:
        async with AsyncioMeterd(service.url, KEY) as client:
            with pytest.raises(PlanLimitReached) as caught:
                async with client.task(agent_id="a"):
                    await asyncio.to_thread(stop, service)
                    await asyncio.Event().wait()
            assert caught.value.stopped
            current = asyncio.current_task()
            assert current is not None
            assert current.cancelling() == 0

    asyncio.run(main())

    assert outcomes(service) == ["cancelled"]


def test_in_a_thread_a_stop_ends_the_wait_and_shows_at_the_checkpoint(
    service: ScriptedMeterd,
) -> None:
    """A thread cannot be cancelled: the body says where it may end."""
    with ThreadsMeterd(service.url, KEY) as client:
        with pytest.raises(Suspended) as caught, client.task(agent_id="a") as task:
            task.checkpoint()
            stop(service, "suspended")
            assert task.wait_stop(5)
            task.checkpoint()
        assert caught.value.stopped

    assert outcomes(service) == ["cancelled"]


def test_finish_step_leaves_the_body_its_time(service: ScriptedMeterd) -> None:
    """Some work must not be cut in the middle; its time is metered to the end."""

    async def main() -> None:
        async with (
            TrioMeterd(service.url, KEY, on_stop="finish_step") as client,
            client.task(agent_id="a") as task,
        ):
            await trio.to_thread.run_sync(stop, service)
            await task.wait_stop()
            await trio.sleep(0.05)
            assert task.stop_requested
            task.outcome = "cancelled"
        assert task.metered_ms >= 50

    trio.run(main)

    assert outcomes(service) == ["cancelled"]


def test_finish_step_on_asyncio_can_be_chosen_per_task(service: ScriptedMeterd) -> None:
    """The default of the client is a default."""

    async def main() -> None:
        async with (
            AsyncioMeterd(service.url, KEY) as client,
            client.task(agent_id="a", on_stop="finish_step") as task,
        ):
            await asyncio.to_thread(stop, service)
            await task.wait_stop()
            await asyncio.sleep(0.05)

    asyncio.run(main())

    assert outcomes(service) == ["succeeded"]


def test_a_trio_cancellation_from_outside_is_settled_as_cancelled(service: ScriptedMeterd) -> None:
    """The settlement is shielded, and the cancellation goes on where it was going."""

    async def main() -> None:
        with trio.move_on_after(0.1) as scope:
            async with TrioMeterd(service.url, KEY) as client, client.task(agent_id="a"):
                await trio.sleep_forever()
        assert scope.cancelled_caught

    trio.run(main)

    assert outcomes(service) == ["cancelled"]


def test_an_asyncio_cancellation_from_outside_is_settled_as_cancelled(
    service: ScriptedMeterd,
) -> None:
    """The same with `asyncio.timeout`, which must see its own cancellation come back."""

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with (
                asyncio.timeout(0.1),
                AsyncioMeterd(service.url, KEY) as client,
                client.task(agent_id="a"),
            ):
                await asyncio.Event().wait()

    asyncio.run(main())

    assert outcomes(service) == ["cancelled"]


def test_a_cancellation_while_the_end_is_settled_waits_for_the_deadline_only(
    service: ScriptedMeterd,
) -> None:
    """Shielded, but with a deadline: a silent server cannot hold a cancelled application."""
    service.swallowed.add("finish")

    async def main() -> None:
        with trio.move_on_after(0.1):
            async with (
                TrioMeterd(service.url, KEY, settle_timeout_ms=200, close_timeout_ms=200) as client,
                client.task(agent_id="a"),
            ):
                await trio.sleep_forever()

    began = time.monotonic()
    trio.run(main)

    assert time.monotonic() - began < 3
    assert outcomes(service) == ["cancelled"]


def test_an_asyncio_cancellation_while_waiting_for_the_verdict_gives_the_slot_back(
    service: ScriptedMeterd,
) -> None:
    """The server may have admitted a task whose body never began."""
    service.swallowed.add("start")

    async def main() -> None:
        async with AsyncioMeterd(service.url, KEY) as client:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1), client.task(agent_id="a"):
                    pytest.fail("the body began")

    asyncio.run(main())

    assert outcomes(service) == ["cancelled"]


def test_failures_inside_a_nursery_leave_as_their_group(service: ScriptedMeterd) -> None:
    """The client adds no group of its own and removes none of the application's."""

    async def fail() -> None:
        raise ValueError("mine")

    async def main() -> None:
        async with (
            TrioMeterd(service.url, KEY) as client,
            client.task(agent_id="a"),
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(fail)

    with pytest.raises(ExceptionGroup) as caught:
        trio.run(main)

    assert [type(error) for error in caught.value.exceptions] == [ValueError]
    assert outcomes(service) == ["failed"]


def test_threads_share_one_client(service: ScriptedMeterd) -> None:
    """A pool of workers holds one connection."""

    def work(client: ThreadsMeterd, number: int) -> None:
        with client.task(agent_id=f"agent-{number}") as task:
            time.sleep(0.02)
        assert task.is_settled

    with ThreadsMeterd(service.url, KEY) as client:
        workers = [threading.Thread(target=work, args=(client, n)) for n in range(8)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(10)

    assert outcomes(service) == ["succeeded"] * 8
    assert service.connection_count == 1
