# ruff: noqa: PT012  leaving the block is what raises, so the block is inside `raises`
from __future__ import annotations

import asyncio
import contextvars
import threading
import time

import pytest
import trio
import trio.testing

from meterd.adapters.asyncio_thread import AsyncioThread, open_asyncio_thread
from meterd.errors import PortalClosedError


def asyncio_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name == "meterd-asyncio"]


class Gate:
    """A place for a job to stand still until a Trio test opens it; made on the asyncio side."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = asyncio.Event()
        self.loop = asyncio.get_running_loop()

    def open(self) -> None:
        self.loop.call_soon_threadsafe(self.opened.set)

    async def reached_from_trio(self) -> None:
        assert await trio.to_thread.run_sync(self.reached.wait, 10)


async def make_gate() -> Gate:
    return Gate()


async def pass_gate(gate: Gate) -> str:
    gate.reached.set()
    await gate.opened.wait()
    return "passed"


async def never(gate: Gate) -> None:
    gate.reached.set()
    await asyncio.get_running_loop().create_future()


async def add(left: int, right: int) -> int:
    await asyncio.sleep(0)
    return left + right


async def fail() -> None:
    raise LookupError("no such row")


async def stop_the_loop() -> None:
    asyncio.get_running_loop().stop()
    await asyncio.get_running_loop().create_future()


async def hold_the_thread(seconds: float) -> None:
    time.sleep(seconds)  # noqa: ASYNC251  holding the loop is what the test is about


async def test_run_returns_the_value_of_the_coroutine_on_the_named_thread() -> None:
    """The plain case: arguments go over, the value comes back, another thread did the work."""

    async def thread_name() -> str:
        return threading.current_thread().name

    async with open_asyncio_thread() as portal:
        total = await portal.run(add, 2, 3)
        name = await portal.run(thread_name)

    assert (total, name) == (5, "meterd-asyncio")


async def test_an_error_of_the_job_is_raised_to_its_caller_and_harms_nobody_else() -> None:
    """One failed statement must not cost the portal."""
    async with open_asyncio_thread() as portal:
        with pytest.raises(LookupError, match="no such row"):
            await portal.run(fail)

        assert await portal.run(add, 1, 1) == 2


async def test_calling_with_wrong_arguments_raises_to_the_caller() -> None:
    """A TypeError before the coroutine exists must not vanish in the loop and park its caller."""
    async with open_asyncio_thread() as portal:
        with pytest.raises(TypeError):
            await portal.run(add, 1)  # type: ignore[arg-type]


async def test_context_variables_of_the_caller_are_seen_by_the_job_but_not_changed_by_it() -> None:
    """Log context follows a request into the store, and the store cannot leak any back."""
    request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="none")

    async def read_and_overwrite() -> str:
        seen = request_id.get()
        request_id.set("overwritten")
        return seen

    async with open_asyncio_thread() as portal:
        request_id.set("r-1")
        seen = await portal.run(read_and_overwrite)

    assert (seen, request_id.get()) == ("r-1", "r-1")


async def test_many_concurrent_jobs_each_get_their_own_answer() -> None:
    """Two thousand callers in flight at once: no answer is lost, doubled or swapped."""
    answers: dict[int, int] = {}

    async def ask(number: int) -> None:
        answers[number] = await portal.run(add, number, number)

    async with open_asyncio_thread() as portal:
        async with trio.open_nursery() as nursery:
            for number in range(2_000):
                nursery.start_soon(ask, number)

        assert portal.in_flight == 0

    assert answers == {number: 2 * number for number in range(2_000)}


async def test_a_cancel_reaches_the_job_and_run_returns_only_after_it_ended() -> None:
    """Whoever gives up may release what the job used: the job must really be over."""
    ended: list[str] = []

    async def tidy_up_slowly(gate: Gate) -> None:
        gate.reached.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await asyncio.sleep(0.05)
            ended.append("tidied up")

    async with open_asyncio_thread() as portal:
        gate = await portal.run(make_gate)
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                nursery.start_soon(cancel_when_reached, gate, scope)
                await portal.run(tidy_up_slowly, gate)

        assert scope.cancelled_caught
        assert ended == ["tidied up"]


async def cancel_when_reached(gate: Gate, scope: trio.CancelScope) -> None:
    await gate.reached_from_trio()
    scope.cancel()


async def test_a_call_in_a_cancelled_scope_never_starts() -> None:
    """Cancelled before it was posted: there is no effect to wonder about."""
    started: list[str] = []

    async def note() -> None:
        started.append("started")

    async with open_asyncio_thread() as portal:
        with trio.CancelScope() as scope:
            scope.cancel()
            await portal.run(note)
        await portal.run(add, 0, 0)

    assert scope.cancelled_caught
    assert started == []


async def test_a_call_cancelled_before_the_loop_took_it_never_starts() -> None:
    """Cancelled between posting and starting: still no effect."""
    started: list[str] = []
    holding, let_go = threading.Event(), threading.Event()

    async def hold() -> None:
        holding.set()
        let_go.wait()  # the loop takes nothing meanwhile

    async def note() -> None:
        started.append("started")

    async def cancel_soon(scope: trio.CancelScope) -> None:
        scope.cancel()
        let_go.set()

    async with open_asyncio_thread() as portal, trio.open_nursery() as nursery:
        nursery.start_soon(portal.run, hold)
        await trio.to_thread.run_sync(holding.wait)
        with trio.CancelScope() as scope:
            nursery.start_soon(cancel_soon, scope)
            await portal.run(note)

    assert scope.cancelled_caught
    assert started == []


async def test_a_value_wins_over_a_cancel() -> None:
    """A commit that happened is reported as such, though its caller was being cancelled."""

    async def commit_in_spite_of_the_cancel(gate: Gate) -> str:
        gate.reached.set()
        try:
            await gate.opened.wait()
        except asyncio.CancelledError:
            return "committed"
        return "not cancelled"

    async with open_asyncio_thread() as portal:
        gate = await portal.run(make_gate)
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                nursery.start_soon(cancel_when_reached, gate, scope)
                answer = await portal.run(commit_in_spite_of_the_cancel, gate)

                assert answer == "committed"
                await trio.lowlevel.checkpoint()  # here the cancel arrives

    assert scope.cancelled_caught


async def test_an_error_raised_in_answer_to_a_cancel_is_not_swallowed() -> None:
    """A clean-up that fails is news, also when its caller has given up."""

    async def break_on_cancel(gate: Gate) -> None:
        gate.reached.set()
        try:
            await gate.opened.wait()
        except asyncio.CancelledError:
            raise OSError("connection reset") from None

    async with open_asyncio_thread() as portal:
        gate = await portal.run(make_gate)
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                nursery.start_soon(cancel_when_reached, gate, scope)
                with pytest.raises(OSError, match="connection reset"):
                    await portal.run(break_on_cancel, gate)


async def test_a_job_cancelled_by_the_asyncio_side_is_an_error_and_not_a_trio_cancel() -> None:
    """A Cancelled that no Trio scope asked for would corrupt the caller's scopes."""

    async def cancel_myself() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    async with open_asyncio_thread() as portal:
        with pytest.raises(PortalClosedError):
            await portal.run(cancel_myself)

        assert await portal.run(add, 1, 2) == 3


