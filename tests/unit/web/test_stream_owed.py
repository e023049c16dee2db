"""Answers that wait for the store: their order, and how plain reports share them."""

from __future__ import annotations

from typing import Any

from hypothesis import given, strategies as st
from msgspec import UNSET

from meterd.core.task import Task, TaskInfo, TaskState
from meterd.web import stream_owed
from meterd.web.stream_owed import OwedAck, OwedAnswers


def make_ack(seq: int, task_id: str = "t", ref: Any = UNSET) -> OwedAck:
    """Return an owed acknowledgement."""
    info = TaskInfo(task_id=task_id, agent_id="a", started_at_ms=0)
    task = Task(info, TaskState.RUNNING, None, seq, seq, 0, 0, 0, None, 0, 0, 0, seq)
    return OwedAck(seq, task, seq, False, ref)


def test_plain_reports_that_become_durable_together_share_one_acknowledgement() -> None:
    """One ack may cover several heartbeats of a task; those with a `ref` get their own."""
    owed = OwedAnswers()
    acks = [make_ack(1), make_ack(2, ref="r"), make_ack(3, "u"), make_ack(4), make_ack(9)]
    for ack in acks:
        owed.add(ack)

    assert owed.due(4) == [acks[1], acks[2], acks[3]]
    assert owed.due(8) == []
    assert owed.due(9) == [acks[4]]


@given(st.permutations(range(1, 20)))
def test_answers_leave_in_the_order_of_their_facts(order: list[int]) -> None:
    """Answers that had to wait for the actor are added late."""
    owed = OwedAnswers()
    for seq in order:
        owed.add(make_ack(seq, ref=seq))

    assert [one.seq for one in owed.due(100)] == sorted(order)


def test_many_waiting_reports_are_merged_without_putting_the_first_off() -> None:
    """While the store is away a stream costs two answers per task, not one per report."""
    owed = OwedAnswers()
    most = stream_owed.OWED_MAX
    for seq in range(1, 3 * most):
        owed.add(make_ack(seq, task_id=f"t{seq % 10}"))
        assert len(owed) <= most

    first = owed.due(10)
    assert [one.seq for one in first] == list(range(1, 11))
    last = {one.task.task_id: one.seq for one in owed.due(10**9) if isinstance(one, OwedAck)}
    assert sorted(last.values()) == list(range(3 * most - 10, 3 * most))


def test_answers_with_a_ref_are_never_merged() -> None:
    """Somebody waits for each of them."""
    owed = OwedAnswers()
    most = stream_owed.OWED_MAX
    for seq in range(most + 10):
        owed.add(make_ack(seq, ref=seq))

    assert len(owed) == most + 10
