from __future__ import annotations

from meterd.core.slowing import STEADY, STEP_MS, STEPS_MAX
from tests.organizations import NOON_MS


def test_a_steady_clock_has_left_nothing_out() -> None:
    """A millisecond here and there, as time is corrected all day, is nobody's claim."""
    slowing = STEADY.with_total(NOON_MS, STEP_MS - 1).with_total(NOON_MS, 1 - STEP_MS)

    assert slowing is STEADY
    assert slowing.since(0) == 0


def test_what_was_left_out_counts_from_the_instant_that_is_asked_for() -> None:
    """A task gets back what the clock left out while it ran, and nothing from before."""
    slowing = STEADY.with_total(NOON_MS, 2_000).with_total(NOON_MS + 10, 5_000)

    assert slowing.since(NOON_MS - 1) == 5_000
    assert [slowing.since(NOON_MS + ms) for ms in (0, 5, 9)] == [3_000, 1_500, 300]
    assert slowing.since(NOON_MS + 10) == slowing.since(NOON_MS + 99) == 0


def test_a_clock_that_ran_ahead_takes_nothing_away() -> None:
    """Our own time is always granted: an honest report is never behind it."""
    slowing = STEADY.with_total(NOON_MS, -4_000).with_total(NOON_MS + 10, -3_000)

    assert slowing.since(NOON_MS - 1) == 0
    assert slowing.since(NOON_MS) == 1_000


def test_a_clock_that_is_corrected_for_days_is_remembered_in_bounded_space() -> None:
    """An hour set back takes a day to follow; thinning changes no answer by a second."""
    slowing = STEADY
    for number in range(1, 20 * STEPS_MAX):
        slowing = slowing.with_total(NOON_MS + number * 20_000, number * STEP_MS)
    middle_ms = NOON_MS + 10 * STEPS_MAX * 20_000
    exact_ms = (10 * STEPS_MAX - 1) * STEP_MS

    assert len(slowing.at_ms) <= STEPS_MAX
    assert abs(slowing.since(middle_ms) - exact_ms) <= STEP_MS
    assert slowing.since(0) == (20 * STEPS_MAX - 1) * STEP_MS
