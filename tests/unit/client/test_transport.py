"""Opening a connection: whatever goes wrong there is a fact for the driver, never its end."""

from __future__ import annotations

from types import TracebackType

import attrs
import pytest
import trio
from websockets.exceptions import (
    ConnectionClosedError,
    InvalidMessage,
    InvalidUpgrade,
    ProtocolError,
)

from meterd.client.transport import ConnectFailed, WebSocketTransport


@attrs.frozen
class Breaking:
    """A connection of `websockets` that never opens."""

    error: Exception

    async def __aenter__(self) -> None:
        await trio.lowlevel.checkpoint()
        raise self.error

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Have nothing to close."""


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(104, "reset"),
        ConnectionClosedError(None, None),  # reset between connecting and the handshake's answer
        TimeoutError("the handshake took too long"),
        EOFError("closed"),
        InvalidMessage("no HTTP"),
        InvalidUpgrade("Upgrade", "none"),
        ProtocolError("a frame instead of an answer"),
        trio.BrokenResourceError(),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_a_connection_that_breaks_while_it_opens_has_failed(error: Exception) -> None:
    """An error that got through would end the client, and with it every task it meters."""
    transport = WebSocketTransport(
        lambda _url, **_options: Breaking(error),
        url="http://127.0.0.1:1",
        key="mk_live_x",
        ssl_context=None,
        network_errors=(trio.BrokenResourceError,),
    )
    with pytest.raises(ConnectFailed):
        async with transport.open():
            pytest.fail("it opened")
