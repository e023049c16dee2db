"""The operator of a simulated world: changes plans, adjusts, suspends, restarts, releases."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import trio

from meterd.core.commands import Adjust, Adjusted, Audited, ChangeOrganization, Command
from meterd.core.organization import Hold
from meterd.core.plan import Contract, Tier
from meterd.errors import MeterdError
from tests.simulation.determinism import Chance
from tests.simulation.meterd_process import MeterdProcess


if TYPE_CHECKING:
    from tests.simulation.world import World


class Operator:
    """Somebody with an admin key."""

    def __init__(self, world: World, chance: Chance) -> None:
        self._world = world
        self._chance = chance
        self._orders = 0

    async def run(self) -> None:
        """Order something every now and then; an order dies with the process it was given to."""
        chance, every_s = self._chance, self._world.weather.orders_every_s
        while every_s:
            await trio.sleep(chance.soon(every_s))
            process = self._world.current
            if process is not None:
                organization_id = chance.pick(*self._world.organization_ids)
                self._order(process, organization_id)

    def _order(self, process: MeterdProcess, organization_id: str) -> None:
        chance = self._chance
        self._orders += 1
        reason = f"order {self._orders}"
        audited = Audited(actor="key_admin", reason=reason)
        what = chance.whole(0, 9)
        if what == 0:
            process.organizations.cells.restart(organization_id)
        elif what == 1:
            process.organizations.cells.release(organization_id)
        elif what in {2, 3}:
            agent_ms = chance.pick(-60_000, -1, 1, 59_999, 90_000, chance.whole(1, 300_000))
            record = self._world.database.organizations[organization_id]
            labels = [period.label for _, period in record.periods.values()]
            command = Adjust(
                audited=audited, agent_ms=agent_ms, label=chance.pick(None, chance.pick(*labels))
            )
            self._world.auditor.on_order(reason, organization_id, agent_ms)
            process.spawn(lambda: self._give(process, organization_id, command, reason))
        else:
            change = ChangeOrganization(audited=audited)
            if what in {4, 5, 6}:
                contract = Contract(
                    agents=chance.pick(1, 2, 4), agent_minutes=chance.pick(0, 1, 2, 5, 20)
                )
                change = attrs.evolve(change, contract=contract)
            elif what == 7:
                plan = chance.pick(Tier.FREE, Tier.STARTER, Tier.ENTERPRISE)
                change = attrs.evolve(change, plan=plan)
            elif what == 8:
                change = attrs.evolve(change, place=Hold.OPERATOR)
            else:
                change = attrs.evolve(change, lift=Hold.OPERATOR)
            process.spawn(lambda: self._give(process, organization_id, change, None))

    async def _give(
        self, process: MeterdProcess, organization_id: str, command: Command, reason: str | None
    ) -> None:
        await self._ask(process, organization_id, command, reason)

    async def _ask(
        self, process: MeterdProcess, organization_id: str, command: Command, reason: str | None
    ) -> bool:
        """Ask as a route does: the answer counts when it is durable."""
        try:
            answer = await process.organizations.ask(organization_id, command)
            await process.organizations.durable(organization_id, answer.seq)
        except MeterdError:
            return False
        if process.is_dead:
            return False
        if reason is not None and isinstance(answer.outcome, Adjusted):
            self._world.auditor.on_order_acknowledged(reason)
        return True

    def release_all(self, process: MeterdProcess) -> None:
        """Forgive every quarantined organization."""
        for cell in list(process.organizations.cells):
            process.organizations.cells.release(cell.organization_id)

    async def make_room(self, organization_id: str) -> None:
        """Leave an organization less than two minutes before its hard limit, and two agents."""
        record = self._world.database.organizations[organization_id]
        used_ms = record.periods[max(record.periods)][1].used_ms
        minutes = 1
        while minutes * 66_000 < used_ms + 20_000:
            minutes += 1
        change = ChangeOrganization(
            audited=Audited(actor="key_admin", reason="make room"),
            plan=Tier.STARTER,
            contract=Contract(agents=10, agent_minutes=minutes),
            lift=Hold.OPERATOR,
        )
        while True:
            process = self._world.current
            if process is not None and await self._ask(process, organization_id, change, None):
                return
            await trio.sleep(1)
