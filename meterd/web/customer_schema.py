"""What a customer's administrator sends: settings, webhook endpoints (contract §6).

The rules of `meterd.web.schema` hold here too.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Final, Literal, get_args

import msgspec
from msgspec import UNSET, Meta, UnsetType

from meterd.core.plan import OVERAGE_CAP_USD_MAX
from meterd.web.schema import Flag, Request


PERCENT_MAX: Final = 110
"""110 % stands for the hard limit, whatever grace the plan grants."""

THRESHOLDS_MAX: Final = 10

URL_CHARACTERS_MAX: Final = 2_048

DESCRIPTION_CHARACTERS_MAX: Final = 200


def _is_cap(text: str) -> bool:
    return text.isprintable() and Decimal(text) <= OVERAGE_CAP_USD_MAX


def _is_url(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text


OverageCap = Annotated[
    str,
    Meta(
        pattern=r"^(0|[1-9][0-9]{0,7})(\.[0-9]{1,2})?$",
        description="US dollars of overage per period, as text; null: no cap, 0: no overage.",
        extra={
            "must": f'must be text such as "49.00": from 0 to {OVERAGE_CAP_USD_MAX}, '
            "at most 2 decimals",
            "rule": _is_cap,
        },
    ),
]
Percent = Annotated[
    int,
    Meta(ge=1, le=PERCENT_MAX, extra={"must": f"must be an integer from 1 to {PERCENT_MAX}"}),
]
Thresholds = Annotated[
    list[Percent],
    Meta(
        max_length=THRESHOLDS_MAX,
        description="When to be told, in percent of the included minutes; 110 is the hard limit.",
        extra={
            "must": f"must be a list of at most {THRESHOLDS_MAX} integers from 1 to {PERCENT_MAX}, "
            "each once",
            "rule": lambda found: len(set(found)) == len(found),
        },
        extra_json_schema={"uniqueItems": True},
    ),
]


class SettingsBody(Request, frozen=True):
    """What an organization decides for itself; what is absent stays."""

    overage_cap_usd: OverageCap | UnsetType | None = UNSET
    thresholds: Thresholds | UnsetType = UNSET


WebhookUrl = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=URL_CHARACTERS_MAX,
        description="Where to post; https, a public address.",
        extra={
            "must": f"must be an https URL of at most {URL_CHARACTERS_MAX} characters, without "
            "user name and fragment",
            "rule": _is_url,
        },
        extra_json_schema={"pattern": "^https://[!-~]+$"},
    ),
]
WebhookKind = Literal[
    "usage.threshold_reached",
    "quota.grace_started",
    "quota.limit_reached",
    "quota.recovered",
    "task.lost",
    "subscription.updated",
    "invoice.payment_failed",
]
WebhookKinds = Annotated[
    list[WebhookKind],
    Meta(
        max_length=16,
        description="Which notifications to send; empty: every one.",
        extra={
            "must": f"must be a list, each once, of {', '.join(get_args(WebhookKind))}",
            "rule": lambda found: len(set(found)) == len(found),
        },
        extra_json_schema={"uniqueItems": True},
    ),
]
Description = Annotated[
    str,
    Meta(
        max_length=DESCRIPTION_CHARACTERS_MAX,
        description="What it is for.",
        extra={
            "must": f"must be at most {DESCRIPTION_CHARACTERS_MAX} printable characters",
            "rule": lambda found: found.isprintable(),
        },
    ),
]


class NewEndpointBody(Request, frozen=True):
    """Where to send notifications."""

    url: WebhookUrl
    kinds: WebhookKinds = msgspec.field(default_factory=list)
    description: Description = ""


class EndpointPatch(Request, frozen=True):
    """Change what is given."""

    url: WebhookUrl | UnsetType = UNSET
    kinds: WebhookKinds | UnsetType = UNSET
    description: Description | UnsetType = UNSET
    disabled: Flag | UnsetType = UNSET
