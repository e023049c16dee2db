from __future__ import annotations

from decimal import Decimal

import attrs
import pytest

from meterd.core.commands import Heartbeat, Tick
from meterd.core.decide import _heartbeat_in_full
from meterd.core.heartbeat import decide_at_once
from meterd.core.organization import DenialReason, Hold, OrganizationState
from meterd.core.plan import Contract, Tier
from meterd.core.units import MINUTE_MS
from tests.organizations import (
    MARCH_MS,
    MIDNIGHT_MS,
    NOON_MS,
    drive,
    make_change,
    make_rules,
    make_state,
    run_to,
    start,
)


def started(
    used_ms: int = 0, now_ms: int = NOON_MS, plan: Tier = Tier.STARTER, beats_ms: int = 0
) -> OrganizationState:
    rules = make_rules(record_interval_ms=2 * MINUTE_MS)
    contract = Contract(agent_minutes=100)
    state = make_state(plan, contract, used_ms=used_ms, rules=rules, at_ms=now_ms)
    start(state, now_ms=now_ms)
    run_to(state, "task_1", now_ms + beats_ms)
    return state


def is_plain(state: OrganizationState, elapsed_ms: int, now_ms: int) -> bool:
    """Tell whether the shortcut takes the report; if so it must say what the general way says."""
    decision = decide_at_once(state, state.running["task_1"], elapsed_ms, now_ms)
    if decision is None:
        return False
    assert decision == _heartbeat_in_full(state, Heartbeat("task_1", elapsed_ms), now_ms)
    return True


@pytest.mark.parametrize("plan", [Tier.STARTER, Tier.ENTERPRISE, Tier.FREE])
@pytest.mark.parametrize("used_minutes", [0, 81, 100, 101])
def test_a_report_that_only_adds_pending_time_is_plain(plan: Tier, used_minutes: int) -> None:
    """In every state in which tasks may work."""
    state = started(used_minutes * MINUTE_MS, plan=plan, beats_ms=30_000)

    assert is_plain(state, 35_000, NOON_MS + 40_000)


def test_a_repeat_a_leap_and_a_new_pace_window_are_not() -> None:
    """Nothing to add; more than can have passed; five minutes to compare."""
    state = started(beats_ms=30_000)
    assert not is_plain(state, 30_000, NOON_MS + 31_000)
    assert [is_plain(state, 36_000 + ms, NOON_MS + 31_000) for ms in (0, 1)] == [True, False]

    state = started()
    late = attrs.evolve(state.running["task_1"], pace_from_ms=NOON_MS - 5 * MINUTE_MS + 1)
    state.running["task_1"] = late
    assert [is_plain(state, 1, NOON_MS + ms) for ms in (0, 1)] == [True, False]


@pytest.mark.parametrize(
    ("line_minutes", "plan"), [(80, Tier.PRO), (100, Tier.PRO), (110, Tier.PRO)]
)
def test_a_report_that_reaches_a_line_is_not(line_minutes: int, plan: Tier) -> None:
    """Rows, notices and stops belong to the general way."""
    state = started(line_minutes * MINUTE_MS - 5_000, plan=plan)

    assert [is_plain(state, ms, NOON_MS + 4_999) for ms in (4_999, 5_000, 5_001)] == [
        True,
        False,
        False,
    ]


def test_a_report_that_reaches_the_customers_cap_is_not() -> None:
    """No quota state changes there, and yet work must stop."""
    state = started(102 * MINUTE_MS - 5_000)
    limits = attrs.evolve(state.terms.limits, overage_cap_usd=Decimal("0.10"))
    state.terms = attrs.evolve(state.terms, limits=limits)
    state.period = attrs.evolve(state.period, overage_minutes=1, overage_usd=Decimal("0.05"))

    assert [is_plain(state, ms, NOON_MS + 4_999) for ms in (4_999, 5_000)] == [True, False]
    start(state, "task_2", "agent_2", now_ms=NOON_MS)
    shares = [is_plain(state, 1, NOON_MS + silent_ms) for silent_ms in (4_998, 4_999)]
    assert shares == [True, False], "the other's silence counts"


