"""The listener: accepts connections, bounds them, and decides who serves each request.

Rule 1: no bytes of a peer cost more than its own connection. `_guard` catches everything that a
connection raises, logs it and counts it; nothing else of the web catches `Exception`.
Rule 2: a request is answered by the hot path, by an agent stream or by Hypercorn, in this order;
what the first two do not recognise exactly is handed on with its bytes given back.
Rule 3: a peer can wait for us, we never wait for a peer without a deadline: one sweeper looks
after the deadlines of all connections.

A door lives: open -> draining (`stop_accepting`) -> empty (`drained`), or ended (`abort_all`).
"""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Final

import trio

from meterd.web.front.addresses import AddressBook, TrustedProxies, parse_address
from meterd.web.front.connection import GONE, Connection, Endpoint
from meterd.web.front.conversation import Conversation, Services
from meterd.web.front.counters import DoorCounters
from meterd.web.front.handover import AsgiApp, HttpServer
from meterd.web.front.head import Refused
from meterd.web.front.hot import HotPath
from meterd.web.front.lane import Lane
from meterd.web.front.limits import FrontDoorLimits
from meterd.web.stream_transport import StreamGate


__all__ = ["FrontDoor", "FrontDoorLimits", "TrustedProxies", "open_listeners"]

_ACCEPT_PAUSE_S: Final = 0.1
"""How long to wait for descriptors to come free; Trio's own listener waits as long."""

_PEER_LOGS_PER_MINUTE_MAX: Final = 60
"""Log entries that peers can cause; with more, one peer could fill the disk."""

_OVER_TOTAL: Final = Refused(
    status=503, code="too_many_connections", detail="The server has no connection to spare."
)
_OVER_ADDRESS: Final = Refused(
    status=429, code="too_many_connections", detail="Too many connections from this address."
)

_log = logging.getLogger("meterd.web.front")


async def open_listeners(
    host: str | None, port: int, *, backlog: int = 1_024
) -> list[trio.SocketListener]:
    """Listen on every address of `host` (None: all interfaces); port 0 takes a free one.

    Errors: OSError when the address is in use or not ours.
    """
    return await trio.open_tcp_listeners(port, host=host, backlog=backlog)


