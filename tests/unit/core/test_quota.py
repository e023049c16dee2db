from __future__ import annotations

from decimal import Decimal

import attrs
import pytest

from meterd.core.commands import (
    Decision,
    Heartbeat,
    Notice,
    Notified,
    QuotaChanged,
    StopTasks,
    ThresholdReached,
    Tick,
)
from meterd.core.decide import decide
from meterd.core.organization import DenialReason, Hold, OrganizationState, QuotaState
from meterd.core.plan import Contract, Tier
from meterd.core.quota import (
    denial,
    is_due,
    next_line_ms,
    next_wakeup_ms,
    projected_ms,
    quota_state,
    running_denial,
    silent_at_ms,
    threshold_lines,
    usage_state,
    view,
)
from meterd.core.units import MINUTE_MS
from tests.organizations import (
    MARCH_MS,
    NOON_MS,
    drive,
    make_change,
    make_finish,
    make_rules,
    make_state,
    make_terms,
    start,
    start_denied,
)


HUNDRED = Contract(agent_minutes=100)


@pytest.mark.parametrize(
    ("percent", "below", "at"),
    [
        (80, QuotaState.OK, QuotaState.WARNING),
        (100, QuotaState.WARNING, QuotaState.GRACE),
        (110, QuotaState.GRACE, QuotaState.EXCEEDED),
    ],
)
def test_states_change_exactly_at_their_lines(
    percent: int, below: QuotaState, at: QuotaState
) -> None:
    """One millisecond less is the state before."""
    limits = make_terms(contract=HUNDRED).limits
    line_ms = percent * MINUTE_MS

    assert usage_state(limits, line_ms - 1) is below
    assert usage_state(limits, line_ms) is at
    assert usage_state(limits, line_ms + 1) is at


def test_enterprise_is_unlimited_and_a_hold_overrides_everything() -> None:
    """Whatever was used."""
    state = make_state(Tier.ENTERPRISE, used_ms=10**9)
    assert quota_state(state, NOON_MS) is QuotaState.UNLIMITED
    assert next_wakeup_ms(state, NOON_MS) == MARCH_MS

    drive(state, make_change(place=Hold.PAYMENT), NOON_MS)
    assert quota_state(state, NOON_MS) is QuotaState.SUSPENDED
    assert running_denial(state, NOON_MS) is DenialReason.SUSPENDED


def test_reasons_are_reported_in_the_order_they_are_declared() -> None:
    """Everything is wrong at first; each thing put right uncovers the next reason."""
    rules = make_rules(tasks_per_agent=1, tasks_per_organization=1)
    state = make_state(contract=Contract(agent_minutes=100, agents=1), rules=rules)
    start(state)
    drive(state, make_change(place=Hold.OPERATOR), NOON_MS)
    state.period = attrs.evolve(state.period, used_ms=110 * MINUTE_MS, recorded_ms=110 * MINUTE_MS)
    seen = [denial(state, "agent_1", NOON_MS)]
    drive(state, make_change(lift=Hold.OPERATOR), NOON_MS)
    seen.append(denial(state, "agent_1", NOON_MS))
    drive(state, make_change(plan=Tier.PRO, contract=Contract(agents=1)), NOON_MS)
    seen.append(denial(state, "agent_1", NOON_MS))
    seen.append(denial(state, "agent_2", NOON_MS))
    drive(state, make_change(contract=Contract(agents=2)), NOON_MS)
    seen.append(denial(state, "agent_2", NOON_MS))
    drive(state, make_finish(), NOON_MS)
    seen.append(denial(state, "agent_2", NOON_MS))

    assert [reason for reason in DenialReason if reason in seen] == seen[:-1]
    assert set(DenialReason) - set(seen) == {DenialReason.OVERAGE_CAP_REACHED}
    assert seen[-1] is None


@pytest.mark.parametrize(("offset_ms", "fits"), [(-1, True), (0, False), (1, False)])
def test_a_task_starts_up_to_the_hard_limit(offset_ms: int, fits: bool) -> None:
    """The last millisecond admits, the limit itself refuses."""
    state = make_state(contract=HUNDRED, used_ms=110 * MINUTE_MS + offset_ms)

    assert (denial(state, None, NOON_MS) is None) is fits
    assert (running_denial(state, NOON_MS) is None) is fits


@pytest.mark.parametrize(("offset_ms", "fits"), [(-1, True), (0, False), (1, False)])
def test_grace_may_be_closed_to_new_tasks(offset_ms: int, fits: bool) -> None:
    """Running ones always go on to the hard limit."""
    contract = attrs.evolve(HUNDRED, new_tasks_in_grace=False)
    state = make_state(contract=contract, used_ms=100 * MINUTE_MS + offset_ms)

    assert (denial(state, None, NOON_MS) is None) is fits
    assert running_denial(state, NOON_MS) is None


def test_of_many_starts_for_one_slot_one_is_admitted() -> None:
    """Decision and reservation are one step, and a refusal leaves no trace."""
    state = make_state(contract=Contract(agents=1))
    start(state, "t0", "a0")
    seq = state.seq
    reasons = {start_denied(state, f"t{n}", f"a{n}").reason for n in range(1, 50)}

    assert reasons == {DenialReason.AGENT_LIMIT_REACHED}
    assert (list(state.running), state.seq) == (["t0"], seq)
    assert denial(state, "a0", NOON_MS) is None


