"""Every request the front door does not answer itself: Hypercorn's HTTP/1.1 on our connections.

Rule 1: HTTP/1.1 only. Hypercorn's switch to HTTP/2 (by preface, or by an h2c upgrade) is not
built in here, so neither exists on any port.
Rule 2: each request of a connection passes `inspect_head`, not only the first.
Rule 3: the application's sends are shielded. Quart-Trio cancels its own nursery on
`http.disconnect` while Hypercorn still works inside `send`; unshielded, the connection would
never be closed. What a shielded send waits for is bounded by the door's write time-out.
Rule 4: permessage-deflate is never offered to wsproto, which checks sizes only after inflating.

Checked against Hypercorn 0.18; tests/integration/front sends the bytes that break it bare.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from http import HTTPStatus
from math import inf
from typing import Any, cast

import h11
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.events import Event as StreamEvent, Response
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.lifespan import Lifespan
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import MAX_RECV, TCPServer
from hypercorn.trio.worker_context import EventWrapper, WorkerContext
from hypercorn.typing import ASGIFramework, ConnectionState, LifespanState

from meterd.web.front.addresses import TrustedProxies
from meterd.web.front.connection import GONE, Connection
from meterd.web.front.counters import DoorCounters
from meterd.web.front.head import Refused, inspect_head
from meterd.web.front.limits import FrontDoorLimits
from meterd.web.stream_transport import CLOSE_RESTARTING


Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
_PlainApp = Callable[[Scope, Receive, Send], Awaitable[None]]
AsgiApp = ASGIFramework
"""What a front door serves: any ASGI application, a QuartTrio one for instance."""

_HEAD_END = re.compile(rb"\n\r?\n")


class _Terminated(EventWrapper):
    """Hypercorn's "we are stopping", which the door sets without waiting."""

    def set_now(self) -> None:
        self._event.set()


class HttpServer:
    """Runs one ASGI application on connections that the door hands over."""

    def __init__(
        self,
        app: AsgiApp,
        *,
        limits: FrontDoorLimits,
        proxies: TrustedProxies,
        counters: DoorCounters,
        logger: logging.Logger,
    ) -> None:
        self.limits = limits
        self.counters = counters
        self.config = Config()
        self.config.accesslog = None
        self.config.errorlog = logger
        self.config.include_server_header = False
        self.config.keep_alive_timeout = limits.idle_timeout_ms / 1000
        self.config.h11_max_incomplete_size = limits.head_bytes_max + 1
        self.config.websocket_max_message_size = limits.stream_message_bytes_max
        self.context = WorkerContext(None)
        self._terminated = _Terminated()
        self.context.terminated = self._terminated
        self.edge = _Edge(app, proxies)
        self.app = ASGIWrapper(cast("Any", self.edge))
        self.state: LifespanState = LifespanState({})
        self._lifespan = Lifespan(self.app, self.config, self.state)

    async def start(self, nursery: trio.Nursery) -> None:
        """Run the application's start-up; raises what Hypercorn's lifespan raises."""
        await nursery.start(self._lifespan.handle_lifespan)
        await self._lifespan.wait_for_startup()

    async def stop(self) -> None:
        """Run the application's shutdown."""
        await self._lifespan.wait_for_shutdown()

    def drain(self) -> None:
        """Close idle connections now, busy ones after their response, WebSockets with 1012."""
        self._terminated.set_now()
        self.edge.drain()

    async def serve(self, connection: Connection) -> None:
        """Serve one connection to its end; its unread bytes come first."""
        self.counters.handed_over += 1
        await _Server(self, connection).run()


class _StrictConnection(h11.Connection):
    """h11, but every request head is inspected before h11 reads it."""

    def __init__(self, server: HttpServer) -> None:
        limits = server.limits
        super().__init__(h11.SERVER, max_incomplete_event_size=limits.head_bytes_max + 1)
        self._server = server

    def next_event(self) -> Any:
        """Return h11's next event, or refuse like h11 does, with RemoteProtocolError."""
        if self.their_state is h11.IDLE:
            buffered, _ = self.trailing_data
            # Where h11 sees the end of the head, which accepts a bare LF: `inspect_head` does not.
            end = _HEAD_END.search(buffered)
            if end is not None and (status := self._refuse(buffered, end.end())) is not None:
                self._server.counters.malformed += 1
                raise h11.RemoteProtocolError("malformed request", error_status_hint=status)
        return super().next_event()

    def _refuse(self, buffered: bytes, end: int) -> int | None:
        limits = self._server.limits
        head = inspect_head(
            buffered[:end], head_bytes_max=limits.head_bytes_max, headers_max=limits.headers_max
        )
        if isinstance(head, Refused):
            return head.status
        # A client may not send frames before the 101 (RFC 6455, 4.1). Hypercorn would answer 400
        # and the application's accept would then end the process (hypercorn issue 225).
        return 400 if head.is_websocket_upgrade and len(buffered) > end else None


