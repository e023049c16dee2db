from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given, strategies as st

from meterd.testing.fake_stripe.clock import VirtualClock, add_intervals, boundary_after
from meterd.testing.fake_stripe.proration import share


def at(text: str) -> int:
    """Seconds of a UTC date."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


@pytest.mark.parametrize(
    ("interval", "steps", "expected"),
    [
        ("month", 1, "2028-02-29"),
        ("month", 2, "2028-03-31"),
        ("month", -2, "2027-11-30"),
        ("year", 1, "2029-01-31"),
        ("week", 1, "2028-02-07"),
        ("day", 29, "2028-02-29"),
    ],
)
def test_intervals_clip_the_day_and_remember_it(interval: str, steps: int, expected: str) -> None:
    """Counted from the anchor, never from the month before."""
    assert add_intervals(at("2028-01-31"), interval, steps) == at(expected)


@given(
    anchor_s=st.integers(at("2024-01-01"), at("2030-01-01")),
    later_s=st.integers(-100 * 86_400, 4_000 * 86_400),
    interval=st.sampled_from(["day", "week", "month", "year"]),
    count=st.integers(1, 4),
)
def test_boundary_is_the_first_one_after_the_moment(
    anchor_s: int, later_s: int, interval: str, count: int
) -> None:
    """Agrees with counting up from the anchor one by one."""
    moment_s = anchor_s + later_s
    step = 0
    while add_intervals(anchor_s, interval, step * count) <= moment_s:
        step += 1

    found = boundary_after(anchor_s, interval, count, moment_s)
    assert found == add_intervals(anchor_s, interval, step * count)


@given(
    amount=st.integers(-10_000_000, 10_000_000),
    part_s=st.integers(0, 400 * 86_400),
    whole_s=st.integers(1, 400 * 86_400),
)
def test_share_is_within_half_a_cent_and_odd(amount: int, part_s: int, whole_s: int) -> None:
    """A credit is the charge with its sign turned, and rounding loses at most half a cent."""
    cents = share(amount, part_s, whole_s)
    assert abs(cents * whole_s - amount * part_s) * 2 <= whole_s
    assert share(-amount, part_s, whole_s) == -cents


def test_frozen_clock_moves_only_by_jumps_and_never_back() -> None:
    """The wall may go on; tests may not notice."""
    wall = [1_000]
    clock = VirtualClock(start_s=5, wall_s=lambda: wall[0])
    wall[0] += 60
    assert clock.now_s == 5
    clock.jump_to(50)
    clock.jump_to(20)
    assert clock.now_s == 50


def test_ticking_clock_follows_the_wall_between_jumps() -> None:
    """The demo's days pass by themselves; a jump adds to that."""
    wall = [1_000]
    clock = VirtualClock(start_s=5, ticks=True, wall_s=lambda: wall[0])
    wall[0] += 10
    assert clock.now_s == 15
    clock.jump_to(100)
    wall[0] += 1
    assert clock.now_s == 101
