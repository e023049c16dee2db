"""`POST /api/webhooks/stripe`: verify the raw bytes, keep the event, answer 200.

Rule 1: nothing is decided here and Stripe is never asked anything: the Stripe actor works the
inbox off. Answering late would delay the finalisation of every automatic invoice.
Rule 2: what cannot be verified leaves no trace but a counter: nothing stored, nothing of it logged.
Rule 3: several secrets are valid at once, while one is being rotated.
Source: https://docs.stripe.com/webhooks/signature
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import msgspec
import stripe
import structlog
import trio
from quart import Blueprint, Response, request

from meterd.core.stripe_objects import StripeEvent, read_event
from meterd.core.units import SECOND_MS
from meterd.errors import StoreUnavailableError
from meterd.web.problems import ProblemError
from meterd.web.reply import json_reply
from meterd.web.requests import response, services


log = structlog.get_logger(__name__)

stripe_webhook = Blueprint("stripe_webhook", __name__)

SIGNATURE_CHARACTERS_MAX: Final = 4_096
"""A header with two signatures has about 160."""

TOLERANCE_S: Final = 300
"""Seconds a signature's time may lie in the past (Stripe's own default) or in the future."""

_TIME = re.compile(r"[0-9]{1,12}", re.ASCII)


class Received(msgspec.Struct, frozen=True, kw_only=True):
    """The event is kept."""

    received: bool


@stripe_webhook.post("/api/webhooks/stripe")
async def receive_event() -> Response:
    """Keep a verified event, once; 200 for every copy.

    Errors: 400 bad_signature or bad_json, 413 body_too_large: nothing is stored. 503
    store_unavailable: Stripe delivers it again.
    """
    bundle = services()
    store, actor = bundle.stripe_store, bundle.stripe_actor
    if store is None or actor is None:
        raise ProblemError("not_found")
    raw = await request.get_data(cache=False, as_text=False, parse_form_data=False)
    headers = request.headers.getlist("stripe-signature")
    secrets = [each.get_secret_value() for each in bundle.config.stripe_webhook_secrets]
    now_ms = bundle.clock.now_ms()
    if len(headers) != 1 or not is_signed(raw, headers[0], secrets, now_ms=now_ms):
        log.warning("stripe_event_refused", reason="signature", has_secrets=bool(secrets))
        raise ProblemError("bad_signature")
    event = parsed(raw)
    if event is None:
        log.warning("stripe_event_refused", reason="not an event")
        raise ProblemError("bad_json")
    try:
        with trio.fail_after(bundle.config.ack_timeout_ms / SECOND_MS):
            is_new = await store.keep_event(event, at_ms=now_ms)
    except trio.TooSlowError as error:
        raise StoreUnavailableError("keep a Stripe event", "no answer in time") from error
    if is_new:
        actor.kick()
    return response(json_reply(200, Received(received=True)))


def is_signed(raw: bytes, header: str, secrets: Sequence[str], *, now_ms: int) -> bool:
    """Tell whether one of the secrets signed these bytes, lately by our clock.

    The package's own look at the time is not used: it accepts any time in the future.
    """
    if len(header) > SIGNATURE_CHARACTERS_MAX or not header.isascii():
        return False
    signed_at_s = _signed_at_s(header)
    if signed_at_s is None or abs(now_ms // SECOND_MS - signed_at_s) > TOLERANCE_S:
        return False
    return any(_is_signed_with(secret, raw, header) for secret in secrets)


def _signed_at_s(header: str) -> int | None:
    """Return the one time that a header tells; None: there is none, or room for two readings.

    The package takes the first `t` and reads `t=1=x`, `t= 1` and `t=1_0` as numbers: a header
    with an old time in such a dress and a new one beside it would be old to one, new to the other.
    """
    times = [part for part in header.split(",") if part.partition("=")[0].strip() == "t"]
    told = times[0].removeprefix("t=") if len(times) == 1 else ""
    return int(told) if _TIME.fullmatch(told) else None


def _is_signed_with(secret: str, raw: bytes, header: str) -> bool:
    try:
        return bool(stripe.WebhookSignature.verify_header(raw, header, secret, None))
    except (
        stripe.SignatureVerificationError,
        # What hostile bytes make the package raise besides.
        AttributeError,
        TypeError,
        ValueError,
    ):
        return False


def parsed(raw: bytes) -> StripeEvent | None:
    """Return the event in verified bytes, or None when they hold none."""
    try:
        return read_event(raw.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
