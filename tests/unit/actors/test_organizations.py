"""The cells: deciding at once, waiting in order, crashing alone, leaving memory."""

# ruff: noqa: ARG001  # asking for autojump_clock is what makes the time virtual

from __future__ import annotations

from operator import itemgetter
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from meterd.actors.cell import Phase
from meterd.actors.cells import ActorPolicy
from meterd.actors.ledger import FlushPolicy
from meterd.core.commands import (
    Adjust,
    Adjusted,
    Audited,
    Beat,
    Denied,
    Finished,
    FinishTask,
    Heartbeat,
    Recalled,
    Started,
    StartTask,
    StopTasks,
    TaskLost,
    Tick,
)
from meterd.core.organization import DenialReason
from meterd.core.plan import Contract
from meterd.core.supervision import StrikePolicy
from meterd.core.task import TaskInfo, TaskOutcome, TaskState
from meterd.core.units import DAY_MS, MINUTE_MS, SECOND_MS
from meterd.errors import (
    ActorCrashedError,
    OrganizationUnknownError,
    OverloadedError,
    QuarantinedError,
    ShuttingDownError,
    StoreUnavailableError,
)
from tests.make import NOW_MS
from tests.unit.actors.kernel import POISON_AGENT, Ear, Kernel, running_kernel


AUDITED = Audited(actor="key_admin", reason="a test")
NEVER = 10**9


def new_start(task_id: str, agent_id: str = "agent_1") -> StartTask:
    """Return a start that has already been looked up in the store."""
    info = TaskInfo(task_id=task_id, agent_id=agent_id, started_at_ms=0)
    return StartTask(info=info, recalled=Recalled(None))


async def crash(kernel: Kernel, organization_id: str = "org_1") -> None:
    """Make an organization's actor raise."""
    with pytest.raises(ActorCrashedError):
        await kernel.organizations.ask(organization_id, new_start("bad", POISON_AGENT))


async def test_a_ready_organization_answers_without_a_checkpoint(autojump_clock: MockClock) -> None:
    """That nothing runs in between is what serializes increments without a lock."""
    async with running_kernel() as kernel:
        await kernel.start()
        ran = []

        async def bystander() -> None:
            ran.append(True)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(bystander)
            answer = await kernel.organizations.ask("org_1", Heartbeat("task_1", 0))
            assert ran == []

        assert isinstance(answer.outcome, Beat)


async def test_letters_are_decided_in_order_and_newcomers_do_not_overtake(
    autojump_clock: MockClock,
) -> None:
    """The last slot belongs to who asked first, also while the organization is being read."""
    async with running_kernel() as kernel:
        await kernel.create("org_2", contract=Contract(agents=1))
        kernel.store.held_after["load"] = gate = trio.Event()
        outcomes: list[Any] = []

        async def ask(number: int) -> None:
            command = new_start(f"task_{number}", f"agent_{number}")
            answer = await kernel.organizations.ask("org_2", command)
            outcomes.append((number, type(answer.outcome)))

        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(ask, number)
                await wait_all_tasks_blocked()
                assert kernel.organizations.ask_nowait("org_2", Tick()) is None
            assert len(kernel.cell("org_2").mailbox) == 3
            gate.set()

        assert sorted(outcomes, key=itemgetter(0)) == [(0, Started), (1, Denied), (2, Denied)]
        assert kernel.cell("org_2").mailbox is None
        assert kernel.cell("org_2").mailbox_peak == 3


async def test_activations_that_arrive_together_share_one_reading(
    autojump_clock: MockClock,
) -> None:
    """A thousand organizations waking up must not be a thousand round trips."""
    async with running_kernel() as kernel:
        for number in range(20):
            await kernel.create(f"org_x{number}")

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(kernel.organizations.view, f"org_x{number}")
                nursery.start_soon(kernel.organizations.view, f"org_x{number}")

        assert kernel.store.count("load") == 1


async def test_an_organization_that_cannot_be_read_is_quarantined_and_keeps_nobody_waiting(
    autojump_clock: MockClock,
) -> None:
    """One row that makes no sense must not keep the organizations read with it from working."""
    async with running_kernel() as kernel:
        names = [f"org_{number}" for number in range(2, 6)]
        for name in names:
            await kernel.create(name)
        kernel.store.unreadable = {"org_3"}
        seen: dict[str, str] = {}

        async def look(name: str) -> None:
            try:
                seen[name] = (await kernel.organizations.view(name)).organization_id
            except QuarantinedError:
                seen[name] = "quarantined"

        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(look, name)

        assert seen == {
            "org_2": "org_2",
            "org_3": "quarantined",
            "org_4": "org_4",
            "org_5": "org_5",
        }
        assert "no open period" in kernel.cell("org_3").last_error


