"""A TCP proxy that behaves as badly as networks do, in front of whatever speaks TCP.

Rule 1: a fault holds from the moment it is set until another is set; what a black hole has
swallowed is delivered when it ends, as TCP would after its retransmissions.
Rule 2: bytes are never changed, only refused, held back, slowed down or cut off.
Rule 3: a cut reply was sent by the target and reaches nobody: the work is done, and its outcome
is unknown to who asked for it.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Callable
from enum import Enum
from typing import Final

import attrs
import trio


CHUNK_BYTES: Final = 65_536

OPENING_BYTES: Final = 1_024
"""How much of what a client says first is kept, to tell connections apart."""

TRICKLE_BYTES: Final = 64
TRICKLE_S: Final = 0.002
"""A trickle is so many bytes, and then a pause of so many seconds: about 30 KB a second."""

RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
"""SO_LINGER with zero seconds: closing sends RST, and what was not sent yet is thrown away."""


class Fault(Enum):
    """What the network does at present."""

    NONE = "none"
    REFUSE = "refuse"
    """New connections are closed at once; open ones go on."""
    BLACK_HOLE = "black hole"
    """Nothing passes in either direction and nothing ends."""
    TRICKLE = "trickle"
    """Everything passes, a few bytes at a time."""


@attrs.define(eq=False)
class Link:
    """One connection through the proxy."""

    client: trio.SocketStream
    target: trio.SocketStream
    opening: bytes = b""
    """The first bytes the client sent, at most OPENING_BYTES."""

    def reset(self) -> None:
        """End both sides with RST; who reads or writes there is woken with an error."""
        for stream in (self.client, self.target):
            with contextlib.suppress(OSError):
                stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            stream.socket.close()


Cut = Callable[[Link, bytes], bool]
"""Tells whether this piece of a reply is the one to cut off."""


@attrs.define(eq=False)
class FaultProxy:
    """A running proxy; its methods take effect at once, on open connections too."""

    target: tuple[str, int]
    port: int
    links: set[Link] = attrs.Factory(set)
    cuts: int = 0
    """Replies that were cut off so far."""
    _fault: Fault = Fault.NONE
    _changed: trio.Event = attrs.Factory(trio.Event)
    _cut: Cut | None = None

    @property
    def fault(self) -> Fault:
        """Return what the network does at present."""
        return self._fault

    def set_fault(self, fault: Fault) -> None:
        """Make the network behave like this from now on."""
        self._fault = fault
        self._changed.set()
        self._changed = trio.Event()

    def reset(self) -> int:
        """Break every open connection with RST; return how many there were."""
        links, self.links = self.links, set()
        for link in links:
            link.reset()
        return len(links)

    def cut_reply(self, when: Cut) -> None:
        """Swallow the next piece of a reply for which `when` is true, and break its connection."""
        self._cut = when

    async def _serve(self, client: trio.SocketStream) -> None:
        if self._fault is Fault.REFUSE:
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            await trio.aclose_forcefully(client)
            return
        try:
            target = await trio.open_tcp_stream(*self.target)
        except OSError:
            await trio.aclose_forcefully(client)
            return
        link = Link(client, target)
        self.links.add(link)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._pump, link, client, target, nursery.cancel_scope)
                nursery.start_soon(self._pump, link, target, client, nursery.cancel_scope)
        finally:
            self.links.discard(link)
            client.socket.close()
            target.socket.close()

    async def _pump(
        self,
        link: Link,
        source: trio.SocketStream,
        sink: trio.SocketStream,
        both: trio.CancelScope,
    ) -> None:
        """Carry bytes one way; the first direction that ends, ends the connection."""
        # A closed or broken end is an ordinary end of a connection here.
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while data := await source.receive_some(CHUNK_BYTES):
                if source is link.client:
                    link.opening = (link.opening + data)[:OPENING_BYTES]
                while self._fault is Fault.BLACK_HOLE:
                    await self._changed.wait()
                if source is link.target and self._cut is not None and self._cut(link, data):
                    self._cut = None
                    self.cuts += 1
                    link.reset()
                    break
                await self._deliver(sink, data)
        both.cancel()

    async def _deliver(self, sink: trio.SocketStream, data: bytes) -> None:
        while data and self._fault is Fault.TRICKLE:
            await sink.send_all(data[:TRICKLE_BYTES])
            data = data[TRICKLE_BYTES:]
            await trio.sleep(TRICKLE_S)
        await sink.send_all(data)


@contextlib.asynccontextmanager
async def open_fault_proxy(host: str, port: int) -> AsyncIterator[FaultProxy]:
    """Listen on a free port of 127.0.0.1 and carry everything to `host`:`port` and back."""
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        proxy = FaultProxy((host, port), listeners[0].socket.getsockname()[1])
        nursery.start_soon(trio.serve_listeners, proxy._serve, listeners)  # noqa: SLF001  # its own
        try:
            yield proxy
        finally:
            nursery.cancel_scope.cancel()
