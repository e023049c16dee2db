"""Connections are bounded in number and in time, and they really close."""

from __future__ import annotations

import resource
import ssl
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio
import trio.testing
from websockets.exceptions import ConnectionClosedError
from websockets.trio.client import connect

from meterd.web.front.connection import Connection, Endpoint
from meterd.web.front_door import FrontDoorLimits, TrustedProxies
from tests.integration.front.doors import open_door, read_to_end, read_until


HELLO = b"GET /hello HTTP/1.1\r\nhost: a\r\n\r\n"
CLOSING = b"GET /hello HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
OLD = b"GET /hello HTTP/1.0\r\n\r\n"


def open_descriptors() -> int:
    """Return how many descriptors this process has open, the listing's own included."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def until(is_true: Callable[[], bool]) -> None:
    """Return when something that happens on other tasks and sockets has happened."""
    with trio.fail_after(5):
        while not is_true():  # noqa: ASYNC110 - the kernel's timing has no event to wait for
            await trio.sleep(0.01)


async def trickle_until_cut_off(stream: trio.SocketStream) -> None:
    """Send a byte now and then until the door closes the connection."""
    with trio.fail_after(3):
        try:
            while True:
                await stream.send_all(b"x")
                await trio.sleep(0.02)
        except trio.BrokenResourceError:
            pass


@pytest.mark.slow
async def test_300_closing_clients_leave_no_descriptor_behind() -> None:
    """Quart-Trio on Hypercorn left 311 of them open: its recycling was cancelled inside send."""
    async with open_door() as running:
        before = open_descriptors()
        for number in range(300):
            answer = await running.ask(OLD if number % 2 else CLOSING)
            assert answer.endswith(b"hello")
        await until(lambda: running.door.counters.open_connections == 0)

        assert open_descriptors() <= before + 1


async def test_an_idle_connection_closes_after_the_keep_alive_time_out() -> None:
    """Both for connections that Hypercorn serves and for those it has never seen."""
    limits = FrontDoorLimits(idle_timeout_ms=150, head_timeout_ms=150)
    async with open_door(limits=limits, hot_path=lambda _: b"HTTP/1.1 204 X\r\n\r\n") as running:
        async with await running.connect() as stream:
            await stream.send_all(HELLO)
            assert (await read_to_end(stream)).endswith(b"hello")
        async with await running.connect() as stream:
            await stream.send_all(b"GET /v1/quota/check HTTP/1.1\r\nhost: a\r\n\r\n")
            assert await read_to_end(stream) == b"HTTP/1.1 204 X\r\n\r\n"
        async with await running.connect() as stream:
            assert await read_to_end(stream) == b""

        assert running.door.counters.timed_out == 2


@pytest.mark.parametrize("beginning", [b"GET /hel", HELLO + b"GET /hel"])
async def test_a_head_that_trickles_in_is_cut_off(beginning: bytes) -> None:
    """A byte now and then keeps no connection open, on the first request or a later one."""
    limits = FrontDoorLimits(head_timeout_ms=200)
    async with open_door(limits=limits) as running, await running.connect() as stream:
        await stream.send_all(beginning)
        await trickle_until_cut_off(stream)

        assert running.door.counters.timed_out == 1


async def test_an_answer_that_does_not_wait_for_the_body_says_that_it_closes() -> None:
    """A client that kept the connection would lose its next request, a start of a task perhaps."""
    body = b"x" * 10
    head = b"POST /hello HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\n"
    async with open_door() as running:
        async with await running.connect() as stream:
            await stream.send_all(head)
            early = await read_to_end(stream)
        async with await running.connect() as stream:
            await stream.send_all(head + body)
            in_full = await read_until(stream, b"</p>\n")
            await stream.send_all(HELLO)
            assert (await read_until(stream, b"hello")).startswith(b"HTTP/1.1 200 ")

    assert early.startswith(b"HTTP/1.1 405 ")
    assert b"connection: close\r\n" in early.lower()
    assert b"connection: close" not in in_full.lower()


async def test_a_body_that_trickles_in_is_cut_off() -> None:
    """The time for a body runs from the end of its head, whatever arrives."""
    limits = FrontDoorLimits(body_timeout_ms=200)
    async with open_door(limits=limits) as running, await running.connect() as stream:
        await stream.send_all(b"POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 9999\r\n\r\n")
        await trickle_until_cut_off(stream)

        assert running.door.counters.timed_out == 1


async def test_a_client_that_never_reads_is_dropped_after_the_write_time_out() -> None:
    """Hypercorn shields its writes, so only the door can end this connection."""
    limits = FrontDoorLimits(write_timeout_ms=300)
    async with open_door(limits=limits) as running, await running.connect() as stream:
        await stream.send_all(b"GET /large HTTP/1.1\r\nhost: a\r\n\r\n")
        await until(lambda: running.door.counters.stalled == 1)
        await until(lambda: running.door.counters.open_connections == 0)

        assert running.door.counters.crashed == 0


async def test_a_client_that_never_reads_does_not_block_shutdown() -> None:
    """Draining tells the truth at its deadline, and abort ends what is left at once."""
    async with open_door() as running, await running.connect() as stream:
        await stream.send_all(b"GET /large HTTP/1.1\r\nhost: a\r\n\r\n")
        await stream.receive_some(1)
        running.door.stop_accepting()

        assert not await running.door.drained(timeout_ms=100)
        running.door.abort_all()
        assert await running.door.drained(timeout_ms=2_000)


async def test_cancelling_the_door_ends_a_client_that_never_reads() -> None:
    """A cancelled task may be inside a shielded send; the socket under it is closed."""
    async with open_door() as running, await running.connect() as stream:
        await stream.send_all(b"GET /large HTTP/1.1\r\nhost: a\r\n\r\n")
        await stream.receive_some(1)
        running.nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await until(lambda: running.door.counters.open_connections == 0)


async def test_shutdown_lets_requests_finish_and_closes_the_rest() -> None:
    """A request in flight gets its answer; idle connections and listeners go at once."""
    async with (
        open_door() as running,
        await running.connect() as busy,
        await running.connect() as idle,
    ):
        await idle.send_all(HELLO)
        await read_until(idle, b"hello")
        await busy.send_all(HELLO.replace(b"hello", b"slow"))
        await trio.sleep(0.1)
        running.door.stop_accepting()

        assert await read_to_end(idle) == b""
        assert (await read_to_end(busy)).endswith(b"slowly")
        assert await running.door.drained(timeout_ms=2_000)
        with pytest.raises(OSError, match="connect"):
            await running.connect()


async def test_a_websocket_of_the_application_closes_with_1012_at_shutdown() -> None:
    """Live dashboards reconnect at once when they know that the server restarts."""
    upgrade = (
        b"GET /live HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\n"
        b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n"
    )
    async with open_door() as running, await running.connect() as stream:
        await stream.send_all(upgrade)
        await read_until(stream, b"\r\n\r\n")
        running.door.stop_accepting()
        frame = await read_to_end(stream)

        assert frame[:1] == b"\x88"
        assert frame[2:4] == (1012).to_bytes(2, "big")
        assert await running.door.drained(timeout_ms=2_000)


async def test_connections_over_the_limit_of_an_address_get_429() -> None:
    """One address cannot take every connection there is; the others still get in."""
    limits = FrontDoorLimits(connections_per_address_max=2)
    async with open_door(limits=limits) as running:
        async with await running.connect() as one, await running.connect() as two:
            for stream in (one, two):
                await stream.send_all(HELLO)
                await read_until(stream, b"hello")
            answer = await running.ask(HELLO)
        await until(lambda: running.door.counters.open_connections == 0)
        again = await running.ask(CLOSING)

        assert answer.startswith(b"HTTP/1.1 429 ")
        assert b'"code":"too_many_connections"' in answer
        assert b"retry-after: 1\r\n" in answer
        assert again.endswith(b"hello")
        assert running.door.counters.refused_address == 1


async def test_connections_over_the_total_get_503_and_then_nothing() -> None:
    """Even the refusals are bounded: past that, a connection is closed unanswered."""
    limits = FrontDoorLimits(
        connections_max=1, connections_per_address_max=1, refusals_max=1, refusal_timeout_ms=500
    )
    async with open_door(limits=limits) as running, await running.connect() as first:
        await first.send_all(HELLO)
        await read_until(first, b"hello")
        async with await running.connect() as told:
            unanswered = await running.ask(b"")
            await told.send_all(HELLO)

            assert (await read_to_end(told)).startswith(b"HTTP/1.1 503 ")
            assert unanswered == b""


async def test_a_websocket_over_the_limit_is_closed_with_4429() -> None:
    """The contract's close code, which a client can only see after an accepted upgrade."""
    limits = FrontDoorLimits(connections_per_address_max=1)
    async with open_door(limits=limits) as running, await running.connect() as first:
        await first.send_all(HELLO)
        await read_until(first, b"hello")
        async with connect(f"ws://127.0.0.1:{running.port}/v1/agents/stream") as websocket:
            with pytest.raises(ConnectionClosedError) as closed:
                await websocket.recv()

        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 4429


