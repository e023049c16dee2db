"""The whole service under load: `python -m tests.bench.bench_service` prints a table.

A real `meterd serve` with a PostgreSQL of its own in one process, the load in another. Heartbeats
count when they are acknowledged, that is, durable; checks are measured open loop while heartbeats
are being made durable. Medians of the rounds; with two cores the load takes part of what it
measures.
"""

from __future__ import annotations

import contextlib
import functools
import math
import shutil
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import attrs
import msgspec
import psutil
import trio
from websockets.trio.client import ClientConnection, connect

from tests.integration.service.harness import Service, running_meterd


CONNECTIONS = 16
TASKS_PER_CONNECTION = 20
ROUNDS = 3
ROUND_S = 4.0
CHECKS_PER_S = 200
BACKGROUND_BEATS_PER_S = 2_000
IDLE_STREAMS = 500

SETTINGS = {
    "METERD_PLAUSIBILITY": "off",
    "METERD_TASKS_PER_AGENT": "1000",
    "METERD_LOG_LEVEL": "error",
}


@attrs.define(eq=False)
class Fleet:
    """One connection and its running tasks; reports one millisecond more each time."""

    socket: ClientConnection
    task_ids: Sequence[str]
    elapsed_ms: int = 0
    acked: int = 0
    """Heartbeats covered by acknowledgements."""

    async def start(self) -> None:
        """Start every task and wait until all are durable."""
        await self.socket.send(
            msgspec.json.encode(
                [
                    {"type": "start", "task_id": task_id, "agent_id": task_id}
                    for task_id in self.task_ids
                ]
            ).decode()
        )
        left = len(self.task_ids)
        while left:
            left -= sum(message["type"] == "started" for message in await self.receive())

    async def receive(self) -> list[dict[str, object]]:
        """Return the messages of the next frame."""
        content = msgspec.json.decode(await self.socket.recv())
        return content if isinstance(content, list) else [content]

    def frame(self, beats: int) -> str:
        """Return a frame of so many heartbeats, the tasks in turn."""
        messages = []
        for number in range(beats):
            if number % len(self.task_ids) == 0:
                self.elapsed_ms += 1
            messages.append(
                {
                    "type": "heartbeat",
                    "task_id": self.task_ids[number % len(self.task_ids)],
                    "elapsed_ms": self.elapsed_ms,
                }
            )
        return msgspec.json.encode(messages if beats > 1 else messages[0]).decode()

    async def beat(
        self, beats: int, window: int, *, until_s: float = math.inf, frames: float = math.inf
    ) -> None:
        """Keep `window` frames unacknowledged until a time; count what became durable."""
        sent: dict[int, int] = {}
        while True:
            while len(sent) < window and frames > 0 and trio.current_time() < until_s:
                frames -= 1
                frame = self.frame(beats)
                sent[self.elapsed_ms] = sent.get(self.elapsed_ms, 0) + beats
                await self.socket.send(frame)
            if not sent:
                return
            durable_ms = 0
            for message in await self.receive():
                if message["type"] == "ack":
                    elapsed_ms = message["elapsed_ms"]
                    assert isinstance(elapsed_ms, int)
                    durable_ms = max(durable_ms, elapsed_ms)
            for elapsed_ms in [known for known in sent if known <= durable_ms]:
                self.acked += sent.pop(elapsed_ms)


@contextlib.asynccontextmanager
async def fleets(service: Service, key: str, count: int, tasks: int) -> AsyncIterator[list[Fleet]]:
    """Connect and start; the connections end with the block."""
    headers = {"authorization": f"Bearer {key}"}
    async with contextlib.AsyncExitStack() as stack:
        found = []
        for number in range(count):
            socket = await stack.enter_async_context(
                connect(
                    service.stream_url,
                    additional_headers=headers,
                    subprotocols=["meterd.v1"],  # type: ignore[list-item]  # a NewType of str
                    compression=None,
                    max_size=None,
                )
            )
            fleet = Fleet(socket, [f"{key[-6:]}-{number}-{task}" for task in range(tasks)])
            await fleet.start()
            found.append(fleet)
        yield found


def cpu_s(process: psutil.Process) -> float:
    """Return the processor seconds a process has used."""
    used = process.cpu_times()
    return float(used.user + used.system)


