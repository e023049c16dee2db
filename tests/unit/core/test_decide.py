from __future__ import annotations

import copy
import json
from collections.abc import Callable, ItemsView, Iterator

import attrs
import pytest

from meterd.core.commands import (
    Beat,
    Done,
    Finished,
    FinishTask,
    Heartbeat,
    NeedsTask,
    Notified,
    Recalled,
    Started,
    StartTask,
    TaskClosed,
    TaskConflict,
    TaskLost,
    TaskUnknown,
    Tick,
)
from meterd.core.decide import decide
from meterd.core.organization import DenialReason, Finding, Hold, OrganizationState
from meterd.core.plan import Contract, Tier
from meterd.core.slowing import STEADY
from meterd.core.task import Plausibility, Task, TaskOutcome, TaskState
from meterd.core.units import DAY_MS, HOUR_MS, MINUTE_MS
from tests.organizations import (
    MARCH_MS,
    NOON_MS,
    drive,
    make_change,
    make_finish,
    make_info,
    make_rules,
    make_start,
    make_state,
    start,
)


def findings(state: OrganizationState, command: Heartbeat | Tick, now_ms: int) -> list[str]:
    facts = drive(state, command, now_ms).facts
    return [] if facts is None else [finding.kind for finding in facts.findings]


def beat(state: OrganizationState, elapsed_ms: int, now_ms: int, task_id: str = "task_1") -> Beat:
    outcome = drive(state, Heartbeat(task_id, elapsed_ms), now_ms).outcome
    assert isinstance(outcome, Beat), outcome
    return outcome


# --- starting -----------------------------------------------------------------------------------


def test_a_repeated_start_answers_with_the_task_ended_or_not() -> None:
    """The reply may have been lost; another body is a conflict."""
    state = make_state()
    start(state)
    again = drive(state, make_start(), NOON_MS + 5).outcome
    drive(state, make_finish("task_1", 5), NOON_MS + 5)
    ended = drive(state, make_start(), NOON_MS + 6).outcome

    assert isinstance(again, Started)
    assert again.repeated
    assert ended == Started(task=state.ended["task_1"], repeated=True)
    assert drive(state, make_start(agent_id="other"), NOON_MS).outcome == TaskConflict()


def test_the_store_is_asked_about_a_task_that_is_not_in_memory() -> None:
    """What it says is as good as memory; `None` means there is no such task."""
    state = make_state()
    known = start(make_state())
    for command in (StartTask(info=make_info()), Heartbeat("task_1", 1), make_finish("task_1", 1)):
        assert drive(state, command, NOON_MS).outcome == NeedsTask(task_id="task_1")
    for absent in (
        Heartbeat("task_1", 1, Recalled(None)),
        FinishTask(
            task_id="task_1", elapsed_ms=1, outcome=TaskOutcome.FAILED, recalled=Recalled(None)
        ),
    ):
        assert drive(state, absent, NOON_MS).outcome == TaskUnknown()
    done = attrs.evolve(known, state=TaskState.FINISHED, ended_at_ms=NOON_MS)
    recalled = StartTask(info=make_info(), recalled=Recalled(done))
    assert drive(state, recalled, NOON_MS).outcome == Started(task=done, repeated=True)


def test_time_run_before_the_start_is_metered_at_once() -> None:
    """An agent that had to start while meterd was away."""
    state = make_state()
    task = start(state, elapsed_ms=300_000)

    assert (task.elapsed_ms, task.metered_ms, state.period.used_ms) == (300_000,) * 3


def test_a_task_begins_at_the_instant_meterd_hears_of_it() -> None:
    """Every position that later reports are compared with, and what the agent said of it."""
    state = make_state()
    asked = make_start(elapsed_ms=3_000, user_id="u", started_at_ms=0)
    decision = drive(state, asked, NOON_MS + 5)
    task = Task(
        info=attrs.evolve(asked.info, started_at_ms=NOON_MS + 5),
        state=TaskState.RUNNING,
        outcome=None,
        elapsed_ms=3_000,
        metered_ms=3_000,
        recorded_ms=0,
        reported_at_ms=NOON_MS + 5,
        metered_until_ms=NOON_MS + 5,
        ended_at_ms=None,
        burning_from_ms=NOON_MS + 5,
        pace_from_ms=NOON_MS + 5,
        pace_elapsed_ms=3_000,
        seq=1,
    )

    assert decision.outcome == Started(task=task)
    assert decision.facts is not None
    assert decision.facts.tasks == (task,)
    assert decision.facts.started == {"task_1"}


