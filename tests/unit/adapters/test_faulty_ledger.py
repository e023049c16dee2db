"""The faulty store fails where it says, so that tests on it mean what they say."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from meterd.adapters.memory.faults import Fault, FaultyLedger
from meterd.adapters.memory.store import Database, MemoryStore
from meterd.errors import StoreUnavailableError
from tests.make import FixedClock, make_batch, make_new


async def make_faulty(*faults: Fault) -> tuple[FaultyLedger, MemoryStore]:
    """Return a store with org_1 that draws these faults in order, and the one behind it."""
    database = Database()
    store = MemoryStore(database, epoch=database.take(), clock=FixedClock())
    await store.create_organization(make_new())
    drawn = iter(faults)
    return FaultyLedger(store, lambda _: next(drawn)), store


async def test_a_fault_before_the_work_leaves_nothing_and_one_after_it_everything() -> None:
    """The caller sees the same error: it cannot know, and must repeat."""
    faulty, store = await make_faulty(Fault.BEFORE, Fault.AFTER, Fault.NONE)

    with pytest.raises(StoreUnavailableError):
        await faulty.flush([make_batch(seq=1)])
    assert (await store.load(["org_1"]))["org_1"].seq == 0
    with pytest.raises(StoreUnavailableError):
        await faulty.flush([make_batch(seq=1)])
    assert (await store.load(["org_1"]))["org_1"].seq == 1

    assert (await faulty.load(["org_1"]))["org_1"].seq == 1


async def test_a_stalled_call_has_done_its_work_when_it_is_given_up(
    autojump_clock: MockClock,
) -> None:
    """A cancelled write is unknown, not undone; this is the case where it was done."""
    faulty, store = await make_faulty(Fault.STALL, Fault.STALL)

    with trio.move_on_after(5) as scope:
        await faulty.flush([make_batch(seq=1)])
    assert scope.cancelled_caught
    assert (await store.load(["org_1"]))["org_1"].seq == 1

    assert await faulty.organizations_at_work() == []
    assert autojump_clock.current_time() >= faulty.stall_s


async def test_a_call_of_a_crashed_process_has_no_effect_and_no_answer(
    autojump_clock: MockClock,
) -> None:
    """A crash is no cancel: nothing of what was about to happen happens."""
    faulty, store = await make_faulty(Fault.GONE)

    with trio.move_on_after(1_000) as scope:
        await faulty.flush([make_batch(seq=1)])

    assert scope.cancelled_caught
    assert (await store.load(["org_1"]))["org_1"].seq == 0
    assert autojump_clock.current_time() >= 1_000
