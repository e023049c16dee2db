"""What the `stripe` package raises, translated once.

Rule 1: whatever may work later is unavailable: no connection, 5xx, 429, 409 (a lock, or the same
key in flight), and a refused API key, which an operator will replace.
Rule 2: messages carry Stripe's code and request id, never a header, a key or a body.
Source: https://docs.stripe.com/error-handling
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from http import HTTPStatus

import stripe

from meterd.errors import PaymentsRejectedError, PaymentsUnavailableError
from meterd.ports.billing import KEY_REUSED


RESOURCE_MISSING = "resource_missing"
"""Stripe's code for an object that is not there."""


class PaymentsBusyError(PaymentsUnavailableError):
    """Stripe answered 429: too many requests in this second."""


@contextlib.contextmanager
def translated(action: str) -> Iterator[None]:
    """Turn what `stripe` raises into PaymentsUnavailableError or PaymentsRejectedError.

    `action` continues "Stripe failed to …". A cancel passes through: it is no error.
    """
    try:
        yield
    except stripe.APIConnectionError as error:
        cause = error.__cause__
        detail = "no connection" if cause is None else f"{type(cause).__name__}: {cause}"
        raise PaymentsUnavailableError(action, detail) from error
    except stripe.StripeError as error:
        status = error.http_status or 0
        if status == HTTPStatus.TOO_MANY_REQUESTS:
            raise PaymentsBusyError(action, _described(error)) from error
        if _may_pass(status):
            raise PaymentsUnavailableError(action, _described(error)) from error
        code = KEY_REUSED if isinstance(error, stripe.IdempotencyError) else error.code
        raise PaymentsRejectedError(action, _described(error), code=code or "") from error


def _may_pass(status: int) -> bool:
    return (
        status == 0
        or status >= HTTPStatus.INTERNAL_SERVER_ERROR
        or status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.CONFLICT}
    )


def _described(error: stripe.StripeError) -> str:
    parts = [str(error.http_status or ""), error.code or type(error).__name__]
    if error.request_id:
        parts.append(f"request {error.request_id}")
    return " ".join(part for part in parts if part)