def test_a_finished_task_keeps_its_outcome_and_its_end() -> None:
    """And its time is in rows: nothing of it is pending."""
    state = make_state()
    begun = start(state)
    finish = make_finish("task_1", 4_000, TaskOutcome.CANCELLED)
    outcome = drive(state, finish, NOON_MS + 9_000).outcome
    ended = attrs.evolve(
        begun,
        state=TaskState.FINISHED,
        outcome=TaskOutcome.CANCELLED,
        elapsed_ms=4_000,
        metered_ms=4_000,
        recorded_ms=4_000,
        reported_at_ms=NOON_MS + 9_000,
        metered_until_ms=NOON_MS + 9_000,
        ended_at_ms=NOON_MS + 9_000,
        burning_from_ms=NOON_MS + 9_000,
        seq=2,
    )

    assert outcome == Finished(task=ended)
    assert state.ended == {"task_1": ended}


# --- reporting ----------------------------------------------------------------------------------


def test_a_smaller_or_equal_value_changes_no_bill() -> None:
    """Reports are cumulative: repeats and late ones are harmless."""
    state = make_state()
    start(state)
    beat(state, 9_000, NOON_MS + 10_000)
    for elapsed_ms in (9_000, 0):
        answer = beat(state, elapsed_ms, NOON_MS + 11_000)
        assert (answer.task.elapsed_ms, answer.clamped) == (9_000, False)
    assert state.period.used_ms == 9_000


@pytest.mark.parametrize(
    ("mode", "accepted_ms", "clamped", "kinds"),
    [
        (Plausibility.ENFORCE, 15_000, True, []),
        (Plausibility.REPORT, 60_000, False, ["implausible_report"]),
        (Plausibility.OFF, 60_000, False, []),
    ],
)
def test_a_claim_ahead_of_time_is_cut_reported_or_taken(
    mode: Plausibility, accepted_ms: int, clamped: bool, kinds: list[str]
) -> None:
    """Ten seconds after the start an agent claims a minute."""
    state = make_state(rules=make_rules(plausibility=mode))
    start(state)
    decision = drive(state, Heartbeat("task_1", 60_000), NOON_MS + 10_000)

    assert isinstance(decision.outcome, Beat)
    assert (decision.outcome.task.elapsed_ms, decision.outcome.clamped) == (accepted_ms, clamped)
    assert decision.facts is not None
    assert [finding.kind for finding in decision.facts.findings] == kinds
    for finding in decision.facts.findings:
        assert finding.detail_json == (
            '{"claimed_ms":60000,"plausible_ms":15000,"task_id":"task_1"}'
        )
    assert findings(state, Heartbeat("task_1", 80_000), NOON_MS + 20_000) == []


def test_a_report_is_not_held_to_a_clock_that_was_slowed_down() -> None:
    """Real time decides (contract, 3.5): what our clock left out since the start is granted."""
    state = make_state()
    start(state, "early")
    state.slowing = STEADY.with_total(NOON_MS + 100_000, 30_000)
    start(state, "late", now_ms=NOON_MS + 100_000)

    early = beat(state, 10**9, NOON_MS + 200_000, "early")
    late = beat(state, 10**9, NOON_MS + 200_000, "late")

    assert (early.task.elapsed_ms, early.clamped) == (200_000 + 30_000 + 5_000, True)
    assert (late.task.elapsed_ms, late.clamped) == (100_000 + 5_000, True)


def test_a_claim_ahead_of_a_slowed_clock_is_found_when_it_begins() -> None:
    """What our clock left out is granted before, too: only the first claim past it is news."""
    state = make_state(rules=make_rules(plausibility=Plausibility.REPORT))
    start(state)
    state.slowing = STEADY.with_total(NOON_MS + 100_000, 30_000)

    assert findings(state, Heartbeat("task_1", 135_000), NOON_MS + 100_000) == []
    found = findings(state, Heartbeat("task_1", 200_000), NOON_MS + 110_000)
    assert found == ["implausible_report"]


