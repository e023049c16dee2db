from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import stripe

from meterd.testing.fake_stripe import API_VERSION, hosted_shapes, judge, shapes
from meterd.testing.fake_stripe.forms import decode_form, fields_of, params_type, typed
from meterd.testing.fake_stripe.routes import Route, all_routes
from tests.stripe_shapes import problems_of


CUSTOMER = shapes.customer("cus_1", now_s=1, livemode=False)
PRICE = shapes.price("price_1", product_id="prod_1", currency="usd", now_s=1, livemode=False)

BLANKS: list[dict[str, Any]] = [
    CUSTOMER,
    shapes.product("prod_1", name="meterd", now_s=1, livemode=False),
    PRICE,
    shapes.subscription("sub_1", customer_id="cus_1", now_s=1, livemode=False),
    shapes.invoice("in_1", customer_of_it=CUSTOMER, now_s=1, account_name="Example"),
    shapes.invoice_line("il_1", invoice_id="in_1", livemode=False),
    shapes.invoice_item("ii_1", customer_id="cus_1", now_s=1, livemode=False),
    shapes.coupon("half", now_s=1, livemode=False),
    shapes.discount("di_1", coupon_id="half", customer_id="cus_1", start_s=1),
    hosted_shapes.checkout_session("cs_1", now_s=1, livemode=False),
    hosted_shapes.portal_configuration("bpc_1", now_s=1, livemode=False),
    {
        **hosted_shapes.portal_session("bps_1", customer_id="cus_1", now_s=1, livemode=False),
        "configuration": "bpc_1",
    },
    hosted_shapes.webhook_endpoint("we_1", url="https://x", now_s=1, livemode=False),
]

SAMPLE_KEYS: dict[str, list[str]] = json.loads(
    (Path(__file__).parent / "stripe_sample_keys.json").read_text()
)
"""Fields of Stripe's own sample objects, from its published OpenAPI fixtures."""

ROUTES = all_routes(lambda _world, _params: {})


@pytest.mark.parametrize("blank", BLANKS, ids=lambda blank: blank["object"])
def test_blank_object_has_the_shape_of_its_class(blank: dict[str, Any]) -> None:
    """Nothing unknown, nothing required missing, every value of its annotated type."""
    assert problems_of(blank) == []


@pytest.mark.parametrize("blank", BLANKS, ids=lambda blank: blank["object"])
def test_blank_object_has_every_field_of_stripes_sample(blank: dict[str, Any]) -> None:
    """Nullable fields are sent too: code that reads them must not find them only live."""
    assert set(SAMPLE_KEYS[blank["object"]]) - set(blank) == set()


def test_fake_speaks_the_version_of_the_pinned_package() -> None:
    """Bumping `stripe` turns this red until the shapes have been looked at again."""
    assert stripe.api_version == API_VERSION


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("nonsense", None),
        ("created", "1"),
        ("livemode", None),
        ("tax_exempt", "perhaps"),
        ("metadata", {"a": 1}),
        ("invoice_settings", {"unknown": 1}),
        ("subscriptions", []),
    ],
)
def test_checker_notices_each_kind_of_drift(field: str, value: object) -> None:
    """Test the tester: a wrong key, type, null, enum value, mapping, inner object and list."""
    assert len(problems_of({**CUSTOMER, field: value})) >= 1


def test_checker_notices_a_missing_field() -> None:
    """What is not Optional must be there."""
    without = {key: value for key, value in CUSTOMER.items() if key != "created"}
    assert problems_of(without) == ["customer.created: required by Customer"]


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_route_models_only_parameters_stripe_has(route: Route) -> None:
    """A parameter that Stripe renames or drops turns its route red."""
    params = params_type(route.params)
    assert route.modelled - fields_of(params).keys() - {"expand"} == set()
    judge._adapter(params)  # pydantic can build it whole


def test_judge_refuses_what_the_types_forbid() -> None:
    """The second opinion: unknown keys, values out of an enum, text for a number."""
    params = params_type("SubscriptionUpdateParams")
    judge.check_request(params, {"proration_behavior": "none", "items": [{"quantity": 2}]})
    for wrong in (
        {"nonsense": 1},
        {"proration_behavior": "perhaps"},
        {"items": [{"quantity": "two"}]},
        {"items": [{"api_key": "sk"}]},
    ):
        with pytest.raises(judge.RequestDriftError):
            judge.check_request(params, wrong)


def test_form_becomes_typed_values() -> None:
    """Indexed lists, appended lists, nested names, booleans and numbers, as the client sends."""
    raw = decode_form(
        "items[0][id]=si_1&items[0][quantity]=2&expand[]=customer&expand[]=schedule"
        "&cancel_at_period_end=true&metadata[a]=b%20c&trial_end=now"
    )
    assert typed(params_type("SubscriptionUpdateParams"), raw) == {
        "items": [{"id": "si_1", "quantity": 2}],
        "expand": ["customer", "schedule"],
        "cancel_at_period_end": True,
        "metadata": {"a": "b c"},
        "trial_end": "now",
    }