class _Http11(H11Protocol):
    """Hypercorn's HTTP/1.1 without its way to HTTP/2 and without WebSocket extensions."""

    async def _check_protocol(self, event: h11.Request) -> None:
        """Never switch: an h2c upgrade is ignored, as RFC 9110 (7.8) lets a server do."""

    async def _create_stream(self, request: h11.Request) -> None:
        headers = [pair for pair in request.headers if pair[0] != b"sec-websocket-extensions"]
        if len(headers) != len(request.headers):
            request = h11.Request(
                method=request.method,
                target=request.target,
                headers=headers,
                http_version=request.http_version,
            )
        await super()._create_stream(request)

    async def stream_send(self, event: StreamEvent) -> None:
        """Say that the connection closes when an answer does not wait for the request's body.

        Hypercorn closes then without a word, and a client that had kept the connection loses its
        next request (RFC 9112, 9.6: such a server ought to say so).
        """
        is_early = self.connection.their_state is h11.SEND_BODY
        if is_early and isinstance(event, Response) and event.status_code >= HTTPStatus.OK:
            event.headers.append((b"connection", b"close"))
        await super().stream_send(event)


class _Server(TCPServer):
    """Hypercorn's connection loop with our protocol, and time-outs for what arrives."""

    def __init__(self, server: HttpServer, connection: Connection) -> None:
        super().__init__(
            cast("Any", server.app),
            server.config,
            server.context,
            server.state,
            cast("Any", connection),
        )
        self._http = server
        self._connection = connection
        self._is_over = False

    async def protocol_send(self, event: Event) -> None:
        """Do what the protocol says; once reading is over, no idle timer may start again."""
        if not (self._is_over and isinstance(event, Updated)):
            await super().protocol_send(event)

    async def run(self) -> None:
        connection = self._connection
        try:
            async with TaskGroup() as task_group:
                self._task_group = task_group
                http11 = _Http11(
                    self.app,
                    self.config,
                    self.context,
                    task_group,
                    ConnectionState(self.state),
                    connection.is_tls,
                    (connection.peer.host, connection.peer.port),
                    (connection.local.host, connection.local.port),
                    self.protocol_send,
                )
                http11.connection = _StrictConnection(self._http)
                self.protocol = cast("Any", http11)
                await self.idle_task.restart(task_group, self._idle_timeout)
                await self._read_requests(http11)
                # Hypercorn leaves the timer running, and the connection open until it fires.
                self._is_over = True
                await self.idle_task.stop()
        finally:
            await self._close()

    async def _read_requests(self, http11: H11Protocol) -> None:
        """Feed what arrives; a head or a body that takes too long ends the connection."""
        limits = self._http.limits
        awaited: object = None
        deadline = inf
        while True:
            now_awaited = _awaited(http11)
            if now_awaited != awaited:
                awaited = now_awaited
                allowed_ms = {"head": limits.head_timeout_ms, "body": limits.body_timeout_ms}
                kind = None if awaited is None else awaited[0]
                deadline = inf if kind is None else trio.current_time() + allowed_ms[kind] / 1000
            data: bytes | bytearray = b""
            with trio.CancelScope(deadline=deadline) as waiting:
                try:
                    data = await self.stream.receive_some(MAX_RECV)
                except GONE:
                    break
            if waiting.cancelled_caught:
                self._http.counters.timed_out += 1
                break
            await http11.handle(RawData(bytes(data)))
            if not data:
                break
        await http11.handle(Closed())


def _awaited(http11: H11Protocol) -> tuple[str, int] | None:
    """Name the part of a request that the peer has yet to send, and of which request."""
    if http11.connection.their_state is h11.SEND_BODY:
        return ("body", http11.keep_alive_requests)
    if http11.connection.their_state is h11.IDLE and http11.connection.trailing_data[0]:
        return ("head", http11.keep_alive_requests)
    return None


class _Edge:
    """What the application sees instead of Hypercorn: client addresses, shielded sends, drain."""

    def __init__(self, app: AsgiApp, proxies: TrustedProxies) -> None:
        self._app = cast("_PlainApp", app)
        self._proxies = proxies
        self._is_draining = False
        self._waiting: set[trio.CancelScope] = set()

    def drain(self) -> None:
        """Let every WebSocket close with 1012."""
        self._is_draining = True
        for scope in self._waiting:
            scope.cancel()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return

        async def shielded_send(message: Message) -> None:
            with trio.CancelScope(shield=True):
                await send(message)

        self._name_client(scope)
        if scope["type"] == "websocket":
            await self._app(scope, self._websocket_receive(receive, shielded_send), shielded_send)
        else:
            await self._app(scope, receive, shielded_send)

    def _name_client(self, scope: Scope) -> None:
        client = scope.get("client")
        if client is None or client[0] not in self._proxies:
            return
        forwarded = _header_values(scope["headers"], b"x-forwarded-for")
        address = self._proxies.client_of(client[0], forwarded)
        if address != client[0]:
            scope["client"] = (address, 0)  # the proxy does not say from which port

    def _websocket_receive(self, receive: Receive, send: Send) -> Receive:
        async def receive_or_drain() -> Message:
            if not self._is_draining:
                with trio.CancelScope() as waiting:
                    self._waiting.add(waiting)
                    try:
                        return _without_empty_bytes(await receive())
                    finally:
                        self._waiting.discard(waiting)
            await send(
                {
                    "type": "websocket.close",
                    "code": CLOSE_RESTARTING,
                    "reason": "server restarting",
                }
            )
            return {"type": "websocket.disconnect", "code": CLOSE_RESTARTING}

        return receive_or_drain


def _without_empty_bytes(message: Message) -> Message:
    """Present an empty binary message as empty text: Quart would turn it into None."""
    if message["type"] == "websocket.receive" and message.get("bytes") == b"":
        return {"type": "websocket.receive", "bytes": None, "text": ""}
    return message


def _header_values(headers: Sequence[tuple[bytes, bytes]], name: bytes) -> list[bytes]:
    return [value for known, value in headers if known == name]
