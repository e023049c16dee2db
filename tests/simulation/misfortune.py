"""What goes wrong with meterd's machine while people work: deaths, take-overs and clocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from tests.simulation.determinism import Chance
from tests.simulation.meterd_process import MeterdProcess
from tests.simulation.operator import Operator


if TYPE_CHECKING:
    from tests.simulation.world import World


EVE_MS = 20_000
"""So long before a period ends its customer is sold something, and then cut off."""


class Misfortune:
    """Bad luck, drawn from the seed, as often as the weather says."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def kill(self) -> None:
        """Kill, stop and take over, at instants and at points of the store's calls."""
        chance = Chance(self._world.seed, "misfortune")
        while self._world.weather.crash_every_s:
            await trio.sleep(chance.soon(self._world.weather.crash_every_s))
            process = self._world.current
            if process is None:
                continue
            if chance.happens(self._world.weather.takeover):
                self._world.waiting.cancel()
                process.spawn(lambda process=process: self._end_later(process, chance))  # type: ignore[misc]
            elif chance.happens(0.35):
                await process.stop(5)
            elif chance.happens(0.5):
                self._world.calls_to_crash = chance.whole(1, 6)
            else:
                for _ in range(chance.whole(0, 6)):
                    await trio.lowlevel.checkpoint()
                process.die()

    async def _end_later(self, process: MeterdProcess, chance: Chance) -> None:
        """Let a deposed process linger, unless it notices first."""
        await trio.sleep(chance.between(5, 60))
        process.die()

    async def step_the_clock(self) -> None:
        """Step the system clock; small steps are slewed, large ones wait for a restart."""
        chance = Chance(self._world.seed, "clock")
        while self._world.weather.wall_steps:
            await trio.sleep(chance.soon(30.0))
            right_ms = -self._world.wall_offset_ms if self._world.wall_offset_ms > 0 else 2_500
            jump_ms = 600_000 if self._world.wall_offset_ms < 600_000 else 0
            step_ms = chance.pick(-800, 800, chance.whole(0, 30_000), jump_ms, jump_ms, right_ms)
            self._world.wall_offset_ms += step_ms
            self._world.wall_back_ms += max(0, -step_ms)
            self._world.auditor.was_clock_set_back |= step_ms < 0
            self._world.auditor.wall_ahead_ms = max(
                self._world.auditor.wall_ahead_ms, self._world.wall_offset_ms
            )
            self._world.note("clock", step_ms)

    async def put_clock_right(self) -> None:
        """Set the system clock right; a new process believes it, one that runs does not."""
        if self._world.wall_offset_ms <= 0 or self._world.chance.happens(0.5):
            return
        self._world.wall_back_ms += self._world.wall_offset_ms
        self._world.auditor.was_clock_set_back = True
        self._world.note("clock", -self._world.wall_offset_ms)
        self._world.wall_offset_ms = 0
        process = self._world.current
        if process is not None:
            await process.stop(5)

    async def cut_off_at_a_turn(self, forever: trio.Nursery) -> None:
        """Let a customer who is cut off want to pay no more, just before a period ends.

        Their programs work on and report when the next period has begun.
        """
        world, chance = self._world, Chance(self._world.seed, "turn")
        seen: set[tuple[str, int]] = set()
        while world.weather.settings_every_s:
            await trio.sleep(2.0)
            for organization_id, record in world.database.organizations.items():
                end_ms = record.periods[max(record.periods)][1].end_ms
                is_eve = 0 < end_ms - world.true_ms() <= EVE_MS
                if is_eve and (organization_id, end_ms) not in seen:
                    seen.add((organization_id, end_ms))
                    operator = Operator(world, f"eve {len(seen)}")
                    forever.start_soon(self._cut_off, forever, operator, organization_id, chance)

    async def _cut_off(
        self, forever: trio.Nursery, operator: Operator, organization_id: str, chance: Chance
    ) -> None:
        world = self._world
        client = world.new_client(forever, organization_id, chance)
        operator.sell(organization_id)
        await trio.sleep(2)
        for _ in range(2):
            world.start_task(forever, client, chance, lasts_s=60, agent_id="agent_1")
        await trio.sleep(EVE_MS / 3_000)
        client.go_offline(chance.between(EVE_MS / 1_000, 25))
        await trio.sleep(0.1)
        operator.cap(organization_id, "0.01")
