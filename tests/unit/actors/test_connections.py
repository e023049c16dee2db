"""Connection time: summed per organization, a row an hour, nothing lost but by a crash."""

# ruff: noqa: ARG001  # asking for autojump_clock is what makes the time virtual

from __future__ import annotations

import trio
from trio.testing import MockClock

from meterd.actors.connections import ConnectionMeter
from meterd.core.plan import Resource
from meterd.core.units import HOUR_MS, MINUTE_MS
from tests.served import World, open_world


def rows(world: World, organization_id: str = "org_1") -> list[tuple[int, int, int]]:
    """Return (minutes, milliseconds, instant) of the connection time booked, oldest first."""
    found = world.store.database.organizations[organization_id].rows.values()
    return sorted(
        (row.quantity, row.quantity_ms, row.at_ms)
        for row in found
        if row.resource is Resource.WEBSOCKET_MINUTE
    )


def make_meter(world: World) -> ConnectionMeter:
    """Return a meter on a world's organizations."""
    services = world.services
    return ConnectionMeter(services.organizations, clock=services.clock, ids=services.ids)


async def test_overlapping_connections_add_up_and_an_hour_is_a_row(
    autojump_clock: MockClock,
) -> None:
    """Two connections of 40 minutes each are 80 minutes, however they overlap."""
    async with open_world() as world:
        await world.add()
        meter = make_meter(world)
        world.nursery.start_soon(meter.run)
        began_ms = world.services.clock.now_ms()

        first = meter.opened("org_1")
        await trio.sleep(10 * 60)
        second = meter.opened("org_1")
        await trio.sleep(30 * 60)
        first()
        first()
        await trio.sleep(10 * 60)
        second()
        await trio.sleep(120 * 60)

        [(minutes, duration_ms, at_ms)] = rows(world)
        assert (minutes, duration_ms) == (80, 80 * MINUTE_MS)
        assert at_ms == began_ms - began_ms % HOUR_MS + HOUR_MS - 1


async def test_a_connection_over_hours_has_a_row_for_each_and_the_last_when_meterd_stops(
    autojump_clock: MockClock,
) -> None:
    """What runs when the process ends is booked by then."""
    async with open_world() as world:
        await world.add()
        meter = make_meter(world)
        world.nursery.start_soon(meter.run)

        meter.opened("org_1")
        await trio.sleep(2 * 3_600 + 90)
        await meter.settle()

        assert [minutes for minutes, _, _ in rows(world)] == [1, 60, 60]


async def test_a_store_that_is_away_costs_no_connection_time(autojump_clock: MockClock) -> None:
    """What could not be booked is booked later, once."""
    async with open_world() as world:
        await world.add()
        meter = make_meter(world)
        world.nursery.start_soon(meter.run)

        closed = meter.opened("org_1")
        await trio.sleep(3_500)
        world.store.is_away = True
        await trio.sleep(600)
        closed()
        world.store.is_away = False
        await trio.sleep(2 * 3_600)

        assert sum(duration_ms for _, duration_ms, _ in rows(world)) == 4_100_000
