"""The agent stream of the front door, with a real WebSocket client and with raw frames."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Sequence

import attrs
import pytest
import trio
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode
from websockets.trio.client import connect
from websockets.typing import Subprotocol

from meterd.web.front_door import FrontDoorLimits
from meterd.web.stream_transport import (
    HttpRejected,
    OpenSession,
    StreamClose,
    StreamRejected,
    StreamRequest,
    StreamTransport,
)
from tests.integration.front.doors import RunningDoor, open_door, read_to_end, read_until


PATH = "/v1/agents/stream"
UPGRADE = (
    b"GET /v1/agents/stream HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\n"
    b"upgrade: websocket\r\nauthorization: Bearer good\r\n"
    b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n"
    b"sec-websocket-protocol: meterd.v1\r\n\r\n"
)


@attrs.define
class EchoSession:
    """Answers text with itself, `late:` only once it is released, and pushes when told."""

    transport: StreamTransport
    texts: list[bytes] = attrs.field(factory=list)
    binaries: list[bytes] = attrs.field(factory=list)
    ended: list[int] = attrs.field(factory=list)
    owed: list[bytes] = attrs.field(factory=list)

    def on_texts(self, payloads: Sequence[bytes]) -> None:
        for payload in payloads:
            if self.transport.is_open:
                self._on_text(payload)

    def _on_text(self, payload: bytes) -> None:
        self.texts.append(payload)
        if payload == b"raise":
            raise RuntimeError("planted")
        if payload == b"policy":
            self.transport.close(1008, "twenty errors")
        elif payload.startswith(b"late:"):
            self.owed.append(payload)
        else:
            self.transport.send(payload)

    def on_binary(self, payload: bytes) -> None:
        self.binaries.append(payload)
        self.transport.send(b"binary")

    async def settled(self) -> None:
        await trio.sleep(0.05)
        for payload in self.owed:
            self.transport.send(payload)
        self.owed.clear()

    def on_end(self, code: int) -> None:
        self.ended.append(code)


@attrs.define
class EchoGate:
    """Lets `Bearer good` in and remembers the sessions."""

    sessions: list[EchoSession] = attrs.field(factory=list)
    requests: list[StreamRequest] = attrs.field(factory=list)

    async def admit(self, request: StreamRequest) -> OpenSession | StreamRejected | HttpRejected:
        self.requests.append(request)
        await trio.lowlevel.checkpoint()
        match request.header_values("authorization"):
            case ["Bearer good"]:
                return self.open
            case ["Bearer read"]:
                return StreamRejected(close=StreamClose(code=4403, reason="wrong scope"))
            case ["Bearer away"]:
                return HttpRejected(status=503, body=b"{}", headers=[("Retry-After", "1")])
            case _:
                return StreamRejected(close=StreamClose(code=4401, reason="unauthorized"))

    def open(self, transport: StreamTransport) -> EchoSession:
        session = EchoSession(transport)
        self.sessions.append(session)
        return session


def client(running: RunningDoor, key: str = "good", **options: object) -> connect:
    """Connect like an agent does."""
    return connect(
        f"ws://127.0.0.1:{running.port}{PATH}",
        additional_headers={"Authorization": f"Bearer {key}"},
        subprotocols=[Subprotocol("meterd.v1")],
        **options,  # type: ignore[arg-type]
    )


def masked(opcode: Opcode, data: bytes, *, fin: bool = True) -> bytes:
    """Return a client's frame."""
    return Frame(opcode, data, fin=fin).serialize(mask=True)


async def until(is_true: Callable[[], bool]) -> None:
    """Return when something that happens on other tasks and sockets has happened."""
    with trio.fail_after(5):
        while not is_true():  # noqa: ASYNC110 - the kernel's timing has no event to wait for
            await trio.sleep(0.01)


async def code_of(running: RunningDoor, key: str) -> int | None:
    """Return the close code that a client with this key sees."""
    async with client(running, key) as websocket:
        with pytest.raises(ConnectionClosed) as closed:
            await websocket.recv()
        return closed.value.rcvd.code if closed.value.rcvd else None


