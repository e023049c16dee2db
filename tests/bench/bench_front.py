"""What the front door costs: `python -m tests.bench.bench_front` prints a table.

Each variant is a server in a process of its own; this process is the client: CONNECTIONS sockets
in lock-step, and the same with DEPTH requests in each write. Rounds alternate between variants,
and the median of the rounds is shown. The work behind a request is nothing, so this measures
the path to it. Answers per second suffer from whatever else the machine does; the server's CPU
time per answer, from /proc, hardly does, so it is what to compare between two runs.
"""

from __future__ import annotations

import itertools
import os
import selectors
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import attrs
import hypercorn.trio
import trio
from hypercorn.config import Config
from quart import websocket
from quart_trio import QuartTrio
from websockets.frames import Frame, Opcode

from meterd.web.front.hot import HotRequest
from meterd.web.front.wire import http_response
from meterd.web.front_door import FrontDoor, open_listeners
from meterd.web.stream_transport import OpenSession, StreamRequest, StreamTransport


CONNECTIONS = 16
DEPTH = 50
IDLE_STREAMS = 800
ROUNDS = 5
ROUND_S = 1.5
BODY = b'{"organization_id":"org_1","plan":"starter","state":"ok","allowed":true,"code":null}'
ACK = b'{"type":"ack","task_id":"t1","elapsed_ms":10000,"metered_ms":10000}'
CHECK = (
    b"GET /v1/quota/check?agent_id=a1 HTTP/1.1\r\nHost: localhost\r\n"
    b"Authorization: Bearer mk_live_0123456789\r\nAccept: */*\r\nUser-Agent: bench\r\n\r\n"
)
UPGRADE = (
    b"GET /v1/agents/stream HTTP/1.1\r\nhost: localhost\r\nconnection: Upgrade\r\n"
    b"upgrade: websocket\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"sec-websocket-version: 13\r\n\r\n"
)
HEARTBEAT = Frame(Opcode.TEXT, b'{"type":"heartbeat","task_id":"t1","elapsed_ms":10000}').serialize(
    mask=True
)


@attrs.define
class Acking:
    """A session that acknowledges at once."""

    transport: StreamTransport

    def on_texts(self, payloads: Sequence[bytes]) -> None:
        for payload in payloads:
            assert payload
            self.transport.send(ACK)

    def on_binary(self, payload: bytes) -> None:
        self.transport.close(1003, f"{len(payload)} bytes")

    async def settled(self) -> None:
        await trio.lowlevel.checkpoint()

    def on_end(self, code: int) -> None:
        assert code


class EveryoneIsWelcome:
    """A gate without authentication."""

    async def admit(self, request: StreamRequest) -> OpenSession:
        assert request.path
        await trio.lowlevel.checkpoint()
        return Acking


def make_app() -> QuartTrio:
    """Return the application that both servers run."""
    app = QuartTrio("bench")

    @app.get("/v1/quota/check")
    async def check() -> tuple[bytes, dict[str, str]]:
        return BODY, {"content-type": "application/json"}

    @app.websocket("/v1/agents/stream")
    async def stream() -> None:
        while await websocket.receive():
            await websocket.send(ACK.decode())

    return app


def answer_hot(request: HotRequest) -> bytes:
    """Answer from memory."""
    assert request.authorization
    return http_response(200, BODY, [("content-type", "application/json")])


async def serve(variant: str) -> None:
    """Serve for ever; the port goes to standard output."""
    if variant == "quart-trio on hypercorn":
        config = Config()
        config.bind = ["127.0.0.1:0"]
        config.loglevel = "ERROR"
        config.keep_alive_max_requests = 10**9
        async with trio.open_nursery() as nursery:
            bound = await nursery.start(partial(hypercorn.trio.serve, make_app(), config))
            print(bound[0].rsplit(":", 1)[1], flush=True)  # noqa: T201
        return
    numbers = itertools.count()
    door = FrontDoor(
        make_app(),
        new_request_id=lambda: str(next(numbers)),
        hot_path=answer_hot,
        stream_gate=EveryoneIsWelcome(),
    )
    listeners = await open_listeners("127.0.0.1", 0)
    print(listeners[0].socket.getsockname()[1], flush=True)  # noqa: T201
    await door.serve(listeners)


