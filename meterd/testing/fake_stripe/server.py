"""HTTP/1.1 on Trio with h11: bytes in, `Answer`s out, and the ways a connection can go wrong."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from urllib.parse import unquote

import h11
import trio

from meterd.testing.fake_stripe.api import Answer, Call


BODY_BYTES_MAX = 4 << 20
"""Larger requests are cut off; Stripe's own limit is lower."""

READ_BYTES = 1 << 16

App = Callable[[Call], Awaitable[Answer | None]]
"""Answers a call; None closes the connection without a reply."""


async def serve(
    app: App,
    *,
    host: str,
    port: int,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Listen for ever; the started value is the port."""
    listeners = await trio.open_tcp_listeners(port, host=host)
    bound: int = listeners[0].socket.getsockname()[1]

    async def connection(stream: trio.SocketStream) -> None:
        try:
            await _serve_connection(app, stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError, h11.ProtocolError):
            pass  # the peer went away or spoke something else; only its connection ends
        finally:
            await trio.aclose_forcefully(stream)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, connection, listeners)
        task_status.started(bound)


async def _serve_connection(app: App, stream: trio.SocketStream) -> None:
    wire = h11.Connection(h11.SERVER)
    while True:
        call = await _read_call(wire, stream)
        if call is None:
            return
        answer = await app(call)
        if answer is None:
            return
        headers = [*answer.headers.items(), ("content-length", str(len(answer.body)))]
        parts = (
            h11.Response(status_code=answer.status, headers=headers),
            h11.Data(data=answer.body),
            h11.EndOfMessage(),
        )
        await stream.send_all(b"".join(wire.send(part) or b"" for part in parts))
        if wire.our_state is h11.MUST_CLOSE:
            return
        wire.start_next_cycle()


async def _read_call(wire: h11.Connection, stream: trio.SocketStream) -> Call | None:
    request: h11.Request | None = None
    body = bytearray()
    while True:
        event = wire.next_event()
        if event is h11.NEED_DATA:
            if wire.they_are_waiting_for_100_continue:
                go_on = h11.InformationalResponse(status_code=100, headers=[])
                await stream.send_all(wire.send(go_on) or b"")
            wire.receive_data(await stream.receive_some(READ_BYTES))
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > BODY_BYTES_MAX:
                return None
        elif isinstance(event, h11.EndOfMessage):
            assert request is not None
            path, _, query = request.target.decode("ascii").partition("?")
            return Call(
                method=request.method.decode("ascii"),
                path=unquote(path),
                query=query,
                headers={
                    name.decode("ascii"): value.decode("latin-1") for name, value in request.headers
                },
                body=bytes(body),
            )
        else:
            return None
