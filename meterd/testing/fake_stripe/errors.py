"""Refusals the fake answers with, in the shape of Stripe's error bodies.

Source: https://docs.stripe.com/api/errors and https://docs.stripe.com/error-codes.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any


Json = dict[str, Any]
"""A Stripe object as it travels: what `json.loads` gives for an object."""


class StripeRefusedError(Exception):
    """A request the real API would refuse; carries status and body."""

    def __init__(
        self,
        message: str,
        *,
        status: int = HTTPStatus.BAD_REQUEST,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        is_validation: bool = False,
        decline_code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = int(status)
        self.kind = kind
        self.code = code
        self.param = param
        self.is_validation = is_validation
        """Refused before the endpoint ran: an idempotency key remembers nothing of it."""
        self.decline_code = decline_code

    def body(self) -> Json:
        """Return the JSON body: `{"error": {...}}` with the facts that apply."""
        error: Json = {"message": self.message, "type": self.kind}
        for name, value in (
            ("code", self.code),
            ("param", self.param),
            ("decline_code", self.decline_code),
        ):
            if value is not None:
                error[name] = value
        if self.code is not None:
            error["doc_url"] = "https://stripe.com/docs/error-codes/" + self.code.replace("_", "-")
        return {"error": error}


def missing_object(kind: str, object_id: str, *, param: str = "id") -> StripeRefusedError:
    """404 for a path, 400 for a parameter that names nothing."""
    return StripeRefusedError(
        f"No such {kind}: '{object_id}'",
        status=HTTPStatus.NOT_FOUND if param == "id" else HTTPStatus.BAD_REQUEST,
        code="resource_missing",
        param=param,
    )


def missing_param(name: str) -> StripeRefusedError:
    """Refuse a request without a required parameter."""
    return StripeRefusedError(
        f"Missing required param: {name}.",
        code="parameter_missing",
        param=name,
        is_validation=True,
    )


def bad_param(message: str, param: str, *, code: str | None = None) -> StripeRefusedError:
    """Refuse a parameter that is present and unusable."""
    return StripeRefusedError(message, code=code, param=param)


def card_declined() -> StripeRefusedError:
    """402: the bank said no."""
    return StripeRefusedError(
        "Your card was declined.",
        status=HTTPStatus.PAYMENT_REQUIRED,
        kind="card_error",
        code="card_declined",
        decline_code="generic_decline",
    )
