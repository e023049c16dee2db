from __future__ import annotations

import json
from decimal import Decimal

import attrs
import pytest

from meterd.core.commands import (
    Adjusted,
    Done,
    Heartbeat,
    Notified,
    QuotaChanged,
    StopTasks,
    ThresholdReached,
    Tick,
)
from meterd.core.decide import decide
from meterd.core.ids import fact_id
from meterd.core.metering import Draft
from meterd.core.notification import Notification, NotificationKind
from meterd.core.organization import (
    DenialReason,
    Facts,
    Finding,
    Hold,
    OrganizationState,
    QuotaState,
)
from meterd.core.plan import Contract, Resource, Tier
from meterd.core.quota import projected_ms
from meterd.core.task import TaskState
from meterd.core.units import DAY_MS, HOUR_MS, MINUTE_MS
from meterd.core.usage import Kind, Source, UsageRow
from tests.organizations import (
    APRIL_MS,
    MARCH_MS,
    MIDNIGHT_MS,
    NOON_MS,
    drive,
    make_adjust,
    make_change,
    make_finish,
    make_rules,
    make_start,
    make_state,
    make_task,
    run_to,
    start,
)


HUNDRED = Contract(agent_minutes=100)
PATIENT = make_rules(task_timeout_ms=100 * DAY_MS, record_interval_ms=100 * DAY_MS)


def rows_of(facts: Facts | None) -> list[tuple[str, Kind, int, int]]:
    """Return (period, kind, milliseconds, last instant) of each row."""
    assert facts is not None
    return [(row.billing_period, row.kind, row.quantity_ms, row.at_ms) for row in facts.rows]


def finish(state: OrganizationState, elapsed_ms: int, now_ms: int) -> tuple[UsageRow, ...]:
    facts = drive(state, make_finish("task_1", elapsed_ms), now_ms).facts
    assert facts is not None
    return facts.rows


def test_a_row_says_whose_time_it_is_when_it_ran_and_what_it_costs() -> None:
    """All that a bill is explained with a year later, in one row of the ledger."""
    state = make_state(Tier.ENTERPRISE, used_ms=MINUTE_MS)
    drive(state, make_start(user_id="u", metadata_json='{"a":1}'), NOON_MS)
    drive(state, Heartbeat("task_1", 50_000), NOON_MS + 50_000)

    assert finish(state, MINUTE_MS, NOON_MS + MINUTE_MS) == (
        UsageRow(
            id=fact_id("rec", NOON_MS + MINUTE_MS - 1, "org_1", 3, 0),
            resource=Resource.AGENT_MINUTE,
            kind=Kind.OVERAGE,
            source=Source.TASK,
            quantity=1,
            quantity_ms=MINUTE_MS,
            recorded_before_ms=MINUTE_MS,
            unit_cost_usd=Decimal("0.05"),
            total_cost_usd=Decimal("0.05"),
            billing_period="2026-02",
            at_ms=NOON_MS + MINUTE_MS - 1,
            task_id="task_1",
            agent_id="agent_1",
            user_id="u",
            terms_seq=1,
            seq=3,
            metadata_json='{"a":1}',
        ),
    )


def test_a_running_task_gets_a_row_per_interval() -> None:
    """Ten minutes: few rows, and little to lose sight of."""
    state = make_state()
    start(state)
    run_to(state, "task_1", NOON_MS + 599_000)
    assert state.period.recorded_ms == 0

    facts = drive(state, Heartbeat("task_1", 600_000), NOON_MS + 600_000).facts
    assert rows_of(facts) == [("2026-02", Kind.INCLUDED, 600_000, NOON_MS + 599_999)]


