from __future__ import annotations

import itertools

import attrs
import pytest

from meterd.core.plan import Tier
from meterd.core.subscription import (
    Interval,
    Standing,
    Status,
    Subscription,
    main_item,
    standing,
    tier_of,
)
from tests.subscriptions import (
    at,
    make_invoice,
    make_price,
    make_sold_catalogue,
    make_subscription,
    with_item,
)


CATALOGUE = make_sold_catalogue()


def stand(*subscriptions: Subscription) -> Standing:
    """Return what follows from subscriptions without invoices."""
    return standing(CATALOGUE, subscriptions, ())


@pytest.mark.parametrize(
    ("status", "tier", "trialing", "is_stopped", "is_over"),
    [
        (Status.INCOMPLETE, None, False, False, False),
        (Status.TRIALING, Tier.STARTER, True, False, False),
        (Status.ACTIVE, Tier.STARTER, False, False, False),
        (Status.PAST_DUE, Tier.STARTER, False, False, False),
        (Status.UNPAID, Tier.STARTER, False, True, False),
        (Status.PAUSED, Tier.STARTER, False, True, False),
        (Status.CANCELED, Tier.FREE, False, False, True),
        (Status.INCOMPLETE_EXPIRED, None, False, False, False),
        (Status.UNKNOWN, None, False, False, False),
    ],
)
def test_status_decides_what_an_organization_is_entitled_to(
    status: Status, tier: Tier | None, *, trialing: bool, is_stopped: bool, is_over: bool
) -> None:
    """The table of the reference: every status Stripe has, and one it may invent."""
    found = stand(make_subscription(status))

    assert (found.tier, found.trialing, found.is_stopped, found.is_over) == (
        tier,
        trialing,
        is_stopped,
        is_over,
    )


def test_end_of_one_subscription_does_not_downgrade_while_another_is_live() -> None:
    """`deleted` for A says nothing about B."""
    over = make_subscription(
        Status.CANCELED, subscription_id="sub_a", price=make_price("price_pro")
    )
    found = stand(over, make_subscription(subscription_id="sub_b"))

    assert (found.subscription_id, found.tier, found.is_over) == ("sub_b", Tier.STARTER, False)
    assert found.alerts == frozenset()


def test_two_live_subscriptions_give_the_better_plan_and_an_alert() -> None:
    """The customer pays twice: somebody should look, nobody should lose a plan."""
    starter = make_subscription(subscription_id="sub_a")
    pro = make_subscription(Status.PAST_DUE, subscription_id="sub_b", price=make_price("price_pro"))

    found = [stand(*order) for order in itertools.permutations((starter, pro))]

    assert found[0] == found[1]
    assert (found[0].subscription_id, found[0].tier) == ("sub_b", Tier.PRO)
    assert found[0].alerts == {"several_live_subscriptions:sub_a,sub_b"}


def test_usable_plan_is_better_than_a_suspended_higher_one() -> None:
    """An unpaid Pro must not stop an organization that pays for Starter."""
    unpaid = make_subscription(
        Status.UNPAID, subscription_id="sub_a", price=make_price("price_pro")
    )
    found = stand(unpaid, make_subscription(subscription_id="sub_b"))

    assert (found.tier, found.is_stopped) == (Tier.STARTER, False)


def test_price_is_known_by_the_catalogue_then_by_its_own_metadata() -> None:
    """A price of an account that sells other things too says which tier it is."""
    assert tier_of(CATALOGUE, make_price("price_pro", tier_hint="starter")) is Tier.PRO
    assert tier_of(CATALOGUE, make_price("price_x", tier_hint="pro")) is Tier.PRO
    assert tier_of(CATALOGUE, make_price("price_x", tier_hint="gold")) is None


def test_unknown_price_keeps_the_plan_and_the_cycle_and_is_an_alert() -> None:
    """Never Free because of something we do not know."""
    found = stand(make_subscription(price=make_price("price_x")))

    assert (found.tier, found.is_over) == (None, False)
    assert found.cycle is not None
    assert found.alerts == {"unknown_price:price_x"}


