"""What a daily report is made from, and what it says: values only.

Every amount is exact; minutes are whole agent-minutes. A report holds nothing that depends on when
it is made, so the same stored inputs always give the same report.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

import attrs

from meterd.core.forecast import Burn, burn_window_ms
from meterd.core.outlook import Allowance
from meterd.core.plan import Limits, Tier
from meterd.core.revenue import Customer, Movement, dollars, whole_cents
from meterd.core.subscription import USD
from meterd.core.units import DAY_MS, MINUTE_MS


HISTORY_DAYS = 28
"""Days of use that are looked at for trends."""


@attrs.frozen(kw_only=True)
class CustomerDay:
    """One organization at the end of a UTC day, as stored."""

    organization_id: str
    name: str
    tier: Tier
    limits: Limits
    trialing: bool
    period_label: str
    period_start_ms: int
    period_end_ms: int
    used_ms: int
    """Recorded in the period up to the end of the day."""
    overage_usd: Decimal
    """Of the period up to the end of the day; exact."""
    before: Allowance | None
    """The period before, whole; `None`: this is the first."""
    daily_ms: tuple[int, ...]
    """Agent time of the last HISTORY_DAYS days, the day itself last."""
    tier_before: Tier | None = None
    """The plan before the day, if it was another one."""
    changed_at_ms: int | None = None
    """When the plan changed, if it did on this day."""
    is_held: bool = False
    held_by: str | None = None
    """`operator` or `payment`."""
    past_due_since_ms: int | None = None
    revenue: Customer | None = None
    """From the day's snapshot; `None`: there is none."""

    @property
    def pays(self) -> bool:
        """Tell whether it brings something; without a snapshot, whether its plan has a price."""
        if self.revenue is None:
            return self.limits.base_price_usd > 0 and not self.trialing
        return self.revenue.cents > 0 or self.revenue.is_unknown

    @property
    def mrr_usd(self) -> Decimal | None:
        """Return what it brings a month; None: it is not in dollars, or was not kept."""
        if self.revenue is None or self.revenue.currency != USD:
            return None
        return dollars(whole_cents(self.revenue.cents))

    def allowance(self, end_ms: int) -> Allowance:
        """Return what was used of what is included, up to an instant."""
        length_ms = self.period_end_ms - self.period_start_ms
        return Allowance(
            used_ms=self.used_ms,
            included_ms=self.limits.included_minutes * MINUTE_MS,
            elapsed_ms=max(0, min(length_ms, end_ms - self.period_start_ms)),
            length_ms=length_ms,
        )

    def burn(self, end_ms: int) -> Burn:
        """Return the mean burn of the last seven days, or since the period began."""
        window_ms = burn_window_ms(self.period_start_ms, end_ms)
        days = -(-window_ms // DAY_MS)
        used_ms = min(self.used_ms, sum(self.daily_ms[-days:])) if days else 0
        return Burn(used_ms=used_ms, window_ms=window_ms)


@attrs.frozen(kw_only=True)
class CustomerStanding:
    """An organization's revenue with its holds, as a snapshot keeps them."""

    customer: Customer
    operator_hold: bool
    payment_hold: bool
    past_due_since_ms: int | None


@attrs.frozen(kw_only=True)
class StoredReport:
    """A report as it was made."""

    day: str
    content_json: str
    markdown: str


@attrs.frozen(kw_only=True)
class DayActivity:
    """What all organizations together did on a day."""

    agent_minutes: int = 0
    agents: int = 0
    api_calls: int = 0
    tasks_succeeded: int = 0
    tasks_failed: int = 0
    tasks_cancelled: int = 0
    tasks_lost: int = 0
    overage_usd: Decimal = Decimal(0)


@attrs.frozen(kw_only=True)
class BilledOverage:
    """Overage of periods that ended in a calendar month, up to the day."""

    usd: Decimal
    periods: int
    charges: Mapping[str, Decimal] = attrs.Factory(dict)
    """What became of it: dollars by the state of their charges."""


@attrs.frozen(kw_only=True)
class Reconciled:
    """How the last reconciliation of the books ended."""

    finished_at: str
    outcome: str
    differences: int
    organizations: int


@attrs.frozen(kw_only=True)
class FindingLine:
    """Findings of one kind about one organization on the day."""

    kind: str
    organization_id: str | None
    name: str | None
    count: int


@attrs.frozen(kw_only=True)
class Leaving:
    """A customer that has cancelled and still counts: its subscription ends on a day to come."""

    organization_id: str
    name: str
    ends_on: str
    mrr_usd: Decimal
    """What is lost then; zero when it is not in dollars."""


@attrs.frozen(kw_only=True)
class DayFacts:
    """Everything of a day that is not of one customer."""

    activity: DayActivity
    billed: BilledOverage
    reconciled: Reconciled | None
    findings: tuple[FindingLine, ...]
    set_aside: Mapping[str, int]
    """Counts of what waits for an operator: dead letters, dead events, parked charges."""
    leaving: tuple[Leaving, ...] = ()
    """As Stripe says when the report is made."""
    daily_minutes: tuple[int, ...]
    """Agent-minutes of all organizations on the last HISTORY_DAYS days, the day itself last."""
    daily_mrr_cents: tuple[int, ...]
    """Recurring revenue of the last days that have a snapshot, oldest first."""


@attrs.frozen(kw_only=True)
class Moved:
    """What moved recurring revenue, for one reason."""

    usd: Decimal
    customers: int


@attrs.frozen(kw_only=True)
class Mover:
    """A customer whose recurring revenue changed."""

    organization_id: str
    name: str
    movement: Movement
    before_usd: Decimal
    after_usd: Decimal

    @property
    def change_usd(self) -> Decimal:
        """Return what it adds a month."""
        return self.after_usd - self.before_usd


@attrs.frozen(kw_only=True)
class RevenuePart:
    """Recurring revenue and what moved it in a week."""

    mrr_usd: Decimal
    contract_usd: Decimal
    """Of it: enterprise contracts without a subscription."""
    other_currencies: Mapping[str, Decimal]
    """Monthly amounts that are not dollars; not part of the MRR."""
    unknown: int
    """Customers with a price or a discount whose value cannot be told."""
    since: str | None
    """Day of the snapshot compared with; `None`: there is no earlier one."""
    before_usd: Decimal | None
    movements: Mapping[Movement, Moved]
    """The dollars add up to the change."""
    movers: tuple[Mover, ...]
    """The customers behind the movements, the largest change first."""


@attrs.frozen(kw_only=True)
class TierLine:
    """The customers of one plan."""

    tier: Tier
    organizations: int = 0
    active: int = 0
    """On the plan and not suspended."""
    paying: int = 0
    """They bring something every month, in whatever currency."""
    by_stripe: int = 0
    trialing: int = 0
    past_due: int = 0
    suspended: int = 0
    mrr_usd: Decimal = Decimal(0)


@attrs.frozen(kw_only=True)
class UsageLine:
    """Agent-minutes of the customers of one plan in their current periods."""

    tier: Tier
    customers: int
    mean: Decimal
    """Rounded half-up to a tenth."""
    median: Decimal
    p90: int
    """Nearest rank."""
    top: int
    day_minutes: int
    """What they used on the day itself, together."""
    daily_minutes: tuple[int, ...]


@attrs.frozen(kw_only=True)
class OveragePart:
    """Overage revenue: not recurring, and not part of the MRR."""

    open_usd: Decimal
    open_customers: int
    billed: BilledOverage
    month: str


@attrs.frozen(kw_only=True)
class AtRisk:
    """A paying customer that hardly uses what it pays for."""

    organization_id: str
    name: str
    tier: Tier
    used_minutes: int
    pro_rata_percent: int
    """Of what the plan includes for the time that has passed."""
    days: int
    """In a row; HISTORY_DAYS means as many or more."""
    mrr_usd: Decimal | None
    """`None`: it is not in dollars, or was not kept."""
    last_week_minutes: int
    week_before_minutes: int
    daily_minutes: tuple[int, ...]


@attrs.frozen(kw_only=True)
class Candidate:
    """A customer that outgrows its plan."""

    organization_id: str
    name: str
    tier: Tier
    percent: int
    used_minutes: int
    included_minutes: int
    reaches: str | None
    """Day on which it is at 80 %; `None`: it is already."""
    full_on: str | None
    """Day on which everything included is used; `None`: not in this period, or already."""
    is_full: bool
    next_tier: Tier
    next_price_usd: Decimal | None
    """`None`: by contract."""
    extra_usd: Decimal | None
    """More a month than what it pays now."""
    overage_usd: Decimal
    """What its overage will be if it stays."""


@attrs.frozen(kw_only=True)
class LateUpgrade:
    """A change to a larger plan with under a quarter of the period left."""

    organization_id: str
    name: str
    before: Tier
    after: Tier
    left_percent: int


@attrs.frozen(kw_only=True)
class Troubled:
    """A customer that is past due or suspended."""

    organization_id: str
    name: str
    tier: Tier
    why: str
    since: str | None
    mrr_usd: Decimal


@attrs.frozen(kw_only=True)
class Report:
    """The report of one UTC day."""

    day: str
    is_whole: bool
    """False: the day is not over, and the figures are those so far."""
    customers: int
    revenue: RevenuePart | None
    """`None`: there is no snapshot of that day, and none can be made afterwards."""
    tiers: tuple[TierLine, ...]
    usage: tuple[UsageLine, ...]
    overage: OveragePart
    at_risk: tuple[AtRisk, ...]
    candidates: tuple[Candidate, ...]
    late_upgrades: tuple[LateUpgrade, ...]
    troubled: tuple[Troubled, ...]
    facts: DayFacts
