"""Deliveries to a real HTTPS server: nothing is said before its certificate is found right."""

from __future__ import annotations

import datetime as dt
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio

from meterd.adapters.webhook_sender import HttpsSender
from meterd.ports.webhooks import WebhookRefusedError
from tests.certificates import Authority


@attrs.define
class TlsServer:
    """Takes requests over TLS and answers 204."""

    context: ssl.SSLContext
    port: int = 0
    requests: list[bytes] = attrs.Factory(list)

    async def serve(self, transport: trio.SocketStream) -> None:
        """Take one request."""
        stream = trio.SSLStream(transport, self.context, server_side=True, https_compatible=True)
        try:
            data = b""
            while not data.endswith(b"\r\n\r\n{}"):
                data += await stream.receive_some(65_536)
            self.requests.append(data)
            await stream.send_all(b"HTTP/1.1 204 No Content\r\n\r\n")
            await stream.aclose()
        except trio.BrokenResourceError:
            return


@asynccontextmanager
async def serving(context: ssl.SSLContext) -> AsyncIterator[TlsServer]:
    """Run a server."""
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        server = TlsServer(context, listeners[0].socket.getsockname()[1])
        nursery.start_soon(trio.serve_listeners, server.serve, listeners)
        yield server
        nursery.cancel_scope.cancel()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """Give an authority of this test's own."""
    return Authority(tmp_path)


async def test_a_delivery_reaches_a_server_whose_certificate_is_right(authority: Authority) -> None:
    """The whole way: look-up, TLS with the name checked, request, status."""
    sender = HttpsSender(is_private_allowed=True, context=authority.client_context())

    async with serving(authority.server_context("localhost")) as server:
        status = await sender.post(
            f"https://localhost:{server.port}/hook", {"webhook-id": "evt_1"}, b"{}"
        )

    assert status == 204
    assert server.requests[0].startswith(b"POST /hook HTTP/1.1\r\n")
    assert b"webhook-id: evt_1\r\n" in server.requests[0].lower()


@pytest.mark.parametrize("flaw", ["unknown authority", "other name", "expired"])
async def test_a_server_that_is_not_who_was_named_gets_nothing(
    authority: Authority, tmp_path: Path, flaw: str
) -> None:
    """Whoever sits between meterd and the customer reads no notification and answers none."""
    trusted = authority
    if flaw == "unknown authority":
        (tmp_path / "other").mkdir()
        trusted = Authority(tmp_path / "other")
    name = "elsewhere.example" if flaw == "other name" else "localhost"
    until = dt.datetime(2021, 1, 1, tzinfo=dt.UTC) if flaw == "expired" else None
    context = (
        authority.server_context(name)
        if until is None
        else authority.server_context(name, until=until)
    )
    sender = HttpsSender(is_private_allowed=True, context=trusted.client_context())

    async with serving(context) as server:
        with pytest.raises(WebhookRefusedError) as caught:
            await sender.post(f"https://localhost:{server.port}/hook", {}, b"{}")

    assert str(caught.value) == "the TLS handshake failed"
    assert server.requests == []
