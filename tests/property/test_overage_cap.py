"""The customer's overage cap: never billed past it, and reached to the last whole minute."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given, settings, strategies as st

from meterd.core.commands import (
    Adjusted,
    Audited,
    Beat,
    ChangeSettings,
    Command,
    ExceedsOverageCap,
    Heartbeat,
    StopTasks,
    Tick,
)
from meterd.core.decide import _heartbeat_in_full, decide
from meterd.core.organization import DenialReason, OrganizationState
from meterd.core.plan import UNSET, Contract, Tier, Unset
from meterd.core.quota import (
    denial,
    is_due,
    next_wakeup_ms,
    overage_cap_line_ms,
    running_denial,
)
from meterd.core.units import MINUTE_MS
from meterd.core.usage import Kind, UsageRow
from tests.organizations import NOON_MS, drive, make_adjust, make_change, make_state, start


SMALL = Contract(agents=5, agent_minutes=10, grace_percent=1_000)
RATES = ("0.05", "0.07", "0.000001", "0.3")
caps = st.none() | st.sampled_from(["0", "0.01", "0.05", "0.12", "1", "3.33"]).map(Decimal)


def cap(
    usd: str | Decimal | Unset | None, thresholds: tuple[int, ...] | None = None
) -> ChangeSettings:
    """Return the customer's wish."""
    amount = usd if usd is None or isinstance(usd, Unset) else Decimal(usd)
    audited = Audited(actor="key_owner", reason="settings")
    return ChangeSettings(audited=audited, overage_cap_usd=amount, threshold_percents=thresholds)


def beat(state: OrganizationState, elapsed_ms: int, now_ms: int) -> Beat:
    """Report task_1's time and return the answer."""
    outcome = drive(state, Heartbeat("task_1", elapsed_ms), now_ms).outcome
    assert isinstance(outcome, Beat), outcome
    return outcome


def test_a_cap_stops_at_the_instant_the_last_paid_minute_ends() -> None:
    """Twelve cents at five: two minutes past the included ten, to the millisecond."""
    state = make_state(Tier.STARTER, SMALL, used_ms=10 * MINUTE_MS)
    drive(state, cap("0.12"), NOON_MS)
    start(state)
    beat(state, 90_001, NOON_MS + 90_001)
    wakeup_ms = next_wakeup_ms(state, NOON_MS + 90_001)
    early, exact = decide(state, Tick(), wakeup_ms - 1), decide(state, Tick(), wakeup_ms)

    assert wakeup_ms == NOON_MS + 2 * MINUTE_MS
    assert not [each for each in early.notices if isinstance(each, StopTasks)]
    stop = StopTasks(task_ids=("task_1",), reason=DenialReason.OVERAGE_CAP_REACHED)
    assert stop in exact.notices


def test_nothing_is_billed_past_the_cap_and_raising_it_bills_nothing_of_before() -> None:
    """What ran past the cap stays unbilled; a raised cap lets work go on from there."""
    state = make_state(Tier.STARTER, SMALL, used_ms=10 * MINUTE_MS)
    drive(state, cap("0.10"), NOON_MS)
    start(state)
    now_ms = NOON_MS + 5 * MINUTE_MS // 6
    reported = beat(state, 0, now_ms)
    for minute in range(1, 6):
        now_ms = NOON_MS + minute * MINUTE_MS
        reported = beat(state, minute * MINUTE_MS, now_ms)

    assert reported.stop is DenialReason.OVERAGE_CAP_REACHED
    assert (reported.task.metered_ms, reported.task.unbilled_ms) == (2 * MINUTE_MS, 3 * MINUTE_MS)
    assert state.period.overage_usd == Decimal("0.10")
    assert denial(state, None, now_ms) is DenialReason.OVERAGE_CAP_REACHED

    drive(state, cap("0.15"), now_ms)
    assert denial(state, None, now_ms) is None
    more = beat(state, 6 * MINUTE_MS, now_ms + MINUTE_MS)
    assert (more.task.metered_ms, more.stop) == (
        3 * MINUTE_MS,
        DenialReason.OVERAGE_CAP_REACHED,
    )