class FrontDoor:
    """meterd's HTTP and WebSocket server. Run `serve` once; steer it from any task.

    Errors: `serve` raises what the application's start-up raises; no connection ever does.
    """

    def __init__(
        self,
        app: AsgiApp,
        *,
        new_request_id: Callable[[], str],
        limits: FrontDoorLimits | None = None,
        hot_path: HotPath | None = None,
        stream_gate: StreamGate | None = None,
        trusted_proxies: TrustedProxies | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.limits = limits or FrontDoorLimits()
        self.counters = DoorCounters()
        self._proxies = trusted_proxies or TrustedProxies()
        self._tls = tls
        if tls is not None:
            tls.set_alpn_protocols(["http/1.1"])
        self._http = HttpServer(
            app,
            limits=self.limits,
            proxies=self._proxies,
            counters=self.counters,
            logger=_log,
        )
        self._services = Services(
            limits=self.limits,
            counters=self.counters,
            http=self._http,
            proxies=self._proxies,
            book=AddressBook(per_address_max=self.limits.connections_per_address_max),
            new_request_id=new_request_id,
            hot_path=hot_path,
            gate=stream_gate,
            lane=Lane(self.counters, idle_timeout_ms=self.limits.idle_timeout_ms),
        )
        self._connections: set[Connection] = set()
        self._refusing = 0
        self._accepting = trio.CancelScope()
        self._emptied = trio.Event()
        self._logged_at: list[float] = []

    async def serve(
        self,
        listeners: Sequence[trio.SocketListener],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until `stop_accepting` was called and every connection has ended.

        Reports started when the application has started and connections are accepted.
        Cancelling it ends every connection at once.
        """
        async with trio.open_nursery() as application:
            await self._http.start(application)
            async with trio.open_nursery() as sweeping:
                sweeping.start_soon(self._sweep_forever)
                sweeping.start_soon(self._services.lane.run)
                await self._serve_connections(listeners, task_status)
                sweeping.cancel_scope.cancel()
            await self._http.stop()
            application.cancel_scope.cancel()

    async def _serve_connections(
        self, listeners: Sequence[trio.SocketListener], task_status: trio.TaskStatus[None]
    ) -> None:
        async with trio.open_nursery() as connections:
            try:
                with self._accepting:
                    async with trio.open_nursery() as accepting:
                        for listener in listeners:
                            accepting.start_soon(self._accept_from, listener, connections)
                        task_status.started()
                await self._emptied.wait()
            finally:
                self.abort_all()  # a cancelled task may be in a shielded send: wake it

    def stop_accepting(self) -> None:
        """Begin the shutdown: close listeners and idle connections, WebSockets with 1012.

        Requests in flight finish; their connections close after the answer.
        """
        self._services.is_draining = True
        self._accepting.cancel()
        self._http.drain()
        for stream in self._services.streams.values():
            stream.drain()
        for connection in self._connections:
            if connection.is_idle:
                connection.scope.cancel()
        self._note_emptied()

    async def drained(self, *, timeout_ms: int) -> bool:
        """Wait until no connection is left, at most so long; whether none is."""
        assert self._services.is_draining, "stop_accepting comes first"
        with trio.move_on_after(timeout_ms / 1000):
            await self._emptied.wait()
        return not self._connections

    def abort_all(self) -> None:
        """Close every socket now, whatever its tasks or its peer are doing."""
        for connection in list(self._connections):
            connection.scope.cancel()
            connection.drop()

    async def _accept_from(self, listener: trio.SocketListener, nursery: trio.Nursery) -> None:
        """Accept for ever: no error of one accept ends the listener."""
        async with listener:
            while True:
                try:
                    tcp = await listener.accept()
                except OSError as error:
                    self.counters.accept_errors += 1
                    if self._may_log():
                        _log.error("accept failed, trying again soon: %s", error)
                    await trio.sleep(_ACCEPT_PAUSE_S)
                    continue
                self.counters.accepted += 1
                try:
                    connection, refused = self._admit(tcp)
                except OSError:  # the peer left before it was looked at
                    tcp.socket.close()
                    continue
                if connection is None:
                    tcp.socket.close()
                else:
                    nursery.start_soon(self._guard, connection, refused)

    def _admit(self, tcp: trio.SocketStream) -> tuple[Connection | None, Refused | None]:
        """Register a connection: to be served, to be told it is over a limit, or None at all."""
        limits, counters = self.limits, self.counters
        _tune(tcp.socket, limits)
        peer, local = _endpoint(tcp.socket.getpeername()), _endpoint(tcp.socket.getsockname())
        connection = Connection(tcp, peer=peer, local=local)
        connection.deadline = trio.current_time() + limits.head_timeout_ms / 1000
        refused: Refused | None = None
        if len(self._connections) - self._refusing >= limits.connections_max:
            counters.refused_total += 1
            refused = _OVER_TOTAL
        elif peer.host not in self._proxies:
            connection.address_key = self._services.book.enter(peer.host)
            if connection.address_key is None:
                counters.refused_address += 1
                refused = _OVER_ADDRESS
        if refused is not None:
            if self._refusing >= limits.refusals_max:
                return None, refused
            self._refusing += 1
        self._connections.add(connection)
        counters.open_connections = len(self._connections)
        counters.peak_connections = max(counters.peak_connections, len(self._connections))
        return connection, refused

    async def _guard(self, connection: Connection, refused: Refused | None) -> None:
        """Run one connection to its end; nothing a peer can cause leaves this method."""
        try:
            with connection.scope:
                await self._converse(connection, refused)
        except (*GONE, OSError):
            pass  # the peer has gone, in the middle of something or not
        except Exception as error:
            self._note_crash(error)
            await _say_last_words(connection)
        except BaseExceptionGroup as group:
            # A cancellation or an exit beside errors: only the former go on to the outside.
            errors, others = group.split(Exception)
            if errors is not None:
                self._note_crash(errors)
            if others is not None:
                raise others from None
        finally:
            connection.drop()
            self._forget(connection, refused)

    def _forget(self, connection: Connection, refused: Refused | None) -> None:
        self._connections.discard(connection)
        self.counters.open_connections = len(self._connections)
        self.counters.timed_out += connection.is_timed_out
        self._refusing -= refused is not None
        if connection.address_key is not None:
            self._services.book.leave(connection.address_key)
        self._note_emptied()

    async def _converse(self, connection: Connection, refused: Refused | None) -> None:
        if self._tls is not None:
            secured = trio.SSLStream(
                connection.tcp, self._tls, server_side=True, https_compatible=True
            )
            connection.stream = secured
            connection.deadline = trio.current_time() + self.limits.tls_handshake_timeout_ms / 1000
            await secured.do_handshake()
            connection.deadline = trio.current_time() + self.limits.head_timeout_ms / 1000
        conversation = Conversation(connection, self._services)
        if refused is None:
            await conversation.run()
        else:
            await conversation.turn_away(refused)

    async def _sweep_forever(self) -> None:
        """Enforce every connection's deadlines, all in one pass of one task."""
        pause_s = _sweep_interval_s(self.limits)
        while True:
            await trio.sleep(pause_s)
            now = trio.current_time()
            for connection in list(self._connections):
                if connection.is_stalled(now, self.limits.write_timeout_ms / 1000):
                    self.counters.stalled += 1
                    connection.drop()
                else:
                    connection.expire(now)
            for stream in list(self._services.streams.values()):
                stream.sweep(now)

    def _note_emptied(self) -> None:
        if self._services.is_draining and not self._connections:
            self._emptied.set()

    def _note_crash(self, error: Exception) -> None:
        if isinstance(error, ExceptionGroup):
            unexpected = error.split((*GONE, OSError))[1]
            if unexpected is None:
                return  # the peer has gone, and more than one task noticed
            error = unexpected
        self.counters.crashed += 1
        if self._may_log():
            _log.error("a connection ended by an unexpected error", exc_info=error)

    def _may_log(self) -> bool:
        """Whether a peer may cause one more log entry this minute."""
        now = trio.current_time()
        self._logged_at = [at for at in self._logged_at if at > now - 60]
        if len(self._logged_at) >= _PEER_LOGS_PER_MINUTE_MAX:
            return False
        self._logged_at.append(now)
        return True


async def _say_last_words(connection: Connection) -> None:
    """Answer a hot request whose answering raised; the connection ends either way."""
    if connection.last_words is None:
        return
    with trio.move_on_after(1):
        try:
            await connection.send_all(connection.last_words())
            await connection.linger(1)
        except (*GONE, OSError):
            pass


def _endpoint(address: tuple[object, ...]) -> Endpoint:
    host, port = address[0], address[1]
    assert isinstance(host, str), address
    assert isinstance(port, int), address
    mapped = parse_address(host)
    return Endpoint(host=host if mapped is None else str(mapped), port=port)


def _tune(sock: trio.socket.SocketType, limits: FrontDoorLimits) -> None:
    """Let the kernel notice peers that are gone or stuck; Trio has set TCP_NODELAY already."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, limits.write_timeout_ms)


def _sweep_interval_s(limits: FrontDoorLimits) -> float:
    """Return a quarter of the shortest time-out, between 20 ms and 1 s."""
    shortest_ms = min(
        limits.head_timeout_ms,
        limits.body_timeout_ms,
        limits.idle_timeout_ms,
        limits.write_timeout_ms,
        limits.stream_idle_ms,
        limits.stream_close_ms,
        limits.stream_ping_ms or limits.stream_idle_ms,
    )
    return min(max(shortest_ms / 4_000, 0.02), 1.0)
