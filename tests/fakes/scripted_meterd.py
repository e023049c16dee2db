"""A small meterd on a real port: the naive book behind real WebSockets and plain HTTP.

It runs in a thread of its own, so that the same server serves the Trio, the asyncio and the
threaded client. A test turns its knobs between steps: cut connections, swallow answers, push.
"""

from __future__ import annotations

import asyncio
import http
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from tests.fakes.naive_meterd import NaiveMeterd


KEY = "mk_live_test"
READ_ONLY_KEY = "mk_live_read"


class ScriptedMeterd:
    """The server and its knobs; every public method may be called from any thread."""

    def __init__(self) -> None:
        self.book = NaiveMeterd()
        self.swallowed: set[str] = set()
        """Types of messages that are booked but not answered."""
        self.lost: set[str] = set()
        """Types of messages that are dropped unread."""
        self.handshake_status: int | None = None
        """Refuse the upgrade with this status, while set."""
        self.check_problem: tuple[int, dict[str, Any]] | None = None
        """Answer quota checks with this status and problem, while set."""
        self.connection_count = 0
        self.close_codes: list[int | None] = []
        """How clients closed their connections."""
        self.port = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connections: set[ServerConnection] = set()
        self._changed = threading.Condition()

    @property
    def url(self) -> str:
        """Base address, as an operator would give it."""
        return f"http://127.0.0.1:{self.port}"

    def until(self, is_true: Callable[[], bool], *, timeout_s: float = 10) -> None:
        """Wait for something to be true of the server, looking after every message."""
        with self._changed:
            assert self._changed.wait_for(is_true, timeout_s), "it never became true"

    def push(self, message: dict[str, Any]) -> None:
        """Send a message on every open connection."""
        self._on_loop(self._push(json.dumps(message)))

    def close_connections(self, code: int) -> None:
        """Close every connection with a code."""
        self._on_loop(self._close(code))

    def cut_connections(self) -> None:
        """Break every connection without a close frame."""
        self._on_loop(self._cut())

    def stop_listening(self) -> None:
        """Be away: close the port and cut every connection."""
        self._on_loop(self._stop_listening())

    def listen_again(self) -> None:
        """Come back on the same port, with the same book."""
        self._on_loop(self._listen())

    # Below: on the server's own loop.

    async def _push(self, text: str) -> None:
        for connection in self._connections:
            await connection.send(text)

    async def _close(self, code: int) -> None:
        for connection in list(self._connections):
            await connection.close(code)

    async def _cut(self) -> None:
        for connection in list(self._connections):
            connection.transport.abort()

    async def _stop_listening(self) -> None:
        self._server.close(close_connections=False)
        await self._cut()
        await self._server.wait_closed()

    async def _listen(self) -> None:
        self._server: Server = await serve(
            self._converse,
            "127.0.0.1",
            self.port,
            subprotocols=[Subprotocol("meterd.v1")],
            process_request=self._process_request,
            compression=None,
        )
        self.port = next(iter(self._server.sockets)).getsockname()[1]

    def _process_request(self, _: ServerConnection, request: Request) -> Response | None:
        parts = urlsplit(request.path)
        key = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if key not in {KEY, READ_ONLY_KEY}:
            return _problem(401, {"code": "unauthorized", "detail": "Missing or wrong key."})
        if parts.path == "/v1/agents/stream":
            if key == READ_ONLY_KEY:
                return _problem(403, {"code": "forbidden", "detail": "Wrong scope."})
            if self.handshake_status is not None:
                return _problem(self.handshake_status, {"code": "unavailable"})
            return None
        if parts.path == "/v1/quota":
            return _json(200, self.book.quota())
        assert parts.path == "/v1/quota/check", request.path
        self.book.received.append({"type": "http_check", **parse_qs(parts.query)})
        if self.check_problem is not None:
            return _problem(*self.check_problem)
        return _json(200, self.book.quota())

    async def _converse(self, connection: ServerConnection) -> None:
        self._connections.add(connection)
        self.connection_count += 1
        self._notify()
        try:
            async for frame in connection:
                await self._answer(connection, frame)
        except ConnectionClosed:
            pass
        finally:
            self._connections.discard(connection)
            self.close_codes.append(connection.close_code)
            self._notify()

    async def _answer(self, connection: ServerConnection, frame: str | bytes) -> None:
        content = json.loads(frame)
        answers: list[dict[str, Any]] = []
        for message in content if isinstance(content, list) else [content]:
            if message["type"] in self.lost:
                continue
            given = self.book.answers(message)
            if message["type"] not in self.swallowed:
                answers += given
        if len(answers) == 1:
            await connection.send(json.dumps(answers[0]))
        elif answers:
            await connection.send(json.dumps(answers))
        self._notify()

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _on_loop(self, work: Any) -> None:
        assert self._loop is not None, "not running"
        asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=10)

    def _run(self, ready: threading.Event, leave: threading.Event) -> None:
        async def main() -> None:
            self._loop = asyncio.get_running_loop()
            await self._listen()
            ready.set()
            await self._loop.run_in_executor(None, leave.wait)
            self._server.close()
            await self._server.wait_closed()

        asyncio.run(main())


@contextmanager
def scripted_meterd() -> Iterator[ScriptedMeterd]:
    """Run a scripted meterd until the end of the block."""
    service = ScriptedMeterd()
    ready, leave = threading.Event(), threading.Event()
    thread = threading.Thread(target=service._run, args=(ready, leave), name="scripted-meterd")
    thread.start()
    try:
        assert ready.wait(10), "the server did not start"
        yield service
    finally:
        leave.set()
        thread.join(10)


def _json(status: int, content: dict[str, Any], kind: str = "application/json") -> Response:
    body = json.dumps(content).encode()
    headers = Headers(
        [("Content-Type", kind), ("Content-Length", str(len(body))), ("Connection", "close")]
    )
    if status == 429:
        headers["Retry-After"] = "604800"
    return Response(status, http.HTTPStatus(status).phrase, headers, body)


def _problem(status: int, content: dict[str, Any]) -> Response:
    return _json(status, {"status": status, **content}, "application/problem+json")