def test_an_agent_may_run_so_many_tasks() -> None:
    """Eight by default: the ninth would hide how many agents there are."""
    state = make_state(Tier.FREE)
    for number in range(8):
        start(state, f"t{number}")

    assert start_denied(state, "t8", "agent_1").reason is DenialReason.AGENT_BUSY


def test_projected_use_adds_the_time_since_each_report() -> None:
    """Decisions do not wait for heartbeats."""
    state = make_state()
    start(state, "t1")
    start(state, "t2", now_ms=NOON_MS + 1_000)
    drive(state, Heartbeat("t1", 4_000), NOON_MS + 5_000)

    assert projected_ms(state, NOON_MS + 7_000) == 4_000 + 2_000 + 6_000
    quota = view(state, NOON_MS + 7_000)
    assert (quota.used_ms, quota.projected_ms, quota.agents_active) == (4_000, 12_000, 1)


def test_the_quota_object_has_what_callers_are_shown() -> None:
    """Whole minutes, what remains to the hard limit, and whether a new agent would be admitted."""
    quota = view(make_state(contract=HUNDRED, used_ms=105 * MINUTE_MS + 59_999), NOON_MS)

    assert (quota.used_minutes, quota.hard_limit_minutes, quota.remaining_minutes) == (105, 110, 5)
    assert quota.remaining_ms == 4 * MINUTE_MS + 1
    assert (quota.denial, quota.state, quota.label) == (None, QuotaState.GRACE, "2026-02")

    over = view(make_state(contract=HUNDRED, used_ms=120 * MINUTE_MS), NOON_MS)
    assert (over.remaining_minutes, over.remaining_ms) == (0, 0)
    free = view(make_state(Tier.ENTERPRISE), NOON_MS)
    assert (free.hard_limit_minutes, free.remaining_minutes, free.remaining_ms) == (None,) * 3


def test_thresholds_are_shares_of_the_included_time_and_the_hard_limit() -> None:
    """110 names the hard limit, whatever grace the plan grants."""
    limits = make_terms(contract=Contract(agent_minutes=1, grace_percent=50)).limits

    assert list(threshold_lines(limits, {110, 80, 100, 105})) == [
        (80, 48_000),
        (100, 60_000),
        (105, 63_000),
        (110, 90_000),
    ]
    assert list(threshold_lines(make_terms(Tier.ENTERPRISE).limits, {50})) == []


def told(decision: Decision) -> tuple[Notice, ...]:
    """Return what a decision announced, its durable notifications aside."""
    return tuple(each for each in decision.notices if not isinstance(each, Notified))


def burning(count: int, room_ms: int) -> OrganizationState:
    """Return a state whose tasks started at noon with this much room to the hard limit."""
    state = make_state(Tier.PRO, HUNDRED, used_ms=110 * MINUTE_MS - room_ms)
    for number in range(count):
        start(state, f"t{number}", f"a{number}")
    return state