def test_rows_are_cut_at_utc_midnight() -> None:
    """Daily series are sums of rows."""
    state = make_state(rules=PATIENT)
    start(state)
    facts = drive(state, make_finish("task_1", 36 * HOUR_MS), NOON_MS + 36 * HOUR_MS).facts

    assert rows_of(facts) == [
        ("2026-02", Kind.INCLUDED, 12 * HOUR_MS, MIDNIGHT_MS - 1),
        ("2026-02", Kind.INCLUDED, 4 * HOUR_MS + 40 * MINUTE_MS, MIDNIGHT_MS + 16_799_999),
        ("2026-02", Kind.OVERAGE, 100 * MINUTE_MS, MIDNIGHT_MS + 22_799_999),
    ]


def test_pending_time_of_yesterday_is_recorded_before_todays() -> None:
    """Even when midnight itself was silent."""
    state = make_state()
    start(state, now_ms=MIDNIGHT_MS - 20_000)
    drive(state, Heartbeat("task_1", 10_000), MIDNIGHT_MS - 10_000)
    facts = drive(state, Heartbeat("task_1", 15_000), MIDNIGHT_MS + 10_000).facts

    assert rows_of(facts) == [("2026-02", Kind.INCLUDED, 10_000, MIDNIGHT_MS - 10_001)]
    assert state.running["task_1"].pending_ms == 5_000


def test_a_repeated_report_writes_no_row_even_past_midnight() -> None:
    """Nothing ran, so nothing is due: an agent that repeats itself must not fill the ledger."""
    state = make_state(at_ms=MIDNIGHT_MS - 30_000)
    start(state, now_ms=MIDNIGHT_MS - 30_000)
    for now_ms in (MIDNIGHT_MS - 1_000, MIDNIGHT_MS + 1_000):
        facts = drive(state, Heartbeat("task_1", 9_000), now_ms).facts
        assert rows_of(facts) == []


def test_a_report_over_a_periods_end_belongs_to_both() -> None:
    """Read backwards: what ran after the end is new, what ran before is old."""
    state = make_state()
    start(state, now_ms=MARCH_MS - 30_000)
    drive(state, Heartbeat("task_1", 5_000), MARCH_MS - 25_000)
    rows = finish(state, 37_000, MARCH_MS + 7_000)

    assert [(row.billing_period, row.quantity_ms, row.at_ms) for row in rows] == [
        ("2026-02", 25_000, MARCH_MS - 1),
        ("2026-03", 7_000, MARCH_MS + 6_999),
    ]
    assert [period.used_ms for period in (state.period, *state.closed_periods)] == [7_000, 30_000]
    assert sum(row.quantity_ms for row in rows) + 5_000 == 37_000


def test_a_report_may_reach_over_several_periods_and_days() -> None:
    """Each part is booked where it ran, under its own period's terms and limit."""
    state = make_state(Tier.ENTERPRISE, rules=PATIENT)
    start(state, now_ms=MARCH_MS - HOUR_MS)
    drive(state, Tick(), APRIL_MS + HOUR_MS)
    rows = finish(state, 31 * DAY_MS + 2 * HOUR_MS, APRIL_MS + HOUR_MS)
    by_period = {label: sum(r.quantity_ms for r in rows if r.billing_period == label)
                 for label in ("2026-02", "2026-03", "2026-04")}  # fmt: skip

    assert by_period == {"2026-02": HOUR_MS, "2026-03": 31 * DAY_MS, "2026-04": HOUR_MS}
    assert len(rows) == 33
    assert all(row.quantity_ms <= DAY_MS for row in rows)


def test_time_before_the_first_period_is_booked_into_it() -> None:
    """An agent may have run before the organization was created."""
    state = make_state(at_ms=MARCH_MS)
    start(state, now_ms=MARCH_MS + 1_000, elapsed_ms=5_000)

    assert (state.period.used_ms, state.period.recorded_ms) == (5_000, 4_000)