def test_zero_means_no_overage_and_none_means_no_cap() -> None:
    """Zero stops at the included minutes; taking the cap away opens the grace again."""
    state = make_state(Tier.STARTER, SMALL, used_ms=10 * MINUTE_MS)
    drive(state, cap("0"), NOON_MS)
    assert denial(state, None, NOON_MS) is DenialReason.OVERAGE_CAP_REACHED
    drive(state, cap(None), NOON_MS)
    assert denial(state, None, NOON_MS) is None


def test_the_plan_limit_is_named_before_the_cap() -> None:
    """Both reached: the customer must upgrade, a higher cap would not help."""
    contract = Contract(agent_minutes=10, grace_percent=10)
    state = make_state(Tier.STARTER, contract, used_ms=11 * MINUTE_MS)
    drive(state, cap("0"), NOON_MS)
    assert denial(state, None, NOON_MS) is DenialReason.PLAN_LIMIT_REACHED


def test_an_unlimited_plan_has_a_cap_too() -> None:
    """It never stops, but for its customer's own wish."""
    contract = Contract(agent_minutes=0, overage_usd_per_minute=Decimal("0.05"))
    state = make_state(Tier.ENTERPRISE, contract)
    drive(state, cap("0.05"), NOON_MS)
    start(state)
    beat(state, 30_000, NOON_MS + 30_000)
    wakeup_ms = next_wakeup_ms(state, NOON_MS + 30_000)
    assert wakeup_ms == NOON_MS + MINUTE_MS
    stopped = drive(state, Tick(), wakeup_ms)
    assert any(isinstance(each, StopTasks) for each in stopped.notices)
    assert running_denial(state, wakeup_ms) is DenialReason.OVERAGE_CAP_REACHED


def test_a_cap_has_no_say_where_nothing_is_billed() -> None:
    """Free's grace costs nothing, so it does not count against any cap."""
    state = make_state(Tier.FREE, Contract(agent_minutes=10, agents=5), used_ms=10 * MINUTE_MS)
    drive(state, cap("0"), NOON_MS)
    assert denial(state, None, NOON_MS) is None