async def test_when_the_loop_dies_every_waiter_is_told_and_the_block_raises() -> None:
    """A process without its store thread must stop, not wait for answers that cannot come."""
    told: list[str] = []

    async def wait_for_ever(gate: Gate) -> None:
        try:
            await portal.run(never, gate)
        except PortalClosedError:
            told.append("closed")

    with pytest.raises(PortalClosedError) as caught:
        async with open_asyncio_thread() as portal, trio.open_nursery() as nursery:
            for _ in range(10):
                gate = await portal.run(make_gate)
                nursery.start_soon(wait_for_ever, gate)
                await gate.reached_from_trio()
            with pytest.raises(PortalClosedError):
                await portal.run(stop_the_loop)
            await trio.sleep_forever()  # the block itself must be interrupted

    assert told == ["closed"] * 10
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert asyncio_threads() == []


async def test_after_the_loop_died_new_calls_are_refused() -> None:
    """No caller may be parked on a loop that cannot wake it."""
    with pytest.raises(PortalClosedError):
        async with open_asyncio_thread() as portal:
            with pytest.raises(PortalClosedError):
                await portal.run(stop_the_loop)

            assert not portal.is_open
            with trio.CancelScope(shield=True), pytest.raises(PortalClosedError):
                await portal.run(add, 1, 2)


async def test_a_job_that_exits_the_interpreter_ends_the_block() -> None:
    """SystemExit leaves any asyncio loop; it must not leave the process half alive."""

    async def leave() -> None:
        raise SystemExit(7)

    with pytest.raises(PortalClosedError):
        async with open_asyncio_thread() as portal:
            with pytest.raises((SystemExit, PortalClosedError)):
                await portal.run(leave)
            await trio.sleep_forever()

    assert asyncio_threads() == []


