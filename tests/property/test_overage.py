"""The charges of a period against the plain sum of its rows, however it changes."""

from __future__ import annotations

from collections import defaultdict
from decimal import ROUND_HALF_UP, Decimal

import attrs
from hypothesis import given, strategies as st

from meterd.core.overage import (
    MOVES,
    OPEN,
    Charge,
    ChargeState,
    Cost,
    Move,
    PeriodBill,
    Review,
    bound_cents,
    moved,
    new_charges,
    review_of,
    targets_cents,
)
from meterd.core.plan import Resource


END_MS = 1_772_323_200_000

costs = st.fixed_dictionaries(
    {},
    optional={
        resource: st.tuples(
            st.integers(0, 100_000), st.decimals(0, 5_000, places=6, allow_nan=False)
        )
        for resource in Resource
    },
).map(
    lambda found: tuple(
        Cost(resource=resource, quantity=quantity, cost_usd=cost)
        for resource, (quantity, cost) in found.items()
    )
)


def make_bill(period_costs: tuple[Cost, ...] = (), **fields: object) -> PeriodBill:
    """Return a closed period of an organization with a customer."""
    bill = PeriodBill(
        organization_id="org_1",
        billing_period="2026-02",
        start_ms=END_MS - 28 * 86_400_000,
        end_ms=END_MS,
        seq=1,
        costs=period_costs,
        customer_id="cus_1",
    )
    return attrs.evolve(bill, **fields)  # type: ignore[arg-type]  # checked by attrs


@given(st.lists(costs, min_size=1, max_size=6))
def test_charges_add_up_to_the_cost_rounded_once_after_every_change(
    history: list[tuple[Cost, ...]],
) -> None:
    """The naive book rounds the whole sum; the charges, made piece by piece, must agree with it."""
    charges: tuple[Charge, ...] = ()
    for index, now in enumerate(history):
        bill = make_bill(now, charges=charges, seq=index)
        charges += new_charges(bill, Review(), now_ms=END_MS + index)

        exact = sum((cost.cost_usd for cost in now), Decimal(0))
        naive = int((exact * 100).quantize(Decimal(1), rounding=ROUND_HALF_UP))
        assert sum(charge.amount_cents for charge in charges) == naive
        assert new_charges(attrs.evolve(bill, charges=charges), Review(), now_ms=END_MS) == ()


@given(st.lists(costs, min_size=1, max_size=6))
def test_seqs_count_up_and_ids_never_repeat(history: list[tuple[Cost, ...]]) -> None:
    """The unique key of the table, and what makes booking twice the same as once."""
    charges: tuple[Charge, ...] = ()
    for now in history:
        bill = make_bill(now, charges=charges)
        charges += new_charges(bill, Review(), now_ms=END_MS)

    seqs = defaultdict(list)
    for charge in charges:
        seqs[charge.resource].append(charge.seq)
        assert charge.amount_cents != 0
    assert all(found == list(range(1, len(found) + 1)) for found in seqs.values())
    assert len({charge.id for charge in charges}) == len(charges)


@given(costs)
def test_a_quantity_is_charged_with_its_cost(now: tuple[Cost, ...]) -> None:
    """What the line on the invoice says adds up to what was used past the plan."""
    charges = new_charges(make_bill(now), Review(), now_ms=END_MS)

    for charge in charges:
        known = next(cost for cost in now if cost.resource is charge.resource)
        assert charge.quantity == known.quantity


@given(costs)
def test_one_resource_alone_is_its_own_rounded_cost(now: tuple[Cost, ...]) -> None:
    """Sharing the cents of one rounding must not show where there is nothing to share."""
    for cost in now:
        naive = int((cost.cost_usd * 100).quantize(Decimal(1), rounding=ROUND_HALF_UP))
        assert targets_cents([cost]) == {cost.resource: naive}


@given(st.lists(st.sampled_from(list(Move)), max_size=12))
def test_no_way_leads_back_from_an_invoice_or_a_write_off(moves: list[Move]) -> None:
    """What is final is final, and what may be at Stripe is not written off behind its back."""
    (charge,) = new_charges(
        make_bill((Cost(resource=Resource.AGENT_MINUTE, quantity=20, cost_usd=Decimal(1)),)),
        Review(),
        now_ms=END_MS,
    )
    for what in moves:
        before = charge
        charge = moved(charge, what) or charge
        if before.state in {ChargeState.VOID, ChargeState.INVOICED}:
            assert charge == before
        if before.state in {ChargeState.PUSHING, ChargeState.PUSHED}:
            assert charge.state is not ChargeState.VOID


def test_every_state_is_in_the_table_and_can_be_left_or_is_final() -> None:
    """A state without a way out is a charge that is forgotten."""
    assert set(MOVES) == set(ChargeState)
    final = {state for state, moves in MOVES.items() if not moves}
    assert final == {ChargeState.INVOICED, ChargeState.VOID}
    assert set(ChargeState) - OPEN - final == {
        ChargeState.REVIEW,
        ChargeState.MANUAL,
        ChargeState.PARKED,
    }


@given(st.lists(st.integers(0, 10**7), max_size=5))
def test_the_bound_is_a_thousand_dollars_or_five_times_the_mean(earlier: list[int]) -> None:
    """Three periods count, a missing one as nothing: a new customer is looked at early."""
    mean = sum(earlier[:3]) / 3

    assert bound_cents(earlier) == max(100_000, int(5 * mean))


@given(st.text(max_size=12))
def test_a_review_policy_is_known_or_refused(text: str) -> None:
    """A misspelt policy must not mean that nobody looks."""
    found = review_of(text)

    assert (found is None) == (
        text not in {"none", "all"}
        and not (
            text.startswith("first:")
            and text[6:].isascii()
            and text[6:].isdecimal()
            and len(text) <= 15
        )
    )
