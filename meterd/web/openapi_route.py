"""The words in which `openapi_customer` and `openapi_operator` describe routes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import attrs

from meterd.web.reply import JSON


Schema = Mapping[str, Any]
Struct = type[Any]
"""A class that msgspec can describe: its own structures, and those of attrs."""

NAME: Final[Schema] = {"type": "string", "minLength": 1, "maxLength": 128}
FLAG: Final[Schema] = {"type": "string", "enum": ["true", "false"]}
DATE: Final[Schema] = {"type": "string", "format": "date"}
LIMIT: Final[Schema] = {"type": "integer", "minimum": 1, "maximum": 1_000, "default": 100}
PAGING: Final[Mapping[str, Schema]] = {
    "limit": LIMIT,
    "cursor": {"type": "string", "description": "`next_cursor` of the page before."},
}
OBJECT: Final[Schema] = {"type": "object"}

STRIPE_TROUBLE: Final = ("billing_off", "stripe_refused", "stripe_unavailable")
"""Problems of every route behind which Stripe is asked."""


def one_of(*words: str) -> Schema:
    """Return the schema of a parameter that is one of some words."""
    return {"type": "string", "enum": list(words)}


@attrs.frozen
class PageOf:
    """A page of a list of these."""

    item: Struct


@attrs.frozen
class ListOf:
    """A bare array of these, as a request."""

    item: Struct


Answer = Struct | PageOf | Schema | str | None
"""A structure, a page, a schema, `text/plain` for text, or nothing at all."""


@attrs.frozen(kw_only=True)
class Route:
    """One operation."""

    method: str
    path: str
    """As Quart has it."""
    scopes: tuple[str, ...] = ()
    """Any of these; `admin`: an operator's key; none: no key."""
    query: Mapping[str, Schema] = attrs.Factory(dict)
    body: Mapping[str, Struct | ListOf | Schema] = attrs.Factory(dict)
    """By media type."""
    is_body_required: bool = True
    answers: Mapping[int, Answer]
    media: Mapping[int, tuple[str, ...]] = attrs.Factory(dict)
    """Media types of answers that are not JSON alone."""
    problems: tuple[str, ...] = ()
    """Codes beyond what any such route may answer."""
    takes_keys: bool = True
    """Whether a POST honours `Idempotency-Key`."""


def json_body(kind: Struct) -> dict[str, Struct | ListOf | Schema]:
    """Return a body that is JSON in one shape."""
    return {JSON: kind}