async def durable_rate(
    service: Service, found: Sequence[Fleet], beats: int, window: int
) -> tuple[float, float]:
    """Return heartbeats a second that became durable in one round, and meterd's CPU µs for one."""
    process = psutil.Process(service.process.pid)
    cpu_before_s = cpu_s(process)
    before, began_s = sum(fleet.acked for fleet in found), trio.current_time()
    async with trio.open_nursery() as nursery:
        for fleet in found:
            nursery.start_soon(
                functools.partial(fleet.beat, beats, window, until_s=began_s + ROUND_S)
            )
    acked = sum(fleet.acked for fleet in found) - before
    cpu_us = (cpu_s(process) - cpu_before_s) * 1_000_000 / acked
    return acked / (trio.current_time() - began_s), cpu_us


async def checks_under_load(
    service: Service, key: str, found: Sequence[Fleet]
) -> tuple[list[float], int]:
    """Return check latencies in ms, open loop, and the heartbeats made durable meanwhile."""
    latencies_ms: list[float] = []
    before, until_s = sum(fleet.acked for fleet in found), trio.current_time() + ROUND_S * 2
    request = (
        f"GET /v1/quota/check HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {key}\r\n\r\n"
    ).encode()
    host, port = service.url.removeprefix("http://").split(":")

    async def check(lane: int, lanes: int) -> None:
        stream = await trio.open_tcp_stream(host, int(port))
        async with stream:
            due_s = trio.current_time() + lane / CHECKS_PER_S
            while due_s < until_s:
                await trio.sleep_until(due_s)
                await stream.send_all(request)
                answer = await stream.receive_some(65_536)
                latencies_ms.append((trio.current_time() - due_s) * 1_000)
                assert answer.startswith(b"HTTP/1.1 200"), answer
                due_s += lanes / CHECKS_PER_S

    async def beat(fleet: Fleet, lane: int) -> None:
        interval_s = 20 * len(found) / BACKGROUND_BEATS_PER_S
        due_s = trio.current_time() + interval_s * lane / len(found)
        while due_s < until_s:
            await trio.sleep_until(due_s)
            await fleet.beat(20, 1, frames=1)
            due_s += interval_s

    async with trio.open_nursery() as nursery:
        for lane in range(10):
            nursery.start_soon(check, lane, 10)
        for lane, fleet in enumerate(found):
            nursery.start_soon(beat, fleet, lane)
    return latencies_ms, sum(fleet.acked for fleet in found) - before


async def idle_stream_bytes(service: Service, key: str) -> float:
    """Return the memory one idle connected stream adds to the service."""
    process = psutil.Process(service.process.pid)
    before = process.memory_info().rss
    async with fleets(service, key, IDLE_STREAMS, 0):
        return float(process.memory_info().rss - before) / IDLE_STREAMS


def show(what: str, figure: str) -> None:
    """Print one line of the table."""
    sys.stdout.write(f"{what:<66} {figure:>24}\n")
    sys.stdout.flush()


async def main() -> None:
    """Run every measurement."""
    data_dir = Path(tempfile.mkdtemp(prefix="meterd-bench-"))
    try:
        async with running_meterd("--data-dir", str(data_dir), settings=SETTINGS) as service:
            key = await service.organization("bench", "enterprise")
            async with fleets(service, key, CONNECTIONS, TASKS_PER_CONNECTION) as found:
                shapes = [(1, 1), (1, 64), (100, 4), (100, 16)]
                for beats, window in shapes[-int(sys.argv[1]) :] if sys.argv[1:] else shapes:
                    name = f"durable heartbeats/s, {beats} per frame, {window} frames in flight"
                    rounds = [
                        await durable_rate(service, found, beats, window) for _ in range(ROUNDS)
                    ]
                    rate = statistics.median(rate for rate, _ in rounds)
                    cpu_us = statistics.median(cpu_us for _, cpu_us in rounds)
                    show(f"{name}", f"{rate:,.0f}  ({cpu_us:.0f} µs CPU each)")
                latencies_ms, beats_durable = await checks_under_load(service, key, found)
                cuts = statistics.quantiles(latencies_ms, n=1_000)
                show(
                    f"quota check at {CHECKS_PER_S}/s open loop, p50 / p99 ms, while "
                    f"{beats_durable / (ROUND_S * 2):,.0f} heartbeats/s",
                    f"{cuts[499]:.2f} / {cuts[989]:.2f}",
                )
            show("idle agent stream", f"{await idle_stream_bytes(service, key) / 1024:.1f} KB")
            assert await service.stop() == 0
    finally:
        shutil.rmtree(data_dir, ignore_errors=True)


if __name__ == "__main__":
    trio.run(main)