def test_time_is_cut_at_the_periods_that_are_known() -> None:
    """The oldest also takes what ran before it; nothing is cut where a period begins anyway."""
    state = make_state(at_ms=MARCH_MS - HOUR_MS)
    drive(state, Tick(), APRIL_MS)
    draft = Draft(state, APRIL_MS + 9)
    march, february = state.closed_periods
    now, all_of_march = (None, APRIL_MS, APRIL_MS + 9), (march, MARCH_MS, APRIL_MS)

    assert list(draft._backwards(APRIL_MS - 1)) == [now, (march, APRIL_MS - 1, APRIL_MS)]
    assert list(draft._backwards(MARCH_MS)) == [now, all_of_march]
    for start_ms in (MARCH_MS - 1, february.start_ms - DAY_MS):
        late = (february, start_ms, MARCH_MS)
        assert list(draft._backwards(start_ms)) == [now, all_of_march, late]


def test_two_late_reports_of_one_decision_add_up_in_their_period() -> None:
    """The second sees what the first has booked."""
    state = make_state()
    for task_id in ("t1", "t2"):
        start(state, task_id, now_ms=MARCH_MS - 60_000)
    drive(state, Tick(), MARCH_MS)
    draft = Draft(state, MARCH_MS + 1_000)
    for task_id in ("t1", "t2"):
        draft.meter(task_id, 31_000)

    assert [period.used_ms for period in draft.closed.values()] == [60_000]
    assert draft.period.used_ms == 2_000


def test_time_after_an_instant_is_taken_off_to_the_millisecond() -> None:
    """A period that turns out to have begun earlier gets its time, and only its."""
    state = make_state()
    begin_ms = NOON_MS + 5_000
    for task_id, until_ms in (("t0", begin_ms), ("t1", begin_ms + 1), ("t2", begin_ms + 4_000)):
        start(state, task_id, task_id)
        drive(state, Heartbeat(task_id, until_ms - NOON_MS), until_ms)
    draft = Draft(state, NOON_MS + MINUTE_MS)

    assert draft.unbill_after(begin_ms) == [
        ("t1", begin_ms, begin_ms + 1),
        ("t2", begin_ms, begin_ms + 4_000),
    ]
    assert [(task.metered_ms, task.metered_until_ms) for task in draft.tasks.values()] == [
        (5_000, begin_ms),
        (5_000, begin_ms),
    ]
    assert draft.period.used_ms == 15_000


@pytest.mark.parametrize(
    ("percent", "then"),
    [
        (80, []),
        (100, [("quota.grace_started", None)]),
        (110, [("quota.limit_reached", "plan_limit_reached")]),
    ],
)
def test_each_line_is_told_with_what_it_means(
    percent: int, then: list[tuple[str, str | None]]
) -> None:
    """A receiver acts on the kind; the share and the code are what it shows."""
    state = make_state(contract=HUNDRED, used_ms=percent * MINUTE_MS - 1)
    drive(state, Tick(), NOON_MS)
    decision = drive(state, make_start(elapsed_ms=1), NOON_MS)
    notices = decision.notices
    told = [each.notification for each in notices if isinstance(each, Notified)]
    data = [json.loads(each.data_json) for each in told]

    assert ThresholdReached(percent=percent) in notices
    assert decision.facts is not None
    assert decision.facts.notifications == tuple(told), "told again after a crash"
    assert (told[0].kind.value, data[0]["percent"]) == ("usage.threshold_reached", percent)
    rest = zip(told[1:], data[1:], strict=True)
    assert [(each.kind.value, about.get("code")) for each, about in rest] == then


def test_a_hold_is_announced_as_one_whatever_was_used() -> None:
    """And the limit that it hides is told to be over when the hold is."""
    state = make_state(contract=HUNDRED, used_ms=110 * MINUTE_MS)
    drive(state, Tick(), NOON_MS)
    held = drive(state, make_change(place=Hold.OPERATOR), NOON_MS).notices
    credited = drive(state, make_adjust(-60 * MINUTE_MS), NOON_MS).notices
    lifted = drive(state, make_change(lift=Hold.OPERATOR), NOON_MS).notices

    suspended = QuotaChanged(state=QuotaState.SUSPENDED, stop=DenialReason.SUSPENDED)
    assert suspended in held
    assert not [each for each in credited if isinstance(each, Notified)]
    assert [each.notification.kind for each in lifted if isinstance(each, Notified)] == [
        NotificationKind.RECOVERED
    ]


