"""Between an agent's session and whatever carries its WebSocket: a bounded outbox.

Rule 1: a session writes into its outbox and never waits; who carries the bytes drains it.
Rule 2: nothing here knows a socket, a frame format or Quart, so the same session code runs in
the front door, in an ASGI application and in a test.
Rule 3: one item is one encoded JSON message, without a WebSocket header.

An outbox lives: open -> closing (no more messages; those queued still go out) -> ended.
A reader too slow for its bound loses its queue and is closed with 4508: memory is bounded, and
what it missed it learns again after reconnecting, because everything agents send is cumulative.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

import attrs
import trio


SUBPROTOCOL = "meterd.v1"
"""The WebSocket subprotocol of the agent stream."""

CLOSE_UNAUTHORIZED = 4401
CLOSE_WRONG_SCOPE = 4403
CLOSE_IDLE = 4408
CLOSE_TOO_MANY_CONNECTIONS = 4429
CLOSE_SLOW_READER = 4508
CLOSE_RESTARTING = 1012


@attrs.frozen(kw_only=True)
class StreamClose:
    """A close frame to be sent: its code and a reason of at most 123 bytes of UTF-8."""

    code: int
    reason: str = ""


@attrs.frozen(kw_only=True)
class StreamRequest:
    """The request that asks for an agent stream, its form already checked."""

    path: str
    query: str
    headers: Sequence[tuple[str, str]]
    """Names in lower case, in the order they came."""
    client_address: str

    def header_values(self, name: str) -> list[str]:
        """Return every value of the header `name` (lower case), in order."""
        return [value for known, value in self.headers if known == name]


@attrs.frozen(kw_only=True)
class StreamRejected:
    """The upgrade is accepted and closed at once: the only way a client sees a close code.

    Browsers and most libraries hide the status of a failed handshake, so 4401 and 4403 would be
    invisible as HTTP 401 and 403.
    """

    close: StreamClose


@attrs.frozen(kw_only=True)
class HttpRejected:
    """The upgrade is refused with an HTTP answer, for trouble that is not the client's."""

    status: int
    body: bytes
    headers: Sequence[tuple[str, str]] = ()


class StreamTransport(Protocol):
    """What a session may do to its connection, from any task, without waiting."""

    @property
    def is_open(self) -> bool:
        """Whether messages still go out; false once a close was asked for or the peer left."""

    @property
    def queued_bytes(self) -> int:
        """Bytes that wait to be sent."""

    def send(self, payload: bytes, *, key: Hashable | None = None) -> bool:
        """Queue one message; with a `key`, it replaces the queued one that has the same key.

        Returns False when the stream is closing or has ended: the message is dropped.
        """

    def close(self, code: int, reason: str = "") -> None:
        """Send what is queued, then the close frame; the first close asked for wins."""


class StreamSession(Protocol):
    """One authenticated agent stream, as the code that understands its messages sees it."""

    def on_texts(self, payloads: Sequence[bytes]) -> None:
        """Take the text messages of one read, in order: each whole, UTF-8, within the limit.

        Once a message has made it close its transport, the rest is not to be taken.
        """

    def on_binary(self, payload: bytes) -> None:
        """Take one binary message, which the protocol does not know."""

    async def settled(self) -> None:
        """Return when every answer owed so far is in the outbox.

        Called once, when the client has asked to close, under a deadline; it may be cancelled.
        """

    def on_end(self, code: int) -> None:
        """Learn, once, that the stream is over; `code` is the peer's close code, 1006 for none."""


OpenSession = Callable[[StreamTransport], StreamSession]
"""What an admitted request becomes: called with its transport once the handshake is done."""


class StreamGate(Protocol):
    """Decides who may open an agent stream."""

    async def admit(self, request: StreamRequest) -> OpenSession | StreamRejected | HttpRejected:
        """Authenticate; the session opener already knows the principal. Under a deadline."""


