"""Recurring revenue summed by plan: the same sums in the daily report and in what is asked live."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction

import attrs

from meterd.core.plan import Tier
from meterd.core.revenue import (
    NOTHING,
    Customer,
    Origin,
    apportioned,
    dollars,
    in_currency,
    whole_cents,
)
from meterd.core.subscription import USD
from meterd.reporting.figures import TierLine


class RevenueSums:
    """What customers bring; add every one of them."""

    def __init__(self) -> None:
        self._lines = {tier: TierLine(tier=tier) for tier in Tier}
        self._cents: dict[Tier, Fraction] = dict.fromkeys(Tier, NOTHING)
        self._contract_cents = NOTHING
        self._others: dict[str, Fraction] = defaultdict(Fraction)
        self.unknown = 0
        """Customers with a part whose value cannot be told."""

    def add(
        self,
        tier: Tier,
        revenue: Customer | None,
        *,
        is_held: bool,
        is_late: bool,
        is_trialing: bool = False,
    ) -> None:
        """Count a customer; `revenue` is None when it was not kept."""
        line = self._lines[tier]
        status = "none" if revenue is None else revenue.status
        is_by_stripe = revenue is not None and revenue.origin is Origin.STRIPE
        self._lines[tier] = attrs.evolve(
            line,
            organizations=line.organizations + 1,
            active=line.active + (not is_held),
            paying=line.paying + (revenue is not None and revenue.cents > 0),
            by_stripe=line.by_stripe + (is_by_stripe and not is_held),
            trialing=line.trialing + (is_trialing or status == "trialing"),
            past_due=line.past_due + (is_late or status == "past_due"),
            suspended=line.suspended + is_held,
        )
        if revenue is None:
            return
        self.unknown += revenue.is_unknown
        if revenue.currency != USD:
            self._others[revenue.currency] += revenue.cents
            return
        self._cents[tier] += revenue.cents
        if revenue.origin is Origin.CONTRACT:
            self._contract_cents += revenue.cents

    @property
    def total_cents(self) -> int:
        """Return the recurring revenue, rounded once."""
        return whole_cents(sum(self._cents.values(), NOTHING))

    @property
    def mrr_usd(self) -> Decimal:
        """Return the recurring revenue in dollars."""
        return dollars(self.total_cents)

    @property
    def contract_usd(self) -> Decimal:
        """Return what of it are enterprise contracts without a subscription."""
        return dollars(whole_cents(self._contract_cents))

    @property
    def other_currencies(self) -> Mapping[str, Decimal]:
        """Return what is not in dollars, and so not in the recurring revenue."""
        return {name: in_currency(self._others[name], name) for name in sorted(self._others)}

    def tiers(self) -> tuple[TierLine, ...]:
        """Return the plans; their dollars add up to the recurring revenue to the cent."""
        shown = apportioned(self._cents.values(), self.total_cents)
        return tuple(
            attrs.evolve(line, mrr_usd=dollars(cents))
            for line, cents in zip(self._lines.values(), shown, strict=True)
        )
