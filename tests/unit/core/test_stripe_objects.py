from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, strategies as st

from meterd.core.priced import read_priced
from meterd.core.revenue import subscription_cents
from meterd.core.stripe_objects import read_event, read_invoice, read_subscription
from meterd.core.subscription import Interval, Status


SUBSCRIPTION: dict[str, Any] = {
    "id": "sub_1",
    "object": "subscription",
    "customer": "cus_1",
    "status": "active",
    "created": 100,
    "billing_cycle_anchor": 200,
    "currency": "usd",
    "items": {
        "data": [
            {
                "id": "si_1",
                "quantity": 2,
                "current_period_start": 300,
                "current_period_end": 400,
                "price": {
                    "id": "price_1",
                    "currency": "usd",
                    "unit_amount_decimal": "4900.5",
                    "recurring": {"interval": "year", "interval_count": 2},
                    "metadata": {"meterd_tier": "pro"},
                },
            }
        ]
    },
    "metadata": {"organization_id": "org_1"},
    "livemode": True,
}


def test_discounts_are_known_by_their_ids_expanded_or_not() -> None:
    """Reconciliation lists them by id only; one that came or went makes a difference."""
    expanded = {**SUBSCRIPTION, "discounts": [{"id": "di_1", "object": "discount"}]}
    by_id, none = {**SUBSCRIPTION, "discounts": ["di_1"]}, {**SUBSCRIPTION, "discounts": []}
    [item] = SUBSCRIPTION["items"]["data"]
    of_item = {**none, "items": {"data": [{**item, "discounts": ["di_2"]}]}}

    assert read_subscription(expanded) == read_subscription(by_id)
    assert read_subscription(none) not in {read_subscription(by_id), read_subscription(of_item)}


def test_subscription_is_read_in_its_present_shape() -> None:
    """Periods on the items, decimals as text."""
    found = read_subscription(SUBSCRIPTION)

    assert found is not None
    [item] = found.items
    assert (found.status, found.anchor_ms, found.organization_id, found.livemode) == (
        Status.ACTIVE,
        200_000,
        "org_1",
        True,
    )
    assert (item.start_ms, item.end_ms, item.quantity) == (300_000, 400_000, 2)
    assert (item.price.months, item.price.tier_hint) == (24, "pro")
    assert item.price.unit_amount_cents == Decimal("4900.5")


def test_subscription_is_read_in_the_shape_it_had_before_2025() -> None:
    """An endpoint keeps its API version: periods on the subscription, a plan on the item."""
    plan = {"id": "plan_1", "interval": "month", "interval_count": 3, "amount": 900}
    old = {
        **SUBSCRIPTION,
        "current_period_start": 500,
        "current_period_end": 600,
        "customer": {"id": "cus_1", "object": "customer"},
        "items": {"data": [{"id": "si_1", "plan": plan}]},
    }
    found = read_subscription(old)

    assert found is not None
    [item] = found.items
    assert (found.customer_id, item.start_ms, item.end_ms) == ("cus_1", 500_000, 600_000)
    assert (item.price.id, item.price.months, item.quantity) == ("plan_1", 3, 1)


@pytest.mark.parametrize(
    "where",
    [
        {"parent": {"subscription_details": {"subscription": "sub_1"}}},
        {"parent": {"subscription_details": {"subscription": {"id": "sub_1"}}}},
        {"subscription": "sub_1", "subscription_details": {"metadata": {}}},
    ],
)
def test_invoice_names_its_subscription_where_it_is_or_where_it_was(where: dict[str, Any]) -> None:
    """`invoice.subscription` moved in 2025-03-31."""
    found = read_invoice(
        {"id": "in_1", "object": "invoice", "customer": "cus_1", "status": "open", **where}
    )

    assert found is not None
    assert found.subscription_id == "sub_1"


def test_values_that_stripe_may_invent_are_unknown_not_errors() -> None:
    """Enums are open: a new status must not stop everybody's billing."""
    price = {"id": "p", "recurring": {"interval": "fortnight"}}
    strange = {**SUBSCRIPTION, "status": "zen", "items": {"data": [{"id": "s", "price": price}]}}
    found = read_subscription(strange)

    assert found is not None
    assert found.status is Status.UNKNOWN
    assert found.items[0].price.interval is Interval.UNKNOWN
    assert read_subscription({**SUBSCRIPTION, "status": "unknown"}) is not None