def test_a_finish_is_clamped_too() -> None:
    """And says so, to whoever asks again, too."""
    state = make_state()
    start(state)
    outcome = drive(state, make_finish("task_1", 60_000), NOON_MS).outcome
    again = drive(state, make_finish("task_1", 60_000), NOON_MS).outcome

    assert isinstance(outcome, Finished)
    assert (outcome.clamped, outcome.task.elapsed_ms) == (True, 5_000)
    assert again == outcome
    less = drive(state, make_finish("task_1", 5_000), NOON_MS).outcome
    assert less == Finished(task=outcome.task, clamped=False)


def test_reporting_under_90_percent_for_five_minutes_is_found() -> None:
    """The other direction: an agent that hides time. The window then starts anew."""
    for permille, kinds in ((899, ["under_reporting"] * 2), (900, [])):
        state = make_state()
        start(state)
        found: list[Finding] = []
        for seconds in range(10, 610, 10):
            report = Heartbeat("task_1", seconds * permille)
            facts = drive(state, report, NOON_MS + seconds * 1_000).facts
            assert facts is not None
            found += facts.findings
        assert [finding.kind for finding in found] == kinds
        for finding in found:
            assert finding.detail_json == (
                '{"agent_id":"agent_1","observed_ms":300000,"reported_ms":269700,'
                '"task_id":"task_1"}'
            )
        task = state.running["task_1"]
        assert (task.pace_from_ms, task.pace_elapsed_ms) == (NOON_MS + 600_000, task.elapsed_ms)


def test_a_finished_task_takes_no_more_reports() -> None:
    """Nothing changes, and a repeated finish finds the first."""
    state = make_state()
    start(state)
    drive(state, make_finish("task_1", 4_000, TaskOutcome.FAILED), NOON_MS + 5_000)
    ended = state.ended["task_1"]

    assert beat(state, 9_000, NOON_MS + 9_000) == Beat(ended, None, clamped=False, finished=True)
    again = drive(state, make_finish("task_1", 9_000), NOON_MS + 9_000)
    assert (again.outcome, again.facts) == (Finished(task=ended), None)
    assert (ended.outcome, ended.metered_ms) == (TaskOutcome.FAILED, 4_000)
    drive(state, make_change(place=Hold.OPERATOR), NOON_MS + 9_000)
    assert beat(state, 9_000, NOON_MS + 9_000).stop is DenialReason.SUSPENDED


def test_a_report_that_shows_room_lets_the_task_go_on() -> None:
    """Silence was counted in full; the truth is less, and the bill looks at the truth."""
    state = make_state(contract=Contract(agent_minutes=100), used_ms=110 * MINUTE_MS - 20_000)
    start(state)
    drive(state, Tick(), NOON_MS + 20_000)
    answer = beat(state, 5_000, NOON_MS + 21_000)
    assert answer.stop is None

    assert beat(state, 20_000, NOON_MS + 22_000).stop is DenialReason.PLAN_LIMIT_REACHED
    assert beat(state, 23_000, NOON_MS + 23_000).stop is DenialReason.PLAN_LIMIT_REACHED
    assert state.running["task_1"].unbilled_ms == 3_000


# --- silence ------------------------------------------------------------------------------------


def lost_at(state: OrganizationState) -> int:
    """Start a task that reports once and then is silent; return when it is lost."""
    start(state)
    beat(state, 7_000, NOON_MS + 7_000)
    now_ms = NOON_MS + 7_000 + MINUTE_MS
    assert drive(state, Tick(), now_ms - 1).facts is None
    notices = drive(state, Tick(), now_ms).notices
    assert notices[0] == TaskLost(task_id="task_1")
    return now_ms


def test_a_silent_task_is_lost_at_its_last_heartbeat_and_frees_its_slot() -> None:
    """Time nobody reported is nobody's."""
    state = make_state(contract=Contract(agents=1))
    lost_at(state)
    task = state.ended["task_1"]

    assert (task.state, task.finished_at_ms, task.pending_ms) == (
        TaskState.LOST,
        NOON_MS + 7_000,
        0,
    )
    assert (state.period.used_ms, state.agents) == (7_000, {})


