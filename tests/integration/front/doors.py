"""A front door around a real Quart-Trio application, and raw clients to knock on it."""

from __future__ import annotations

import itertools
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import trio
from quart import request, websocket
from quart_trio import QuartTrio

from meterd.web.front.hot import HotPath
from meterd.web.front_door import FrontDoor, FrontDoorLimits, TrustedProxies, open_listeners
from meterd.web.stream_transport import StreamGate


@attrs.define
class Seen:
    """What the application has been given."""

    websocket_messages: list[object] = attrs.field(factory=list)
    bodies: list[bytes] = attrs.field(factory=list)
    extensions: list[str | None] = attrs.field(factory=list)
    disconnects: int = 0


def make_app(seen: Seen) -> QuartTrio:
    """Return an application with one route of each kind."""
    app = QuartTrio("door_app")
    app.config["MAX_CONTENT_LENGTH"] = 1024 * 1024

    @app.get("/hello")
    async def hello() -> str:
        return "hello"

    @app.get("/v1/quota/check")
    async def check() -> str:
        return "from the application"

    @app.post("/v1/tasks/<task_id>/heartbeat")
    async def heartbeat(task_id: str) -> str:
        body = await request.get_data()
        return f"application:{task_id}:{len(body)}"

    @app.post("/echo")
    async def echo() -> bytes:
        body = await request.get_data(as_text=False)
        assert isinstance(body, bytes)
        seen.bodies.append(body)
        return body

    @app.get("/large")
    async def large() -> bytes:
        return b"x" * 20_000_000

    @app.get("/address")
    async def address() -> str:
        return request.remote_addr or ""

    @app.get("/slow")
    async def slow() -> str:
        await trio.sleep(0.3)
        return "slowly"

    @app.websocket("/live")
    async def live() -> None:
        seen.extensions.append(websocket.headers.get("Sec-WebSocket-Extensions"))
        while True:
            message = await websocket.receive()
            seen.websocket_messages.append(message)
            await websocket.send("got " + repr(message)[:40])

    return app


@attrs.define
class RunningDoor:
    """A door that serves, and where."""

    door: FrontDoor
    port: int
    seen: Seen
    nursery: trio.Nursery

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def connect(self) -> trio.SocketStream:
        return await trio.open_tcp_stream("127.0.0.1", self.port)

    async def ask(self, data: bytes, *, seconds: float = 5) -> bytes:
        """Send bytes, return everything the server says until it closes."""
        async with await self.connect() as stream:
            await stream.send_all(data)
            return await read_to_end(stream, seconds=seconds)


async def read_to_end(stream: trio.SocketStream, *, seconds: float = 5) -> bytes:
    """Return what the peer sends until it closes; TooSlowError if it does not."""
    received = bytearray()
    with trio.fail_after(seconds):
        try:
            while data := await stream.receive_some(65536):
                received += data
        except trio.BrokenResourceError:
            pass
    return bytes(received)


async def read_until(stream: trio.SocketStream, ending: bytes, *, seconds: float = 5) -> bytes:
    """Return what the peer sends up to and with `ending`."""
    received = bytearray()
    with trio.fail_after(seconds):
        while not received.endswith(ending):
            data = await stream.receive_some(65536)
            assert data, bytes(received)
            received += data
    return bytes(received)


@asynccontextmanager
async def open_door(
    *,
    limits: FrontDoorLimits | None = None,
    hot_path: HotPath | None = None,
    stream_gate: StreamGate | None = None,
    trusted_proxies: TrustedProxies | None = None,
    tls: ssl.SSLContext | None = None,
    host: str = "127.0.0.1",
) -> AsyncIterator[RunningDoor]:
    """Serve on a free port until the block ends, then drain and end what is left."""
    seen = Seen()
    numbers = itertools.count(1)
    door = FrontDoor(
        make_app(seen),
        new_request_id=lambda: f"00000000-0000-7000-8000-{next(numbers):012}",
        limits=limits,
        hot_path=hot_path,
        stream_gate=stream_gate,
        trusted_proxies=trusted_proxies,
        tls=tls,
    )
    listeners = await open_listeners(host, 0)
    async with trio.open_nursery() as nursery:
        await nursery.start(door.serve, listeners)
        port = listeners[0].socket.getsockname()[1]
        yield RunningDoor(door=door, port=port, seen=seen, nursery=nursery)
        door.stop_accepting()
        if not await door.drained(timeout_ms=1_000):
            door.abort_all()
