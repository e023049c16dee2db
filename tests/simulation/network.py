"""The network between clients and meterd: frames may be lost, late, doubled and out of order.

Worse than TCP on purpose: what survives this survives a proxy that restarts. Everything under way
lies in one heap, delivered by one task in the order of (instant, number).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

import trio

from tests.simulation.determinism import Chance
from tests.simulation.weather import Weather


LATE_S = (0.2, 25.0)
"""How late a late frame is: up to later than its connection, its task or its meterd live."""


class Server(Protocol):
    """One meterd process, as the network sees it."""

    is_dead: bool
    is_accepting: bool
    epoch: int

    def open_session(self, end: ServerEnd) -> SessionLike:
        """Begin a stream for a client that has connected."""
        ...


class SessionLike(Protocol):
    """A stream, as its transport drives it."""

    def on_texts(self, payloads: Sequence[bytes]) -> None:
        """Take frames."""

    def on_end(self, code: int) -> None:
        """Learn that the stream is over."""


class Client(Protocol):
    """A client, as the network sees it."""

    organization_id: str
    is_dead: bool

    def on_connected(self, line: Line) -> None:
        """Learn that the connection is open."""

    def on_refused(self) -> None:
        """Learn that no connection came about."""

    def on_frame(self, line: Line, frame: bytes) -> None:
        """Take a frame."""

    def on_lost(self, line: Line, code: int) -> None:
        """Learn that the connection is over."""


class Overheard(Protocol):
    """Hears every frame when it is sent."""

    def client_says(self, client: Client, frame: str) -> None:
        """Hear a client, before anything can happen to the frame."""

    def server_says(self, server: Server, client: Client, frame: bytes) -> None:
        """Hear meterd, before anything can happen to the frame."""


class Network:
    """Post office for everything under way."""

    def __init__(
        self, chance: Chance, weather: Callable[[], Weather], overheard: Overheard
    ) -> None:
        self.chance = chance
        self.weather = weather
        self.overheard = overheard
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = 0
        self._changed = trio.Event()
        self.delivered = 0

    def post(self, delay_s: float, deliver: Callable[[], None]) -> None:
        """Do something after a while."""
        self._numbers += 1
        heapq.heappush(self._heap, (trio.current_time() + delay_s, self._numbers, deliver))
        self._changed.set()

    def send(self, deliver: Callable[[], None]) -> None:
        """Let a frame travel: it arrives once, later, twice or never."""
        chance, weather = self.chance, self.weather()
        if chance.happens(weather.frame_lost):
            return
        copies = 2 if chance.happens(weather.frame_doubled) else 1
        for _ in range(copies):
            delay_s = chance.soon(weather.frame_latency_s)
            if chance.happens(weather.frame_late):
                delay_s += chance.between(*LATE_S)
            self.post(delay_s, deliver)

    async def run(self) -> None:
        """Deliver for ever."""
        while True:
            self._changed = trio.Event()
            now_s = trio.current_time()
            while self._heap and self._heap[0][0] <= now_s:
                _, _, deliver = heapq.heappop(self._heap)
                self.delivered += 1
                deliver()
            until_s = self._heap[0][0] if self._heap else trio.current_time() + 3600
            with trio.move_on_at(until_s):
                await self._changed.wait()

    def connect(self, client: Client, server: Server | None) -> None:
        """Try to connect a client to a process."""

        def arrive() -> None:
            if client.is_dead:
                return
            if server is None or server.is_dead or not server.is_accepting:
                self.post(0.001, client.on_refused)
                return
            line = Line(self, client, server)
            line.open()

        self.post(self.chance.soon(self.weather().frame_latency_s), arrive)


class Line:
    """One connection."""

    def __init__(self, network: Network, client: Client, server: Server) -> None:
        self._network = network
        self._client = client
        self._server = server
        self._session: SessionLike | None = None
        self.is_up = True

    @property
    def server(self) -> Server:
        """Return the process at the other end."""
        return self._server

    def open(self) -> None:
        """Finish the handshake on both sides."""
        self._session = self._server.open_session(ServerEnd(self))
        self._client.on_connected(self)
        life_s = self._network.weather().cut_every_s
        if life_s:
            self._network.post(self._network.chance.soon(life_s), self.cut)

    def from_client(self, frame: str) -> None:
        """Take a frame of the client; what is under way may arrive after the line is down."""
        self._network.overheard.client_says(self._client, frame)

        def arrive() -> None:
            if not self._server.is_dead and self._session is not None:
                self._session.on_texts([frame.encode()])

        self._network.send(arrive)

    def from_server(self, frame: bytes) -> bool:
        """Take a frame of meterd."""
        if self._server.is_dead or not self.is_up:
            return False
        self._network.overheard.server_says(self._server, self._client, frame)

        def arrive() -> None:
            if self.is_up and not self._client.is_dead:
                self._client.on_frame(self, frame)

        self._network.send(arrive)
        return True

    def cut(self, code: int = 1006) -> None:
        """Take the line down; the server learns it later, or only by its own time-outs."""
        if not self.is_up:
            return
        self.is_up = False
        self._network.post(0.001, lambda: self._client.on_lost(self, code))
        self._network.post(self._network.chance.soon(2.0), self._end_session)

    def _end_session(self) -> None:
        session, self._session = self._session, None
        if session is not None and not self._server.is_dead:
            session.on_end(1006)


class ServerEnd:
    """The `StreamTransport` that a session writes to."""

    def __init__(self, line: Line) -> None:
        self.line = line

    @property
    def client(self) -> Client:
        """Return who is at the other end."""
        return self.line._client

    @property
    def is_open(self) -> bool:
        """Tell whether messages still go out."""
        return self.line.is_up and not self.line.server.is_dead

    @property
    def queued_bytes(self) -> int:
        """Return nothing: what is sent travels at once."""
        return 0

    def send(self, payload: bytes, *, key: Hashable | None = None) -> bool:
        """Send a frame; nothing is superseded here, every frame travels."""
        del key
        return self.line.from_server(payload)

    def close(self, code: int, reason: str = "") -> None:
        """Close the connection."""
        del reason
        self.line.cut(code)