async def test_an_unknown_organization_is_said_to_be_unknown(autojump_clock: MockClock) -> None:
    """And leaves nothing in memory."""
    async with running_kernel() as kernel:
        with pytest.raises(OrganizationUnknownError):
            await kernel.organizations.view("org_none")

        assert kernel.organizations.cells.get("org_none") is None


async def test_a_full_mailbox_refuses_and_makes_room_from_who_gave_up(
    autojump_clock: MockClock,
) -> None:
    """A bounded queue must not stay full of letters that nobody waits for."""
    policy = ActorPolicy(mailbox_max=2, ask_timeout_ms=1_000)
    async with running_kernel(policy=policy) as kernel:
        kernel.store.held["load"] = gate = trio.Event()
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(expect_away, kernel)
            await wait_all_tasks_blocked()
            with pytest.raises(OverloadedError):
                await kernel.organizations.ask("org_1", Tick())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kernel.organizations.view, "org_1")
            await wait_all_tasks_blocked()
            gate.set()


async def expect_away(kernel: Kernel) -> None:
    """Ask and be told that the organization could not be read in time."""
    with pytest.raises(StoreUnavailableError):
        await kernel.organizations.ask("org_1", new_start("given_up"))


async def test_who_gave_up_waiting_is_not_counted(autojump_clock: MockClock) -> None:
    """A start whose caller has gone must not take a slot behind everybody's back."""
    policy = ActorPolicy(ask_timeout_ms=1_000)
    async with running_kernel(policy=policy) as kernel:
        kernel.store.held["load"] = gate = trio.Event()
        await expect_away(kernel)

        gate.set()
        view = await kernel.organizations.view("org_1")

        assert view.agents_active == 0
        assert kernel.cell().state.seq == 0


async def test_an_absent_store_is_nobodys_strike(autojump_clock: MockClock) -> None:
    """Infrastructure being down must not quarantine customers."""
    async with running_kernel() as kernel:
        kernel.store.fail_before["load"] = 5

        answer = await kernel.start()

        assert isinstance(answer.outcome, Started)
        assert kernel.cell().strikes_ms == ()
        assert kernel.organizations.cells.activation.load_failures == 5
        assert kernel.cell().load_tries == 0


async def test_an_organization_that_waits_for_the_store_says_so(
    autojump_clock: MockClock,
) -> None:
    """An operator sees `backing_off`, not a mystery."""
    async with running_kernel() as kernel:
        kernel.store.fail_before["load"] = NEVER

        with pytest.raises(StoreUnavailableError):
            await kernel.organizations.ask("org_1", Tick())

        assert kernel.cell().phase is Phase.BACKING_OFF
        assert kernel.cell().load_tries > 0


async def test_a_crash_loses_nothing_that_was_accepted(autojump_clock: MockClock) -> None:
    """The live state is what is stored plus the journal, before the flush as after it."""
    async with running_kernel(flush=FlushPolicy(interval_ms=60_000)) as kernel:
        await kernel.start()
        await kernel.settle()
        await trio.sleep(10)
        await kernel.organizations.ask("org_1", Heartbeat("task_1", 9_000))

        await crash(kernel)
        view = await kernel.organizations.view("org_1")

        assert kernel.stored_used_ms() == 0  # not flushed yet
        assert view.used_ms == 9_000
        assert kernel.cell().restarts == 1
        [letter] = kernel.organizations.cells.dead_letters
        assert letter.address == "organization/org_1"
        assert "poison" in letter.error


async def test_a_reading_older_than_a_flush_that_committed_meanwhile_is_not_used(
    autojump_clock: MockClock,
) -> None:
    """Facts that left the journal and are not in what was read would be lost."""
    async with running_kernel() as kernel:
        await kernel.start()
        await kernel.settle()
        await trio.sleep(10)
        kernel.store.held["flush"] = flush = trio.Event()
        await kernel.organizations.ask("org_1", Heartbeat("task_1", 9_000))
        await wait_all_tasks_blocked()
        kernel.store.held_after["load"] = load = trio.Event()
        await crash(kernel)
        await wait_all_tasks_blocked()

        flush.set()
        await kernel.settle()
        load.set()
        view = await kernel.organizations.view("org_1")

        assert kernel.stored_used_ms() == 9_000
        assert view.used_ms == 9_000


