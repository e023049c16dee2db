"""Which endpoints exist, which of Stripe's parameter types each takes, and what is modelled.

A parameter that Stripe knows and the fake does not model is refused by name, never ignored: a
test that passes has not leaned on something that did not happen.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import attrs

from meterd.testing.fake_stripe import (
    catalog,
    hooks,
    hosted,
    invoice_items_api,
    invoices_api,
    subscriptions_api,
)
from meterd.testing.fake_stripe.errors import Json


Handler = Callable[..., Json]

LISTING = "created ending_before limit starting_after"


@attrs.frozen
class Route:
    """One endpoint."""

    method: str
    path: str
    """With `{}` for each id."""
    params: str
    """Name of the TypedDict in `stripe.params`."""
    handler: Handler
    modelled: frozenset[str]
    pattern: re.Pattern[str] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        """Compile the path."""
        object.__setattr__(self, "pattern", re.compile(self.path.replace("{}", "([^/]+)") + r"\Z"))


def _route(method: str, path: str, params: str, handler: Handler, modelled: str = "") -> Route:
    return Route(method, path, params, handler, frozenset({"expand", *modelled.split()}))


_CUSTOMER = (
    "address balance description email invoice_settings metadata name phone"
    " preferred_locales shipping"
)
_PRODUCT = "active description metadata name statement_descriptor unit_label url"
_SUBSCRIPTION = (
    "cancel_at cancel_at_period_end collection_method days_until_due default_payment_method"
    " description discounts items metadata off_session payment_behavior proration_behavior"
    " trial_end trial_settings"
)
_CONFIGURATION = "business_profile default_return_url features login_page metadata name"


def all_routes(list_events: Handler) -> list[Route]:
    """Every endpoint of the fake."""
    return [*_catalog(), *_billing(), *_hosted(), *_hooks(list_events)]


def _catalog() -> list[Route]:
    return [
        _route(
            "POST",
            "/v1/customers",
            "CustomerCreateParams",
            catalog.create_customer,
            f"{_CUSTOMER} payment_method",
        ),
        _route(
            "GET", "/v1/customers", "CustomerListParams", catalog.list_customers, f"{LISTING} email"
        ),
        _route("GET", "/v1/customers/{}", "CustomerRetrieveParams", catalog.retrieve_customer),
        _route(
            "POST", "/v1/customers/{}", "CustomerUpdateParams", catalog.update_customer, _CUSTOMER
        ),
        _route("DELETE", "/v1/customers/{}", "CustomerDeleteParams", catalog.delete_customer),
        _route(
            "DELETE",
            "/v1/customers/{}/discount",
            "CustomerDeleteDiscountParams",
            catalog.delete_customer_discount,
        ),
        _route(
            "POST", "/v1/products", "ProductCreateParams", catalog.create_product, f"{_PRODUCT} id"
        ),
        _route(
            "GET",
            "/v1/products",
            "ProductListParams",
            catalog.list_products,
            f"{LISTING} active ids",
        ),
        _route("GET", "/v1/products/{}", "ProductRetrieveParams", catalog.retrieve_product),
        _route(
            "POST",
            "/v1/products/{}",
            "ProductUpdateParams",
            catalog.update_product,
            f"{_PRODUCT} default_price",
        ),
        _route(
            "POST",
            "/v1/prices",
            "PriceCreateParams",
            catalog.create_price,
            "active currency lookup_key metadata nickname product product_data recurring"
            " tax_behavior transfer_lookup_key unit_amount unit_amount_decimal",
        ),
        _route(
            "GET",
            "/v1/prices",
            "PriceListParams",
            catalog.list_prices,
            f"{LISTING} active currency lookup_keys product type",
        ),
        _route("GET", "/v1/prices/{}", "PriceRetrieveParams", catalog.retrieve_price),
        _route(
            "POST",
            "/v1/prices/{}",
            "PriceUpdateParams",
            catalog.update_price,
            "active lookup_key metadata nickname tax_behavior transfer_lookup_key",
        ),
        _route(
            "POST",
            "/v1/coupons",
            "CouponCreateParams",
            catalog.create_coupon,
            "amount_off applies_to currency duration duration_in_months id metadata name"
            " percent_off",
        ),
        _route("GET", "/v1/coupons", "CouponListParams", catalog.list_coupons, LISTING),
        _route("GET", "/v1/coupons/{}", "CouponRetrieveParams", catalog.retrieve_coupon),
        _route("DELETE", "/v1/coupons/{}", "CouponDeleteParams", catalog.delete_coupon),
    ]


def _billing() -> list[Route]:
    return [
        _route(
            "POST",
            "/v1/subscriptions",
            "SubscriptionCreateParams",
            subscriptions_api.create_subscription,
            f"{_SUBSCRIPTION} billing_cycle_anchor currency customer trial_period_days",
        ),
        _route(
            "GET",
            "/v1/subscriptions",
            "SubscriptionListParams",
            subscriptions_api.list_subscriptions,
            f"{LISTING} collection_method customer price status",
        ),
        _route(
            "GET",
            "/v1/subscriptions/{}",
            "SubscriptionRetrieveParams",
            subscriptions_api.retrieve_subscription,
        ),
        _route(
            "POST",
            "/v1/subscriptions/{}",
            "SubscriptionUpdateParams",
            subscriptions_api.update_subscription,
            f"{_SUBSCRIPTION} billing_cycle_anchor"
            " cancellation_details pause_collection proration_date",
        ),
        _route(
            "DELETE",
            "/v1/subscriptions/{}",
            "SubscriptionCancelParams",
            subscriptions_api.cancel_subscription,
            "cancellation_details invoice_now prorate",
        ),
        _route(
            "POST",
            "/v1/subscriptions/{}/resume",
            "SubscriptionResumeParams",
            subscriptions_api.resume_subscription,
            "billing_cycle_anchor",
        ),
        _route(
            "POST",
            "/v1/subscriptions/{}/pause",
            "SubscriptionPauseParams",
            subscriptions_api.pause_subscription,
            "bill_for type",
        ),
        _route(
            "GET",
            "/v1/subscription_items",
            "SubscriptionItemListParams",
            subscriptions_api.list_subscription_items,
            "ending_before limit starting_after subscription",
        ),
        _route(
            "GET",
            "/v1/subscription_items/{}",
            "SubscriptionItemRetrieveParams",
            subscriptions_api.retrieve_subscription_item,
        ),
        _route(
            "POST",
            "/v1/subscription_items/{}",
            "SubscriptionItemUpdateParams",
            subscriptions_api.update_subscription_item,
            "discounts metadata off_session payment_behavior"
            " price proration_behavior proration_date quantity",
        ),
        _route(
            "POST",
            "/v1/invoices",
            "InvoiceCreateParams",
            invoices_api.create_invoice,
            "auto_advance automatically_finalizes_at collection_method currency customer"
            " days_until_due description"
            " footer metadata pending_invoice_items_behavior subscription",
        ),
        _route(
            "GET",
            "/v1/invoices",
            "InvoiceListParams",
            invoices_api.list_invoices,
            f"{LISTING} collection_method customer status subscription",
        ),
        _route("GET", "/v1/invoices/{}", "InvoiceRetrieveParams", invoices_api.retrieve_invoice),
        _route(
            "POST",
            "/v1/invoices/{}",
            "InvoiceUpdateParams",
            invoices_api.update_invoice,
            "auto_advance automatically_finalizes_at description footer metadata",
        ),
        _route("DELETE", "/v1/invoices/{}", "InvoiceDeleteParams", invoices_api.delete_invoice),
        _route(
            "POST",
            "/v1/invoices/{}/finalize",
            "InvoiceFinalizeInvoiceParams",
            invoices_api.finalize_invoice,
            "auto_advance",
        ),
        _route(
            "POST",
            "/v1/invoices/{}/pay",
            "InvoicePayParams",
            invoices_api.pay_invoice,
            "off_session paid_out_of_band",
        ),
        _route(
            "POST", "/v1/invoices/{}/void", "InvoiceVoidInvoiceParams", invoices_api.void_invoice
        ),
        _route(
            "POST",
            "/v1/invoices/{}/mark_uncollectible",
            "InvoiceMarkUncollectibleParams",
            invoices_api.mark_uncollectible,
        ),
        _route(
            "GET",
            "/v1/invoices/{}/lines",
            "InvoiceLineItemListParams",
            invoices_api.list_invoice_lines,
            "ending_before limit starting_after",
        ),
        _route(
            "POST",
            "/v1/invoiceitems",
            "InvoiceItemCreateParams",
            invoice_items_api.create_invoice_item,
            "amount currency customer description discountable invoice metadata period pricing"
            " quantity subscription unit_amount_decimal",
        ),
        _route(
            "GET",
            "/v1/invoiceitems",
            "InvoiceItemListParams",
            invoice_items_api.list_invoice_items,
            f"{LISTING} customer invoice pending",
        ),
        _route(
            "GET",
            "/v1/invoiceitems/{}",
            "InvoiceItemRetrieveParams",
            invoice_items_api.retrieve_invoice_item,
        ),
        _route(
            "POST",
            "/v1/invoiceitems/{}",
            "InvoiceItemUpdateParams",
            invoice_items_api.update_invoice_item,
            "amount description discountable metadata",
        ),
        _route(
            "DELETE",
            "/v1/invoiceitems/{}",
            "InvoiceItemDeleteParams",
            invoice_items_api.delete_invoice_item,
        ),
    ]


def _hosted() -> list[Route]:
    return [
        _route(
            "POST",
            "/v1/checkout/sessions",
            "checkout.SessionCreateParams",
            hosted.create_session,
            "allow_promotion_codes billing_address_collection"
            " cancel_url client_reference_id customer"
            " customer_email expires_at line_items locale metadata mode payment_method_collection"
            " subscription_data success_url",
        ),
        _route(
            "GET",
            "/v1/checkout/sessions",
            "checkout.SessionListParams",
            hosted.list_sessions,
            f"{LISTING} customer status subscription",
        ),
        _route(
            "GET",
            "/v1/checkout/sessions/{}",
            "checkout.SessionRetrieveParams",
            hosted.retrieve_session,
        ),
        _route(
            "POST",
            "/v1/checkout/sessions/{}/expire",
            "checkout.SessionExpireParams",
            hosted.expire_session,
        ),
        _route(
            "POST",
            "/v1/billing_portal/sessions",
            "billing_portal.SessionCreateParams",
            hosted.create_portal_session,
            "configuration customer return_url",
        ),
        _route(
            "POST",
            "/v1/billing_portal/configurations",
            "billing_portal.ConfigurationCreateParams",
            hosted.create_configuration,
            _CONFIGURATION,
        ),
        _route(
            "GET",
            "/v1/billing_portal/configurations",
            "billing_portal.ConfigurationListParams",
            hosted.list_configurations,
            "active ending_before is_default limit starting_after",
        ),
        _route(
            "GET",
            "/v1/billing_portal/configurations/{}",
            "billing_portal.ConfigurationRetrieveParams",
            hosted.retrieve_configuration,
        ),
        _route(
            "POST",
            "/v1/billing_portal/configurations/{}",
            "billing_portal.ConfigurationUpdateParams",
            hosted.update_configuration,
            f"{_CONFIGURATION} active",
        ),
    ]


def _hooks(list_events: Handler) -> list[Route]:
    return [
        _route(
            "POST",
            "/v1/webhook_endpoints",
            "WebhookEndpointCreateParams",
            hooks.create_endpoint,
            "api_version description enabled_events metadata url",
        ),
        _route(
            "GET",
            "/v1/webhook_endpoints",
            "WebhookEndpointListParams",
            hooks.list_endpoints,
            "ending_before limit starting_after",
        ),
        _route(
            "GET",
            "/v1/webhook_endpoints/{}",
            "WebhookEndpointRetrieveParams",
            hooks.retrieve_endpoint,
        ),
        _route(
            "POST",
            "/v1/webhook_endpoints/{}",
            "WebhookEndpointUpdateParams",
            hooks.update_endpoint,
            "description disabled enabled_events metadata url",
        ),
        _route(
            "DELETE",
            "/v1/webhook_endpoints/{}",
            "WebhookEndpointDeleteParams",
            hooks.delete_endpoint,
        ),
        _route(
            "GET",
            "/v1/events",
            "EventListParams",
            list_events,
            f"{LISTING} delivery_success type types",
        ),
        _route("GET", "/v1/events/{}", "EventRetrieveParams", hooks.retrieve_event),
    ]
