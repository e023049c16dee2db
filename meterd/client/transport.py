"""How frames travel: one WebSocket behind a small protocol, so that a simulation can replace it.

Every failure of the `websockets` library becomes `ConnectFailed` or `ConnectionLost` here.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

from websockets.exceptions import (
    ConnectionClosed,
    InvalidStatus,
    WebSocketException,
)
from websockets.typing import Subprotocol


SUBPROTOCOL = "meterd.v1"
STREAM_PATH = "/v1/agents/stream"
FRAME_BYTES_MAX = 2**20
"""Largest frame accepted from meterd, as large as the largest it accepts."""
OPEN_TIMEOUT_S = 10
CLOSE_TIMEOUT_S = 2
ABNORMAL_CLOSURE = 1006
RETRY_AFTER_S_MAX = 60
"""A longer Retry-After is honoured only this far: tasks are running meanwhile."""


class ConnectFailed(Exception):  # noqa: N818 - internal, read as a fact by the driver.
    """No connection came about; `status` is the HTTP status when the server answered one."""

    def __init__(self, reason: str, *, status: int | None = None, retry_after_ms: int = 0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status
        self.retry_after_ms = retry_after_ms


class ConnectionLost(Exception):  # noqa: N818 - internal, read as a fact by the driver.
    """The connection ended, with this close code (1006 when none came)."""

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


class Wire(Protocol):
    """An open connection. Both methods raise ConnectionLost."""

    async def send(self, frame: str) -> None:
        """Send one text frame, waiting while the peer is slow."""
        ...

    async def receive(self) -> str | bytes:
        """Wait for one frame."""
        ...


class Transport(Protocol):
    """Opens connections; leaving the context closes them."""

    def open(self) -> AbstractAsyncContextManager[Wire]:
        """Open one connection. Errors: ConnectFailed."""
        ...


class WebSocketWire:
    """A connection of `websockets`, whichever of its async flavours."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def send(self, frame: str) -> None:
        """Send one text frame. Errors: ConnectionLost."""
        try:
            await self._connection.send(frame)
        except ConnectionClosed as error:
            raise _lost(error) from error

    async def receive(self) -> str | bytes:
        """Wait for one frame. Errors: ConnectionLost."""
        try:
            frame: str | bytes = await self._connection.recv()
        except ConnectionClosed as error:
            raise _lost(error) from error
        return frame


class WebSocketTransport:
    """Opens the agent stream with a bearer key and the subprotocol, without compression.

    `connect` is the function of that name of `websockets.trio` or `websockets.asyncio`;
    `network_errors` are the library's own errors of a connection that breaks while opening.
    """

    def __init__(
        self,
        connect: Callable[..., Any],
        *,
        url: str,
        key: str,
        ssl_context: ssl.SSLContext | None,
        network_errors: tuple[type[Exception], ...],
    ) -> None:
        self._connect = connect
        self._errors: tuple[type[Exception], ...] = (
            OSError,
            TimeoutError,
            WebSocketException,  # a connection reset within the handshake is ConnectionClosed
            EOFError,
            *network_errors,
        )
        self._url = stream_url(url)
        self._options: dict[str, Any] = {
            "additional_headers": {"Authorization": f"Bearer {key}"},
            "subprotocols": [Subprotocol(SUBPROTOCOL)],
            "compression": None,  # meterd does not offer it, and frames are small.
            "max_size": FRAME_BYTES_MAX,
            "open_timeout": OPEN_TIMEOUT_S,
            "close_timeout": CLOSE_TIMEOUT_S,
        }
        if self._url.startswith("wss:") and ssl_context is not None:
            self._options["ssl"] = ssl_context

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Wire]:
        """Open one connection. Errors: ConnectFailed."""
        async with AsyncExitStack() as stack:
            try:
                connection = await stack.enter_async_context(
                    self._connect(self._url, **self._options)
                )
            except self._errors as error:
                raise connect_failure(error) from error
            if connection.subprotocol != SUBPROTOCOL:
                raise ConnectFailed(f"the server does not speak {SUBPROTOCOL}")
            yield WebSocketWire(connection)


def stream_url(url: str) -> str:
    """Give the WebSocket address of the agent stream at the service's base address.

    Errors: ValueError unless `url` is an absolute http(s) or ws(s) address.
    """
    parts = urlsplit(url)
    schemes = {"http": "ws", "ws": "ws", "https": "wss", "wss": "wss"}
    if parts.scheme not in schemes or not parts.netloc:
        raise ValueError(f"url must be like https://meterd.example.com, not {url!r}")
    path = parts.path.rstrip("/") + STREAM_PATH
    return urlunsplit((schemes[parts.scheme], parts.netloc, path, "", ""))


def connect_failure(error: BaseException) -> ConnectFailed:
    """Translate what `websockets` raises while connecting."""
    if isinstance(error, InvalidStatus):
        status = error.response.status_code
        after = error.response.headers.get("Retry-After", "")
        seconds = int(after) if after.isascii() and after.isdigit() else 0
        return ConnectFailed(
            f"HTTP status {status}",
            status=status,
            retry_after_ms=min(seconds, RETRY_AFTER_S_MAX) * 1000,
        )
    return ConnectFailed(f"{type(error).__name__}: {error}")


def _lost(error: ConnectionClosed) -> ConnectionLost:
    if error.rcvd is None:
        return ConnectionLost(ABNORMAL_CLOSURE)
    return ConnectionLost(error.rcvd.code, error.rcvd.reason)