async def test_an_agent_talks_and_is_pushed_to() -> None:
    """Answers come at once, pushes at any time, without one waiting for the other."""
    gate = EchoGate()
    async with open_door(stream_gate=gate) as running, client(running) as websocket:
        await websocket.send('{"type":"check"}')
        answer = await websocket.recv()
        gate.sessions[0].transport.send(b'{"type":"stop"}')
        pushed = await websocket.recv()

        assert websocket.subprotocol == "meterd.v1"
        assert (answer, pushed) == ('{"type":"check"}', '{"type":"stop"}')
        assert gate.requests[0].client_address == "127.0.0.1"
        assert gate.requests[0].path == PATH
    assert gate.sessions[0].ended == [1000]


async def test_close_codes_of_a_refused_agent_are_visible_to_its_client() -> None:
    """The upgrade is accepted and then closed, because a failed handshake shows no code."""
    async with open_door(stream_gate=EchoGate()) as running:
        assert await code_of(running, "bad") == 4401
        assert await code_of(running, "read") == 4403


async def test_trouble_of_the_server_is_an_http_answer_with_retry_after() -> None:
    """A client that cannot be judged is not told that it is unauthorized."""
    async with open_door(stream_gate=EchoGate()) as running:
        answer = await running.ask(UPGRADE.replace(b"good", b"away"))

        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"Retry-After: 1\r\n" in answer


@pytest.mark.parametrize(
    ("old", "new", "status"),
    [
        (b"host: a\r\n", b"host: a\r\ncontent-length: 3\r\n", b"400"),
        (b"upgrade: websocket", b"upgrade: h2c", b"404"),
    ],
)
async def test_a_broken_handshake_is_refused(old: bytes, new: bytes, status: bytes) -> None:
    """And the door goes on; a plain GET of this path is the application's to answer."""
    async with open_door(stream_gate=EchoGate()) as running:
        async with await running.connect() as stream:
            await stream.send_all(UPGRADE.replace(old, new))

            assert (await stream.receive_some(13)) == b"HTTP/1.1 " + status + b" "
        assert running.door.counters.crashed == 0


async def test_a_broken_handshake_is_told_as_a_problem_that_repeats_nothing() -> None:
    """The library's own words would quote the header that was wrong."""
    canary = b"canary-7f3a"
    async with open_door(stream_gate=EchoGate()) as running:
        answer = await running.ask(UPGRADE.replace(b"dGhlIHNhbXBsZSBub25jZQ==", canary))
    head, _, body = answer.partition(b"\r\n\r\n")
    problem = json.loads(body)

    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"Content-Type: application/problem+json" in head
    assert b"X-Request-Id: " + problem["request_id"].encode() in head
    assert (problem["status"], problem["code"]) == (400, "bad_request")
    assert canary not in answer


async def test_frames_behind_the_upgrade_head_are_answered_after_the_handshake() -> None:
    """The segment that ended the process with Hypercorn alone is served here."""
    async with open_door(stream_gate=EchoGate()) as running, await running.connect() as stream:
        await stream.send_all(UPGRADE + masked(Opcode.TEXT, b"early"))
        answer = await read_until(stream, b"early")

        assert answer.startswith(b"HTTP/1.1 101 ")
        assert answer.endswith(b"\r\n\r\n\x81\x05early")


