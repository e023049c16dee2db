"""Plans, contracts and the terms an organization is metered under.

A plan comes from the catalogue file, a contract overlays it for one organization, and the result
is a `Limits` value. `Terms` are limits in force from an instant on: append-only, numbered, and
named by every ledger row, so that an edited catalogue or contract never re-prices the past.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from decimal import Decimal

import attrs

from meterd.core.money import ZERO, is_rate
from meterd.core.units import MINUTE_MS


class Tier(enum.Enum):
    """The plans of the product, cheapest first."""

    FREE = "free"
    STARTER = "starter"
    PRO = "pro"
    ENTERPRISE = "enterprise"


class Resource(enum.Enum):
    """What can be metered; only agent minutes are limited."""

    AGENT_MINUTE = "agent_minute"
    API_CALL = "api_call"
    WEBSOCKET_MINUTE = "websocket_minute"


class Unset(enum.Enum):
    """Marks a contract field that leaves the plan's value alone (`None` means unlimited)."""

    UNSET = "unset"


UNSET = Unset.UNSET

AGENT_MINUTES_MAX = 100_000_000
"""Included minutes a plan or contract may grant; keeps every counter far inside bigint."""

AGENTS_MAX = 1_000_000
"""Agents at once a plan or contract may name; unlimited is `None`."""

GRACE_PERCENT_MAX = 1_000
"""Grace a plan or contract may grant, in percent of the included minutes."""

BASE_PRICE_USD_MAX = Decimal(10_000_000)
"""Monthly price a plan or contract may name."""

OVERAGE_CAP_USD_MAX = Decimal(10_000_000)
"""Overage a customer may allow per period."""


@attrs.frozen(kw_only=True)
class Plan:
    """One entry of the catalogue file."""

    tier: Tier
    price_usd: Decimal
    agents: int | None
    agent_minutes: int
    grace_percent: int
    overage_usd_per_minute: Decimal
    unlimited: bool
    """Never stops; every minute past the included ones is billed."""
    grace_billed: bool
    """False: minutes past the allowance are given away (`free_grace`)."""
    new_tasks_in_grace: bool
    stripe_price_ids: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class Catalogue:
    """The plans on sale and the unit prices of metered resources."""

    plans: Mapping[Tier, Plan]
    api_call_usd: Decimal = ZERO
    websocket_minute_usd: Decimal = ZERO

    def __attrs_post_init__(self) -> None:
        """Every tier has a plan: there is no organization without limits."""
        assert set(self.plans) == set(Tier), sorted(tier.value for tier in self.plans)


@attrs.frozen(kw_only=True)
class Contract:
    """What was agreed with one organization; every field overlays whatever plan it has."""

    agents: int | Unset | None = UNSET
    agent_minutes: int | Unset = UNSET
    grace_percent: int | Unset = UNSET
    overage_usd_per_minute: Decimal | Unset = UNSET
    base_price_usd: Decimal | Unset = UNSET
    new_tasks_in_grace: bool | Unset = UNSET


NO_CONTRACT = Contract()


@attrs.frozen(kw_only=True)
class Limits:
    """Everything the quota and the prices depend on, resolved from plan and contract."""

    agents: int | None
    """Distinct agents at once; `None`: unlimited."""
    included_minutes: int
    hard_limit_ms: int | None
    """Projected use at which work stops, `included x (100 + grace %)`; `None`: never."""
    grace_billed: bool
    overage_usd_per_minute: Decimal
    base_price_usd: Decimal
    new_tasks_in_grace: bool
    api_call_usd: Decimal = ZERO
    websocket_minute_usd: Decimal = ZERO
    overage_cap_usd: Decimal | None = None
    """The customer's own bound on a period's overage; `None`: none, zero: no overage at all."""
    included_ms: int = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        """Derive the included time once: it is compared on every heartbeat."""
        object.__setattr__(self, "included_ms", self.included_minutes * MINUTE_MS)
        assert self.hard_limit_ms is None or self.hard_limit_ms >= self.included_ms, self
        assert is_rate(self.overage_usd_per_minute), self.overage_usd_per_minute

    @property
    def unlimited(self) -> bool:
        """Tell whether work never stops."""
        return self.hard_limit_ms is None


@attrs.frozen(kw_only=True)
class Terms:
    """Limits in force from `effective_at_ms` on; `seq` counts from 1 within the organization."""

    seq: int
    effective_at_ms: int
    plan: Tier
    contract: Contract
    trialing: bool
    limits: Limits
    reason: str
    """Why they came into force, for the operator who reads the history."""


def contract_fields(contract: Contract) -> dict[str, object]:
    """Return the fields a contract sets, as JSON values: money as text, `None` for unlimited."""
    return {
        name: str(value) if isinstance(value, Decimal) else value
        for name, value in attrs.asdict(contract).items()
        if value is not UNSET
    }


def resolve(
    catalogue: Catalogue,
    tier: Tier,
    contract: Contract,
    *,
    trialing: bool = False,
    overage_cap_usd: Decimal | None = None,
) -> Limits:
    """Return the limits of a plan under a contract and the customer's own cap.

    While trialing, grace is free like on Free.
    """
    plan = catalogue.plans[tier]
    minutes = plan.agent_minutes if contract.agent_minutes is UNSET else contract.agent_minutes
    grace = plan.grace_percent if contract.grace_percent is UNSET else contract.grace_percent
    rate = contract.overage_usd_per_minute
    price = contract.base_price_usd
    in_grace = contract.new_tasks_in_grace
    never_stops = plan.unlimited and not trialing
    return Limits(
        agents=plan.agents if contract.agents is UNSET else contract.agents,
        included_minutes=minutes,
        hard_limit_ms=None if never_stops else minutes * MINUTE_MS * (100 + grace) // 100,
        grace_billed=plan.grace_billed and not trialing,
        overage_usd_per_minute=plan.overage_usd_per_minute if rate is UNSET else rate,
        base_price_usd=plan.price_usd if price is UNSET else price,
        new_tasks_in_grace=plan.new_tasks_in_grace if in_grace is UNSET else in_grace,
        api_call_usd=catalogue.api_call_usd,
        websocket_minute_usd=catalogue.websocket_minute_usd,
        overage_cap_usd=overage_cap_usd,
    )