def test_a_draft_sees_running_tasks_once_and_projects_what_they_may_have_used() -> None:
    """Recording a silent task's time does not make it less silent."""
    state = make_state()
    for task_id in ("t1", "t2", "t3"):
        start(state, task_id, task_id)
        drive(state, Heartbeat(task_id, 2_000), NOON_MS + 2_000)
    now_ms = NOON_MS + 9_000
    draft = Draft(state, now_ms)
    draft.record_all()
    assert draft.projected_ms() == projected_ms(state, now_ms) == 6_000 + 21_000

    draft.put(attrs.evolve(state.running["t2"], state=TaskState.LOST, ended_at_ms=now_ms))
    draft.put(make_task("t4", reported_at_ms=now_ms))
    assert [task.task_id for task in draft.running()] == ["t1", "t3", "t4"]
    assert draft.projected_ms() == 6_000 + 14_000


def test_a_notification_tells_the_period_and_its_limits_beside_what_it_is_about() -> None:
    """What a webhook's receiver reads: names, whole minutes, text as it was written."""
    draft = Draft(make_state(contract=HUNDRED, used_ms=10 * MINUTE_MS - 1), NOON_MS)
    draft.notify(NotificationKind.TASK_LOST, agent_id="Jürgen")
    draft.notify(NotificationKind.RECOVERED)
    unlimited = Draft(make_state(Tier.ENTERPRISE), NOON_MS)
    unlimited.notify(NotificationKind.RECOVERED)

    assert draft.notices == [Notified(notification=each) for each in draft.notifications]
    assert draft.notifications[0] == Notification(
        id=fact_id("evt", NOON_MS, "org_1", 1, 0),
        at_ms=NOON_MS,
        kind=NotificationKind.TASK_LOST,
        data_json=(
            '{"agent_id":"Jürgen","billing_period":"2026-02","hard_limit_minutes":110,'
            '"limit_minutes":100,"organization_id":"org_1","period_end":"2026-03-01T00:00:00Z",'
            '"plan":"starter","used_minutes":9}'
        ),
        seq=1,
    )
    assert draft.notifications[1].id == fact_id("evt", NOON_MS, "org_1", 1, 1)
    assert '"hard_limit_minutes":null' in unlimited.notifications[0].data_json


@pytest.mark.parametrize("over_ms", [-1, 0, 1])
def test_time_past_the_hard_limit_is_kept_and_never_billed(over_ms: int) -> None:
    """Its position moves past it: later room does not bill it."""
    state = make_state(contract=HUNDRED, used_ms=110 * MINUTE_MS - 10_000)
    start(state)
    decision = drive(state, Heartbeat("task_1", 10_000 + over_ms), NOON_MS + 10_001)
    task = state.running["task_1"]
    assert task.unbilled_ms == max(0, over_ms)
    stops = [notice for notice in decision.notices if isinstance(notice, StopTasks)]
    assert len(stops) == (over_ms >= 0)

    drive(state, make_adjust(-50 * MINUTE_MS), NOON_MS + 10_002)
    drive(state, make_change(plan=Tier.PRO, contract=Contract()), NOON_MS + 10_003)
    drive(state, Heartbeat("task_1", 10_000 + over_ms), NOON_MS + 10_004)
    assert state.running["task_1"].metered_ms == 10_000 + min(0, over_ms)