def test_tasks_are_lost_on_time_whoever_got_a_row_meanwhile() -> None:
    """A row for all at a price line must not hide who has been silent longest."""
    state = make_state(contract=Contract(agent_minutes=100), used_ms=100 * MINUTE_MS - 25_000)
    start(state, "task_1", "agent_1")
    start(state, "task_2", "agent_2")
    beat(state, 10_000, NOON_MS + 10_000, "task_1")
    beat(state, 20_000, NOON_MS + 20_000, "task_2")
    drive(state, Tick(), NOON_MS + 70_000)

    assert (list(state.lost), list(state.running)) == (["task_1"], ["task_2"])


class Watched(dict[str, Task]):
    """Running tasks that count how many of them are looked at."""

    looked_at = 0

    def items(self) -> ItemsView[str, Task]:  # type: ignore[override]  # counts
        """Return pairs that count themselves."""
        watched = self

        class Pairs(ItemsView[str, Task]):
            def __iter__(self) -> Iterator[tuple[str, Task]]:
                for pair in dict.items(watched):
                    watched.looked_at += 1
                    yield pair

        return Pairs(self)


def test_losing_one_task_looks_at_no_more_than_one_other() -> None:
    """When an agent host with thousands of tasks dies, each loss must not cost all of them."""
    state = make_state(contract=Contract(agents=None), plan=Tier.ENTERPRISE)
    for number in range(50):
        start(state, f"task_{number}", f"agent_{number}", now_ms=NOON_MS + number)
    state.running = running = Watched(state.running)
    drive(state, Tick(), NOON_MS + MINUTE_MS)

    assert (list(state.lost), running.looked_at) == (["task_0"], 2)


def test_a_lost_task_that_reports_is_metered_and_resumed() -> None:
    """What it ran counts, and it has its slot again."""
    state = make_state(contract=Contract(agents=1))
    now_ms = lost_at(state)
    answer = beat(state, now_ms - NOON_MS, now_ms + 1)

    assert (answer.stop, answer.task.state) == (None, TaskState.RUNNING)
    assert (answer.task.ended_at_ms, answer.task.metered_until_ms) == (None, now_ms + 1)
    assert (state.period.used_ms, state.agents) == (now_ms - NOON_MS, {"agent_1": 1})


def test_a_lost_task_resumes_in_the_slot_its_agent_still_has() -> None:
    """Another task of the agent holds it, so there is room whatever the limit."""
    state = make_state(contract=Contract(agents=1))
    now_ms = lost_at(state)
    start(state, "task_2", now_ms=now_ms)

    assert beat(state, 9_000, now_ms).stop is None
    assert state.agents == {"agent_1": 2}


def test_a_lost_task_without_slot_quota_or_favour_is_metered_and_stopped() -> None:
    """It stays lost."""

    def taken(state: OrganizationState, now_ms: int) -> None:
        start(state, "task_2", "agent_2", now_ms=now_ms)

    def used_up(state: OrganizationState, now_ms: int) -> None:
        drive(state, make_change(contract=Contract(agent_minutes=0)), now_ms)

    def held(state: OrganizationState, now_ms: int) -> None:
        drive(state, make_change(place=Hold.PAYMENT), now_ms)

    cases: list[tuple[Callable[[OrganizationState, int], None], DenialReason]] = [
        (taken, DenialReason.AGENT_LIMIT_REACHED),
        (used_up, DenialReason.PLAN_LIMIT_REACHED),
        (held, DenialReason.SUSPENDED),
    ]
    for happen, reason in cases:
        state = make_state(contract=Contract(agents=1))
        now_ms = lost_at(state)
        happen(state, now_ms)
        answer = beat(state, 9_000, now_ms)
        assert (answer.stop, answer.task.state) == (reason, TaskState.LOST)
        assert answer.task.pending_ms == 0


@pytest.mark.parametrize(("offset_ms", "is_closed"), [(-1, False), (0, True)])
def test_a_lost_task_is_closed_after_24_hours(offset_ms: int, is_closed: bool) -> None:
    """Reports and finishes alike."""
    for command in (Heartbeat("task_1", 8_000), make_finish("task_1", 8_000)):
        state = make_state()
        now_ms = lost_at(state) + DAY_MS + offset_ms
        outcome = drive(state, command, now_ms).outcome
        assert (outcome == TaskClosed()) is is_closed


