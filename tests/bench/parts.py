"""What the benchmark measures on running servers: one function a part, blocking, in a thread."""

from __future__ import annotations

import contextlib
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import attrs
import psutil

from tests.bench import loads
from tests.bench.loads import Agents, Sample
from tests.bench.rivals import Server


SETTINGS = {
    "METERD_PLAUSIBILITY": "off",
    "METERD_TASKS_PER_AGENT": "1000",
    "METERD_TASKS_PER_ORGANIZATION": "50000",
    "METERD_STREAM_IDLE_MS": "3600000",  # who only holds connections answers no pings
    "METERD_LOG_LEVEL": "error",
}
CONNECTIONS = (1, 32, 256)
STREAMS = 16
TASKS = 100
SHAPES = ((1, 1), (1, 64), (20, 4), (100, 4), (100, 16))
"""Reports in a frame, frames in flight a connection."""
CHECKS_PER_S = 2_000
BEATS_PER_S = 2_000
PER_ADDRESS = 900
"""Connections from one address: fewer than meterd lets one have."""

REDIS, POSTGRES, QUART = "FastAPI + Redis (Lua)", "FastAPI + PostgreSQL", "Quart-Trio on Hypercorn"
METERD, HELLO = "meterd", "bare uvicorn, hello"


@attrs.frozen(kw_only=True)
class Sizes:
    """How long and how large."""

    rounds: int
    seconds: float
    organizations: int
    ledger_rows: int
    usage_rows: int
    connections: int


def say(text: str) -> None:
    """Tell whoever waits what is being measured."""
    sys.stderr.write(f"bench: {text}\n")


def cpu_s(pid: int) -> float:
    """Return the processor seconds a process has used."""
    used = psutil.Process(pid).cpu_times()
    return float(used.user + used.system)


def sampled(server: Server, seconds: float, load: Callable[[], list[float]]) -> Sample:
    """Run a load that returns latencies, and return what it measured."""
    before_s = cpu_s(server.pid)
    latencies = load()
    p50, p99, p999 = loads.quantiles_ms(latencies)
    return Sample(
        per_s=len(latencies) / seconds,
        cpu_us=(cpu_s(server.pid) - before_s) * 1e6 / len(latencies),
        p50_ms=p50,
        p99_ms=p99,
        p999_ms=p999,
    )


def median_of(samples: Sequence[Sample]) -> Sample:
    """Return the median of each figure."""
    fields = [field.name for field in attrs.fields(Sample)]
    return Sample(**{n: statistics.median(getattr(s, n) for s in samples) for n in fields})


# --- quota checks ---------------------------------------------------------------------------------


def checks(
    servers: Sequence[Server], sizes: Sizes, missing: dict[str, str]
) -> dict[tuple[str, int], Sample]:
    """Measure quota checks, closed loop, the servers alternating; one that fails is left out."""
    found: dict[tuple[str, int], list[Sample]] = {}
    for number in range(sizes.rounds):
        for connections, server in itertools.product(CONNECTIONS, servers):
            if server.name in missing:
                continue
            say(f"round {number + 1}: checks, {connections} connections, {server.name}")
            requests = [loads.check_request(server.key)] * connections
            load = partial(loads.closed_loop, server.port, requests, sizes.seconds)
            try:
                sample = sampled(server, sizes.seconds, load)
            except Exception as error:  # noqa: BLE001  # whatever it is, the others are measured
                missing[server.name] = f"it failed under load: {error!r:.200}"
                continue
            found.setdefault((server.name, connections), []).append(sample)
    return {key: median_of(samples) for key, samples in found.items()}


def checks_of_many(server: Server, keys: Sequence[str], sizes: Sizes) -> Sample:
    """Measure quota checks when each connection asks for an organization of its own."""
    say(f"checks of {len(keys)} organizations at once")
    requests = [loads.check_request(key) for key in keys]
    load = partial(loads.closed_loop, server.port, requests, sizes.seconds)
    return median_of([sampled(server, sizes.seconds, load) for _ in range(sizes.rounds)])


