"""One meterd process of a simulated world: the real core, actors, ledger and agent sessions.

A crash is not a cancel: the process is fenced off first - its store, its connections and its
orders have no effect any more - and only then are its tasks thrown away.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast

import trio

from meterd.actors.cells import ActorPolicy, Decide
from meterd.actors.keyring import Principal
from meterd.actors.ledger import FlushPolicy, Ledger
from meterd.actors.organizations import Organizations
from meterd.actors.supervisor import EscalatedError, Service
from meterd.adapters.clock import SystemClock
from meterd.adapters.ids import IdSource
from meterd.adapters.memory.store import Database
from meterd.core.organization import Rules
from meterd.core.supervision import StrikePolicy
from meterd.errors import OwnershipLostError, StoreUnavailableError
from meterd.web.agent_session import AgentSession
from meterd.web.services import WebServices
from tests.organizations import CATALOGUE
from tests.simulation.determinism import Chance
from tests.simulation.network import Line, ServerEnd
from tests.simulation.store import SimulatedStore, Witness
from tests.simulation.weather import Weather


EXPECTED_ENDS = (OwnershipLostError, EscalatedError, StoreUnavailableError)
"""What a process may die of by itself; anything else is a bug."""


class MeterdProcess:
    """One process from its start to its end."""

    def __init__(
        self,
        database: Database,
        *,
        chance: Chance,
        wall_ms: Callable[[], int],
        weather: Callable[[], Weather],
        witness: Witness,
        decide: Decide,
    ) -> None:
        settings = weather()
        self.is_dead = False
        self.is_accepting = False
        self.clock = SystemClock(wall_ms)
        self.store = SimulatedStore(
            database, clock=self.clock, chance=chance, weather=weather, witness=witness
        )
        self.epoch = self.store.epoch
        ids = IdSource(self.clock.now_ms, chance.random)
        self.ledger = Ledger(
            self.store,
            clock=self.clock,
            ids=ids,
            jitter=chance.jitter(),
            policy=FlushPolicy(
                interval_ms=settings.flush_interval_ms,
                rows_max=settings.rows_max,
                journal_max=settings.journal_max,
            ),
        )
        self.organizations = Organizations(
            self.store,
            self.ledger,
            rules=Rules(
                catalogue=CATALOGUE,
                task_timeout_ms=settings.task_timeout_ms,
                record_interval_ms=settings.record_interval_ms,
            ),
            clock=self.clock,
            ids=ids,
            jitter=chance.jitter(),
            policy=ActorPolicy(
                mailbox_max=settings.mailbox_max,
                ask_timeout_ms=settings.ack_timeout_ms,
                ack_timeout_ms=settings.ack_timeout_ms,
                passivate_after_ms=settings.passivate_after_ms,
                strikes=StrikePolicy(quarantine_ms=20_000),
            ),
            decide=decide,
            slowing=lambda: self.clock.slowing,
        )
        self.ended = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._lines: list[Line] = []

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Live; returns when the process has died, however it did."""
        organizations = self.organizations
        services = {
            "ledger": self.ledger.run,
            "activation": organizations.cells.activation.run,
            "timers": organizations.cells.timers.run,
            "janitor": organizations.cells.run_janitor,
        }
        task_status.started()
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                if self.is_dead:
                    return
                for name, run in services.items():
                    nursery.start_soon(Service(name, run, clock=self.clock).run)
                await organizations.cells.activate_at_work()
                self.is_accepting = True
                await trio.sleep_forever()
        except* EXPECTED_ENDS:
            pass
        finally:
            self.die()
            self.ended.set()

    def die(self) -> None:
        """Lose the process at this very step."""
        if self.is_dead:
            return
        self.is_dead, self.is_accepting = True, False
        self.store.die()
        lines, self._lines = self._lines, []
        for line in lines:
            line.cut()
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    async def stop(self, deadline_s: float) -> None:
        """Stop as a signal would: nothing new, flush what is accepted, then end."""
        self.is_accepting = False
        self.organizations.cells.stop()
        with trio.move_on_after(deadline_s):
            await self.ledger.drained()
        self.die()

    def spawn(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run something that dies with the process."""
        if self._nursery is not None and not self.is_dead:
            self._nursery.start_soon(work)

    def open_session(self, end: ServerEnd) -> AgentSession:
        """Begin an agent stream."""
        self._lines.append(end.line)
        principal = Principal(
            key_id="key_1",
            organization_id=end.client.organization_id,
            scopes=frozenset({"agent"}),
        )
        services: Any = SimpleNamespace(
            organizations=self.organizations,
            config=SimpleNamespace(upgrade_url=None),
            connections=None,
            keyring=SimpleNamespace(
                on_revoked=lambda _key_id, _listener: lambda: None, is_revoked=lambda _key_id: False
            ),
        )
        return AgentSession(
            end, services=cast("WebServices", services), principal=principal, spawn=self.spawn
        )
