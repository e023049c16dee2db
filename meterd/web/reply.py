"""An answer before it is bytes on a wire: the same for the hot path and for Quart.

Header names are in lower case. `rate_limit_headers` follows draft-ietf-httpapi-ratelimit-headers:
q = hard limit and r = what remains of it in whole minutes, w = length of the billing period and
t = time to its end in seconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import attrs
import msgspec

from meterd.core.quota import QuotaView
from meterd.core.units import SECOND_MS, ceil_div
from meterd.ports.ids import Ids


Headers = Iterable[tuple[str, str]]

JSON: Final = "application/json"

COMMON_HEADERS: Final = (
    ("cache-control", "no-store"),  # every answer is of this instant and of one tenant
    ("x-content-type-options", "nosniff"),
)

_encoder = msgspec.json.Encoder()


@attrs.frozen
class Reply:
    """Status, body and headers of one answer."""

    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()


def json_reply(status: int, content: Any, headers: Headers = ()) -> Reply:
    """Return a JSON answer."""
    return Reply(status, _encoder.encode(content), (("content-type", JSON), *headers))


def new_request_id(ids: Ids) -> str:
    """Return a UUID that names one request, in its answer and in the log."""
    digits = ids.new("req").rpartition("_")[2]
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


class RequestIds:
    """Names the requests of the hot path: UUIDv7 as well, one draw of chance a millisecond.

    Within the millisecond a counter goes on from the drawn digits (RFC 9562, 6.2, method 1). A set
    bit where other ids have none keeps the two kinds apart.
    """

    def __init__(self, ids: Ids) -> None:
        self._ids = ids
        self._at_ms = -1
        self._drawn = b""
        self._count = 0

    def at(self, now_ms: int) -> bytes:
        """Return a new id; `now_ms` only says whether it is still the same millisecond."""
        if now_ms != self._at_ms:
            drawn = new_request_id(self._ids)
            self._at_ms = now_ms
            self._drawn = f"{drawn[:15]}{int(drawn[15], 16) | 8:x}{drawn[16:24]}".encode()
            self._count = int(drawn[24:], 16) >> 1  # room to count up
        self._count += 1
        return b"%b%012x" % (self._drawn, self._count)


def seconds_to(instant_ms: int, now_ms: int) -> int:
    """Return the whole seconds until an instant, a started one counted, never negative."""
    return max(0, ceil_div(instant_ms - now_ms, SECOND_MS))


def rate_limit_headers(view: QuotaView) -> tuple[tuple[str, str], ...]:
    """Return the headers that come with every quota and task answer of a limited plan."""
    hard_limit = view.hard_limit_minutes
    if hard_limit is None:
        return ()
    window_s = (view.period_end_ms - view.period_start_ms) // SECOND_MS
    reset_s = seconds_to(view.period_end_ms, view.as_of_ms)
    return (
        ("ratelimit-policy", f'"agent-minutes";q={hard_limit};w={window_s}'),
        ("ratelimit", f'"agent-minutes";r={view.remaining_minutes};t={reset_s}'),
    )
