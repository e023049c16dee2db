"""The hot path: quota checks and heartbeats answered by the front door, without an application.

Rule 1: the status, the headers and the body are those of the route, because both come from the
same functions; a test sends the same requests both ways.
Rule 2: from memory and at once where possible; what has to wait is returned as something to await.
Rule 3: a body that is not of the plainest form goes to the application, which knows every form.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Final

from meterd.actors.keyring import Principal
from meterd.core.task import ELAPSED_MS_MAX
from meterd.core.units import SECOND_MS, to_datetime
from meterd.errors import MeterdError
from meterd.observe.metrics import HTTP_REQUESTS
from meterd.ports import Clock
from meterd.web.auth import authenticated, has_scope, organization_of, principal_nowait
from meterd.web.front.hot import HotAnswer, HotRequest, HotRoute
from meterd.web.front.wire import http_response
from meterd.web.problems import error_reply
from meterd.web.quota import CHECK_SCOPES, check_reply, quota_view
from meterd.web.reply import COMMON_HEADERS, Reply, new_request_id
from meterd.web.services import WebServices
from meterd.web.tasks import AGENT_SCOPE, heartbeat_reply


_HEARTBEAT: Final = re.compile(
    rb"[ \t\r\n]*\{[ \t\r\n]*\"elapsed_ms\"[ \t\r\n]*:[ \t\r\n]*(0|[1-9][0-9]{0,9})"
    rb"[ \t\r\n]*\}[ \t\r\n]*"
)

_CHECK: Final = ("GET", "/v1/quota/check")
_BEAT: Final = ("POST", "/v1/tasks/<path:task_id>/heartbeat")
"""The routes as the application calls them."""


class HotAnswers:
    """Answers the front door's hot requests; a `HotPath`."""

    def __init__(self, services: WebServices) -> None:
        self._services = services
        self._date = _date_of(services.clock)
        self._answered = services.metrics.tally(HTTP_REQUESTS)

    def __call__(self, request: HotRequest) -> HotAnswer | Awaitable[HotAnswer]:
        """Return the response, something to await for it, or None for the application's."""
        if request.route is HotRoute.QUOTA_CHECK:
            return self._check_nowait(request) or self._check(request)
        body = _HEARTBEAT.fullmatch(request.body)
        if body is None or int(body[1]) > ELAPSED_MS_MAX:
            return None
        return self._heartbeat(request, int(body[1]))

    def _check_nowait(self, request: HotRequest) -> bytes | None:
        services = self._services
        principal = principal_nowait(services.keyring, request.authorization)
        if not isinstance(principal, Principal) or not has_scope(principal, CHECK_SCOPES):
            return None
        assert principal.organization_id is not None
        view = services.organizations.view_nowait(principal.organization_id, request.agent_id)
        if view is None:
            return None
        request_id = new_request_id(services.ids)
        return self._wire(_CHECK, check_reply(services, view, request_id), request_id)

    async def _check(self, request: HotRequest) -> bytes:
        request_id = new_request_id(self._services.ids)
        try:
            organization_id = organization_of(await self._principal(request), *CHECK_SCOPES)
            view = await quota_view(self._services, organization_id, request.agent_id)
            reply = check_reply(self._services, view, request_id)
        except MeterdError as error:
            reply = error_reply(error, request_id)
        return self._wire(_CHECK, reply, request_id)

    async def _heartbeat(self, request: HotRequest, elapsed_ms: int) -> bytes:
        assert request.task_id is not None, request.route
        request_id = new_request_id(self._services.ids)
        try:
            organization_id = organization_of(await self._principal(request), AGENT_SCOPE)
            reply = await heartbeat_reply(
                self._services, organization_id, request.task_id, elapsed_ms
            )
        except MeterdError as error:
            reply = error_reply(error, request_id)
        return self._wire(_BEAT, reply, request_id)

    async def _principal(self, request: HotRequest) -> Principal:
        values = () if request.authorization is None else (request.authorization,)
        return await authenticated(self._services.keyring, values)

    def _wire(self, route: tuple[str, str], reply: Reply, request_id: str) -> bytes:
        self._answered[(*route, str(reply.status))] += 1
        headers = (
            *reply.headers,
            *COMMON_HEADERS,
            ("x-request-id", request_id),
            ("date", self._date()),
        )
        return http_response(reply.status, reply.body, headers)


def _date_of(clock: Clock) -> Callable[[], str]:
    """Return a function that gives the Date header of this second (RFC 9110, 6.6.1)."""
    last_s, text = -1, ""

    def date() -> str:
        nonlocal last_s, text
        now_s = clock.now_ms() // SECOND_MS
        if now_s != last_s:
            last_s, text = now_s, http_date(now_s * SECOND_MS)
        return text

    return date


_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = (
    "Jan",
    "Feb",
    "Mar",
    "Apr",
    "May",
    "Jun",
    "Jul",
    "Aug",
    "Sep",
    "Oct",
    "Nov",
    "Dec",
)


def http_date(instant_ms: int) -> str:
    """Return an instant as an HTTP date, whatever the locale of the process."""
    at = to_datetime(instant_ms)
    day, month = _DAYS[at.weekday()], _MONTHS[at.month - 1]
    return f"{day}, {at.day:02} {month} {at.year:04} {at:%H:%M:%S} GMT"
