"""Both WebSocket routes, byte by byte: a row for each rule of RFC 6455 that a peer can break.

A row's bytes follow the handshake in one segment. Where they break no rule, a close with 1000
comes after them and is echoed, so every row ends with a close frame or, at worst, without one.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

import attrs
import pytest
import trio
from websockets.frames import Frame, Opcode

from tests.integration.front.doors import RunningDoor, open_door, read_to_end, read_until
from tests.integration.front.test_agent_stream import EchoGate


TEXT, BINARY, CONT = Opcode.TEXT, Opcode.BINARY, Opcode.CONT
PING, PONG, CLOSE = Opcode.PING, Opcode.PONG, Opcode.CLOSE

PATHS = (b"/v1/agents/stream", b"/v1/usage/live")
KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
HEAD = (
    b"GET %b HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\n"
    b"authorization: Bearer good\r\nsec-websocket-key: " + KEY + b"\r\n"
    b"sec-websocket-version: 13\r\n\r\n"
)

Told = tuple[int, bytes]
"""A frame of the server: opcode and payload."""


def frame(opcode: Opcode, data: bytes = b"", *, fin: bool = True) -> bytes:
    """Return a client's frame, masked."""
    return Frame(opcode, data, fin=fin).serialize(mask=True)


def raw(first: int, length: bytes, payload: bytes = b"") -> bytes:
    """Return a client's frame with any first byte and length bytes; its mask is zero."""
    return bytes([first, length[0] | 0x80]) + length[1:] + bytes(4) + payload


def close(code: int, reason: bytes = b"") -> bytes:
    """Return a client's close frame."""
    return frame(CLOSE, struct.pack("!H", code) + reason)


def frames_in(data: bytes) -> Iterator[Told]:
    """Yield the server's frames: whole, without mask, reserved bits and needless length bytes."""
    while data:
        first, length, start = data[0], data[1], 2
        assert first & 0xF0 == 0x80, "fragmented, or a reserved bit"
        assert length < 0x80, "masked"
        if length == 126:
            (length,), start = struct.unpack("!H", data[2:4]), 4
            assert length > 125
        assert length != 127, "no test asks for that much"
        assert len(data) >= start + length, "cut off"
        yield first & 0x0F, data[start : start + length]
        data = data[start + length :]


@attrs.frozen
class Row:
    """What a peer sends, and what it is told; `code` None: it is not told why."""

    rule: str
    sent: bytes
    code: int | None
    told: tuple[Told, ...] = ()


def keeps(rule: str, sent: bytes, *told: Told) -> Row:
    """Return a row that breaks no rule."""
    return Row(rule, sent + close(1000), 1000, told)


def breaks(rule: str, sent: bytes, code: int, *told: Told) -> Row:
    """Return a row that ends the stream with a code; what is sent after it is not read."""
    return Row(rule, sent + frame(TEXT, b"after"), code, told)


def echo(data: bytes) -> Told:
    """Return what the test's session answers to a message."""
    return (TEXT, data)


HALF = frame(TEXT, b"a", fin=False)
WIDE = "é€😀".encode()