async def test_strikes_quarantine_and_one_probe_decides(autojump_clock: MockClock) -> None:
    """A poisoned organization is let back for one message at a time, not for three."""
    policy = ActorPolicy(
        strikes=StrikePolicy(strikes_max=3, window_ms=60_000, quarantine_ms=90_000)
    )
    async with running_kernel(policy=policy) as kernel:
        for _ in range(3):
            await crash(kernel)
        assert kernel.cell().phase is Phase.QUARANTINED
        with pytest.raises(QuarantinedError) as refused:
            await kernel.organizations.ask("org_1", Tick())
        assert refused.value.retry_after_ms <= 90_000

        await trio.sleep(90)
        await crash(kernel)
        assert kernel.cell().phase is Phase.QUARANTINED

        await trio.sleep(90)
        assert isinstance((await kernel.start()).outcome, Started)
        assert kernel.cell().phase is Phase.READY
        await crash(kernel)
        await kernel.organizations.view("org_1")
        assert kernel.cell().phase is Phase.READY


async def test_an_operator_releases_a_quarantined_organization_and_restarts_a_ready_one(
    autojump_clock: MockClock,
) -> None:
    """Both read the truth again; neither is held against the organization."""
    async with running_kernel() as kernel:
        await kernel.start()
        for _ in range(3):
            await crash(kernel)

        assert kernel.organizations.cells.release("org_1")
        view = await kernel.organizations.view("org_1")
        assert view.agents_active == 1
        assert kernel.cell().strikes_ms == ()

        assert kernel.organizations.cells.restart("org_1")
        assert kernel.cell().phase is Phase.LOADING
        assert (await kernel.organizations.view("org_1")).agents_active == 1
        assert not kernel.organizations.cells.release("org_unknown")
        assert not kernel.organizations.cells.restart("org_unknown")


async def test_the_others_never_notice(autojump_clock: MockClock) -> None:
    """One organization crashes without end; 999 others keep answering at once."""
    async with running_kernel(is_created=False) as kernel:
        for number in range(1_000):
            await kernel.create(f"org_{number}")
        async with trio.open_nursery() as nursery:
            for number in range(1_000):
                nursery.start_soon(kernel.organizations.view, f"org_{number}")
        for _ in range(3):
            await crash(kernel, "org_7")

        answers = [
            kernel.organizations.ask_nowait(f"org_{number}", new_start("t"))
            for number in range(1_000)
            if number != 7
        ]

        assert all(answer is not None and isinstance(answer.outcome, Started) for answer in answers)
        phases = {cell.organization_id: cell.phase for cell in kernel.organizations.cells}
        assert phases.pop("org_7") is Phase.QUARANTINED
        assert set(phases.values()) == {Phase.READY}