def test_a_lowered_cap_takes_nothing_back_and_stops_at_once() -> None:
    """What is billed stays billed, under the terms it ran under."""
    state = make_state(Tier.STARTER, SMALL, used_ms=10 * MINUTE_MS)
    start(state)
    beat(state, MINUTE_MS // 2, NOON_MS + MINUTE_MS // 2)
    now_ms = NOON_MS + 4 * MINUTE_MS // 3
    beat(state, 4 * MINUTE_MS // 3, now_ms)
    decision = drive(state, cap("0.02"), now_ms)
    facts = decision.facts
    assert facts is not None
    assert facts.terms is not None
    assert {row.terms_seq for row in facts.rows} == {facts.terms.seq - 1}
    assert state.period.overage_usd == Decimal("0.05")
    assert any(isinstance(each, StopTasks) for each in decision.notices)


def test_a_debit_past_the_cap_is_refused() -> None:
    """An adjustment is billed like any time, so it meets the cap like any time."""
    state = make_state(Tier.STARTER, SMALL, used_ms=10 * MINUTE_MS)
    drive(state, cap("0.10"), NOON_MS)
    refused = drive(state, make_adjust(2 * MINUTE_MS + 1), NOON_MS).outcome
    booked = drive(state, make_adjust(2 * MINUTE_MS), NOON_MS).outcome
    assert refused == ExceedsOverageCap(room_ms=2 * MINUTE_MS)
    assert isinstance(booked, Adjusted)


def test_the_same_settings_again_change_nothing() -> None:
    """No facts, no audit entry."""
    state = make_state()
    drive(state, cap("5", (50, 100)), NOON_MS)
    assert drive(state, cap(Decimal("5.00"), (50, 100)), NOON_MS).facts is None
    assert drive(state, cap(UNSET), NOON_MS).facts is None


@st.composite
def commands(draw: st.DrawFn) -> list[tuple[int, Command]]:
    """Draw what happens, each with the milliseconds since the one before."""
    steps = []
    kinds = st.sampled_from(["beat", "beat", "beat", "cap", "rate", "adjust", "thresholds"])
    for kind in draw(st.lists(kinds, min_size=1, max_size=25)):
        pause_ms = draw(st.integers(1, 59_000))
        match kind:
            case "cap":
                command: Command = cap(draw(caps))
            case "rate":
                rate = Decimal(draw(st.sampled_from(RATES)))
                minutes = draw(st.sampled_from([1, 3, 10]))
                contract = Contract(
                    agent_minutes=minutes, grace_percent=1_000, overage_usd_per_minute=rate
                )
                command = make_change(contract=contract)
            case "adjust":
                command = make_adjust(draw(st.integers(-60_000, 90_000).filter(bool)))
            case "thresholds":
                chosen = draw(st.sets(st.integers(1, 110), max_size=4))
                command = cap(UNSET, tuple(sorted(chosen)))
            case _:
                command = Heartbeat("task_1", -1)
        steps.append((pause_ms, command))
    return steps


@given(steps=commands(), first_cap=caps, tier=st.sampled_from([Tier.STARTER, Tier.ENTERPRISE]))
@settings(max_examples=2 * settings().max_examples)
def test_no_row_takes_a_period_past_the_cap_in_force(
    steps: list[tuple[int, Command]], first_cap: Decimal | None, tier: Tier
) -> None:
    """Whatever happens to cap, rates and credits; and a stop leaves less than one minute's price.

    Method: the overage is summed from the rows alone; each row that adds cost must leave the sum
    at or under the cap of the terms the row names. The short cut must agree with the long way.
    """
    state = make_state(tier, Contract(agent_minutes=2, agents=5, grace_percent=1_000))
    drive(state, cap(first_cap), NOON_MS)
    caps_usd = {state.terms.seq: state.terms.limits.overage_cap_usd}
    start(state)
    now_ms, spent_usd = NOON_MS, Decimal(0)
    for pause_ms, command in steps:
        now_ms += pause_ms
        if isinstance(command, Heartbeat):
            command = Heartbeat("task_1", now_ms - NOON_MS)  # noqa: PLW2901 - the time is known now
            assert decide(state, command, now_ms) == _heartbeat_in_full(state, command, now_ms)
        decisions = [drive(state, Tick(), now_ms)] if is_due(state, now_ms) else []
        decisions.append(drive(state, command, now_ms))
        caps_usd[state.terms.seq] = state.terms.limits.overage_cap_usd
        rows: list[UsageRow] = [
            row for made in decisions if made.facts is not None for row in made.facts.rows
        ]
        for row in rows:
            if row.kind is Kind.OVERAGE:
                spent_usd += row.total_cost_usd
                limit_usd = caps_usd[row.terms_seq]
                assert row.total_cost_usd <= 0 or limit_usd is None or spent_usd <= limit_usd
        assert spent_usd == state.period.overage_usd
        _check_tight(state)


def _check_tight(state: OrganizationState) -> None:
    """Less than one minute's price lies between the cap line and the cap itself."""
    limits, period = state.terms.limits, state.period
    line_ms = overage_cap_line_ms(limits, period)
    if line_ms is None:
        return
    assert limits.overage_cap_usd is not None
    from_minute = max(period.recorded_ms, limits.included_ms) // MINUTE_MS
    rate_usd = limits.overage_usd_per_minute
    at_line_usd = period.overage_usd + max(0, line_ms // MINUTE_MS - from_minute) * rate_usd
    assert at_line_usd + rate_usd > limits.overage_cap_usd
    assert at_line_usd <= max(limits.overage_cap_usd, period.overage_usd)


@pytest.mark.parametrize("rate", RATES)
def test_the_line_does_not_move_while_time_is_recorded(rate: str) -> None:
    """Recording is bookkeeping: where work stops must not depend on when rows are written."""
    contract = Contract(agent_minutes=1, agents=5, overage_usd_per_minute=Decimal(rate))
    state = make_state(Tier.ENTERPRISE, contract)
    drive(state, cap("0.9"), NOON_MS)
    start(state)
    lines = set()
    for second in range(1, 400, 7):
        now_ms = NOON_MS + second * 1_000
        beat(state, second * 1_000, now_ms)
        drive(state, make_adjust(1), now_ms)  # records everything
        drive(state, make_adjust(-1), now_ms)
        lines.add(overage_cap_line_ms(state.terms.limits, state.period))
        if state.period.used_ms >= max(line or 0 for line in lines):
            break
    assert len(lines) == 1
