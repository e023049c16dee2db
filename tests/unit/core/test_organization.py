from __future__ import annotations

import attrs
import pytest

from meterd.core import organization
from meterd.core.organization import (
    FINISHED_KEPT_MS,
    Facts,
    Hold,
    Profile,
    apply,
    forget_ended,
    put_task,
)
from meterd.core.period import Period
from meterd.core.plan import Tier
from meterd.core.task import TaskState
from meterd.core.units import DAY_MS
from tests.organizations import (
    NOON_MS,
    make_period,
    make_rules,
    make_state,
    make_task,
    make_terms,
)


def closed(days_ago: int, *, terms_seq: int = 1, used_ms: int = 0) -> Period:
    end_ms = make_period().start_ms - days_ago * DAY_MS
    return Period(
        start_ms=end_ms - 30 * DAY_MS,
        end_ms=end_ms,
        label=f"closed-{days_ago}",
        terms_seq=terms_seq,
        closed=True,
        used_ms=used_ms,
        recorded_ms=used_ms,
    )


@pytest.mark.parametrize(
    ("timeout_ms", "interval_ms"),
    [(60_000, 10_000), (30_000, 10_000), (29_999, 9_999), (1_000, 333)],
)
def test_agents_report_every_ten_seconds_or_thrice_a_time_out(
    timeout_ms: int, interval_ms: int
) -> None:
    """Two lost heartbeats must not lose a task."""
    assert make_rules(task_timeout_ms=timeout_ms).heartbeat_interval_ms == interval_ms


def test_an_operators_hold_is_the_one_to_speak_of() -> None:
    """Paying would not lift it."""
    profile = Profile(name="One", created_at_ms=0)

    assert profile.hold is None
    assert attrs.evolve(profile, holds=frozenset({Hold.PAYMENT})).hold is Hold.PAYMENT
    assert attrs.evolve(profile, holds=frozenset(Hold)).hold is Hold.OPERATOR


def test_applying_facts_twice_changes_nothing() -> None:
    """A retry after a lost reply, or a replay that overlaps what is stored."""
    state = make_state()
    facts = Facts(seq=1, tasks=(make_task(),), periods=(make_period(used_ms=5),))
    apply(state, facts)
    sums = (state.burning_from_sum_ms, dict(state.agents), state.period)
    apply(state, facts)

    assert (state.burning_from_sum_ms, state.agents, state.period) == sums
    assert state.agents == {"agent_1": 1}
    assert state.seq == 1


def test_a_gap_in_the_facts_stops_the_actor() -> None:
    """State built on a missing fact would bill wrongly for ever."""
    with pytest.raises(AssertionError, match="out of order"):
        apply(make_state(), Facts(seq=2))


def test_profile_and_terms_are_replaced() -> None:
    """Facts carry absolute values."""
    state = make_state()
    profile = attrs.evolve(state.profile, name="Two")
    terms = make_terms(Tier.PRO, seq=2)
    apply(state, Facts(seq=1, profile=profile, terms=terms))

    assert (state.profile, state.terms, state.earlier_terms) == (profile, terms, {})


def test_terms_are_kept_as_long_as_a_closed_period_names_them() -> None:
    """A late report is priced under the terms at the end of its period."""
    state = make_state()
    first = state.terms
    apply(state, Facts(seq=1, periods=(closed(0), make_period())))
    apply(state, Facts(seq=2, terms=make_terms(Tier.PRO, seq=2)))
    before, current = state.closed_periods[0], state.period
    apply(state, Facts(seq=3, periods=(closed(0, used_ms=9), current)))

    assert state.terms_of(before) is first
    assert state.terms_of(current) is state.terms
    assert state.closed_periods == (closed(0, used_ms=9),)
    assert state.terms_of(closed(0, terms_seq=2)) is state.terms


def test_closed_periods_are_kept_newest_first_for_36_days() -> None:
    """Reports reach back 31 days and events 35."""
    state = make_state()
    apply(state, Facts(seq=1, periods=(closed(37), closed(36), closed(0))))

    assert [period.label for period in state.closed_periods] == ["closed-0", "closed-36"]


def test_a_recalled_period_whose_terms_are_not_here_is_not_kept() -> None:
    """It is recalled again with its terms, instead of being read under others."""
    state = make_state()
    apply(state, Facts(seq=1, periods=(closed(1, terms_seq=9),)))

    assert state.closed_periods == ()


