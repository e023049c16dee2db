"""What operators change: plans, holds and corrections, each with its trace in the audit log."""

from __future__ import annotations

import json
from decimal import Decimal

import attrs
import pytest

from meterd.core.commands import (
    Adjusted,
    CreditExceedsUsage,
    Done,
    ExceedsHardLimit,
    ExceedsOverageCap,
    Heartbeat,
    NeedsPeriod,
    Notified,
    PeriodUnknown,
    PlanManagedByStripe,
    ProfileChanged,
    RecalledPeriod,
    TermsChanged,
    Tick,
)
from meterd.core.cycle import Cycle
from meterd.core.ids import fact_id
from meterd.core.organization import (
    AuditEntry,
    DenialReason,
    Facts,
    Hold,
    OrganizationState,
)
from meterd.core.plan import NO_CONTRACT, Contract, Terms, Tier, resolve
from meterd.core.units import DAY_MS, MINUTE_MS
from meterd.core.usage import Source
from tests.organizations import (
    APRIL_MS,
    AUDITED,
    CATALOGUE,
    MARCH_MS,
    NOON_MS,
    drive,
    make_adjust,
    make_change,
    make_finish,
    make_period,
    make_state,
    make_terms,
    run_to,
    start,
    start_denied,
)


def capped_state(cap_usd: str, **fields: object) -> OrganizationState:
    """Return an organization whose customer has set an overage cap."""
    state = make_state(**fields)  # type: ignore[arg-type]  # checked by the builder
    limits = attrs.evolve(state.terms.limits, overage_cap_usd=Decimal(cap_usd))
    state.terms = attrs.evolve(state.terms, limits=limits)
    return state


def audit_of(facts: Facts | None) -> AuditEntry:
    """Return the audit entry among the facts."""
    assert facts is not None
    assert facts.audit is not None
    return facts.audit


def test_a_change_of_plan_reprices_nothing_that_ran() -> None:
    """Pending time is recorded under the terms it ran under; the counter stays."""
    state = make_state(Tier.ENTERPRISE)
    start(state)
    run_to(state, "task_1", NOON_MS + 5 * MINUTE_MS)
    change = make_change(plan=Tier.STARTER, contract=Contract(agents=2))
    decision = drive(state, change, NOON_MS + 5 * MINUTE_MS)

    assert decision.facts is not None
    assert [(row.terms_seq, row.quantity) for row in decision.facts.rows] == [(1, 5)]
    assert TermsChanged(terms=state.terms) in decision.notices
    assert (state.terms.seq, state.period.terms_seq, state.period.overage_minutes) == (2, 2, 5)
    assert state.period.used_ms == 5 * MINUTE_MS


def test_a_shrunken_limit_takes_no_slot_and_admits_nobody() -> None:
    """Until the count is below it."""
    state = make_state()
    for number in range(3):
        start(state, f"t{number}", f"a{number}")
    drive(state, make_change(contract=Contract(agents=2)), NOON_MS)

    assert len(state.agents) == 3
    for number in range(2):
        assert start_denied(state).reason is DenialReason.AGENT_LIMIT_REACHED
        drive(state, make_finish(f"t{number}"), NOON_MS)
    start(state, "t9", "a9")


def test_a_change_that_changes_nothing_leaves_no_trace() -> None:
    """Also when it is how an edited catalogue would take effect."""
    state = make_state()
    decision = drive(state, make_change(), NOON_MS)

    assert (decision.outcome, decision.facts, decision.notices) == (Done(), None, ())


def test_a_change_is_audited_with_before_and_after() -> None:
    """Name, customer, holds, plan: who, why, from what to what."""
    state = make_state()
    change = make_change(name="Two", stripe_customer_id="cus_1", place=Hold.OPERATOR, trialing=True)
    decision = drive(state, change, NOON_MS)

    assert ProfileChanged(profile=state.profile) in decision.notices
    assert (state.profile.name, state.profile.stripe_customer_id) == ("Two", "cus_1")
    assert (state.profile.hold_reason, state.terms.trialing) == ("a test", True)
    assert decision.facts is not None
    assert decision.facts.audit is not None
    after = json.loads(decision.facts.audit.after_json)
    assert (after["holds"], after["terms_seq"], after["name"]) == (["operator"], 2, "Two")
    assert json.loads(decision.facts.audit.before_json)["holds"] == []


def test_the_two_holds_are_independent() -> None:
    """Lifting one leaves the other; the reason goes with the last."""
    state = make_state()
    for hold in Hold:
        drive(state, make_change(place=hold), NOON_MS)
    drive(state, make_change(lift=Hold.OPERATOR), NOON_MS)
    assert start_denied(state).reason is DenialReason.SUSPENDED
    reasons = [state.profile.hold_reason]

    drive(state, make_change(lift=Hold.PAYMENT), NOON_MS)
    reasons.append(state.profile.hold_reason)
    assert reasons == ["a test", None]
    start(state)