@pytest.mark.parametrize(("count", "room_ms"), [(1, 10_000), (3, 10_000), (7, 1), (3, 29_999)])
def test_stop_is_pushed_at_the_very_millisecond_the_quota_runs_out(
    count: int, room_ms: int
) -> None:
    """Each task burns a millisecond in one: the timer needs no heartbeat."""
    state = burning(count, room_ms)
    wakeup_ms = next_wakeup_ms(state, NOON_MS)
    early = decide(state, Tick(), wakeup_ms - 1)
    exact = decide(state, Tick(), wakeup_ms)

    assert wakeup_ms == NOON_MS + -(-room_ms // count)
    assert (early.facts, early.notices) == (None, ())
    assert told(exact) == (
        ThresholdReached(percent=110),
        QuotaChanged(state=QuotaState.EXCEEDED, stop=DenialReason.PLAN_LIMIT_REACHED),
        StopTasks(
            task_ids=tuple(f"t{n}" for n in range(count)), reason=DenialReason.PLAN_LIMIT_REACHED
        ),
    )


def test_the_timer_is_for_whatever_comes_first() -> None:
    """A threshold, a silent task, the end of the period, or only that."""
    state = make_state(contract=HUNDRED, used_ms=80 * MINUTE_MS - 5_000)
    assert (silent_at_ms(state), next_wakeup_ms(state, NOON_MS)) == (None, MARCH_MS)

    start(state)
    assert next_wakeup_ms(state, NOON_MS) == NOON_MS + 5_000
    drive(state, Tick(), NOON_MS + 5_000)
    assert next_wakeup_ms(state, NOON_MS + 5_000) == NOON_MS + MINUTE_MS == silent_at_ms(state)

    late = make_state(at_ms=MARCH_MS - 10_000)
    start(late, now_ms=MARCH_MS - 10_000)
    assert next_wakeup_ms(late, MARCH_MS - 10_000) == MARCH_MS
    over = burning(2, 1)
    drive(over, Tick(), NOON_MS + 1)
    assert next_wakeup_ms(over, NOON_MS + 1) == NOON_MS + MINUTE_MS


def test_time_is_due_at_a_periods_end_and_at_a_time_out() -> None:
    """Half-open: at the instant itself, not before."""
    state = make_state()
    assert [is_due(state, ms) for ms in (MARCH_MS - 1, MARCH_MS)] == [False, True]

    start(state)
    out_ms = NOON_MS + MINUTE_MS
    assert [is_due(state, ms) for ms in (out_ms - 1, out_ms)] == [False, True]


def test_time_is_due_when_the_payment_grace_is_over() -> None:
    """To the millisecond, and once: under the hold nothing is due again."""
    state = make_state()
    state.profile = attrs.evolve(state.profile, past_due_since_ms=NOON_MS)
    end_ms = NOON_MS + state.rules.payment_grace_ms

    assert [is_due(state, end_ms + late_ms) for late_ms in (-1, 0, 1)] == [False, True, True]
    assert next_wakeup_ms(state, NOON_MS) == end_ms
    state.profile = attrs.evolve(state.profile, holds=frozenset({Hold.PAYMENT}))
    assert not is_due(state, end_ms)


def test_silence_from_before_a_start_burns_no_more_and_loses_nothing_at_once() -> None:
    """A fresh time-out for who was silent, while its projected time stays at one time-out."""
    state = burning(2, 10 * MINUTE_MS)
    drive(state, Heartbeat("t1", 50_000), NOON_MS + 50_000)
    state.serving_since_ms = now_ms = NOON_MS + 70_000

    assert silent_at_ms(state) == now_ms + MINUTE_MS
    assert projected_ms(state, now_ms) - state.period.used_ms == MINUTE_MS + 20_000
    assert projected_ms(state, now_ms + 1) - state.period.used_ms == MINUTE_MS + 20_001
    frozen_ms = NOON_MS + 50_000 + MINUTE_MS
    assert projected_ms(state, frozen_ms) == projected_ms(state, frozen_ms + 9)
    assert next_wakeup_ms(state, frozen_ms) == now_ms + MINUTE_MS


def test_a_cap_that_is_reached_sets_no_timer() -> None:
    """A timer for this very instant would go off again and again."""
    state = make_state(contract=HUNDRED, used_ms=100 * MINUTE_MS)
    limits = attrs.evolve(state.terms.limits, overage_cap_usd=Decimal("0.10"))
    state.terms = attrs.evolve(state.terms, limits=limits)
    cap_ms, hard_ms = 102 * MINUTE_MS, 110 * MINUTE_MS

    lines = [next_line_ms(state, projected) for projected in (cap_ms - 1, cap_ms, hard_ms)]
    assert lines == [cap_ms, hard_ms, None]


def test_a_task_at_its_time_out_moves_no_timer() -> None:
    """Its projected time stands still, so no line comes nearer."""
    state = burning(1, MINUTE_MS + 5)
    state.serving_since_ms = now_ms = NOON_MS + MINUTE_MS
    drive(state, Tick(), now_ms)

    assert projected_ms(state, now_ms) == projected_ms(state, now_ms + 5) == 110 * MINUTE_MS - 5
    assert next_wakeup_ms(state, now_ms) == silent_at_ms(state) == now_ms + MINUTE_MS


def test_a_view_is_judged_for_the_agent_it_is_asked_for() -> None:
    """With every slot taken a known agent may still start its next task."""
    state = make_state(contract=Contract(agents=1))
    start(state)

    assert view(state, NOON_MS).denial is DenialReason.AGENT_LIMIT_REACHED
    assert view(state, NOON_MS, "agent_1").denial is None


def test_a_view_shows_every_figure_of_the_state_it_is_of() -> None:
    """The quota object is made of these fields alone; a wrong one is a wrong answer."""
    state = make_state(contract=Contract(agents=2, agent_minutes=100), used_ms=30 * MINUTE_MS)
    start(state)
    shown = view(state, NOON_MS + 5_000)

    assert (shown.organization_id, shown.plan) == ("org_1", Tier.STARTER)
    assert (shown.label, shown.period_start_ms, shown.period_end_ms) == (
        state.period.label,
        state.period.start_ms,
        state.period.end_ms,
    )
    assert (shown.used_ms, shown.projected_ms) == (30 * MINUTE_MS, 30 * MINUTE_MS + 5_000)
    assert (shown.included_minutes, shown.hard_limit_ms) == (100, 110 * MINUTE_MS)
    assert (shown.overage_minutes, shown.overage_usd) == (0, Decimal(0))
    assert (shown.agents_active, shown.agents_limit) == (1, 2)
    assert (shown.as_of_ms, shown.state, shown.denial) == (NOON_MS + 5_000, QuotaState.OK, None)
    drive(state, make_change(place=Hold.OPERATOR), NOON_MS + 6_000)
    held = view(state, NOON_MS + 7_000)
    assert (held.state, held.hold, held.denial) == (
        QuotaState.SUSPENDED,
        Hold.OPERATOR,
        DenialReason.SUSPENDED,
    )
