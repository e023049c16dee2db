"""When a period is charged, in which state its charges begin, and when a key is renewed."""

from __future__ import annotations

import json
from decimal import Decimal

import attrs
import pytest

from meterd.core.overage import (
    Charge,
    ChargeState,
    Cost,
    Move,
    PeriodBill,
    Review,
    charge_json,
    is_ready,
    moved,
    must_renew_key,
    new_charges,
    parked_finding,
    review_of,
)
from meterd.core.plan import Resource
from meterd.core.units import HOUR_MS, MINUTE_MS


END_MS = 1_772_323_200_000
TWENTY_MINUTES = Cost(resource=Resource.AGENT_MINUTE, quantity=20, cost_usd=Decimal("1.00"))
WAIT_MS = 10 * MINUTE_MS


def make_bill(*costs: Cost, **fields: object) -> PeriodBill:
    """Return a closed period of an organization with a customer; 20 minutes unless given."""
    bill = PeriodBill(
        organization_id="org_1",
        billing_period="2026-02",
        start_ms=END_MS - 28 * 24 * HOUR_MS,
        end_ms=END_MS,
        seq=1,
        costs=costs or (TWENTY_MINUTES,),
        customer_id="cus_1",
        subscription_id="sub_1",
    )
    return attrs.evolve(bill, **fields)  # type: ignore[arg-type]  # checked by attrs


def one_charge(bill: PeriodBill | None = None, review: Review | None = None) -> Charge:
    """Return the only charge of a period."""
    (charge,) = new_charges(bill or make_bill(), review or Review(), now_ms=END_MS)
    return charge


def pushing(**fields: object) -> Charge:
    """Return a charge whose first attempt is under way since the end of its period."""
    begun = moved(one_charge(), Move.ATTEMPT)
    assert begun is not None
    values: dict[str, object] = {"attempt": 1, "key_at_ms": END_MS, "first_at_ms": END_MS}
    return attrs.evolve(begun, **(values | fields))  # type: ignore[arg-type]  # checked by attrs


@pytest.mark.parametrize(
    ("unreported", "after_ms", "is_charged", "ready"),
    [
        (0, -1, False, False),
        (0, 0, False, True),
        (1, 0, False, False),
        (1, WAIT_MS - 1, False, False),
        (1, WAIT_MS, False, True),
        (1, 0, True, True),
    ],
)
def test_a_period_is_charged_when_everybody_reported_or_it_waited_enough(
    *, unreported: int, after_ms: int, is_charged: bool, ready: bool
) -> None:
    """Late reports are the next charge, so waiting is a courtesy with an end."""
    bill = make_bill(unreported_tasks=unreported)
    if is_charged:
        bill = attrs.evolve(bill, charges=(one_charge(bill),))

    assert is_ready(bill, now_ms=END_MS + after_ms, wait_ms=WAIT_MS) is ready


def test_a_plain_charge_goes_to_stripe() -> None:
    """The amount, the quantity and the key that Stripe sees."""
    charge = one_charge()

    assert (charge.state, charge.amount_cents, charge.quantity) == (ChargeState.NEW, 100, 20)
    assert charge.idempotency_key == f"meterd:overage:{charge.id}:0"
    assert charge.description == "Usage past the plan: 20 agent minutes, period 2026-02"


def test_half_a_cent_is_rounded_up_once_for_the_period() -> None:
    """Two halves are one cent, not two."""
    half = Decimal("0.005")
    bill = make_bill(
        Cost(resource=Resource.AGENT_MINUTE, quantity=1, cost_usd=half),
        Cost(resource=Resource.API_CALL, quantity=1, cost_usd=half),
    )

    (charge,) = new_charges(bill, Review(), now_ms=END_MS)

    assert (charge.resource, charge.amount_cents) == (Resource.AGENT_MINUTE, 1)


def test_a_credit_on_a_charged_period_is_a_negative_charge() -> None:
    """What was charged stays as it is."""
    first = one_charge()
    less = Cost(resource=Resource.AGENT_MINUTE, quantity=5, cost_usd=Decimal("0.25"))

    (credit,) = new_charges(make_bill(less, charges=(first,)), Review(), now_ms=END_MS)

    assert (credit.seq, credit.amount_cents, credit.quantity) == (2, -75, -15)
    assert credit.description == "Correction: 15 agent minutes, period 2026-02"


def test_what_is_gone_from_the_ledger_is_credited_whole() -> None:
    """Calls that were charged and then taken back leave no row type behind, only the charge."""
    calls = Cost(resource=Resource.API_CALL, quantity=300, cost_usd=Decimal("3.00"))
    charges = new_charges(make_bill(TWENTY_MINUTES, calls), Review(), now_ms=END_MS)

    (credit,) = new_charges(make_bill(charges=charges), Review(), now_ms=END_MS)

    assert (credit.resource, credit.seq) == (Resource.API_CALL, 2)
    assert (credit.quantity, credit.amount_cents) == (-300, -300)


def test_what_was_written_off_is_not_charged_again() -> None:
    """An operator's decision outlives the next look at the period."""
    written_off = moved(one_charge(attrs.evolve(make_bill(), customer_id=None)), Move.WRITE_OFF)
    assert written_off is not None

    assert new_charges(make_bill(charges=(written_off,)), Review(), now_ms=END_MS) == ()


def test_without_a_customer_a_charge_is_manual() -> None:
    """Somebody else's invoice has it; meterd keeps the sum."""
    charge = one_charge(make_bill(customer_id=None))

    assert (charge.state, charge.reason) == (ChargeState.MANUAL, "no Stripe customer")


