from __future__ import annotations

import random
from decimal import Decimal
from fractions import Fraction

import pytest

from meterd.core.money import (
    RATE_USD_MAX,
    ZERO,
    amount_cents,
    cost_usd,
    is_rate,
    round_to_cents,
    total_usd,
)


@pytest.mark.parametrize(
    ("amount", "cents"),
    [("0.004999", 0), ("0.005", 1), ("0.014999", 1), ("0.015", 2), ("-0.005", -1), ("-0.004", 0)],
)
def test_half_a_cent_is_rounded_away_from_zero(amount: str, cents: int) -> None:
    """Half-up, and the same for credits."""
    assert amount_cents(Decimal(amount)) == cents
    assert round_to_cents(Decimal(amount)) * 100 == cents


def test_costs_have_six_decimals_and_no_negative_zero() -> None:
    """What is stored is what is compared."""
    assert str(cost_usd(3, Decimal("0.05"))) == "0.150000"
    assert str(cost_usd(-3, Decimal("0.05"))) == "-0.150000"
    assert str(cost_usd(0, Decimal("-0.0"))) == "0.000000"
    assert str(cost_usd(-5, ZERO)) == "0.000000"


def test_a_cost_that_would_be_rounded_is_a_bug() -> None:
    """A seventh decimal never reaches the ledger."""
    with pytest.raises(AssertionError):
        cost_usd(1, Decimal("0.0000001"))


def test_totals_keep_every_digit() -> None:
    """Python's default of 28 digits would round this sum."""
    parts = (Decimal("1e30"), Decimal("0.000001"))

    assert str(total_usd(parts)) == "1000000000000000000000000000000.000001"
    assert total_usd(()) == 0
    assert cost_usd(10**30, Decimal("0.000001")) == 10**24


def test_ten_thousand_invoices_add_up_to_the_last_decimal() -> None:
    """Whatever the order, and against fractions that know no rounding."""
    chance = random.Random(10_000)
    price_usd = Decimal("0.000007")
    costs = tuple(cost_usd(chance.randint(-9, 10**6), price_usd) for _ in range(10_000))
    exact = sum(map(Fraction, costs))

    assert Fraction(total_usd(costs)) == Fraction(total_usd(costs[::-1])) == exact
    assert amount_cents(total_usd(costs)) == int(exact * 100 + Fraction(1, 2))


@pytest.mark.parametrize(
    ("rate", "fits"),
    [
        ("0", True), ("0.999999", True), ("1", False), ("-0.000001", False), ("0.0000001", False),
        ("NaN", False), ("Infinity", False), ("-Infinity", False), ("0.0500000000", True),
    ],
)  # fmt: skip
def test_rates_are_finite_small_and_of_six_decimals(rate: str, fits: bool) -> None:
    """Others would not fit their column, or poison every sum."""
    assert is_rate(Decimal(rate)) is fits
    assert RATE_USD_MAX == 1
