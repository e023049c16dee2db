"""The load: plain sockets and one selector, so that it costs little of the machine it measures.

Closed loop: each connection sends its next request when it has its answer. Open loop: requests are
due at fixed instants and latency counts from there, whether or not the server keeps up.
"""

from __future__ import annotations

import itertools
import re
import select
import selectors
import socket
import statistics
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import attrs


@attrs.frozen(kw_only=True)
class Sample:
    """What one round measured."""

    per_s: float
    cpu_us: float
    """The server's processor time per answer."""
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    p999_ms: float = 0.0


def quantiles_ms(latencies_s: Sequence[float]) -> tuple[float, float, float]:
    """Return p50, p99 and p99.9."""
    cuts = statistics.quantiles(latencies_s, n=1_000)
    return cuts[499] * 1_000, cuts[989] * 1_000, cuts[998] * 1_000


def check_request(key: str) -> bytes:
    """Return a quota check."""
    return (
        f"GET /v1/quota/check HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {key}\r\n\r\n"
    ).encode()


def heartbeat_request(key: str, number: int) -> bytes:
    """Return a heartbeat over HTTP, as the peers take it."""
    return (
        f"POST /v1/tasks/t{number}/heartbeat HTTP/1.1\r\nhost: bench\r\n"
        f"authorization: Bearer {key}\r\ncontent-type: application/json\r\ncontent-length: 16\r\n"
        '\r\n{"elapsed_ms":1}'
    ).encode()


_HEAD = re.compile(
    rb"HTTP/1\.1 200 [^\r\n]*\r\n(?:[^\r\n]+\r\n)*?content-length: *([0-9]+)\r\n"
    rb"(?:[^\r\n]+\r\n)*\r\n",
    re.IGNORECASE,
)


class Client:
    """One connection that counts the answers it gets."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sent_s: deque[float] = deque()
        self._unread = b""

    def answers(self) -> int:
        """Read once; return how many whole answers that completed."""
        data = self._unread + self.socket.recv(65_536)
        count = 0
        while head := _HEAD.match(data):
            size = head.end() + int(head[1])
            if len(data) < size:
                break
            data = data[size:]
            count += 1
        assert head or b"HTTP/1.1 200"[: len(data)] == data[:12], data[:300]
        self._unread = data
        return count


@contextmanager
def connected(port: int, count: int) -> Iterator[tuple[select.epoll, dict[int, Client]]]:
    """Give so many connections by descriptor, all watched."""
    clients = {client.socket.fileno(): client for client in (Client(port) for _ in range(count))}
    with select.epoll() as watched:
        for descriptor in clients:
            watched.register(descriptor, select.EPOLLIN)
        try:
            yield watched, clients
        finally:
            for client in clients.values():
                client.socket.close()


def closed_loop(port: int, requests: Sequence[bytes], seconds: float) -> list[float]:
    """Return latencies in seconds: one connection for each request, sent again and again."""
    latencies: list[float] = []
    with connected(port, len(requests)) as (watched, clients):
        request_of = dict(zip(clients, requests, strict=True))
        now = time.perf_counter()
        until = now + seconds
        for descriptor, client in clients.items():
            client.sent_s.append(now)
            client.socket.sendall(request_of[descriptor])
        while now < until:
            for descriptor, _ in watched.poll(1):
                client = clients[descriptor]
                if client.answers():
                    now = time.perf_counter()
                    latencies.append(now - client.sent_s.popleft())
                    client.sent_s.append(now)
                    client.socket.send(request_of[descriptor])
            now = time.perf_counter()
    return latencies


def open_loop(port: int, request: bytes, *, per_s: int, seconds: float) -> list[float]:
    """Return latencies in seconds from the instants at which requests were due."""
    latencies: list[float] = []
    with connected(port, 16) as (watched, clients):
        in_turn = itertools.cycle(clients.values())
        due = time.perf_counter() + 0.01
        until = due + seconds
        while due < until or any(client.sent_s for client in clients.values()):
            now = time.perf_counter()
            while due <= now and due < until:
                client = next(in_turn)
                client.socket.sendall(request)
                client.sent_s.append(due)
                due += 1 / per_s
            wait = max(0.0, due - time.perf_counter()) if due < until else 1.0
            select.select([watched], [], [], wait)  # epoll itself waits whole milliseconds
            for descriptor, _ in watched.poll(0):
                client = clients[descriptor]
                count, now = client.answers(), time.perf_counter()
                latencies += [now - client.sent_s.popleft() for _ in range(count)]
    return latencies


# --- the agent stream -----------------------------------------------------------------------------


PATIENCE_S = 60
"""How long a stream may say nothing that is waited for; then the measurement has failed."""


class Agents:
    """One agent stream and its tasks; each frame's last report has a `ref`, so its ack counts."""

    def __init__(
        self, port: int, key: str, name: str, tasks: int, beats: int, *, source: str = "127.0.0.1"
    ) -> None:
        self.socket = socket.create_connection(
            ("127.0.0.1", port), timeout=PATIENCE_S, source_address=(source, 0)
        )
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.beats = beats
        self.in_flight = 0
        self._tail = b""
        self._turn = 0
        self._elapsed_ms = 0
        self._ids = [f"{name}-{number}" for number in range(tasks)]
        self.socket.sendall(
            b"GET /v1/agents/stream HTTP/1.1\r\nhost: bench\r\nconnection: Upgrade\r\n"
            b"upgrade: websocket\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            b"sec-websocket-version: 13\r\nauthorization: Bearer " + key.encode() + b"\r\n\r\n"
        )
        answer = b""
        while b"\r\n\r\n" not in answer:
            more = self.socket.recv(65_536)
            assert more, answer
            answer += more
        assert b" 101 " in answer, answer
        self._tell_all('{{"type":"start","task_id":"{0}","agent_id":"{0}"}}')

    def _tell_all(self, message: str) -> None:
        """Send a message about each task, in frames of 100."""
        for first in range(0, len(self._ids), 100):
            messages = [message.format(one) for one in self._ids[first : first + 100]]
            self.socket.sendall(_frame(f"[{','.join(messages)}]".encode()))

    def started(self) -> None:
        """Return when every task runs, durably."""
        self._await(b'"started"')

    def finish(self) -> None:
        """Ask to end every task: tasks that are only abandoned are lost while others measure."""
        end = (
            '{{"type":"finish","task_id":"{0}","outcome":"succeeded","elapsed_ms":'
            + str(self._elapsed_ms)
            + "}}"
        )
        self._tell_all(end)

    def leave(self) -> None:
        """Close the stream when every task has ended, durably."""
        self._await(b'"finished"')
        self.socket.close()

    def _await(self, mark: bytes) -> None:
        """Read until every task has been spoken of."""
        data, latest, count = b"", b"", 0
        while count < len(self._ids):
            try:
                more = self.socket.recv(262_144)
            except TimeoutError as error:
                raise TimeoutError(f"{count} {mark!r} came; at last {latest!r}") from error
            assert more, latest
            latest = more[-300:]
            data = data[1 - len(mark) :] + more
            count += data.count(mark)

    def send(self) -> None:
        """Send one frame of reports, the tasks in turn, each a millisecond further than before.

        A millisecond, because more than has passed would be no plausible report.
        """
        reports = []
        for _ in range(self.beats):
            self._elapsed_ms += not self._turn
            reports.append(
                f'{{"type":"heartbeat","task_id":"{self._ids[self._turn]}",'
                f'"elapsed_ms":{self._elapsed_ms}'
            )
            self._turn = (self._turn + 1) % len(self._ids)
        text = "},".join(reports) + ',"ref":1}'
        self.socket.sendall(_frame((f"[{text}]" if self.beats > 1 else text).encode()))
        self.in_flight += 1

    def receive(self) -> int:
        """Read once; return how many frames became durable."""
        data = self._tail + self.socket.recv(262_144)
        mark = b'"ref":'
        self._tail = data[1 - len(mark) :]
        count = data.count(mark)
        self.in_flight -= count
        return count


