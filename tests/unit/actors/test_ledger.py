"""The ledger: groups, order, retries, poison, bounds; and who may be told what is durable."""

# ruff: noqa: ARG001  # asking for autojump_clock is what makes the time virtual

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from meterd.actors.cells import ActorPolicy
from meterd.actors.ledger import FlushPolicy
from meterd.core.commands import Audited, ChangeOrganization, Denied, Heartbeat, Started
from meterd.core.plan import Contract
from meterd.errors import (
    ActorCrashedError,
    OverloadedError,
    OwnershipLostError,
    StoreUnavailableError,
)
from meterd.ports.trail import DeadLetter
from tests.make import NOW_MS
from tests.unit.actors.kernel import Ear, Kernel, running_kernel


NEVER = 10**9


async def beat(kernel: Kernel, elapsed_ms: int, task_id: str = "task_1") -> int:
    """Report a task's time and return the number to wait for."""
    answer = await kernel.organizations.ask("org_1", Heartbeat(task_id, elapsed_ms))
    return answer.seq


async def test_what_waits_together_is_one_transaction(autojump_clock: MockClock) -> None:
    """Group commit: many organizations, one flush."""
    async with running_kernel() as kernel:
        for number in range(2, 12):
            await kernel.create(f"org_{number}")
            await kernel.organizations.view(f"org_{number}")
        kernel.store.held["flush"] = gate = trio.Event()
        await kernel.start()
        await wait_all_tasks_blocked()
        for number in range(2, 12):
            await kernel.start(organization_id=f"org_{number}")
        before = kernel.store.count("flush")
        gate.set()
        for number in range(2, 12):
            await kernel.settle(f"org_{number}")

        assert kernel.store.count("flush") == before + 1


async def test_a_lost_reply_is_sent_again_and_counted_once(autojump_clock: MockClock) -> None:
    """The flush committed and said nothing: the same facts again change nothing."""
    async with running_kernel() as kernel:
        await kernel.start()
        await kernel.settle()
        await trio.sleep(700)
        kernel.store.fail_after["flush"] = 3

        seq = await beat(kernel, 650_000)
        await kernel.organizations.durable("org_1", seq)

        record = kernel.database.organizations["org_1"]
        assert kernel.ledger.flush_failures == 3
        assert sum(row.quantity_ms for row in record.rows.values()) == 650_000
        assert kernel.stored_used_ms() == 650_000


async def test_nothing_is_durable_before_the_commit(autojump_clock: MockClock) -> None:
    """An acknowledgement that a crash could take back would be a lie."""
    async with running_kernel() as kernel:
        await kernel.organizations.view("org_1")
        kernel.store.held["flush"] = gate = trio.Event()

        answer = await kernel.start()

        assert not kernel.organizations.is_durable("org_1", answer.seq)
        with pytest.raises(StoreUnavailableError):
            await kernel.organizations.durable("org_1", answer.seq)
        gate.set()
        await kernel.organizations.durable("org_1", answer.seq)
        assert kernel.organizations.is_durable("org_1", answer.seq)
        assert kernel.stored_seq() == answer.seq


async def test_who_gives_up_waiting_for_durability_leaves_nothing_behind(
    autojump_clock: MockClock,
) -> None:
    """Callers come again and again during an outage; memory must not grow with them."""
    async with running_kernel() as kernel:
        kernel.store.held["flush"] = trio.Event()
        answer = await kernel.start()
        for _ in range(3):
            with pytest.raises(StoreUnavailableError):
                await kernel.organizations.durable("org_1", answer.seq)

        assert kernel.organizations.acknowledgements._waiters == {}


async def test_listeners_hear_things_in_the_order_they_happen(autojump_clock: MockClock) -> None:
    """First what was decided, then that it is durable; and nothing after unsubscribing."""
    async with running_kernel() as kernel:
        await kernel.organizations.view("org_1")
        ear = Ear()
        stop = kernel.organizations.listen("org_1", ear)

        first = await kernel.start("task_1")
        second = await kernel.start("task_2")
        await kernel.settle()
        stop()
        await kernel.start("task_3")
        await kernel.settle()

        durable = [seq for what, seq in ear.heard if what == "durable"]
        assert durable[-1] == second.seq
        assert durable == sorted(durable)
        assert first.seq < second.seq