def test_a_report_from_the_very_end_of_the_allowance_is_plain() -> None:
    """The first millisecond of overage has the price of the next."""
    assert is_plain(started(100 * MINUTE_MS), 5_000, NOON_MS + 5_000)


def test_a_report_that_reaches_a_threshold_of_the_customers_own_is_not() -> None:
    """To the millisecond; once every threshold is told, reports are plain again."""
    state = started(50 * MINUTE_MS - 5_000)
    assert [is_plain(state, ms, NOON_MS + 4_999) for ms in (4_999, 5_000)] == [True, False]

    drive(state, Heartbeat("task_1", 5_000), NOON_MS + 5_000)
    told = state.period.notified_percents
    assert told == {50}
    state.profile = attrs.evolve(state.profile, threshold_percents=(50,))
    assert is_plain(state, 6_000, NOON_MS + 6_000)


def test_a_report_past_the_hard_limit_or_under_a_hold_is_not() -> None:
    """It must stop, and its time is not billed."""
    assert not is_plain(started(110 * MINUTE_MS - 1, beats_ms=1), 2, NOON_MS + 2)

    held = started()
    drive(held, make_change(place=Hold.PAYMENT), NOON_MS)
    assert not is_plain(held, 5, NOON_MS + 5)
    held.announced, held.announced_stop = started().announced, None
    assert not is_plain(held, 5, NOON_MS + 5)


def test_a_report_over_a_day_or_a_period_is_not() -> None:
    """Its parts lie in two rows."""
    for edge_ms in (MIDNIGHT_MS, MARCH_MS):
        state = started(now_ms=edge_ms - 10_000)
        assert [is_plain(state, 9_000, edge_ms + ms) for ms in (0, 1)] == [True, False]
    state = started(now_ms=MIDNIGHT_MS - 10_000, beats_ms=10_000)
    assert not is_plain(state, 11_000, MIDNIGHT_MS + 9_000)


def test_a_report_before_the_period_is_not() -> None:
    """Also when the period began on the same day."""
    state = started()
    state.period = attrs.evolve(state.period, start_ms=NOON_MS + 3_000)

    assert [is_plain(state, 2_000, NOON_MS + ms) for ms in (5_000, 4_999)] == [True, False]


def test_a_report_that_completes_the_interval_is_not() -> None:
    """A row is due."""
    state = started(beats_ms=110_000)
    now_ms = NOON_MS + 120_000

    assert [is_plain(state, ms, now_ms) for ms in (119_999, 120_000)] == [True, False]
    run_to(state, "task_1", now_ms)
    assert is_plain(state, 125_000, NOON_MS + 125_000)


def test_nothing_is_plain_until_it_is_told_that_work_may_go_on() -> None:
    """Agents that were told to stop wait for that word, and it is the general way's to give."""
    state = started()
    assert is_plain(state, 5, NOON_MS + 5)
    state.announced_stop = DenialReason.OVERAGE_CAP_REACHED

    assert not is_plain(state, 5, NOON_MS + 5)


def test_right_after_a_start_nothing_is_plain() -> None:
    """What listeners were told is not known."""
    state = started()
    state.announced = None

    assert not is_plain(state, 5, NOON_MS + 5)


def test_silence_of_others_is_part_of_the_decision() -> None:
    """The report is small, but together with the others' projected time it reaches a line."""
    state = started(80 * MINUTE_MS - 15_000)
    start(state, "task_2", "agent_2")
    decision = decide_at_once(state, state.running["task_1"], 8_000, NOON_MS + 8_000)

    assert decision is None
    assert is_plain(state, 6_000, NOON_MS + 7_000)


def test_a_report_that_reaches_a_price_line_already_announced_is_not() -> None:
    """Projected use was there before it; now the bill is, and rows are due."""
    state = started(100 * MINUTE_MS - 5_000)
    drive(state, Tick(), NOON_MS + 6_000)

    assert [is_plain(state, ms, NOON_MS + 6_000) for ms in (4_999, 5_000)] == [False, False]
    start(state, "task_2", "agent_2", now_ms=NOON_MS + 6_000)
    drive(state, Tick(), NOON_MS + 12_000)
    assert [is_plain(state, ms, NOON_MS + 12_000) for ms in (4_999, 5_000)] == [True, False]