async def test_the_listener_outlives_running_out_of_descriptors() -> None:
    """EMFILE stops nobody who is connected, and accepting goes on when descriptors are free."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with open_door() as running, AsyncExitStack() as clients:

        async def connect_for_ever() -> None:
            while True:
                await clients.enter_async_context(await running.connect())

        resource.setrlimit(resource.RLIMIT_NOFILE, (open_descriptors() + 21, hard))
        try:
            with pytest.raises(OSError, match=r"Too many open files|all attempts"):
                await connect_for_ever()
            await until(lambda: running.door.counters.accept_errors > 0)
            await clients.aclose()
            answer = await running.ask(CLOSING)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

        assert answer.endswith(b"hello")


async def test_the_client_address_comes_from_trusted_proxies_only() -> None:
    """A header anyone can write names nobody, unless the proxy that sent it is configured."""
    ask = (
        b"GET /address HTTP/1.1\r\nhost: a\r\nconnection: close\r\n"
        b"x-forwarded-for: 203.0.113.9, 198.51.100.7\r\n\r\n"
    )
    async with open_door() as running:
        untrusted = await running.ask(ask)
    async with open_door(trusted_proxies=TrustedProxies(["127.0.0.0/8"])) as running:
        trusted = await running.ask(ask)

    assert untrusted.endswith(b"127.0.0.1")
    assert trusted.endswith(b"198.51.100.7")


async def test_the_door_serves_ipv6() -> None:
    """The address an application sees is the client's own, whatever its family."""
    async with (
        open_door(host="::1") as running,
        await trio.open_tcp_stream("::1", running.port) as stream,
    ):
        await stream.send_all(CLOSING.replace(b"/hello", b"/address"))

        assert (await read_to_end(stream)).endswith(b"::1")