def cpu_s(pid: int) -> float:
    """Return the CPU seconds that a process has used, in user and in kernel mode."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(port: int, *, opening: bytes, request: bytes, mark: bytes, depth: int) -> float:
    """Return answers per second, counted by their `mark`, over one round."""
    clients = []
    for _ in range(CONNECTIONS):
        client = socket.create_connection(("127.0.0.1", port))
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if opening:
            client.sendall(opening)
            while b"\r\n\r\n" not in client.recv(65536):
                pass
        clients.append(client)
    with selectors.DefaultSelector() as selector:
        owed = {}
        tails = dict.fromkeys(clients, b"")
        by_descriptor = {client.fileno(): client for client in clients}
        for client in clients:
            selector.register(client, selectors.EVENT_READ)
            owed[client] = depth
            client.sendall(request * depth)
        answered = 0
        begun = time.perf_counter()
        while time.perf_counter() - begun < ROUND_S:
            for key, _ in selector.select(1):
                client = by_descriptor[key.fd]
                data = tails[client] + client.recv(262_144)
                tails[client] = data[1 - len(mark) :]  # a mark may be cut by the next read
                count = data.count(mark)
                answered += count
                owed[client] -= count
                if owed[client] <= 0:
                    owed[client] = depth
                    client.sendall(request * depth)
        elapsed_s = time.perf_counter() - begun
    for client in clients:
        client.close()
    return answered / elapsed_s


def idle_stream_kb(pid: int, port: int) -> float:
    """Return the resident memory that one open, silent agent stream costs the server, in KB."""
    before_kb = resident_kb(pid)
    clients = []
    for _ in range(IDLE_STREAMS):
        client = socket.create_connection(("127.0.0.1", port))
        client.sendall(UPGRADE)
        while b"\r\n\r\n" not in client.recv(65536):
            pass
        clients.append(client)
    after_kb = resident_kb(pid)
    for client in clients:
        client.close()
    return (after_kb - before_kb) / IDLE_STREAMS


def resident_kb(pid: int) -> int:
    """Return a process's resident memory in KB."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(status.partition("VmRSS:")[2].split()[0])


LOADS = {
    "checks, lock-step": {"opening": b"", "request": CHECK, "mark": b"HTTP/1.1 ", "depth": 1},
    "frames, lock-step": {"opening": UPGRADE, "request": HEARTBEAT, "mark": b'"ack"', "depth": 1},
    "frames, 50 a write": {
        "opening": UPGRADE, "request": HEARTBEAT, "mark": b'"ack"', "depth": DEPTH,
    },
}  # fmt: skip
VARIANTS = ("front door", "quart-trio on hypercorn")


def main() -> None:
    """Run every load against every variant and print the medians."""
    servers = {}
    for variant in VARIANTS:
        servers[variant] = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.bench_front", variant],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
    try:
        ports = {v: int((s.stdout and s.stdout.readline()) or 0) for v, s in servers.items()}
        idle_kb = {v: idle_stream_kb(servers[v].pid, ports[v]) for v in VARIANTS}
        rates: dict[tuple[str, str], list[float]] = {}
        costs: dict[tuple[str, str], list[float]] = {}
        for _ in range(ROUNDS):
            for load, variant in itertools.product(LOADS, VARIANTS):
                pid = servers[variant].pid
                before_s = cpu_s(pid)
                rate = measure(ports[variant], **LOADS[load])  # type: ignore[arg-type]
                rates.setdefault((load, variant), []).append(rate)
                cost_us = (cpu_s(pid) - before_s) / (rate * ROUND_S) * 1e6
                costs.setdefault((load, variant), []).append(cost_us)
    finally:
        for server in servers.values():
            server.kill()
            server.wait()
    print(f"{'load':22}" + "".join(f"{variant:>26}" for variant in VARIANTS))  # noqa: T201
    for load in LOADS:
        cells = [
            f"{statistics.median(rates[load, variant]):,.0f}/s"
            f" {statistics.median(costs[load, variant]):,.1f} us"
            for variant in VARIANTS
        ]
        print(f"{load:22}" + "".join(f"{cell:>26}" for cell in cells))  # noqa: T201
    cells = [f"{idle_kb[variant]:,.1f} KB" for variant in VARIANTS]
    print(f"{'an idle stream':22}" + "".join(f"{cell:>26}" for cell in cells))  # noqa: T201


if __name__ == "__main__":
    if len(sys.argv) > 1:
        trio.run(serve, sys.argv[1])
    else:
        main()
