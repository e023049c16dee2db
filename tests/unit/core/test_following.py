from __future__ import annotations

import json

import attrs

from meterd.core.commands import (
    Done,
    FollowSubscription,
    Heartbeat,
    PlanManagedByStripe,
    ProfileChanged,
    StopTasks,
    TermsChanged,
    Tick,
)
from meterd.core.decide import decide
from meterd.core.organization import DenialReason, Hold, OrganizationState
from meterd.core.period import Period
from meterd.core.plan import Contract, Tier
from meterd.core.quota import next_wakeup_ms, view
from meterd.core.subscription import Interval, Status
from meterd.core.units import DAY_MS, HOUR_MS, MINUTE_MS, SECOND_MS, rfc3339
from tests.organizations import (
    NOON_MS,
    drive,
    make_change,
    make_rules,
    make_state,
    run_to,
    start,
    start_denied,
)
from tests.subscriptions import (
    at,
    make_follow,
    make_invoice,
    make_price,
    make_sold_catalogue,
    make_subscription,
)


RULES = make_rules(catalogue=make_sold_catalogue())
PRO = make_price("price_pro")


def make_org(plan: Tier = Tier.FREE, **fields: object) -> OrganizationState:
    """Return an organization under a catalogue with prices."""
    return make_state(plan, rules=RULES, **fields)  # type: ignore[arg-type]


def follow(
    state: OrganizationState, command: FollowSubscription, now_ms: int = NOON_MS
) -> tuple[str, ...]:
    """Follow, and return the kinds of facts that came of it."""
    decision = drive(state, command, now_ms)
    assert decision.outcome == Done()
    if decision.facts is None:
        return ()
    return tuple(
        name
        for name in ("terms", "profile", "periods", "rows", "findings", "audit")
        if getattr(decision.facts, name)
    )


def span(period: Period) -> tuple[str, str, str]:
    """Return label, start and end of a period."""
    return period.label, rfc3339(period.start_ms), rfc3339(period.end_ms)


def test_new_subscription_turns_its_plan_on_and_opens_its_period() -> None:
    """The calendar's period ends where the item starts; the new one's counter begins at zero."""
    state = make_org(used_ms=50 * MINUTE_MS)
    follow(state, make_follow(make_subscription()))

    assert state.terms.plan is Tier.STARTER
    assert span(state.closed_periods[0]) == (
        "2026-02",
        "2026-02-01T00:00:00Z",
        "2026-02-12T10:00:00Z",
    )
    assert span(state.period) == (
        "2026-02-12",
        "2026-02-12T10:00:00Z",
        "2026-03-12T10:00:00Z",
    )
    assert (state.closed_periods[0].used_ms, state.period.used_ms) == (50 * MINUTE_MS, 0)
    assert state.profile.stripe_customer_id == "cus_1"
    assert state.earlier_terms[1].plan is Tier.FREE


def test_the_same_objects_again_change_nothing() -> None:
    """Handlers are idempotent by state, not by event id."""
    state = make_org()
    subscription = make_subscription(price=make_price("price_x"), quantity=2)
    follow(state, make_follow(subscription))
    for _ in range(3):
        assert follow(state, make_follow(subscription), NOON_MS + HOUR_MS) == ()


def test_time_that_ran_after_a_start_learned_late_is_billed_to_the_new_period() -> None:
    """A running task reports for two hours before the webhook: rows stay, the rest moves."""
    state = make_org(Tier.STARTER)
    start(state, now_ms=NOON_MS)
    run_to(state, "task_1", NOON_MS + 25 * MINUTE_MS)
    recorded_ms = state.period.recorded_ms
    learned = make_subscription(start="2026-02-12T12:22:00", end="2026-03-12T12:22:00")
    follow(state, make_follow(learned), NOON_MS + 25 * MINUTE_MS)

    closed, period = state.closed_periods[0], state.period
    assert recorded_ms == 20 * MINUTE_MS
    assert (closed.used_ms, closed.recorded_ms) == (22 * MINUTE_MS, 22 * MINUTE_MS)
    assert (period.start_ms, period.used_ms) == (NOON_MS + 22 * MINUTE_MS, 3 * MINUTE_MS)
    assert state.running["task_1"].metered_ms == 25 * MINUTE_MS


