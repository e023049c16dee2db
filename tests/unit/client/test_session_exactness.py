from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from meterd.client.policy import FailClosed, FailOpen
from tests.unit.client.world import World


TASKS = tuple(f"task-{number}" for number in range(3))
indexes = st.integers(min_value=0, max_value=50)


class Weather(RuleBasedStateMachine):
    """Any order of loss, repetition, delay, swapping, cuts and time; then fair weather."""

    policy: FailOpen | FailClosed = FailOpen()

    def __init__(self) -> None:
        super().__init__()
        self.world = World(unreachable=self.policy)
        self.world.obeys_stop = True

    @rule(task_id=st.sampled_from(TASKS))
    def start(self, task_id: str) -> None:
        if task_id not in self.world.runs:
            self.world.start(task_id, agent_id=f"agent of {task_id}")
            self.world.collect()

    @rule(task_id=st.sampled_from(TASKS), outcome=st.sampled_from(["succeeded", "failed"]))
    def finish(self, task_id: str, outcome: Any) -> None:
        run = self.world.runs.get(task_id)
        if run is not None and run.ran_ms is None and run.error is None:
            self.world.finish(task_id, outcome)
            self.world.collect()

    @rule(ms=st.one_of(st.integers(1, 400), st.integers(400, 20_000), st.just(70_000)))
    def time_passes(self, ms: int) -> None:
        self.world.advance(ms)

    @rule()
    def connect(self) -> None:
        self.world.connect()

    @rule(ms=st.integers(10_000, 90_000))
    def outage(self, ms: int) -> None:
        self.world.cut()
        self.world.advance(ms)

    @rule(code=st.sampled_from([1006, 1012, 4408, 4429, 4508]))
    def cut(self, code: int) -> None:
        self.world.cut(code)

    @rule(status=st.sampled_from([None, 503, 404]))
    def refuse(self, status: int | None) -> None:
        connect_at_ms = self.world.session.connect_at_ms()
        if connect_at_ms is not None and connect_at_ms <= self.world.now_ms:
            self.world.refuse(status)

    @precondition(lambda self: self.world.outgoing)
    @rule(index=indexes, again=st.booleans())
    def deliver(self, index: int, again: bool) -> None:
        self.world.deliver(index % len(self.world.outgoing), again=again)

    @precondition(lambda self: self.world.outgoing)
    @rule(index=indexes)
    def lose_message(self, index: int) -> None:
        del self.world.outgoing[index % len(self.world.outgoing)]

    @precondition(lambda self: self.world.incoming)
    @rule(index=indexes, again=st.booleans())
    def answer(self, index: int, again: bool) -> None:
        self.world.answer(index % len(self.world.incoming), again=again)

    @precondition(lambda self: self.world.incoming)
    @rule(index=indexes)
    def lose_answer(self, index: int) -> None:
        del self.world.incoming[index % len(self.world.incoming)]

    @rule(is_failing=st.booleans())
    def store_comes_and_goes(self, is_failing: bool) -> None:
        self.world.book.error = "store_unavailable" if is_failing else None

    @rule(ms=st.integers(0, 15_000))
    def all_is_well_for_a_moment(self, ms: int) -> None:
        self.world.connect()
        self.world.flow()
        self.world.advance(ms)

    def teardown(self) -> None:
        """Let the weather clear, end every body, and compare the book with what was run."""
        world = self.world
        world.book.error = None
        world.run_until(lambda: all(r.begun_at_ms or r.error for r in world.runs.values()))
        for _ in range(len(world.runs)):
            world.connect()
            world.flow()
            world.advance(1_000)
        for task_id, run in world.runs.items():
            if run.begun_at_ms is not None and run.ran_ms is None:
                world.finish(task_id, "cancelled")
        world.run_until(lambda: world.session.task_count == 0)

        for task_id, run in world.runs.items():
            booked = world.book.tasks.get(task_id)
            if run.begun_at_ms is None:
                assert booked is None or booked.elapsed_ms == 0, (task_id, booked)
            else:
                assert booked is not None, task_id
                assert (booked.elapsed_ms, booked.outcome) == (run.ran_ms, run.outcome), task_id
                assert (run.settled_ms, run.gave_up) == (run.ran_ms, None)


class OpenWeather(Weather):
    policy: FailOpen | FailClosed = FailOpen()


class ClosedWeather(Weather):
    policy: FailOpen | FailClosed = FailClosed()


EXAMPLES = int(os.environ.get("METERD_CLIENT_EXAMPLES", "150"))
STEPS = settings(
    max_examples=EXAMPLES,
    stateful_step_count=80,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def test_whatever_the_network_does_the_server_ends_with_what_a_fail_open_agent_ran() -> None:
    """Loss, repeats, swaps and outages change when meterd learns of the work, never how much."""
    run_state_machine_as_test(OpenWeather, settings=STEPS)


def test_whatever_the_network_does_the_server_ends_with_what_a_fail_closed_agent_ran() -> None:
    """The same where nothing may start without meterd's word; what never began counts nothing."""
    run_state_machine_as_test(ClosedWeather, settings=STEPS)
