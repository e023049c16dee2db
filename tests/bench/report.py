"""The benchmark: `make bench` writes `reports/benchmark-YYYY-MM-DD.md` and its plots.

Everything is measured in one run on one machine, the servers alternating, each a process of its
own, the load in another. Rates suffer from whatever else the machine does; the server's processor
time per answer hardly does, so it is what to compare between runs. A part that fails is named in
the report, and the others are measured.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import attrs
import psutil
import trio

from meterd.adapters.asyncio_thread import open_asyncio_thread
from meterd.adapters.embedded_postgres import open_embedded_postgres
from tests.bench import loads, parts
from tests.bench.parts import HELLO, METERD, POSTGRES, QUART, REDIS, Sizes, say
from tests.bench.rivals import CannotRunError, Server, peer_python, running, running_redis
from tests.bench.written import Figures, write
from tests.integration.service.harness import Service, running_meterd


T = TypeVar("T")

USAGE_ROUNDS = 40
"""Requests of each usage route."""


@attrs.define
class Run:
    """One run: what it measures, and what it could not."""

    sizes: Sizes
    missing: dict[str, str] = attrs.field(factory=dict)

    async def part(self, name: str, measure: Callable[[], T]) -> T | None:
        """Return what a part measures, or None when it fails; the report says why."""
        try:
            return await trio.to_thread.run_sync(measure)
        except Exception as error:  # noqa: BLE001  # whatever it is, the other parts are measured
            say(f"{name} FAILED: {error!r:.500}")
            self.missing[name] = f"{error!r:.200}"
            return None

    def start_peers(
        self, stack: contextlib.ExitStack, environment: Path, directory: Path, dsn: str
    ) -> list[Server]:
        """Start every peer that can run here; each ends with the stack."""
        say("starting the peers")
        servers: list[Server] = []

        def peer(kind: str, url: str = "") -> list[str]:
            program = str(Path(__file__).parent / "peers" / "server.py")
            return [peer_python(environment), program, kind, url]

        quart = [sys.executable, "-m", "tests.bench.bench_front", "quart-trio on hypercorn"]
        commands: dict[str, Callable[[], list[str]]] = {
            REDIS: lambda: peer("redis", stack.enter_context(running_redis(directory))),
            POSTGRES: lambda: peer("postgres", dsn),
            QUART: lambda: quart,
            HELLO: lambda: peer("hello"),
        }
        for name, command in commands.items():
            try:
                servers.append(stack.enter_context(running(name, command())))
            except CannotRunError as error:
                self.missing[name] = str(error)
        return servers

    async def stop_under_load(self, service: Service, server: Server) -> float | None:
        """Return the seconds that a stop takes while heartbeats are on their way."""
        say("a stop under load")
        opened = await self.part(
            "streams for a stop", partial(parts.open_streams, server, parts.STREAMS, 20, 20)
        )
        if opened is None:
            return None
        await self.part("load before a stop", partial(loads.beat_closed_loop, opened, 4, 1.0))
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                self.part, "leaving at a stop", partial(parts.leave_when_told, opened)
            )
            if await service.stop() != 0:
                self.missing["a clean stop"] = "meterd ended with an error"
        return trio.current_time() - began

    async def measure(self, environment: Path, directory: Path) -> Figures:
        """Run every measurement."""
        load_before = psutil.getloadavg()[0]
        sizes, part = self.sizes, self.part
        async with contextlib.AsyncExitStack() as stack:
            portal = await stack.enter_async_context(open_asyncio_thread())
            postgres = await stack.enter_async_context(
                open_embedded_postgres(portal, directory / "peers", on_progress=lambda _: None)
            )
            service: Service = await stack.enter_async_context(
                running_meterd("--data-dir", str(directory / "meterd"), settings=parts.SETTINGS)
            )
            key = await service.organization("org_1", "enterprise")
            keys = [await service.organization(f"other_{n}", "pro") for n in range(256)]
            port = int(service.url.rsplit(":", 1)[1])
            meterd = Server(METERD, service.process.pid, port, key)
            at_start = parts.resident(meterd)  # what other parts have freed would be used again
            agents_bytes = await part(
                "10,000 idle agents", partial(parts.idle_agents, meterd, at_start, 1_000, 10)
            )
            connections_bytes = await part(
                "10,000 connections",
                partial(parts.idle_agents, meterd, at_start, sizes.connections, 1),
            )
            under_load = await part(
                "checks under heartbeats", partial(parts.checks_under_heartbeats, meterd, sizes)
            )
            peers = stack.enter_context(contextlib.ExitStack())
            servers = [
                meterd, *self.start_peers(peers, environment, directory, postgres.dsn)
            ]  # fmt: skip
            checks = await part("checks", partial(parts.checks, servers, sizes, self.missing))
            many_checks = await part(
                "checks of many organizations", partial(parts.checks_of_many, meterd, keys, sizes)
            )
            peer_beats = None
            for server in servers:
                if server.name == POSTGRES:
                    peer_beats = await part(
                        "heartbeats of the peer", partial(parts.peer_heartbeats, server, sizes)
                    )
            peers.close()
            beats = await part("heartbeats", partial(parts.heartbeats, meterd, sizes))
            stop_s = await self.stop_under_load(service, meterd)
        live = await part(
            "the live feed", partial(parts.printed_by, "bench_live", "--json", "--seconds=5")
        )
        usage = await part(
            "the usage API",
            partial(
                parts.printed_by,
                "bench_usage",
                "--rows",
                sizes.usage_rows,
                "--rounds",
                40,
                "--json",
            ),
        )
        many = await part(
            "many organizations",
            partial(parts.printed_by, "bench_organizations", sizes.organizations),
        )
        ledger = await part(
            "a long ledger", partial(parts.printed_by, "bench_ledger", sizes.ledger_rows)
        )
        return Figures(
            load_before=load_before,
            missing=self.missing,
            sizes=sizes,
            checks=checks or {},
            many_checks=many_checks,
            peer_beats=peer_beats,
            beats=beats or {},
            under_load=under_load,
            agents_bytes=agents_bytes,
            connections_bytes=connections_bytes,
            stop_s=stop_s,
            live=live or [],
            usage=usage or {},
            many=many,
            ledger=ledger,
        )


def raise_descriptor_limit() -> None:
    """Allow ten thousand connections."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> None:
    """Measure everything and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one round")
    parser.add_argument("--organizations", type=int, default=100_000)
    parser.add_argument("--ledger-rows", type=int, default=10_000_000)
    parser.add_argument("--usage-rows", type=int, default=1_000_000)
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--reports", type=Path, default=Path("reports"))
    parser.add_argument("--environment", type=Path, default=Path("build/bench-venv"))
    parser.add_argument(
        "--beat", nargs=3, metavar=("PORT", "KEY", "SECONDS"), help="used by itself"
    )
    given = parser.parse_args()
    if given.beat:
        parts.beat_in_background(int(given.beat[0]), given.beat[1], float(given.beat[2]))
        return
    raise_descriptor_limit()
    sizes = Sizes(
        rounds=given.rounds,
        seconds=given.seconds,
        organizations=given.organizations,
        ledger_rows=given.ledger_rows,
        usage_rows=given.usage_rows,
        connections=given.connections,
    )
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="meterd-bench-", ignore_cleanup_errors=True) as name:
        directory = Path(name)
        directory.chmod(0o755)  # PostgreSQL may run as another account
        run = Run(sizes)
        figures = trio.run(run.measure, given.environment.resolve(), directory)
    command = f"python -m tests.bench.report {' '.join(sys.argv[1:])}".strip()
    path = write(figures, given.reports, command, round(time.monotonic() - began))
    sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