def test_another_currency_parks_a_charge() -> None:
    """Dollars on a bill of euros would be wrong whatever the number."""
    charge = one_charge(make_bill(billing_alerts=frozenset({"other_currency:eur"})))

    assert (charge.state, charge.reason) == (ChargeState.PARKED, "the subscription is in eur")
    assert parked_finding(charge, END_MS).kind == "charge_parked"


@pytest.mark.parametrize(
    ("usd", "earlier_cents", "state"),
    [
        (1_000, (), ChargeState.NEW),
        (1_001, (), ChargeState.PARKED),
        (1_001, (100_000,), ChargeState.NEW),
        (5_000, (100_000, 100_000, 100_000), ChargeState.NEW),
        (5_001, (100_000, 100_000, 100_000), ChargeState.PARKED),
    ],
)
def test_an_unlimited_plan_that_ran_away_is_parked(
    usd: int, earlier_cents: tuple[int, ...], state: ChargeState
) -> None:
    """Over $1,000 and over five times the mean of three periods, a person looks first."""
    cost = Cost(resource=Resource.AGENT_MINUTE, quantity=usd * 20, cost_usd=Decimal(usd))

    unlimited = one_charge(make_bill(cost, is_unlimited=True, earlier_cents=earlier_cents))
    limited = one_charge(make_bill(cost, earlier_cents=earlier_cents))
    calls = attrs.evolve(cost, resource=Resource.API_CALL)
    called = one_charge(make_bill(calls, earlier_cents=earlier_cents))

    assert unlimited.state is state
    assert called.state is state, "no plan limits calls, whatever it says of minutes"
    assert limited.state is ChargeState.NEW


@pytest.mark.parametrize(
    ("policy", "is_reviewed", "reviewed", "state"),
    [
        ("none", False, 0, ChargeState.NEW),
        ("all", True, 99, ChargeState.REVIEW),
        ("first:2", False, 0, ChargeState.REVIEW),
        ("first:2", False, 1, ChargeState.REVIEW),
        ("first:2", True, 1, ChargeState.NEW),
        ("first:2", False, 2, ChargeState.NEW),
    ],
)
def test_the_first_customers_charges_wait_for_a_person(
    *, policy: str, is_reviewed: bool, reviewed: int, state: ChargeState
) -> None:
    """Each of the first N organizations is looked at until one of its charges was released."""
    review = review_of(policy)
    assert review is not None

    charge = one_charge(make_bill(is_reviewed=is_reviewed, reviewed_organizations=reviewed), review)

    assert charge.state is state
    assert charge.reason == ("waits for review" if state is ChargeState.REVIEW else None)


@pytest.mark.parametrize(
    ("text", "review"),
    [
        ("none", Review(0)),
        ("all", Review(None)),
        ("first:123456789", Review(123_456_789)),
        ("first:1234567890", None),
        ("first:", None),
        ("first:x", None),
        ("first:\u0663", None),
        ("last:3", None),
        ("first", None),
        ("all:", None),
    ],
)
def test_a_policy_is_one_of_three_or_refused(text: str, review: Review | None) -> None:
    """A policy that is misread would send charges that somebody wanted to see first."""
    assert review_of(text) == review


@pytest.mark.parametrize(
    ("tries", "age_ms", "renews"),
    [
        (0, 20 * HOUR_MS - 1, False),
        (0, 20 * HOUR_MS, True),
        (2, HOUR_MS, False),
        (3, 2 * MINUTE_MS - 1, False),
        (3, 2 * MINUTE_MS, True),
    ],
)
def test_a_key_is_renewed_when_stripe_may_have_forgotten_it_or_keeps_its_failure(
    *, tries: int, age_ms: int, renews: bool
) -> None:
    """Younger keys are the only thing that protects from a call that is still under way."""
    assert must_renew_key(pushing(tries=tries), END_MS + age_ms) is renews


def test_a_charge_says_whose_it_is_and_for_which_period() -> None:
    """Everything that Stripe's invoice and an operator's list are made of."""
    bill = make_bill()
    charge = one_charge(bill)

    assert (charge.organization_id, charge.subscription_id) == ("org_1", "sub_1")
    assert (charge.period_start_ms, charge.period_end_ms) == (bill.start_ms, bill.end_ms)
    assert (charge.billing_period, charge.quantity, charge.seq) == ("2026-02", 20, 1)
    assert (charge.created_at_ms, charge.next_attempt_at_ms) == (END_MS, END_MS)
    assert charge.id.startswith("chg_")
    assert one_charge(attrs.evolve(bill, organization_id="org_2")).id != charge.id


def test_a_finding_tells_an_operator_what_is_held_and_why() -> None:
    """The names in it are what alerts and lists look for."""
    charge = attrs.evolve(one_charge(), reason="why")
    finding = parked_finding(charge, END_MS + 1)
    detail = json.loads(finding.detail_json)

    assert (finding.at_ms, finding.id[:4]) == (END_MS + 1, "fnd_")
    assert detail == {
        "charge_id": charge.id,
        "billing_period": "2026-02",
        "resource_type": "agent_minute",
        "amount_cents": 100,
        "reason": "why",
    }
    assert finding.detail_json == json.dumps(detail, sort_keys=True)
    others = [attrs.evolve(charge, id="chg_2"), attrs.evolve(charge, state=ChargeState.PARKED)]
    assert finding.id not in {parked_finding(other, END_MS + 1).id for other in others}
    unexplained = parked_finding(attrs.evolve(charge, reason=None), END_MS)
    assert json.loads(unexplained.detail_json)["reason"] == ""


def test_the_audit_log_keeps_what_an_operator_can_change_of_a_charge() -> None:
    """Before and after are compared as text, so their keys are in one order."""
    charge = pushing(invoice_item_id="ii_1")

    assert charge_json(charge) == (
        '{"amount_cents": 100, "attempt": 1, "invoice_item_id": "ii_1", "state": "pushing"}'
    )