def test_rows_recorded_after_a_start_learned_late_stay_where_they_are() -> None:
    """A period opens at the item's start, but what is in the ledger is never moved."""
    state = make_org(Tier.STARTER)
    start(state, now_ms=NOON_MS)
    run_to(state, "task_1", NOON_MS + 25 * MINUTE_MS)
    learned = make_subscription(start="2026-02-12T12:12:00", end="2026-03-12T12:12:00")
    follow(state, make_follow(learned), NOON_MS + 25 * MINUTE_MS)

    closed, period = state.closed_periods[0], state.period
    assert period.start_ms == NOON_MS + 12 * MINUTE_MS
    assert (closed.used_ms, period.used_ms) == (20 * MINUTE_MS, 5 * MINUTE_MS)


def test_renewal_in_the_middle_of_a_running_task_splits_its_minutes_at_the_boundary() -> None:
    """The clock turns the period at the item's end; Stripe's signal only confirms it."""
    state = make_org()
    first = make_subscription(start="2026-01-12T12:05:00", end="2026-02-12T12:05:00")
    follow(state, make_follow(first))
    start(state, now_ms=NOON_MS)
    run_to(state, "task_1", NOON_MS + 9 * MINUTE_MS)
    renewed = make_subscription(
        start="2026-02-12T12:05:00", end="2026-03-12T12:05:00", anchor_ms=at("2026-01-12T12:05:00")
    )

    assert "periods" not in follow(state, make_follow(renewed), NOON_MS + 9 * MINUTE_MS)
    assert span(state.period) == ("2026-02-12", "2026-02-12T12:05:00Z", "2026-03-12T12:05:00Z")
    assert state.closed_periods[0].used_ms == 5 * MINUTE_MS
    assert state.period.used_ms == 4 * MINUTE_MS


def test_upgrade_that_starts_a_period_starts_its_counter_and_reprices_nothing() -> None:
    """`billing_cycle_anchor=now`: a new item start, so a new counter, under the new plan."""
    state = make_org()
    follow(state, make_follow(make_subscription()))
    start(state, now_ms=NOON_MS)
    run_to(state, "task_1", NOON_MS + 15 * MINUTE_MS)
    now_ms = NOON_MS + 15 * MINUTE_MS
    upgraded = make_subscription(price=PRO, start="2026-02-12T12:14:00", end="2026-03-12T12:14:00")
    decision = drive(state, make_follow(upgraded), now_ms)

    assert decision.facts is not None
    assert [(row.quantity_ms, row.terms_seq) for row in decision.facts.rows] == [
        (4 * MINUTE_MS, 2),
        (1 * MINUTE_MS, 2),
    ]
    assert (state.terms.plan, state.period.used_ms) == (Tier.PRO, 1 * MINUTE_MS)
    assert state.period.label == "2026-02-12T12:14:00Z"


def test_upgrade_within_the_period_keeps_its_counter() -> None:
    """A plan change elsewhere gets the new allowance at once and no new period."""
    state = make_org()
    follow(state, make_follow(make_subscription()))
    start(state, now_ms=NOON_MS)
    run_to(state, "task_1", NOON_MS + 15 * MINUTE_MS)
    before = state.period
    follow(state, make_follow(make_subscription(price=PRO)), NOON_MS + 15 * MINUTE_MS)

    assert span(state.period) == span(before)
    assert state.period.used_ms == 15 * MINUTE_MS
    assert state.terms.limits.included_minutes == 10_000


def test_contract_overlays_whatever_plan_stripe_says() -> None:
    """What was agreed with one organization survives every change of its subscription."""
    state = make_org(contract=Contract(agent_minutes=7_000))
    follow(state, make_follow(make_subscription(price=PRO)))

    assert (state.terms.plan, state.terms.limits.included_minutes) == (Tier.PRO, 7_000)


def test_operator_may_not_change_a_plan_that_a_live_subscription_decides() -> None:
    """The contract still may be changed, and the same plan is no change."""
    state = make_org()
    follow(state, make_follow(make_subscription()))
    refused = drive(state, make_change(plan=Tier.PRO, name="New"), NOON_MS)
    granted = drive(state, make_change(plan=Tier.STARTER, contract=Contract(agents=9)), NOON_MS)

    assert (refused.outcome, refused.facts) == (PlanManagedByStripe(), None)
    assert granted.outcome == Done()
    assert state.terms.limits.agents == 9


