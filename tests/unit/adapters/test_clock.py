from __future__ import annotations

import itertools

import pytest
import trio
from trio.testing import MockClock

from meterd.adapters.clock import SLEW_OFFSET_MS_MAX, SystemClock


START_MS = 1_770_854_400_000
MINUTE_S = 60
DAY_MS = 86_400_000


class Wall:
    """A system clock that runs with Trio's clock and can be set."""

    def __init__(self) -> None:
        self.offset_ms = 0

    def __call__(self) -> int:
        return START_MS + int(trio.current_time() * 1_000) + self.offset_ms


@pytest.fixture
def wall() -> Wall:
    return Wall()


@pytest.fixture
def virtual() -> MockClock:
    return MockClock()


def run_for(clock: SystemClock, virtual: MockClock, seconds: int) -> list[int]:
    """Read the clock every tenth of a second for so long."""
    readings = []
    for _ in range(seconds * 10):
        virtual.jump(0.1)
        readings.append(clock.now_ms())
    return readings


def test_system_wall_is_what_the_operating_system_says() -> None:
    """The one reading of real time in meterd: milliseconds since 1970, past 2025."""
    from meterd.adapters.clock import system_wall_ms  # noqa: PLC0415

    assert system_wall_ms() > 1_735_689_600_000


async def test_time_is_the_wall_at_start_plus_monotonic_time(
    virtual: MockClock, wall: Wall
) -> None:
    """With a system clock that keeps time there is nothing to correct."""
    began_s = trio.current_time()
    clock = SystemClock(wall)
    start_ms = clock.now_ms()

    virtual.jump(12.345)

    assert began_s == 0
    assert start_ms == START_MS
    assert clock.now_ms() == START_MS + 12_345
    assert clock.jump_ms == 0


async def test_no_fraction_of_a_millisecond_is_lost_over_many_looks(
    virtual: MockClock, wall: Wall
) -> None:
    """An hour read every 1.0007 s stays an hour: looks must not round time away."""
    clock = SystemClock(wall)
    for _ in range(3_600):
        virtual.jump(1.0007)
        clock.now_ms()

    assert abs(clock.now_ms() - wall()) <= 1


@pytest.mark.parametrize("offset_ms", [-SLEW_OFFSET_MS_MAX + 50, -900, 900, SLEW_OFFSET_MS_MAX])
async def test_a_difference_within_a_minute_is_slewed_away_without_a_step(
    virtual: MockClock, wall: Wall, offset_ms: int
) -> None:
    """No reading goes back or leaps, and after twenty minutes the clocks agree."""
    clock = SystemClock(wall)
    wall.offset_ms = offset_ms

    readings = run_for(clock, virtual, 21 * MINUTE_S)

    steps_ms = [after - before for before, after in itertools.pairwise(readings)]
    assert min(steps_ms) >= 94
    assert max(steps_ms) <= 106
    assert abs(readings[-1] - wall()) <= 2
    assert clock.jump_ms == 0


async def test_a_slew_does_not_overshoot_when_nobody_asked_for_an_hour(
    virtual: MockClock, wall: Wall
) -> None:
    """An idle process corrects what was wrong, not more."""
    clock = SystemClock(wall)
    wall.offset_ms = 1_000
    virtual.jump(1)
    clock.now_ms()

    virtual.jump(3_600)

    assert abs(clock.now_ms() - wall()) <= 1


