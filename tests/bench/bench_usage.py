"""What a dashboard costs: `python -m tests.bench.bench_usage --rows 10000000` prints a table.

`figures` gives the same as a value for a report; with `--json` it is printed.

An embedded PostgreSQL with one large customer's year, a real meterd on it, agents that report all
the time and senders of events, and meanwhile one reader of every usage route.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

import attrs
import httpx
import trio

from tests.bench.ledgers import fill
from tests.conftest import start_session_server, stop_session_server
from tests.integration.service.harness import Service, running_meterd
from tests.integration.service.stream import open_stream


ROUTES = {
    "GET /v1/usage": "/v1/usage",
    "GET /v1/usage?period= (closed)": "/v1/usage?period={closed}",
    "GET /v1/usage/daily?days=30": "/v1/usage/daily?days=30",
    "GET /v1/usage/daily?days=366": "/v1/usage/daily?days=366",
    "GET /v1/usage/records": "/v1/usage/records",
    "GET /v1/usage/records, 10 pages on": "/v1/usage/records?cursor={cursor}",
    "GET /v1/usage/records?period=": "/v1/usage/records?period={closed}",
    "GET /v1/usage/records?agent_id=": "/v1/usage/records?agent_id=agent-77",
    "GET /v1/usage/records?resource_type=": "/v1/usage/records?resource_type=api_call",
    "GET /v1/usage/records?task_id=": "/v1/usage/records?task_id=live-3",
    "GET /v1/usage/periods": "/v1/usage/periods",
    "GET /v1/invoice/preview": "/v1/invoice/preview",
}


async def metered(service: Service, key: str, agents: int) -> None:
    """Let agents report every 200 ms, and send an event each time."""
    async with open_stream(service.stream_url, key) as stream, service.client(key) as http:
        for number in range(agents):
            await stream.start(f"live-{number}", f"agent-{number}")
        count = 0
        while True:
            for number in range(agents):
                count += 1
                beat = {"type": "heartbeat", "task_id": f"live-{number}", "elapsed_ms": count}
                await stream.send(beat)
            call = {"id": f"live-{count}", "resource_type": "api_call"}
            await http.post("/v1/events", json=call)
            await trio.sleep(0.2)


async def measured(http: httpx.AsyncClient, path: str, rounds: int) -> list[float]:
    """Return the seconds of each round."""
    seconds = []
    for _ in range(rounds):
        began_s = trio.current_time()
        answer = await http.get(path)
        seconds.append(trio.current_time() - began_s)
        assert answer.status_code == 200, answer.text
    return seconds


@attrs.frozen
class RouteFigures:
    """How long one route took to answer, in milliseconds."""

    p50_ms: float
    p95_ms: float
    max_ms: float


async def measure(url: str, rows: int, rounds: int, agents: int) -> dict[str, RouteFigures]:
    """Fill the ledger, then ask every route in turn; return the figures by route."""
    limits = {"agent_minutes": 100_000_000}
    async with running_meterd("--database-url", url) as service:
        key = await service.organization("large", "enterprise", contract=limits)
        await service.stop()
    await trio.to_thread.run_sync(fill, url, "large", rows)
    found = {}
    async with (
        running_meterd("--database-url", url) as service,
        service.client(key) as http,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(metered, service, key, agents)
        periods = (await http.get("/v1/usage/periods")).json()["data"]
        cursor = None
        for _ in range(10):
            path = "/v1/usage/records?limit=1000" + (f"&cursor={cursor}" if cursor else "")
            cursor = (await http.get(path)).json()["next_cursor"] or cursor
        for what, path in ROUTES.items():
            filled = path.format(closed=periods[-2]["billing_period"], cursor=cursor)
            seconds = await measured(http, filled, rounds)
            p95_s = statistics.quantiles(seconds, n=20, method="inclusive")[-1]
            found[what] = RouteFigures(
                *(round(s * 1_000, 2) for s in (statistics.median(seconds), p95_s, max(seconds)))
            )
        nursery.cancel_scope.cancel()
    return found


def figures(*, rows: int = 100_000, rounds: int = 100, agents: int = 20) -> dict[str, RouteFigures]:
    """Measure on a PostgreSQL of its own, thrown away afterwards; figures by route.

    A ledger of 100,000 rows takes under a minute, one of ten million some.
    """
    directory = Path(tempfile.mkdtemp(prefix="meterd-bench-usage-"))
    server = start_session_server(directory)
    try:
        return trio.run(measure, server.dsn, rows, rounds, agents)
    finally:
        stop_session_server(server)
        shutil.rmtree(directory, ignore_errors=True)


def main() -> None:
    """Print a line per route, or all as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--agents", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    found = figures(rows=asked.rows, rounds=asked.rounds, agents=asked.agents)
    if asked.json:
        routes = {what: attrs.asdict(each) for what, each in found.items()}
        sys.stdout.write(json.dumps({"rows": asked.rows, "routes": routes}) + "\n")
        return
    for what, each in found.items():
        sys.stdout.write(
            f"{what:<40} p50 {each.p50_ms:7.1f} ms   p95 {each.p95_ms:7.1f} ms"
            f"   max {each.max_ms:7.1f} ms\n"
        )


if __name__ == "__main__":
    main()
