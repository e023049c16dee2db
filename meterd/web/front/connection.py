"""One accepted connection: its stream with bytes given back, its deadlines, its forced end.

Rule 1: no task waits with a timer of its own. The door's sweeper looks at `deadline` and at how
long a write has been stuck, for all connections in one pass.
Rule 2: `drop` works whatever the connection's tasks are doing, shielded sends included, because
closing the socket wakes everyone who waits on it.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Final

import attrs
import trio


READ_BYTES: Final = 64 * 1024
"""Most bytes taken from the kernel in one read."""

WRITE_BYTES: Final = 64 * 1024
"""A write's progress is seen in steps of this size: a peer taking less per time-out is stuck."""

GONE = (trio.BrokenResourceError, trio.ClosedResourceError)
"""What a stream raises when the peer, or the door itself, has ended the connection."""


@attrs.frozen(kw_only=True)
class Endpoint:
    """One end of a connection, as ASGI shows it to an application."""

    host: str
    port: int


class Connection:
    """A stream that first gives back bytes already read; Hypercorn uses it like any Trio stream."""

    def __init__(self, tcp: trio.SocketStream, *, peer: Endpoint, local: Endpoint) -> None:
        self.tcp = tcp
        self.peer = peer
        self.local = local
        self.stream: trio.SocketStream | trio.SSLStream[trio.SocketStream] = tcp
        self.scope = trio.CancelScope()
        self.deadline: float = inf
        self.is_idle = False
        self.is_timed_out = False
        self.address_key: str | None = None
        self.last_words: Callable[[], bytes] | None = None
        self.on_drop: Callable[[], None] | None = None
        self.unread = bytearray()
        self._write_progress_at: float = inf
        self._receiving: trio.CancelScope | None = None
        self._is_closed = False

    @property
    def is_tls(self) -> bool:
        """Whether bytes go through TLS."""
        return isinstance(self.stream, trio.SSLStream)

    @property
    def socket(self) -> trio.socket.SocketType:
        """The socket under it."""
        return self.tcp.socket

    async def receive_more(self) -> bool:
        """Append what the peer sends next to `unread`; False at the end of its stream."""
        data = await self.stream.receive_some(READ_BYTES)
        self.unread += data
        return bool(data)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return unread bytes, then new ones; ClosedResourceError after `aclose`."""
        if self._is_closed:
            raise trio.ClosedResourceError
        if self.unread:
            await trio.lowlevel.checkpoint()
            size = len(self.unread) if max_bytes is None else max_bytes
            data = bytes(self.unread[:size])
            del self.unread[:size]
            return data
        data = b""
        with trio.CancelScope() as self._receiving:
            data = bytes(await self.stream.receive_some(max_bytes or READ_BYTES))
        self._receiving = None
        if self._is_closed:
            raise trio.ClosedResourceError
        return data

    async def send_all(self, data: bytes) -> None:
        """Write everything; BrokenResourceError or ClosedResourceError when the peer is gone."""
        if self._is_closed:
            raise trio.ClosedResourceError
        if not data:  # h11's end of a message: must not collide with the half-close after it
            await trio.lowlevel.checkpoint()
            return
        self._write_progress_at = trio.current_time()
        try:
            if len(data) <= WRITE_BYTES:
                await self.stream.send_all(data)
                return
            view = memoryview(data)
            for start in range(0, len(data), WRITE_BYTES):
                await self.stream.send_all(view[start : start + WRITE_BYTES])
                self._write_progress_at = trio.current_time()
        finally:
            self._write_progress_at = inf

    async def send_eof(self) -> None:
        """Half-close, where the transport can; TLS cannot, and the close follows anyway."""
        if isinstance(self.stream, trio.SocketStream):
            await self.stream.send_eof()
        else:
            await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Tell the server side that it is done with this connection; the door closes the socket."""
        self._is_closed = True
        if self._receiving is not None:
            self._receiving.cancel()
        await trio.lowlevel.checkpoint()

    async def linger(self, seconds: float) -> None:
        """Half-close and discard what still comes, so that the last answer is not reset away."""
        with trio.move_on_after(seconds):
            try:
                await self.send_eof()
                while await self.stream.receive_some(READ_BYTES):
                    pass
            except (*GONE, trio.BusyResourceError):
                pass

    def drop(self) -> None:
        """Close the socket now; every task that waits on it gets ClosedResourceError."""
        self._is_closed = True
        if self.on_drop is not None:
            self.on_drop()
        self.tcp.socket.close()

    def expire(self, now: float) -> bool:
        """Cancel the connection when its deadline has passed; whether it did."""
        if now < self.deadline or self.is_timed_out:
            return False
        self.is_timed_out = True
        self.scope.cancel()
        return True

    def is_stalled(self, now: float, write_timeout_s: float) -> bool:
        """Whether a write has made no progress for so long."""
        return now - self._write_progress_at > write_timeout_s