async def test_poison_costs_its_organization_and_nobody_else(autojump_clock: MockClock) -> None:
    """The batch is halved by organization, then by prefix: what came before it commits."""
    async with running_kernel() as kernel:
        for number in range(2, 9):
            await kernel.create(f"org_{number}")
            await kernel.organizations.view(f"org_{number}")
        await kernel.organizations.view("org_1")
        kernel.store.held["flush"] = gate = trio.Event()
        kernel.store.poison_tasks = {"task_bad"}
        good = await kernel.start("task_good", "agent_1")
        await wait_all_tasks_blocked()
        late = await kernel.start("task_late", "agent_2")
        bad = await kernel.start("task_bad", "agent_3")
        after = await kernel.start("task_after", "agent_4")
        others = [await kernel.start(organization_id=f"org_{n}") for n in range(2, 9)]
        gate.set()

        with pytest.raises(ActorCrashedError):
            await kernel.organizations.durable("org_1", after.seq)
        for number, answer in enumerate(others, start=2):
            await kernel.organizations.durable(f"org_{number}", answer.seq)

        await kernel.organizations.durable("org_1", late.seq)
        for answer in (bad, after):
            with pytest.raises(ActorCrashedError):
                kernel.organizations.is_durable("org_1", answer.seq)
        assert kernel.organizations.is_durable("org_1", good.seq)
        record = kernel.database.organizations["org_1"]
        assert set(record.tasks) == {"task_good", "task_late"}
        view = await kernel.organizations.view("org_1")
        assert view.agents_active == 2
        assert kernel.cell().strikes_ms != ()
        await kernel.ledger.drained()
        assert [letter.kind for letter in kernel.database.letters.values()] == ["facts"]


async def make_hole(kernel: Kernel, task_id: str = "task_bad") -> Any:
    """Let the store reject a start, and return the answer that must never be acknowledged."""
    kernel.store.poison_tasks = {task_id}
    bad = await kernel.start(task_id, "agent_bad")
    with pytest.raises(ActorCrashedError):
        await kernel.organizations.durable("org_1", bad.seq)
    kernel.store.poison_tasks = set()
    return bad


async def test_numbers_of_rejected_facts_are_never_used_again(autojump_clock: MockClock) -> None:
    """A late question about a rejected fact must not be answered by its successor's success."""
    async with running_kernel() as kernel:
        bad = await make_hole(kernel)

        good = await kernel.start("task_1")

        assert good.seq > bad.seq
        await kernel.organizations.durable("org_1", good.seq)
        with pytest.raises(ActorCrashedError):
            kernel.organizations.is_durable("org_1", bad.seq)


async def test_rejected_facts_stay_rejected_after_a_second_rejection(
    autojump_clock: MockClock,
) -> None:
    """Every rejection is remembered, not only the last."""
    async with running_kernel() as kernel:
        first = await make_hole(kernel, "bad_1")
        good = await kernel.start("task_1")
        await kernel.organizations.durable("org_1", good.seq)
        second = await make_hole(kernel, "bad_2")

        for bad in (first, second):
            with pytest.raises(ActorCrashedError):
                kernel.organizations.is_durable("org_1", bad.seq)
        assert kernel.organizations.is_durable("org_1", good.seq)


async def test_answers_without_facts_can_be_acknowledged_after_a_rejection(
    autojump_clock: MockClock,
) -> None:
    """A refusal or a repeat right after the reload is no rejected fact."""
    async with running_kernel(is_created=False) as kernel:
        await kernel.create(contract=Contract(agents=0))
        bad = await make_hole_by_change(kernel)

        denied = await kernel.start("task_2", "agent_2")

        assert isinstance(denied.outcome, Denied)
        assert denied.seq > bad
        await kernel.organizations.durable("org_1", denied.seq)


async def make_hole_by_change(kernel: Kernel) -> int:
    """Let the store reject a change of an organization that may start nothing."""
    change = ChangeOrganization(audited=Audited(actor="a", reason="r"), name="bad\0name")
    answer = await kernel.organizations.ask("org_1", change)
    with pytest.raises(ActorCrashedError):
        await kernel.organizations.durable("org_1", answer.seq)
    return answer.seq


async def test_a_crash_right_after_a_rejection_keeps_what_was_accepted_since(
    autojump_clock: MockClock,
) -> None:
    """The journal begins after a hole in the numbers, and is replayed all the same."""
    async with running_kernel() as kernel:
        await make_hole(kernel)
        kernel.store.held["flush"] = gate = trio.Event()
        await kernel.start("task_1")

        kernel.organizations.cells.restart("org_1")
        view = await kernel.organizations.view("org_1")

        assert view.agents_active == 1
        assert kernel.cell().restarts == 2
        gate.set()
        await kernel.settle()