async def test_a_message_in_many_fragments_and_segments_arrives_whole() -> None:
    """Fragments, control frames between them and every segment boundary."""
    gate = EchoGate()
    frames = (
        masked(Opcode.TEXT, b"a" * 300, fin=False)
        + masked(Opcode.PING, b"p")
        + masked(Opcode.CONT, "ü".encode()[:1], fin=False)
        + masked(Opcode.CONT, "ü".encode()[1:] + b"z")
    )
    async with open_door(stream_gate=gate) as running, await running.connect() as stream:
        await stream.send_all(UPGRADE)
        await read_until(stream, b"\r\n\r\n")
        for start in range(0, len(frames), 50):
            await stream.send_all(frames[start : start + 50])
            await trio.testing.wait_all_tasks_blocked()
        received = b""
        with trio.fail_after(5):
            while len(received) < 4 + 303 + 3:
                received += await stream.receive_some(65536)

        assert gate.sessions[0].texts == [b"a" * 300 + "üz".encode()]
        assert b"\x8a\x01p" in received


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (masked(Opcode.TEXT, b"x" * (1024 * 1024 + 1)), 1009),
        (
            masked(Opcode.TEXT, b"x" * 700_000, fin=False) + masked(Opcode.CONT, b"x" * 700_000),
            1009,
        ),
        (masked(Opcode.TEXT, b"\xff\xfe"), 1007),
        (masked(Opcode.CONT, b"x"), 1002),
        (Frame(Opcode.TEXT, b"unmasked").serialize(mask=False), 1002),
        (b"\xc1\x80\x00\x00\x00\x00", 1002),
        (masked(Opcode.TEXT, b"policy"), 1008),
    ],
    ids=["long", "long in parts", "no UTF-8", "no start", "unmasked", "reserved bits", "session"],
)
async def test_a_violation_closes_with_its_code_after_what_was_owed(
    frame: bytes, code: int
) -> None:
    """Answers queued before the violation go out first, and the close frame is not reset away."""
    async with open_door(stream_gate=EchoGate()) as running, await running.connect() as stream:
        await stream.send_all(UPGRADE + masked(Opcode.TEXT, b"owed") + frame)
        received = (await read_to_end(stream)).partition(b"\r\n\r\n")[2]

        assert received.startswith(b"\x81\x04owed\x88")
        assert received[8:10] == code.to_bytes(2, "big")
        assert running.door.counters.crashed == 0


async def test_binary_messages_are_the_sessions_to_judge_empty_ones_too() -> None:
    """The contract keeps a connection open for anything it does not understand."""
    gate = EchoGate()
    async with open_door(stream_gate=gate) as running, client(running) as websocket:
        for message in (b"", b"\x00\x01"):
            await websocket.send(message)
            assert await websocket.recv() == "binary"

        assert gate.sessions[0].binaries == [b"", b"\x00\x01"]


async def test_late_answers_are_sent_before_the_close_echo() -> None:
    """A client that closes right after a heartbeat still gets its acknowledgement."""
    gate = EchoGate()
    async with open_door(stream_gate=gate) as running, await running.connect() as stream:
        await stream.send_all(UPGRADE)
        await read_until(stream, b"\r\n\r\n")
        await stream.send_all(masked(Opcode.TEXT, b"late:1") + masked(Opcode.CLOSE, b"\x03\xe8"))

        assert await read_to_end(stream) == b"\x81\x06late:1\x88\x02\x03\xe8"
    assert gate.sessions[0].ended == [1000]


async def test_a_silent_peer_is_pinged_then_closed_with_4408_and_dropped() -> None:
    """A peer that answers nothing at all is gone after idle and close time-outs."""
    limits = FrontDoorLimits(stream_idle_ms=400, stream_ping_ms=150, stream_close_ms=200)
    async with open_door(stream_gate=EchoGate(), limits=limits) as running:
        async with await running.connect() as stream:
            await stream.send_all(UPGRADE)
            await read_until(stream, b"\r\n\r\n")
            received = await read_to_end(stream)

        assert received.startswith(b"\x89\x00")
        assert b"\x88\x06" + (4408).to_bytes(2, "big") + b"idle" in received


async def test_a_client_that_answers_pings_is_not_idle() -> None:
    """An agent that waits for work keeps its stream, and can be told to stop."""
    gate = EchoGate()
    limits = FrontDoorLimits(stream_idle_ms=400, stream_ping_ms=100)
    async with (
        open_door(stream_gate=gate, limits=limits) as running,
        client(running, ping_interval=None) as websocket,
    ):
        await trio.sleep(1.0)
        gate.sessions[0].transport.send(b"still here")

        assert await websocket.recv() == "still here"


