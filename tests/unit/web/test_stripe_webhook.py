"""Who signed these bytes, and when: the part of the webhook that strangers can talk to."""

from __future__ import annotations

import json

import pytest
from stripe import WebhookSignature

from meterd.core.units import SECOND_MS
from meterd.web.stripe_webhook import is_signed, parsed
from tests.make import NOW_MS


NOW_S = NOW_MS // SECOND_MS
BODY = json.dumps({"id": "evt_1", "object": "event", "type": "invoice.paid"})
SECRET = "whsec_new"
SECRETS = ["whsec_old", SECRET]


def sign(at_s: int = NOW_S, *, secret: str = SECRET, body: str = BODY) -> str:
    """Return the header Stripe would send."""
    header: str = WebhookSignature.generate_signature_header(body, secret, at_s)
    return header


def is_taken(header: str, body: bytes = BODY.encode()) -> bool:
    """Tell whether the webhook would take these bytes."""
    return is_signed(body, header, SECRETS, now_ms=NOW_MS)


@pytest.mark.parametrize("secret", SECRETS)
def test_every_configured_secret_signs_while_one_is_rotated(secret: str) -> None:
    """Stripe signs with the old one, the new one or both for a day."""
    assert is_taken(sign(secret=secret))
    assert is_taken(sign(secret=secret) + ",v1=" + "0" * 64)
    assert not is_taken(sign(secret="whsec_of_somebody"))


@pytest.mark.parametrize(("apart_s", "taken"), [(0, True), (300, True), (301, False)])
@pytest.mark.parametrize("sign_of", [1, -1])
def test_time_may_lie_five_minutes_off_in_either_direction(
    apart_s: int, taken: bool, sign_of: int
) -> None:
    """Clocks differ; the package alone would take any time in the future."""
    assert is_taken(sign(NOW_S + sign_of * apart_s)) is taken


@pytest.mark.parametrize(
    "dress",
    ["t={old}=x,t={now}", "t={old:_},t={now}", "t= {old},t={now}", "t=+{old},t={now}",
     "t={old},t={now}", "t={now},t={old}", "t={old}, t={now}", "t={now} ", "t=", "t", "T={now}"],
)  # fmt: skip
def test_old_event_is_not_made_new_by_a_second_time(dress: str) -> None:
    """Who has caught an event sends it again: its signature is good, only its age gives it away."""
    old = NOW_S - 86_400
    signature = sign(old).split(",")[1]
    times = dress.format(old=old, now=NOW_S)

    assert not is_taken(f"{times},{signature}")
    assert not is_taken(f"{signature},{times}")


@pytest.mark.parametrize(
    "header",
    ["", ",", "=", "t=1", "v1=x", f"t={NOW_S}", f"t={NOW_S},v1", f"t={NOW_S},v1=",
     f"t={NOW_S},v1=ü", f"t={NOW_S},v0=" + "0" * 64, "t=" + "9" * 400, "t=٣,v1=x",
     f"t={NOW_S}," + "v1=a," * 2_000, "\x00" * 20],
)  # fmt: skip
def test_hostile_header_is_no_signature_and_no_error(header: str) -> None:
    """Whatever the package makes of it, the answer is no."""
    assert not is_taken(header)


def test_bytes_that_are_not_text_are_not_signed() -> None:
    """The package decodes the body itself, and would raise."""
    assert not is_taken(sign(), b"\xff\xfe")


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"null", b"1", b"{}", b"\xff", b"[" * 100_000, b"1" * 5_000,
     b'{"object":"event","id":"evt_1"}', b'{"object":"event","id":1,"type":"x"}',
     b'{"object":"event","id":"","type":"x"}', b'{"object":"event","id":"evt_1","type":NaN}',
     b'{"object":"event","id":"evt_\\u0000","type":"x"}',
     b'{"object":"v2.core.event","id":"evt_1","type":"v1.billing.meter.no_meter_found"}'],
)  # fmt: skip
def test_signed_body_that_is_no_snapshot_event_is_none(body: bytes) -> None:
    """A thin event carries no object: an endpoint that sends those is set up wrongly, and told."""
    assert parsed(body) is None