def test_an_adjustment_answers_with_its_own_rows() -> None:
    """Pending time is recorded before it, in rows of its own."""
    state = make_state()
    start(state)
    drive(state, Heartbeat("task_1", 9_000), NOON_MS + 9_000)
    decision = drive(state, make_adjust(MINUTE_MS), NOON_MS + 9_000)

    assert isinstance(decision.outcome, Adjusted)
    assert [row.quantity_ms for row in decision.outcome.rows] == [MINUTE_MS]
    assert decision.facts is not None
    assert [row.quantity_ms for row in decision.facts.rows] == [9_000, MINUTE_MS]
    assert json.loads(decision.outcome.rows[0].metadata_json) == {"reason": "a test"}
    assert decision.facts.audit is not None
    assert json.loads(decision.facts.audit.after_json)["used_ms"] == 69_000


@pytest.mark.parametrize(("offset_ms", "is_booked"), [(-1, True), (0, True), (1, False)])
def test_adjustments_stay_between_nothing_and_the_hard_limit(
    offset_ms: int, is_booked: bool
) -> None:
    """A credit of all that was used, a debit of all the room, and not a millisecond more."""
    state = make_state(contract=Contract(agent_minutes=100), used_ms=MINUTE_MS)
    room_ms = 109 * MINUTE_MS
    debit = drive(state, make_adjust(room_ms + offset_ms), NOON_MS).outcome
    assert (debit == ExceedsHardLimit(room_ms=room_ms)) is not is_booked

    state = make_state(used_ms=MINUTE_MS)
    credit = drive(state, make_adjust(-MINUTE_MS - offset_ms), NOON_MS).outcome
    assert (credit == CreditExceedsUsage(used_ms=MINUTE_MS)) is not is_booked


def test_past_a_shrunken_limit_there_is_no_room_but_credits() -> None:
    """And nothing is negative in the answer."""
    state = make_state(contract=Contract(agent_minutes=1), used_ms=5 * MINUTE_MS)

    assert drive(state, make_adjust(1), NOON_MS).outcome == ExceedsHardLimit(room_ms=0)
    assert isinstance(drive(state, make_adjust(-1), NOON_MS).outcome, Adjusted)
    assert drive(state, make_adjust(0), NOON_MS).outcome == Adjusted(rows=())


def test_a_closed_period_is_adjusted_by_its_label() -> None:
    """From memory or recalled; under its own terms; the open one is not touched."""
    state = make_state(Tier.ENTERPRISE, used_ms=9 * MINUTE_MS)
    drive(state, Tick(), MARCH_MS)
    drive(state, make_change(plan=Tier.FREE), MARCH_MS)
    outcome = drive(state, make_adjust(MINUTE_MS, label="2026-02"), MARCH_MS + 5).outcome

    assert isinstance(outcome, Adjusted)
    assert [(row.terms_seq, row.at_ms) for row in outcome.rows] == [(1, MARCH_MS - 1)]
    assert (state.closed_periods[0].overage_minutes, state.period.used_ms) == (1, 0)

    needed = drive(state, make_adjust(-1, label="2025-12"), APRIL_MS).outcome
    assert needed == NeedsPeriod(label="2025-12")
    unknown = make_adjust(-1, label="2025-12", recalled=RecalledPeriod(None))
    assert drive(state, unknown, APRIL_MS).outcome == PeriodUnknown()
    old = attrs.evolve(
        make_period(used_ms=9, at_ms=NOON_MS - 60 * DAY_MS), closed=True, terms_seq=1
    )
    recalled = RecalledPeriod((old, make_terms()))
    decision = drive(state, make_adjust(-1, label="2025-12", recalled=recalled), APRIL_MS)
    assert isinstance(decision.outcome, Adjusted)
    assert decision.facts is not None
    assert [(period.label, period.used_ms) for period in decision.facts.periods][:1] == [
        ("2025-12", 8)
    ]


def test_new_terms_say_since_when_and_why_and_keep_what_was_not_asked_for() -> None:
    """A customer's own cap, a contract and a trial survive a change of plan."""
    state = capped_state("25", contract=Contract(agents=9), trialing=True)
    drive(state, make_change(plan=Tier.PRO), NOON_MS + 5)

    assert state.terms == Terms(
        seq=2,
        effective_at_ms=NOON_MS + 5,
        plan=Tier.PRO,
        contract=Contract(agents=9),
        trialing=True,
        limits=resolve(
            CATALOGUE,
            Tier.PRO,
            Contract(agents=9),
            trialing=True,
            overage_cap_usd=Decimal(25),
        ),
        reason="a test",
    )
    drive(state, make_change(contract=NO_CONTRACT, trialing=False), NOON_MS + 6)
    assert (state.terms.plan, state.terms.contract, state.terms.trialing) == (
        Tier.PRO,
        NO_CONTRACT,
        False,
    )