async def test_an_organization_that_left_memory_after_a_rejection_is_acknowledged_as_ever(
    autojump_clock: MockClock,
) -> None:
    """Its numbers go on where they were, or new facts would look like rejected ones."""
    policy = ActorPolicy(passivate_after_ms=1_000)
    async with running_kernel(policy=policy) as kernel:
        bad = await make_hole(kernel)
        await trio.sleep(10)
        assert kernel.organizations.cells.get("org_1") is None

        good = await kernel.start("task_1")

        assert good.seq > bad.seq
        await kernel.organizations.durable("org_1", good.seq)


async def test_a_full_journal_refuses_new_work_and_drops_nothing(
    autojump_clock: MockClock,
) -> None:
    """Overload is said aloud; what was accepted is written when the store is back."""
    async with running_kernel(flush=FlushPolicy(journal_max=3)) as kernel:
        await kernel.organizations.view("org_1")
        kernel.store.fail_before["flush"] = 8
        accepted = [await kernel.start(f"task_{number}") for number in range(3)]
        with pytest.raises(OverloadedError):
            await kernel.start("task_3")

        await kernel.ledger.drained()

        assert all(isinstance(answer.outcome, Started) for answer in accepted)
        assert set(kernel.database.organizations["org_1"].tasks) == {
            f"task_{n}" for n in range(len(accepted))
        }
        assert kernel.ledger.unflushed == 0


async def test_everybody_who_waits_for_the_drain_is_told(autojump_clock: MockClock) -> None:
    """A stop and an operator may wait at the same time."""
    async with running_kernel() as kernel:
        kernel.store.held["flush"] = gate = trio.Event()
        await kernel.start()
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(kernel.ledger.drained)
                nursery.start_soon(kernel.ledger.drained)
                await wait_all_tasks_blocked()
                gate.set()


async def test_a_dead_letter_that_cannot_be_stored_does_not_stop_the_ledger(
    autojump_clock: MockClock,
) -> None:
    """Its text is in the log; the letters beside it are stored."""
    async with running_kernel() as kernel:
        for number, error in enumerate(["good", "with a \0 inside", "good too"]):
            kernel.ledger.bury(
                DeadLetter(
                    id=f"dead_{number}", at_ms=NOW_MS, address="a/b", kind="message", error=error
                )
            )

        await kernel.ledger.drained()

        assert set(kernel.database.letters) == {"dead_0", "dead_2"}


async def test_a_process_that_lost_its_database_writes_nothing_more(
    autojump_clock: MockClock,
) -> None:
    """The error ends the ledger: starting it again cannot help."""
    async with running_kernel(is_flushing=False) as kernel:
        answer = await kernel.start()
        kernel.database.take()

        with pytest.raises(OwnershipLostError):
            await kernel.ledger.run()

        assert not kernel.organizations.is_durable("org_1", answer.seq)
        assert kernel.database.organizations["org_1"].tasks == {}


async def test_a_busy_organization_does_not_starve_the_others(autojump_clock: MockClock) -> None:
    """A transaction is bounded, and who was served goes to the end of the line."""
    async with running_kernel(flush=FlushPolicy(rows_max=4, positions_max=4)) as kernel:
        await kernel.create("org_2")
        await kernel.organizations.view("org_1")
        await kernel.organizations.view("org_2")
        kernel.store.held["flush"] = gate = trio.Event()
        for number in range(30):
            await kernel.start(f"task_{number}", "agent_1" if number < 8 else f"agent_{number % 4}")
        other = await kernel.start("task_x", organization_id="org_2")
        flushes = kernel.store.count("flush")
        gate.set()

        await kernel.organizations.durable("org_2", other.seq)

        assert kernel.store.count("flush") - flushes <= 3
        await kernel.settle()
        seqs = [
            batch.seq
            for what, batches in kernel.store.calls
            if what == "flush"
            for batch in batches
            if batch.organization_id == "org_1"
        ]
        assert seqs == sorted(seqs)


async def test_reports_of_the_same_tasks_share_a_transaction(autojump_clock: MockClock) -> None:
    """Bounded are distinct tasks, not reports: the busier, the more of them a commit carries."""
    async with running_kernel(flush=FlushPolicy(rows_max=1, positions_max=3)) as kernel:
        for number in range(2):
            await kernel.start(f"task_{number}", f"agent_{number}")
        await kernel.settle()
        await trio.sleep(10)
        kernel.store.held["flush"] = gate = trio.Event()
        seq = 0
        for elapsed_ms in range(1, 50):
            for number in range(2):
                answer = await kernel.organizations.ask(
                    "org_1", Heartbeat(f"task_{number}", elapsed_ms)
                )
                seq = answer.seq
        flushes = kernel.store.count("flush")
        gate.set()

        await kernel.organizations.durable("org_1", seq)

        assert kernel.store.count("flush") - flushes <= 2
        assert kernel.stored_used_ms() == 2 * 49