ROWS = [
    # 5.1: a client masks every frame.
    breaks("5.1 unmasked text", Frame(TEXT, b"x").serialize(mask=False), 1002),
    breaks("5.1 unmasked ping", Frame(PING, b"").serialize(mask=False), 1002),
    breaks("5.1 unmasked close", Frame(CLOSE, b"\x03\xe8").serialize(mask=False), 1002),
    # 5.2: what the bits of a frame may be.
    *(breaks(f"5.2 reserved bit {bit:#x}", raw(0x81 | bit, b"\0"), 1002) for bit in (64, 32, 16)),
    *(
        breaks(f"5.2 reserved opcode {code:#x}", raw(0x80 | code, b"\0"), 1002)
        for code in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)
    ),
    keeps("5.2 no payload", frame(TEXT), echo(b"")),
    keeps("5.2 125 bytes", frame(TEXT, b"x" * 125), echo(b"x" * 125)),
    keeps("5.2 126 bytes", frame(TEXT, b"x" * 126), echo(b"x" * 126)),
    keeps("5.2 65,535 bytes", frame(TEXT, b"x" * 65_535), echo(b"x" * 65_535)),
    # To write the shortest length is the sender's duty; no rule has a receiver refuse others.
    keeps("5.2 length of 1 in 16 bits", raw(0x81, b"\x7e\0\1", b"x"), echo(b"x")),
    keeps("5.2 length of 1 in 64 bits", raw(0x81, b"\x7f" + bytes(7) + b"\1", b"x"), echo(b"x")),
    breaks("5.2 length of 2^63", raw(0x81, b"\x7f\x80" + bytes(7)), 1009),
    breaks("5.2 length of 2^63 - 1", raw(0x81, b"\x7f\x7f" + b"\xff" * 7), 1009),
    breaks("5.2 more than the message limit", raw(0x82, b"\x7f\0\0\0\0\0\x10\0\1"), 1009),
    # 5.4: fragments.
    keeps("5.4 two fragments", HALF + frame(CONT, b"b"), echo(b"ab")),
    keeps("5.4 empty fragments", frame(TEXT, fin=False) + frame(CONT), echo(b"")),
    keeps(
        "5.4 a thousand fragments",
        HALF + frame(CONT, b"x", fin=False) * 998 + frame(CONT, b"z"),
        echo(b"a" + b"x" * 998 + b"z"),
    ),
    keeps(
        "5.4 a ping, a pong, and a ping between fragments",
        HALF + frame(PING, b"1") + frame(PONG, b"?") + frame(PING, b"2") + frame(CONT, b"b"),
        (PONG, b"1"),
        (PONG, b"2"),
        echo(b"ab"),
    ),
    keeps("5.4 a binary message in fragments", frame(BINARY, b"a", fin=False) + frame(CONT),
          echo(b"binary")),
    # A message that can have no end is as good as a broken one.
    Row("5.4 a close inside of a message", HALF + close(1000), 1002),
    breaks("5.4 a continuation of nothing", frame(CONT, b"x"), 1002),
    breaks("5.4 a first continuation of nothing", frame(CONT, b"x", fin=False), 1002),
    breaks("5.4 a continuation after the end", frame(TEXT, b"a") + frame(CONT), 1002, echo(b"a")),
    breaks("5.4 text inside of a message", HALF + frame(TEXT, b"b"), 1002),
    breaks("5.4 a new start inside of a message", HALF + HALF, 1002),
    breaks("5.4 binary inside of a message", HALF + frame(BINARY, b"b"), 1002),
    # 5.5: control frames are short and whole.
    *(
        breaks(f"5.5 126 bytes in a control frame {code:#x}",
               raw(0x80 | code, b"\x7e\0\x7e", bytes(126)), 1002)
        for code in (8, 9, 10)
    ),
    *(
        breaks(f"5.5 a fragmented control frame {code:#x}", raw(code, b"\0"), 1002)
        for code in (8, 9, 10)
    ),
    keeps("5.5.2 an empty ping", frame(PING), (PONG, b"")),
    keeps("5.5.2 125 bytes of any kind", frame(PING, b"\xff" * 125), (PONG, b"\xff" * 125)),
    keeps("5.5.3 a pong that nobody asked for", frame(PONG, b"x")),
    # 5.5.1: nothing is read after a close.
    Row("5.5.1 text after a close", close(1000) + frame(TEXT, b"x"), 1000),
    Row("5.5.1 a broken frame after a close", close(1000) + raw(0xFF, b"\0"), 1000),
    Row("5.5.1 two closes", close(1000) + close(1001), 1000),
    Row("5.5.1 a close without a code", frame(CLOSE), None, ((CLOSE, b""),)),
    breaks("5.5.1 half a code", frame(CLOSE, b"\x03"), 1002),
    Row("5.5.1 a reason of 123 bytes", close(1000, b"r" * 123), 1000),
    # 7.4: which codes may be sent.
    *(
        Row(f"7.4 {code}", close(code), code)
        for code in (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999)
    ),
    *(
        breaks(f"7.4 {code}", close(code), 1002)
        for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535)
    ),
    # 8.1: text is UTF-8.
    keeps("8.1 all lengths of a character", frame(TEXT, WIDE), echo(WIDE)),
    keeps(
        "8.1 characters split over frames",
        frame(TEXT, WIDE[:1], fin=False)
        + b"".join(frame(CONT, WIDE[at : at + 1], fin=False) for at in range(1, len(WIDE)))
        + frame(CONT),
        echo(WIDE),
    ),
    *(
        breaks(f"8.1 {what}", frame(TEXT, b"ok" + data), 1007)
        for what, data in {
            "a byte that is none": b"\xff",
            "a lone continuation": b"\x80",
            "a surrogate": b"\xed\xa0\x80",
            "an overlong slash": b"\xc0\xaf",
            "beyond U+10FFFF": b"\xf4\x90\x80\x80",
            "half a character at the end": WIDE[:1],
        }.items()
    ),
    breaks("8.1 split over frames", HALF + frame(CONT, b"\xed", fin=False)
           + frame(CONT, b"\xa0\x80"), 1007),
    breaks("8.1 after a good message", frame(TEXT, b"a") + frame(TEXT, b"\xff"), 1007, echo(b"a")),
    breaks("8.1 in the reason of a close", close(1000, b"\xff"), 1007),
    keeps("8.1 not in a binary message", frame(BINARY, b"\xff"), echo(b"binary")),
]  # fmt: skip


