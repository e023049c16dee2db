"""What a report lists of a customer, from its figures at the end of a day."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import attrs
import pytest

from meterd.core.money import ZERO
from meterd.core.outlook import Allowance
from meterd.core.plan import NO_CONTRACT, Tier, resolve
from meterd.core.revenue import Customer, Origin
from meterd.core.units import DAY_MS, HOUR_MS, MINUTE_MS
from meterd.reporting.figures import (
    HISTORY_DAYS,
    BilledOverage,
    CustomerDay,
    DayActivity,
    DayFacts,
    Report,
)
from meterd.reporting.making import Making
from tests.organizations import CATALOGUE
from tests.subscriptions import at


DAY = at("2026-02-12")
WHOLE = Allowance(
    used_ms=0, included_ms=1_000 * MINUTE_MS, elapsed_ms=31 * DAY_MS, length_ms=31 * DAY_MS
)

QUIET = DayFacts(
    activity=DayActivity(),
    billed=BilledOverage(usd=ZERO, periods=0, charges={}),
    reconciled=None,
    findings=(),
    set_aside={},
    daily_minutes=(0,) * HISTORY_DAYS,
    daily_mrr_cents=(),
)
"""A day on which nothing happened."""


def make_customer(**fields: object) -> CustomerDay:
    """Return a customer on Pro since this day, on Starter before."""
    values: dict[str, object] = {
        "organization_id": "org_1",
        "name": "One",
        "tier": Tier.PRO,
        "limits": resolve(CATALOGUE, Tier.PRO, NO_CONTRACT),
        "trialing": False,
        "period_label": "2026-02",
        "period_start_ms": at("2026-01-13"),
        "period_end_ms": at("2026-02-13"),
        "used_ms": 0,
        "overage_usd": ZERO,
        "before": WHOLE,
        "daily_ms": (0,) * HISTORY_DAYS,
        "tier_before": Tier.STARTER,
        "changed_at_ms": DAY + 20 * HOUR_MS,
    }
    return CustomerDay(**(values | fields))  # type: ignore[arg-type]  # checked by attrs


def late_percents(customer: CustomerDay) -> list[int]:
    """Return how much of its period was left when it upgraded, if that is listed as late."""
    making = Making(DAY, CATALOGUE)
    making.add(customer)
    report = making.finish(QUIET, has_snapshot=False, since=None, earlier={})
    return [each.left_percent for each in report.late_upgrades]


@pytest.mark.parametrize(
    ("fields", "listed"),
    [
        ({}, [0]),
        ({"period_end_ms": at("2026-02-20")}, [18]),
        ({"period_end_ms": at("2026-02-24")}, []),
        ({"tier": Tier.STARTER, "tier_before": Tier.PRO}, []),
        ({"tier_before": None, "changed_at_ms": None}, []),
        # The period ended an hour later, on the same day: the next one is open at its end.
        (
            {"period_start_ms": DAY + 21 * HOUR_MS, "period_end_ms": at("2026-03-12")},
            [0],
        ),
        (
            {
                "period_start_ms": DAY + 21 * HOUR_MS,
                "period_end_ms": at("2026-03-12"),
                "before": None,
            },
            [],
        ),
        # It began with the upgrade, as the billing portal does it: paid in full.
        ({"period_start_ms": DAY + 20 * HOUR_MS, "period_end_ms": at("2026-03-12")}, []),
    ],
)
def test_an_upgrade_with_little_of_its_period_left_is_listed(
    fields: dict[str, object], listed: list[int]
) -> None:
    """It frees a whole plan's minutes for a few days' price: a person should know who does it."""
    assert late_percents(make_customer(**fields)) == listed


def worth(cents: int, *, status: str = "active", currency: str = "usd") -> Customer:
    """Return what a snapshot says of a customer."""
    return Customer(
        organization_id="org_1",
        tier=Tier.PRO,
        status=status,
        origin=Origin.STRIPE,
        currency=currency,
        cents=Fraction(cents),
        has_paid=cents > 0,
    )


def report_of(*customers: CustomerDay) -> Report:
    """Return the report of customers on a day with a snapshot."""
    making = Making(DAY, CATALOGUE)
    for customer in customers:
        making.add(customer)
    return making.finish(QUIET, has_snapshot=True, since=None, earlier={})


@pytest.mark.parametrize(
    ("end", "open_usd"), [("2026-02-13T00:00:01", "2.50"), ("2026-02-13", "0")]
)
def test_overage_of_a_period_that_ended_with_the_day_is_not_open_any_more(
    end: str, open_usd: str
) -> None:
    """It is among what has ended: on the last day of every month it was told twice."""
    customer = make_customer(period_end_ms=at(end), overage_usd=Decimal("2.50"))

    assert report_of(customer).overage.open_usd == Decimal(open_usd)


@pytest.mark.parametrize(
    ("revenue", "mrr"),
    [
        (worth(14_900), Decimal("149.00")),
        (worth(14_900, currency="eur"), None),
        (attrs.evolve(worth(0), is_unknown=True), Decimal("0.00")),
        (worth(0, status="trialing"), "nobody"),
        (worth(0, status="none"), "nobody"),
    ],
)
def test_only_who_pays_is_at_risk_with_what_it_pays(revenue: Customer, mrr: object) -> None:
    """A trial, or a plan that was given away, loses no revenue when it is not used."""
    idle = make_customer(period_start_ms=at("2026-01-20"), revenue=revenue)

    assert [each.mrr_usd for each in report_of(idle).at_risk] == ([] if mrr == "nobody" else [mrr])


def test_an_upgrade_is_worth_the_next_price_less_what_is_paid_with_discounts() -> None:
    """Half off Starter: Pro would bring 149 less 24.50."""
    full = make_customer(
        tier=Tier.STARTER,
        limits=resolve(CATALOGUE, Tier.STARTER, NO_CONTRACT),
        used_ms=950 * MINUTE_MS,
        revenue=worth(2_450),
    )

    [candidate] = report_of(full).candidates
    assert (candidate.next_tier, candidate.extra_usd) == (Tier.PRO, Decimal("124.50"))
