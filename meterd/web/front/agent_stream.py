"""`GET /v1/agents/stream` on a front door connection: `websockets`' sans-I/O protocol on Trio.

Rule 1: whoever writes takes the write turn first, so frames never interleave; a reader whose
answers cannot be written stops reading, which is all the back-pressure there is.
Rule 2: the protocol never sees more than SLICE_BYTES at once, and other connections get a turn
between slices: 64 KiB of empty pings would hold the loop for tens of milliseconds.
Rule 3: what the session has queued, and what it owes when a client asks to close, is written
before any close frame; a client may stop listening the moment it has seen one.
Rule 4: no extension is negotiated, so one byte in is at most one byte in memory.

A stream lives: handshake -> open (reader and writer tasks) -> closing -> lingering -> gone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from http import HTTPStatus
from math import inf
from typing import Final

import trio
from websockets.exceptions import ProtocolError
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from meterd.web.front.connection import GONE, READ_BYTES, WRITE_BYTES, Connection
from meterd.web.front.counters import DoorCounters
from meterd.web.front.head import Head, Refused
from meterd.web.front.limits import FrontDoorLimits
from meterd.web.front.wire import PROBLEM_JSON, problem, text_frame
from meterd.web.stream_transport import (
    CLOSE_IDLE,
    CLOSE_RESTARTING,
    CLOSE_SLOW_READER,
    SUBPROTOCOL,
    HttpRejected,
    Outbox,
    StreamClose,
    StreamGate,
    StreamRejected,
    StreamRequest,
    StreamSession,
)


STREAM_PATHS: Final = frozenset({b"/v1/agents/stream", b"/v1/usage/live"})
"""What is carried here; the gate knows them apart."""

SLICE_BYTES: Final = 4_096
"""Bytes parsed in one turn: at most 682 empty frames, some 3 ms; more would be felt by others."""

BAD_HANDSHAKE: Final = Refused(
    status=400, code="bad_request", detail="The WebSocket handshake is not valid (RFC 6455)."
)
OTHER_VERSION: Final = Refused(
    status=426, code="upgrade_required", detail="Version 13 of WebSocket is spoken here (RFC 6455)."
)

_VERSION: Final = "13"

_READER_PAUSE_BYTES: Final = 256 * 1024
"""With more than this waiting to be written, nothing more is read from this peer."""

_ABNORMAL: Final = 1006
_protocol_log = logging.getLogger("meterd.web.front.websocket")
_protocol_log.setLevel(logging.WARNING)  # it would log every open and close


def _choose_subprotocol(
    protocol: ServerProtocol, offered: Sequence[Subprotocol]
) -> Subprotocol | None:
    """Speak `meterd.v1` when offered; a client that names none gets the same stream."""
    del protocol
    return Subprotocol(SUBPROTOCOL) if SUBPROTOCOL in offered else None


def _reword(response: Response, body: bytes, headers: Iterable[tuple[str, str]]) -> None:
    """Give an answer another body, and the headers that go with it."""
    for name in ("Content-Type", "Content-Length"):
        del response.headers[name]
    response.headers["Content-Length"] = str(len(body))
    for name, value in headers:
        response.headers[name] = value
    response.body = body


class AgentStream:
    """One agent's WebSocket, from the upgrade request to the last byte."""

    def __init__(
        self,
        connection: Connection,
        *,
        limits: FrontDoorLimits,
        counters: DoorCounters,
        new_request_id: Callable[[], str],
    ) -> None:
        self._connection = connection
        self._limits = limits
        self._counters = counters
        self._new_request_id = new_request_id
        self._protocol = ServerProtocol(
            select_subprotocol=_choose_subprotocol,
            max_size=limits.stream_message_bytes_max,
            logger=_protocol_log,
        )
        self.outbox = Outbox(
            items_max=limits.stream_outbox_items_max, bytes_max=limits.stream_outbox_bytes_max
        )
        self._session: StreamSession | None = None
        self._texts: list[bytes] = []  # of the slice at hand
        self._control: list[bytes] = []  # pongs and pings, written after the queued messages
        self._fragments: bytearray | None = None
        self._is_garbled = False  # text that is not UTF-8 has come
        self._is_writing = False
        self._turn_over: trio.Event | None = None
        self._has_peer_closed = trio.Event()
        self._heard_at = trio.current_time()
        self._pinged_at = self._heard_at
        self._close_deadline = inf

    async def run(self, head: bytes, request: StreamRequest, gate: StreamGate) -> None:
        """Serve the upgrade request `head`; returns when the connection is done with."""
        protocol = self._protocol
        protocol.receive_data(head)
        for event in protocol.events_received():
            assert isinstance(event, Request), event
            verdict = await gate.admit(request)
            if isinstance(verdict, HttpRejected):
                await self._reject(verdict)
                return
            protocol.send_response(self._answer_to(event))
            await self._write(protocol.data_to_send())
            if protocol.state is not State.OPEN:
                break
            if isinstance(verdict, StreamRejected):
                await self.close_at_once(verdict.close)
                return
            self._connection.deadline = inf
            self._session = verdict(self.outbox)
            await self._run_session(self._session)
            return
        await self._write(protocol.data_to_send())
        await self._connection.linger(self._limits.linger_ms / 1000)

    async def refuse(self, head: bytes, close: StreamClose) -> None:
        """Accept the upgrade request `head` only to say why the stream closes again."""
        protocol = self._protocol
        protocol.receive_data(head)
        for event in protocol.events_received():
            assert isinstance(event, Request), event
            protocol.send_response(self._answer_to(event))
        if protocol.state is State.OPEN:
            await self.close_at_once(close)
        else:
            await self._write(protocol.data_to_send())
            await self._connection.linger(self._limits.linger_ms / 1000)

    async def close_at_once(self, close: StreamClose) -> None:
        """Send the close frame and wait a moment for the peer's."""
        self._protocol.send_close(close.code, close.reason)
        await self._write(self._protocol.data_to_send())
        await self._connection.linger(self._limits.stream_close_ms / 1000)

    def sweep(self, now: float) -> None:
        """Ping a silent peer, close one silent for too long, drop one that will not close."""
        silent_s = now - self._heard_at
        if now > self._close_deadline:
            self._connection.drop()
        elif silent_s > self._limits.stream_idle_ms / 1000:
            self.outbox.close(CLOSE_IDLE, "idle")
        elif (
            0 < self._limits.stream_ping_ms / 1000 < now - max(self._heard_at, self._pinged_at)
            and self._protocol.state is State.OPEN
        ):
            self._pinged_at = now
            self._protocol.send_ping(b"")
            self._control += self._protocol.data_to_send()
            self.outbox.wake()

    def drain(self) -> None:
        """Close with 1012; the client reconnects and sends its latest totals."""
        self.outbox.close(CLOSE_RESTARTING, "server restarting")

    def _answer_to(self, request: Request) -> Response:
        """Return the 101, or a problem: the library's own words quote the request."""
        versions = request.headers.get_all("Sec-WebSocket-Version")
        if versions and versions != [_VERSION]:  # 4.2.2: who speaks another is told ours
            answer = self._protocol.reject(HTTPStatus.UPGRADE_REQUIRED, "")
            self._refuse(answer, OTHER_VERSION, ("Sec-WebSocket-Version", _VERSION))
            return answer
        answer = self._protocol.accept(request)
        if answer.status_code != HTTPStatus.SWITCHING_PROTOCOLS:
            self._refuse(answer, BAD_HANDSHAKE)
        return answer

    def _refuse(self, answer: Response, why: Refused, *headers: tuple[str, str]) -> None:
        request_id = self._new_request_id()
        named = (("Content-Type", PROBLEM_JSON), ("X-Request-Id", request_id), *headers)
        _reword(answer, problem(why, request_id), named)

    async def _reject(self, rejected: HttpRejected) -> None:
        response = self._protocol.reject(rejected.status, "")
        _reword(response, rejected.body, rejected.headers)
        self._protocol.send_response(response)
        await self._write(self._protocol.data_to_send())
        await self._connection.linger(self._limits.linger_ms / 1000)

    async def _run_session(self, session: StreamSession) -> None:
        self._counters.streams_opened += 1
        self._counters.open_streams += 1
        self._heard_at = trio.current_time()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write_queued, nursery.cancel_scope)
                try:
                    await self._read_frames(session)
                    self._has_peer_closed.set()
                    await self._say_farewell(session)
                except GONE:
                    pass
                nursery.cancel_scope.cancel()
            await self._connection.linger(self._limits.stream_close_ms / 1000)
        finally:
            self._counters.open_streams -= 1
            closing = self.outbox.closing
            if closing is not None and closing.code == CLOSE_SLOW_READER:
                self._counters.streams_slow += 1
            self.outbox.end()
            received = self._protocol.close_rcvd
            session.on_end(_ABNORMAL if received is None else received.code)

    async def _read_frames(self, session: StreamSession) -> None:
        """Give every message to the session until the peer closes, fails or leaves."""
        protocol, connection = self._protocol, self._connection
        data: bytes | bytearray = bytes(connection.unread)  # sent too early, answered in time
        connection.unread.clear()
        while True:
            data = data or await connection.stream.receive_some(READ_BYTES)
            if not data:
                protocol.receive_eof()
                return
            self._heard_at = trio.current_time()
            for start in range(0, len(data), SLICE_BYTES):
                protocol.receive_data(data[start : start + SLICE_BYTES])
                self.outbox.hold()  # what is answered at once is written below, by this task
                for frame in protocol.events_received():
                    assert isinstance(frame, Frame), frame
                    self._on_frame(frame, session)
                self._give_texts(session)
                self.outbox.release()
                if protocol.close_rcvd is not None or protocol.parser_exc is not None:
                    return
                if protocol.state is State.OPEN:
                    self._control += protocol.data_to_send()
                if self.outbox or self._control:
                    await self._flush()
                elif start + SLICE_BYTES < len(data):
                    await trio.lowlevel.checkpoint()
                while self.outbox.queued_bytes > _READER_PAUSE_BYTES:
                    await self._flush()
            data = b""

    def _on_frame(self, frame: Frame, session: StreamSession) -> None:
        opcode = frame.opcode
        if self._is_garbled:
            return  # RFC 6455, 7.1.7: nothing is processed after a failure
        if opcode is Opcode.TEXT and frame.fin:
            self._on_text(bytes(frame.data))
        elif opcode in {Opcode.TEXT, Opcode.BINARY, Opcode.CONT}:
            self._on_fragment(frame, session)

    def _on_fragment(self, frame: Frame, session: StreamSession) -> None:
        """Assemble a message; the protocol has checked its size and the order of its frames."""
        if frame.opcode is not Opcode.CONT:
            self._is_binary = frame.opcode is Opcode.BINARY
            self._fragments = bytearray()
        assert self._fragments is not None, frame
        self._fragments += frame.data
        if frame.fin:
            message = bytes(self._fragments)
            self._fragments = None
            if not self._is_binary:
                self._on_text(message)
            else:
                self._give_texts(session)
                if self.outbox.is_open:
                    session.on_binary(message)

    def _on_text(self, payload: bytes) -> None:
        if not payload.isascii():
            try:
                payload.decode()
            except UnicodeDecodeError:
                self._is_garbled = True
                self._protocol.parser_exc = ProtocolError("invalid UTF-8")
                self._protocol.fail(CloseCode.INVALID_DATA, "invalid UTF-8")
                return
        self._texts.append(payload)

    def _give_texts(self, session: StreamSession) -> None:
        """Give the session what has come, all at once: reports are cheaper together."""
        texts, self._texts = self._texts, []
        if texts and self.outbox.is_open:  # else we have asked to close: nothing more is taken
            self._counters.stream_messages += len(texts)
            session.on_texts(texts)

    async def _say_farewell(self, session: StreamSession) -> None:
        """Write what is owed, then the close frame (or echo) that the protocol has prepared."""
        farewell = b"".join(self._protocol.data_to_send())
        if self._protocol.close_rcvd is not None and self.outbox.is_open:
            with trio.move_on_after(self._limits.stream_settle_ms / 1000):
                await session.settled()
        await self._flush()
        if farewell:
            await self._write([farewell])

    async def _write_queued(self, scope: trio.CancelScope) -> None:
        """Write what sessions queue while the reader waits, and the close they ask for."""
        protocol = self._protocol
        try:
            while True:
                await self.outbox.wait_ready()
                await self._flush()
                close = self.outbox.closing
                if close is not None and not self.outbox and protocol.state is State.OPEN:
                    protocol.send_close(close.code, close.reason)
                    self._close_deadline = trio.current_time() + self._limits.stream_close_ms / 1000
                    await self._write(protocol.data_to_send())
                    await self._has_peer_closed.wait()
                    return
        except GONE:
            scope.cancel()

    async def _flush(self) -> None:
        """Write everything queued, messages first, in as few writes as the bound allows."""
        while self.outbox or self._control:
            if self._is_writing:
                await self._wait_turn()
                continue
            payloads = self.outbox.take(WRITE_BYTES)
            chunks = [text_frame(payload) for payload in payloads]
            if not self.outbox:
                chunks += self._control
                self._control = []
            await self._write(chunks)

    async def _write(self, chunks: Sequence[bytes]) -> None:
        """Write in one go, after whoever is writing now."""
        while self._is_writing:
            await self._wait_turn()
        self._is_writing = True
        try:
            await self._connection.send_all(b"".join(chunks))
        finally:
            self._is_writing = False
            if self._turn_over is not None:
                self._turn_over.set()
                self._turn_over = None

    async def _wait_turn(self) -> None:
        """Return after whoever writes now; the turn may then be someone else's already."""
        if self._turn_over is None:
            self._turn_over = trio.Event()
        await self._turn_over.wait()


def stream_request(head: Head, client_address: str) -> StreamRequest:
    """Return what a gate needs to know of an upgrade request."""
    return StreamRequest(
        path=head.path.decode("ascii"),
        query=head.query.decode("ascii"),
        headers=[(name.decode("ascii"), value.decode("latin-1")) for name, value in head.headers],
        client_address=client_address,
    )