@pytest.mark.slow
async def test_the_door_serves_tls_and_says_only_http_1_1(tmp_path: Path) -> None:
    """A client that offers h2 is told http/1.1, and plain bytes on this port end quietly."""
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    await trio.run_process(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-keyout", key, "-out", certificate, "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost"],
        capture_stderr=True,
    )  # fmt: skip
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    client = ssl.create_default_context(cafile=str(certificate))
    client.set_alpn_protocols(["h2", "http/1.1"])
    async with open_door(tls=server) as running:
        stream = trio.SSLStream(
            await running.connect(), client, server_hostname="localhost", https_compatible=True
        )
        answer = bytearray()
        with trio.fail_after(5):
            async with stream:
                await stream.send_all(CLOSING)
                while data := await stream.receive_some(65536):
                    answer += data
        plain = await running.ask(CLOSING)

        assert stream.selected_alpn_protocol() == "http/1.1"
        assert answer.endswith(b"hello")
        assert b"hello" not in plain
        assert running.door.counters.crashed == 0


async def test_a_write_of_nothing_collides_with_nobody() -> None:
    """That is how an answer ends for h11, and the client may have left, or be left, by then."""
    left, right = trio.socket.socketpair()
    here = Endpoint(host="127.0.0.1", port=1)
    connection = Connection(trio.SocketStream(left), peer=here, local=here)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.send_all, b"x" * 10_000_000)
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(5):
            await connection.send_all(b"")
        nursery.cancel_scope.cancel()
    connection.drop()
    right.close()