@pytest.mark.parametrize("interval", [Interval.DAY, Interval.WEEK, Interval.UNKNOWN])
def test_price_without_months_is_refused(interval: Interval) -> None:
    """Weekly allowances are not what the plans say: the previous plan and periods stay."""
    found = stand(make_subscription(price=make_price(interval=interval)))

    assert (found.tier, found.cycle) == (None, None)
    assert found.alerts == {"unsupported_interval:price_starter"}


def test_other_currencies_and_quantities_are_alerts_and_change_nothing_else() -> None:
    """A quantity multiplies what is paid, not the plan; a charge in euros needs a person."""
    plain = stand(make_subscription())
    found = stand(make_subscription(quantity=3, currency="eur"))

    assert found.alerts == {"quantity_not_one:3", "other_currency:eur"}
    assert attrs.evolve(found, alerts=frozenset()) == plain


def test_item_that_sells_the_plan_is_the_one_with_a_tier() -> None:
    """Add-ons may stand before it."""
    plan = make_subscription()
    add_on = with_item(plan, id="si_0", price=make_price("price_support")).items[0]
    both = attrs.evolve(plan, items=(add_on, *plan.items))

    assert main_item(CATALOGUE, both) == plan.items[0]


def test_subscription_without_items_keeps_everything() -> None:
    """Stripe allows it for a moment; an empty list must not raise."""
    found = stand(make_subscription(items=()))

    assert (found.tier, found.cycle) == (None, None)
    assert found.alerts == {"unknown_price:sub_1"}


def test_grace_clock_runs_from_the_first_failure_of_the_oldest_unpaid_cycle_invoice() -> None:
    """Retries, later invoices, prorations and other subscriptions do not move it."""
    invoices = [
        make_invoice(id="in_2", failed="2026-03-12T11:00:00"),
        make_invoice(id="in_1", failed="2026-02-12T11:00:00", attempt_count=4),
        make_invoice(id="in_0", status="paid", failed="2026-01-12T11:00:00"),
        make_invoice(id="in_3", failed="2026-01-15T00:00:00", billing_reason="subscription_update"),
        make_invoice(id="in_4", failed="2026-01-16T00:00:00", subscription_id="sub_2"),
    ]

    found = standing(CATALOGUE, [make_subscription(Status.PAST_DUE)], invoices)

    assert found.unpaid_since_ms == at("2026-02-12T11:00:00")


@pytest.mark.parametrize(
    ("invoice", "since"),
    [
        (make_invoice("draft", attempt_count=1), None),
        (make_invoice("open"), None),
        (make_invoice("void", attempt_count=2), None),
        (make_invoice("uncollectible", attempt_count=2), None),
        (make_invoice("open", attempt_count=1), "2026-02-12T10:00:00"),
        (
            make_invoice("open", attempt_count=1, finalized_at_ms=at("2026-02-12T11:00:00")),
            "2026-02-12T11:00:00",
        ),
    ],
)
def test_invoice_is_unpaid_once_a_payment_has_failed_until_it_is_settled(
    invoice: object, since: str | None
) -> None:
    """What waits for its first attempt is not late; what was forgiven is not owed."""
    found = standing(CATALOGUE, [make_subscription()], [invoice])  # type: ignore[list-item]

    assert found.unpaid_since_ms == (None if since is None else at(since))


def test_grace_clock_of_an_invoice_that_was_sent_runs_from_its_due_date() -> None:
    """No payment of it ever fails: Stripe says `past_due` when its date has passed."""
    due = make_invoice(due_at_ms=at("2026-03-14"))
    later = make_invoice(id="in_2", due_at_ms=at("2026-04-14"))
    paid = make_invoice("paid", due_at_ms=at("2026-02-14"))

    waiting = standing(CATALOGUE, [make_subscription()], [due, later, paid])
    late = standing(CATALOGUE, [make_subscription(Status.PAST_DUE)], [due, later, paid])

    assert waiting.unpaid_since_ms is None
    assert late.unpaid_since_ms == at("2026-03-14")