async def test_waiters_hear_of_a_dead_loop_even_if_its_clean_up_hangs() -> None:
    """A job that swallows every cancel may hold the dying loop, but nobody waits with it."""
    release = threading.Event()

    async def swallow_cancels(gate: Gate) -> None:
        gate.reached.set()
        while not release.is_set():
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                continue

    heard: list[str] = []

    async def call(gate: Gate) -> None:
        try:
            await portal.run(swallow_cancels, gate)
        except PortalClosedError:
            heard.append("closed")

    with pytest.raises(PortalClosedError):
        async with open_asyncio_thread(stop_s=0.2) as portal, trio.open_nursery() as nursery:
            gate = await portal.run(make_gate)
            nursery.start_soon(call, gate)
            await gate.reached_from_trio()
            with pytest.raises(PortalClosedError):
                await portal.run(stop_the_loop)
            await trio.sleep_forever()

    assert heard == ["closed"]
    release.set()
    await no_asyncio_thread_left()


async def no_asyncio_thread_left() -> None:
    for thread in threading.enumerate():
        if thread.name == "meterd-asyncio":
            await trio.to_thread.run_sync(thread.join, 10)
    assert asyncio_threads() == []


async def test_leaving_the_block_lets_a_job_in_flight_finish() -> None:
    """The last flush must commit although the shutdown has begun."""
    answers: list[str] = []

    async def call(portal: AsyncioThread, gate: Gate) -> None:
        answers.append(await portal.run(pass_gate, gate))

    async with trio.open_nursery() as nursery:
        async with open_asyncio_thread() as portal:
            gate = await portal.run(make_gate)
            nursery.start_soon(call, portal, gate)
            await gate.reached_from_trio()
            gate.loop.call_soon_threadsafe(gate.loop.call_later, 0.1, gate.opened.set)

        assert not portal.is_open

    assert answers == ["passed"]
    assert asyncio_threads() == []


async def test_leaving_the_block_cancels_what_does_not_finish_in_time() -> None:
    """A hung statement costs the drain deadline, not the shutdown."""
    told: list[str] = []

    async def call(portal: AsyncioThread, gate: Gate) -> None:
        try:
            await portal.run(never, gate)
        except PortalClosedError:
            told.append("closed")

    async with trio.open_nursery() as nursery:
        with trio.fail_after(10):
            async with open_asyncio_thread(drain_s=0.1) as portal:
                gate = await portal.run(make_gate)
                nursery.start_soon(call, portal, gate)
                await gate.reached_from_trio()

    assert told == ["closed"]
    assert asyncio_threads() == []


async def test_a_thread_that_does_not_end_is_reported_and_abandoned() -> None:
    """Code that holds the thread must not hold the shutdown."""
    told: list[str] = []

    async def call(portal: AsyncioThread) -> None:
        try:
            await portal.run(hold_the_thread, 1.0)
        except PortalClosedError:
            told.append("closed")

    async with trio.open_nursery() as nursery:
        with pytest.raises(PortalClosedError, match="did not end"):
            async with open_asyncio_thread(drain_s=0.05, stop_s=0.05) as portal:
                nursery.start_soon(call, portal)
                await trio.testing.wait_all_tasks_blocked()

    assert told == ["closed"]
    await no_asyncio_thread_left()


async def test_leaving_a_cancelled_block_still_stops_the_thread() -> None:
    """Cancel everything: the thread is not left behind."""
    with trio.CancelScope() as scope:
        async with open_asyncio_thread() as portal:
            await portal.run(add, 1, 2)
            scope.cancel()
            await trio.sleep_forever()

    assert scope.cancelled_caught
    assert asyncio_threads() == []


async def test_an_error_in_the_block_comes_out_unwrapped() -> None:
    """The portal adds no exception group around other people's errors."""
    with pytest.raises(ZeroDivisionError):
        async with open_asyncio_thread():
            raise ZeroDivisionError

    assert asyncio_threads() == []


async def test_a_loop_that_cannot_be_made_is_reported_to_the_opener() -> None:
    """Starting fails at once and typed, not with a hang."""

    def no_loop() -> asyncio.AbstractEventLoop:
        raise OSError("too many open files")

    with pytest.raises(PortalClosedError, match="did not start") as caught:
        async with open_asyncio_thread(loop_factory=no_loop):
            pytest.fail("the block must not be entered")

    assert isinstance(caught.value.__cause__, OSError)
    assert asyncio_threads() == []


async def test_the_portal_works_on_the_standard_loop_too() -> None:
    """Uvloop is a choice of speed, not of behaviour."""
    async with open_asyncio_thread(loop_factory=asyncio.new_event_loop) as portal:
        assert await portal.run(add, 20, 22) == 42
