"""What Schemathesis cannot know from the OpenAPI document; it loads this module by its path.

Answers are held to the document more strictly than the standard does: a property that is not
named is wrong, for what an answer holds beyond its document is what clients of the next version
will miss. And requests in Stripe's name are signed, as their handler looks at nothing else before.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import time
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import requests
import schemathesis
from requests.auth import AuthBase
from schemathesis.core.failures import AcceptedNegativeData, Failure, ServerError
from schemathesis.core.transport import Response
from schemathesis.openapi.checks import AllowHeaderMismatch, RejectedPositiveData


STRIPE_SECRET = os.environ["STRIPE_WEBHOOK_SECRET"]
STRIPE_PATH = "/api/webhooks/stripe"

KNOWN: dict[str, dict[str, str]] = json.loads(os.environ["KNOWN"])
"""Parts of paths that name something, by who asks."""

BEYOND_SCHEMAS = (
    "printable",  # what Python and we call so, no pattern of JSON Schema can tell
    "must be a `next_cursor` of this list",
    "must be an integer",  # 421.0 is an integer for JSON Schema and none for us
    "the URL",
    "must change at least one field",
    "is required with suspended",
    "must be a billing period of this organization",
    "The credit is larger than what the period used.",
    "The debit would pass the",
    "must be text such as",  # amounts have a largest one
    "must be a JSON media type",
    "must be an RFC 3339 instant",  # of a year that there is
    "up to 35 days old",
)
"""Why a request is refused that is valid by its schema: words of the problem."""


@schemathesis.hook
def before_load_schema(
    context: schemathesis.HookContext,  # noqa: ARG001  # hooks are known by their arguments
    raw_schema: dict[str, Any],
) -> None:
    """Close every object that an answer shows."""
    components = raw_schema["components"]["schemas"]
    closed: set[str] = set()
    for operations in raw_schema["paths"].values():
        for operation in operations.values():
            for answer in operation["responses"].values():
                for content in answer.get("content", {}).values():
                    _close(content["schema"], components, closed)


def _close(schema: dict[str, Any], components: dict[str, Any], closed: set[str]) -> None:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        if name not in closed:
            closed.add(name)
            _close(components[name], components, closed)
        return
    if "properties" in schema:
        schema.setdefault("additionalProperties", False)
    for part in _parts(schema):
        _close(part, components, closed)


def _parts(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from schema.get("properties", {}).values()
    yield from schema.get("anyOf", ())
    yield from schema.get("oneOf", ())
    for inside in (schema.get("items"), schema.get("additionalProperties")):
        if isinstance(inside, dict):
            yield inside


@schemathesis.hook
def filter_failure(
    context: schemathesis.HookContext,  # noqa: ARG001
    failure: Failure,
    case: schemathesis.Case[Any],
    response: Response,
) -> bool:
    """Drop what is right although a schema cannot say it."""
    if isinstance(failure, RejectedPositiveData):
        problem = response.json()
        words = [each["detail"] for each in problem.get("errors", [problem])]
        return not all(any(known in each for known in BEYOND_SCHEMAS) for each in words)
    if isinstance(failure, AcceptedNegativeData) and case.operation.path == "/v1/events":
        # Events of a batch are refused one by one.
        return not (isinstance(case.body, list) and response.json()["rejected"])
    if isinstance(failure, AllowHeaderMismatch):
        # Their addresses may have slashes: `GET /admin/v1/actors/a/restart` is another actor.
        return not case.operation.path.startswith("/admin/v1/actors/")
    if isinstance(failure, ServerError):
        # The fake Stripe is picky about the addresses of pages.
        return response.status_code != HTTPStatus.BAD_GATEWAY
    return True


class SignedByStripe(AuthBase):
    """Signs the bytes that are sent, see https://docs.stripe.com/webhooks/signature."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Return the request with its signature."""
        body = request.body or b""
        signed = body.encode() if isinstance(body, str) else body
        assert isinstance(signed, bytes), signed
        now_s = int(time.time())
        digest = hmac.new(STRIPE_SECRET.encode(), b"%d." % now_s + signed, hashlib.sha256)
        request.headers["Stripe-Signature"] = f"t={now_s},v1={digest.hexdigest()}"
        return request


@schemathesis.hook
def before_call(
    context: schemathesis.HookContext,  # noqa: ARG001
    case: schemathesis.Case[Any],
    kwargs: dict[str, Any],
) -> None:
    """Let a request that is right in itself ask for something that is there."""
    path = case.operation.path
    if path == STRIPE_PATH:
        kwargs["auth"] = SignedByStripe()
    meta = case.meta
    if meta is None or not meta.generation.mode.is_positive or meta.phase.name.value == "stateful":
        return
    media = sorted(case.operation.definition.raw["responses"].get("200", {}).get("content", {}))
    if len(media) > 1:
        case.headers["Accept"] = media[len(repr(case.query)) % len(media)]
    for name in case.path_parameters:
        known = KNOWN["operator" if path.startswith("/admin/") else "customer"]
        case.path_parameters[name] = known[name]
    if "Idempotency-Key" in case.headers:
        # The same few keys are generated again and again; with another body they are refused.
        request = (case.formatted_path, case.query, case.media_type, case.body)
        said = f"{case.headers['Idempotency-Key']} {request}"
        case.headers["Idempotency-Key"] = hashlib.sha256(said.encode()).hexdigest()
