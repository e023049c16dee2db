"""Reports that arrive together, as the actors take them."""

# ruff: noqa: ARG001  # asking for autojump_clock is what makes the time virtual

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

import meterd.actors.cells as cells_module
from meterd.actors.cell import Phase
from meterd.actors.ledger import FlushPolicy
from meterd.core.commands import Beats, Command, Decision, Heartbeat, Heartbeats
from meterd.core.decide import commit
from meterd.core.organization import OrganizationState
from meterd.errors import ActorCrashedError, OverloadedError
from tests.unit.actors.kernel import Kernel, decide_unless_poison, running_kernel


async def ready(kernel: Kernel, *task_ids: str) -> None:
    """Start tasks and let ten seconds pass."""
    for number, task_id in enumerate(task_ids):
        await kernel.start(task_id, f"agent_{number}")
    await kernel.settle()
    await trio.sleep(10)


def taken(kernel: Kernel, *reports: Heartbeat) -> int:
    """Return how many reports are taken together."""
    answer = kernel.organizations.beat_nowait("org_1", reports)
    if answer is None:
        return 0
    assert isinstance(answer.outcome, Beats)
    return len(answer.outcome.tasks)


async def test_a_frame_costs_one_fact_and_is_acknowledged_after_the_commit(
    autojump_clock: MockClock,
) -> None:
    """Its number is durable when all of it is."""
    async with running_kernel() as kernel:
        await ready(kernel, "task_1", "task_2")
        waiting = kernel.organizations.ledger.unflushed

        answer = kernel.organizations.beat_nowait(
            "org_1", [Heartbeat("task_1", 4_000), Heartbeat("task_2", 3_000)]
        )

        assert answer is not None
        assert kernel.organizations.ledger.unflushed == waiting + 1
        assert not kernel.organizations.is_durable("org_1", answer.seq)
        await kernel.organizations.durable("org_1", answer.seq)
        assert kernel.stored_used_ms() == 7_000


async def test_nothing_is_taken_from_an_organization_that_is_not_ready(
    autojump_clock: MockClock,
) -> None:
    """It is asked for one by one, which waits."""
    async with running_kernel() as kernel:
        assert taken(kernel, Heartbeat("task_1", 1)) == 0
        await ready(kernel, "task_1")
        assert taken(kernel, Heartbeat("task_1", 1)) == 1
        kernel.cell().phase = Phase.LOADING
        assert taken(kernel, Heartbeat("task_1", 2)) == 0


async def test_time_passes_first(autojump_clock: MockClock) -> None:
    """A task that was silent for too long is lost before its report is looked at."""
    async with running_kernel() as kernel:
        await ready(kernel, "task_1")
        kernel.organizations.cells.timers.set = lambda *_: None  # type: ignore[method-assign]  # nobody is woken
        kernel.cell().timer_ms = 0
        await trio.sleep(70)

        assert taken(kernel, Heartbeat("task_1", 1)) == 0


async def test_a_full_journal_takes_nothing(autojump_clock: MockClock) -> None:
    """Refused, not dropped."""
    async with running_kernel(flush=FlushPolicy(interval_ms=60_000, journal_max=2)) as kernel:
        await ready(kernel, "task_1")
        for elapsed_ms in (1, 2):
            kernel.organizations.beat_nowait("org_1", [Heartbeat("task_1", elapsed_ms)])

        with pytest.raises(OverloadedError):
            kernel.organizations.beat_nowait("org_1", [Heartbeat("task_1", 3)])


async def test_a_crash_while_deciding_together_strikes_only_who_causes_it(
    autojump_clock: MockClock,
) -> None:
    """Asked for alone, the others of its frame are taken, and it is the dead letter."""

    def decide_unless_13(state: OrganizationState, command: Command, now_ms: int) -> Decision:
        asked = command.reports if isinstance(command, Heartbeats) else [command]
        if any(isinstance(one, Heartbeat) and one.elapsed_ms == 13 for one in asked):
            raise ZeroDivisionError("poison")
        return decide_unless_poison(state, command, now_ms)

    async with running_kernel() as kernel:
        await ready(kernel, "task_1")
        kernel.organizations.cells._decide = decide_unless_13
        reports = [Heartbeat("task_1", 1), Heartbeat("task_1", 13), Heartbeat("task_1", 20)]

        assert taken(kernel, *reports) == 0
        assert kernel.organizations.cells.crashes == 0

        kernel.organizations.ask_nowait("org_1", reports[0])
        with pytest.raises(ActorCrashedError):
            kernel.organizations.ask_nowait("org_1", reports[1])
        answer = await kernel.organizations.ask("org_1", reports[2])
        await kernel.organizations.durable("org_1", answer.seq)
        assert kernel.organizations.cells.crashes == 1
        assert kernel.stored_used_ms() == 20


async def test_a_crash_while_taking_effect_is_a_strike_for_the_frame(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The live state is forgotten, so nothing of the frame was half taken."""
    async with running_kernel() as kernel:
        await ready(kernel, "task_1")

        def broken(state: OrganizationState, decision: Decision) -> None:
            monkeypatch.setattr(cells_module, "commit", commit)
            state.seq += 1
            raise AssertionError("a bug")

        monkeypatch.setattr(cells_module, "commit", broken)
        with pytest.raises(ActorCrashedError):
            kernel.organizations.beat_nowait("org_1", [Heartbeat("task_1", 5)])
        await kernel.organizations.ask("org_1", Heartbeat("task_1", 9))
        await kernel.settle()

        assert kernel.organizations.cells.crashes == 1
        assert kernel.stored_used_ms() == 9
