"""Answers of the hot path as bytes: the headers that every answer has, without an application."""

from __future__ import annotations

from typing import Final

from meterd.core.units import SECOND_MS, to_datetime
from meterd.observe.metrics import HTTP_REQUESTS
from meterd.web.front.wire import http_response
from meterd.web.reply import COMMON_HEADERS, Reply, RequestIds
from meterd.web.services import WebServices


_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS: Final = (
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
)  # fmt: skip


class HotWire:
    """Writes and counts the hot path's answers."""

    def __init__(self, services: WebServices) -> None:
        self._ids = RequestIds(services.ids)
        self._answered = services.metrics.tally(HTTP_REQUESTS)
        self._date_s = -1
        self._date = b""

    def request_id(self, now_ms: int) -> bytes:
        """Return a new request id."""
        return self._ids.at(now_ms)

    def date(self, now_ms: int) -> bytes:
        """Return the Date header of this second (RFC 9110, 6.6.1)."""
        now_s = now_ms // SECOND_MS
        if now_s != self._date_s:
            self._date_s, self._date = now_s, http_date(now_s * SECOND_MS).encode()
        return self._date

    def count(self, route: tuple[str, str], status: str) -> None:
        """Count an answer of a route, as the application counts its own."""
        self._answered[(*route, status)] += 1

    def response(self, reply: Reply, request_id: bytes, now_ms: int) -> bytes:
        """Return a whole response."""
        headers = (
            *reply.headers,
            *COMMON_HEADERS,
            ("x-request-id", request_id.decode()),
            ("date", self.date(now_ms).decode()),
        )
        return http_response(reply.status, reply.body, headers)


def http_date(instant_ms: int) -> str:
    """Return an instant as an HTTP date, whatever the locale of the process."""
    at = to_datetime(instant_ms)
    day, month = _DAYS[at.weekday()], _MONTHS[at.month - 1]
    return f"{day}, {at.day:02} {month} {at.year:04} {at:%H:%M:%S} GMT"
