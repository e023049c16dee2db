"""kill -9 of meterd and of PostgreSQL at random instants, while agents work.

Rule 1: after a kill of meterd the tables are compared with what had been acknowledged before it is
started again, so that nothing a client sends again can repair a loss.
Rule 2: recovery of meterd counts from the start of the new process, that of PostgreSQL from the
kill; both end when a task that was asked for later is durable.
"""

from __future__ import annotations

import signal
import socket
from pathlib import Path
from random import Random

import trio

from tests.crash.agents import Ledger, working_agents
from tests.crash.findings import Findings
from tests.crash.outages import SETTINGS, embedded_url, postmaster_of, settle
from tests.integration.service.harness import running_meterd


DRAIN_S = 0.2
"""What the dead process had sent lies in the sockets' buffers, and counts as acknowledged."""

WORK_S_MAX = 1.5


def free_port() -> int:
    """Return a port nobody listens on, so that a restarted meterd has the same address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def kill_meterd(database_url: str, cycles: int, agents: int, random: Random) -> Findings:
    """Kill meterd `cycles` times, each time after it has worked for a random while."""
    found, ledger, port = Findings(), Ledger(), free_port()
    options = ("--database-url", database_url)
    async with trio.open_nursery() as nursery:
        is_over, is_settled = trio.Event(), trio.Event()

        async def work(url: str, key: str) -> None:
            async with working_agents(url, key, ledger, agents):
                await is_over.wait()
            is_settled.set()

        for life in range(cycles + 1):
            began_s = trio.current_time()
            async with running_meterd(*options, settings=SETTINGS, port=port) as service:
                if life == 0:
                    key = await service.organization("load", "enterprise")
                    nursery.start_soon(work, service.url, key)
                    await ledger.recovery_s(began_s)
                else:
                    found.recoveries_s.append(await ledger.recovery_s(began_s))
                await trio.sleep(random.uniform(0, WORK_S_MAX))
                if life < cycles:
                    service.kill()
                    await service.process.wait()
                    await trio.sleep(DRAIN_S)
                    await found.compare_acknowledged(database_url, dict(ledger.acknowledged_ms))
                    found.cycles += 1
                    continue
                is_over.set()
                await is_settled.wait()
                await settle(found, database_url, ledger)
                found.expect(await service.stop() == 0, "SIGTERM did not end in exit 0")
    return found


async def kill_postgres(data_dir: Path, cycles: int, agents: int, random: Random) -> Findings:
    """Kill the embedded PostgreSQL `cycles` times; meterd starts it again."""
    found, ledger = Findings(), Ledger()
    async with running_meterd("--data-dir", str(data_dir), settings=SETTINGS) as service:
        key = await service.organization("load", "enterprise")
        async with working_agents(service.url, key, ledger, agents):
            for _ in range(cycles):
                await ledger.recovery_s(trio.current_time())
                await trio.sleep(random.uniform(0, WORK_S_MAX))
                acknowledged = dict(ledger.acknowledged_ms)
                postmaster_of(service.process.pid).send_signal(signal.SIGKILL)
                killed_s = trio.current_time()
                async with service.client(key) as http:
                    check = await http.get("/v1/quota/check")
                found.expect(check.status_code == 200, f"check {check.status_code} meanwhile")
                found.recoveries_s.append(await ledger.recovery_s(killed_s))
                await found.compare_acknowledged(embedded_url(data_dir), acknowledged)
                found.cycles += 1
        await settle(found, embedded_url(data_dir), ledger)
        found.expect(await service.stop() == 0, "SIGTERM did not end in exit 0")
    return found
