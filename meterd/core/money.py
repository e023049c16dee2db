"""Money: `Decimal` US dollars in, and the only place that rounds.

Rows keep six decimals exactly (`numeric(10,6)`): a quantity of whole minutes times a rate of at
most six decimals never needs rounding. Rounding to cents happens once per total, half-up.
"""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Context, Decimal, localcontext


CENT = Decimal("0.01")
MICRO = Decimal("0.000001")
ZERO = Decimal(0)

RATE_USD_MAX = Decimal(1)
"""Rates stay under one dollar a unit, so that a ledger row fits `numeric(10,6)`."""

_EXACT = Context(prec=60)
"""Enough digits that no sum or product of stored amounts is ever rounded."""


def cost_usd(quantity: int, rate_usd: Decimal) -> Decimal:
    """Return quantity x rate with exactly six decimals; asserts that nothing is rounded away."""
    with localcontext(_EXACT):
        exact = rate_usd * quantity + ZERO  # + 0: a credit of nothing is 0, not -0
        stored = exact.quantize(MICRO)
        assert stored == exact, (quantity, rate_usd)
        return stored


def total_usd(amounts: tuple[Decimal, ...]) -> Decimal:
    """Return the exact sum of amounts."""
    with localcontext(_EXACT):
        return sum(amounts, ZERO)


def round_to_cents(amount_usd: Decimal) -> Decimal:
    """Return the amount rounded half-up (away from zero) to cents: call once per total."""
    return amount_usd.quantize(CENT, ROUND_HALF_UP)


def amount_cents(amount_usd: Decimal) -> int:
    """Return the amount in whole cents, rounded half-up once."""
    return int(round_to_cents(amount_usd).scaleb(2))


def is_rate(rate_usd: Decimal) -> bool:
    """Tell whether a rate can be stored: finite, 0 <= rate < $1, at most six decimals."""
    if not rate_usd.is_finite() or not ZERO <= rate_usd < RATE_USD_MAX:
        return False
    with localcontext(_EXACT):
        return rate_usd == rate_usd.quantize(MICRO)
