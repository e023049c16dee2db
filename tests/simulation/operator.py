"""The operator of a simulated world: changes plans, adjusts, suspends, restarts, releases."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

import attrs
import trio

from meterd.core.commands import (
    Adjust,
    Adjusted,
    Audited,
    ChangeOrganization,
    ChangeSettings,
    Command,
)
from meterd.core.organization import Hold
from meterd.core.plan import UNSET, Contract, Tier
from meterd.errors import MeterdError
from tests.simulation.auditor import CAP_REASON
from tests.simulation.determinism import Chance
from tests.simulation.meterd_process import MeterdProcess


if TYPE_CHECKING:
    from tests.simulation.world import World


def drawn_contract(chance: Chance, *, is_sold: bool = False) -> Contract:
    """Return a contract: some stop soon, some go on at a price; those sold usually do."""
    if is_sold and chance.happens(0.7):
        return Contract(
            agents=chance.pick(1, 2, 4),
            agent_minutes=1,
            grace_percent=2_000,
            overage_usd_per_minute=chance.pick(Decimal("0.05"), Decimal("0.033333")),
        )
    return Contract(
        agents=chance.pick(1, 1, 2),
        agent_minutes=chance.pick(0, 1, 1, 1, 2, 5, 20, 100),
        grace_percent=chance.pick(10, 10, 1_000, 2_000),
        overage_usd_per_minute=chance.pick(Decimal("0.05"), Decimal("0.07"), Decimal("0.033333")),
    )


class Operator:
    """Somebody with an admin key."""

    def __init__(self, world: World, name: str) -> None:
        self._world = world
        self._name = name
        self._chance = Chance(world.seed, name)
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

    async def debit_all(self) -> None:
        """Book some minutes for everybody at the beginning, so that somebody is past the line."""
        for organization_id in self._world.organization_ids:
            await trio.sleep(self._chance.between(0.5, 5))
            process = self._world.current
            if process is not None:
                self._adjust(process, organization_id, self._chance.whole(2, 10) * 60_000, None)

    async def be_capped(self) -> None:
        """Let customers change the cap on what they pay for overage, and be sold more."""
        chance, every_s = self._chance, self._world.weather.settings_every_s
        while every_s:
            await trio.sleep(chance.soon(every_s))
            organization_id = chance.pick(*self._world.organization_ids)
            self.cap(organization_id, chance.pick(None, "0.05", "0.12", "0.3", "0.5"))
            process = self._world.current
            if process is not None and chance.happens(0.5):
                self._adjust(process, organization_id, chance.pick(60_000, 150_000), None)

    def cap(self, organization_id: str, cap: str | None) -> None:
        """Let a customer set the cap, if meterd listens."""
        process = self._world.current
        if process is not None:
            command = ChangeSettings(
                audited=Audited(actor="key_owner", reason=CAP_REASON),
                overage_cap_usd=None if cap is None else Decimal(cap),
                threshold_percents=self._chance.pick(None, (50, 100), (80, 100, 110)),
            )
            self._set_cap(process, organization_id, command)

    def sell(self, organization_id: str) -> None:
        """Let an organization be past what is included, and go on at a price."""
        process = self._world.current
        if process is not None:
            change = ChangeOrganization(
                audited=Audited(actor="key_admin", reason="sold"),
                contract=Contract(agents=2, agent_minutes=1, grace_percent=2_000),
            )
            process.spawn(lambda: self._give(process, organization_id, change, None))
            self._adjust(process, organization_id, 120_000, None)

    def _set_cap(
        self, process: MeterdProcess, organization_id: str, command: ChangeSettings
    ) -> None:
        cap, auditor = command.overage_cap_usd, self._world.auditor
        assert cap is not UNSET

        async def ask() -> None:
            since = auditor.on_cap(organization_id, cap)
            if await self._ask(process, organization_id, command, None):
                auditor.on_cap_acknowledged(organization_id, cap, since)

        process.spawn(ask)

    async def correct(self) -> None:
        """Change what closed periods used: that is charged, or given back, as well."""
        for organization_id, record in self._world.database.organizations.items():
            for _, period in list(record.periods.values()):
                process = self._world.current
                if period.closed and process is not None and self._chance.happens(0.5):
                    agent_ms = self._chance.whole(-4, 4) * 50_000
                    self._adjust(process, organization_id, agent_ms, period.label)
                    await trio.sleep(1)

    def _adjust(
        self, process: MeterdProcess, organization_id: str, agent_ms: int, label: str | None
    ) -> None:
        self._orders += 1
        reason = f"{self._name} {self._orders}"
        audited = Audited(actor="key_admin", reason=reason)
        command = Adjust(audited=audited, agent_ms=agent_ms, label=label)
        self._world.auditor.on_order(reason, organization_id, agent_ms)
        process.spawn(lambda: self._give(process, organization_id, command, reason))

    def _order(self, process: MeterdProcess, organization_id: str) -> None:
        chance = self._chance
        self._orders += 1
        reason = f"{self._name} {self._orders}"
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
            label = chance.pick(None, chance.pick(*labels))
            self._adjust(process, organization_id, agent_ms, label)
        else:
            change = ChangeOrganization(audited=audited)
            if what in {4, 5, 6}:
                change = attrs.evolve(change, contract=drawn_contract(chance))
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

    async def leave_one_slot(self, organization_id: str) -> None:
        """Leave an organization room for one agent, and time enough."""
        record = self._world.database.organizations[organization_id]
        change = ChangeOrganization(
            audited=Audited(actor="key_admin", reason="one slot"),
            plan=Tier.STARTER if record.profile.cycle is None else None,
            contract=Contract(agents=1, agent_minutes=1_000),
            lift=Hold.OPERATOR,
        )
        while not await self._ask_anybody(organization_id, change):  # noqa: ASYNC110
            await trio.sleep(1)

    async def make_room(self, organization_id: str, *, is_capped: bool) -> None:
        """Leave an organization less than three minutes before a limit, and ten agents.

        The limit is the hard limit, or the customer's cap where there is overage.
        """
        record = self._world.database.organizations[organization_id]
        period = record.periods[max(record.periods)][1]
        minutes, grace_percent, cap = 1, 10, None
        while minutes * 66_000 < period.used_ms + 20_000:
            minutes += 1
        if is_capped:
            grace_percent, cap = 2_000, period.overage_usd + Decimal("0.10")
            minutes = max(1, period.used_ms // 60_000)
        change = ChangeOrganization(
            audited=Audited(actor="key_admin", reason="make room"),
            plan=Tier.STARTER if record.profile.cycle is None else None,
            contract=Contract(agents=10, agent_minutes=minutes, grace_percent=grace_percent),
            lift=Hold.OPERATOR,
        )
        whose = Audited(actor="key_owner", reason=CAP_REASON)
        self._world.auditor.on_cap(organization_id, cap)
        for command in (change, ChangeSettings(audited=whose, overage_cap_usd=cap)):
            while not await self._ask_anybody(organization_id, command):  # noqa: ASYNC110
                await trio.sleep(1)

    async def _ask_anybody(self, organization_id: str, command: Command) -> bool:
        process = self._world.current
        return process is not None and await self._ask(process, organization_id, command, None)