def _frame(payload: bytes) -> bytes:
    """Return a text frame with a mask of zeros, which leaves the payload as it is."""
    size = len(payload)
    if size < 126:  # RFC 6455, 5.2
        return b"\x81%c\0\0\0\0%b" % (0x80 | size, payload)
    if size < 65_536:  # RFC 6455, 5.2
        return b"\x81\xfe" + size.to_bytes(2, "big") + b"\0\0\0\0" + payload
    return b"\x81\xff" + size.to_bytes(8, "big") + b"\0\0\0\0" + payload


def beat_closed_loop(agents: Sequence[Agents], window: int, seconds: float) -> float:
    """Return heartbeats a second that became durable, so many frames in flight a connection."""
    with selectors.DefaultSelector() as selector:
        for one in agents:
            selector.register(one.socket, selectors.EVENT_READ, one)
        began = time.perf_counter()
        until, durable = began + seconds, 0
        while time.perf_counter() < until or any(one.in_flight > 0 for one in agents):
            is_on = time.perf_counter() < until
            for one in agents:
                while is_on and one.in_flight < window:
                    one.send()
            for key, _ in selector.select(1):
                durable += key.data.receive() * key.data.beats
        return durable / (time.perf_counter() - began)


def beat_open_loop(agents: Sequence[Agents], *, per_s: int, seconds: float) -> float:
    """Send frames at fixed instants in turn; return heartbeats a second that became durable."""
    with selectors.DefaultSelector() as selector:
        for one in agents:
            selector.register(one.socket, selectors.EVENT_READ, one)
        began = due = time.perf_counter()
        until, turn, durable = due + seconds, 0, 0
        while due < until or any(one.in_flight > 0 for one in agents):
            while due <= time.perf_counter() and due < until:
                agents[turn % len(agents)].send()
                turn += 1
                due += agents[0].beats / per_s
            wait = max(0.0, due - time.perf_counter()) if due < until else 1.0
            for key, _ in selector.select(wait):
                durable += key.data.receive() * key.data.beats
        return durable / (time.perf_counter() - began)
