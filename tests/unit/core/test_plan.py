from __future__ import annotations

from decimal import Decimal

import attrs
import pytest

from meterd.core.plan import (
    NO_CONTRACT,
    Catalogue,
    Contract,
    Limits,
    Tier,
    contract_fields,
    resolve,
)
from meterd.core.units import MINUTE_MS
from tests.organizations import CATALOGUE, make_plan


@pytest.mark.parametrize(
    ("tier", "agents", "included", "hard_minutes", "is_billed"),
    [
        (Tier.FREE, 1, 100, 110, False),
        (Tier.STARTER, 5, 1_000, 1_100, True),
        (Tier.PRO, 20, 10_000, 11_000, True),
        (Tier.ENTERPRISE, None, 0, None, True),
    ],
)
def test_plans_become_the_limits_of_the_price_list(
    tier: Tier, agents: int | None, included: int, hard_minutes: int | None, is_billed: bool
) -> None:
    """The table of the contract, in milliseconds."""
    limits = resolve(CATALOGUE, tier, NO_CONTRACT)

    assert (limits.agents, limits.included_minutes) == (agents, included)
    assert limits.included_ms == included * MINUTE_MS
    assert limits.hard_limit_ms == (None if hard_minutes is None else hard_minutes * MINUTE_MS)
    assert limits.unlimited is (hard_minutes is None)
    assert limits.grace_billed is is_billed


def test_a_contract_overlays_every_number_of_its_plan() -> None:
    """None means unlimited agents, which is something else than not saying anything."""
    contract = Contract(
        agents=None,
        agent_minutes=105,
        grace_percent=7,
        overage_usd_per_minute=Decimal("0.07"),
        base_price_usd=Decimal(9),
        new_tasks_in_grace=False,
    )
    limits = resolve(CATALOGUE, Tier.STARTER, contract)

    assert limits.agents is None
    assert (limits.included_minutes, limits.hard_limit_ms) == (105, 105 * MINUTE_MS * 107 // 100)
    assert (limits.overage_usd_per_minute, limits.base_price_usd) == (Decimal("0.07"), Decimal(9))
    assert limits.new_tasks_in_grace is False
    zero = Contract(agents=0, agent_minutes=0, grace_percent=0)
    nothing = resolve(CATALOGUE, Tier.STARTER, zero)
    assert (nothing.agents, nothing.included_minutes, nothing.hard_limit_ms) == (0, 0, 0)


def test_limits_carry_the_price_list_and_the_customers_cap() -> None:
    """Everything that a price of a row or a stop is computed from comes from here."""
    catalogue = attrs.evolve(
        CATALOGUE, api_call_usd=Decimal("0.002"), websocket_minute_usd=Decimal("0.01")
    )
    cap_usd = Decimal(25)

    assert resolve(catalogue, Tier.STARTER, NO_CONTRACT, overage_cap_usd=cap_usd) == Limits(
        agents=5,
        included_minutes=1_000,
        hard_limit_ms=1_100 * MINUTE_MS,
        grace_billed=True,
        overage_usd_per_minute=Decimal("0.05"),
        base_price_usd=Decimal(49),
        new_tasks_in_grace=True,
        api_call_usd=Decimal("0.002"),
        websocket_minute_usd=Decimal("0.01"),
        overage_cap_usd=cap_usd,
    )


def test_while_trialing_a_plan_stops_like_free() -> None:
    """Even one that never stops, and grace is given away."""
    limits = resolve(CATALOGUE, Tier.ENTERPRISE, Contract(agent_minutes=10), trialing=True)

    assert limits.hard_limit_ms == 11 * MINUTE_MS
    assert limits.grace_billed is False


def test_a_contract_is_described_by_what_it_sets() -> None:
    """Money is text, unlimited is null."""
    contract = Contract(agents=None, base_price_usd=Decimal("9.50"))

    assert contract_fields(contract) == {"agents": None, "base_price_usd": "9.50"}
    assert contract_fields(NO_CONTRACT) == {}


def test_a_catalogue_names_every_tier() -> None:
    """There is no organization without limits."""
    with pytest.raises(AssertionError):
        Catalogue(plans={Tier.FREE: make_plan(Tier.FREE)})


def test_limits_that_contradict_each_other_are_refused() -> None:
    """A hard limit lies at or past the allowance, and a rate must fit its column."""
    limits = resolve(CATALOGUE, Tier.STARTER, NO_CONTRACT)

    assert attrs.evolve(limits, hard_limit_ms=limits.included_ms).unlimited is False
    with pytest.raises(AssertionError):
        attrs.evolve(limits, hard_limit_ms=limits.included_ms - 1)
    with pytest.raises(AssertionError):
        attrs.evolve(limits, overage_usd_per_minute=Decimal(1))