async def test_a_slow_reader_loses_its_queue_and_is_closed_with_4508() -> None:
    """Memory is bounded, others are served meanwhile, and the reader learns why in the end."""
    gate = EchoGate()
    limits = FrontDoorLimits(stream_outbox_bytes_max=500_000)
    async with open_door(stream_gate=gate, limits=limits) as running:
        async with await running.connect() as slow, client(running) as quick:
            await slow.send_all(UPGRADE)
            await read_until(slow, b"\r\n\r\n")
            await until(lambda: len(gate.sessions) == 2)
            await quick.send("mark")
            assert await quick.recv() == "mark"
            unmarked = next(session for session in gate.sessions if not session.texts)
            while unmarked.transport.send(b"x" * 10_000):
                await trio.lowlevel.checkpoint()
            await quick.send("meanwhile")

            assert await quick.recv() == "meanwhile"
            assert (await read_to_end(slow)).endswith(
                b"\x88\x14" + (4508).to_bytes(2, "big") + b"reading too slowly"
            )
        assert running.door.counters.streams_slow == 1


async def test_streams_close_with_1012_at_shutdown_and_one_that_never_reads_does_not_block() -> (
    None
):
    """What is queued goes out first; the deadline and abort settle the rest."""
    gate = EchoGate()
    async with open_door(stream_gate=gate) as running, await running.connect() as stuck:
        await stuck.send_all(UPGRADE)
        await read_until(stuck, b"\r\n\r\n")
        await until(lambda: len(gate.sessions) == 1)
        stuck_session = gate.sessions[0]
        for _ in range(300):
            stuck_session.transport.send(b"x" * 10_000)
            await trio.lowlevel.checkpoint()
        async with client(running) as websocket:
            await until(lambda: len(gate.sessions) == 2)
            gate.sessions[1].transport.send(b"last words")
            running.door.stop_accepting()

            assert await websocket.recv() == "last words"
            with pytest.raises(ConnectionClosed) as closed:
                await websocket.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012
        assert not await running.door.drained(timeout_ms=100)
        running.door.abort_all()
        assert await running.door.drained(timeout_ms=2_000)
        assert stuck_session.ended == [1006]


async def test_a_flood_of_empty_pings_leaves_other_connections_their_turn() -> None:
    """64 KiB of empty pings are ten thousand frames: they are parsed a slice at a time."""
    async with open_door(stream_gate=EchoGate()) as running, await running.connect() as flooder:
        await flooder.send_all(UPGRADE)
        await read_until(flooder, b"\r\n\r\n")
        turns: list[float] = []

        async def take_turns() -> None:
            while True:
                turns.append(time.thread_time())  # what this thread worked, whatever else runs
                await trio.lowlevel.checkpoint()

        async def drain() -> None:
            while await flooder.receive_some(65536):
                pass

        async with trio.open_nursery() as nursery:
            nursery.start_soon(take_turns)
            nursery.start_soon(drain)
            for _ in range(4):
                await flooder.send_all(masked(Opcode.PING, b"") * 10_922)
            await trio.sleep(0.3)
            nursery.cancel_scope.cancel()

        longest_s = max(after - before for before, after in itertools.pairwise(turns))
        assert longest_s < 0.04


async def test_a_session_that_raises_costs_one_stream() -> None:
    """Its peer sees an abnormal close; the session is told; the next agent is served."""
    gate = EchoGate()
    async with open_door(stream_gate=gate) as running:
        async with client(running) as websocket:
            await websocket.send("raise")
            with pytest.raises(ConnectionClosed):
                await websocket.recv()
        async with client(running) as again:
            await again.send("hello")

            assert await again.recv() == "hello"
        assert gate.sessions[0].ended == [1006]
        assert running.door.counters.crashed == 1