@pytest.mark.parametrize("jump_ms", [-3_653 * DAY_MS, -DAY_MS, DAY_MS, 3_653 * DAY_MS])
async def test_a_jump_is_reported_once_and_not_followed(
    virtual: MockClock, wall: Wall, jump_ms: int
) -> None:
    """A clock set wrong by a day or ten years moves no period end."""
    reported: list[int] = []
    clock = SystemClock(wall, on_jump=reported.append)
    wall.offset_ms = jump_ms

    readings = run_for(clock, virtual, 5 * MINUTE_S)

    assert abs(readings[-1] - (START_MS + 300_000)) <= 1
    assert [round(ms / 1_000) for ms in reported] == [jump_ms // 1_000]
    assert abs(clock.jump_ms - jump_ms) <= 1


async def test_a_jump_that_goes_away_is_reported_as_zero(virtual: MockClock, wall: Wall) -> None:
    """The alert ends when the system clock was put right, without an operator."""
    reported: list[int] = []
    clock = SystemClock(wall, on_jump=reported.append)
    wall.offset_ms = DAY_MS
    run_for(clock, virtual, 5)

    wall.offset_ms = 0
    run_for(clock, virtual, 5)

    assert reported[-1] == 0
    assert clock.jump_ms == 0


async def test_an_accepted_jump_forwards_is_stepped_at_once(virtual: MockClock, wall: Wall) -> None:
    """The operator says the system is right: from now on we agree with it."""
    clock = SystemClock(wall)
    wall.offset_ms = DAY_MS
    run_for(clock, virtual, 5)

    accepted_ms = clock.accept_jump()

    assert abs(accepted_ms - DAY_MS) <= 1
    assert abs(clock.now_ms() - wall()) <= 1
    assert clock.jump_ms == 0


async def test_an_accepted_jump_backwards_is_approached_and_time_still_never_returns(
    virtual: MockClock, wall: Wall
) -> None:
    """Time on record is not repeated: an hour back is gone after about twenty hours."""
    clock = SystemClock(wall)
    wall.offset_ms = -3_600_000
    before = run_for(clock, virtual, 5)

    clock.accept_jump()
    readings = run_for(clock, virtual, 60)
    for _ in range(21 * 3_600):
        virtual.jump(1)
        readings.append(clock.now_ms())

    assert readings == sorted(readings)
    assert readings[0] >= before[-1]
    assert readings[1] > readings[0]
    assert abs(readings[-1] - wall()) <= 2
    assert clock.jump_ms == 0


async def test_a_second_jump_after_an_accepted_one_is_reported_again(
    virtual: MockClock, wall: Wall
) -> None:
    """Accepting one jump is no licence for the next."""
    reported: list[int] = []
    clock = SystemClock(wall, on_jump=reported.append)
    wall.offset_ms = DAY_MS
    run_for(clock, virtual, 5)
    clock.accept_jump()
    run_for(clock, virtual, 5)

    wall.offset_ms = 3 * DAY_MS
    run_for(clock, virtual, 5)

    assert [round(ms / DAY_MS) for ms in reported] == [1, 0, 2]


async def test_what_a_slew_leaves_out_is_known_to_the_second(
    virtual: MockClock, wall: Wall
) -> None:
    """Set back by half a minute, our clock leaves out half a minute, and tells since when."""
    clock = SystemClock(wall)
    run_for(clock, virtual, 10)
    wall.offset_ms = -30_000
    before_ms = clock.now_ms()
    run_for(clock, virtual, 11 * MINUTE_S)
    between_ms = clock.now_ms()
    wall.offset_ms = -20_000
    run_for(clock, virtual, 4 * MINUTE_S)

    assert 29_000 <= clock.slowing.since(before_ms) + 10_000 <= 31_000
    assert clock.slowing.since(between_ms) == 0
    assert abs(clock.now_ms() - wall()) <= 2


async def test_a_jump_that_is_followed_backwards_is_time_left_out(
    virtual: MockClock, wall: Wall
) -> None:
    """Whichever way the clock is slowed, tasks go on in real time."""
    clock = SystemClock(wall)
    start_ms = clock.now_ms()
    wall.offset_ms = -180_000
    virtual.jump(2)
    clock.now_ms()

    clock.accept_jump()
    run_for(clock, virtual, 61 * MINUTE_S)

    assert abs(clock.now_ms() - wall()) <= 2
    assert abs(clock.slowing.since(start_ms) - 180_000) <= 1_000