@pytest.mark.parametrize(("offset_ms", "is_closed"), [(-1, False), (0, True)])
def test_a_repeated_start_says_whether_the_lost_task_takes_reports(
    offset_ms: int, is_closed: bool
) -> None:
    """An agent that is told it may go on would work a day for nothing."""
    state = make_state()
    now_ms = lost_at(state) + DAY_MS + offset_ms
    again = drive(state, make_start(), now_ms).outcome

    assert isinstance(again, Started)
    assert (again.repeated, again.closed) == (True, is_closed)


def test_a_lost_task_is_told_with_its_agent_and_its_last_sign_of_life() -> None:
    """What whoever runs the agent needs to look for it."""
    state = make_state()
    start(state)
    beat(state, 7_000, NOON_MS + 7_000)
    notices = drive(state, Tick(), NOON_MS + 7_000 + MINUTE_MS).notices
    [told] = [each.notification for each in notices if isinstance(each, Notified)]
    data = json.loads(told.data_json)

    assert told.kind.value == "task.lost"
    assert (data["task_id"], data["agent_id"], data["elapsed_ms"]) == ("task_1", "agent_1", 7_000)
    assert data["last_heartbeat_at"] == "2026-02-12T12:00:07Z"


def test_a_finding_of_tasks_lost_at_zero_counts_them_and_names_agents() -> None:
    """A dead host of thousands is one finding with a handful of names."""
    state = make_state(Tier.ENTERPRISE)
    for number in range(25):
        start(state, f"t{number}", f"a{number:02}")
    facts = drive(state, Tick(), NOON_MS + MINUTE_MS).facts

    assert facts is not None
    [finding] = facts.findings
    assert json.loads(finding.detail_json) == {
        "lost_at_zero": 25,
        "agent_ids": [f"a{number:02}" for number in range(20)],
    }


def test_only_tasks_that_were_lost_at_zero_within_the_hour_are_counted() -> None:
    """Neither one that had reported nor one of exactly an hour ago is a reason to look."""
    state = make_state(Tier.ENTERPRISE)
    for number in range(3):
        start(state, f"t{number}")
    start(state, "reported")
    beat(state, 1_000, NOON_MS + 1_000, "reported")
    drive(state, Tick(), NOON_MS + MINUTE_MS)
    drive(state, Tick(), NOON_MS + MINUTE_MS + 1_000)
    for late_ms, kinds in ((HOUR_MS, []), (HOUR_MS - 1, ["tasks_lost_at_zero"])):
        later = copy.deepcopy(state)
        start(later, "t9", now_ms=NOON_MS + late_ms)
        assert findings(later, Tick(), NOON_MS + late_ms + MINUTE_MS) == kinds


def test_more_than_three_tasks_an_hour_lost_at_zero_are_found_once() -> None:
    """An agent that starts, works and never reports."""
    state = make_state(Tier.PRO)
    found = []
    for number in range(6):
        now_ms = NOON_MS + number * 2 * MINUTE_MS
        start(state, f"t{number}", now_ms=now_ms)
        found.append(findings(state, Tick(), now_ms + MINUTE_MS))
    assert found == [[], [], [], ["tasks_lost_at_zero"], [], []]

    later_ms = NOON_MS + 3 * HOUR_MS
    start(state, "t9", now_ms=later_ms)
    assert findings(state, Tick(), later_ms + MINUTE_MS) == []


# --- periods ------------------------------------------------------------------------------------


def test_the_next_period_opens_at_the_end_of_the_last() -> None:
    """From zero, by the clock, wherever the last one ended."""
    state = make_state(used_ms=MINUTE_MS)
    state.period = attrs.evolve(state.period, end_ms=NOON_MS + HOUR_MS)
    start(state, now_ms=NOON_MS + HOUR_MS - 5_000)
    drive(state, Tick(), NOON_MS + HOUR_MS)

    assert (state.period.start_ms, state.period.end_ms) == (NOON_MS + HOUR_MS, MARCH_MS)
    assert (state.period.label, state.period.used_ms) == ("2026-02-12", 0)
    assert decide(state, Tick(), NOON_MS + HOUR_MS).outcome == Done()
    assert state.closed_periods[0].closed
    assert state.running["task_1"].burning_from_ms == NOON_MS + HOUR_MS
    start(state, "task_2", now_ms=MARCH_MS - 5_000)
    drive(state, Tick(), MARCH_MS + 1)
    assert state.period.label == "2026-03"