@pytest.mark.parametrize(
    ("kind", "found", "expected"),
    [
        ("customer.subscription.updated", SUBSCRIPTION, ("sub_1", "cus_1", None)),
        (
            "invoice.paid",
            {"id": "in_1", "object": "invoice", "customer": "cus_1", "subscription": "sub_1"},
            ("sub_1", "cus_1", "in_1"),
        ),
        (
            "checkout.session.completed",
            {"id": "cs_1", "object": "checkout.session", "subscription": "sub_1"},
            ("sub_1", None, None),
        ),
        ("customer.created", {"id": "cus_1", "object": "customer"}, (None, "cus_1", None)),
        ("x", {"id": "evil\0", "object": "subscription"}, (None, None, None)),
    ],
)
def test_event_says_what_it_is_about(
    kind: str, found: dict[str, Any], expected: tuple[str | None, ...]
) -> None:
    """Ids are plain ASCII or absent: they become columns and addresses."""
    body = {"id": "evt_1", "object": "event", "type": kind, "data": {"object": found}}
    event = read_event(json.dumps(body))

    assert event is not None
    assert (event.subscription_id, event.customer_id, event.invoice_id) == expected
    assert event.object == found


@pytest.mark.parametrize(
    "body",
    [
        "[]",
        "7",
        "{}",
        '{"object":"event","id":"evt_1"}',
        '{"object":"event","id":7,"type":"x"}',
        '{"object":"event","id":"evt_\\u0000","type":"x"}',
        '{"object":"v2.core.event","id":"evt_1","type":"x"}',
    ],
)
def test_body_that_is_no_event_is_none(body: str) -> None:
    """A valid signature on something else is still not an event."""
    assert read_event(body) is None


@pytest.mark.parametrize("body", ["", "{", '{"id": NaN}', "\ufeff{}"])
def test_body_that_is_not_json_is_an_error(body: str) -> None:
    """NaN is Python's JSON, not PostgreSQL's."""
    with pytest.raises(ValueError):  # noqa: PT011  # of whatever wording
        read_event(body)


_text = st.text("id1.e-\0é", max_size=5)
_anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | _text
    | st.sampled_from(["NaN", "Infinity", "1e999999", "-1e-999999", "1_000", "٣"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_text, inner, max_size=3),
    max_leaves=5,
)


@given(
    st.dictionaries(st.sampled_from([*SUBSCRIPTION, "parent", "trial_end"]), _anything),
    st.dictionaries(
        st.sampled_from(["price", "plan", "quantity", "current_period_start", "id", "discounts"]),
        _anything,
    ),
)
def test_no_shape_of_an_object_raises(changed: dict[str, Any], item: dict[str, Any]) -> None:
    """Whatever Stripe changes, one object must not make the actor fail."""
    found = {**SUBSCRIPTION, "items": {"data": [item]}, **changed}
    for kind in ("subscription", "invoice"):
        read_subscription({**found, "object": kind})
        priced = read_priced(json.dumps({**found, "object": kind}))
        assert priced is None or subscription_cents(priced, 0) >= 0
        read_invoice({**found, "object": kind})
    read_event(json.dumps({"id": "e", "object": "event", "type": "t", "data": {"object": found}}))


@pytest.mark.parametrize("told", ["NaN", "Infinity", "1e999999", "-1e-999999", "x", "", True, {}])
def test_amount_that_is_no_amount_is_not_told(told: object) -> None:
    """A price of a million digits would be computed for minutes before anybody sees the report."""
    price = {**SUBSCRIPTION["items"]["data"][0]["price"], "unit_amount_decimal": told}
    price.pop("unit_amount", None)
    item = {**SUBSCRIPTION["items"]["data"][0], "price": price}
    found = read_subscription({**SUBSCRIPTION, "items": {"data": [item]}})

    assert found is not None
    assert found.items[0].price.unit_amount_cents is None