def test_everybodys_time_is_recorded_when_the_price_changes() -> None:
    """What ran before the line is included, whoever ran it."""
    state = make_state(contract=HUNDRED, used_ms=100 * MINUTE_MS - 15_000)
    start(state, "task_1", "agent_1")
    start(state, "task_2", "agent_2")
    drive(state, Heartbeat("task_2", 10_000), NOON_MS + 10_000)
    facts = drive(state, Heartbeat("task_1", 10_000), NOON_MS + 10_000).facts

    assert rows_of(facts) == [
        ("2026-02", Kind.INCLUDED, 5_000, NOON_MS + 4_999),
        ("2026-02", Kind.INCLUDED, 10_000, NOON_MS + 9_999),
    ]
    assert state.period.used_ms - state.period.recorded_ms == 5_000
    assert facts is not None
    assert [(task.task_id, task.seq) for task in facts.tasks] == [
        ("task_1", facts.seq),
        ("task_2", facts.seq),
    ], "a position is as new as the fact that has its rows"


def closed_month(used_ms: int, plan: Tier = Tier.STARTER) -> OrganizationState:
    """Return a state in March whose task ran in February and has not reported since."""
    state = make_state(plan, HUNDRED, used_ms=used_ms, rules=PATIENT)
    start(state, now_ms=MARCH_MS - 30_000)
    drive(state, Tick(), MARCH_MS)
    return state


def test_late_time_meets_its_own_periods_lines() -> None:
    """Cut at the allowance with the right instants, and ended at the hard limit."""
    state = closed_month(100 * MINUTE_MS - 10_000)
    rows = finish(state, 30_000, MARCH_MS)
    assert [(row.kind, row.quantity_ms, row.at_ms) for row in rows] == [
        (Kind.INCLUDED, 10_000, MARCH_MS - 20_001),
        (Kind.OVERAGE, 20_000, MARCH_MS - 1),
    ]

    state = closed_month(110 * MINUTE_MS - 10_000)
    rows = finish(state, 35_000, MARCH_MS + 5_000)
    assert [(row.billing_period, row.quantity_ms) for row in rows] == [
        ("2026-02", 10_000),
        ("2026-03", 5_000),
    ]
    assert state.ended["task_1"].unbilled_ms == 20_000

    state = closed_month(50 * MINUTE_MS)
    drive(state, make_adjust(60 * MINUTE_MS, label="2026-02"), MARCH_MS)
    assert finish(state, 30_000, MARCH_MS) == ()


def test_thresholds_are_announced_once_a_period() -> None:
    """Use that falls and rises again is no news; the next period's is."""
    state = make_state(contract=HUNDRED, used_ms=80 * MINUTE_MS - 2)
    drive(state, make_adjust(1), NOON_MS)  # tells the ones before
    first = drive(state, make_adjust(1), NOON_MS).notices
    drive(state, make_adjust(-MINUTE_MS), NOON_MS)
    again = drive(state, make_adjust(MINUTE_MS), NOON_MS).notices
    drive(state, Tick(), MARCH_MS)
    march = drive(state, make_adjust(80 * MINUTE_MS), MARCH_MS).notices

    def thresholds(notices: tuple[object, ...]) -> list[object]:
        return [notice for notice in notices if isinstance(notice, ThresholdReached)]

    assert thresholds(march) == [ThresholdReached(percent=percent) for percent in (50, 75, 80)]
    assert thresholds(first) == [ThresholdReached(percent=80)]
    assert thresholds(again) == []


def test_new_terms_announce_again_only_what_is_no_longer_reached() -> None:
    """A price change is no crossing; an upgrade makes room for the next one."""
    state = make_state(contract=HUNDRED, used_ms=80 * MINUTE_MS - 5_000)
    start(state)
    drive(state, Tick(), NOON_MS + 5_000)
    assert state.period.notified_percents == {50, 75, 80}

    change = make_change(contract=Contract(agent_minutes=100, agents=2))
    notices = drive(state, change, NOON_MS + 5_001).notices
    assert not [notice for notice in notices if isinstance(notice, ThresholdReached)]
    drive(state, make_change(plan=Tier.PRO, contract=Contract()), NOON_MS + 5_002)
    assert state.period.notified_percents == frozenset()


