"""SIGTERM under load: answers go out, everything is flushed, nobody can hold the exit up."""

from __future__ import annotations

import contextlib
import json
import socket
from urllib.parse import urlsplit

import pytest
import trio

from tests.integration.service.books import assert_books_are_right
from tests.integration.service.harness import running_meterd
from tests.integration.service.load import Books, run_agents
from tests.integration.service.stream import open_stream


pytestmark = pytest.mark.slow


async def test_sigterm_under_load_with_a_client_that_never_reads_ends_within_ten_seconds(
    database_url: str,
) -> None:
    """Exit 0, everything flushed, and the streams are told 1012 so that they come back."""
    books = Books()
    options = ("--database-url", database_url)
    async with running_meterd(*options) as service:
        key = await service.organization("acme", "enterprise")
        target = urlsplit(service.url)
        with socket.create_connection((target.hostname, target.port)) as never_reads:
            request = (
                f"GET /openapi.json HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n\r\n"
            )
            never_reads.sendall(request.encode() * 200)
            async with open_stream(service.stream_url, key) as stream:
                await stream.start("t", "a")
                async with trio.open_nursery() as nursery:

                    async def agents() -> None:
                        await run_agents(
                            service.url,
                            key,
                            books,
                            agents=8,
                            until=lambda: False,
                            settle_ms=200,
                        )

                    nursery.start_soon(agents)
                    await trio.sleep(1.5)
                    began = trio.current_time()
                    assert await service.stop() == 0
                    took_s = trio.current_time() - began
                    nursery.cancel_scope.cancel()
                await stream.socket.wait_closed()
        log = [json.loads(line) for line in service.log if line.startswith("{")]

    assert took_s < 10
    assert stream.socket.close_code == 1012
    assert [line for line in log if line["event"] == "stopped"]
    assert not [line for line in log if line["event"] == "stopped_with_unflushed_facts"]
    await assert_books_are_right(*options)


async def test_sigterm_with_streams_that_are_never_read_ends_within_ten_seconds(
    database_url: str,
) -> None:
    """Agents that ask and never listen, and viewers that never look, hold nobody up."""
    payload = json.dumps([{"type": "check"}] * 1_000).encode()
    frame = bytes([0x81, 0xFE]) + len(payload).to_bytes(2) + bytes(4) + payload
    async with running_meterd("--database-url", database_url) as service:
        key = await service.organization("acme", "enterprise")
        target = urlsplit(service.url)
        with contextlib.ExitStack() as stack:
            for path in ("/v1/agents/stream", "/v1/usage/live") * 4:
                peer = socket.create_connection((target.hostname, target.port), timeout=1)
                stack.enter_context(peer)
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
                peer.sendall(
                    f"GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n"
                    "connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
                    "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
                )
                assert peer.recv(12) == b"HTTP/1.1 101"
                with contextlib.suppress(OSError):
                    for _ in range(20 if "agents" in path else 0):
                        peer.sendall(frame)
            began = trio.current_time()
            assert await service.stop() == 0
            took_s = trio.current_time() - began
        log = [json.loads(line) for line in service.log if line.startswith("{")]

    assert took_s < 10
    assert [line for line in log if line["event"] == "stopped"]
