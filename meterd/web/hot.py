"""The hot path: quota checks and heartbeats answered by the front door, without an application.

Rule 1: the status, the headers and the body are those of the route, because both come from the
same functions; a test sends the same requests both ways.
Rule 2: from memory and at once where possible; what has to wait is returned as something to await.
Rule 3: a body that is not of the plainest form goes to the application, which knows every form.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable
from typing import Final

from meterd.actors.keyring import Principal
from meterd.core.task import ELAPSED_MS_MAX
from meterd.errors import MeterdError
from meterd.web.auth import authenticated, has_scope, organization_of, principal_nowait
from meterd.web.front.hot import HotAnswer, HotRequest, HotRoute, Repeatable
from meterd.web.hot_check import CHECK, GivenAnswer, RepeatedCheck, may_repeat
from meterd.web.hot_wire import HotWire
from meterd.web.problems import error_reply
from meterd.web.quota import CHECK_SCOPES, check_reply, quota_view
from meterd.web.reply import Reply
from meterd.web.services import WebServices
from meterd.web.tasks import AGENT_SCOPE, heartbeat_reply


_HEARTBEAT: Final = re.compile(
    rb"[ \t\r\n]*\{[ \t\r\n]*\"elapsed_ms\"[ \t\r\n]*:[ \t\r\n]*(0|[1-9][0-9]{0,9})"
    rb"[ \t\r\n]*\}[ \t\r\n]*"
)

_BEAT: Final = ("POST", "/v1/tasks/<path:task_id>/heartbeat")
"""The route as the application calls it."""


class HotAnswers:
    """Answers the front door's hot requests; a `HotPath`."""

    def __init__(self, services: WebServices) -> None:
        self._services = services
        self._wire = HotWire(services)

    def __call__(self, request: HotRequest) -> HotAnswer | Awaitable[HotAnswer]:
        """Return the response, something to await for it, or None for the application's."""
        if request.route is HotRoute.QUOTA_CHECK:
            return self._check_nowait(request) or self._check(request)
        body = _HEARTBEAT.fullmatch(request.body)
        if body is None or int(body[1]) > ELAPSED_MS_MAX:
            return None
        return self._heartbeat(request, int(body[1]))

    def _check_nowait(self, request: HotRequest) -> Repeatable | bytes | None:
        services = self._services
        principal = principal_nowait(services.keyring, request.authorization)
        if not isinstance(principal, Principal) or not has_scope(principal, CHECK_SCOPES):
            return None
        organization_id = organization_of(principal, *CHECK_SCOPES)
        standing = services.organizations.standing_nowait(organization_id, request.agent_id)
        if standing is None:
            return None
        now_ms = standing.view.as_of_ms
        request_id = self._wire.request_id(now_ms)
        reply = check_reply(services, standing.view, request_id.decode())
        answer = self._written(CHECK, reply, request_id, now_ms)
        if not may_repeat(principal, standing):
            return answer
        given = GivenAnswer(answer, standing, request_id, self._wire.date(now_ms))
        return Repeatable(answer, RepeatedCheck(given, services, self._wire))

    async def _check(self, request: HotRequest) -> bytes:
        request_id, now_ms = self._new_request()
        try:
            organization_id = organization_of(await self._principal(request), *CHECK_SCOPES)
            view = await quota_view(self._services, organization_id, request.agent_id)
            reply = check_reply(self._services, view, request_id.decode())
        except MeterdError as error:
            reply = error_reply(error, request_id.decode())
        return self._written(CHECK, reply, request_id, now_ms)

    async def _heartbeat(self, request: HotRequest, elapsed_ms: int) -> bytes:
        assert request.task_id is not None, request.route
        request_id, now_ms = self._new_request()
        try:
            organization_id = organization_of(await self._principal(request), AGENT_SCOPE)
            reply = await heartbeat_reply(
                self._services, organization_id, request.task_id, elapsed_ms
            )
        except MeterdError as error:
            reply = error_reply(error, request_id.decode())
        return self._written(_BEAT, reply, request_id, now_ms)

    async def _principal(self, request: HotRequest) -> Principal:
        values = () if request.authorization is None else (request.authorization,)
        return await authenticated(self._services.keyring, values)

    def _new_request(self) -> tuple[bytes, int]:
        """Return an id for a request, and when it came."""
        now_ms = self._services.clock.now_ms()
        return self._wire.request_id(now_ms), now_ms

    def _written(
        self, route: tuple[str, str], reply: Reply, request_id: bytes, now_ms: int
    ) -> bytes:
        self._wire.count(route, str(reply.status))
        return self._wire.response(reply, request_id, now_ms)