async def answers(running: RunningDoor, path: bytes, row: Row, step: int) -> list[Told]:
    """Return the frames that the server sends in answer, the bytes coming `step` at a time."""
    async with await running.connect() as stream:
        sent = HEAD % path + row.sent
        for start in range(0, len(sent), step):
            await stream.send_all(sent[start : start + step])
            if step < len(sent):
                await trio.lowlevel.checkpoint()
        received = await read_to_end(stream)
    head, _, rest = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 ")
    return list(frames_in(rest))


@pytest.mark.parametrize("row", ROWS, ids=[row.rule for row in ROWS])
async def test_what_a_peer_sends_is_answered_as_the_rfc_says(row: Row) -> None:
    """The same on both routes, and in one segment as in many."""
    gate = EchoGate()
    async with open_door(stream_gate=gate) as running:
        steps = (len(row.sent) + 1_000, 1) if len(row.sent) < 1_000 else (100_000, 777)
        for path, step in zip(PATHS, steps, strict=True):
            *told, last = await answers(running, path, row, step)
            if row.code is None:
                told.append(last)
            else:
                assert last[0] == CLOSE
                assert last[1][:2] == struct.pack("!H", row.code)
            # An answer to a message may come before or after pongs.
            assert sorted(told) == sorted(row.told)
        assert running.door.counters.crashed == 0
        assert len(gate.sessions) == 2


@pytest.mark.parametrize("path", PATHS)
async def test_a_peer_that_leaves_in_a_frame_has_left_abnormally(path: bytes) -> None:
    """7.1.5: without a close frame the code is 1006, wherever the bytes end."""
    whole = frame(TEXT, b"x" * 200)
    for end in (1, 2, 3, 5, len(whole) - 1):
        gate = EchoGate()
        async with open_door(stream_gate=gate) as running, await running.connect() as stream:
            await stream.send_all(HEAD % path)
            await read_until(stream, b"\r\n\r\n")
            await stream.send_all(whole[:end])
            await stream.send_eof()
            await read_to_end(stream)
        assert [session.ended for session in gate.sessions] == [[1006]]
        assert gate.sessions[0].texts == []


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"upgrade: websocket", b"Upgrade: WebSocket"),
        (b"connection: Upgrade", b"Connection: keep-alive,  upgrade"),
        (b"\r\n\r\n", b"\r\nsec-websocket-extensions: permessage-deflate\r\n\r\n"),
        (b"\r\n\r\n", b"\r\nsec-websocket-protocol: chat, superchat\r\n\r\n"),
    ],
    ids=["4.2.1 case of upgrade", "4.2.1 several tokens", "9.1 extension", "1.9 subprotocol"],
)
async def test_a_handshake_promises_only_what_is_kept(path: bytes, old: bytes, new: bytes) -> None:
    """4.2.2: the right digest, and neither an extension nor a subprotocol that is not spoken."""
    async with open_door(stream_gate=EchoGate()) as running, await running.connect() as stream:
        await stream.send_all((HEAD % path).replace(old, new))
        head = await read_until(stream, b"\r\n\r\n")

    assert head.startswith(b"HTTP/1.1 101 ")
    assert b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head
    assert b"sec-websocket-extensions" not in head.lower()
    assert b"sec-websocket-protocol" not in head.lower()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("old", "new", "status"),
    [
        (b"sec-websocket-key: " + KEY + b"\r\n", b"", 400),
        (KEY, b"", 400),
        (KEY, b"c2hvcnQ=", 400),
        (KEY, b"not base64 of 16 bytes!!", 400),
        (KEY, KEY + b"\r\nsec-websocket-key: " + KEY, 400),
        (b"sec-websocket-version: 13\r\n", b"", 400),
        (b"version: 13", b"version: 12", 426),
        (b"version: 13", b"version: 013", 426),
        (b"version: 13", b"version: x", 426),
        (b"GET", b"POST", 404),
        (b"HTTP/1.1", b"HTTP/1.0", 400),
        (b"upgrade: websocket", b"upgrade: h2c", 404),
        (b"connection: Upgrade", b"connection: close", 404),
    ],
)
async def test_a_handshake_that_is_none_is_refused(
    path: bytes, old: bytes, new: bytes, status: int
) -> None:
    """4.2.1 and 4.4; what asks for no WebSocket is the application's to answer, here with 404.

    An unknown version is told the known one, and nothing that was sent behind is read as frames.
    """
    gate = EchoGate()
    async with open_door(stream_gate=gate) as running, await running.connect() as stream:
        await stream.send_all((HEAD % path).replace(old, new) + frame(TEXT, b"early"))
        with trio.fail_after(5):
            answer = await stream.receive_some(65_536)

    assert answer.startswith(b"HTTP/1.1 %d " % status)
    spoken = re.findall(rb"(?i)\r\nsec-websocket-version: (.*?)\r\n", answer)
    assert spoken == ([b"13"] if status == 426 else [])
    assert gate.sessions == []
