"""The time that the demonstration of billing shares between meterd and the fake Stripe."""

# ruff: noqa: ARG001  # asking for autojump_clock is what makes the time virtual

from __future__ import annotations

import trio
from trio.testing import MockClock

from meterd.demo.leaps import LeapingClock, SharedTime
from meterd.testing.fake_stripe.clock import VirtualClock


START_S = 1_767_225_600
DAY_S = 86_400


async def test_a_leap_of_stripe_s_is_meterd_s_at_once(autojump_clock: MockClock) -> None:
    """A webhook about a renewal must find meterd past the period's end."""
    time = SharedTime(START_S)
    stripe = time.stripe = VirtualClock(start_s=START_S, wall_s=time.now_s)
    clock = LeapingClock(time.now_ms)

    stripe.jump_to(START_S + 31 * DAY_S)

    assert clock.now_ms() == (START_S + 31 * DAY_S) * 1_000
    assert clock.jump_ms == 0
    assert stripe.wall_now_s() == START_S + 31 * DAY_S


async def test_between_leaps_time_passes_as_outside(autojump_clock: MockClock) -> None:
    """Timeouts, polls and signatures live in time that runs; Stripe's stands still."""
    time = SharedTime(START_S)
    stripe = time.stripe = VirtualClock(start_s=START_S, wall_s=time.now_s)
    clock = LeapingClock(time.now_ms)
    stripe.jump_to(START_S + DAY_S)
    clock.now_ms()

    await trio.sleep(90)

    assert clock.now_ms() == (START_S + DAY_S + 90) * 1_000
    assert stripe.now_s == START_S + DAY_S


async def test_a_leap_to_what_has_passed_already_turns_nothing_back(
    autojump_clock: MockClock,
) -> None:
    """Stripe's next moment may lie in the seconds that meterd has lived since the last leap."""
    time = SharedTime(START_S)
    stripe = time.stripe = VirtualClock(start_s=START_S, wall_s=time.now_s)
    clock = LeapingClock(time.now_ms)
    await trio.sleep(30)
    before_ms = clock.now_ms()

    stripe.jump_to(START_S + 10)

    assert clock.now_ms() >= before_ms
