"""Reports that arrive together against the same reports one after the other."""

from __future__ import annotations

import copy
import operator
from decimal import Decimal

import attrs
from hypothesis import given, settings, strategies as st

from meterd.core.commands import Beat, Beats, Heartbeat, Heartbeats, Tick
from meterd.core.decide import commit, decide
from meterd.core.organization import OrganizationState, QuotaState
from meterd.core.plan import Contract, Limits, Tier
from meterd.core.quota import is_due, view
from meterd.core.units import MINUTE_MS, SECOND_MS
from tests.organizations import MIDNIGHT_MS, NOON_MS, drive, make_rules, make_state, start


TASKS = 4


def busy_state(plan: Tier, used_ms: int, at_ms: int, cap_usd: str | None) -> OrganizationState:
    """Return four tasks that began at an instant, a second after each other."""
    state = make_state(
        plan,
        Contract(agents=None, agent_minutes=100),
        rules=make_rules(record_interval_ms=2 * MINUTE_MS),
        at_ms=at_ms,
    )
    if cap_usd is not None:
        capped: Limits = attrs.evolve(state.terms.limits, overage_cap_usd=Decimal(cap_usd))
        state.terms = attrs.evolve(state.terms, limits=capped)
    for number in range(TASKS):
        drive(state, Tick(), at_ms + number * SECOND_MS)
        start(state, f"t{number}", f"a{number}", now_ms=at_ms + number * SECOND_MS)
    state.period = attrs.evolve(state.period, used_ms=used_ms, recorded_ms=used_ms)
    drive(state, Tick(), at_ms + TASKS * SECOND_MS)
    return state


def position(state: OrganizationState) -> object:
    """Return everything about a state but the numbers of its facts."""
    tasks = [attrs.evolve(task, seq=0) for task in state.running.values()]
    return tasks, state.period, state.burning_from_sum_ms, state.announced, state.agents


lines_s = st.sampled_from([50 * 60, 80 * 60, 100 * 60, 110 * 60])
reports = st.lists(
    st.builds(
        Heartbeat,
        st.sampled_from([f"t{number}" for number in range(TASKS)]),
        st.integers(1, 40).map(lambda halves: halves * SECOND_MS // 2),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=3 * settings().max_examples)
@given(
    plan=st.sampled_from([Tier.STARTER, Tier.FREE, Tier.ENTERPRISE]),
    used_s=st.one_of(st.just(0), st.builds(operator.sub, lines_s, st.integers(-2, 60))),
    at_ms=st.sampled_from([NOON_MS, MIDNIGHT_MS - 9 * SECOND_MS]),
    cap_usd=st.sampled_from([None, "0", "0.15"]),
    frames=st.lists(st.tuples(st.integers(0, 12_000), reports), min_size=1, max_size=5),
)
def test_together_is_one_after_the_other(
    plan: Tier,
    used_s: int,
    at_ms: int,
    cap_usd: str | None,
    frames: list[tuple[int, list[Heartbeat]]],
) -> None:
    """Whatever is taken, wherever a line, a day or a limit lies; what is not changes nothing."""
    state = busy_state(plan, used_s * SECOND_MS, at_ms, cap_usd)
    now_ms = at_ms + TASKS * SECOND_MS
    for pause_ms, sent in frames:
        now_ms += pause_ms
        if is_due(state, now_ms):
            drive(state, Tick(), now_ms)
        alone = copy.copy(state)
        alone.running, alone.agents = dict(state.running), dict(state.agents)
        before = position(state)

        decision = decide(state, Heartbeats(sent), now_ms)

        assert position(state) == before, "decide is pure"
        assert isinstance(decision.outcome, Beats)
        taken = decision.outcome.tasks
        commit(state, decision)
        for report, task in zip(sent, taken, strict=False):
            one = drive(alone, report, now_ms)
            assert isinstance(one.outcome, Beat)
            assert (one.outcome.stop, one.outcome.clamped, one.notices) == (None, False, ())
            assert attrs.evolve(one.outcome.task, seq=0) == attrs.evolve(task, seq=0)
        assert position(state) == position(alone)
        assert view(state, now_ms) == view(alone, now_ms)
        assert (decision.facts is not None) == bool(taken)
        for report in sent[len(taken) :]:
            drive(state, report, now_ms)


def test_a_frame_of_true_reports_is_one_fact() -> None:
    """Each task's last position is in it once, in the order of their first reports."""
    state = busy_state(Tier.STARTER, 0, NOON_MS, None)
    seq = state.seq
    sent = [Heartbeat(f"t{number}", ms) for ms in (1_000, 2_000) for number in (2, 0, 1)]

    decision = decide(state, Heartbeats(sent), NOON_MS + 10_000)

    assert decision.facts is not None
    assert decision.facts.seq == seq + 1
    assert [(t.task_id, t.elapsed_ms) for t in decision.facts.tasks] == [
        ("t2", 2_000),
        ("t0", 2_000),
        ("t1", 2_000),
    ]
    assert isinstance(decision.outcome, Beats)
    assert [task.elapsed_ms for task in decision.outcome.tasks] == [1_000] * 3 + [2_000] * 3


def test_a_frame_that_takes_projected_use_back_over_a_line_is_left_to_be_told() -> None:
    """Silence looked like use; that it was none must be announced, as for one report."""
    state = busy_state(Tier.STARTER, 80 * MINUTE_MS - 20_000, NOON_MS, None)
    now_ms = NOON_MS + 15_000
    drive(state, Tick(), now_ms)
    assert state.announced is QuotaState.WARNING
    sent = [Heartbeat(f"t{number}", 1) for number in range(TASKS)]

    assert decide(state, Heartbeats(sent), now_ms).outcome == Beats(())


def test_a_frame_that_runs_ahead_over_a_line_is_left_to_be_told() -> None:
    """Each report alone is small; what all of them add reaches the next state."""
    state = busy_state(Tier.STARTER, 80 * MINUTE_MS - 20_000, NOON_MS, None)
    assert state.announced is QuotaState.OK
    now_ms = NOON_MS + 5_000
    ahead = [Heartbeat(f"t{number}", (9 - number) * SECOND_MS) for number in range(TASKS)]
    honest = [Heartbeat(f"t{number}", (5 - number) * SECOND_MS) for number in range(TASKS)]

    assert decide(state, Heartbeats(ahead), now_ms).outcome == Beats(())
    taken = decide(state, Heartbeats(honest), now_ms).outcome
    assert isinstance(taken, Beats)
    assert len(taken.tasks) == TASKS


def test_what_follows_an_odd_report_is_left_to_be_asked_for() -> None:
    """A task nobody knows, a repeat, a leap ahead."""
    state = busy_state(Tier.STARTER, 0, NOON_MS, None)
    for odd in (Heartbeat("t9", 1), Heartbeat("t0", 1_000), Heartbeat("t0", MINUTE_MS)):
        sent = [Heartbeat("t0", 1_000), odd, Heartbeat("t1", 1_000)]

        outcome = decide(state, Heartbeats(sent), NOON_MS + 10_000).outcome

        assert isinstance(outcome, Beats)
        assert len(outcome.tasks) == 1