class Outbox:
    """The queue of one agent stream, bounded in messages and in bytes. A `StreamTransport`."""

    __slots__ = (
        "_bytes_max",
        "_close",
        "_ended",
        "_is_held",
        "_items",
        "_items_max",
        "_queued_bytes",
        "_serial",
        "_wakeup",
        "peak_bytes",
        "superseded",
    )

    def __init__(self, *, items_max: int, bytes_max: int) -> None:
        assert items_max > 0, items_max
        assert bytes_max > 0, bytes_max
        self._items_max = items_max
        self._bytes_max = bytes_max
        self._items: dict[Hashable, bytes] = {}  # in sending order; unkeyed under a serial
        self._serial = 0
        self._queued_bytes = 0
        self._close: StreamClose | None = None
        self._ended = False
        self._is_held = False
        self._wakeup: trio.Event | None = None
        self.peak_bytes = 0
        self.superseded = 0

    @property
    def is_open(self) -> bool:
        """Whether messages are still taken."""
        return self._close is None and not self._ended

    @property
    def closing(self) -> StreamClose | None:
        """The close that was asked for, to be sent after what is queued."""
        return self._close

    @property
    def queued_bytes(self) -> int:
        """Bytes waiting; the carrier stops reading from a peer that lets this grow."""
        return self._queued_bytes

    def __len__(self) -> int:
        return len(self._items)

    def send(self, payload: bytes, *, key: Hashable | None = None) -> bool:
        """Queue one message, or close the stream with 4508 when it does not fit."""
        if self._close is not None or self._ended:
            return False
        if key is None:
            self._serial += 1
            slot: Hashable = self._serial
        else:
            slot = ("key", key)  # a caller's key may be an int: it must not meet a serial
            replaced = self._items.pop(slot, None)
            if replaced is not None:
                self._queued_bytes -= len(replaced)
                self.superseded += 1
        queued_bytes = self._queued_bytes + len(payload)
        if len(self._items) >= self._items_max or queued_bytes > self._bytes_max:
            self._items.clear()
            self._queued_bytes = 0
            self.close(CLOSE_SLOW_READER, "reading too slowly")
            return False
        self._items[slot] = payload
        self._queued_bytes = queued_bytes
        self.peak_bytes = max(self.peak_bytes, queued_bytes)
        if not self._is_held:
            self.wake()
        return True

    def close(self, code: int, reason: str = "") -> None:
        """Ask for the close; what is queued goes out before it."""
        if self._close is None and not self._ended:
            self._close = StreamClose(code=code, reason=reason)
            self.wake()

    def end(self) -> None:
        """Drop what is queued and take nothing more: the carrier has gone."""
        self._ended = True
        self._items.clear()
        self._queued_bytes = 0
        self.wake()

    def take(self, bytes_max: int) -> list[bytes]:
        """Remove and return the oldest messages, at least one and about `bytes_max` bytes."""
        items = self._items
        if not items:
            return []
        if self._queued_bytes <= bytes_max:
            taken = list(items.values())
            items.clear()
            self._queued_bytes = 0
            return taken
        taken, size = [], 0
        for slot in list(items):
            if taken and size + len(items[slot]) > bytes_max:
                break
            payload = items.pop(slot)
            taken.append(payload)
            size += len(payload)
        self._queued_bytes -= size
        return taken

    async def wait_ready(self) -> None:
        """Return when there is something to send, a close to do, or the stream has ended.

        For one waiting task, the carrier's.
        """
        assert self._wakeup is None, "two tasks drain one outbox"
        if self._items or self._close is not None or self._ended:
            await trio.lowlevel.checkpoint()
            return
        self._wakeup = trio.Event()
        try:
            await self._wakeup.wait()
        finally:
            self._wakeup = None

    def hold(self) -> None:
        """Wake nobody for messages until `release`: the caller takes them itself."""
        self._is_held = True

    def release(self) -> None:
        """End a `hold`; a close asked for meanwhile is still its carrier's to do."""
        self._is_held = False
        if self._close is not None:
            self.wake()

    def wake(self) -> None:
        """Let the carrier look again, as when it has something of its own to write."""
        if self._wakeup is not None:
            self._wakeup.set()
