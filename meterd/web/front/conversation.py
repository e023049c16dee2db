"""One connection's requests: answered hot, served as an agent stream, or handed to Hypercorn.

Rule 1: a request is looked at by the hot path first; what it does not recognise is inspected,
then belongs to the agent stream or to Hypercorn, and with it the rest of the connection.
Rule 2: answers to pipelined requests go out in one write and in the order of the requests.
Rule 3: every wait for the peer has a deadline, which the door's sweeper enforces.
Rule 4: what a connection asks again, byte for byte, may be answered without looking at it again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from math import inf

import attrs
import trio

from meterd.web.front.addresses import AddressBook, TrustedProxies
from meterd.web.front.agent_stream import STREAM_PATHS, AgentStream, stream_request
from meterd.web.front.connection import Connection
from meterd.web.front.counters import DoorCounters
from meterd.web.front.handover import HttpServer
from meterd.web.front.head import Head, Refused, inspect_beginning, inspect_head
from meterd.web.front.hot import Again, HotHead, HotPath, HotRequest, Repeatable, recognise
from meterd.web.front.lane import Lane
from meterd.web.front.limits import FrontDoorLimits
from meterd.web.front.wire import refusal
from meterd.web.stream_transport import CLOSE_TOO_MANY_CONNECTIONS, StreamClose, StreamGate


_HEAD_END = b"\r\n\r\n"

DRAIN_LINGER_S = 0.1
"""Seconds for the peer of a connection that a stop closes; a lost answer is asked for again."""

TOO_MANY_STREAMS = StreamClose(code=CLOSE_TOO_MANY_CONNECTIONS, reason="too many connections")


@attrs.define(kw_only=True)
class Services:
    """What the conversations of one door share."""

    limits: FrontDoorLimits
    counters: DoorCounters
    http: HttpServer
    proxies: TrustedProxies
    book: AddressBook
    new_request_id: Callable[[], str]
    hot_path: HotPath | None
    gate: StreamGate | None
    lane: Lane
    streams: dict[Connection, AgentStream] = attrs.field(factory=dict)
    is_draining: bool = False

    def server_error(self) -> bytes:
        """Return the answer to a hot request whose answering raised."""
        failed = Refused(status=500, code="internal_error", detail="The request failed.")
        return refusal(failed, request_id=self.new_request_id())


class Conversation:
    """Serves one connection from its first byte to its last."""

    __slots__ = (
        "_again",
        "_answers",
        "_connection",
        "_has_served",
        "_last_head",
        "_last_hot",
        "_services",
    )

    def __init__(self, connection: Connection, services: Services) -> None:
        self._connection = connection
        self._services = services
        self._answers: list[bytes] = []
        self._has_served = False
        self._last_head = b""
        self._last_hot: HotHead | None = None
        self._again: Again | None = None

    async def run(self) -> None:
        """Answer requests until the peer leaves or someone else takes the connection over."""
        connection = self._connection
        while True:
            end = connection.unread.find(_HEAD_END)
            if end < 0:
                await self._send_answers()
                if not await self._receive_head():
                    return
                continue
            head_size = end + len(_HEAD_END)
            head = bytes(connection.unread[:head_size])
            hot = self._recognise(head)
            if hot is None or not await self._answer_hot(hot, head_size):
                await self._send_answers()
                await self._serve_otherwise(head)
                return
            if len(self._answers) >= self._services.limits.hot_pipeline_max:
                await self._send_answers()
            if self._services.is_draining:
                await self._send_answers()
                return

    async def turn_away(self, refused: Refused) -> None:
        """Tell a connection over a limit so, in the protocol it asks for, and end it."""
        connection, limits = self._connection, self._services.limits
        with trio.move_on_after(limits.refusal_timeout_ms / 1000):
            while _HEAD_END not in connection.unread:
                if self._beginning_refused() or not await connection.receive_more():
                    break
            end = connection.unread.find(_HEAD_END) + len(_HEAD_END)
            head_bytes = bytes(connection.unread[:end])
            head = self._inspect(head_bytes)
            if isinstance(head, Head) and head.is_websocket_upgrade:
                await self._stream().refuse(head_bytes, TOO_MANY_STREAMS)
            else:
                await self._refuse(refused, retry_after_s=1)

    def _recognise(self, head: bytes) -> HotHead | None:
        if self._services.hot_path is None:
            return None
        if head != self._last_head:
            limits = self._services.limits
            self._last_head, self._again = head, None
            self._last_hot = recognise(
                head,
                head_bytes_max=limits.head_bytes_max,
                headers_max=limits.headers_max,
                body_bytes_max=limits.hot_body_bytes_max,
            )
        return self._last_hot

    async def _receive_head(self) -> bool:
        """Wait for more of a head; False when the connection is to be closed."""
        connection, services = self._connection, self._services
        if connection.unread:
            if (refused := self._beginning_refused()) is not None:
                services.counters.malformed += 1
                await self._refuse(refused)
                return False
        else:
            if services.is_draining:
                return False
            connection.is_idle = True
            if self._has_served:
                connection.deadline = trio.current_time() + services.limits.idle_timeout_ms / 1000
        was_idle = connection.is_idle
        if not await self._receive_more():
            return False
        connection.is_idle = False
        if was_idle and self._has_served:
            connection.deadline = trio.current_time() + services.limits.head_timeout_ms / 1000
        return True

    async def _receive_more(self) -> bool:
        """Read on; meanwhile the lane answers what is asked again."""
        connection, again = self._connection, self._again
        if again is None or connection.unread or connection.is_tls:
            return await connection.receive_more()
        connection.last_words = self._services.server_error
        more = await self._services.lane.ride(connection, self._last_head, again)
        connection.last_words = None
        return more

    async def _answer_hot(self, hot: HotHead, head_size: int) -> bool:
        """Answer one hot request; False when the hot path leaves it to an application."""
        connection, services = self._connection, self._services
        # Should anything raise, the guard of the connection sends these before it closes.
        connection.last_words = services.server_error
        answer = None if self._again is None else self._again()
        if answer is None:
            answer = await self._ask_hot_path(hot, head_size)
        connection.last_words = None
        if answer is None:
            return False
        del connection.unread[: head_size + hot.content_length]
        self._answers.append(answer)
        self._has_served = True
        services.counters.hot_answers += 1
        return True

    async def _ask_hot_path(self, hot: HotHead, head_size: int) -> bytes | None:
        connection, services = self._connection, self._services
        size = head_size + hot.content_length
        if len(connection.unread) < size:
            await self._send_answers()
            connection.deadline = trio.current_time() + services.limits.body_timeout_ms / 1000
            while len(connection.unread) < size:
                if not await connection.receive_more():
                    raise trio.BrokenResourceError  # gone in the middle of a request
        assert services.hot_path is not None
        request = HotRequest(
            route=hot.route,
            method=hot.method,
            path=hot.path,
            query=hot.query,
            agent_id=hot.agent_id,
            task_id=hot.task_id,
            authorization=hot.authorization,
            body=bytes(connection.unread[head_size:size]),
            client_address=services.proxies.client_of(connection.peer.host, hot.forwarded_for),
        )
        answer = services.hot_path(request)
        if isinstance(answer, Awaitable):
            connection.deadline = inf
            await self._send_answers()
            answer = await answer
        if isinstance(answer, Repeatable):
            assert hot.content_length == 0, "the lane takes a head for the whole request"
            self._again = answer.again
            return answer.answer
        return answer

    async def _send_answers(self) -> None:
        if self._answers:
            data = b"".join(self._answers)
            self._answers.clear()
            await self._connection.send_all(data)

    async def _serve_otherwise(self, head_bytes: bytes) -> None:
        """Give the connection, from this request on, to whom it belongs."""
        connection, services = self._connection, self._services
        head = self._inspect(head_bytes)
        if isinstance(head, Refused):
            services.counters.malformed += 1
            await self._refuse(head)
            return
        if head.is_websocket_upgrade and head.path in STREAM_PATHS and services.gate is not None:
            await self._serve_stream(head_bytes, head, services.gate)
            return
        connection.deadline = inf
        await services.http.serve(connection)
        linger_s = services.limits.linger_ms / 1000
        if services.is_draining:  # idle clients close late or never: the next meterd waits for us
            linger_s = min(linger_s, DRAIN_LINGER_S)
        await connection.linger(linger_s)

    async def _serve_stream(self, head_bytes: bytes, head: Head, gate: StreamGate) -> None:
        connection, services = self._connection, self._services
        del connection.unread[: len(head_bytes)]
        stream = self._stream()
        forwarded_for = head.values(b"x-forwarded-for")
        address = services.proxies.client_of(connection.peer.host, forwarded_for)
        # A proxy's own connections are not counted: count the client it speaks for instead.
        is_proxied = address != connection.peer.host
        key = services.book.enter(address) if is_proxied else None
        if is_proxied and key is None:
            services.counters.refused_address += 1
            await stream.refuse(head_bytes, TOO_MANY_STREAMS)
            return
        connection.deadline = trio.current_time() + services.limits.head_timeout_ms / 1000
        services.streams[connection] = stream
        if services.is_draining:
            stream.drain()
        try:
            await stream.run(head_bytes, stream_request(head, address), gate)
        finally:
            del services.streams[connection]
            if key is not None:
                services.book.leave(key)

    def _beginning_refused(self) -> Refused | None:
        return inspect_beginning(
            self._connection.unread, head_bytes_max=self._services.limits.head_bytes_max
        )

    def _stream(self) -> AgentStream:
        services = self._services
        return AgentStream(
            self._connection,
            limits=services.limits,
            counters=services.counters,
            new_request_id=services.new_request_id,
        )

    def _inspect(self, head_bytes: bytes) -> Head | Refused:
        limits = self._services.limits
        return inspect_head(
            head_bytes, head_bytes_max=limits.head_bytes_max, headers_max=limits.headers_max
        )

    async def _refuse(self, refused: Refused, *, retry_after_s: int | None = None) -> None:
        request_id = self._services.new_request_id()
        await self._connection.send_all(
            refusal(refused, request_id=request_id, retry_after_s=retry_after_s)
        )
        await self._connection.linger(self._services.limits.linger_ms / 1000)
