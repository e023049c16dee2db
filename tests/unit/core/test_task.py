from __future__ import annotations

import attrs
import pytest

from meterd.core.task import (
    CLAIM_TOLERANCE_MS,
    Task,
    TaskState,
    accepted_elapsed_ms,
    is_same_start,
    plausible_elapsed_ms,
)
from tests.organizations import NOON_MS, make_info, make_task


@pytest.mark.parametrize(
    ("claimed", "accepted"), [(0, 700), (700, 700), (5_999, 5_999), (6_000, 6_000), (6_001, 6_000)]
)
def test_a_claim_counts_up_to_what_can_have_passed(claimed: int, accepted: int) -> None:
    """One second after the start with 5 s of tolerance; never below what was accepted."""
    task = make_task(elapsed_ms=700)

    assert accepted_elapsed_ms(task, claimed, NOON_MS + 1_000) == accepted
    assert plausible_elapsed_ms(task.info, NOON_MS) == CLAIM_TOLERANCE_MS == 5_000


def test_time_run_before_the_start_can_have_passed() -> None:
    """An agent that had to start while meterd was away says so once."""
    info = make_info(initial_elapsed_ms=300_000)

    assert plausible_elapsed_ms(info, NOON_MS + 1) == 305_001


def test_accepted_time_is_billed_or_unbilled_and_billed_time_recorded_or_pending() -> None:
    """The split that the bill and the audit rest on."""
    task = make_task(elapsed_ms=100, metered_ms=70, recorded_ms=30)

    assert (task.unbilled_ms, task.pending_ms, task.task_id) == (30, 40, "task_1")


@pytest.mark.parametrize(
    ("state", "expected"),
    [(TaskState.RUNNING, None), (TaskState.FINISHED, 90), (TaskState.LOST, 50)],
)
def test_a_lost_task_ended_at_its_last_heartbeat(state: TaskState, expected: int | None) -> None:
    """Not when it was missed."""
    ended_at_ms = None if state is TaskState.RUNNING else 90
    task: Task = make_task(state=state, reported_at_ms=50, ended_at_ms=ended_at_ms)

    assert task.finished_at_ms == expected


def test_a_repeated_start_is_the_same_whatever_its_clock_says() -> None:
    """When a task started is meterd's word; everything else is the agent's."""
    known = make_info(user_id="u")

    assert is_same_start(known, attrs.evolve(known, started_at_ms=0))
    for change in ({"user_id": None}, {"agent_id": "b"}, {"initial_elapsed_ms": 1}):
        assert not is_same_start(known, attrs.evolve(known, **change))
    assert not is_same_start(known, attrs.evolve(known, metadata_json='{"a":1}'))