def checks_under_heartbeats(server: Server, sizes: Sizes) -> tuple[Sample, float]:
    """Measure checks, open loop, while heartbeats are made durable by another process."""
    say("checks, open loop, while heartbeats are made durable")
    seconds = sizes.seconds * 4
    command = [sys.executable, "-m", "tests.bench.report", "--beat", str(server.port), server.key]
    with subprocess.Popen(
        [*command, str(seconds + 2)], stdout=subprocess.PIPE, text=True
    ) as beating:
        time.sleep(1.5)
        load = partial(
            loads.open_loop,
            server.port,
            loads.check_request(server.key),
            per_s=CHECKS_PER_S,
            seconds=seconds,
        )
        sample = sampled(server, seconds, load)
        told, _ = beating.communicate(timeout=60)
    return sample, float(told)


def beat_in_background(port: int, key: str, seconds: float) -> None:
    """Report at a steady rate and print how many heartbeats a second became durable."""
    with streams(Server(METERD, 0, port, key), STREAMS, 20, 20) as opened:
        per_s = loads.beat_open_loop(opened, per_s=BEATS_PER_S, seconds=seconds)
    sys.stdout.write(f"{per_s}\n")


# --- heartbeats -----------------------------------------------------------------------------------


def peer_heartbeats(server: Server, sizes: Sizes) -> Sample:
    """Measure durable heartbeats of the PostgreSQL peer, 32 tasks at once."""
    say(f"heartbeats, {server.name}")
    requests = [loads.heartbeat_request(server.key, number) for number in range(32)]
    load = partial(loads.closed_loop, server.port, requests, sizes.seconds)
    return median_of([sampled(server, sizes.seconds, load) for _ in range(sizes.rounds)])


@contextlib.contextmanager
def streams(server: Server, count: int, tasks: int, beats: int) -> Iterator[list[Agents]]:
    """Give agent streams whose tasks run; tasks and streams end with the block."""
    opened = open_streams(server, count, tasks, beats)
    try:
        yield opened
        for one in opened:
            one.finish()
        for one in opened:
            one.leave()
    finally:
        for one in opened:
            one.socket.close()


def open_streams(server: Server, count: int, tasks: int, beats: int) -> list[Agents]:
    """Return agent streams whose tasks run."""
    serial = f"{time.monotonic_ns():x}"
    opened = []
    for number in range(count):
        source = f"127.0.0.{1 + number // PER_ADDRESS}"
        name = f"{serial}-{number}"
        opened.append(Agents(server.port, server.key, name, tasks, beats, source=source))
    for one in opened:
        one.started()
    return opened


def heartbeats(server: Server, sizes: Sizes) -> dict[tuple[int, int, int], Sample]:
    """Measure durable heartbeats for each shape and for few and many tasks a connection."""
    found = {}
    for (beats, window), tasks in itertools.product(SHAPES, (20, TASKS)):
        say(f"heartbeats, {beats} a frame, {window} frames in flight, {tasks} tasks a connection")
        samples = []
        with streams(server, STREAMS, tasks, beats) as opened:
            loads.beat_closed_loop(opened, window, sizes.seconds / 2)
            for _ in range(sizes.rounds):
                before_s, began = cpu_s(server.pid), time.perf_counter()
                per_s = loads.beat_closed_loop(opened, window, sizes.seconds)
                count = per_s * (time.perf_counter() - began)
                cpu_us = (cpu_s(server.pid) - before_s) * 1e6 / count
                samples.append(Sample(per_s=per_s, cpu_us=cpu_us))
        found[beats, window, tasks] = median_of(samples)
    return found


def resident(server: Server) -> int:
    """Return the bytes of memory that a server holds."""
    return int(psutil.Process(server.pid).memory_info().rss)


def idle_agents(server: Server, before: int, connections: int, tasks: int) -> float:
    """Return the bytes that idle agents on so many connections add to what was held `before`."""
    say(f"{connections * tasks:,} idle agents on {connections:,} connections")
    with streams(server, connections, tasks, 1):
        return float(resident(server) - before)


def leave_when_told(opened: Sequence[Agents]) -> None:
    """Close each stream when the service has said that it goes, as clients do."""
    for one in opened:
        while (data := one.socket.recv(65_536)) and b"\x88" not in data:
            pass
        one.socket.close()


# --- programs of their own ------------------------------------------------------------------------


def printed_by(module: str, *arguments: object) -> Any:
    """Return the JSON that another benchmark prints."""
    say(f"{module} {' '.join(map(str, arguments))}")
    command = [sys.executable, "-m", f"tests.bench.{module}", *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)