def test_end_of_the_subscription_is_free_at_once_and_a_calendar_period_at_its_end() -> None:
    """The counter goes on to the period's end: nothing is zeroed by an event."""
    state = make_org()
    follow(state, make_follow(make_subscription()))
    start(state, now_ms=NOON_MS)
    run_to(state, "task_1", NOON_MS + 15 * MINUTE_MS)
    now_ms = NOON_MS + 15 * MINUTE_MS
    follow(state, make_follow(make_subscription(Status.CANCELED)), now_ms)
    mid = (state.terms.plan, span(state.period), state.period.used_ms)
    drive(state, Tick(), at("2026-03-12T10:00:00"))

    assert mid == (
        Tier.FREE,
        ("2026-02-12", "2026-02-12T10:00:00Z", "2026-03-12T10:00:00Z"),
        15 * MINUTE_MS,
    )
    assert span(state.period) == ("2026-03", "2026-03-12T10:00:00Z", "2026-04-01T00:00:00Z")
    assert state.period.used_ms == 0


def test_provisional_period_of_a_subscription_that_had_ended_becomes_the_calendars() -> None:
    """Cancelled at the period's end: the clock was first, the news corrects the end only."""
    state = make_org()
    follow(state, make_follow(make_subscription()))
    drive(state, Tick(), at("2026-03-12T10:00:00"))
    provisional = span(state.period)
    follow(state, make_follow(make_subscription(Status.CANCELED)), at("2026-03-12T10:00:05"))

    assert provisional == ("2026-03", "2026-03-12T10:00:00Z", "2026-04-12T10:00:00Z")
    assert span(state.period) == ("2026-03", "2026-03-12T10:00:00Z", "2026-04-01T00:00:00Z")


def test_news_of_a_cancellation_may_come_months_late() -> None:
    """Every boundary that has passed meanwhile is turned at, one period after the other."""
    state = make_org()
    follow(state, make_follow(make_subscription()))
    drive(state, Tick(), at("2026-03-12T10:00:00"))
    follow(state, make_follow(make_subscription(Status.CANCELED)), at("2026-04-05"))

    assert [span(period) for period in (state.period, *state.closed_periods[:2])] == [
        ("2026-04", "2026-04-01T00:00:00Z", "2026-05-01T00:00:00Z"),
        ("2026-03", "2026-03-12T10:00:00Z", "2026-04-01T00:00:00Z"),
        ("2026-02-12", "2026-02-12T10:00:00Z", "2026-03-12T10:00:00Z"),
    ]


def test_second_subscription_in_a_month_gets_a_period_and_a_label_of_its_own() -> None:
    """`2026-02`, then its day: labels are assigned once."""
    state = make_org()
    follow(state, make_follow(make_subscription()))
    follow(state, make_follow(make_subscription(Status.CANCELED)), NOON_MS + DAY_MS)
    again = make_subscription(
        subscription_id="sub_2", start="2026-02-20T08:00:00", end="2026-03-20T08:00:00"
    )
    follow(state, make_follow(again), at("2026-02-20T08:00:01"))
    follow(state, make_follow(again, make_subscription(Status.CANCELED)), at("2026-02-20T08:00:02"))

    assert state.terms.plan is Tier.STARTER
    assert [period.label for period in (state.period, *state.closed_periods)] == [
        "2026-02-20",
        "2026-02-12",
        "2026-02",
    ]


def test_yearly_price_gets_its_months_one_by_one() -> None:
    """A subscription learned in its fifth month joins at the step that is running."""
    state = make_org(at_ms=at("2026-05-20"))
    yearly = make_subscription(
        price=make_price(interval=Interval.YEAR), start="2026-01-31", end="2027-01-31"
    )
    follow(state, make_follow(yearly), at("2026-05-20"))
    joined = span(state.period)
    drive(state, Tick(), at("2026-06-30"))

    assert joined == ("2026-05", "2026-05-01T00:00:00Z", "2026-05-31T00:00:00Z")
    assert span(state.period) == ("2026-06", "2026-06-30T00:00:00Z", "2026-07-31T00:00:00Z")