async def test_stop_is_pushed_at_the_very_millisecond_the_quota_runs_out(
    autojump_clock: MockClock,
) -> None:
    """Two tasks burn two milliseconds in one; nobody has to report for the stop to come."""
    contract = Contract(agent_minutes=1, grace_percent=0)
    async with running_kernel(is_created=False, task_timeout_ms=300_000) as kernel:
        await kernel.create(contract=contract)
        ear = Ear()
        ear.now_ms = kernel.clock.now_ms
        kernel.organizations.listen("org_1", ear)
        await kernel.start("task_1", "agent_1")
        await trio.sleep(7.001)
        await kernel.start("task_2", "agent_2")
        at_ms = kernel.clock.now_ms()

        await trio.sleep(120)

        [stop] = [notice for notice in ear.notices if isinstance(notice, StopTasks)]
        assert stop == StopTasks(
            task_ids=("task_1", "task_2"), reason=DenialReason.PLAN_LIMIT_REACHED
        )
        left_ms = 60_000 - (at_ms - NOW_MS)
        assert ear.at_ms[ear.notices.index(stop)] == at_ms + -(-left_ms // 2)


async def test_a_silent_task_is_lost_and_frees_its_slot(autojump_clock: MockClock) -> None:
    """The timer of the actor sees to it; no message is needed."""
    async with running_kernel() as kernel:
        ear = Ear()
        ear.now_ms = kernel.clock.now_ms
        kernel.organizations.listen("org_1", ear)
        await kernel.start()

        await trio.sleep(61)

        assert TaskLost(task_id="task_1") in ear.notices
        assert ear.at_ms[ear.notices.index(TaskLost(task_id="task_1"))] == NOW_MS + MINUTE_MS
        assert kernel.cell().state.agents == {}


async def test_a_period_ends_by_the_clock(autojump_clock: MockClock) -> None:
    """A running task meets the new period's allowance from its first millisecond on."""
    async with running_kernel(task_timeout_ms=40 * DAY_MS) as kernel:
        await kernel.start()

        await trio.sleep(17 * DAY_MS // SECOND_MS + 0.01)  # past 1 March, 00:00:00

        state = kernel.cell().state
        assert state.period.label == "2026-03"
        assert [period.label for period in state.closed_periods] == ["2026-02"]


async def test_timers_follow_a_clock_that_is_slewed_or_stepped(autojump_clock: MockClock) -> None:
    """A system clock that runs fast must not make a period end late."""
    async with running_kernel(task_timeout_ms=40 * DAY_MS) as kernel:
        begin_s, begin_ms = trio.current_time(), kernel.clock.now_ms()
        kernel.clock._wall_source = lambda: (
            begin_ms + 50_000 + int((trio.current_time() - begin_s) * 1_000)
        )
        ear = Ear()
        ear.now_ms = kernel.clock.now_ms
        kernel.organizations.listen("org_1", ear)
        await kernel.create("org_2", contract=Contract(agent_minutes=10, grace_percent=0))
        kernel.organizations.listen("org_2", ear)
        await kernel.start(organization_id="org_2")

        await trio.sleep(15 * 60)

        stops = [
            at for at, one in zip(ear.at_ms, ear.notices, strict=True) if isinstance(one, StopTasks)
        ]
        assert len(stops) == 1
        assert stops[0] - (begin_ms + 10 * MINUTE_MS) <= 50


async def test_only_idle_and_durable_organizations_leave_the_memory(
    autojump_clock: MockClock,
) -> None:
    """Facts that are not written yet keep their organization, and so does a running task."""
    policy = ActorPolicy(passivate_after_ms=10_000)
    async with running_kernel(policy=policy, is_flushing=False) as kernel:
        await kernel.create("org_2")
        await kernel.organizations.view("org_2")
        await kernel.start()
        finish = FinishTask(task_id="task_1", elapsed_ms=0, outcome=TaskOutcome.SUCCEEDED)
        await kernel.organizations.ask("org_1", finish)

        await trio.sleep(30)
        assert kernel.organizations.cells.get("org_2") is None
        assert kernel.organizations.cells.get("org_1") is not None

        async with trio.open_nursery() as nursery:
            nursery.start_soon(kernel.ledger.run)
            await trio.sleep(30)
            nursery.cancel_scope.cancel()
        assert kernel.organizations.cells.get("org_1") is None
        assert kernel.organizations.cells.passivated == 2
        again = await kernel.organizations.ask("org_1", finish)
        assert isinstance(again.outcome, Finished)


async def test_what_the_store_said_is_not_used_after_a_reload(autojump_clock: MockClock) -> None:
    """A task that ended while its look-up was under way would start, and be billed, again."""
    policy = ActorPolicy(passivate_after_ms=1_000, ask_timeout_ms=60_000)
    async with running_kernel(policy=policy) as kernel:
        await kernel.organizations.view("org_1")
        kernel.store.held_after["recall_task"] = gate = trio.Event()
        answers: list[Any] = []

        async def slow() -> None:
            answers.append(await kernel.start("task_1"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(slow)
            await wait_all_tasks_blocked()
            await kernel.organizations.ask("org_1", new_start("task_1"))
            finish = FinishTask(task_id="task_1", elapsed_ms=0, outcome=TaskOutcome.SUCCEEDED)
            await kernel.organizations.ask("org_1", finish)
            await trio.sleep(10)
            assert kernel.organizations.cells.get("org_1") is None
            await kernel.organizations.view("org_1")
            gate.set()

        [answer] = answers
        assert answer.outcome.repeated
        assert answer.outcome.task.state is TaskState.FINISHED


async def test_adjustments_of_an_old_period_do_not_overwrite_each_other(
    autojump_clock: MockClock,
) -> None:
    """An old period is in the store only: each adjustment must see the ones before it."""
    async with running_kernel() as kernel:
        await kernel.organizations.view("org_1")
        await trio.sleep(100 * DAY_MS // SECOND_MS)
        await kernel.organizations.view("org_1")
        await kernel.settle()
        debit = Adjust(audited=AUDITED, agent_ms=60_000, label="2026-02")
        outcomes: list[Any] = []

        async def adjust() -> None:
            answer = await kernel.organizations.ask("org_1", debit)
            outcomes.append(answer.outcome)

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(adjust)
        await kernel.settle()

        assert [type(outcome) for outcome in outcomes] == [Adjusted] * 5
        record = kernel.database.organizations["org_1"]
        [february] = [p for _, p in record.periods.values() if p.label == "2026-02"]
        assert february.used_ms == february.recorded_ms == 300_000
        assert sum(row.quantity_ms for row in record.rows.values()) == 300_000


async def test_a_recall_that_hangs_is_given_up_in_time(autojump_clock: MockClock) -> None:
    """A frozen store must cost a caller seconds, not the connection."""
    async with running_kernel() as kernel:
        await kernel.organizations.view("org_1")
        kernel.store.held["recall_task"] = trio.Event()
        kernel.store.held["recall_period"] = trio.Event()
        begin_s = trio.current_time()

        with pytest.raises(StoreUnavailableError):
            await kernel.start()
        with pytest.raises(StoreUnavailableError):
            await kernel.organizations.ask(
                "org_1", Adjust(audited=AUDITED, agent_ms=1, label="2020-01")
            )

        assert trio.current_time() - begin_s <= 10


async def test_a_start_that_would_be_refused_is_refused_although_the_store_hangs(
    autojump_clock: MockClock,
) -> None:
    """Enforcement does not wait for the store."""
    async with running_kernel(is_created=False) as kernel:
        await kernel.create(contract=Contract(agents=1))
        await kernel.start("task_1", "agent_1")
        kernel.store.held["recall_task"] = trio.Event()

        answer = await kernel.start("task_2", "agent_2")

        assert answer.outcome == Denied(reason=DenialReason.AGENT_LIMIT_REACHED)


async def test_running_tasks_are_timed_from_the_start_of_a_new_process(
    autojump_clock: MockClock,
) -> None:
    """Silence while meterd was down is nobody's fault; silence after it is."""
    async with running_kernel() as kernel:
        await kernel.start()
        await kernel.settle()
        database = kernel.database
    await trio.sleep(3_600)
    async with running_kernel(database=database) as kernel:
        await kernel.organizations.cells.activate_at_work()
        assert set(kernel.cell().state.running) == {"task_1"}

        await trio.sleep(59)
        assert set(kernel.cell().state.running) == {"task_1"}
        await trio.sleep(2)
        assert set(kernel.cell().state.running) == set()


async def test_stopping_refuses_new_work_and_whoever_waits(autojump_clock: MockClock) -> None:
    """After `stop` nothing can be accepted that the last flush would miss."""
    async with running_kernel() as kernel:
        await kernel.start()
        await kernel.create("org_2")
        kernel.store.held["load"] = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_shutting_down, kernel, "org_2")
            await wait_all_tasks_blocked()
            kernel.organizations.cells.stop()
        await expect_shutting_down(kernel, "org_1")


async def expect_shutting_down(kernel: Kernel, organization_id: str) -> None:
    """Ask and be told that meterd is stopping."""
    with pytest.raises(ShuttingDownError):
        await kernel.organizations.ask(organization_id, Heartbeat("task_1", 1))


async def test_a_trace_is_kept_when_an_operator_has_switched_it_on(
    autojump_clock: MockClock,
) -> None:
    """Inspection needs no message and works on one actor alone."""
    async with running_kernel() as kernel:
        await kernel.start()
        assert kernel.cell().trace is None

        assert kernel.organizations.cells.trace("org_1", is_on=True)
        for elapsed_ms in (1, 2, 3):
            await kernel.organizations.ask("org_1", Heartbeat("task_1", elapsed_ms))
        entries = kernel.cell().trace.entries
        assert kernel.organizations.cells.trace("org_1", is_on=False)

        assert [entry.number for entry in entries] == [1, 2, 3]
        assert "elapsed_ms=3" in entries[-1].message
        assert kernel.cell().trace is None


async def test_honest_reports_are_counted_in_full_while_the_system_clock_is_set_back(
    autojump_clock: MockClock,
) -> None:
    """A correction by 50 s slows our clock for 17 minutes; the agents' time is real time."""
    begin_s, offset_ms = trio.current_time(), 0

    def wall() -> int:
        return NOW_MS + int((trio.current_time() - begin_s) * 1_000) + offset_ms

    async with running_kernel(wall=wall) as kernel:
        await kernel.start()
        offset_ms = -50_000

        async def beat(elapsed_ms: int) -> Beat:
            answer = await kernel.organizations.ask("org_1", Heartbeat("task_1", elapsed_ms))
            assert isinstance(answer.outcome, Beat), answer
            return answer.outcome

        beats = []
        for number in range(1, 121):
            await trio.sleep(10)
            beats.append(await beat(number * 10_000))

        assert [beat.clamped for beat in beats] == [False] * 120
        assert beats[-1].task.elapsed_ms == 1_200_000
        assert kernel.clock.now_ms() - NOW_MS == 1_200_000 - 50_000
        assert (await beat(1_210_000)).clamped
