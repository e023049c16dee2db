"""A running kernel in virtual time: organizations, ledger, timers and a store that can be troubled.

The store is the twin in memory; `Trouble` stands in front of it and holds calls back, or fails
them before or after they took effect.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import attrs
import trio

from meterd.actors.cells import ActorPolicy, Cells
from meterd.actors.ledger import FlushPolicy, Ledger
from meterd.actors.organizations import Organizations
from meterd.adapters.clock import SystemClock
from meterd.adapters.ids import IdSource
from meterd.adapters.memory.store import Database, MemoryStore
from meterd.core.commands import Command, Decision, Notice, StartTask
from meterd.core.decide import decide
from meterd.core.journal import OrganizationBatch
from meterd.core.organization import OrganizationState
from meterd.core.plan import NO_CONTRACT, Contract, Tier
from meterd.core.task import Task, TaskInfo
from meterd.errors import StoreRejectedError, StoreUnavailableError
from tests.make import NOW_MS, make_new, make_terms
from tests.organizations import make_rules


POISON_AGENT = "poison"
"""Starting a task of this agent makes the actor raise."""


def decide_unless_poison(state: OrganizationState, command: Command, now_ms: int) -> Decision:
    """Decide as ever, but raise for the poisonous agent."""
    if isinstance(command, StartTask) and command.info.agent_id == POISON_AGENT:
        raise ZeroDivisionError("poison")
    return decide(state, command, now_ms)


@attrs.define(eq=False)
class Trouble(MemoryStore):
    """The store in memory with holds and failures, by the name of the call."""

    held: dict[str, trio.Event] = attrs.Factory(dict)
    """A call waits for the event before it begins."""
    held_after: dict[str, trio.Event] = attrs.Factory(dict)
    """A call's answer waits for the event; what it did or read is already fixed."""
    fail_before: dict[str, int] = attrs.Factory(dict)
    fail_after: dict[str, int] = attrs.Factory(dict)
    poison_tasks: set[str] = attrs.Factory(set)
    """A flush that touches one of these is rejected."""
    unreadable: set[str] = attrs.Factory(set)
    """A reading that includes one of these organizations is rejected."""
    calls: list[tuple[str, Any]] = attrs.Factory(list)

    async def _around(self, name: str, argument: Any, work: Callable[[], Awaitable[Any]]) -> Any:
        self.calls.append((name, argument))
        if name in self.held:
            await self.held[name].wait()
        if self.fail_before.get(name, 0) > 0:
            self.fail_before[name] -= 1
            raise StoreUnavailableError(name, "away")
        result = await work()
        if name in self.held_after:
            await self.held_after[name].wait()
        if self.fail_after.get(name, 0) > 0:
            self.fail_after[name] -= 1
            raise StoreUnavailableError(name, "the reply was lost")
        return result

    async def flush(self, batches: Sequence[OrganizationBatch]) -> None:
        """Write, with trouble."""
        await self._around("flush", tuple(batches), lambda: self._flush(batches))

    async def _flush(self, batches: Sequence[OrganizationBatch]) -> None:
        for batch in batches:
            for task in (*batch.started, *batch.moved):
                if task.task_id in self.poison_tasks:
                    raise StoreRejectedError("flush facts", "poison")
        await MemoryStore.flush(self, batches)

    async def load(self, organization_ids: Sequence[str]) -> Any:
        """Read, with trouble."""
        if self.unreadable & set(organization_ids):
            raise StoreRejectedError("load organizations", "no open period")
        return await self._around(
            "load", tuple(organization_ids), lambda: MemoryStore.load(self, organization_ids)
        )

    async def recall_task(self, organization_id: str, task_id: str) -> Task | None:
        """Read a task, with trouble."""
        found: Task | None = await self._around(
            "recall_task", task_id, lambda: MemoryStore.recall_task(self, organization_id, task_id)
        )
        return found

    async def recall_period(self, organization_id: str, label: str) -> Any:
        """Read a period, with trouble."""
        return await self._around(
            "recall_period", label, lambda: MemoryStore.recall_period(self, organization_id, label)
        )

    async def bury(self, letters: Sequence[Any]) -> None:
        """Bury, with trouble; an error with a NUL in it cannot be stored."""
        if any("\0" in letter.error for letter in letters):
            raise StoreRejectedError("bury", "text that cannot be stored")
        await self._around("bury", tuple(letters), lambda: MemoryStore.bury(self, letters))

    def count(self, name: str) -> int:
        """Return how many calls of a name were made."""
        return sum(called == name for called, _ in self.calls)


