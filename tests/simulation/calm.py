"""The calm after the storm: all becomes quiet and exact, and limits are enforced to the second."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from meterd.core.units import HOUR_MS
from tests.simulation.auditor import stop_line_ms
from tests.simulation.clients import Liar
from tests.simulation.determinism import Chance
from tests.simulation.meterd_process import MeterdProcess
from tests.simulation.operator import Operator
from tests.simulation.violation import expect


if TYPE_CHECKING:
    from tests.simulation.world import World


QUIET_S = 1_500
"""Simulated seconds after the storm within which everything must be settled.

A clock put right by ten minutes holds what was due for as long.
"""

BOAST_MS = 30 * HOUR_MS
"""What somebody claims to have worked since a moment ago."""

STOP_S = 0.5
"""Longest way of a `stop` in calm weather, with room for the clients' own timers."""


async def become_quiet(world: World) -> None:
    """P6: everything is settled within minutes after the last fault."""
    operator = Operator(world, "calm")
    until_s = trio.current_time() + QUIET_S
    is_reconciled = False
    while trio.current_time() < until_s:
        await trio.sleep(5)
        process = world.current
        if process is None:
            continue
        operator.release_all(process)
        if _is_everything_settled(world) and _is_at_rest(process):
            # Where Stripe has told everything, meterd has to be right by itself.
            if world.account.has_lost_notices and not is_reconciled:
                await process.reconciliation.run()
                is_reconciled = True
            elif not world.books.unsettled(process.clock.now_ms()):
                return
    waiting = {
        client.organization_id: list(client.runs)[-3:]
        for client in world.clients
        if client.session.task_count
    }
    facts = (waiting, world.books.unsettled(world.true_ms()), world.current)
    expect(False, "P6 everything becomes quiet", *facts)


def _is_everything_settled(world: World) -> bool:
    alive = [client for client in world.clients if not client.is_dead]
    is_work_done = all(not client.session.task_count for client in alive)
    return is_work_done and all(sender.is_done for sender in world.senders)


def _is_at_rest(process: MeterdProcess) -> bool:
    phases = {cell.phase.value for cell in process.organizations.cells}
    return process.ledger.unflushed == 0 and phases <= {"ready"}


async def lose_a_slot(world: World, forever: trio.Nursery) -> None:
    """I4: who was silent for too long finds the only slot taken, and gets no second one."""
    operator, chance = Operator(world, "slot"), Chance(world.seed, "slot")
    organization_id = world.organization_ids[0]
    timeout_s = world.weather.task_timeout_ms / 1_000
    await trio.sleep(timeout_s + 2)  # dead clients' tasks are lost
    await operator.leave_one_slot(organization_id)
    away, here = (world.new_client(forever, organization_id, chance) for _ in range(2))
    world.start_task(forever, away, chance, lasts_s=timeout_s + 15, agent_id="away")
    await trio.sleep(2)
    away.go_offline(timeout_s + 5)
    await trio.sleep(timeout_s + 3)
    world.start_task(forever, here, chance, lasts_s=15, agent_id="here")
    with trio.move_on_after(400):
        await trio.sleep(1)
        while away.session.task_count or here.session.task_count:  # noqa: ASYNC110  # as below
            await trio.sleep(1)


async def boast(world: World) -> None:
    """P2: time that nobody can have run is not counted, although there is room for it."""
    operator, chance = Operator(world, "boast"), Chance(world.seed, "boast")
    await operator.leave_one_slot(world.organization_ids[0])
    about = {"task_id": "boast", "elapsed_ms": BOAST_MS}
    liar = Liar(
        world.organization_ids[0],
        network=world.network,
        find_server=world.find_server,
        chance=chance,
        lies=[
            {"type": "start", "task_id": "boast", "agent_id": "boaster"},
            {"type": "heartbeat", **about},
            {"type": "finish", **about, "outcome": "succeeded"},
        ],
    )
    with trio.move_on_after(60):
        await liar.run()
    liar.is_dead = True


async def exhaust(world: World, forever: trio.Nursery) -> None:
    """P4: a limit is passed by no more than a `stop` takes to arrive, and billed exactly."""
    operator = Operator(world, "exhaust")
    organization_id = world.organization_ids[0]
    await trio.sleep(world.weather.task_timeout_ms / 1_000 + 2)  # dead clients' tasks are lost
    chance = Chance(world.seed, "exhaust clients")
    await operator.make_room(organization_id, is_capped=chance.happens(0.5))
    record = world.database.organizations[organization_id]
    client = world.new_client(forever, organization_id, chance)
    period = record.periods[max(record.periods)][1]
    line_ms = stop_line_ms(record)
    process, wall_ms = world.current, world.wall_ms()
    assert process is not None, "nothing kills it in calm weather"
    began_ms = process.clock.now_ms()
    is_one_month = period.start_ms <= wall_ms and wall_ms + 300_000 <= period.end_ms
    if not is_one_month or record.profile.holds:
        return  # time falls into two months, or nobody may work
    task_ids = [
        world.start_task(forever, client, chance, lasts_s=600, agent_id=f"last_{number}")
        for number in range(2)
    ]
    with trio.move_on_after(400):
        await trio.sleep(1)
        while client.session.task_count:  # noqa: ASYNC110  # a person looking on
            await trio.sleep(1)
    runs = [client.runs[task_id] for task_id in task_ids]
    ran_ms = sum(run.ran_ms or 0 for run in runs)
    after = record.periods[max(record.periods)][1]
    facts = (organization_id, line_ms, period.used_ms, after.used_ms, ran_ms)
    billed_ms = sum(record.tasks[task_id].metered_ms for task_id in task_ids)
    room_ms = line_ms - period.used_ms
    slowed_ms = process.clock.slowing.since(began_ms)
    slack_ms = 2_000 * STOP_S + 2 * slowed_ms  # two tasks; a clock put right goes slower at first
    expect(all(run.stop is not None for run in runs), "P4 nobody was stopped", *facts)
    expect(after.used_ms == period.used_ms + billed_ms, "P4 billed what ran", *facts)
    expect(room_ms - slack_ms <= billed_ms <= room_ms, "P4 stopped too early", *facts)
    expect(ran_ms - billed_ms <= slack_ms, "P4 stopped in time", *facts, billed_ms)
