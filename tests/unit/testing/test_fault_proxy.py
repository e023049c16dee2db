"""The fault proxy: what each fault does to bytes, on real sockets."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import pytest
import trio

from meterd.testing.fault_proxy import Fault, FaultProxy, Link, open_fault_proxy


TEXT = bytes(range(256)) * 2


@contextlib.asynccontextmanager
async def echo_behind_proxy() -> AsyncIterator[FaultProxy]:
    """Give a proxy in front of a server that answers with what it is sent."""

    async def echo(stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            async for data in stream:
                await stream.send_all(data)

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, echo, listeners)
        async with open_fault_proxy(*listeners[0].socket.getsockname()) as proxy:
            yield proxy
        nursery.cancel_scope.cancel()


async def connected(proxy: FaultProxy) -> trio.SocketStream:
    """Return a connection through the proxy."""
    return await trio.open_tcp_stream("127.0.0.1", proxy.port)


async def echoed(stream: trio.SocketStream, data: bytes) -> bytes:
    """Send and return as much as comes back."""
    await stream.send_all(data)
    back = b""
    while len(back) < len(data):
        back += await stream.receive_some()
    return back


@pytest.mark.parametrize("fault", [Fault.NONE, Fault.TRICKLE])
async def test_bytes_pass_unchanged(fault: Fault) -> None:
    """A slow network is no lossy one."""
    async with echo_behind_proxy() as proxy:
        proxy.set_fault(fault)
        async with await connected(proxy) as stream:
            assert await echoed(stream, TEXT) == TEXT


async def test_refused_connections_end_at_once_and_open_ones_go_on() -> None:
    """A port that nobody serves any more does not break who is connected."""
    async with echo_behind_proxy() as proxy, await connected(proxy) as before:
        assert await echoed(before, b"a") == b"a"
        proxy.set_fault(Fault.REFUSE)
        async with await connected(proxy) as after:
            with pytest.raises(trio.BrokenResourceError):
                await echoed(after, b"b")
        assert await echoed(before, b"c") == b"c"


async def test_a_black_hole_answers_nothing_and_delivers_when_it_ends() -> None:
    """Neither data nor an error: the case that only deadlines notice."""
    async with echo_behind_proxy() as proxy, await connected(proxy) as stream:
        assert await echoed(stream, b"a") == b"a"
        proxy.set_fault(Fault.BLACK_HOLE)
        with trio.move_on_after(0.05) as scope:
            await echoed(stream, b"b")
        assert scope.cancelled_caught
        proxy.set_fault(Fault.NONE)
        with trio.fail_after(5):
            assert await stream.receive_some() == b"b"


async def test_a_reset_breaks_every_open_connection() -> None:
    """The next use fails, with nothing in between that looks like an orderly end."""
    async with echo_behind_proxy() as proxy, await connected(proxy) as stream:
        assert await echoed(stream, b"a") == b"a"
        assert proxy.reset() == 1
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()


async def test_a_cut_reply_was_sent_by_the_target_and_arrives_nowhere() -> None:
    """One reply is swallowed with its connection; the connections beside it go on."""

    def second(link: Link, data: bytes) -> bool:
        return link.opening.startswith(b"one") and data == b"two"

    async with (
        echo_behind_proxy() as proxy,
        await connected(proxy) as stream,
        await connected(proxy) as other,
    ):
        proxy.cut_reply(second)
        assert await echoed(stream, b"one") == b"one"
        assert await echoed(other, b"two") == b"two"
        with pytest.raises(trio.BrokenResourceError):
            await echoed(stream, b"two")
        assert proxy.cuts == 1
        assert await echoed(other, b"two") == b"two"