class Ear:
    """A listener that writes down what it hears."""

    def __init__(self) -> None:
        self.notices: list[Notice] = []
        self.at_ms: list[int] = []
        self.heard: list[tuple[str, int]] = []
        self.now_ms: Callable[[], int] = lambda: 0

    def on_notices(self, notices: Sequence[Notice]) -> None:
        """Note what is announced."""
        self.notices += notices
        self.at_ms += [self.now_ms() for _ in notices]
        self.heard += [("notices", len(notices))]

    def on_durable(self, seq: int) -> None:
        """Note what is durable."""
        self.heard.append(("durable", seq))

    def on_dropped(self, seq: int) -> None:
        """Note what was rejected."""
        self.heard.append(("dropped", seq))


@attrs.define(kw_only=True)
class Kernel:
    """What a test drives."""

    database: Database
    store: Trouble
    ledger: Ledger
    organizations: Organizations
    clock: SystemClock

    def cell(self, organization_id: str = "org_1") -> Any:
        """Return a cell that is in memory."""
        cell = self.organizations.cells.get(organization_id)
        assert cell is not None, organization_id
        return cell

    def stored_seq(self, organization_id: str = "org_1") -> int:
        """Return the organization's number in the store."""
        return self.database.organizations[organization_id].seq

    def stored_used_ms(self, organization_id: str = "org_1") -> int:
        """Return the used time of the open period in the store."""
        periods = self.database.organizations[organization_id].periods.values()
        return sum(period.used_ms for _, period in periods)

    async def create(
        self,
        organization_id: str = "org_1",
        plan: Tier = Tier.STARTER,
        contract: Contract = NO_CONTRACT,
    ) -> None:
        """Create an organization in the store."""
        new = make_new(organization_id, terms=make_terms(plan, contract))
        assert await self.store.create_organization(new)

    async def start(
        self, task_id: str = "task_1", agent_id: str = "agent_1", organization_id: str = "org_1"
    ) -> Any:
        """Ask for a task and return the answer."""
        info = TaskInfo(task_id=task_id, agent_id=agent_id, started_at_ms=0)
        return await self.organizations.ask(organization_id, StartTask(info=info))

    async def settle(self, organization_id: str = "org_1") -> None:
        """Wait until everything the organization has decided is durable."""
        await self.organizations.durable(organization_id, self.ledger.last_seq(organization_id))


def jitter(chance: Random) -> Iterator[float]:
    """Yield the middle, for ever."""
    del chance
    while True:
        yield 0.5


@asynccontextmanager
async def running_kernel(
    *,
    policy: ActorPolicy | None = None,
    flush: FlushPolicy | None = None,
    database: Database | None = None,
    is_flushing: bool = True,
    is_created: bool = True,
    wall: Callable[[], int] | None = None,
    **rules: Any,
) -> AsyncIterator[Kernel]:
    """Give a kernel whose service tasks run, at NOW_MS, with org_1 in the store."""
    database = database or Database()
    begin_s = trio.current_time()
    wall = wall or (lambda: NOW_MS + int((trio.current_time() - begin_s) * 1_000))
    clock = SystemClock(wall)
    chance = Random(1)
    store = Trouble(database, epoch=database.take(), clock=clock)
    ids = IdSource(clock.now_ms, chance)
    ledger = Ledger(
        store, clock=clock, ids=ids, jitter=jitter(chance), policy=flush or FlushPolicy()
    )
    cells = Cells(
        store,
        ledger,
        rules=make_rules(**rules),
        clock=clock,
        ids=ids,
        jitter=jitter(chance),
        policy=policy or ActorPolicy(),
        decide=decide_unless_poison,
        slowing=lambda: clock.slowing,
    )
    organizations = Organizations(cells)
    kernel = Kernel(
        database=database, store=store, ledger=ledger, organizations=organizations, clock=clock
    )
    if is_created and "org_1" not in database.organizations:
        await kernel.create()
    async with trio.open_nursery() as nursery:
        if is_flushing:
            nursery.start_soon(ledger.run)
        nursery.start_soon(organizations.cells.activation.run)
        nursery.start_soon(organizations.cells.timers.run)
        nursery.start_soon(organizations.cells.run_janitor)
        yield kernel
        nursery.cancel_scope.cancel()