def test_incomplete_subscription_changes_nothing_yet() -> None:
    """The first payment decides; until then the previous plan and period stay."""
    state = make_org()
    follow(state, make_follow(make_subscription(Status.INCOMPLETE)))

    assert (state.terms.plan, state.period.label) == (Tier.FREE, "2026-02")
    assert state.profile.cycle is None


def test_weekly_price_keeps_plan_and_periods_and_is_found_once() -> None:
    """Refused with an alert: the finding is not repeated by every event."""
    state = make_org(Tier.PRO)
    weekly = make_subscription(price=make_price(interval=Interval.WEEK))
    first = follow(state, make_follow(weekly))
    second = follow(state, make_follow(weekly), NOON_MS + 1)

    assert ("findings" in first, second) == (True, ())
    assert (state.terms.plan, state.period.label) == (Tier.PRO, "2026-02")


def test_trial_behaves_like_free_past_the_allowance_until_it_is_paid() -> None:
    """Grace is not billed while Stripe says trialing; `active` is other terms."""
    state = make_org()
    trial = make_subscription(Status.TRIALING)
    follow(state, make_follow(trial))
    on_trial = state.terms
    follow(state, make_follow(make_subscription()), NOON_MS + 1)

    assert (on_trial.trialing, on_trial.limits.grace_billed) == (True, False)
    assert (state.terms.trialing, state.terms.limits.grace_billed) == (False, True)


def test_paused_collection_leaves_the_plan_on() -> None:
    """`pause_collection` is the operator's own choice in Stripe: the status stays active."""
    state = make_org()
    follow(state, make_follow(make_subscription(is_collection_paused=True)))

    assert (state.terms.plan, state.profile.holds) == (Tier.STARTER, frozenset())


def test_unpaid_renewal_suspends_after_the_grace_time_by_the_clock() -> None:
    """Seven days from the first failure, to the millisecond, without any further webhook."""
    state = make_org()
    failed = make_invoice(failed="2026-02-12T11:00:00")
    follow(state, make_follow(make_subscription(Status.PAST_DUE), invoices=(failed,)))
    until_ms = at("2026-02-19T11:00:00")
    start(state, now_ms=until_ms - MINUTE_MS)
    drive(state, Heartbeat("task_1", 59_999), until_ms - 1)
    in_grace = view(state, until_ms - 1).denial
    wakeup_ms = next_wakeup_ms(state, until_ms - 1)
    passed = drive(state, Tick(), until_ms)

    assert (in_grace, wakeup_ms) == (None, until_ms)
    assert state.profile.holds == {Hold.PAYMENT}
    assert StopTasks(task_ids=("task_1",), reason=DenialReason.SUSPENDED) in passed.notices
    assert start_denied(state, now_ms=until_ms).reason is DenialReason.SUSPENDED
    assert view(state, until_ms).hold is Hold.PAYMENT
    assert passed.facts is not None
    assert passed.facts.audit is not None
    assert passed.facts.audit.action == "subscription.suspend"


def test_retries_do_not_restart_the_grace_clock() -> None:
    """The second failure three days later is one of the same invoice."""
    state = make_org()
    past_due = make_subscription(Status.PAST_DUE)
    first = make_invoice(failed="2026-02-12T11:00:00", attempt_count=1)
    follow(state, make_follow(past_due, invoices=(first,)))
    retried = attrs.evolve(first, attempt_count=2)

    assert follow(state, make_follow(past_due, invoices=(retried,)), NOON_MS + 3 * DAY_MS) == ()
    assert state.profile.past_due_since_ms == at("2026-02-12T11:00:00")


def test_payment_resumes_at_once() -> None:
    """Active again and nothing unpaid: the hold lifts with the event that says so."""
    state = make_org()
    unpaid = make_invoice(failed="2026-02-12T11:00:00")
    late_ms = at("2026-02-21")
    follow(state, make_follow(make_subscription(Status.PAST_DUE), invoices=(unpaid,)), late_ms)
    suspended = state.profile.holds
    paid = attrs.evolve(unpaid, status="paid")
    decision = drive(state, make_follow(make_subscription(), invoices=(paid,)), late_ms + 1)

    assert (suspended, state.profile.holds) == (frozenset({Hold.PAYMENT}), frozenset())
    assert (state.profile.hold_reason, state.profile.past_due_since_ms) == (None, None)
    assert any(isinstance(notice, ProfileChanged) for notice in decision.notices)
    assert view(state, late_ms + 1).denial is None


