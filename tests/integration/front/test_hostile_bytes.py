"""No bytes of a peer cost more than its own connection."""

from __future__ import annotations

import zlib

import pytest
import trio
from websockets.frames import Frame, Opcode

from tests.integration.front.doors import RunningDoor, open_door, read_to_end, read_until


UPGRADE = (
    b"GET /live HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n"
)
HELLO = b"GET /hello HTTP/1.1\r\nhost: a\r\n\r\n"


def masked(opcode: Opcode, data: bytes) -> bytes:
    """Return a client's frame."""
    return Frame(opcode, data).serialize(mask=True)


def compressed(frame: bytes) -> bytes:
    """Set the bit that says a frame's payload is deflated (RFC 7692)."""
    return bytes([frame[0] | 0x40]) + frame[1:]


async def is_alive(running: RunningDoor) -> bool:
    """Whether a new connection is still served."""
    answer = await running.ask(HELLO.replace(b"host", b"connection: close\r\nhost"))
    return answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b"hello")


async def test_a_frame_right_behind_an_upgrade_head_costs_only_its_connection() -> None:
    """These bytes end the whole process with Hypercorn alone (its issue 225)."""
    async with open_door() as running, await running.connect() as other:
        await other.send_all(HELLO)
        await read_until(other, b"hello")

        answer = await running.ask(UPGRADE + b"\r\n" + masked(Opcode.TEXT, b"early"))
        await other.send_all(HELLO)

        assert answer.startswith(b"HTTP/1.1 400 ")
        assert (await read_until(other, b"hello")).startswith(b"HTTP/1.1 200 ")
        assert await is_alive(running)


async def test_a_frame_sent_before_the_upgrade_is_answered_costs_only_its_connection() -> None:
    """The same fault in two segments, at every distance the scheduler allows."""
    async with open_door() as running:
        for _ in range(50):
            async with await running.connect() as stream:
                await stream.send_all(UPGRADE + b"\r\n")
                await stream.send_all(masked(Opcode.TEXT, b"early"))

        assert await is_alive(running)


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"505"),
        (
            (
                b"POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n"
                b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n"
            ),
            b"400",
        ),
        (
            b"POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\ncontent-length: 4\r\n\r\nabcd",
            b"400",
        ),
        (b"POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: +4\r\n\r\nabcd", b"400"),
        (b"POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 4,4\r\n\r\nabcd", b"400"),
        (b"POST /echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n", b"501"),
        (b"GET /hello HTTP/1.1\nhost: a\r\n\r\n", b"400"),
        (b"GET /hello HTTP/1.1\r\nhost: a\nx: y\r\n\r\n", b"400"),
        (b"GET /hello HTTP/1.1\r\nhost: a\r\n folded\r\n\r\n", b"400"),
        (b"GET /hello HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", b"400"),
        (b"GET /hello HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /hello HTTP/1.1\r\nhost: a\r\nx y: z\r\n\r\n", b"400"),
        (b"GET /hello HTTP/1.1\r\nhost: a\r\nx: \x00\r\n\r\n", b"400"),
        (b"GET  /hello HTTP/1.1\r\nhost: a\r\n\r\n", b"400"),
        (b"GET ?x HTTP/1.1\r\nhost: a\r\n\r\n", b"400"),
        (b"GET http://[ HTTP/1.1\r\nhost: a\r\n\r\n", b"400"),
        (b"GET /hello HTTP/1.1\r\nhost: a\r\nx: " + b"y" * 20_000 + b"\r\n\r\n", b"431"),
        (b"GET /" + b"y" * 20_000, b"431"),
        (b"GET /hello HTTP/1.1\r\nhost: a\r\n" + b"x: y\r\n" * 200 + b"\r\n", b"431"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"400"),
        (b"\r\n\r\n", b"400"),
    ],
)
async def test_a_malformed_request_gets_a_short_answer_and_a_close(
    request_bytes: bytes, status: bytes
) -> None:
    """What two parsers could read differently is refused before any application sees it."""
    async with open_door() as running:
        answer = await running.ask(request_bytes)

        assert answer.startswith(b"HTTP/1.1 " + status + b" ")
        assert b"connection: close\r\n" in answer.lower()
        assert await is_alive(running)


@pytest.mark.parametrize(
    "second",
    [
        (
            b"POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n"
            b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n"
        ),
        b"POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\ncontent-length: 4\r\n\r\nabcd",
        b"GET /hello HTTP/1.1\nhost: a\n\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        UPGRADE + b"\r\n" + masked(Opcode.TEXT, b"early"),
    ],
)
async def test_later_requests_of_a_connection_are_held_to_the_same_rules(second: bytes) -> None:
    """The door sees the first request only; the rest is inspected in front of Hypercorn."""
    async with open_door() as running, await running.connect() as stream:
        await stream.send_all(HELLO)
        await read_until(stream, b"hello")
        await stream.send_all(second)
        answer = await read_to_end(stream)

        assert answer[:12] in {b"HTTP/1.1 400", b"HTTP/1.1 505"}
        assert running.seen.bodies == []
        assert await is_alive(running)


async def test_an_h2c_upgrade_is_ignored_and_answered_in_http_1_1() -> None:
    """HTTP/2 is off on every port, by preface and by upgrade."""
    async with open_door() as running, await running.connect() as stream:
        await stream.send_all(
            b"GET /hello HTTP/1.1\r\nhost: a\r\nconnection: Upgrade, HTTP2-Settings\r\n"
            b"upgrade: h2c\r\nhttp2-settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n"
        )
        answer = await read_until(stream, b"hello")

        assert answer.startswith(b"HTTP/1.1 200 ")


async def test_an_absolute_target_reaches_the_application_like_a_plain_one() -> None:
    """RFC 9112 (3.2.2) has a server accept the form that is meant for proxies."""
    async with open_door() as running, await running.connect() as stream:
        await stream.send_all(b"GET http://a/hello HTTP/1.1\r\nhost: a\r\n\r\n")

        assert (await read_until(stream, b"hello")).startswith(b"HTTP/1.1 200 ")


async def test_an_empty_binary_message_reaches_the_application_as_empty_text() -> None:
    """Quart alone would hand None to a handler that expects text or bytes."""
    async with open_door() as running, await running.connect() as stream:
        await stream.send_all(UPGRADE + b"\r\n")
        await read_until(stream, b"\r\n\r\n")
        await stream.send_all(masked(Opcode.BINARY, b""))
        with trio.fail_after(5):
            await stream.receive_some(100)

        assert running.seen.websocket_messages == [""]


async def test_compression_is_never_negotiated_so_a_deflate_bomb_stays_small() -> None:
    """204 KB in were 453 MB in memory when Hypercorn offered permessage-deflate."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = deflate.compress(b"\x00" * 200_000_000) + deflate.flush(zlib.Z_SYNC_FLUSH)
    async with open_door() as running, await running.connect() as stream:
        await stream.send_all(
            UPGRADE
            + b"sec-websocket-extensions: permessage-deflate; client_max_window_bits\r\n\r\n"
        )
        head = await read_until(stream, b"\r\n\r\n")
        await stream.send_all(compressed(masked(Opcode.BINARY, bomb[:-4])))
        answer = await read_to_end(stream)

        assert len(bomb) > 150_000
        assert b"101" in head
        assert b"sec-websocket-extensions" not in head.lower()
        assert answer == b"" or answer[2:4] == (1002).to_bytes(2, "big")
        assert running.seen.extensions == [None]
        assert running.seen.websocket_messages == []
        assert await is_alive(running)
