"""`GET /v1/agents/stream`: who may open one, and the route that carries it without front door.

Rule 1: both carriers run the same session behind the same gate.
Rule 2: a key that is wrong is told so by a close code (4401, 4403), because most clients hide the
status of a failed handshake; our own trouble is a 503, so that they come again.
Rule 3: what a session starts ends with the server, and its failure ends that stream only.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import structlog
import trio
from quart import Blueprint, Response, g, websocket

from meterd.actors.keyring import Principal
from meterd.actors.supervisor import Crash, attempt_async
from meterd.errors import MeterdError
from meterd.web.agent_session import AgentSession, Spawn
from meterd.web.auth import authenticated, has_scope
from meterd.web.front.limits import FrontDoorLimits
from meterd.web.problems import ProblemError, error_reply
from meterd.web.reply import COMMON_HEADERS, new_request_id
from meterd.web.requests import services
from meterd.web.services import WebServices
from meterd.web.stream_transport import (
    CLOSE_IDLE,
    CLOSE_UNAUTHORIZED,
    CLOSE_WRONG_SCOPE,
    SUBPROTOCOL,
    HttpRejected,
    OpenSession,
    Outbox,
    StreamClose,
    StreamGate,
    StreamRejected,
    StreamRequest,
    StreamSession,
    StreamTransport,
)
from meterd.web.tasks import AGENT_SCOPE


STREAM_PATH: Final = "/v1/agents/stream"

CLOSE_INTERNAL_ERROR: Final = 1011
CLOSED_ABNORMALLY: Final = 1006

WRITE_BYTES: Final = 64 * 1024

log = structlog.get_logger(__name__)

agent_stream = Blueprint("agent_stream", __name__)


class AgentGate:
    """Authenticates upgrade requests; a `StreamGate`."""

    def __init__(self, services: WebServices, nursery: Callable[[], trio.Nursery]) -> None:
        """Take where sessions' tasks run; it is asked for when the first one is opened."""
        self._services = services
        self._nursery = nursery

    async def admit(self, request: StreamRequest) -> OpenSession | StreamRejected | HttpRejected:
        """Return what opens the session of this request's key, or why there is none."""
        keyring = self._services.keyring
        try:
            principal = await authenticated(keyring, request.header_values("authorization"))
        except ProblemError:
            return rejected(CLOSE_UNAUTHORIZED, "a valid key is required")
        except MeterdError as error:
            return troubled(self._services, error)
        if not has_scope(principal, (AGENT_SCOPE,)):
            return rejected(CLOSE_WRONG_SCOPE, "this key may not run tasks")
        return lambda transport: self.open(transport, principal)

    def open(
        self,
        transport: StreamTransport,
        principal: Principal,
        nursery: trio.Nursery | None = None,
    ) -> AgentSession:
        """Return the session of an authenticated stream."""
        return AgentSession(
            transport,
            services=self._services,
            principal=principal,
            spawn=_spawner(nursery or self._nursery(), transport),
        )


def rejected(code: int, reason: str) -> StreamRejected:
    """Return a refusal that the client sees as a close code."""
    return StreamRejected(close=StreamClose(code=code, reason=reason))


def troubled(bundle: WebServices, error: MeterdError) -> HttpRejected:
    """Return a refusal as HTTP: trouble of ours, which passes."""
    named = new_request_id(bundle.ids)
    reply = error_reply(error, named)
    headers = (*reply.headers, *COMMON_HEADERS, ("x-request-id", named))
    return HttpRejected(status=reply.status, body=reply.body, headers=headers)


def _spawner(nursery: trio.Nursery, transport: StreamTransport) -> Spawn:
    def spawn(work: Callable[[], Awaitable[None]]) -> None:
        nursery.start_soon(_contained, work, transport)

    return spawn


async def _contained(work: Callable[[], Awaitable[None]], transport: StreamTransport) -> None:
    """Run one session's work; an unexpected error costs that stream, a cancellation goes on."""
    result = await attempt_async(work)
    if isinstance(result, Crash):
        log.error("agent_stream_failed", exc_info=result.error)
        transport.close(CLOSE_INTERNAL_ERROR, "internal error")


# --- without the front door -----------------------------------------------------------------------


@agent_stream.before_websocket
async def name_websocket() -> None:
    """Give the upgrade request an id, as every request has."""
    g.request_id = new_request_id(services().ids)


@agent_stream.get(STREAM_PATH)
async def needs_upgrade() -> Response:
    """Refuse plain HTTP: this address is a WebSocket."""
    raise ProblemError("upgrade_required", headers=(("upgrade", "websocket"),))


@agent_stream.websocket(STREAM_PATH)
async def carry() -> Response | None:
    """Carry one agent stream over Quart, as the front door would."""
    bundle = services()
    return await carried(STREAM_PATH, lambda nursery: AgentGate(bundle, lambda: nursery))


async def carried(path: str, gate_in: Callable[[trio.Nursery], StreamGate]) -> Response | None:
    """Carry the stream that the gate admits on the WebSocket being asked for."""
    request = StreamRequest(
        path=path,
        query=websocket.query_string.decode("latin-1"),
        headers=[(name.lower(), value) for name, value in websocket.headers.items()],
        client_address=websocket.remote_addr or "",
    )
    async with trio.open_nursery() as nursery:
        verdict = await gate_in(nursery).admit(request)
        if isinstance(verdict, HttpRejected):
            refused = Response(verdict.body, status=verdict.status)
            for name, value in verdict.headers:
                refused.headers[name] = value
            return refused
        offered = websocket.requested_subprotocols
        await websocket.accept(subprotocol=SUBPROTOCOL if SUBPROTOCOL in offered else None)
        if isinstance(verdict, StreamRejected):
            await websocket.close(verdict.close.code, verdict.close.reason)
            return None
        limits = FrontDoorLimits()
        outbox = Outbox(
            items_max=limits.stream_outbox_items_max, bytes_max=limits.stream_outbox_bytes_max
        )
        session = verdict(outbox)
        try:
            nursery.start_soon(_read_messages, session, outbox)
            await _write_messages(outbox)
        finally:
            outbox.end()
            session.on_end(CLOSED_ABNORMALLY)
            nursery.cancel_scope.cancel()
    return None


async def _read_messages(session: StreamSession, outbox: Outbox) -> None:
    """Give messages to the session until the connection is cancelled under us."""
    idle_s = services().config.stream_idle_ms / 1_000
    while True:
        with trio.move_on_after(idle_s) as patience:
            message = await websocket.receive()
        if patience.cancelled_caught:
            outbox.close(CLOSE_IDLE, "idle")
            return
        if not outbox.is_open:
            continue
        if isinstance(message, str):
            session.on_texts([message.encode()])
        else:
            session.on_binary(message)


async def _write_messages(outbox: Outbox) -> None:
    """Send what is queued, and at the end the close that was asked for."""
    while True:
        await outbox.wait_ready()
        for payload in outbox.take(WRITE_BYTES):
            await websocket.send(payload.decode())
        close = outbox.closing
        if close is not None and not outbox:
            await websocket.close(close.code, close.reason)
            return