def test_hold_stays_while_an_older_cycle_invoice_is_unpaid() -> None:
    """Active is not enough: the oldest debt decides."""
    state = make_org()
    unpaid = make_invoice(failed="2026-02-12T11:00:00")
    late_ms = at("2026-02-21")
    follow(state, make_follow(make_subscription(Status.PAST_DUE), invoices=(unpaid,)), late_ms)
    follow(state, make_follow(make_subscription(), invoices=(unpaid,)), late_ms + 1)

    assert state.profile.holds == {Hold.PAYMENT}


def test_unpaid_and_paused_suspend_at_once_and_keep_the_plan() -> None:
    """The data and the plan stay; the counter too."""
    for status in (Status.UNPAID, Status.PAUSED):
        state = make_org()
        follow(state, make_follow(make_subscription()))
        follow(state, make_follow(make_subscription(status)), NOON_MS + 1)
        held = (state.terms.plan, state.profile.holds)
        follow(state, make_follow(make_subscription()), NOON_MS + 2)

        assert held == (Tier.STARTER, frozenset({Hold.PAYMENT})), status
        assert state.profile.holds == frozenset(), status


def test_operators_hold_is_not_lifted_by_a_payment() -> None:
    """The two holds are independent, and the operator's reason stays readable."""
    state = make_org()
    drive(state, make_change(place=Hold.OPERATOR), NOON_MS)
    follow(state, make_follow(make_subscription(Status.UNPAID)), NOON_MS + 1)
    both = (state.profile.holds, state.profile.hold_reason)
    follow(state, make_follow(make_subscription()), NOON_MS + 2)

    assert both == (frozenset({Hold.OPERATOR, Hold.PAYMENT}), "a test")
    assert (state.profile.holds, state.profile.hold_reason) == (
        frozenset({Hold.OPERATOR}),
        "a test",
    )


def test_ended_subscription_owes_nothing_to_go_on_with() -> None:
    """Free is not suspended: there is no payment method whose update would help."""
    state = make_org()
    unpaid = make_invoice(failed="2026-02-12T11:00:00")
    late_ms = at("2026-02-21")
    follow(state, make_follow(make_subscription(Status.PAST_DUE), invoices=(unpaid,)), late_ms)
    follow(state, make_follow(make_subscription(Status.CANCELED), invoices=(unpaid,)), late_ms + 1)

    assert (state.terms.plan, state.profile.holds) == (Tier.FREE, frozenset())


def test_another_customers_subscription_is_followed_and_found() -> None:
    """The organization id in its metadata says whose it is; a person should know."""
    state = make_org()
    follow(state, make_follow(make_subscription()))
    theirs = make_subscription(customer_id="cus_2")
    kinds = follow(state, make_follow(theirs, customer_id="cus_2"), NOON_MS + 1)

    assert "findings" in kinds
    assert state.profile.stripe_customer_id == "cus_1"


def test_what_was_followed_is_in_the_audit_log_before_and_after() -> None:
    """Who asks why the plan changed finds the signal and both states."""
    state = make_org()
    decision = drive(state, make_follow(make_subscription()), NOON_MS)

    assert decision.facts is not None
    audit = decision.facts.audit
    assert audit is not None
    assert (audit.actor, audit.reason) == ("stripe", "customer.subscription.updated")
    assert json.loads(audit.before_json)["plan"] == "free"
    assert json.loads(audit.after_json)["period_start"] == "2026-02-12T10:00:00Z"
    assert any(isinstance(notice, TermsChanged) for notice in decision.notices)


def test_deciding_changes_nothing() -> None:
    """Only committed facts do: a decision that is thrown away leaves no trace."""
    state = make_org()
    start(state, now_ms=NOON_MS - 2 * SECOND_MS)
    before = (state.period, state.profile, state.terms, dict(state.running), state.seq)
    decide(state, make_follow(make_subscription(start="2026-02-12T11:59:59")), NOON_MS)

    assert (state.period, state.profile, state.terms, dict(state.running), state.seq) == before