def test_a_hold_stops_every_task_with_its_reason() -> None:
    """Once, when it is placed."""
    state = make_state()
    start(state)
    placed = drive(state, make_change(place=Hold.PAYMENT), NOON_MS).notices
    again = drive(state, make_change(place=Hold.OPERATOR), NOON_MS).notices
    stop = StopTasks(task_ids=("task_1",), reason=DenialReason.SUSPENDED)

    assert stop in placed
    assert not [notice for notice in again if isinstance(notice, StopTasks)]


def test_a_task_that_starts_with_more_time_than_there_is_stops_at_once() -> None:
    """It was admitted because it fitted; what it ran before the start did not."""
    state = make_state(contract=HUNDRED, used_ms=110 * MINUTE_MS - 1)
    start(state, now_ms=NOON_MS, elapsed_ms=0)
    drive(state, make_finish(), NOON_MS)
    notices = drive(state, make_start("task_2", elapsed_ms=5_000), NOON_MS).notices

    assert StopTasks(task_ids=("task_2",), reason=DenialReason.PLAN_LIMIT_REACHED) in notices
    assert state.running["task_2"].unbilled_ms == 4_999


def test_a_draft_says_why_tasks_must_stop() -> None:
    """A hold comes before the limit."""
    state = make_state(contract=HUNDRED, used_ms=110 * MINUTE_MS)
    assert Draft(state, NOON_MS).stop_reason() is DenialReason.PLAN_LIMIT_REACHED
    drive(state, make_change(place=Hold.PAYMENT), NOON_MS)

    assert Draft(state, NOON_MS).stop_reason() is DenialReason.SUSPENDED


def test_findings_of_a_draft_have_ids_that_replay_makes_again() -> None:
    """Their ids keep the store from having one twice, and two from being taken for one."""
    draft = Draft(make_state(), NOON_MS)
    draft.find("odd", '{"a":1}')
    draft.find("odd", '{"a":1}')

    assert draft.findings == [
        Finding(
            id=fact_id("fnd", NOON_MS, "org_1", 1, number),
            at_ms=NOON_MS,
            kind="odd",
            detail_json='{"a":1}',
        )
        for number in (0, 1)
    ]


def test_an_adjustment_at_a_periods_first_instant_lies_in_it() -> None:
    """A row's timestamp is never outside of its billing period."""
    state = make_state(at_ms=MARCH_MS)
    outcome = drive(state, make_adjust(5), MARCH_MS).outcome

    assert isinstance(outcome, Adjusted)
    assert [row.at_ms for row in outcome.rows] == [MARCH_MS]


def test_a_draft_that_changes_nothing_has_no_facts() -> None:
    """Nothing to write, nothing to number."""
    state = make_state()
    drive(state, Tick(), NOON_MS)

    assert decide(state, Tick(), NOON_MS + 1).facts is None
    draft = Draft(state, NOON_MS)
    with pytest.raises(AssertionError):
        draft.task("task_9")


def test_each_thing_that_a_draft_collects_is_reason_enough_to_write() -> None:
    """A hold that time ends, terms, a finding: alone they would be forgotten by a crash."""
    state = make_state()
    drive(state, Tick(), NOON_MS)
    renamed, repriced, found = (Draft(state, NOON_MS) for _ in range(3))
    renamed.profile = attrs.evolve(state.profile, name="Two")
    repriced.terms_changed = True
    found.find("odd", "{}")

    for draft in (renamed, repriced, found):
        assert draft.conclude(Done()).facts is not None


def test_a_report_that_ends_exactly_at_the_line_is_recorded_up_to_it() -> None:
    """The next millisecond has another price."""
    state = make_state(contract=HUNDRED, used_ms=100 * MINUTE_MS - 5_000)
    start(state)
    facts = drive(state, Heartbeat("task_1", 5_000), NOON_MS + 5_000).facts

    assert rows_of(facts) == [("2026-02", Kind.INCLUDED, 5_000, NOON_MS + 4_999)]