def test_a_change_of_plan_tells_the_customer_what_it_was_before() -> None:
    """The webhook shows the new plan and names the old one."""
    notices = drive(make_state(), make_change(plan=Tier.PRO), NOON_MS).notices
    told = [each.notification for each in notices if isinstance(each, Notified)]

    assert [each.kind.value for each in told] == ["subscription.updated"]
    data = json.loads(told[0].data_json)
    assert (data["plan"], data["previous_plan"]) == ("pro", "starter")


def test_a_subscriptions_plan_is_changed_at_stripe_only() -> None:
    """Two masters would take turns; naming the plan it has already asks for nothing."""
    state = make_state()
    cycle = Cycle(
        subscription_id="sub_1", start_ms=NOON_MS, end_ms=MARCH_MS, anchor_ms=NOON_MS, months=1
    )
    state.profile = attrs.evolve(state.profile, cycle=cycle)

    assert drive(state, make_change(plan=Tier.PRO), NOON_MS).outcome == PlanManagedByStripe()
    for change in (make_change(plan=Tier.STARTER), make_change(name="Two")):
        assert drive(state, change, NOON_MS).outcome == Done()
    assert state.profile.name == "Two"


def test_the_audit_log_says_what_a_change_was_from_and_to() -> None:
    """Who asks a year later finds who did what and why, in the words of the API."""
    state = make_state(contract=Contract(agents=3))
    change = make_change(
        name="Two", stripe_customer_id="cus_1", place=Hold.PAYMENT, plan=Tier.PRO, trialing=True
    )
    entry = audit_of(drive(state, change, NOON_MS + 5).facts)

    assert entry == AuditEntry(
        id=fact_id("aud", NOON_MS + 5, "org_1", 1),
        at_ms=NOON_MS + 5,
        actor="key_admin",
        action="organization.change",
        reason="a test",
        before_json=(
            '{"contract":{"agents":3},"holds":[],"name":"One","plan":"starter",'
            '"stripe_customer_id":null,"terms_seq":1,"trialing":false}'
        ),
        after_json=(
            '{"contract":{"agents":3},"holds":["payment"],"name":"Two","plan":"pro",'
            '"stripe_customer_id":"cus_1","terms_seq":2,"trialing":true}'
        ),
    )
    named = attrs.evolve(AUDITED, entry_id="aud_1")
    again = attrs.evolve(make_change(place=Hold.OPERATOR), audited=named)
    entry = audit_of(drive(state, again, NOON_MS + 6).facts)
    assert (entry.id, json.loads(entry.after_json)["holds"]) == ("aud_1", ["operator", "payment"])


def test_the_audit_log_says_what_an_adjustment_added_and_in_which_rows() -> None:
    """A correction is found again in the ledger by the rows it names, not by rows of tasks."""
    state = make_state(used_ms=MINUTE_MS)
    start(state)
    drive(state, Heartbeat("task_1", 9_000), NOON_MS + 9_000)
    decision = drive(state, make_adjust(-5), NOON_MS + 9_000)

    assert isinstance(decision.outcome, Adjusted)
    [row] = decision.outcome.rows
    assert row.id == fact_id("rec", NOON_MS + 8_999, "org_1", 3, 1)
    assert (row.source, row.at_ms, row.quantity_ms) == (Source.ADJUSTMENT, NOON_MS + 8_999, -5)
    entry = audit_of(decision.facts)
    assert (entry.action, entry.before_json, entry.after_json) == (
        "organization.adjust",
        '{"billing_period":"2026-02","used_ms":69000}',
        f'{{"billing_period":"2026-02","rows":["{row.id}"],"used_ms":68995}}',
    )


@pytest.mark.parametrize(("offset_ms", "is_booked"), [(0, True), (1, False)])
def test_a_debit_stops_at_the_customers_cap(offset_ms: int, is_booked: bool) -> None:
    """An operator's correction may not cost more than the customer has agreed to."""
    contract = Contract(agent_minutes=100)
    state = capped_state("0.15", contract=contract, used_ms=100 * MINUTE_MS)
    room_ms = 3 * MINUTE_MS
    outcome = drive(state, make_adjust(room_ms + offset_ms), NOON_MS).outcome

    assert (outcome == ExceedsOverageCap(room_ms=room_ms)) is not is_booked
    drive(state, make_adjust(MINUTE_MS), NOON_MS)
    assert isinstance(drive(state, make_adjust(-1), NOON_MS).outcome, Adjusted)


def test_where_the_cap_is_passed_already_there_is_no_room() -> None:
    """A cap set too late takes nothing back; nothing is negative in the answer."""
    contract = Contract(agent_minutes=100)
    state = capped_state("0", contract=contract, used_ms=100 * MINUTE_MS + 30_000)

    assert drive(state, make_adjust(1), NOON_MS).outcome == ExceedsOverageCap(room_ms=0)
    assert drive(state, make_adjust(0), NOON_MS).outcome == Adjusted(rows=())