def test_tasks_stay_in_the_order_in_which_they_were_heard() -> None:
    """The time-out looks at the first only: a row written for a task must not move it."""
    state = make_state()
    for number in range(3):
        put_task(state, make_task(f"t{number}", reported_at_ms=NOON_MS + number))
    put_task(state, make_task("t0", elapsed_ms=5, recorded_ms=5, reported_at_ms=NOON_MS))
    assert list(state.running) == ["t0", "t1", "t2"]

    put_task(state, make_task("t0", elapsed_ms=9, reported_at_ms=NOON_MS + 9))
    assert list(state.running) == ["t1", "t2", "t0"]
    assert state.burning_from_sum_ms == 3 * NOON_MS + 1 + 2 + 9


def test_slots_follow_the_tasks() -> None:
    """An agent holds its slot until its last task ends; a lost task may take it again."""
    state = make_state()
    put_task(state, make_task("t1"))
    put_task(state, make_task("t2"))
    assert state.agents == {"agent_1": 2}

    put_task(state, make_task("t1", state=TaskState.FINISHED, ended_at_ms=NOON_MS))
    put_task(state, make_task("t2", state=TaskState.LOST, ended_at_ms=NOON_MS))
    assert (state.agents, state.burning_from_sum_ms) == ({}, 0)
    assert (list(state.ended), list(state.lost)) == (["t1", "t2"], ["t2"])
    assert state.task("t2") is state.ended["t2"]

    put_task(state, make_task("t2"))
    assert (state.agents, list(state.lost)) == ({"agent_1": 1}, [])
    assert list(state.ended) == ["t1"], "it runs again"
    assert (state.task("t2"), state.task("t9")) == (state.running["t2"], None)

    put_task(state, make_task("t2", state=TaskState.LOST, ended_at_ms=NOON_MS))
    put_task(state, make_task("t2", state=TaskState.FINISHED, ended_at_ms=NOON_MS))
    assert (list(state.lost), state.running) == ([], {})


def test_ended_tasks_are_forgotten_when_durable_and_old() -> None:
    """Finished ones after a minute, lost ones when they may no longer report."""
    state = make_state()
    put_task(state, make_task("done", state=TaskState.FINISHED, ended_at_ms=NOON_MS, seq=1))
    put_task(state, make_task("new", state=TaskState.FINISHED, ended_at_ms=NOON_MS, seq=2))
    put_task(state, make_task("lost", state=TaskState.LOST, ended_at_ms=NOON_MS, seq=1))

    forget_ended(state, now_ms=NOON_MS + FINISHED_KEPT_MS - 1, durable_seq=1)
    assert list(state.ended) == ["done", "new", "lost"]
    forget_ended(state, now_ms=NOON_MS + FINISHED_KEPT_MS, durable_seq=1)
    assert list(state.ended) == ["new", "lost"]
    forget_ended(state, now_ms=NOON_MS + DAY_MS - 1, durable_seq=2)
    assert list(state.ended) == ["lost"]
    forget_ended(state, now_ms=NOON_MS + DAY_MS, durable_seq=2)
    assert (state.ended, state.lost) == ({}, {})


def test_of_very_many_lost_tasks_only_the_latest_stay_in_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ten thousand agents that vanish every minute would fill the memory within the day."""
    monkeypatch.setattr(organization, "LOST_KEPT_MAX", 2)
    state = make_state()
    for number in range(5):
        lost = make_task(f"t{number}", state=TaskState.LOST, ended_at_ms=NOON_MS + number, seq=1)
        put_task(state, attrs.evolve(lost, seq=2 if number == 1 else 1))

    forget_ended(state, now_ms=NOON_MS + FINISHED_KEPT_MS, durable_seq=1)
    assert list(state.lost) == ["t1", "t2", "t3", "t4"]  # the others are not a minute old
    forget_ended(state, now_ms=NOON_MS + 2 * FINISHED_KEPT_MS, durable_seq=1)
    assert list(state.lost) == ["t1", "t3", "t4"]  # and t1 is not durable
    forget_ended(state, now_ms=NOON_MS + 2 * FINISHED_KEPT_MS, durable_seq=2)
    assert list(state.lost) == list(state.ended) == ["t3", "t4"]
