"""The store of one meterd process, with everything that can go wrong between the two.

Behind it stands the twin in memory, which is held to PostgreSQL by the contract tests. A process
that dies takes its calls with it: they never return, and whether a flush that was under way took
effect is drawn, as the server may still finish what it was sent.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

import trio

from meterd.adapters.memory.store import Database, MemoryStore
from meterd.core.event import EventKey, KnownEvent
from meterd.core.journal import OrganizationBatch, StoredOrganization
from meterd.core.period import Period
from meterd.core.plan import Terms
from meterd.core.task import Task
from meterd.errors import StoreRejectedError, StoreUnavailableError
from meterd.ports.clock import Clock
from meterd.ports.trail import DeadLetter
from tests.simulation.determinism import Chance
from tests.simulation.weather import Weather


T = TypeVar("T")

STALL_S = (6.0, 40.0)
"""Longer than `ask_timeout` and `ack_timeout`, up to longer than a task may be silent."""


class Witness(Protocol):
    """Sees what the store does; the auditor and the trace of the run."""

    def on_flush(self, epoch: int, batches: Sequence[OrganizationBatch]) -> None:
        """See a transaction right after it committed."""
        ...

    def passing(self, point: str) -> None:
        """See a call pass a named point; the process may be killed there."""
        ...


class SimulatedStore:
    """`LedgerStore` for one process."""

    def __init__(
        self,
        database: Database,
        *,
        clock: Clock,
        chance: Chance,
        weather: Callable[[], Weather],
        witness: Witness,
    ) -> None:
        self.epoch = database.take()
        self._database = database
        self._store = MemoryStore(database, epoch=self.epoch, clock=clock)
        self._chance = chance
        self._weather = weather
        self._witness = witness
        self._under_way: list[Sequence[OrganizationBatch]] = []
        self._is_dead = False
        self.poison: dict[str, int] = {}

    def die(self) -> None:
        """Lose the process: what the server was already sent may still commit."""
        self._is_dead = True
        for batches in self._under_way:
            is_owner = self._database.epoch == self.epoch
            if is_owner and self._chance.happens(0.5) and not self._poisoned(batches):
                self._write(batches)
        self._under_way = []

    async def flush(self, batches: Sequence[OrganizationBatch]) -> None:
        """Write the batches, perhaps."""
        self._under_way.append(batches)
        try:
            await self._call("flush", lambda: self._flush(batches))
        finally:
            if batches in self._under_way:
                self._under_way.remove(batches)

    async def _flush(self, batches: Sequence[OrganizationBatch]) -> None:
        if self._poisoned(batches):
            raise StoreRejectedError("flush facts", "poison")
        await self._store.flush(batches)
        self._witness.on_flush(self.epoch, batches)

    def _write(self, batches: Sequence[OrganizationBatch]) -> None:
        try:
            for batch in batches:
                self._store._check(batch)
        except StoreRejectedError:
            return
        for batch in batches:
            self._store._write(batch)
        self._witness.on_flush(self.epoch, batches)

    def _poisoned(self, batches: Sequence[OrganizationBatch]) -> bool:
        for batch in batches:
            for task in (*batch.started, *batch.moved):
                left = self.poison.get(task.task_id, 0)
                if left and len(batches) == 1:
                    self.poison[task.task_id] = left - 1
                if left:
                    return True
        return False

    async def load(self, organization_ids: Sequence[str]) -> dict[str, StoredOrganization]:
        """Read organizations, perhaps."""
        return dict(await self._call("load", lambda: self._store.load(organization_ids)))

    async def recall_task(self, organization_id: str, task_id: str) -> Task | None:
        """Read a task, perhaps."""
        return await self._call(
            "recall_task", lambda: self._store.recall_task(organization_id, task_id)
        )

    async def recall_period(self, organization_id: str, label: str) -> tuple[Period, Terms] | None:
        """Read a closed period, perhaps."""
        return await self._call(
            "recall_period", lambda: self._store.recall_period(organization_id, label)
        )

    async def recall_events(
        self, organization_id: str, keys: Sequence[EventKey]
    ) -> Sequence[KnownEvent]:
        """Read events, perhaps."""
        return await self._call(
            "recall_events", lambda: self._store.recall_events(organization_id, keys)
        )

    async def recall_events_named(
        self, organization_id: str, event_id: str
    ) -> Sequence[KnownEvent]:
        """Read events by their id alone, perhaps."""
        return await self._call(
            "recall_events_named",
            lambda: self._store.recall_events_named(organization_id, event_id),
        )

    async def organizations_at_work(self) -> Sequence[str]:
        """Read who has running tasks; a process that cannot is started again."""
        return await self._call("organizations_at_work", self._store.organizations_at_work)

    async def bury(self, letters: Sequence[DeadLetter]) -> None:
        """Write dead letters, perhaps."""
        await self._call("bury", lambda: self._store.bury(letters))

    async def _call(self, name: str, work: Callable[[], Awaitable[T]]) -> T:
        weather, chance = self._weather(), self._chance
        await self._travel(weather)
        self._point(f"{name}:arrives")
        if chance.happens(weather.refused):
            raise StoreUnavailableError(name, "refused")
        is_stalled = chance.happens(weather.stalled)
        if is_stalled and chance.happens(0.5):
            await trio.sleep(chance.between(*STALL_S))
            raise StoreUnavailableError(name, "stalled before it began")
        result = await work()
        self._point(f"{name}:done")
        if is_stalled:
            await trio.sleep(chance.between(*STALL_S))
            raise StoreUnavailableError(name, "stalled after it was done")
        await self._travel(weather)
        if chance.happens(weather.lost_reply):
            raise StoreUnavailableError(name, "the reply was lost")
        return result

    async def _travel(self, weather: Weather) -> None:
        if weather.store_latency_s:
            await trio.sleep(self._chance.soon(weather.store_latency_s))
        else:
            await trio.lowlevel.checkpoint()
        if self._is_dead:  # it only runs until its cancellation reaches it
            await trio.sleep_forever()

    def _point(self, point: str) -> None:
        self._witness.passing(point)

    def weathered(self, port: Any) -> Any:
        """Return another port on the same database, its calls in the same weather."""
        return Weathered(port, self._call)


class Weathered:
    """A port whose every method is a call over the network; `Any` of the port's protocol."""

    def __init__(
        self, port: Any, call: Callable[[str, Callable[[], Awaitable[Any]]], Awaitable[Any]]
    ) -> None:
        self._port = port
        self._call = call

    def __getattr__(self, name: str) -> Any:
        """Return a method that goes through the weather."""
        method = getattr(self._port, name)

        async def call(*arguments: Any, **named: Any) -> Any:
            return await self._call(name, lambda: method(*arguments, **named))

        return call
