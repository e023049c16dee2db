"""The benchmark: `make bench` writes `reports/benchmark-YYYY-MM-DD.md` and its plot.

Everything is measured in one run on one machine, the servers alternating, each a process of its
own, the load in another. Rates suffer from whatever else the machine does; the server's processor
time per answer hardly does, so it is what to compare between runs.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import attrs
import psutil
import trio

from meterd.adapters.asyncio_thread import open_asyncio_thread
from meterd.adapters.embedded_postgres import open_embedded_postgres
from tests.bench import loads
from tests.bench.loads import Agents, Sample
from tests.bench.rivals import CannotRunError, Server, peer_python, running, running_redis
from tests.bench.written import Figures, write
from tests.integration.service.harness import Service, running_meterd


SETTINGS = {
    "METERD_PLAUSIBILITY": "off",
    "METERD_TASKS_PER_AGENT": "1000",
    "METERD_LOG_LEVEL": "error",
}
CONNECTIONS = (1, 32, 256)
STREAMS = 16
TASKS = 100
SHAPES = ((1, 1), (1, 64), (20, 4), (100, 4), (100, 16))
"""Reports in a frame, frames in flight a connection."""
CHECKS_PER_S = 2_000
BEATS_PER_S = 2_000

REDIS, POSTGRES, QUART = "FastAPI + Redis (Lua)", "FastAPI + PostgreSQL", "Quart-Trio on Hypercorn"
METERD, HELLO = "meterd", "bare uvicorn, hello"


@attrs.frozen(kw_only=True)
class Sizes:
    """How long and how large."""

    rounds: int
    seconds: float
    organizations: int
    ledger_rows: int


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


def median_of(samples: list[Sample]) -> Sample:
    """Return the median of each figure."""
    fields = [field.name for field in attrs.fields(Sample)]
    return Sample(**{n: statistics.median(getattr(s, n) for s in samples) for n in fields})


def checks(servers: list[Server], sizes: Sizes) -> dict[tuple[str, int], Sample]:
    """Measure quota checks, closed loop, the servers alternating."""
    found: dict[tuple[str, int], list[Sample]] = {}
    for number in range(sizes.rounds):
        for connections, server in itertools.product(CONNECTIONS, servers):
            say(f"round {number + 1}: checks, {connections} connections, {server.name}")
            requests = [loads.check_request(server.key)] * connections
            load = partial(loads.closed_loop, server.port, requests, sizes.seconds)
            sample = sampled(server, sizes.seconds, load)
            found.setdefault((server.name, connections), []).append(sample)
    return {key: median_of(samples) for key, samples in found.items()}


def peer_heartbeats(server: Server, sizes: Sizes) -> Sample:
    """Measure durable heartbeats of the PostgreSQL peer, 32 tasks at once."""
    say(f"heartbeats, {server.name}")
    requests = [loads.heartbeat_request(server.key, number) for number in range(32)]
    load = partial(loads.closed_loop, server.port, requests, sizes.seconds)
    return median_of([sampled(server, sizes.seconds, load) for _ in range(sizes.rounds)])


@contextlib.contextmanager
def streams(server: Server, count: int, tasks: int, beats: int) -> Iterator[list[Agents]]:
    """Give agent streams whose tasks run."""
    serial = f"{time.monotonic_ns():x}"
    opened = [
        Agents(server.port, server.key, f"{serial}-{number}", tasks, beats)
        for number in range(count)
    ]
    try:
        yield opened
    finally:
        for one in opened:
            one.socket.close()


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


def connected_agents(server: Server) -> float:
    """Return the bytes that 10,000 idle agents on 1,000 connections add to the service."""
    say("10,000 idle agents on 1,000 connections")
    process = psutil.Process(server.pid)
    before = process.memory_info().rss
    with streams(server, 1_000, 10, 1):
        return float(process.memory_info().rss - before)


def leave_when_told(opened: list[Agents]) -> None:
    """Close each stream when the service has said that it goes, as clients do."""
    for one in opened:
        while b"\x88" not in one.socket.recv(65_536):
            pass
        one.socket.close()


def organizations(sizes: Sizes) -> dict[str, object]:
    """Measure many organizations and a long ledger, in a process of their own."""
    say(f"{sizes.organizations:,} organizations, {sizes.ledger_rows:,} ledger rows")
    command = [sys.executable, "-m", "tests.bench.bench_organizations"]
    done = subprocess.run(
        [*command, str(sizes.organizations), str(sizes.ledger_rows)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, object] = json.loads(done.stdout)
    return found


async def measure(sizes: Sizes, environment: Path, directory: Path) -> Figures:
    """Run every measurement."""
    load_before = psutil.getloadavg()
    missing: dict[str, str] = {}
    async with contextlib.AsyncExitStack() as stack:
        portal = await stack.enter_async_context(open_asyncio_thread())
        postgres = await stack.enter_async_context(
            open_embedded_postgres(portal, directory / "peers", on_progress=lambda _: None)
        )
        data = str(directory / "meterd")
        service: Service = await stack.enter_async_context(
            running_meterd("--data-dir", data, settings=SETTINGS)
        )
        key = await service.organization("org_1", "enterprise")
        meterd = Server(METERD, service.process.pid, int(service.url.rsplit(":", 1)[1]), key)
        servers = [meterd]

        def start(name: str, command: Callable[[], list[str]]) -> None:
            try:
                servers.append(stack.enter_context(running(name, command())))
            except CannotRunError as error:
                missing[name] = str(error)

        def peer(kind: str, url: Callable[[], str] = str) -> list[str]:
            program = str(Path(__file__).parent / "peers" / "server.py")
            return [peer_python(environment), program, kind, url()]

        say("starting the peers")
        start(REDIS, lambda: peer("redis", lambda: stack.enter_context(running_redis(directory))))
        start(POSTGRES, lambda: peer("postgres", lambda: postgres.dsn))
        quart = [sys.executable, "-m", "tests.bench.bench_front", "quart-trio on hypercorn"]
        start(QUART, lambda: quart)
        start(HELLO, lambda: peer("hello"))
        by_name = {server.name: server for server in servers}

        in_thread = trio.to_thread.run_sync
        found_checks = await in_thread(checks, servers, sizes)
        peer_beats = None
        if POSTGRES in by_name:
            peer_beats = await in_thread(peer_heartbeats, by_name[POSTGRES], sizes)
        found_beats = await in_thread(heartbeats, meterd, sizes)
        under_load = await in_thread(checks_under_heartbeats, meterd, sizes)
        agents_bytes = await in_thread(connected_agents, meterd)
        with streams(meterd, STREAMS, 20, 20) as opened:
            await in_thread(partial(loads.beat_closed_loop, opened, 4, 1.0))
            began = trio.current_time()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(in_thread, leave_when_told, opened)
                assert await service.stop() == 0
                stop_s = trio.current_time() - began
    many = await trio.to_thread.run_sync(organizations, sizes)
    return Figures(
        load_before=load_before[0],
        missing=missing,
        checks=found_checks,
        connections=CONNECTIONS,
        peer_beats=peer_beats,
        beats=found_beats,
        under_load=under_load[0],
        under_load_beats_per_s=under_load[1],
        agents_bytes=agents_bytes,
        stop_s=stop_s,
        many=many,
    )


def main() -> None:
    """Measure everything and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one round")
    parser.add_argument("--organizations", type=int, default=100_000)
    parser.add_argument("--ledger-rows", type=int, default=1_000_000)
    parser.add_argument("--reports", type=Path, default=Path("reports"))
    parser.add_argument("--environment", type=Path, default=Path("build/bench-venv"))
    parser.add_argument(
        "--beat", nargs=3, metavar=("PORT", "KEY", "SECONDS"), help="used by itself"
    )
    given = parser.parse_args()
    if given.beat:
        beat_in_background(int(given.beat[0]), given.beat[1], float(given.beat[2]))
        return
    sizes = Sizes(
        rounds=given.rounds,
        seconds=given.seconds,
        organizations=given.organizations,
        ledger_rows=given.ledger_rows,
    )
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="meterd-bench-") as name:
        directory = Path(name)
        directory.chmod(0o755)  # PostgreSQL may run as another account
        figures = trio.run(measure, sizes, given.environment.resolve(), directory)
    command = f"python -m tests.bench.report {' '.join(sys.argv[1:])}".strip()
    path = write(figures, given.reports, command, round(time.monotonic() - began))
    sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
